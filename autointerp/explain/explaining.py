"""Labels for many features: from the rule explainers at once, from an LLM through a fixed pool of workers.

Every label is a row, every failure too. Rows that exist are skipped, calls that are in the ledger are not sent again,
so a run that was stopped goes on where it was. Explainers made of other labels are in compose_run.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autointerp.ask.forecast import CHARACTERS_PER_TOKEN, Estimate, Forecast
from autointerp.ask.job import RULE_BLOCK, Blocks, Job, Outcome, run_pool
from autointerp.config import ExplainConfig
from autointerp.errors import InputError, nearest
from autointerp.explain.explainers import LLM_EXPLAINERS, SIDES, Correction, LlmExplainer
from autointerp.explain.free_pass import well_explained
from autointerp.explain.label_replies import Label, clean_label
from autointerp.llm.capabilities import honours_json_schema
from autointerp.llm.client import LlmClient
from autointerp.llm.requests import Reply
from autointerp.records import Explanation, ExplanationStatus, FeatureEvidence, FeatureShape, stable_id
from autointerp.rules.labels import PATTERNS, RULE_EXPLAINERS, blank, evidence_sha256, rule_explanation, rule_sha256
from autointerp.store.group_writer import GroupWriter

COMPOSITES = ("concat", "best_of_n", "revise")
EXPLAINERS = (*RULE_EXPLAINERS, *LLM_EXPLAINERS, *COMPOSITES)
SHAPE = "shape"
"""Stands for the model of a label that the feature's shape alone gives."""
SHAPE_SHA256 = hashlib.sha256(b"shape").hexdigest()
NO_EVIDENCE_SHA256 = hashlib.sha256(b"no evidence").hexdigest()
"""Stand for the template where none is rendered. A row without evidence is no answer of the explainer: the feature is
asked about once there is some."""
METHODS_OF: dict[str, tuple[str, ...]] = {
    "pruned": ("pruning",),
    "vocab_projection": ("vocab_projection",),
    "mutual_information": ("mutual_information", "words"),
    "token_change": ("token_change",),
}
"""Explainers that read nothing but what these methods find; one of them is enough."""
HALVINGS = 2
"""How often the contexts are halved where the LLM's own context is too short."""
_LABEL_TOKENS = 60
"""Of a reply with a label and a few words before it, for forecasts; a model that thinks aloud writes more."""
_EVERY = 1000
"""More contexts than any harvest keeps."""


def check_explainer(name: str) -> None:
    """InputError where there is no explainer of that name."""
    if name not in EXPLAINERS:
        raise InputError(f"no explainer {name!r}; there are {', '.join(EXPLAINERS)}.{nearest(name, EXPLAINERS)}")


@dataclass(frozen=True)
class Plan:
    """What is to be done about the chosen features that have no label of an LLM explainer yet."""

    ask: list[int]
    """Features to ask the LLM about."""
    rows: list[Explanation]
    """Labels by shape, and features without the evidence that the explainer needs: no call."""
    n_shaped: int
    n_patterned: int = 0
    """Labels by the rule of `patterns`, among `rows`."""
    bases: tuple[Explanation, ...] = ()
    """`patterns` labels that were made for this and are not in the store yet: written, but not what was asked for."""

    @property
    def size(self) -> int:
        return len(self.ask) + len(self.rows)


async def explain(job: Job, config: ExplainConfig) -> Outcome:
    """Labels for the chosen features that have none yet, by an explainer that is no composite.

    Raises InputError (unknown explainer, no model named, none of the features has the evidence that it reads) and
    whatever ends a run of the client: StoppedError, CredentialsError, an unreachable endpoint. What was done until
    then is kept.
    """
    check_explainer(config.explainer)
    if config.explainer in COMPOSITES:
        raise InputError(f"{config.explainer} is made of other labels, see compose_run.explain")
    if config.explainer in RULE_EXPLAINERS:
        return explain_by_rule(job, config)
    explainer = llm_explainer(job, config)
    plan = make_plan(job, config, explainer.template.sha256)
    outcome = begin(job, plan)
    if not plan.ask:
        return outcome
    async with GroupWriter(job.store) as writer, job.client(config, writer) as client:

        def told(explanation: Explanation) -> None:
            outcome.statuses[explanation.status] += 1
            job.report(outcome.done, outcome.pending)

        await ask_labels(job, await in_reply_form(explainer, client), client, writer, plan.ask, told)
    return outcome


