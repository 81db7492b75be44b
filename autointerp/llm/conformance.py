"""What an endpoint does beyond answering (capabilities.py asks what a run has to know of it): whether it heeds a seed,
says that a reply was cut off, counts tokens, embeds, and refuses what it cannot do.

Every function asks one or a few short questions and returns a Finding. They are recorded in the client's ledger under
stage 'probe' and never taken from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from autointerp.errors import AutointerpError
from autointerp.llm.client import LlmClient
from autointerp.llm.endpoint_errors import BadReplyError, EndpointCredentialsError, RequestRefusedError
from autointerp.llm.finish_reasons import ending_of
from autointerp.llm.replies import Usage, load_json, read_usage
from autointerp.llm.requests import Reply, Request
from autointerp.records import CallRecord

_SHORT = 8
"""Tokens of the reply that is cut off."""
NO_SUCH_MODEL = "autointerp-asks-for-no-such-model"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one ability of an endpoint."""

    is_there: bool
    seen: str
    """What the endpoint did."""
    means: str
    """What follows for explaining and scoring."""

    def __str__(self) -> str:
        return f"{self.seen}; {self.means}"


class CallsKept:
    """A ledger that keeps the last call of a check, and answers nothing from it."""

    def __init__(self) -> None:
        self.last: CallRecord | None = None

    def find(self, request_sha256: str, sample: int) -> CallRecord | None:
        return None

    async def record(self, record: CallRecord) -> None:
        self.last = record


def _chat(client: LlmClient, text: str, max_tokens: int, **fields: Any) -> Request:
    endpoint = client.endpoint
    body: dict[str, Any] = {
        "model": endpoint.model, "messages": [{"role": "user", "content": text}], endpoint.max_tokens_field: max_tokens,
    }  # fmt: skip
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    return Request("chat", {**body, **fields}, "probe", truncation_ok=True)


async def _answered(client: LlmClient, request: Request) -> Reply:
    """The reply; AutointerpError where there is none that can be read."""
    reply = await client.send(request, raise_refusals=True)
    if not reply.ok:
        raise AutointerpError(f"no usable reply ({reply.status}): {reply.error}")
    return reply


async def cut_off_replies(client: LlmClient, calls: CallsKept) -> tuple[Finding, Finding]:
    """Whether a reply that reaches its length says so, and whether replies state their tokens."""
    reply = await _answered(client, _chat(client, "Count from 1 to 200, one number a line.", _SHORT))
    usage = _stated_usage(calls)
    ended = _ending(reply, usage)
    if usage is None or not usage.input_tokens or not usage.output_tokens:
        return ended, Finding(
            False, "replies do not state their tokens", "spend and budgets count an estimate from the lengths of texts"
        )
    if usage.output_tokens > 2 * _SHORT:
        return ended, Finding(
            False,
            f"{usage.output_tokens} tokens were written where {client.endpoint.max_tokens_field} said {_SHORT}",
            "replies are not held to their length: set max_tokens_field to the name that the endpoint knows",
        )
    seen = f"{usage.input_tokens} tokens read and {usage.output_tokens} written"
    cost = "" if usage.cost_usd is None else f", with a cost of ${usage.cost_usd:.6f}"
    return ended, Finding(True, seen + cost, "spend and budgets count what the endpoint counts")


def _stated_usage(calls: CallsKept) -> Usage | None:
    """The tokens that the last reply states."""
    raw = calls.last.reply if calls.last is not None else None
    try:
        return read_usage(load_json(raw)) if raw else None
    except BadReplyError:
        return None


def _ending(reply: Reply, usage: Usage | None) -> Finding:
    if ending_of(reply.finish_reason) == "truncated":
        seen = f"a reply that was cut off says so ({reply.finish_reason})"
        return Finding(True, seen, "a label that is cut off is asked for again at twice the length")
    told = f"finish_reason {reply.finish_reason!r}" if reply.finish_reason else "no finish_reason"
    if usage is not None and usage.output_tokens < _SHORT:
        return Finding(False, f"the model wrote less than {_SHORT} tokens ({told})", "so no reply was cut off")
    return Finding(
        False,
        f"a reply that was cut off after {_SHORT} tokens came with {told}",
        "a label that is cut off may pass for a whole one: keep explain.max_tokens well above what labels take",
    )


