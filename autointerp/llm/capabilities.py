"""What an endpoint really supports. Servers silently ignore fields that they do not know, so each field is sent once,
and the reply is searched for its effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from autointerp.errors import AutointerpError
from autointerp.llm.client import LlmClient
from autointerp.llm.endpoint_errors import BadReplyError, EndpointCredentialsError, RequestRefusedError
from autointerp.llm.replies import load_json
from autointerp.llm.requests import FINAL_STATUSES, Reply, Request, TokenLogprob

TOP = (20, 5)
"""Alternatives per token to ask for, in turn. OpenAI allows at most 20 (5 on completions), vLLM 20 by default."""


_PREDICTABLE = "One 1\nTwo 2\nThree 3\nFour 4\nFive 5\nSix 6\nSeven 7\nEight"
"""A prompt whose tokens a language model foresees, so that it shows where the logprobs of a token stand."""
_SHORT = [{"role": "user", "content": "Answer with the digit 7 and nothing else."}]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What `probe` found, or what is taken for granted (UNPROBED). `notes` says what is missing and why."""

    chat: bool
    completions: bool
    generated_logprobs: bool
    """Whether chat replies list their tokens with alternatives."""
    generated_top: int
    """Alternatives per written token to ask for (top_logprobs); 0 where there are none."""
    prompt_logprobs: bool
    """Whether completions list the prompt's tokens with alternatives."""
    prompt_top: int
    """Alternatives per prompt token to ask for; 0 where there are none."""
    prompt_style: Literal["prompt_logprobs", "echo"] | None
    """How to ask for the prompt's logprobs: vLLM's own field, or the legacy echo=True, logprobs=k."""
    notes: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """Simulation methods that the endpoint supports, best first."""
        found = []
        if self.prompt_logprobs:
            found.append("prompt_logprobs")
        if self.generated_logprobs:
            found.append("generated_logprobs")
        if self.chat:
            found.append("numbers")
        return tuple(found)


UNPROBED = Capabilities(
    chat=True, completions=False, generated_logprobs=False, generated_top=0, prompt_logprobs=False, prompt_top=0,
    prompt_style=None,
)  # fmt: skip
"""An endpoint that is asked in plain chat only, so nothing of it needs to be known."""


async def probe(client: LlmClient) -> Capabilities:
    """Try each capability, with two to six short calls. They are recorded in the ledger under stage 'probe' but never
    taken from it, since a server may have changed.

    Raises the errors that end a run: key or model refused (if neither chat nor completions answer), endpoint
    unreachable, budget used up.
    """
    notes: list[str] = []
    chat, generated_top, refusal = await _probe_chat(client, notes)
    completions, style, prompt_top = await _probe_completions(client, notes)
    if not chat and not completions and refusal is not None:
        raise refusal
    return Capabilities(
        chat=chat,
        completions=completions,
        generated_logprobs=generated_top > 0,
        generated_top=generated_top,
        prompt_logprobs=style is not None,
        prompt_top=prompt_top,
        prompt_style=style,
        notes=tuple(notes),
    )


async def honours_json_schema(client: LlmClient) -> bool:
    """Whether a chat reply follows the JSON schema in the request. Takes one short call, recorded under stage 'probe'.

    Unlike `probe` it may take the answer from the ledger. A server that has changed since does no harm, because the
    caller can read replies that are not JSON too. Raises the errors that end a run, as `probe` does.
    """
    endpoint = client.endpoint
    schema = {
        "type": "object", "properties": {"answer": {"type": ["string", "null"]}}, "required": ["answer"],
        "additionalProperties": False,
    }  # fmt: skip
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": "What is the colour of the sky on a clear day? One word."}],
        endpoint.max_tokens_field: endpoint.max_tokens,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        },
    }
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    reply = await _unless_refused(client, body)
    if reply is None:
        return False
    try:
        answer = load_json(reply.text)
    except BadReplyError:
        return False
    return reply.ok and isinstance(answer, dict) and isinstance(answer.get("answer"), str)


async def takes_seed(client: LlmClient) -> bool:
    """Whether a chat request may carry a seed. Whether the endpoint heeds it is not asked.

    Takes one short call for each client, unless the ledger has it, recorded under stage 'probe'. Raises the errors that
    end a run, as `probe` does.
    """
    if client.takes_seed is None:
        endpoint = client.endpoint
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": _SHORT,
            endpoint.max_tokens_field: endpoint.max_tokens,
        }
        if endpoint.temperature is not None:
            body["temperature"] = endpoint.temperature
        reply = await _unless_refused(client, {**body, "seed": 1})
        client.takes_seed = reply is not None and reply.status not in ("gave_up", "bad_reply")
    return client.takes_seed


async def _unless_refused(client: LlmClient, body: dict[str, Any]) -> Reply | None:
    """The reply to a chat request, from the ledger if it is there; None where the endpoint refuses a field of it."""
    request = Request("chat", body, "probe", truncation_ok=True)
    known = client.ledger.find(request.sha256, 0)
    if known is not None and known.status in FINAL_STATUSES:
        return await client.ask(request)
    try:
        return await client.send(request, raise_refusals=True, field_in_doubt=True)
    except RequestRefusedError:
        return None
    except EndpointCredentialsError as error:
        if error.http_status != 403:  # some endpoints forbid a field so; where it is the key, the next call says so
            raise
        return None


