"""Reads the endpoint's JSON, which may have any shape, whatever the API promises."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from autointerp.llm.endpoint_errors import BadReplyError
from autointerp.llm.finish_reasons import ending_of
from autointerp.llm.requests import ReplyStatus, Request, RequestKind, TokenLogprob
from autointerp.llm.thoughts import answer_of, answer_rows

_LARGEST = 3.5e38
"""Larger than any 32-bit float. NaN fails the comparison with it too."""
_MOST = 2**53
"""A token count or cost from here on is not believed. No integer column of a store overflows below it."""
STORED_WHOLE = 262_144
"""A reply of up to this many characters is stored as it came; a longer one is stored without fields that are not read.
"""


@dataclass(frozen=True, slots=True)
class Usage:
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float | None
    """The cost that the endpoint states, as OpenRouter does; None where it states none."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a reply holds, without its logprobs. Those are read only once the reply is recorded."""

    status: ReplyStatus
    text: str
    finish_reason: str | None
    error: str | None
    payload: dict[str, Any]
    choice: dict[str, Any]
    """The first choice; empty for embeddings."""
    vectors: list[list[float]] | None = None
    """The embeddings; None for other kinds."""


def load_json(raw: str) -> Any:
    """Parse `raw`. Raises BadReplyError when it is not JSON."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        what = "HTML" if raw.lstrip()[:1] == "<" else "not JSON"
        raise BadReplyError(f"the reply is {what} ({error})", raw=raw) from None


def read_envelope(request: Request, payload: Any, raw: str) -> Envelope:
    """Read a reply's JSON. Raises BadReplyError when no choice has a text, an input has no usable vector, an error
    stands beside the text, or the finish_reason does not say that the answer is complete."""
    if not isinstance(payload, dict):
        raise BadReplyError(f"the reply is a JSON {type(payload).__name__}, not an object", raw=raw)
    if request.kind == "embeddings":
        vectors = _vectors(request, payload, raw)
        return Envelope("ok", "", None, None, payload, {}, vectors)
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadReplyError(f"the reply has no choices ({_error_text(payload)})", raw=raw)
    choice = choices[0]
    finish = choice.get("finish_reason")
    ending = ending_of(finish)
    told = _storable(finish[:100]) if isinstance(finish, str) else None
    text, refusal = _text(request, choice, raw)
    status: ReplyStatus = "ok"
    error = None
    if ending == "filtered":
        status, error = "filtered", f"finish_reason is {told}"
    elif refusal or ending == "refused":
        status, error = "refused", _storable((refusal or f"finish_reason is {told}")[:300])
    elif ending == "broken":
        raise BadReplyError(f"finish_reason is {told or 'no word'} ({_error_text(choice)})", raw=raw)
    elif choice.get("error") or payload.get("error"):
        raise BadReplyError(f"an error beside the answer ({_error_text(choice)}; {_error_text(payload)})", raw=raw)
    elif ending == "truncated" and not request.length_is_expected:
        status, error = "truncated", f"the reply reached its {request.max_tokens} tokens"
    elif ending == "unknown" and not text and not request.length_is_expected:
        raise BadReplyError("the reply has neither a text nor a finish_reason", raw=raw)
    return Envelope(status, text, told, error, payload, choice)


def _vectors(request: Request, payload: dict[str, Any], raw: str) -> list[list[float]]:
    """One vector per input, in the inputs' order, with 7 significant digits, as many as a 32-bit float holds."""
    data = payload.get("data")
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise BadReplyError(f"the reply has no list of embeddings ({_error_text(payload)})", raw=raw)
    n = len(request.inputs)
    if len(data) != n:
        raise BadReplyError(f"the reply has {len(data)} embeddings for {n} inputs", raw=raw)
    places = [row.get("index", i) for i, row in enumerate(data)]
    if not all(type(place) is int for place in places) or sorted(places) != list(range(n)):
        raise BadReplyError(f"the embeddings' indices are not 0 to {n - 1}", raw=raw)
    vectors: list[list[float]] = [[]] * n
    for place, row in zip(places, data, strict=True):
        vectors[place] = _vector(row.get("embedding"), raw)
    if len({len(vector) for vector in vectors}) > 1:
        raise BadReplyError("the embeddings differ in length", raw=raw)
    return vectors


def _vector(values: Any, raw: str) -> list[float]:
    if not isinstance(values, list) or not values:
        raise BadReplyError(f"an embedding is a JSON {type(values).__name__}, not a list of numbers", raw=raw)
    if isinstance(values[0], list):  # llama-cpp-python, for models that are made for writing
        raise BadReplyError(
            "an embedding is a table, one vector a token: serve a model that makes one of a text", raw=raw
        )
    if not all(type(value) in (int, float) and abs(value) < _LARGEST for value in values):
        raise BadReplyError("an embedding holds a value that is not a finite number", raw=raw)
    return [float(f"{value:.7g}") for value in values]


