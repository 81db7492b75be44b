"""The client against a real server with real faults: what each fault becomes, and what it costs."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import resource
import socket
import sys
import threading
import time
import traceback
from typing import Any

import httpx2
import pytest
from support.llm_helpers import MemoryLedger, Stopwatch, ask_all, chat, client_for, completion, embedding
from support.llm_server import BrainReply, Fault, Kind, LlmServer, bag_of_words

from autointerp.config import BudgetConfig, PriceConfig
from autointerp.errors import AutointerpError, CredentialsError, DiskFullError, InputError, StoppedError
from autointerp.llm.client import LlmClient
from autointerp.llm.endpoint_errors import RAW_KEPT, RequestRefusedError
from autointerp.llm.pool import run_pool
from autointerp.llm.requests import Reply
from autointerp.llm.transport import retry_after_s
from autointerp.records import CallRecord


def answer(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply:
    return BrainReply("fine", input_tokens=10, output_tokens=2)


def faulty(fault: Fault, times: int = 1_000_000) -> Any:
    """A brain with `fault` on the first `times` attempts of every request."""

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        return fault if attempt < times else answer(kind, body, attempt)

    return brain


def test_embeddings_are_recorded_counted_and_not_asked_for_again() -> None:
    ledger = MemoryLedger()
    prices = {"test-model": PriceConfig(input=2.0, output=1e6)}
    with LlmServer(bag_of_words) as server:
        client = client_for(server, ledger, BudgetConfig(max_usd=0.01), prices=prices)
        one, same = ask_all(client, embedding("a cat", "cat dog"), embedding("a cat", "cat dog"))
        again = ask_all(client_for(server, ledger), embedding("a cat", "cat dog"))[0]
        assert server.kinds == ["embeddings"]
    assert one.vectors is not None and [len(v) for v in one.vectors] == [256, 256]
    assert one.vectors == same.vectors == again.vectors and again.from_ledger
    # Nothing is written: a price for output, and room set aside for it, would be wrong.
    assert (one.status, one.text, one.input_tokens, one.output_tokens) == ("ok", "", 3, 0)
    assert client.budget.usd == one.cost_usd == pytest.approx(3 * 2.0 / 1e6)


def test_embeddings_of_the_wrong_number_are_asked_for_again() -> None:
    def short(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply:
        reply = bag_of_words(kind, body, attempt)
        return BrainReply("", vectors=reply.vectors[: attempt + 1])

    with LlmServer(short) as server:
        ledger = MemoryLedger()
        assert ask_all(client_for(server, ledger), embedding("a", "b"))[0].ok
        reply = ask_all(client_for(server, ledger), embedding(*"abcdefg"))[0]
    assert (reply.status, reply.vectors) == ("bad_reply", None)
    assert "3 embeddings for 7 inputs" in (reply.error or "")


def test_a_vector_for_each_token_is_no_embedding() -> None:
    """As llama-cpp-python sends it for a model that is made for writing."""
    tables: Any = [[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6]]]
    with LlmServer(lambda *_: BrainReply("", vectors=tables)) as server:
        reply = ask_all(client_for(server), embedding("two words", "one"))[0]
    assert reply.status == "bad_reply" and "one vector a token" in (reply.error or "")


def test_reply_is_recorded_and_not_asked_for_again() -> None:
    ledger = MemoryLedger()
    prices = {"test-model": PriceConfig(input=2.0, cached_input=1.0, output=10.0)}
    brain = BrainReply("hi", input_tokens=100, cached_tokens=40, output_tokens=5)
    with LlmServer(lambda *_: brain) as server:
        first = ask_all(client_for(server, ledger, prices=prices), chat())[0]
        again = ask_all(client_for(server, ledger, prices=prices), chat())[0]
        other_sample = ask_all(client_for(server, ledger, prices=prices), chat(sample=1))[0]
        assert len(server.requests) == 2
    assert (first.status, first.text, first.from_ledger) == ("ok", "hi", False)
    assert (again.text, again.from_ledger, again.input_tokens) == ("hi", True, 100)
    assert not other_sample.from_ledger
    assert first.cost_usd == pytest.approx((60 * 2 + 40 * 1 + 5 * 10) / 1e6)
    record = ledger.find(chat().sha256, 0)
    assert record is not None
    assert (record.status, record.input_tokens, record.cached_tokens, record.output_tokens) == ("ok", 100, 40, 5)
    assert record.cost_usd == first.cost_usd
    assert record.run_id == "run-1" and record.latency_s > 0 and record.attempts == 1


def test_the_record_is_committed_before_the_reply_is_returned() -> None:
    class Refusing(MemoryLedger):
        async def record(self, record: CallRecord) -> None:
            raise DiskFullError("no space left")

    with LlmServer(answer) as server:
        with pytest.raises(DiskFullError):
            ask_all(client_for(server, Refusing()), chat())
        with pytest.raises(DiskFullError):  # and no further call is sent
            ask_all(client := client_for(server, Refusing()), chat("a"))
        assert len(server.requests) == 2
        assert client.counts.sent == 1


def test_equal_requests_in_flight_are_sent_once() -> None:
    with LlmServer(answer, latency=0.1) as server:
        replies = ask_all(client_for(server), *[chat("same")] * 20)
        assert len(server.requests) == 1
    assert {r.text for r in replies} == {"fine"}


@pytest.mark.parametrize("kind", ["500", "502", "503", "529", "408", "reset", "short_body"])
def test_passing_fault_is_retried(kind: str) -> None:
    ledger = MemoryLedger()
    with LlmServer(faulty(Fault(kind), times=2)) as server:
        reply = ask_all(client_for(server, ledger), chat())[0]
        assert len(server.requests) == 3
    assert (reply.status, reply.text, reply.attempts) == ("ok", "fine", 3)
    assert ledger.rows[(chat().sha256, 0)].attempts == 3


@pytest.mark.parametrize("kind", ["500", "reset"])
def test_lasting_fault_gives_the_request_up_and_leaves_others_alone(kind: str) -> None:
    def brain(k: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        return Fault(kind) if "unlucky" in str(body) else answer(k, body, attempt)

    ledger = MemoryLedger()
    with LlmServer(brain) as server:
        unlucky, *others = ask_all(client_for(server, ledger, attempts=4), chat("unlucky"), chat("a"), chat("b"))
        assert (unlucky.status, unlucky.attempts, unlucky.text) == ("gave_up", 4, "")
        assert unlucky.error and (kind != "500" or "500" in unlucky.error)
        assert [o.status for o in others] == ["ok", "ok"]
        server.brain = answer  # gave_up is no answer: the next run asks again
        assert ask_all(client_for(server, ledger), chat("unlucky"))[0].status == "ok"
    assert ledger.rows[(chat("unlucky").sha256, 0)].status == "ok"


def test_a_full_queue_that_moves_gives_nobody_up() -> None:
    """A server that has room for one call, shared by many: some requests are refused far more often than they may
    fail."""

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if server.in_flight > 1 or ("unlucky" in str(body) and attempt < 12):
            return Fault("busy_503")
        return answer(kind, body, attempt)

    with LlmServer(brain, latency=0.01) as server:
        client = client_for(server, attempts=3, max_connections=8)
        replies = ask_all(client, chat("unlucky"), *[chat(f"{i}") for i in range(10)])
    assert {reply.status for reply in replies} == {"ok"}
    assert replies[0].attempts > 12


def test_a_queue_that_never_moves_gives_up_as_an_outage_does() -> None:
    with LlmServer(faulty(Fault("busy_503"))) as server:
        replies = ask_all(client_for(server, attempts=4, max_connections=1), chat("a"), chat("b"))
        assert len(server.requests) == 8
    assert {(reply.status, reply.attempts) for reply in replies} == {("gave_up", 4)}


def test_a_request_that_alone_finds_the_queue_full_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 20 refusals and a quarter of an hour, which is left out here."""
    monkeypatch.setattr("autointerp.llm.retry.LIMITED_S", 0.0)

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        return Fault("busy_503") if "unlucky" in str(body) else answer(kind, body, attempt)

    with LlmServer(brain) as server:
        unlucky, *others = ask_all(client_for(server, max_connections=1), chat("unlucky"), chat("a"), chat("b"))
    assert [reply.status for reply in others] == ["ok", "ok"]
    assert (unlucky.status, unlucky.attempts) == ("gave_up", 20)
    assert unlucky.error and "busy" in unlucky.error


