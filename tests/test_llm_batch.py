"""The batch client against a real server with the Batch API, faults included, and a real store."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.batch_client import Asked, texts
from support.batch_server import BatchServer
from support.commands import run
from support.known_words import World, copy_of, job, planted_store
from support.llm_helpers import chat, completion, embedding
from support.llm_server import BrainReply, Fault, Kind, LlmServer, bag_of_words
from support.store_fixtures import add_dictionary

from autointerp.config import BudgetConfig, ExplainConfig, ScoreConfig
from autointerp.errors import AutointerpError, CredentialsError, InputError, StoppedError
from autointerp.explain.explaining import explain
from autointerp.llm import batch_files
from autointerp.llm.requests import Reply
from autointerp.score.scoring import score
from autointerp.store import Store

BATCH_COST = (10 * 1.0 + 2 * 5.0) / 1e6
"""Of one answer of `answer`, at half the price."""


def answer(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply:
    if kind == "embeddings":
        return bag_of_words(kind, body, attempt)
    text = body["prompt"] if kind == "completions" else body["messages"][0]["content"]
    return BrainReply(f"re: {text}", input_tokens=10, output_tokens=2)


def faulty(*faults: str, when: Callable[[str], bool] = lambda text: True) -> Any:
    """A brain with these faults on the first attempts of requests whose text is chosen."""

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if attempt < len(faults) and when(body["messages"][0]["content"]):
            return Fault(faults[attempt])
        return answer(kind, body, attempt)

    return brain


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "x.duckdb", create=True) as opened:
        add_dictionary(opened, "d")
        yield opened


def spent(store: Store) -> float:
    return float(store.rows("SELECT coalesce(sum(cost_usd), 0) FROM llm_calls")[0][0])


def expected(n: int) -> list[str]:
    return [f"re: q{i}" for i in range(n)]


def test_one_batch_for_all_and_the_ledger_afterwards(store: Store) -> None:
    with BatchServer(answer) as server:
        first = Asked(server, store, *texts(7), chat("q1", sample=1), chat("q1"))
        again = Asked(server, store, *texts(7))
        assert server.sizes == [8]
        assert not server.requests, "nothing goes the ordinary way"
    assert first.texts == [*expected(7), "re: q1", "re: q1"]
    assert again.texts == expected(7) and all(reply.from_ledger for reply in again.ok)
    assert [reply.cost_usd for reply in first.ok] == pytest.approx([BATCH_COST] * 9)
    assert first.budget.usd == spent(store) == pytest.approx(8 * BATCH_COST)
    assert store.rows("SELECT status, n_requests FROM batches") == [("completed", 8)]
    assert store.rows("SELECT count(*) FROM batch_requests") == [(0,)]


def test_a_batch_for_each_endpoint(store: Store) -> None:
    with BatchServer(answer) as server:
        asked = Asked(server, store, chat("a"), completion("b"), embedding("c d", "e"), chat("f"))
        endpoints = sorted(batch["endpoint"] for batch in server.batches.values())
    assert endpoints == ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    assert [reply.text for reply in asked.ok] == ["re: a", "re: b", "", "re: f"]
    assert [len(v) for v in asked.ok[2].vectors or []] == [256, 256]


@pytest.mark.parametrize(
    ("spoiled", "sizes"),
    [
        ([{"shuffled"}], [9]),
        ([{"duplicated", "strays"}], [9]),
        ([{"torn"}], [9]),
        ([{"missing"}], [9, 4]),
        ([{"errors_only"}], [9, 9]),
        ([{"expired"}, {"expired"}], [9, 5, 3]),
        ([{"lost_create"}], [9]),
    ],
    ids=lambda value: "-".join(sorted(set.union(*value))) if isinstance(value[0], set) else "",
)
def test_results_are_joined_whatever_happens_to_their_file(
    store: Store, spoiled: list[set[str]], sizes: list[int]
) -> None:
    with BatchServer(answer, spoiled=spoiled) as server:
        asked = Asked(server, store, *texts(9))
        assert server.sizes == sizes
        assert len(server.submitted) == 9
    assert asked.texts == expected(9)
    assert spent(store) == asked.budget.usd == pytest.approx(9 * BATCH_COST)
    assert not store.unfinished_batches(server.url, "test-model")


def test_faults_of_the_batch_api_itself_are_waited_out(store: Store) -> None:
    with BatchServer(answer, poll_faults=4, download_faults=3, upload_faults=2) as server:
        assert Asked(server, store, *texts(5)).texts == expected(5)
        assert server.sizes == [5]


def test_a_result_that_never_comes_is_given_up(store: Store) -> None:
    with BatchServer(answer, spoiled=[{"errors_only"}] * 3) as server:
        asked = Asked(server, store, chat("a"))
        assert server.sizes == [1, 1, 1]
        assert (asked.ok[0].status, asked.ok[0].attempts) == ("gave_up", 3)
        assert "answered 500" in (asked.ok[0].error or "")
        assert store.rows("SELECT status, cost_usd, attempts FROM llm_calls") == [("gave_up", 0.0, 3)]
        assert Asked(server, store, chat("a")).texts == ["re: a"], "the next run asks again"


def test_each_requests_own_outcome(store: Store) -> None:
    faults = {
        "filter": "content_filter_400",
        "long": "ctx_too_long",
        "wrong": "400",
        "slow": "500",
        "odd": "no_message",
    }

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        text = body["messages"][0]["content"]
        if text == "cut":
            return BrainReply("on and on", finish_reason="MAX_TOKENS" if body["max_tokens"] <= 50 else "stop")
        if text == "torn":
            return BrainReply("LABEL: half a", finish_reason="abort" if attempt == 0 else "stop")
        if text == "unsafe":
            return BrainReply("LABEL: half a", finish_reason="SAFETY")
        if text == "no":
            return BrainReply("", refusal="I will not")
        return (
            Fault(faults[text]) if text in faults and (attempt == 0 or text == "wrong") else answer(kind, body, attempt)
        )

    with BatchServer(brain) as server:
        asked = Asked(
            server,
            store,
            *(chat(t) for t in ("fine", "filter", "long", "wrong", "slow", "odd", "cut", "no", "torn", "unsafe")),
        )
    outcomes = [(reply.status, reply.text) for reply in asked.ok]
    assert outcomes == [
        ("ok", "re: fine"), ("filtered", ""), ("ctx_too_long", ""), ("gave_up", ""), ("ok", "re: slow"),
        ("ok", "re: odd"), ("ok", "on and on"), ("refused", ""), ("ok", "LABEL: half a"),
        ("filtered", "LABEL: half a"),
    ]  # fmt: skip
    odd = store.rows("SELECT status, attempts FROM llm_calls WHERE request_sha256 = ?", [chat("odd").sha256])
    assert odd == [("ok", 2)], "what the unusable reply took is kept beside the good one"
    assert sum(reply.cost_usd for reply in asked.ok) == pytest.approx(spent(store)) == pytest.approx(asked.budget.usd)


@pytest.mark.parametrize(
    ("brain", "spoiled", "error", "words"),
    [
        (answer, [{"failed"}], InputError, "not accepted (line 3)"),
        (answer, [{"token_limit"}], StoppedError, "batch_in_flight"),
        (faulty("400"), [], InputError, "answered 400"),
        (faulty("401", when=lambda text: text == "q1"), [], CredentialsError, "answered 401"),
        (faulty("insufficient_quota", when=lambda text: text == "q1"), [], StoppedError, "no credit"),
    ],
    ids=["validation", "token_limit", "refused", "key", "quota"],
)
def test_what_ends_the_run(
    store: Store, brain: Any, spoiled: list[set[str]], error: type[AutointerpError], words: str
) -> None:
    with BatchServer(brain, spoiled=spoiled) as server:
        asked = Asked(server, store, *texts(3))
        assert any(type(e) is error or isinstance(e, error) for e in asked.replies)
        assert words in " ".join(str(e) for e in asked.replies)
        assert len(server.batches) == 1
        done = store.rows("SELECT count(*) FROM llm_calls WHERE status = 'ok'")[0][0]
        assert done == sum(isinstance(reply, Reply) for reply in asked.replies) == sum(server.answered.values())
        # What was wrong is right now: the batch is not looked at again.
        assert Asked(server, store, *texts(3)).texts == expected(3)


def test_an_endpoint_without_batches(store: Store) -> None:
    with LlmServer(answer) as server:
        asked = Asked(server, store, chat())
    assert isinstance(asked.replies[0], CredentialsError) and "/files" in str(asked.replies[0])


@pytest.mark.parametrize(
    "budget", [BudgetConfig(max_requests=4), BudgetConfig(max_usd=0.0005), BudgetConfig(max_tokens=250)]
)
def test_a_batch_is_trimmed_to_the_budget(store: Store, budget: BudgetConfig) -> None:
    with BatchServer(answer) as server:
        asked = Asked(server, store, *texts(40), budget=budget)
        done = [reply for reply in asked.replies if isinstance(reply, Reply)]
        stopped = [reply for reply in asked.replies if isinstance(reply, StoppedError)]
        assert 0 < len(done) < 40 and len(done) + len(stopped) == 40
        assert sum(server.answered.values()) == len(done) == sum(server.sizes)
        assert "is used up" in str(stopped[0])
        used = asked.budget
        assert used.requests <= (budget.max_requests or 1e9)
        assert used.usd <= (budget.max_usd or 1e9)
        assert used.tokens <= (budget.max_tokens or 1e9)
        assert Asked(server, store, *texts(40)).texts == expected(40)
        assert max(server.submitted.values()) == 1


def test_another_process_goes_on_with_a_batch_and_pays_nothing_twice(store: Store) -> None:
    with BatchServer(answer, held=True) as server:
        left = Asked(server, store, *texts(6), until=lambda: bool(server.batches) and server._looks["batch_0"] > 0)
        assert any("goes on at the endpoint" in line for line in left.said)
        assert store.rows("SELECT count(*) FROM llm_calls") == [(0,)]
        server.held = False
        # Only some of them are asked about, and one that is new; the others are fetched all the same.
        asked = Asked(server, store, *texts(3), chat("new"), budget=BudgetConfig(max_requests=1))
        assert asked.texts == [*expected(3), "re: new"]
        assert store.rows("SELECT count(*) FROM llm_calls WHERE status = 'ok'") == [(7,)]
        assert Asked(server, store, *texts(6)).texts == expected(6)
        assert set(server.answered.values()) == {1} and server.sizes == [6, 1]
    assert spent(store) == pytest.approx(7 * BATCH_COST)


def test_a_deadline_does_not_wait_for_a_batch(store: Store) -> None:
    with BatchServer(answer, held=True) as server:
        stopped = Asked(server, store, *texts(3), budget=BudgetConfig(deadline=1.0))
        assert {type(reply) for reply in stopped.replies} == {StoppedError}
        assert "deadline" in str(stopped.replies[0]) and "goes on at the endpoint" in stopped.said[-1]
        server.held = False
        assert Asked(server, store, *texts(3)).texts == expected(3)
        assert server.sizes == [3] and set(server.answered.values()) == {1}


def test_what_an_earlier_batch_did_not_answer_is_sent_again(store: Store) -> None:
    with BatchServer(answer, held=True, spoiled=[{"expired"}]) as server:
        Asked(server, store, *texts(6), until=lambda: bool(server.batches))
        server.held = False
        assert Asked(server, store, *texts(6)).texts == expected(6)
        assert server.sizes == [6, 3] and set(server.answered.values()) == {1}


def test_a_batch_that_the_endpoint_does_not_know(store: Store) -> None:
    with BatchServer(answer, held=True) as server:
        Asked(
            server, store, *texts(2), until=lambda: bool(store.rows("SELECT 1 FROM batches WHERE batch_id IS NOT NULL"))
        )
        server.batches.clear()
        server.held = False
        asked = Asked(server, store, *texts(2))
        assert isinstance(asked.replies[0], InputError) and "same project" in str(asked.replies[0])
        assert not server.batches
        with store.transaction() as con:
            con.execute("UPDATE batches SET created_at = created_at - INTERVAL 3 DAY")
        assert Asked(server, store, *texts(2)).texts == expected(2)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from types import SimpleNamespace
from autointerp.llm import batch_transport
from autointerp.store import Store
from autointerp.store.llm_batches import StoreBatches
from support.batch_client import Asked, texts
import os, signal

def kill_after(owner, name, times):
    plain, left = getattr(owner, name), [times]
    def killing(*args, **more):
        result = plain(*args, **more)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    async def killing_later(*args, **more):
        result = await plain(*args, **more)
        os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, killing_later if owner is batch_transport.BatchTransport else killing)

kill_after({owner}, {name!r}, {times})
with Store.open(Path({path!r})) as store:
    Asked(SimpleNamespace(url={url!r}), store, *texts(120))
"""