def begin(job: Job, plan: Plan) -> Outcome:
    """Writes the rows that take no call; the outcome so far."""
    outcome = Outcome(pending=plan.size)
    if plan.rows:
        job.store.insert_explanations([*plan.bases, *plan.rows])
        outcome.statuses.update(row.status for row in plan.rows)
        job.report(outcome.done, outcome.pending)
    if plan.n_shaped:
        outcome.notes += (f"{plan.n_shaped:,} features have a label by their shape alone, without an LLM",)
    if plan.n_patterned:
        outcome.notes += (f"{plan.n_patterned:,} features are explained well enough by patterns, without an LLM",)
    return outcome


async def in_reply_form(explainer: LlmExplainer, client: LlmClient) -> LlmExplainer:
    """The explainer, asking for JSON where [explain] reply says so or, with 'auto', the endpoint supports it."""
    if explainer.config.reply != "auto":
        return explainer
    return explainer.in_json(await honours_json_schema(client))


async def ask_labels(
    job: Job, explainer: LlmExplainer, client: LlmClient, writer: GroupWriter, features: Sequence[int],
    told: Callable[[Explanation], None],
) -> None:  # fmt: skip
    """Asks about the features, one call each, and writes a row for each; `told` hears of every row written."""

    async def work(evidence: FeatureEvidence) -> None:
        explanation = await ask_label(job, explainer, client, evidence)
        await writer.explanation(explanation)
        told(explanation)

    blocks = Blocks(features, lambda block: evidence_for(job, explainer.config, block))
    await run_pool(blocks, min(job.in_flight, len(features)), work, client.stop)


def make_plan(job: Job, config: ExplainConfig, digest: str) -> Plan:
    """`digest` is of the template, or of what stands for it. InputError where none of the chosen features has the
    evidence that the explainer reads."""
    pending = pending_features(job, config, digest, job_harvest=None)
    shapes: dict[int, FeatureShape] = {}
    if config.shape_labels and pending:
        shapes = job.store.shape_labels(job.dictionary_id)
    shaped = [f for f in pending if f in shapes]
    rows: list[Explanation] = []
    if shaped:
        new = _without_row(job, config, SHAPE, SHAPE_SHA256, harvest_id=job.harvest_id)
        rows += [_by_shape(job, config, f, shapes[f]) for f in shaped if f in new]
    n_shaped = len(rows)
    ask = [f for f in pending if f not in shapes]
    patterned, bases, done = _by_patterns(job, config, ask)
    rows += patterned
    ask = [f for f in ask if f not in done]
    methods = METHODS_OF.get(config.explainer)
    if ask and methods is not None:
        found = set().union(*(job.store.features_with_findings(m, job.dictionary_id) for m in methods))
        chosen = job.store.selected_features(job.dictionary_id, job.selection)
        if not found & set(chosen):
            raise InputError(f"no chosen feature has what {config.explainer!r} reads: {_how_to_find(methods)}")
        lacking = [f for f in ask if f not in found]
        new = _without_row(job, config, config.model, NO_EVIDENCE_SHA256) if lacking else set()
        rows += [_lacking(job, config, f) for f in lacking if f in new]
        ask = [f for f in ask if f in found]
    return Plan(ask, rows, n_shaped, len(patterned), tuple(bases))