def _text(request: Request, choice: dict[str, Any], raw: str) -> tuple[str, str | None]:
    """(the answer without thoughts, the refusal if any). Thoughts in fields of their own (`reasoning_content`,
    `reasoning`) are not read."""
    if request.kind == "completions":
        text = choice.get("text")
        if not isinstance(text, str):
            raise BadReplyError("the reply's choice has no text", raw=raw)
        prompt = request.body.get("prompt")
        if request.body.get("echo") and isinstance(prompt, str) and text.startswith(prompt):
            text = text[len(prompt) :]
        return _storable(answer_of(text)), None
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BadReplyError("the reply's choice has no message", raw=raw)
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list):  # content parts, as some servers send them
        parts = [part.get("text") if isinstance(part, dict) else part for part in content if not _is_thought(part)]
        if not all(part is None or isinstance(part, str) for part in parts):
            raise BadReplyError("a part of the message's content has a text that is not a string", raw=raw)
        content = "".join(part for part in parts if part)
    if content is not None and not isinstance(content, str):
        raise BadReplyError(f"the message's content is a JSON {type(content).__name__}", raw=raw)
    return _storable(answer_of(content or "")), refusal if isinstance(refusal, str) and refusal else None


def _is_thought(part: Any) -> bool:
    """Whether a part of a message's content is a thought: of type thinking, reasoning, ..., or marked by a field, as
    Gemini does."""
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    return part.get("thought") is True or (
        isinstance(kind, str) and re.search(r"think|thought|reason", kind) is not None
    )


def _storable(text: str) -> str:
    """`text` without lone surrogates, which no database accepts."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _error_text(payload: dict[str, Any]) -> str:
    error = payload.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    if not error:
        return "no error given"
    return _storable(error)[:300] if isinstance(error, str) else f"a JSON {type(error).__name__} as its error"


def _amount(value: Any) -> int | float | None:
    """`value` if it is a number from 0 to _MOST, else None."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MOST
    return value if ok else None


def _count(value: Any) -> int:
    return _told(value) or 0


def _told(value: Any) -> int | None:
    amount = _amount(value)
    return None if amount is None else int(amount)


def read_usage(payload: Any, guess: Usage | None = None) -> Usage | None:
    """The tokens that the endpoint counted; None where it states neither tokens nor a cost.

    The counts have OpenAI's names, or those of its Responses API and Anthropic (input_tokens, output_tokens). What it
    leaves out follows from total_tokens, else comes from `guess` (None: nothing). Tokens that are in the total only, as
    some endpoints count thoughts, were written.
    """
    usage = payload.get("usage") if isinstance(payload, dict) else None
    if not isinstance(usage, dict):
        return None
    guess = guess or Usage(0, 0, 0, None)
    read, cached = _read_tokens(usage)
    written = _told(usage.get("completion_tokens"))
    if written is None:
        written = _told(usage.get("output_tokens"))
    total, cost = _count(usage.get("total_tokens")), _amount(usage.get("cost"))
    if not (read or written or total or cost):
        return None
    if not read:
        if total and written is not None:
            read = max(0, total - written)
        else:
            read = guess.input_tokens
            if total:  # embeddings write nothing
                read = min(total, read) if guess.output_tokens else total
    if total:
        written = max(written or 0, total - read)
    elif written is None:
        written = guess.output_tokens
    return Usage(read, min(read, cached), written, None if cost is None else float(cost))


def _read_tokens(usage: dict[str, Any]) -> tuple[int, int]:
    """(tokens of the prompt, those of them that a prefix cache served)."""
    read, cached = _count(usage.get("prompt_tokens")), _cached(usage)
    if read:
        return read, cached
    # Anthropic's input_tokens leave out what was read from or written to its cache.
    from_cache = _count(usage.get("cache_read_input_tokens"))
    apart = from_cache + _count(usage.get("cache_creation_input_tokens"))
    return min(_MOST - 1, _count(usage.get("input_tokens")) + apart), max(cached, from_cache)


def _cached(usage: dict[str, Any]) -> int:
    """Prompt tokens that a prefix cache served. OpenAI, vLLM, SGLang and llama.cpp report them in
    prompt_tokens_details (the Responses API in input_tokens_details), DeepSeek as prompt_cache_hit_tokens (its details
    may lack them), Moonshot in usage itself."""
    tables = (usage.get("prompt_tokens_details"), usage.get("input_tokens_details"))
    told = [_count(table.get("cached_tokens")) for table in tables if isinstance(table, dict)]
    return max(*told, 0, _count(usage.get("prompt_cache_hit_tokens")), _count(usage.get("cached_tokens")))