@pytest.mark.parametrize(
    ("owner", "name", "times"),
    [
        pytest.param("StoreBatches", "begin_batch", 1, marks=pytest.mark.slow),
        ("batch_transport.BatchTransport", "create", 1),
        ("Store", "insert_group", 1),
        pytest.param("StoreBatches", "finish_batch", 1, marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_step_loses_nothing(tmp_path: Path, owner: str, name: str, times: int) -> None:
    path = tmp_path / "killed.duckdb"
    with Store.open(path, create=True) as store:
        add_dictionary(store, "d")
    with BatchServer(answer) as server:
        code = KILLED.format(
            tests=str(Path(__file__).parent), owner=owner, name=name, times=times, path=str(path), url=server.url
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        with Store.open(path) as store:
            assert Asked(server, store, *texts(120)).texts == expected(120)
            assert spent(store) == pytest.approx(120 * BATCH_COST)
        assert server.sizes == [120] and set(server.answered.values()) == {1}


# --- the files ------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from(["chat", "completions"]), st.integers(1, 30)), max_size=40),
    st.integers(1, 7),
    st.integers(600, 3000),
)
def test_files_keep_to_the_limits_and_hold_every_request_once(
    asked: list[tuple[str, int]], most: int, size: int
) -> None:
    requests = [
        chat(f"{i}" + "x" * 30 * n) if kind == "chat" else completion(f"{i}" + "y" * 30 * n)
        for i, (kind, n) in enumerate(asked)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_files, "MOST_REQUESTS", most)
        patch.setattr(batch_files, "MOST_BYTES", size)
        parts = list(batch_files.parted(requests))
    assert sorted(id(r) for part in parts for r in part) == sorted(map(id, requests))
    for part in parts:
        lines = [batch_files.input_line(request) for request in part]
        assert len(part) <= most and len({request.kind for request in part}) == 1
        assert sum(map(len, lines)) <= size or len(part) == 1
        assert [json.loads(line)["body"] for line in lines] == [request.body for request in part]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["custom_id", "response", "body"]), inner)
    ),
    max_leaves=8,
)


