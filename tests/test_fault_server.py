"""The server that the fault matrix and the kill harness rely on is itself what it says."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from pathlib import Path

import pytest
from support.fault_server import LASTING, PASSING, WORDS, FaultServer, Plan, read_ledger


def post(url: str, text: str) -> int:
    host = url.removeprefix("http://").removesuffix("/v1")
    connection = http.client.HTTPConnection(host, timeout=10)
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def test_faults_depend_on_seed_request_and_attempt_alone() -> None:
    plan = Plan(seed=3, rate=0.3, lasting=0.1)
    keys = [(f"{i:064x}", attempt) for i in range(3000) for attempt in range(2)]
    found = {key: plan.fault(*key) for key in keys}
    assert {key: plan.fault(*key) for key in reversed(keys)} == found
    assert {key: Plan(seed=4, rate=0.3, lasting=0.1).fault(*key) for key in keys} != found
    counts = Counter(found.values())
    assert set(counts) == {None, *PASSING, *WORDS, *LASTING}
    lasting = sum(counts[kind] for kind in LASTING) / len(keys)
    passing = 1 - lasting - counts[None] / len(keys)
    assert 0.08 < lasting < 0.12
    assert 0.25 < passing < 0.29  # 0.3 of the rest
    assert all(found[sha, 0] == found[sha, 1] for sha, _ in keys if found[sha, 0] in LASTING)


def test_the_ledger_survives_its_server(tmp_path: Path) -> None:
    server = FaultServer(tmp_path / "l.jsonl", brain="support.llm_helpers:echo", kinds={"500": 1}, rate=0.5, seed=1)
    with server:
        statuses = [post(server.url, str(i)) for i in range(20)]
    with server:
        again = [post(server.url, str(i)) for i in range(20)]
    assert Counter(statuses).keys() == {200, 500}
    entries = read_ledger(server.ledger)
    assert [e.number for e in entries] == list(range(1, 41))
    assert [e.attempt for e in entries] == [0] * 20 + [1] * 20
    assert [500 if e.fault else 200 for e in entries] == statuses + again
    assert all(e.answered and e.billed == (e.fault is None) == (e.output_tokens > 0) for e in entries)


def test_a_hung_request_is_in_the_ledger(tmp_path: Path) -> None:
    with FaultServer(tmp_path / "l.jsonl", brain="support.llm_helpers:echo", latency=30.0) as server:
        host = server.url.removeprefix("http://").removesuffix("/v1")
        connection = http.client.HTTPConnection(host, timeout=1.0)
        connection.request("POST", "/v1/chat/completions", "{}", {"Content-Type": "application/json"})
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()
        (entry,) = server.entries()
    assert not entry.answered and not entry.billed
