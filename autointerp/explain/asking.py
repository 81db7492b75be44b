"""Asking an LLM for labels: one question per feature, through a fixed pool of workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from autointerp.ask.explanation_row import blank_row, evidence_sha256
from autointerp.ask.forecast import CHARACTERS_PER_TOKEN, Estimate
from autointerp.ask.job import Blocks, run_pool
from autointerp.ask.question import Asked, ask
from autointerp.config import ExplainConfig
from autointerp.explain.evidence_sections import DRAWN, MAX_SAME_TOKEN, SAME_TOKEN_SILENT, SILENT
from autointerp.explain.explainer import ExplainRun
from autointerp.explain.label_question import Correction, LabelPrompt, LabelQuestion
from autointerp.explain.label_replies import Label
from autointerp.explain.plan import lacking_row
from autointerp.llm.capabilities import honours_json_schema, takes_seed
from autointerp.llm.client import LlmClient
from autointerp.llm.requests import Reply
from autointerp.records import Explanation, ExplanationStatus, FeatureEvidence

_LABEL_TOKENS = {"label": 60, "meanings": 90}
"""Tokens of a reply with a few words before the answer, for forecasts; a model that thinks aloud writes more."""
_REFUSALS: dict[str, ExplanationStatus] = {
    "refused": "refused", "filtered": "filtered", "truncated": "truncated", "ctx_too_long": "ctx_too_long",
}  # fmt: skip
"""What an endpoint can say of a request, as a label's status."""


async def as_taken(run: ExplainRun, prompt: LabelPrompt, client: LlmClient) -> LabelPrompt:
    """The prompt in a form that the endpoint takes: for JSON where [explain] reply says so or, with 'auto', where the
    endpoint supports it; and without a seed where it refuses one, which the run is told once."""
    is_json, sends_seed = await form_taken(run, prompt.config, client)
    return dataclasses.replace(prompt, is_json=is_json, sends_seed=sends_seed)


async def form_taken(run: ExplainRun, config: ExplainConfig, client: LlmClient) -> tuple[bool, bool]:
    """(whether to ask for JSON alone, whether to send the seed) of this endpoint."""
    is_json = await honours_json_schema(client) if config.reply == "auto" else config.reply == "json"
    if config.seed == 0:
        return is_json, True
    is_first = client.takes_seed is None
    taken = await takes_seed(client)
    if is_first and not taken and run.job.say is not None:
        run.job.say(
            f"{client.endpoint.address} refuses `seed`: labels with a seed are drawn without one, so only the "
            f"temperature ({config.temperature}) makes them differ"
        )
    return is_json, taken


def evidence_for(run: ExplainRun, prompt: LabelPrompt, features: Sequence[int]) -> list[FeatureEvidence]:
    """What the prompt may show of the features. Negatives of three tiers take turns in the store: for n of one tier,
    3 n are read. Drawn contexts are chosen by their decile, among all there are."""
    config, reads = prompt.config, prompt.reads
    negatives = 0
    if SILENT in reads:
        negatives = config.negatives
    elif SAME_TOKEN_SILENT in reads:
        negatives = min(config.negatives, MAX_SAME_TOKEN)
    limits: dict[str, int | None] = {
        "top": config.contexts,
        "sampled": None if DRAWN in reads else config.contexts,
        "negative": max(config.contexts, 3 * negatives),
    }
    return run.evidence(features, limits)


async def ask_labels(
    run: ExplainRun, prompt: LabelPrompt, client: LlmClient, features: Sequence[int],
    write: Callable[[Explanation], Awaitable[None]],
) -> None:  # fmt: skip
    """Asks about the features, one question each, and hands a row for each to `write`."""

    async def work(evidence: FeatureEvidence) -> None:
        await write(await ask_label(run, prompt, client, evidence))

    blocks = Blocks(features, lambda block: evidence_for(run, prompt, block))
    await run_pool(blocks, min(run.job.in_flight, len(features)), work, client.stop)


