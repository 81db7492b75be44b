"""Probing: a real language model behind the server, servers that lack fields, and servers that refuse them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from support.llm_helpers import MemoryLedger, client_for, completion
from support.llm_server import BrainReply, DemoLmBrain, Fault, Kind, LlmServer

from autointerp.config import BudgetConfig, EndpointConfig, LlmConfig
from autointerp.errors import CredentialsError
from autointerp.llm.budget import Budget
from autointerp.llm.capabilities import Capabilities, honours_json_schema, probe, prompt_logprob_fields
from autointerp.llm.client import LlmClient
from autointerp.llm.requests import Reply, Request

ALTS = [(str(i), -0.5 - i) for i in range(11)]
FULL = BrainReply("7", tokens=[("7", -0.1, ALTS)], prompt_tokens=[("One", None, []), (" 1", -0.5, ALTS)])


def probed(server: LlmServer, ledger: MemoryLedger | None = None) -> Capabilities:
    async def run(client: LlmClient) -> Capabilities:
        async with client:
            return await probe(client)

    return asyncio.run(run(client_for(server, ledger)))


def test_a_server_that_does_everything() -> None:
    ledger = MemoryLedger()
    with LlmServer(lambda *_: FULL) as server:
        found = probed(server, ledger)
        assert found.methods == ("prompt_logprobs", "generated_logprobs", "numbers")
        assert (found.prompt_style, found.prompt_top, found.generated_top) == ("prompt_logprobs", 20, 20)
        assert found.notes == ()
        assert prompt_logprob_fields(found) == {"prompt_logprobs": 20, "max_tokens": 1}
        assert len(server.requests) == 2
        probed(server, ledger)  # a server may have changed: never answered from the ledger
        assert len(server.requests) == 4
    assert {r.stage for r in ledger.rows.values()} == {"probe"} and len(ledger.rows) == 4


def test_a_server_that_drops_logprobs_silently() -> None:
    with LlmServer(lambda *_: BrainReply("7")) as server:
        found = probed(server)
    assert found.methods == ("numbers",) and found.completions
    assert any("without a word" in note for note in found.notes)


def test_a_server_that_refuses_logprobs_and_has_no_completions() -> None:
    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if kind == "completions":
            return Fault("404")
        return Fault("logprobs_400") if "logprobs" in body else FULL

    with LlmServer(brain) as server:
        found = probed(server)
    assert found.methods == ("numbers",) and not found.completions
    assert any("Unsupported parameter: logprobs" in note for note in found.notes)
    assert any("no completions" in note for note in found.notes)


def test_fewer_alternatives_and_the_legacy_echo() -> None:
    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if "prompt_logprobs" in body or max(body.get("logprobs") or 0, body.get("top_logprobs") or 0) > 5:
            return Fault("422")
        return FULL

    with LlmServer(brain) as server:
        found = probed(server)
    assert (found.prompt_style, found.prompt_top, found.generated_top) == ("echo", 5, 5)
    assert prompt_logprob_fields(found) == {"echo": True, "logprobs": 5, "max_tokens": 1}


@pytest.mark.parametrize("kind", ["404", "401"])
def test_refused_model_or_key(kind: str) -> None:
    with LlmServer(lambda *_: Fault(kind)) as server, pytest.raises(CredentialsError):
        probed(server)


def thinks_first(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
    """A model that needs 400 tokens of thoughts, in the way of OpenAI's: no max_tokens, no logprobs."""
    if kind == "completions":
        return Fault("404")
    if "max_tokens" in body or "temperature" in body or "logprobs" in body:
        return Fault("logprobs_400")
    if body["max_completion_tokens"] < 400:
        return BrainReply("<think>A digit", finish_reason="length")
    thought = "<think>A digit, or a colour?</think>\n\n"
    return BrainReply(thought + ('{"answer": "blue"}' if "response_format" in body else "7"))


def test_the_probe_keeps_to_the_configured_length_and_fields() -> None:
    with LlmServer(thinks_first) as server:
        client = LlmClient(
            EndpointConfig(
                model="test-model", base_url=server.url, api_key_env="TEST_LLM_KEY", temperature=None, max_tokens=4000,
                max_tokens_field="max_completion_tokens",
            ),
            LlmConfig(requests_per_minute=600_000.0, timeout=5.0), Budget(BudgetConfig()), MemoryLedger(), "run-1",
        )  # fmt: skip

        async def run() -> tuple[Capabilities, bool]:
            async with client:
                return await probe(client), await honours_json_schema(client)

        found, in_json = asyncio.run(run())
    assert found.methods == ("numbers",) and in_json
    assert {r.get("max_completion_tokens", 4000) for r in server.requests} == {4000}


def test_logprobs_that_are_forbidden_or_break_the_endpoint_are_only_missing() -> None:
    for fault in ("403", "500"):

        def brain(kind: Kind, body: dict[str, Any], attempt: int, fault: str = fault) -> BrainReply | Fault:
            if kind == "completions":
                return Fault("404")
            return Fault(fault) if "logprobs" in body else BrainReply("7")

        with LlmServer(brain) as server:
            assert probed(server).methods == ("numbers",)
    with LlmServer(lambda *_: Fault("403")) as server, pytest.raises(CredentialsError):
        probed(server)