@given(JSON, JSON, st.text(max_size=20))
def test_nothing_that_comes_back_breaks_the_reading(a: Any, b: Any, text: str) -> None:
    line = {"custom_id": "x", "response": {"status_code": 200, "body": a}, "error": b}
    state = {"id": "b", "status": a, "errors": {"data": b}, "request_counts": a, "metadata": b, "created_at": a}
    for value in (a, line, {**line, "response": b}):
        found = batch_files.read_line(json.dumps(value))
        assert found is None or isinstance(found.custom_id, str)
    assert batch_files.read_line(text) is None or text.lstrip().startswith("{")
    assert batch_files.read_state(a) is None or a["id"]
    read = batch_files.read_state(state)
    assert read is not None and read.batch_id == "b" and read.took_s >= 0


# --- end to end -----------------------------------------------------------------------------------------------------


def tables(path: Path, template: Path, server: LlmServer, **llm: Any) -> tuple[list[Any], ...]:
    """Labels and scores of the planted features."""
    with copy_of(template, path) as store:
        there: dict[str, Any] = {"model": "test-model", "base_url": server.url}
        asyncio.run(explain(job(store, **llm), ExplainConfig(explainer="combined", reply="text", **there)))
        scoring = ScoreConfig(contexts=2, scorers=("simulation", "detection"), **there)
        asyncio.run(score(job(store, **llm), "combined", scoring))
        return (
            store.rows("SELECT feature, text, status, input_tokens FROM explanations ORDER BY feature"),
            store.rows("SELECT score_id, value, ci_low, n, n_failed, status FROM scores ORDER BY score_id"),
            store.rows("SELECT request_sha256, status, reply FROM llm_calls WHERE stage <> 'probe' ORDER BY 1"),
        )


