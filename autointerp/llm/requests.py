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
"""What the endpoint said of the request itself. A call recorded with one of these is not sent again; 'gave_up' and
'bad_reply' tell of the endpoint's state at the time, so the next run asks again."""

LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Request:
    """One request, rendered to the last parameter."""

    kind: RequestKind
    body: dict[str, Any]
    """The whole JSON body: model, messages, prompt or input, sampling parameters."""
    stage: str
    """What it is for ('explain', 'simulate', 'probe', ...): spend is reported by it."""
    sample: int = 0
    """Which of several replies to the very same request: best-of-n, or asking again after an unusable one."""
    dictionary_id: int | None = None
    feature: int | None = None
    truncation_ok: bool = False
    """The caller wants only the first tokens, so finish_reason 'length' is no failure."""

    @cached_property
    def sha256(self) -> str:
        """Of kind and body, whatever the order of keys. The endpoint's address and the stage are not part of it."""
        return request_sha256(self.kind, self.body)

    @cached_property
    def wire(self) -> bytes:
        """The body as sent: ASCII, so that lone surrogates in a text cannot make it unsendable."""
        return _dumps(self.body, sort_keys=False).encode("ascii")

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def inputs(self) -> list[str]:
        """The texts that an embeddings request asks about; none for other kinds."""
        found = self.body.get("input", [])
        return [found] if isinstance(found, str) else list(found)

    @property
    def max_tokens(self) -> int | None:
        """Most tokens that are written; None where the request names no limit."""
        if self.kind == "embeddings":
            return 0
        for name in LENGTH_FIELDS:
            if isinstance(self.body.get(name), int):
                return int(self.body[name])
        return None

    @property
    def length_is_expected(self) -> bool:
        """Requests for the prompt's logprobs generate a token or none; they always end by length."""
        return self.truncation_ok or "prompt_logprobs" in self.body or bool(self.body.get("echo"))


def _dumps(value: Any, *, sort_keys: bool) -> str:
    try:
        return json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"a request body that is not JSON: {error}") from None


def request_sha256(kind: RequestKind, body: dict[str, Any]) -> str:
    return hashlib.sha256(_dumps([kind, body], sort_keys=True).encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: str
    logprob: float | None
    """Natural log. None for the first token of a prompt, which nothing precedes."""
    top: tuple[tuple[str, float], ...]
    """(token, logprob) of the likeliest tokens at this place, likeliest first."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one request. Any status but 'ok' means that there is no text to read a result from.

    Tokens and cost are of all attempts together (and of both requests where a cut-off reply was asked for again at
    twice the length), as far as the endpoint reports them; attempts that may have been billed unseen are estimated.
    """

    status: ReplyStatus
    text: str
    """What the model wrote, without an echoed prompt; '' where there is nothing."""
    token_logprobs: list[TokenLogprob] | None
    """Of the written tokens; None where the endpoint gave none."""
    prompt_logprobs: list[TokenLogprob] | None
    """Of the prompt's tokens; None where the endpoint gave none."""
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
    """Of an embeddings request: one vector per input, in the inputs' order, all of one length; else None."""

    @property
    def ok(self) -> bool:
        return self.status == "ok"
