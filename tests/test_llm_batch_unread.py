"""Results of a batch that are there and cannot be read: they are booked, the readable ones are kept, nothing hangs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.batch_client import Asked, texts
from support.batch_server import BatchServer
from support.llm_helpers import chat
from support.llm_server import BrainReply, Kind
from support.store_fixtures import add_dictionary

from autointerp.errors import StoppedError
from autointerp.llm import batch_results, batch_transport
from autointerp.llm.batch_files import FileLine, custom_id, unread
from autointerp.llm.requests import Reply
from autointerp.store import Store

ONE_ANSWER = (10 * 1.0 + 2 * 5.0) / 1e6
"""Dollars for one answer of `answer`, at half the price."""
CAP = 20_000
"""Bytes of the longest line that is read, with max_reply_bytes = 10,000."""


def answer(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply:
    return BrainReply(f"re: {body['messages'][0]['content']}", input_tokens=10, output_tokens=2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "x.duckdb", create=True) as opened:
        add_dictionary(opened, "d")
        yield opened


def changed(number: int, change: Callable[[dict[str, Any]], bytes]) -> Callable[[bytes], bytes]:
    """A file in which the line that answers "q<number>" is another one."""

    def edit(lines: bytes) -> bytes:
        out = []
        for line in lines.splitlines():
            found = json.loads(line)
            is_it = found["response"]["body"]["choices"][0]["message"]["content"] == f"re: q{number}"
            out.append(change(found) if is_it else line)
        return b"\n".join(out) + b"\n"

    return edit


def padded(line: dict[str, Any]) -> bytes:
    line["response"]["body"]["choices"][0]["message"]["content"] = "x" * 2 * CAP
    return json.dumps(line).encode()


def padded_without_usage(line: dict[str, Any]) -> bytes:
    del line["response"]["body"]["usage"]
    return padded(line)


def without_its_end(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode()[:-30]


def without_its_name(line: dict[str, Any]) -> bytes:
    return b"<html>gateway timeout</html>"


def with_a_body_that_is_no_json(line: dict[str, Any]) -> bytes:
    line["response"]["body"] = "<html>gateway timeout</html>"
    return json.dumps(line).encode()


@pytest.mark.parametrize(
    "change",
    [padded, padded_without_usage, without_its_end, without_its_name, with_a_body_that_is_no_json],
)
def test_one_unreadable_line_costs_no_other_result(store: Store, change: Callable[[dict[str, Any]], bytes]) -> None:
    with BatchServer(answer, edit=changed(5, change)) as server:
        asked = Asked(server, store, *texts(12), max_reply_bytes=CAP // 2)
        assert server.sizes == [12, 1, 1], "the eleven that could be read are not sent again"
        assert sum(server.answered.values()) == 14
    kept = [reply for reply in asked.ok if reply.status == "ok"]
    assert [reply.text for reply in kept] == [f"re: q{i}" for i in range(12) if i != 5]
    lost = asked.ok[5]
    assert (lost.status, lost.attempts) == ("bad_reply", 3)
    rows = store.rows("SELECT status, attempts, input_tokens, cost_usd FROM llm_calls ORDER BY status")
    assert rows[0][:2] == ("bad_reply", 3) and [row[0] for row in rows[1:]] == ["ok"] * 11
    booked = sum(row[3] for row in rows)
    assert booked == pytest.approx(asked.budget.usd) and asked.budget.requests == 14
    if change is padded:  # the usage stands at the end of the line
        assert booked == pytest.approx(14 * ONE_ANSWER) and rows[0][2] == 30
    elif change is not with_a_body_that_is_no_json:  # nothing says what it took: at most what was expected
        assert booked > 14 * ONE_ANSWER
    assert not store.unfinished_batches(server.url, "test-model")


def test_what_is_unreadable_once_is_asked_again_and_both_are_booked(store: Store) -> None:
    edits = iter([changed(1, padded), lambda lines: lines])
    with BatchServer(answer, edit=lambda lines: next(edits)(lines)) as server:
        asked = Asked(server, store, *texts(3), max_reply_bytes=CAP // 2)
        assert server.sizes == [3, 1]
    assert asked.texts == ["re: q0", "re: q1", "re: q2"]
    assert asked.budget.usd == pytest.approx(4 * ONE_ANSWER)
    assert asked.ok[1].cost_usd == pytest.approx(2 * ONE_ANSWER)
    assert any("1 that cannot be read, though they are paid for" in line for line in asked.said)


def test_results_before_a_break_are_recorded(store: Store) -> None:
    """The file breaks off at every download, within what is taken at once."""
    with BatchServer(answer, download_faults=1000) as server:
        asked = Asked(server, store, *texts(8))
        assert isinstance(asked.replies[-1], StoppedError) and "stay at the endpoint" in str(asked.replies[-1])
        done = [reply.text for reply in asked.replies if isinstance(reply, Reply)]
        assert 2 <= len(done) < 8 and done == [f"re: q{i}" for i in range(len(done))]
        server.download_faults = 0
        assert Asked(server, store, *texts(8)).texts == [f"re: q{i}" for i in range(8)]
        assert server.sizes == [8]


STRAY = json.dumps({"custom_id": "nobody", "response": {"status_code": 200, "body": {}}}).encode() + b"\n"


@pytest.mark.parametrize("piece", [STRAY * 500, b"\n" * 20_000, b"x" * 60_000], ids=["strays", "empty", "one-line"])
def test_a_file_without_end_is_left_with_what_it_held(
    store: Store, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_results, "MOST_USELESS_LINES", 5_000)
    monkeypatch.setattr(batch_transport, "MOST_LINE_BYTES", 1_000_000)
    with BatchServer(answer, endless=piece) as server:
        asked = Asked(server, store, *texts(4), max_reply_bytes=CAP // 2)
        assert server.sizes == [4]
    assert asked.texts == [f"re: q{i}" for i in range(4)]
    assert asked.budget.usd == pytest.approx(4 * ONE_ANSWER)


def test_what_a_file_without_end_may_hold_is_booked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_results, "MOST_USELESS_LINES", 1_000)
    with BatchServer(answer, endless=STRAY * 500, edit=lambda lines: lines.partition(b"\n")[0] + b"\n") as server:
        asked = Asked(server, store, *texts(3), attempts=1)
        assert server.sizes == [3]
    assert [reply.status for reply in asked.ok] == ["ok", "bad_reply", "bad_reply"]
    assert asked.budget.requests == 3 and asked.budget.usd > 3 * ONE_ANSWER


def test_a_file_that_trickles_is_a_timeout(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_transport, "SLOWEST_DOWNLOAD_BYTES_PER_S", 1e12)
    with BatchServer(answer, slow_s=0.02) as server:
        asked = Asked(server, store, *texts(1), timeout=0.1)
    assert isinstance(asked.replies[0], StoppedError) and "arrives too slowly" in str(asked.replies[0])


def test_both_ends_of_a_long_line_say_whose_it_is_and_what_it_took() -> None:
    name = custom_id(chat("a"))
    start = f'{{"id": "x", "custom_id": "{name}", "response": {{"body": {{"content": "'.encode()
    told = rb'he said \"usage\": {\"total_tokens\": 1}"'
    tail = told + b', "usage": {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}}}'
    line = FileLine(start, 10**9, tail)
    lost = unread(line, start.decode(), tail.decode(), CAP)
    assert lost.custom_id == name and lost.is_too_long
    assert lost.usage == {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}
    assert unread(FileLine(b"x", 10**9, told), "x", told.decode(), CAP).usage is None