def prompt_logprob_fields(capabilities: Capabilities) -> dict[str, Any]:
    """The fields of a completions body by which this endpoint returns the prompt's logprobs."""
    if capabilities.prompt_style == "prompt_logprobs":
        return {"prompt_logprobs": capabilities.prompt_top, "max_tokens": 1}
    return {"echo": True, "logprobs": capabilities.prompt_top, "max_tokens": 1}


async def _ask(client: LlmClient, kind: Literal["chat", "completions"], body: dict[str, Any]) -> Reply:
    """Make a new call, under the first sample number that the ledger does not hold. A request for logprobs is one that
    the endpoint may not support."""
    request = Request(kind, {"model": client.endpoint.model, **body}, "probe", truncation_ok=True)
    sample = 0
    while client.ledger.find(request.sha256, sample) is not None:
        sample += 1
    fresh = Request(kind, request.body, "probe", sample=sample, truncation_ok=True)
    is_in_doubt = not body.keys().isdisjoint(("logprobs", "prompt_logprobs"))
    return await client.send(fresh, raise_refusals=True, field_in_doubt=is_in_doubt)


async def _probe_chat(client: LlmClient, notes: list[str]) -> tuple[bool, int, AutointerpError | None]:
    """(whether chat answers, alternatives per token, the error if chat does not answer). The reply may be as long as
    configured, since models that think need some room before the first word."""
    endpoint = client.endpoint
    body: dict[str, Any] = {
        "messages": _SHORT,
        endpoint.max_tokens_field: endpoint.max_tokens,
    }
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    tries: list[dict[str, Any]] = [*({"logprobs": True, "top_logprobs": k} for k in TOP), {}]
    refusal: AutointerpError | None = None
    while tries:
        extra = tries.pop(0)
        try:
            reply = await _ask(client, "chat", {**body, **extra})
        except RequestRefusedError as error:
            refusal = error
            continue
        except EndpointCredentialsError as error:
            if error.http_status == 403 and extra:  # it may be logprobs that are not allowed
                refusal = error
                continue
            if error.http_status != 404:
                raise
            notes.append(f"no chat: {error}")
            return False, 0, error
        if reply.status in ("gave_up", "bad_reply"):
            refusal = AutointerpError(f"the endpoint gives no usable reply: {reply.error}")
            if extra:  # it may be logprobs that make the endpoint fail
                tries = [{}]
                continue
            notes.append(f"no chat: {reply.error}")
            return False, 0, refusal
        if extra and _has_alternatives(reply.token_logprobs):
            return True, int(extra["top_logprobs"]), None
        if extra and reply.token_logprobs == []:
            why = f"the reply was all thoughts, with {endpoint.max_tokens_field} = {endpoint.max_tokens}"
        else:
            why = "left out of the reply without a word" if extra else f"refused: {refusal}"
        notes.append(f"no logprobs of written tokens ({why})")
        return True, 0, None
    notes.append(f"no chat: {refusal}")
    return False, 0, refusal


async def _probe_completions(
    client: LlmClient, notes: list[str]
) -> tuple[bool, Literal["prompt_logprobs", "echo"] | None, int]:
    """(whether completions answer, how to ask for prompt logprobs, alternatives per prompt token)."""
    answers = False
    styles: list[tuple[Literal["prompt_logprobs", "echo"], int, dict[str, Any]]] = [
        ("prompt_logprobs", TOP[0], {"prompt_logprobs": TOP[0]}),
        *(("echo", k, {"echo": True, "logprobs": k}) for k in TOP),
    ]
    why = "left out of the reply"
    for style, k, extra in styles:
        body = {"prompt": _PREDICTABLE, "max_tokens": 1, **extra}
        try:
            reply = await _ask(client, "completions", body)
        except RequestRefusedError as error:
            why = str(error)
            continue
        except EndpointCredentialsError as error:
            if error.http_status == 401:
                raise
            notes.append(f"no completions, so no logprobs of the prompt: {error}")
            return False, None, 0
        if not reply.ok:
            notes.append(f"no completions, so no logprobs of the prompt: {reply.error or reply.status}")
            return False, None, 0
        answers = True
        if _has_alternatives((reply.prompt_logprobs or [])[1:]):
            if not _stand_one_too_early(reply.prompt_logprobs or []):
                return True, style, k
            why = "each token comes with the alternatives to the next one"
    notes.append(f"no logprobs of the prompt ({why})")
    return answers, None, 0


def _has_alternatives(rows: list[TokenLogprob] | None) -> bool:
    """Whether every token came with alternatives whose numbers can be logprobs."""
    return bool(rows) and all(row.top and all(lp <= 0.01 for _, lp in row.top) for row in rows or ())


def _stand_one_too_early(rows: list[TokenLogprob]) -> bool:
    """Whether the alternatives of a token are those of the next one, as llama-cpp-python echoes them where the model
    puts no mark before a text. By far more tokens are then foreseen one row too early than in their own row."""
    foreseen = [row.top[0][0] if row.top else None for row in rows]
    tokens = [row.token for row in rows]
    in_place = sum(best == token for best, token in zip(foreseen, tokens, strict=True))
    too_early = sum(best == token for best, token in zip(foreseen, tokens[1:], strict=False))
    return too_early >= 3 and too_early > 2 * in_place
