"""The checks of one endpoint, for `autointerp doctor --endpoint`: what it honours, each line with what that means for
explaining and scoring, and then a round trip through the stages that would ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

from autointerp.errors import InputError
from autointerp.llm import conformance
from autointerp.llm.capabilities import honours_json_schema
from autointerp.llm.conformance import Finding
from autointerp.llm.endpoint_paths import refusal_of_batches
from autointerp.llm.keys import is_local
from autointerp.stages.checked_endpoint import CheckedEndpoint
from autointerp.stages.checks import Check, Lack
from autointerp.stages.pipeline import require_torch
from autointerp.stages.round_trip import FEATURES, TinyStore, tiny_store
from autointerp.terminal import Terminal

Method = Literal["prompt_logprobs", "generated_logprobs", "numbers"]
MODEL, CHAT, TINY, LONG = "model", "chat", "tiny store", "long prompt"
LONG_PROMPT_WORDS = 3000
"""Words of the long prompt where the endpoint does not say how many tokens its model takes."""
_PAYS = "about twenty short calls, and some thirty for the round trip, which cost like any others"


@contextmanager
def endpoint_checks(checked: CheckedEndpoint, terminal: Terminal) -> Iterator[Iterator[Check]]:
    """The checks. Each is made once those before it were looked at, since what an endpoint lacks is not tried."""
    with ExitStack() as stack:
        yield _checks(checked, terminal, stack)


def _checks(checked: CheckedEndpoint, terminal: Terminal, stack: ExitStack) -> Iterator[Check]:
    yield Check(MODEL, "a wrong name ends a run", lambda: _model(checked))
    yield Check(CHAT, "an endpoint without chat can label nothing", lambda: _chat(checked), (MODEL,), _PAYS)
    for name, look in _abilities(checked).items():
        yield Check(name, "servers ignore in silence what they do not know", look, (MODEL, CHAT))
    yield from _round_trip(checked, terminal, stack)
    # The last, since some servers go on with a prompt for minutes after its time is up, and answer nobody else.
    yield Check(LONG, "nobody knows of a prompt that was cut", lambda: _long_prompt(checked), (MODEL, CHAT))


def _model(checked: CheckedEndpoint) -> str:
    model = checked.chosen_model
    try:
        served = checked.served
    except InputError as error:
        return Lack(f"{error}; a wrong name shows only when it is asked")
    if model not in served:
        return Lack(f"{model} is not in the list ({', '.join(list(served)[:5]) or 'which is empty'})")
    length = served[model]
    return f"{model}, which takes {length:,} tokens" if length else f"{model}; the list does not say what it takes"


def _chat(checked: CheckedEndpoint) -> str:
    found = checked.capabilities
    if not found.chat:
        return Lack(f"{'; '.join(found.notes)}; only simulation by prompt_logprobs can ask this endpoint")
    return "answers; explainers, detection, fuzzing, intruder and simulation by numbers can ask it"


def _abilities(checked: CheckedEndpoint) -> dict[str, Callable[[], str]]:
    """A look at each ability, in the order in which they are told."""

    def found(look: Callable[[], Finding]) -> Callable[[], str]:
        return lambda: _said(look())

    return {
        "JSON schemas": lambda: _schemas(checked),
        "seed": found(lambda: checked.asked(lambda client, _: conformance.heeds_seed(client))),
        "prompt logprobs": lambda: _prompt_logprobs(checked),
        "written logprobs": lambda: _written_logprobs(checked),
        "finish reason": found(lambda: checked.cut_off_replies[0]),
        "usage": found(lambda: checked.cut_off_replies[1]),
        "unknown model": found(lambda: checked.asked(lambda client, _: conformance.unknown_model(client))),
        "embeddings": found(lambda: checked.embeddings),
        "batch API": lambda: _batches(checked),
    }


def _said(finding: Finding) -> str:
    return str(finding) if finding.is_there else Lack(str(finding))


def _schemas(checked: CheckedEndpoint) -> str:
    if checked.asked(lambda client, _: honours_json_schema(client)):
        return "honoured; explainers ask for labels as JSON"
    return Lack("not honoured; labels are read from plain text")


def _prompt_logprobs(checked: CheckedEndpoint) -> str:
    found = checked.capabilities
    if found.prompt_logprobs:
        way = "by the field prompt_logprobs" if found.prompt_style == "prompt_logprobs" else "by echo and logprobs"
        return f"{way}, {found.prompt_top} a token; simulation reads a whole context from one pass (prompt_logprobs)"
    why = [note for note in found.notes if "prompt" in note] or ["none"]
    return Lack(f"{'; '.join(why)}; simulation has a number written for every token, which takes longer")


def _written_logprobs(checked: CheckedEndpoint) -> str:
    found = checked.capabilities
    if found.generated_logprobs:
        return f"{found.generated_top} a token; simulation reads expected values (generated_logprobs)"
    why = [note for note in found.notes if "written" in note] or ["none"]
    return Lack(f"{'; '.join(why)}; simulation reads the bare numbers (numbers), which are coarser")


def _long_prompt(checked: CheckedEndpoint) -> str:
    if not is_local(checked.base_url):
        return Lack("not asked, since a hosted endpoint may take it and charge for it")
    try:
        told = checked.served.get(checked.chosen_model)
    except InputError:
        told = None
    words, is_too_long = (LONG_PROMPT_WORDS, False) if told is None else (told + 100, True)
    once = replace(checked, model=checked.chosen_model, llm=replace(checked.llm, attempts=1))
    return _said(once.asked(lambda client, _: conformance.long_prompt(client, words, is_too_long)))


def _batches(checked: CheckedEndpoint) -> str:
    refusal = asyncio.run(refusal_of_batches(checked.endpoint, checked.llm))
    return "/batches answers; --batch can use it" if refusal is None else Lack(f"{refusal}; leave llm.batch off")


def _simulated(checked: CheckedEndpoint, method: Method, tiny: TinyStore) -> str:
    return tiny.scored("simulation", replace(checked.score, method=method), checked.llm)


def _round_trip(checked: CheckedEndpoint, terminal: Terminal, stack: ExitStack) -> Iterator[Check]:
    made: list[TinyStore] = []

    def make() -> str:
        require_torch()
        made.append(stack.enter_context(tiny_store(terminal)))
        return f"{FEATURES} features of the shipped demo model wait for labels and scores"

    def step(name: str, look: Callable[[TinyStore], str], lacks: str = "") -> Check:
        why = "what an endpoint promises is seen only in use"
        return Check(name, why, lambda: look(made[0]), (MODEL, CHAT, TINY), skipped=lacks)

    yield Check(TINY, "nothing is labelled without one", make, (MODEL, CHAT))
    if not made:
        return
    llm, methods = checked.llm, checked.capabilities.methods
    no_chat = "" if checked.capabilities.chat else "there is no chat"
    yield step("explain", lambda tiny: tiny.explained(checked.explain, llm), no_chat)
    for method in get_args(Method):
        lacks = "" if method in methods else "the endpoint does not support it"
        yield step(f"simulation by {method}", partial(_simulated, checked, method), lacks)
    yield step("detection", lambda tiny: tiny.scored("detection", checked.score, llm), no_chat)
    none = "" if checked.embeddings.is_there else "there are no embeddings"
    yield step("embedding", lambda tiny: tiny.scored("embedding", checked.score, llm), none)
    unsent = "" if checked.batch else "it is sent only with --batch, since a hosted endpoint may take hours"
    batched = replace(llm, batch=True, batch_poll_seconds=1.0, batch_quiet_seconds=0.5)
    again = replace(checked.explain, seed=1)
    yield step("batch", lambda tiny: tiny.explained(again, batched), unsent or no_chat)
