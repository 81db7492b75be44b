"""What a finish_reason says, word by word, for single calls, rows of older versions, and batches."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.llm_helpers import MemoryLedger, ask_all, chat, client_for, completion
from support.llm_server import BrainReply, Kind, LlmServer, chat_payload, completions_payload

from autointerp.llm.endpoint_errors import BadReplyError
from autointerp.llm.finish_reasons import ending_of
from autointerp.llm.replies import read_envelope
from autointerp.records import CallRecord

COMPLETE = [
    "stop",
    "STOP",
    "eos",
    "eos_token",
    "stop_sequence",
    "end_turn",
    "COMPLETE",
    "endoftext",
    "FINISH_REASON_STOP",
]
TRUNCATED = ["length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "token_limit", "model_length"]
FILTERED = ["content_filter", "SAFETY", "RECITATION", "PROHIBITED_CONTENT", "content_filter: PROHIBITED_CONTENT"]
BROKEN: list[Any] = [
    "abort",
    "error",
    "tool_calls",
    "insufficient_system_resource",
    "stopped by moonlight",
    7,
    True,
    {},
]


def status_of(finish: Any, text: str | None = "LABEL: words that", **beside: Any) -> str:
    payload = chat_payload(chat().body, BrainReply("x"))
    payload["choices"][0]["message"]["content"] = text
    payload["choices"][0].update(finish_reason=finish, **beside)
    try:
        return read_envelope(chat(), payload, json.dumps(payload)).status
    except BadReplyError:
        return "bad_reply"


def test_every_word_has_one_meaning() -> None:
    assert {status_of(word) for word in COMPLETE} == {"ok"}
    assert {status_of(word) for word in TRUNCATED} == {"truncated"}
    assert {status_of(word) for word in FILTERED} == {"filtered"}
    assert status_of("refusal") == "refused"
    assert {status_of(word) for word in BROKEN} == {"bad_reply"}
    assert ending_of(" Stop\n") == "complete" and ending_of("stop" * 100_000) == "broken"


def test_no_reason_is_an_answer_only_with_a_text_and_no_error() -> None:
    assert status_of(None) == status_of("") == "ok"
    assert status_of(None, "") == status_of(None, None) == "bad_reply"
    for error in ({"code": 502, "message": "upstream died"}, "upstream died", ["x"]):
        assert status_of(None, error=error) == status_of("stop", error=error) == "bad_reply"
    assert status_of(None, error=None) == status_of("stop", error={}) == "ok"


def test_the_same_for_completions_where_a_cut_may_be_wanted() -> None:
    request = completion("One", prompt_logprobs=1)
    for finish, expected in (("max_tokens", "ok"), ("length", "ok"), ("SAFETY", "filtered"), (None, "ok")):
        payload = completions_payload(request.body, BrainReply(""))
        payload["choices"][0]["finish_reason"] = finish
        assert read_envelope(request, payload, "").status == expected
    payload["choices"][0]["finish_reason"] = "abort"
    with pytest.raises(BadReplyError, match="abort"):
        read_envelope(request, payload, "")


def test_an_aborted_reply_is_tried_again_and_a_cut_one_asked_for_at_twice_the_length() -> None:
    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply:
        if "cut" in str(body):
            enough = body["max_tokens"] == 100
            return BrainReply("whole" if enough else "wh", finish_reason="stop" if enough else "MAX_TOKENS")
        return BrainReply("whole", finish_reason="abort" if attempt == 0 or "never" in str(body) else "stop")

    ledger = MemoryLedger()
    with LlmServer(brain) as server:
        once, cut, never = ask_all(client_for(server, ledger), chat("once"), chat("cut"), chat("never"))
    assert (once.status, once.text, once.attempts) == ("ok", "whole", 2)
    assert (cut.status, cut.text) == ("ok", "whole")
    assert (never.status, never.text, never.attempts) == ("bad_reply", "", 3)
    assert "abort" in (never.error or "")


@pytest.mark.parametrize(("finish", "expected"), [("abort", "ok"), ("SAFETY", "filtered"), ("max_tokens", "ok")])
def test_a_row_that_an_older_version_took_for_an_answer_is_none(finish: str, expected: str) -> None:
    ledger, request = MemoryLedger(), chat("old")
    raw = json.dumps(chat_payload(request.body, BrainReply("half an ans", finish_reason=finish)))
    ledger.rows[(request.sha256, 0)] = CallRecord(
        request.sha256, 0, "run-0", None, None, "test", request.model, "ok", raw, 1, 0, 1, 0.0, 0.1, 1, None
    )
    with LlmServer(lambda *_: BrainReply("whole")) as server:
        reply = ask_all(client_for(server, ledger), request)[0]
    assert reply.status == expected
    assert reply.text == ("whole" if expected == "ok" else "half an ans")