def _by_patterns(
    job: Job, config: ExplainConfig, features: Sequence[int]
) -> tuple[list[Explanation], list[Explanation], set[int]]:
    """(new rows, the `patterns` labels behind them that the store lacks, all features that need no LLM).

    An explainer of what a feature leads to has no use for a rule of what it responds to.
    """
    threshold = config.unless_patterns_above
    if threshold is None or SIDES.get(config.explainer) == "output":
        return [], [], set()
    rule_digest = rule_sha256(PATTERNS)
    digest = hashlib.sha256(f"{PATTERNS} above {threshold} {rule_digest}".encode()).hexdigest()
    left = _without_row(job, config, PATTERNS, digest, harvest_id=job.harvest_id)
    new = [f for f in features if f in left]
    done = set(features) - left  # judged by an earlier run
    rows: list[Explanation] = []
    bases: list[Explanation] = []
    as_rule = dataclasses.replace(config, explainer=PATTERNS)
    for start in range(0, len(new), RULE_BLOCK):
        block = new[start : start + RULE_BLOCK]
        held = {
            e.feature: e
            for labels in job.store.explanations_of(job.dictionary_id, block).values()
            for e in labels
            if (e.explainer, e.model, e.template_sha256) == (PATTERNS, PATTERNS, rule_digest)
            and (e.harvest_id, e.seed) == (job.harvest_id, config.seed)
        }
        lacking = [f for f in block if f not in held]
        made = [rule_explanation(e, job, as_rule, rule_digest) for e in read_evidence(job, lacking, _EVERY)]
        labels = {**held, **{e.feature: e for e in made}}
        for base in well_explained(job, [labels[f] for f in block], threshold):
            row = blank(job, base.feature, config, PATTERNS, digest, base.evidence_sha256)
            rows.append(
                dataclasses.replace(
                    row, text=base.text, status="ok", rule=base.rule, side=base.side, derived_from=[base.explanation_id]
                )
            )
            if base.feature not in held:
                bases.append(base)
            done.add(base.feature)
    return rows, bases, done


def _without_row(job: Job, config: ExplainConfig, model: str, digest: str, harvest_id: int | None = None) -> set[int]:
    return set(
        job.store.features_to_explain(
            job.dictionary_id, config.explainer, model, digest, config.seed, job.selection, harvest_id=harvest_id
        )
    )


def _by_shape(job: Job, config: ExplainConfig, feature: int, shape: FeatureShape) -> Explanation:
    row = blank(job, feature, config, SHAPE, SHAPE_SHA256, stable_id(shape.text, shape.rule))
    return dataclasses.replace(row, text=clean_label(shape.text or ""), status="ok", rule=shape.rule, side="input")


def _lacking(job: Job, config: ExplainConfig, feature: int) -> Explanation:
    row = blank(job, feature, config, config.model, NO_EVIDENCE_SHA256, NO_EVIDENCE_SHA256)
    why = f"it has nothing that {config.explainer!r} reads: {_how_to_find(METHODS_OF[config.explainer])}"
    return dataclasses.replace(row, status="abstained", error=why)


def _how_to_find(methods: Sequence[str]) -> str:
    if "vocab_projection" in methods:
        return "promoted tokens come with the harvest; run `autointerp harvest`"
    return (
        f"run `autointerp measure`, with {' or '.join(methods)} among [evidence] methods (where it was run already, it "
        "found nothing)"
    )


def explain_by_rule(job: Job, config: ExplainConfig) -> Outcome:
    """`patterns` and `token_lookup`: no LLM, so new evidence is simply labelled again."""
    digest = rule_sha256(config.explainer)
    features = pending_features(job, config, digest, job_harvest=job.harvest_id)
    outcome = Outcome(pending=len(features))
    for start in range(0, len(features), RULE_BLOCK):
        rows = []
        for evidence in read_evidence(job, features[start : start + RULE_BLOCK], _EVERY):
            rows.append(rule_explanation(evidence, job, config, digest))
            outcome.statuses[rows[-1].status] += 1
        job.store.insert_explanations(rows)
        job.report(outcome.done, outcome.pending)
    return outcome