@pytest.mark.parametrize("kind", ["hang", "slow_loris"])
def test_hung_socket_ends_at_the_timeout_twice_at_most(kind: str) -> None:
    with LlmServer(faulty(Fault(kind))) as server:
        watch = Stopwatch()
        reply = ask_all(client_for(server, timeout=0.6), chat())[0]
        assert 1.2 <= watch.s < 6  # loosely: a loaded machine is no fault of the timeout's
        assert len(server.requests) <= 2
    assert (reply.status, reply.attempts) == ("gave_up", 2)
    assert reply.error and "0.6 s" in reply.error
    assert reply.input_tokens > 0 and reply.output_tokens == 100  # perhaps billed: both attempts count in full


@pytest.mark.parametrize("field", ["completion_tokens", "output_tokens", "total_tokens"])
def test_a_usage_without_prompt_tokens_uses_up_the_budget(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.llm_server.usage_of", lambda *_: {field: 100_000})
    prices = {"test-model": PriceConfig(input=1.0, output=10.0)}
    with LlmServer(answer) as server:
        client = client_for(server, None, BudgetConfig(max_usd=1.5), prices=prices, max_connections=1)
        with pytest.raises(StoppedError, match="max_usd"):
            ask_all(client, *[chat(f"{i}", max_tokens=60_000) for i in range(20)])
        assert len(server.requests) == 1
    assert client.budget.usd == pytest.approx(1.0, rel=0.01)


def test_a_proxy_that_refuses_the_connection_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(refused)
        await writer.drain()
        writer.close()

    async def run(ledger: MemoryLedger) -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        async with server:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.setenv("TEST_LLM_KEY", "sk-test-key-of-no-use")
            async with client_for("https://llm.example.org/v1", ledger) as client:
                await client.ask(chat())

    ledger = MemoryLedger()
    with pytest.raises(AutointerpError, match="cannot reach .*proxy refused the connection: 407"):
        asyncio.run(run(ledger))
    assert asked and all(line.startswith(b"CONNECT llm.example.org:443") for line in asked)
    assert not ledger.rows


BAD_REPLIES = ["truncated_json", "html", "error_200", "empty_choices", "null_choices", "no_message"]


@pytest.mark.parametrize("kind", BAD_REPLIES)
def test_bad_reply_is_tried_three_times_and_kept(kind: str) -> None:
    ledger = MemoryLedger()
    with LlmServer(faulty(Fault(kind))) as server:
        reply = ask_all(client_for(server, ledger), chat())[0]
        assert len(server.requests) == 3
        assert (reply.status, reply.text) == ("bad_reply", "")
        record = ledger.rows[(chat().sha256, 0)]
        assert record.reply and 0 < len(record.reply) <= RAW_KEPT
        assert record.error
        server.brain = answer
        assert ask_all(client_for(server, ledger), chat())[0].status == "ok"


@pytest.mark.parametrize("kind", BAD_REPLIES)
def test_passing_bad_reply(kind: str) -> None:
    with LlmServer(faulty(Fault(kind), times=1)) as server:
        reply = ask_all(client_for(server), chat())[0]
    assert (reply.status, reply.attempts) == ("ok", 2)
    assert reply.input_tokens > 10  # the reply that could not be read may have been billed


@pytest.mark.parametrize("kind", ["huge", "huge_declared"])
def test_huge_reply_is_not_read(kind: str) -> None:
    with LlmServer(faulty(Fault(kind, size=60_000_000))) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reply = ask_all(client_for(server, max_reply_bytes=100_000), chat())[0]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert reply.status == "bad_reply"
    assert reply.error and "max_reply_bytes" in reply.error
    assert grown < 16_000  # kB, the server's side included


@pytest.mark.parametrize("retry_after", [1.0, None, "garbage"])
def test_429_pauses_all_workers(retry_after: float | None) -> None:
    limited = Fault("429", retry_after=retry_after)
    gone = threading.Event()

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if "limited" in str(body) and not gone.is_set():
            gone.set()
            return limited
        return answer(kind, body, attempt)

    requests = [chat("limited"), *[chat(f"other {i}") for i in range(30)]]

    async def run(client: LlmClient) -> list[Reply]:
        async with client:
            first = asyncio.create_task(client.ask(requests[0]))
            while not gone.is_set():
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.08)  # the 429 has arrived; now others come
            return [await first, *await asyncio.gather(*(client.ask(r) for r in requests[1:]))]

    with LlmServer(brain) as server:
        replies = asyncio.run(run(client_for(server, attempts=1)))
        gap = server.arrivals[1] - server.arrivals[0]
    assert all(r.ok for r in replies)  # with attempts=1: a 429 is not counted against the request
    shortest, longest = (1.0, 2.2) if retry_after == 1.0 else (0.1, 1.2)
    assert shortest <= gap <= longest, gap
    assert replies[0].attempts == 2