def test_a_field_that_brings_a_500_is_refused_and_not_tried_for_minutes() -> None:
    """llama-cpp-python, without the logits of all tokens: 500 for logprobs and for JSON schemas."""

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if "response_format" in body:
            return Fault("validation_500")
        return Fault("unsupported_500") if body.get("logprobs") else BrainReply("7")

    async def run(client: LlmClient) -> tuple[Capabilities, bool]:
        async with client:
            return await probe(client), await honours_json_schema(client)

    with LlmServer(brain) as server:
        found, in_json = asyncio.run(run(client_for(server)))
        assert len([body for body in server.requests if "response_format" in body]) == 1
        # logprobs with 20 and with 5 alternatives, of written tokens and of the prompt, twice each
        assert server.faults.count("unsupported_500") == 8
    assert found.methods == ("numbers",) and found.completions and not in_json
    assert any("logits_all=False" in note for note in found.notes)


@pytest.mark.parametrize("is_shifted", [False, True])
def test_logprobs_of_the_prompt_must_stand_at_their_own_tokens(is_shifted: bool) -> None:
    """A model that foresees two tokens of three. llama-cpp-python takes the first token for a mark that stands before
    the text, and so gives each token what the model expects after it."""

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply:
        if kind == "chat":
            return BrainReply("7")
        tokens = re.findall(r"\s*\w+", body["prompt"])
        foreseen = [token if i % 3 else " nothing" for i, token in enumerate(tokens)]
        tops = [*foreseen[1:], " more"] if is_shifted else foreseen
        rows = [(token, -9.0, [(top, -0.2), (" else", -3.0)]) for token, top in zip(tokens, tops, strict=True)]
        rows[0] = (tokens[0], None, [])  # type: ignore[assignment]
        return BrainReply("8", tokens=[(" 8", -0.1, ALTS)], prompt_tokens=rows)

    def echoes(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        return Fault("422") if "prompt_logprobs" in body else brain(kind, body, attempt)

    for answers in (brain, echoes):
        with LlmServer(answers) as server:
            found = probed(server)
        assert found.prompt_logprobs is not is_shifted
        assert is_shifted == any("the alternatives to the next one" in note for note in found.notes)


def test_a_500_without_a_field_in_doubt_is_tried_again() -> None:
    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        return Fault("500") if attempt < 3 and "logprobs" not in body else BrainReply("7")

    with LlmServer(brain) as server:
        assert probed(server).chat


def test_a_model_that_only_thinks_within_its_length_is_told_so() -> None:
    rows = [("<think>", -0.1, ALTS), ("hm", -0.1, ALTS)]
    with LlmServer(lambda *_: BrainReply("<think>hm", tokens=rows, finish_reason="length")) as server:
        found = probed(server)
    assert not found.generated_logprobs
    assert any("all thoughts, with max_tokens = 300" in note for note in found.notes)


def test_a_real_language_model(tiny_gpt2: Path) -> None:
    async def run(client: LlmClient) -> tuple[Capabilities, list[Reply]]:
        async with client:
            found = await probe(client)
            prompt = "The harbour lay quiet under"
            requests = [
                completion(prompt, **prompt_logprob_fields(found)),
                completion(prompt, echo=True, logprobs=20, max_tokens=1),
                completion("word " * 5000),
                Request("chat", {"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": 4,
                                 "logprobs": True, "top_logprobs": 20}, "test", truncation_ok=True),
            ]  # fmt: skip
            return found, [await client.ask(r) for r in requests]

    with LlmServer(DemoLmBrain(tiny_gpt2)) as server:
        found, (vllm, echo, long, chat) = asyncio.run(run(client_for(server, timeout=60.0)))
    assert found.methods == ("prompt_logprobs", "generated_logprobs", "numbers")
    assert vllm.prompt_logprobs and echo.prompt_logprobs
    assert "".join(r.token for r in echo.prompt_logprobs) == "The harbour lay quiet under"
    assert len(vllm.prompt_logprobs) == len(echo.prompt_logprobs) == vllm.input_tokens
    for ours, theirs in zip(vllm.prompt_logprobs[1:], echo.prompt_logprobs[1:], strict=True):
        assert ours.token == theirs.token and ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    assert long.status == "ctx_too_long"
    assert chat.token_logprobs and len(chat.token_logprobs) == chat.output_tokens <= 4
    assert all(r.logprob == max(lp for _, lp in r.top) for r in chat.token_logprobs)  # greedy


def honoured(server: LlmServer, ledger: MemoryLedger) -> bool:
    async def run(client: LlmClient) -> bool:
        async with client:
            return await honours_json_schema(client)

    return asyncio.run(run(client_for(server, ledger)))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (BrainReply('{"answer": "blue"}'), True),
        (BrainReply("Blue."), False),
        (BrainReply('```json\n{"answer": "blue"}\n```'), False),
        (BrainReply('{"colour": "blue"}'), False),
        (BrainReply('"blue"'), False),
    ],
)
def test_a_json_schema_is_probed_once(reply: BrainReply, expected: bool) -> None:
    ledger = MemoryLedger()
    with LlmServer(lambda *_: reply) as server:
        assert honoured(server, ledger) is expected
        assert honoured(server, ledger) is expected
        assert len(server.requests) == 1 and server.requests[0]["response_format"]["type"] == "json_schema"
    assert [r.stage for r in ledger.rows.values()] == ["probe"]


def test_a_server_that_refuses_a_schema_is_no_failure() -> None:
    with LlmServer(lambda *_: Fault("400")) as server:
        assert honoured(server, MemoryLedger()) is False
    with LlmServer(lambda *_: Fault("401")) as server, pytest.raises(CredentialsError):
        honoured(server, MemoryLedger())
    with LlmServer(lambda *_: Fault("403")) as server:  # the field may be forbidden; a bad key shows at the next call
        assert honoured(server, MemoryLedger()) is False