async def ask_label(
    run: ExplainRun, prompt: LabelPrompt, client: LlmClient, evidence: FeatureEvidence,
    correction: Correction | None = None,
) -> Explanation:  # fmt: skip
    """The label of one feature, or the row that says why it has no label. It is not written yet."""
    config = prompt.config
    digest = evidence_sha256(evidence, None if DRAWN in prompt.reads else config.contexts)
    row = blank_row(run.job, config, evidence.feature, config.model, prompt.template.sha256, digest)
    lacks = prompt.missing(evidence)
    if lacks is not None:
        without = lacking_row(run.of(config), prompt.reads, evidence.feature)
        return without or dataclasses.replace(row, status="abstained", error=lacks)
    question = LabelQuestion(prompt, evidence, min(config.contexts, max(1, len(evidence.top))), correction)
    asked = await ask(client, question)
    label = _label(asked)
    shown = _contexts_shown(question, asked)
    notes = seed_notes(prompt.sends_seed)
    if shown < question.contexts:
        notes.append(f"shown {shown} contexts instead of {question.contexts}, the prompt was too long")
    if label.status not in ("ok", "abstained"):
        notes.append(why_without(asked, "label"))
    labelled = dataclasses.replace(
        row,
        text=label.text,
        status=label.status,
        side=label.side,
        output_text=label.output_text,
        second_text=label.second_text,
        share=label.share,
        second_share=label.second_share,
        error="; ".join(notes) or None,
    )
    return paid(labelled, asked.replies)


def _label(asked: Asked[Label]) -> Label:
    """An answer as a label."""
    return asked.value if asked.value is not None else Label(status_without(asked))


def status_without(asked: Asked[Any]) -> ExplanationStatus:
    """The status of a label whose question brought no answer. Where the endpoint gave up, the next run asks again."""
    asked_again = len(asked.replies) > 1 and asked.replies[-2].ok
    if asked.status == "unparseable" or (asked_again and asked.status in _REFUSALS):
        return "unparseable"  # the first reply counts: only asking once more was refused
    return _REFUSALS.get(asked.status, "gave_up")


def why_without(asked: Asked[Any], lacks: str) -> str:
    """Why a question brought no answer."""
    last = asked.replies[-1]
    return last.error or asked.error or f"no {lacks} in the reply {last.text[:200]!r}"


def seed_notes(sends_seed: bool) -> list[str]:
    """What a row says of its seed."""
    return [] if sends_seed else ["drawn without its seed, which the endpoint refuses"]


def paid(row: Explanation, replies: Sequence[Reply]) -> Explanation:
    """The row with what its calls came to."""
    return dataclasses.replace(
        row,
        input_tokens=sum(r.input_tokens for r in replies),
        output_tokens=sum(r.output_tokens for r in replies),
        cost_usd=sum(r.cost_usd for r in replies),
    )


def _contexts_shown(question: LabelQuestion, asked: Asked[Label]) -> int:
    """The contexts in the last request, after all halvings."""
    for reply in asked.replies[:-1]:
        shorter = question.shorter() if reply.status == "ctx_too_long" else None
        if shorter is None:
            break
        question = shorter
    return question.contexts


def a_few_of(features: Sequence[int]) -> Sequence[int]:
    """Some sixteen of the features, or up to twice as many, evenly spaced: those that a forecast looks at."""
    return features[:: max(1, len(features) // 16)]


def estimate_labels(run: ExplainRun, prompt: LabelPrompt, features: Sequence[int]) -> Estimate:
    """What asking about the features comes to, estimated from a few of them."""
    if not features:
        return Estimate()
    config: ExplainConfig = prompt.config
    some = evidence_for(run, prompt, a_few_of(features))
    asked = [prompt.request(e, config.contexts) for e in some]
    written = len(asked) * min(_LABEL_TOKENS[prompt.answers], config.max_tokens) * CHARACTERS_PER_TOKEN
    return Estimate.of(asked, len(features) / len(asked), written)