def test_long_and_absurd_retry_after() -> None:
    """121 s, which the SDK would not wait for, holds the gate; beyond an hour the run stops and stays resumable."""
    with LlmServer(faulty(Fault("429", retry_after=121))) as server:
        client = client_for(server)

        async def run() -> float:
            async with client:
                task = asyncio.create_task(client.ask(chat()))
                while not client.counts.rate_limited:
                    await asyncio.sleep(0.01)
                held = client._limits.gate.remaining_s
                task.cancel()
                await asyncio.wait([task])
                return held

        assert 120 < asyncio.run(run()) <= 121 * 1.25
        assert len(server.requests) == 1
    with LlmServer(faulty(Fault("429", retry_after=9999))) as server, pytest.raises(StoppedError, match="9999 s"):
        ask_all(client_for(server), chat())


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0), ({"retry-after": "0.25"}, 0.25), ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0), ({"retry-after-ms": "-1", "retry-after": "7"}, 7.0),
        ({}, None), ({"retry-after": ""}, None), ({"retry-after": "0"}, None), ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None), ({"retry-after": "inf"}, None), ({"retry-after": "1e308"}, None),
        ({"retry-after": "9" * 5000}, None), ({"retry-after": "Fri, 01 Jan 99999 00:00:00 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, None),
        ({"retry-after": "Fri, 99 Foo 2026 99:99:99 +999999999999999999999"}, None), ({"retry-after": "²"}, None),
    ],
)  # fmt: skip
def test_retry_after_of_any_kind(headers: dict[str, str], expected: float | None) -> None:
    told = httpx2.Headers([(k.encode(), v.encode()) for k, v in headers.items()])
    assert retry_after_s(told) == expected


