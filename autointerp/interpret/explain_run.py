"""Labels for many features: from the rule explainers at once, from an LLM through a fixed pool of workers.

Every label is a row, every failure too. Rows that exist are skipped, calls that are in the ledger are not sent again,
so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from autointerp.config import ExplainConfig
from autointerp.errors import InputError, nearest
from autointerp.interpret import patterns
from autointerp.interpret.explainers import LLM_EXPLAINERS, Label, LlmExplainer, evidence_sha256, parse_label
from autointerp.interpret.patterns_text import lookup_sentence, sentence
from autointerp.interpret.runner import BLOCK, Blocks, Forecast, Job, Outcome, StoreLedger, run_pool
from autointerp.llm.budget import cost_usd
from autointerp.llm.client import LlmClient
from autointerp.llm.requests import Reply, Request
from autointerp.records import Explanation, ExplanationStatus, FeatureEvidence, stable_id
from autointerp.store.group_writer import GroupWriter

RULE_EXPLAINERS = ("patterns", "token_lookup")
EXPLAINERS = (*RULE_EXPLAINERS, *LLM_EXPLAINERS)
HALVINGS = 2
"""How often the contexts are halved where the LLM's own context is too short."""
CHARACTERS_PER_TOKEN = 3.5
"""For forecasts."""
_EVERY = 1000
"""More contexts than any harvest keeps."""


def check_explainer(name: str) -> None:
    """InputError where there is no explainer of that name."""
    if name not in EXPLAINERS:
        raise InputError(f"no explainer {name!r}; there are {', '.join(EXPLAINERS)}.{nearest(name, EXPLAINERS)}")


def rule_sha256(explainer: str) -> str:
    """Stands for the template of an explainer without one: another set of tables is another explainer."""
    settings = [explainer, patterns.RULE_VERSION, patterns.TABLES if explainer == "patterns" else patterns.TOKEN_LOOKUP]
    return hashlib.sha256(repr(settings).encode()).hexdigest()


async def explain(job: Job, config: ExplainConfig) -> Outcome:
    """Labels for the chosen features that have none yet.

    Raises InputError (unknown explainer, no model named) and whatever ends a run of the client: StoppedError,
    CredentialsError, an unreachable endpoint. What was done until then is kept.
    """
    check_explainer(config.explainer)
    if config.explainer in RULE_EXPLAINERS:
        return explain_by_rule(job, config)
    explainer = _llm_explainer(job, config)
    features = _pending(job, config, explainer.template.sha256, job_harvest=None)
    outcome = Outcome(pending=len(features))
    if not features:
        return outcome
    async with GroupWriter(job.store) as writer:
        ledger = StoreLedger(job.store, writer)
        async with LlmClient(config, job.llm, job.budget, ledger, job.run_id) as client:

            async def work(evidence: FeatureEvidence) -> None:
                explanation = await _ask(job, config, explainer, client, evidence)
                await writer.explanation(explanation)
                outcome.statuses[explanation.status] += 1
                job.report(outcome.done, outcome.pending)

            blocks = Blocks(features, lambda block: _evidence(job, block, config.contexts))
            await run_pool(blocks, min(job.llm.max_connections, len(features)), work, client.stop)
    return outcome


def explain_by_rule(job: Job, config: ExplainConfig) -> Outcome:
    """`patterns` and `token_lookup`: no LLM, so new evidence is simply labelled again."""
    digest = rule_sha256(config.explainer)
    features = _pending(job, config, digest, job_harvest=job.harvest_id)
    outcome = Outcome(pending=len(features))
    for start in range(0, len(features), BLOCK):
        rows = []
        for evidence in _evidence(job, features[start : start + BLOCK], _EVERY):
            rows.append(rule_explanation(evidence, job.harvest_id, config, digest))
            outcome.statuses[rows[-1].status] += 1
        job.store.insert_explanations(rows)
        job.report(outcome.done, outcome.pending)
    return outcome


def rule_explanation(evidence: FeatureEvidence, harvest_id: int, config: ExplainConfig, digest: str) -> Explanation:
    sample = patterns.sample_of(evidence)
    if config.explainer == "patterns":
        rule = patterns.learn(sample)
        text = sentence(evidence, sample, rule)
    else:
        rule = patterns.token_lookup(sample)
        text = lookup_sentence(rule)
    label = Label("abstained") if text is None else Label("ok", text)
    blank = _blank(evidence, harvest_id, config, config.explainer, digest, evidence_sha256(evidence))
    return dataclasses.replace(blank, text=label.text, status=label.status, rule=rule.to_json())