async def heeds_seed(client: LlmClient) -> Finding:
    """Whether the same seed brings the same text, and other seeds other texts, at temperature 1."""
    text = "Invent a sentence about a town by the sea."
    by_seed: list[str] = []
    heat = {} if client.endpoint.temperature is None else {"temperature": 1.0}
    alone = "labels with a seed (best_of_n, explain.seed) are drawn by the temperature alone"
    for sample, seed in enumerate((1, 1, 2, 3)):
        request = _chat(client, text, 4 * _SHORT, seed=seed, **heat)
        try:
            reply = await _answered(client, replace(request, sample=sample))
        except RequestRefusedError as error:
            return Finding(False, f"`seed` is refused ({error})", alone)
        by_seed.append(reply.text)
    if len(set(by_seed)) == 1:
        return Finding(
            False,
            "three seeds brought the same text at temperature 1",
            "best_of_n chooses among equal labels: let the server sample, or use another explainer",
        )
    if by_seed[0] != by_seed[1]:
        return Finding(False, "one seed brought two texts at temperature 1", f"{alone}, and do not repeat")
    return Finding(
        True, "the same seed brought the same text, another seed another", "labels with a seed can be repeated"
    )


async def unknown_model(client: LlmClient) -> Finding:
    """What the endpoint does about a model that it does not have."""
    request = _chat(client, "Say yes.", _SHORT)
    try:
        reply = await client.send(replace(request, body={**request.body, "model": NO_SUCH_MODEL}), raise_refusals=True)
    except EndpointCredentialsError as error:
        return Finding(True, f"refused with {error.http_status}", "a run with a wrong name ends at once, exit code 3")
    except RequestRefusedError as error:
        return Finding(True, f"refused with {error.http_status}", "a run with a wrong name ends at once, exit code 2")
    if reply.ok:
        return Finding(
            False, "answered as if it had it", "a wrong `model` goes unnoticed, and labels carry the wrong name"
        )
    return Finding(
        False,
        f"answered with a failure ({reply.error})",
        "a run with a wrong name tries again for minutes before it ends",
    )


async def long_prompt(client: LlmClient, words: int, is_too_long: bool) -> Finding:
    """What the endpoint does about a prompt of so many words. `is_too_long`: its model takes fewer tokens than that."""
    reply = await client.send(_chat(client, "one " * words, _SHORT), raise_refusals=True)
    asked = f"a prompt of {words:,} words"
    if reply.status == "ctx_too_long":
        return Finding(True, f"{asked} is refused: too long", "such prompts are sent again with fewer examples")
    if not reply.ok:
        return Finding(False, f"{asked} got no reply ({reply.error})", "a row with such a prompt says gave_up")
    if is_too_long:
        return Finding(
            False,
            f"{asked} was answered, although the model takes fewer tokens",
            "it was cut without a word, and a label may be made from half a prompt",
        )
    return Finding(
        False,
        f"{asked} ({reply.input_tokens:,} tokens) was answered",
        "what becomes of one that is longer than the model takes was not seen",
    )


async def embeds(client: LlmClient, model: str) -> Finding:
    """Whether /embeddings gives vectors that fit their texts: the same for the same text, another for another."""
    texts = ["a ship on the sea", "the price of bread", "a ship on the sea"]
    body = {"model": model, "input": texts, "encoding_format": "float"}
    without = "the scorer embedding needs another endpoint, or a model on this machine (local:FOLDER)"
    try:
        reply = await client.send(Request("embeddings", body, "probe"), raise_refusals=True)
    except (RequestRefusedError, EndpointCredentialsError) as error:
        return Finding(False, f"none ({error})", without)
    if not reply.ok or not reply.vectors:
        return Finding(False, f"none ({reply.error})", without)
    one, other, again = reply.vectors
    apart = sum((a - b) ** 2 for a, b in zip(one, again, strict=True))
    if one == other or apart > 0.01 * sum((a - b) ** 2 for a, b in zip(one, other, strict=True)):
        return Finding(False, "vectors that do not follow their texts", without)
    return Finding(True, f"vectors of {len(one):,} numbers", "the scorer embedding can ask it")