def test_retry_after_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 90, usegmt=True)
    assert retry_after_s(httpx2.Headers({"retry-after": date})) == pytest.approx(90, abs=5)


@pytest.mark.parametrize("wait", ["Fri, 01 Jan 99999 00:00:00 GMT", "-7", "1e400"])
def test_a_senseless_retry_after_ends_no_run(wait: str) -> None:
    with LlmServer(faulty(Fault("429", retry_after=wait), times=2)) as server:  # type: ignore[arg-type]
        assert ask_all(client_for(server), chat())[0].ok


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("insufficient_quota", StoppedError, "credit"),
        ("402", StoppedError, "credit"),
        ("401", CredentialsError, "401"),
        ("403", CredentialsError, "403"),
        ("404", CredentialsError, "test-model"),
        ("400", InputError, "400"),
        ("422", InputError, "422"),
        ("validation_500", InputError, "500: 1 validation error"),
    ],
)
def test_what_ends_the_run(kind: str, error: type[AutointerpError], words: str) -> None:
    """One refusal stops all workers within seconds; at most the calls in flight were sent after it."""
    with LlmServer(faulty(Fault(kind)), latency=0.05) as server:
        client = client_for(server)

        async def run() -> None:
            async with client:

                async def worker(i: int) -> None:
                    await client.ask(chat(f"feature {i}"))

                await run_pool(range(10_000), worker, 8)

        watch = Stopwatch()
        with pytest.raises(error, match=words):
            asyncio.run(run())
        assert watch.s < 5
        assert len(server.requests) <= 8