def forecast_explain(job: Job, config: ExplainConfig) -> Forecast:
    """Calls and tokens that `explain` would need now, at one call per feature."""
    check_explainer(config.explainer)
    if config.explainer in RULE_EXPLAINERS:
        features = _pending(job, config, rule_sha256(config.explainer), job_harvest=job.harvest_id)
        return Forecast(len(features), 0, 0, 0, 0.0)
    explainer = _llm_explainer(job, config)
    features = _pending(job, config, explainer.template.sha256, job_harvest=None)
    some = _evidence(job, features[:: max(1, len(features) // 16)], config.contexts) if features else []
    read = sum(prompt_characters(explainer.request(e, config.contexts)) for e in some) / max(1, len(some))
    input_tokens = int(len(features) * read / CHARACTERS_PER_TOKEN)
    output_tokens = len(features) * min(60, config.max_tokens)
    price = job.llm.prices.get(config.model)
    usd = None if price is None else cost_usd(price, input_tokens, 0, output_tokens)
    return Forecast(len(features), len(features), input_tokens, output_tokens, usd)


def prompt_characters(request: Request) -> int:
    """Length of what the LLM reads."""
    if "prompt" in request.body:
        return len(request.body["prompt"])
    return sum(len(message["content"]) for message in request.body["messages"])


def _llm_explainer(job: Job, config: ExplainConfig) -> LlmExplainer:
    if not config.model:
        raise InputError(f"the explainer {config.explainer!r} asks an LLM; set explain.model (and explain.base_url)")
    return LlmExplainer.named(config.explainer, config, config.seed, job.prompts)


def _pending(job: Job, config: ExplainConfig, digest: str, job_harvest: int | None) -> list[int]:
    """Paid labels are kept when the evidence grows (a label names its harvest); free ones follow it."""
    return job.store.features_to_explain(
        job.dictionary_id,
        config.explainer,
        config.explainer if config.explainer in RULE_EXPLAINERS else config.model,
        digest,
        config.seed,
        job.selection,
        harvest_id=job_harvest,
    )


def _evidence(job: Job, features: Sequence[int], contexts: int) -> list[FeatureEvidence]:
    found = job.store.feature_evidence(job.dictionary_id, job.harvest_id, features, contexts)
    return [found[feature] for feature in features]


async def _ask(
    job: Job, config: ExplainConfig, explainer: LlmExplainer, client: LlmClient, evidence: FeatureEvidence
) -> Explanation:
    blank = _blank(
        evidence, job.harvest_id, config, config.model, explainer.template.sha256,
        evidence_sha256(evidence, config.contexts),
    )  # fmt: skip
    if not evidence.top:
        return dataclasses.replace(blank, status="abstained", error="the explain split has no context of it")
    contexts = min(config.contexts, len(evidence.top))
    asked = contexts
    replies: list[Reply] = []
    request = explainer.request(evidence, contexts)
    replies.append(await client.ask(request))
    for _ in range(HALVINGS):
        if replies[-1].status != "ctx_too_long" or contexts == 1:
            break
        contexts = (contexts + 1) // 2
        request = explainer.request(evidence, contexts)
        replies.append(await client.ask(request))
    label = parse_label(replies[-1].text) if replies[-1].ok else Label(explanation_status(replies[-1].status))
    if label.status == "unparseable":
        replies.append(await client.ask(explainer.again(request, replies[-1].text, evidence)))
        second = parse_label(replies[-1].text) if replies[-1].ok else Label(explanation_status(replies[-1].status))
        label = label if second.status in ("refused", "filtered", "truncated", "ctx_too_long") else second
    notes = [f"shown {contexts} contexts instead of {asked}, the prompt was too long"] if contexts < asked else []
    if label.status not in ("ok", "abstained"):
        notes.append(replies[-1].error or f"no LABEL line in the reply {replies[-1].text[:200]!r}")
    return dataclasses.replace(
        blank,
        text=label.text,
        status=label.status,
        error="; ".join(notes) or None,
        input_tokens=sum(r.input_tokens for r in replies),
        output_tokens=sum(r.output_tokens for r in replies),
        cost_usd=sum(r.cost_usd for r in replies),
    )


def explanation_status(status: str) -> ExplanationStatus:
    """A reply's status as a label's. An envelope that could not be read is the endpoint's state, so asked for again."""
    known: dict[str, ExplanationStatus] = {
        "refused": "refused", "filtered": "filtered", "truncated": "truncated", "ctx_too_long": "ctx_too_long",
    }  # fmt: skip
    return known.get(status, "gave_up")


def _blank(
    evidence: FeatureEvidence, harvest_id: int, config: ExplainConfig, model: str, digest: str, evidence_digest: str
) -> Explanation:
    key = (
        evidence.dictionary_id, evidence.feature, harvest_id, config.explainer, model, digest, evidence_digest,
        config.seed,
    )  # fmt: skip
    return Explanation(
        explanation_id=stable_id(*key),
        dictionary_id=evidence.dictionary_id,
        feature=evidence.feature,
        harvest_id=harvest_id,
        explainer=config.explainer,
        model=model,
        template_sha256=digest,
        evidence_sha256=evidence_digest,
        seed=config.seed,
        text=None,
        status="gave_up",
    )