def test_labels_and_scores_are_those_of_single_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    planted_store(tmp_path / "planted.duckdb", 3).close()
    with BatchServer(World(logprobs=("prompt", "generated")), spoiled=[set(), {"expired", "shuffled"}]) as server:
        single = tables(tmp_path / "single.duckdb", tmp_path / "planted.duckdb", server)
        ordinary = len(server.requests)
        batch = tables(
            tmp_path / "batch.duckdb", tmp_path / "planted.duckdb", server, batch=True, batch_poll_seconds=0.01,
            batch_quiet_seconds=0.1,
        )  # fmt: skip
        assert len(server.requests) - ordinary <= 3, "only probes go the ordinary way"
        assert {b["endpoint"] for b in server.batches.values()} == {"/v1/chat/completions", "/v1/completions"}
    assert single[0] == batch[0] and single[1] == batch[1]
    assert [row[:2] for row in single[2]] == [row[:2] for row in batch[2]]
    assert len(single[0]) == 3 and all(row[-1] == "ok" for row in single[1])


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    planted_store(tmp_path / "planted.duckdb", 2).close()
    config = tmp_path / "autointerp.toml"
    with BatchServer(World()) as server:
        config.write_text(
            f'[explain]\nexplainer = "combined"\nreply = "text"\nmodel = "m"\nbase_url = "{server.url}"\n'
            f"[llm]\nbatch_poll_seconds = 0.01\nbatch_quiet_seconds = 0.05\n[llm.prices.m]\ninput = 1000.0\n"
            f'[store]\npath = "{tmp_path / "planted.duckdb"}"\n'
        )
        costs = []
        for how in ([], ["--batch"]):
            code, out, err = run(capsys, "explain", "-c", str(config), "--dry-run", *how)
            assert code == 0, err
            costs.append(float(out.split("$")[1].split(",")[0]))
        assert costs[1] == pytest.approx(costs[0] / 2, rel=1e-3) and costs[0] > 0
        code, _, err = run(capsys, "explain", "-c", str(config), "--batch")
        assert code == 0 and "of 2 requests was handed over" in err
        assert server.sizes == [2] and not server.requests
    with Store.open(tmp_path / "planted.duckdb") as store:
        assert store.rows("SELECT status FROM explanations") == [("ok",), ("ok",)]


@pytest.mark.slow
def test_ctrl_c_leaves_the_batch_at_the_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    store_path, config = tmp_path / "planted.duckdb", tmp_path / "autointerp.toml"
    planted_store(store_path, 2).close()
    with BatchServer(World(), held=True) as server:
        config.write_text(
            f'[explain]\nexplainer = "combined"\nreply = "text"\nmodel = "m"\nbase_url = "{server.url}"\n'
            f"[llm]\nbatch = true\nbatch_poll_seconds = 0.01\nbatch_quiet_seconds = 0.05\n"
            f'[store]\npath = "{store_path}"\n'
        )
        command = [sys.executable, "-m", "autointerp", "explain", "-c", str(config)]

        def listen() -> None:  # a shell starts background jobs with this signal ignored, and children inherit that
            signal.signal(signal.SIGINT, signal.default_int_handler)

        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "handed over" in line:
                    break
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and "goes on at the endpoint" in said, said
        server.held = False
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "going on with batch batch_0" in done.stderr
        assert server.sizes == [2] and set(server.answered.values()) == {1}
        assert "canary" not in said + done.stderr