def test_refused_parameter_after_successes_is_a_row_until_it_is_a_pattern() -> None:
    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        return Fault("400") if "odd" in str(body) else answer(kind, body, attempt)

    async def run(client: LlmClient, n_odd: int) -> str:
        async with client:
            await client.ask(chat("normal"))
            for i in range(n_odd):
                reply = await client.ask(chat(f"odd {i}"))
            return reply.status

    with LlmServer(brain) as server:
        assert asyncio.run(run(client_for(server), 3)) == "gave_up"
        with pytest.raises(RequestRefusedError):
            asyncio.run(run(client_for(server), 50))


def test_refusal_filter_and_context_are_statuses_without_retry() -> None:
    cases: dict[str, BrainReply | Fault] = {
        "refuse": BrainReply("", refusal="I cannot help with that", input_tokens=9, output_tokens=3),
        "filter": BrainReply("", finish_reason="content_filter", input_tokens=9, output_tokens=0),
        "blocked": Fault("content_filter_400"),
        "long": Fault("ctx_too_long"),
        "large": Fault("413"),
    }
    ledger = MemoryLedger()
    with LlmServer(lambda kind, body, attempt: cases[body["messages"][0]["content"]]) as server:
        replies = ask_all(client_for(server, ledger), *[chat(name) for name in cases])
        assert [r.status for r in replies] == ["refused", "filtered", "filtered", "ctx_too_long", "ctx_too_long"]
        again = ask_all(client_for(server, ledger), *[chat(name) for name in cases])
        assert len(server.requests) == 5
    assert [r.status for r in again] == [r.status for r in replies] and all(r.from_ledger for r in again)
    assert (replies[0].input_tokens, replies[0].output_tokens) == (9, 3)
    assert replies[0].error == "I cannot help with that"


def test_cut_off_reply_is_asked_for_once_more_at_twice_the_length() -> None:
    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply:
        enough = body["max_tokens"] >= (100 if "short" in str(body) else 10_000)
        return BrainReply("text", finish_reason="stop" if enough else "length", input_tokens=7, output_tokens=50)

    ledger = MemoryLedger()
    with LlmServer(brain) as server:
        short, long = ask_all(client_for(server, ledger), chat("short"), chat("endless"))
        assert sorted(b["max_tokens"] for b in server.requests) == [50, 50, 100, 100]
        assert (short.status, short.input_tokens, short.output_tokens, short.attempts) == ("ok", 14, 100, 2)
        assert long.status == "truncated"
        again = ask_all(client_for(server, ledger), chat("short"), chat("endless"))
        assert [r.status for r in again] == ["ok", "truncated"] and all(r.from_ledger for r in again)
        assert len(server.requests) == 4
    assert len(ledger.rows) == 4
    with LlmServer(brain) as server:  # one token was wanted: its end by length is no failure
        assert ask_all(client_for(server), chat("endless", truncation_ok=True))[0].ok
        assert ask_all(client_for(server), completion("endless", echo=True, logprobs=1))[0].ok
        assert len(server.requests) == 2


def test_budget_stops_the_run_and_failed_attempts_count() -> None:
    budget = BudgetConfig(max_requests=10)
    with LlmServer(faulty(Fault("500"), times=1)) as server:
        client = client_for(server, budget=budget)

        async def run() -> None:
            async with client:

                async def worker(i: int) -> None:
                    await client.ask(chat(f"feature {i}"))

                await run_pool(range(100), worker, 4)

        with pytest.raises(StoppedError, match="max_requests = 10"):
            asyncio.run(run())
        assert 7 <= len(server.requests) <= 10  # calls that had not been sent when the budget ran out are not sent
        assert client.budget.requests == len(server.requests)


