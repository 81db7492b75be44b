"""Reading replies of every shape, and of no shape at all."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from support.llm_helpers import chat, completion, embedding
from support.llm_server import BrainReply, chat_payload, completions_payload, embeddings_payload

from autointerp.llm.endpoint_errors import BadReplyError
from autointerp.llm.replies import Usage, load_json, read_envelope, read_logprobs, read_usage, storable_reply
from autointerp.llm.requests import Request, TokenLogprob

ROWS = [("a", -0.5, [("a", -0.5), ("b", -1.0)]), (" 1", -0.1, [(" 1", -0.1), (" 2", -2.0)])]
PROMPT = [("On", None, []), ("e", -0.2, [("e", -0.2), ("x", -3.0)])]


def read(request: Request, payload: Any) -> tuple[list[TokenLogprob] | None, list[TokenLogprob] | None]:
    raw = json.dumps(payload)
    return read_logprobs(request, read_envelope(request, load_json(raw), raw))


def test_sha256_ignores_key_order_and_stage_only() -> None:
    request = Request("chat", {"a": 1, "b": [1, 2]}, "x")
    assert request.sha256 == Request("chat", {"b": [1, 2], "a": 1}, "y", feature=3).sha256
    others = [Request("completions", {"a": 1, "b": [1, 2]}, "x"), Request("chat", {"a": 1, "b": [2, 1]}, "x")]
    assert len({request.sha256, *(o.sha256 for o in others)}) == 3
    assert request.wire == b'{"a":1,"b":[1,2]}'


def test_chat_logprobs() -> None:
    request = chat(logprobs=True, top_logprobs=2)
    written, prompt = read(request, chat_payload(request.body, BrainReply("a 1", tokens=ROWS)))
    assert written is not None and prompt is None
    assert written[1] == TokenLogprob(" 1", -0.1, ((" 1", -0.1), (" 2", -2.0)))
    assert read(request, chat_payload(request.body, BrainReply("a 1"))) == (None, None)


def test_completions_with_echo() -> None:
    request = completion("One", echo=True, logprobs=2)
    reply = BrainReply("a 1", tokens=ROWS, prompt_tokens=PROMPT)
    payload = completions_payload(request.body, reply)
    written, prompt = read(request, payload)
    assert written is not None and [r.token for r in written] == ["a", " 1"]
    assert prompt is not None and [r.token for r in prompt] == ["On", "e"]
    assert prompt[0].logprob is None and prompt[0].top == ()
    assert prompt[1].top == (("e", -0.2), ("x", -3.0))
    raw = json.dumps(payload)
    assert read_envelope(request, payload, raw).text == "a 1"  # the echoed prompt is taken off
    del payload["choices"][0]["logprobs"]["text_offset"]
    assert read(request, payload)[1] == prompt


def test_vllm_prompt_logprobs() -> None:
    for request, shape in [
        (completion("One", prompt_logprobs=1), completions_payload),
        (chat("One", prompt_logprobs=1), chat_payload),
    ]:
        payload = shape(request.body, BrainReply("a 1", tokens=ROWS, prompt_tokens=PROMPT))
        written, prompt = read(request, payload)
        assert written is None and prompt is not None
        assert prompt[0] == TokenLogprob("", None, ())
        assert prompt[1] == TokenLogprob("e", -0.2, (("e", -0.2),))


def test_the_prompts_own_token_comes_first_even_if_unlikely() -> None:
    rows = [("x", None, []), ("rare", -9.0, [("the", -0.1), ("a", -1.0)])]
    request = completion("x rare", prompt_logprobs=2)
    _, prompt = read(request, completions_payload(request.body, BrainReply("", prompt_tokens=rows)))
    assert prompt is not None
    assert prompt[1] == TokenLogprob("rare", -9.0, (("the", -0.1), ("a", -1.0), ("rare", -9.0)))


@pytest.mark.parametrize(
    "broken",
    [
        {"content": [{"token": "a"}]},
        {"content": [{"token": "a", "logprob": "x"}]},
        {"content": [{"token": "a", "logprob": math.nan}]},
        {"content": [{"token": "a", "logprob": -1, "top_logprobs": [3]}]},
        {"content": None},
        {"content": 7},
        [],
    ],
)
def test_malformed_logprobs_are_missing_logprobs(broken: Any) -> None:
    payload = chat_payload(chat().body, BrainReply("a"))
    payload["choices"][0]["logprobs"] = broken
    assert read(chat(), payload) == (None, None)


def test_usage() -> None:
    full = {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}, "cost": 0.5}
    usage = read_usage({"usage": full})
    assert usage is not None
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.cost_usd) == (10, 4, 3, 0.5)
    for bad in (None, {}, [], {"prompt_tokens": None}, {"prompt_tokens": "ten"}, {"prompt_tokens": -3}):
        assert read_usage({"usage": bad}) is None
    odd = read_usage({"usage": {"prompt_tokens": 5, "completion_tokens": math.inf, "cost": "free"}})
    assert odd is not None and (odd.output_tokens, odd.cost_usd) == (0, None)


GUESS = Usage(40, 0, 25, None)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [  # input, cached, output, cost
        ({"total_tokens": 100, "completion_tokens": 30}, (70, 0, 30, None)),
        ({"completion_tokens": 30}, (40, 0, 30, None)),
        ({"total_tokens": 100}, (40, 0, 60, None)),
        ({"total_tokens": 30}, (30, 0, 0, None)),
        ({"prompt_tokens": 70, "total_tokens": 100}, (70, 0, 30, None)),
        ({"prompt_tokens": 70}, (70, 0, 25, None)),
        ({"prompt_tokens": 70, "completion_tokens": 5, "total_tokens": 100}, (70, 0, 30, None)),  # thoughts apart
        ({"prompt_tokens": 70, "completion_tokens": 30, "total_tokens": "?"}, (70, 0, 30, None)),
        ({"input_tokens": 70, "output_tokens": 30}, (70, 0, 30, None)),
        ({"input_tokens": 70, "output_tokens": 30, "input_tokens_details": {"cached_tokens": 9}}, (70, 9, 30, None)),
        (
            {"input_tokens": 7, "cache_read_input_tokens": 50, "cache_creation_input_tokens": 3, "output_tokens": 0},
            (60, 50, 0, None),
        ),
        ({"prompt_tokens": None, "completion_tokens": -1, "cost": 0.25}, (40, 0, 25, 0.25)),
    ],
)
def test_usage_in_part(usage: dict[str, Any], expected: tuple[int, int, int, float | None]) -> None:
    assert read_usage({"usage": usage}, GUESS) == Usage(*expected)


def test_usage_of_embeddings_may_be_a_total_only() -> None:
    assert read_usage({"usage": {"total_tokens": 100}}, Usage(40, 0, 0, None)) == Usage(100, 0, 0, None)


def test_long_reply_is_stored_without_byte_lists_and_reads_the_same() -> None:
    request = chat(logprobs=True, top_logprobs=2)
    payload = chat_payload(request.body, BrainReply("a 1" * 1000, tokens=ROWS * 2000))
    raw = json.dumps(payload)
    stored = storable_reply("chat", raw, json.loads(raw))
    assert len(raw) > 262_144 > len(stored) / 2 and "bytes" not in stored
    assert read(request, json.loads(stored)) == read(request, payload)
    assert storable_reply("chat", "{}", {}) == "{}"


def test_content_parts_and_empty_content() -> None:
    payload = chat_payload(chat().body, BrainReply("x"))
    payload["choices"][0]["message"]["content"] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_envelope(chat(), payload, "").text == "ab"
    payload["choices"][0]["message"]["content"] = None
    assert read_envelope(chat(), payload, "").text == ""


def vectors(payload: Any, *texts: str) -> list[list[float]] | None:
    return read_envelope(embedding(*texts), payload, json.dumps(payload)).vectors


def test_embeddings_are_in_the_inputs_order() -> None:
    payload = embeddings_payload(embedding("a", "b").body, BrainReply("", vectors=[[1.0, 2], [0.123456789, -1e-9]]))
    assert vectors(payload, "a", "b") == [[1.0, 2.0], [0.1234568, -1e-09]]
    payload["data"].reverse()
    assert vectors(payload, "a", "b") == [[1.0, 2.0], [0.1234568, -1e-09]]
    for row in payload["data"]:
        del row["index"]
    assert vectors(payload, "a", "b") == [[0.1234568, -1e-09], [1.0, 2.0]]


@pytest.mark.parametrize(
    "data",
    [
        None, [], {}, [[1.0]], [{"embedding": [1.0]}], [{"embedding": [1.0]}] * 3,
        [{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}], [{"embedding": [1.0]}, {"embedding": []}],
        [{"embedding": [1.0]}, {"embedding": "AACAPw=="}], [{"embedding": [1.0]}, {"embedding": [None]}],
        [{"embedding": [1.0]}, {"embedding": [math.nan]}], [{"embedding": [1.0]}, {"embedding": [1e39]}],
        [{"embedding": [1.0]}, {"embedding": [True]}], [{"embedding": [1.0], "index": 0}] * 2,
        [{"embedding": [1.0], "index": 1}, {"embedding": [1.0], "index": 2}],
        [{"embedding": [1.0], "index": "0"}, {"embedding": [1.0], "index": 1}],
    ],
)  # fmt: skip
def test_embeddings_that_are_not_all_there_are_bad_replies(data: Any) -> None:
    with pytest.raises(BadReplyError):
        vectors({"data": data}, "a", "b")


def test_long_embeddings_are_stored_short_and_read_the_same() -> None:
    rows = [[math.sin(i * k) for i in range(4000)] for k in (1, 2, 3, 4)]
    payload = embeddings_payload(embedding(*"abcd").body, BrainReply("", vectors=rows))
    raw = json.dumps(payload)
    stored = storable_reply("embeddings", raw, json.loads(raw))
    assert len(raw) > 262_144 and len(stored) < 0.6 * len(raw)
    assert vectors(json.loads(stored), *"abcd") == vectors(payload, *"abcd")


def test_deep_nesting() -> None:
    with pytest.raises(BadReplyError):
        load_json("[" * 200_000)