def read_logprobs(request: Request, envelope: Envelope) -> tuple[list[TokenLogprob] | None, list[TokenLogprob] | None]:
    """(logprobs of the answer's tokens, logprobs of the prompt's tokens); None for what is missing or malformed.
    Tokens of thoughts are left out, as they are from the envelope's text.

    Shapes: chat `logprobs.content`; completions `logprobs.tokens/token_logprobs/top_logprobs`, which cover the prompt
    too with `echo`; vLLM's `prompt_logprobs`, in the choice (completions) or beside the choices (chat).
    """
    vllm = envelope.choice.get("prompt_logprobs", envelope.payload.get("prompt_logprobs"))
    try:
        prompt = _vllm_prompt(vllm) if vllm is not None else None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        prompt = None
    table = envelope.choice.get("logprobs")
    if not isinstance(table, dict):
        return None, prompt
    try:
        if request.kind == "chat":
            written = _chat_logprobs(table)
            return None if written is None else answer_rows(written), prompt
        rows = _legacy_logprobs(table)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        return None, prompt
    if rows is None:
        return None, prompt
    if not request.body.get("echo"):
        return answer_rows(rows), prompt
    n_prompt = _n_prompt_tokens(request, table, rows)
    return answer_rows(rows[n_prompt:]), prompt or rows[:n_prompt] or None


def _chat_logprobs(table: dict[str, Any]) -> list[TokenLogprob] | None:
    content = table.get("content")
    if not content:
        return None
    return [
        TokenLogprob(
            str(row["token"]),
            _logprob(row["logprob"]),
            tuple((str(alt["token"]), _logprob(alt["logprob"])) for alt in row.get("top_logprobs") or ()),
        )
        for row in content
    ]


def _legacy_logprobs(table: dict[str, Any]) -> list[TokenLogprob] | None:
    tokens, logprobs, tops = table.get("tokens"), table.get("token_logprobs"), table.get("top_logprobs")
    if not tokens or not logprobs or len(tokens) != len(logprobs):
        return None
    rows = []
    for i, token in enumerate(tokens):
        own = logprobs[i]
        top = (tops[i] if tops and i < len(tops) else None) or {}
        ranked = sorted(((str(t), _logprob(lp)) for t, lp in top.items()), key=lambda pair: -pair[1])
        rows.append(TokenLogprob(str(token), None if own is None else _logprob(own), tuple(ranked)))
    return rows


def _n_prompt_tokens(request: Request, table: dict[str, Any], rows: list[TokenLogprob]) -> int:
    """How many rows of an echoed reply belong to the prompt, by text_offset where the reply has it."""
    prompt = request.body.get("prompt")
    length = len(prompt) if isinstance(prompt, str) else 0
    offsets = table.get("text_offset")
    if not isinstance(offsets, list) or len(offsets) != len(rows):
        offsets, at = [], 0
        for row in rows:
            offsets.append(at)
            at += len(row.token)
    return sum(1 for at in offsets if isinstance(at, int) and at < length)


def _vllm_prompt(table: list[dict[str, Any] | None]) -> list[TokenLogprob] | None:
    """The prompt's logprobs from vLLM's field: for each prompt token a map of token id -> {logprob, rank,
    decoded_token}, with the prompt's own token first."""
    rows = []
    for entry in table:
        if not entry:
            rows.append(TokenLogprob("", None, ()))
            continue
        values = [(str(v.get("decoded_token") or ""), _logprob(v["logprob"])) for v in entry.values()]
        ranked = sorted(values, key=lambda pair: -pair[1])
        rows.append(TokenLogprob(values[0][0], values[0][1], tuple(ranked)))
    return rows or None


def _logprob(value: Any) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ValueError("a logprob is an integer with hundreds of digits") from None
    if math.isnan(number):
        raise ValueError("a logprob is NaN")
    return number


def storable_reply(kind: RequestKind, raw: str, payload: dict[str, Any]) -> str:
    """The reply as it is recorded. A long one (logprobs, vectors) is compacted: without byte lists, and with as many
    digits of a vector as are read."""
    if len(raw) <= STORED_WHOLE:
        return raw
    if kind == "embeddings":
        vectors = [
            {"index": row.get("index", i), "embedding": [float(f"{value:.7g}") for value in row["embedding"]]}
            for i, row in enumerate(payload["data"])
        ]
        short = {k: payload[k] for k in ("id", "model", "usage") if k in payload}
        return json.dumps({**short, "data": vectors}, separators=(",", ":"), ensure_ascii=True)
    kept = {k: payload[k] for k in ("id", "model", "choices", "usage", "prompt_logprobs") if k in payload}
    if kind == "chat":
        for choice in kept["choices"]:
            for row in _objects(choice.get("logprobs"), "content") if isinstance(choice, dict) else ():
                row.pop("bytes", None)
                for alternative in _objects(row, "top_logprobs"):
                    alternative.pop("bytes", None)
    return json.dumps(kept, separators=(",", ":"), ensure_ascii=True)


def _objects(table: Any, key: str) -> list[dict[str, Any]]:
    """The JSON objects in the list under `key`; empty where there is no such list."""
    values = table.get(key) if isinstance(table, dict) else None
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