def test_dollar_budget_is_not_overrun_by_calls_in_flight() -> None:
    prices = {"test-model": PriceConfig(input=10.0, output=100.0)}
    ledger = MemoryLedger(delay=0.01)
    with LlmServer(lambda *_: BrainReply("x", input_tokens=20, output_tokens=40), latency=0.02) as server:
        client = client_for(server, ledger, budget=BudgetConfig(max_usd=0.1), prices=prices)

        async def run() -> None:
            async with client:

                async def worker(i: int) -> None:
                    await client.ask(chat(f"feature {i}"))

                await run_pool(range(1000), worker, 16)

        with pytest.raises(StoppedError, match="max_usd = 0.1"):
            asyncio.run(run())
        spent = sum(r.cost_usd for r in ledger.rows.values())
        assert len(server.requests) == len(ledger.rows)  # every call in flight was let finish, and is kept
    assert 0.09 < spent <= 0.1
    with pytest.raises(InputError, match=r'llm.prices."test-model"'):
        client_for(server, budget=BudgetConfig(max_usd=0.1))


def test_unreachable_endpoint_is_an_error_within_seconds() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    watch = Stopwatch()
    with pytest.raises(AutointerpError, match="cannot reach http://127.0.0.1") as caught:
        ask_all(client_for(url), chat("a"), chat("b"))
    assert caught.value.exit_code == 1
    assert watch.s < 5


def test_restarted_server_loses_nothing() -> None:
    """Two seconds without a server: no request is given up, although the outage outlasts their attempts."""
    with LlmServer(answer) as server:
        port = server.port
        client = client_for(server, attempts=2)
        statuses: list[str] = []

        async def run() -> None:
            async with client:

                async def worker(i: int) -> None:
                    statuses.append((await client.ask(chat(f"feature {i}"))).status)
                    await asyncio.sleep(0.01)

                await run_pool(range(200), worker, 4)

        def outage() -> None:
            time.sleep(0.3)
            server.stop()
            time.sleep(2.0)
            again.__enter__()

        again = LlmServer(answer, port=port)
        thread = threading.Thread(target=outage)
        thread.start()
        asyncio.run(run())
        thread.join()
        again.stop()
        assert again.requests
    assert statuses == ["ok"] * 200


def test_cancelled_asker_does_not_lose_the_reply() -> None:
    """Ctrl-C while a commit is under way: the paid reply is still written down."""
    ledger = MemoryLedger(delay=0.3)

    async def run(client: LlmClient) -> None:
        async with client:
            task = asyncio.create_task(client.ask(chat()))
            while not client.counts.cost_usd and not client._recording:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            assert not ledger.rows

    with LlmServer(answer) as server:
        asyncio.run(run(client_for(server, ledger)))
    assert [r.status for r in ledger.rows.values()] == ["ok"]


def test_odd_texts_can_be_sent_and_recorded() -> None:
    reply = BrainReply("a \ud800 b \x00 c é 漢", input_tokens=3)
    with LlmServer(lambda *_: reply) as server:
        got = ask_all(client_for(server), chat("lone \udc00 surrogate, NUL \x00, é 漢"))[0]
        assert server.requests[0]["messages"][0]["content"] == "lone \udc00 surrogate, NUL \x00, é 漢"
    assert got.text == "a ? b \x00 c é 漢"
    with pytest.raises(InputError, match="JSON"):
        _ = chat("x", temperature=float("nan")).sha256


def test_missing_usage_is_estimated() -> None:
    with LlmServer(lambda *_: BrainReply("x" * 400, input_tokens=0, output_tokens=0)) as server:
        reply = ask_all(client_for(server), chat("y" * 3000))[0]
    assert reply.ok and 500 < reply.input_tokens < 2000 and reply.output_tokens >= 100


CANARY = "sk-canary-7f3a9c1e5b"


