"""One request to the endpoint, its identity, and what came back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from autointerp.errors import InputError

RequestKind = Literal["chat", "completions", "embeddings"]
ReplyStatus = Literal["ok", "refused", "filtered", "truncated", "bad_reply", "ctx_too_long", "gave_up"]
FINAL_STATUSES: frozenset[str] = frozenset({"ok", "refused", "filtered", "truncated", "ctx_too_long"})
"""Statuses that say something about the request itself: a call recorded with one of them is not sent again. 'gave_up'
and 'bad_reply' only say how the endpoint was at the time, so the next run asks again."""

LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Request:
    """One request with all its parameters."""

    kind: RequestKind
    body: dict[str, Any]
    """The whole JSON body: model, messages, prompt or input, sampling parameters."""
    stage: str
    """What the request is for ('explain', 'simulate', 'probe', ...). Spend is reported by stage."""
    sample: int = 0
    """Number of the reply where one request is sent several times: for best-of-n, or after an unusable reply."""
    dictionary_id: int | None = None
    feature: int | None = None
    truncation_ok: bool = False
    """Whether finish_reason 'length' is fine, because the caller wants only the first tokens."""

    @cached_property
    def sha256(self) -> str:
        """The hash of kind and body, independent of the order of keys. It leaves out the endpoint's address and the
        stage."""
        return request_sha256(self.kind, self.body)

    @cached_property
    def wire(self) -> bytes:
        """The body as it is sent. It is ASCII, so that it can be sent even with lone surrogates in a text."""
        return _dumps(self.body, sort_keys=False).encode("ascii")

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def inputs(self) -> list[str]:
        """The texts of an embeddings request; empty for other kinds."""
        found = self.body.get("input", [])
        return [found] if isinstance(found, str) else list(found)

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that the reply may have; None where the request sets no limit."""
        if self.kind == "embeddings":
            return 0
        for name in LENGTH_FIELDS:
            if isinstance(self.body.get(name), int):
                return int(self.body[name])
        return None

    @property
    def length_is_expected(self) -> bool:
        """Whether finish_reason 'length' is no failure. Requests for the prompt's logprobs always end that way, since
        they generate at most one token."""
        return self.truncation_ok or "prompt_logprobs" in self.body or bool(self.body.get("echo"))


def _dumps(value: Any, *, sort_keys: bool) -> str:
    try:
        return json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"the request body is not JSON: {error}") from None


def request_sha256(kind: RequestKind, body: dict[str, Any]) -> str:
    return hashlib.sha256(_dumps([kind, body], sort_keys=True).encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: str
    logprob: float | None
    """Natural log. None for the first token of a prompt, which has no context."""
    top: tuple[tuple[str, float], ...]
    """(token, logprob) of the likeliest tokens at this position, likeliest first."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one request. With any status but 'ok' there is no text to read a result from.

    Tokens and cost add up all attempts, and both requests where a cut-off reply was asked for again. They are the
    endpoint's counts, or estimates for attempts that may have been billed without a reply.
    """

    status: ReplyStatus
    text: str
    """The text that the model wrote, without an echoed prompt; '' if it wrote nothing."""
    token_logprobs: list[TokenLogprob] | None
    """Logprobs of the written tokens; None where the endpoint gave none."""
    prompt_logprobs: list[TokenLogprob] | None
    """Logprobs of the prompt's tokens; None where the endpoint gave none."""
    finish_reason: str | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float
    from_ledger: bool
    error: str | None = None
    latency_s: float = 0.0
    attempts: int = 1
    vectors: list[list[float]] | None = None
    """The reply to an embeddings request: one vector per input, in their order, all equally long. Otherwise None."""

    @property
    def ok(self) -> bool:
        return self.status == "ok"