def forecast_explain(job: Job, config: ExplainConfig) -> Forecast:
    """Calls and tokens that `explain` would need now, at one call per feature."""
    check_explainer(config.explainer)
    if config.explainer in RULE_EXPLAINERS:
        features = pending_features(job, config, rule_sha256(config.explainer), job_harvest=job.harvest_id)
        return Forecast(len(features), 0, 0, 0, 0.0)
    explainer = llm_explainer(job, config)
    plan = make_plan(job, config, explainer.template.sha256)
    parts = [(config.model, expected(job, explainer, plan.ask))]
    return Forecast.of(job.llm.prices, plan.size, parts, plan.n_shaped + plan.n_patterned)


def expected(job: Job, explainer: LlmExplainer, features: Sequence[int]) -> Estimate:
    """What asking about the features comes to, estimated from a few of them."""
    if not features:
        return Estimate()
    config = explainer.config
    some = evidence_for(job, config, features[:: max(1, len(features) // 16)])
    asked = [explainer.request(e, config.contexts) for e in some]
    written = len(asked) * min(_LABEL_TOKENS, config.max_tokens) * CHARACTERS_PER_TOKEN
    return Estimate.of(asked, len(features) / len(asked), written)


def llm_explainer(job: Job, config: ExplainConfig) -> LlmExplainer:
    """InputError where no model is named."""
    if not config.model:
        raise InputError(f"the explainer {config.explainer!r} asks an LLM; set explain.model (and explain.base_url)")
    return LlmExplainer.named(config.explainer, config, config.seed, job.prompts)


def pending_features(job: Job, config: ExplainConfig, digest: str, job_harvest: int | None) -> list[int]:
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


def read_evidence(job: Job, features: Sequence[int], contexts: int) -> list[FeatureEvidence]:
    found = job.store.feature_evidence(job.dictionary_id, job.harvest_id, features, contexts)
    return [found[feature] for feature in features]


def evidence_for(job: Job, config: ExplainConfig, features: Sequence[int]) -> list[FeatureEvidence]:
    """What an LLM explainer may read of the features. Negatives of three tiers take turns in the store, so that as
    many of the hard ones as `contrastive` shows take up to three times as many."""
    most = max(config.contexts, 3 * config.negatives if config.explainer == "contrastive" else 0)
    return read_evidence(job, features, most)


async def ask_label(
    job: Job, explainer: LlmExplainer, client: LlmClient, evidence: FeatureEvidence,
    correction: Correction | None = None,
) -> Explanation:  # fmt: skip
    """The label of one feature, or the row that says why there is none; not written yet."""
    config = explainer.config
    digest = evidence_sha256(evidence, config.contexts)
    row = blank(job, evidence.feature, config, config.model, explainer.template.sha256, digest)
    lacks = explainer.missing(evidence)
    if lacks is not None:
        if config.explainer in METHODS_OF:
            return _lacking(job, config, evidence.feature)
        return dataclasses.replace(row, status="abstained", error=lacks)
    contexts = min(config.contexts, max(1, len(evidence.top)))
    asked = contexts
    replies: list[Reply] = []
    request = explainer.request(evidence, contexts, correction)
    replies.append(await client.ask(request))
    for _ in range(HALVINGS):
        if replies[-1].status != "ctx_too_long" or contexts == 1:
            break
        contexts = (contexts + 1) // 2
        shorter = explainer.request(evidence, contexts, correction)
        if shorter.sha256 == request.sha256:
            break
        request = shorter
        replies.append(await client.ask(request))
    label = explainer.read(replies[-1].text) if replies[-1].ok else Label(explanation_status(replies[-1].status))
    if label.status == "unparseable":
        replies.append(await client.ask(explainer.again(request, replies[-1].text, evidence)))
        second = explainer.read(replies[-1].text) if replies[-1].ok else Label(explanation_status(replies[-1].status))
        label = label if second.status in ("refused", "filtered", "truncated", "ctx_too_long") else second
    notes = [f"shown {contexts} contexts instead of {asked}, the prompt was too long"] if contexts < asked else []
    if label.status not in ("ok", "abstained"):
        notes.append(replies[-1].error or f"no label in the reply {replies[-1].text[:200]!r}")
    return dataclasses.replace(
        row,
        text=label.text,
        status=label.status,
        side=label.side,
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