@pytest.mark.parametrize(
    "kind",
    ["echo_key_401", "echo_key_500", "429", "402", "404", "reset", "hang", "html", "truncated_json", "400", "ok"],
)
def test_the_key_reaches_nothing_but_the_wire(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEST_LLM_KEY", f"  {CANARY}\n")
    caplog.set_level(logging.DEBUG)
    ledger = MemoryLedger()
    shown: list[str] = []

    def brain(k: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if kind == "ok":  # a model or a proxy that repeats the header in its reply
            return BrainReply(f"your key is {CANARY}")
        return Fault(kind, retry_after=9999 if kind == "429" else None)

    with LlmServer(brain) as server:
        client = client_for(server, ledger, timeout=0.3, attempts=2)
        try:
            shown.append(repr(ask_all(client, chat())))
        except AutointerpError as error:
            shown += [str(error), repr(error), "".join(traceback.format_exception(error))]
            linked: BaseException | None = error
            while linked is not None:  # nor may an SDK exception, which holds the request's headers, hang on to it
                assert type(linked).__module__.startswith("autointerp"), type(linked)
                linked = linked.__cause__ or linked.__context__
        shown += [repr(client), str(client), repr(client._transport), repr(ledger.rows), caplog.text]
        assert server.headers[0]["Authorization"] == f"Bearer {CANARY}"
    out = capfd.readouterr()
    shown += [out.out, out.err]
    assert not [text for text in shown if CANARY in text]
    assert shown[0]


def test_redirect_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Redirecting(LlmServer):
        async def _answer(self, kind: Kind, request: Any) -> Any:
            from aiohttp import web

            return web.Response(status=308, headers={"Location": f"https://elsewhere.example/v1/?key={CANARY}"})

    monkeypatch.setenv("TEST_LLM_KEY", CANARY)
    with Redirecting(answer) as server, pytest.raises(InputError, match="elsewhere.example") as refused:
        ask_all(client_for(server), chat())
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("in_flight", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_none_is_lost_or_mixed_up_in_flight_with_faults(in_flight: int) -> None:
    """One request in twenty fails once: each has its own answer, one row, and one place in the books."""
    n = 8 * in_flight // 5
    faults = ["500", "reset", "short_body", "truncated_json", "html", "empty_choices"]

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        text = body["messages"][0]["content"]
        if attempt == 0 and int(text) % 20 == 0:
            return Fault(faults[int(text) // 20 % len(faults)])
        return BrainReply(f"answer {text}", input_tokens=10, output_tokens=2)

    ledger = MemoryLedger()
    replies: dict[int, Reply] = {}
    with LlmServer(brain, latency=0.3) as server:
        client = client_for(server, ledger, max_connections=in_flight, requests_per_minute=6e6, timeout=60.0)

        async def run() -> None:
            async with client:

                async def worker(i: int) -> None:
                    replies[i] = await client.ask(chat(f"{i}"))

                await run_pool(range(n), worker, in_flight)

        asyncio.run(run())
        assert len(server.faults) == n // 20
        assert len(server.requests) == client.counts.sent == client.budget.requests == n + n // 20
        assert (
            in_flight // 5 <= server.peak_in_flight <= in_flight
        )  # loosely: a loaded machine does not get them all out in time
    assert {i: reply.text for i, reply in replies.items()} == {i: f"answer {i}" for i in range(n)}
    assert {reply.status for reply in replies.values()} == {"ok"}
    assert {reply.attempts for i, reply in replies.items() if i % 20 == 0} == {2}
    assert sorted(row.request_sha256 for row in ledger.rows.values()) == sorted(chat(f"{i}").sha256 for i in range(n))
    assert client.counts.in_flight == 0


def test_no_more_calls_are_in_flight_than_asked_for() -> None:
    with LlmServer(answer, latency=0.1) as server:
        replies = ask_all(client_for(server, max_connections=7), *[chat(f"{i}") for i in range(60)])
        assert server.peak_in_flight <= 7
    assert all(r.ok for r in replies)


def test_answers_that_are_not_yet_written_down_count_as_in_flight() -> None:
    """A kill loses them, so there may be no more of them than the ceiling says."""

    class Slow(MemoryLedger):
        writing = most = 0

        async def record(self, record: CallRecord) -> None:
            self.writing += 1
            self.most = max(self.most, self.writing + client.counts.in_flight)
            await asyncio.sleep(0.05)
            self.writing -= 1
            await super().record(record)

    ledger = Slow()
    with LlmServer(answer) as server:
        client = client_for(server, ledger, max_connections=5)
        assert all(r.ok for r in ask_all(client, *[chat(f"{i}") for i in range(40)]))
    assert len(ledger.rows) == 40 and ledger.most <= 5


def test_no_torch_and_no_store_behind_the_llm_stage() -> None:
    import subprocess

    code = (
        "import sys, autointerp.llm.client, autointerp.llm.capabilities, autointerp.llm.pool; "
        "bad = {'torch', 'transformers', 'duckdb', 'safetensors'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
