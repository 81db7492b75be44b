"""Labels made of other labels. Each part is an ordinary explanation row under its own explainer's name, used again if
it is there; what is made of them is a row of its own that names them in `derived_from`. A run that was stopped goes on
where it was, and pays for nothing twice.

    concat     the label by `contexts` and the one by `vocab_projection` in one sentence: what the feature responds to,
               then what it leads to. No call of its own
    best_of_n  the best of several labels by [explain] base, by their score on the select part. Sample i has seed
               `seed + i`, which is sent; the first keeps the configured temperature, the others have at least
               TEMPERATURE, or they would all be the same. Chosen on select, so that the score on report is not the
               best of several draws (the winner's curse)
    revise     the label by [explain] base, rewritten in view of the contexts of the select part on which it misled the
               judge. Where there are none its text is kept, without a call

Scores of candidates are rows of part 'select' (see validation.py). A score on report is taken later, by `score`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from autointerp.ask.forecast import Estimate, Forecast
from autointerp.ask.job import Blocks, Job, Outcome, run_pool
from autointerp.config import EndpointConfig, ExplainConfig, ScoreConfig
from autointerp.errors import InputError
from autointerp.explain import explaining
from autointerp.explain.explainers import LLM_EXPLAINERS, SIDES, Correction, LlmExplainer
from autointerp.explain.explaining import COMPOSITES, METHODS_OF, ask_label, ask_labels, check_explainer
from autointerp.explain.label_replies import MAX_LABEL, clean_label, shortened
from autointerp.explain.validation import Validator, mistakes
from autointerp.llm.client import LlmClient
from autointerp.records import Context, Explanation, FeatureEvidence, Score
from autointerp.rules.labels import RULE_EXPLAINERS, blank
from autointerp.store import Selection
from autointerp.store.group_writer import GroupWriter

CONCAT, BEST_OF_N, REVISE = COMPOSITES
TEMPERATURE = 0.7
"""Of all samples but the first, at least."""
JOINT = "; then leads to "
_VERSION = 1
"""Another way to make the same composite is another number here."""
_LABEL_CHARACTERS = 80
"""Of a label that is not written yet, for forecasts."""
_BLOCK = 512
"""Features that are taken through all steps together; more where a batch holds more."""


async def explain(job: Job, config: ExplainConfig, score_config: ScoreConfig | None = None) -> Outcome:
    """Labels for the chosen features that have none yet, by whatever explainer is configured.

    `score_config` says how candidates are validated; best_of_n and revise need it. Raises what explaining.explain
    raises, and InputError where the base or the validator does not fit.
    """
    check_explainer(config.explainer)
    if config.explainer not in COMPOSITES:
        return await explaining.explain(job, config)
    recipe = _Recipe.of(job, config, score_config)
    plan = explaining.make_plan(job, config, recipe.sha256)
    if plan.ask:
        recipe.check_evidence(job)
    outcome = explaining.begin(job, plan)
    if not plan.ask:
        return outcome
    async with GroupWriter(job.store) as writer, _clients(job, config, recipe.validator, writer) as clients:
        kitchen = _Kitchen(replace(job, progress=None), recipe, writer, *clients)
        size = max(_BLOCK, job.in_flight)
        for start in range(0, len(plan.ask), size):
            rows = await kitchen.make(plan.ask[start : start + size])
            await asyncio.gather(*(writer.explanation(row) for row in rows))
            outcome.statuses.update(row.status for row in rows)
            job.report(outcome.done, outcome.pending)
    return outcome


@asynccontextmanager
async def _clients(
    job: Job, config: ExplainConfig, validator: Validator | None, writer: GroupWriter
) -> AsyncIterator[tuple[LlmClient, LlmClient]]:
    """The explainer's client and the validator's: one and the same where they ask the same model at the same place,
    so that its rate limit holds."""

    def where(endpoint: EndpointConfig) -> tuple[str, str, str]:
        return endpoint.base_url, endpoint.api_key_env, endpoint.model

    async with job.client(config, writer) as client:
        if validator is None or where(config) == where(validator.config):
            yield client, client
            return
        async with job.client(validator.config, writer) as judge:
            yield client, judge


@dataclass(frozen=True)
class _Recipe:
    """What a composite is made of. `parts` are the explainers of its ordinary labels."""

    config: ExplainConfig
    parts: tuple[LlmExplainer, ...]
    reviser: LlmExplainer | None
    validator: Validator | None
    sha256: str
    """Of all that the composite depends on; stands for the template."""

    @classmethod
    def of(cls, job: Job, config: ExplainConfig, score_config: ScoreConfig | None) -> _Recipe:
        if config.explainer == CONCAT:
            configs = [replace(config, explainer=name) for name in ("contexts", "vocab_projection")]
        else:
            _check_base(config)
            n = config.samples if config.explainer == BEST_OF_N else 1
            configs = [_sample(config, i) for i in range(n)]
        parts = tuple(explaining.llm_explainer(job, part) for part in configs)
        reviser = LlmExplainer.named(REVISE, config, config.seed, job.prompts) if config.explainer == REVISE else None
        validator = None
        if config.explainer != CONCAT:
            validator = Validator.of(job, config.validator, score_config or ScoreConfig())
        settings = [
            _VERSION, config.explainer,
            [[p.name, p.template.sha256, p.seed, p.config.temperature] for p in parts],
            [reviser.template.sha256, config.mistakes] if reviser else None,
            validator.settings() if validator else None,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        return cls(config, parts, reviser, validator, digest)

    def check_evidence(self, job: Job) -> None:
        """InputError where none of the chosen features has what the only base reads."""
        if self.config.base in METHODS_OF and self.config.explainer != CONCAT:
            explaining.make_plan(job, self.parts[0].config, self.parts[0].template.sha256)


def _check_base(config: ExplainConfig) -> None:
    fitting = [name for name in LLM_EXPLAINERS if SIDES.get(name) != "output"]
    if config.base not in fitting:
        raise InputError(
            f"explain.base is {config.base!r}, but {config.explainer} judges labels by where they say that the feature "
            f"is active; choose one of {', '.join(fitting)}"
        )


def _sample(config: ExplainConfig, i: int) -> ExplainConfig:
    """How the i-th candidate is asked for."""
    temperature = config.temperature
    if i > 0 and temperature is not None:
        temperature = max(temperature, TEMPERATURE)
    return replace(config, explainer=config.base, seed=config.seed + i, temperature=temperature)


@dataclass
class _Kitchen:
    """Makes the composite rows of a block of features."""

    job: Job
    recipe: _Recipe
    writer: GroupWriter
    client: LlmClient
    judge: LlmClient

    async def make(self, features: Sequence[int]) -> list[Explanation]:
        made: dict[str, Callable[[Sequence[int]], Awaitable[list[Explanation]]]] = {
            CONCAT: self._concat, BEST_OF_N: self._best_of_n, REVISE: self._revise,
        }  # fmt: skip
        return await made[self.recipe.config.explainer](features)

    async def _labels(self, explainer: LlmExplainer, features: Sequence[int]) -> dict[int, Explanation]:
        """An ordinary row for every feature: the one there is, or a new one."""
        config = explainer.config
        held = self.job.store.explanations_of(self.job.dictionary_id, features)
        found = {
            row.feature: row
            for rows in held.values()
            for row in rows
            if (row.explainer, row.model, row.template_sha256, row.seed)
            == (config.explainer, config.model, explainer.template.sha256, config.seed)
            and row.status != "gave_up"
        }
        missing = [feature for feature in features if feature not in found]
        if missing:
            explainer = await explaining.in_reply_form(explainer, self.client)

            def told(row: Explanation) -> None:
                found[row.feature] = row

            await ask_labels(self.job, explainer, self.client, self.writer, missing, told)
        return found

    async def _scores(self, labels: Sequence[Explanation]) -> dict[str, Score]:
        validator = self.recipe.validator
        assert validator is not None
        return await validator.scores([e for e in labels if e.status == "ok"], self.judge, self.writer)

    def _row(self, parts: Sequence[Explanation], digest_of: Sequence[object] = ()) -> Explanation:
        """The row of a composite of these parts, without a text so far."""
        config = self.recipe.config
        ids = [part.explanation_id for part in parts]
        digest = hashlib.sha256(json.dumps([ids, list(digest_of)]).encode()).hexdigest()
        row = blank(self.job, parts[0].feature, config, config.model, self.recipe.sha256, digest)
        return replace(row, derived_from=ids)

    # --- concat -----------------------------------------------------------------------------------------------------

    async def _concat(self, features: Sequence[int]) -> list[Explanation]:
        inputs, outputs = [await self._labels(part, features) for part in self.recipe.parts]
        return [joined(self._row([inputs[f], outputs[f]]), inputs[f], outputs[f]) for f in features]

    # --- best of n --------------------------------------------------------------------------------------------------

    async def _best_of_n(self, features: Sequence[int]) -> list[Explanation]:
        # The last sample first: the latest row of an explainer is the one that `score` takes, and that is to be the
        # first sample, at the configured seed and temperature.
        asked = [await self._labels(part, features) for part in reversed(self.recipe.parts)]
        candidates = {f: [labels[f] for labels in reversed(asked)] for f in features}
        scores = await self._scores([e for f in features for e in candidates[f]])
        return [best(self._row(candidates[f]), candidates[f], scores) for f in features]

    # --- revise -----------------------------------------------------------------------------------------------------

    async def _revise(self, features: Sequence[int]) -> list[Explanation]:
        bases = await self._labels(self.recipe.parts[0], features)
        scores = await self._scores(list(bases.values()))
        rows: dict[int, Explanation] = {}
        wrong: dict[int, tuple[list[Context], list[Context]]] = {}
        every = dict.fromkeys(("top", "sampled", "negative"))
        for start in range(0, len(features), 64):
            block = features[start : start + 64]
            held = self.job.store.contexts_of(self.job.dictionary_id, self.job.harvest_id, block, "select", every)
            for f in block:
                score = scores.get(bases[f].explanation_id)
                found = ([], []) if score is None else mistakes(score, held[f], self.recipe.config.mistakes)
                if bases[f].status == "ok" and any(found):
                    wrong[f] = found
                else:
                    rows[f] = kept(self._row([bases[f]]), bases[f], score)
        if wrong:
            await self._rewrite(bases, wrong, rows)
        return [rows[f] for f in features]

    async def _rewrite(
        self, bases: Mapping[int, Explanation], wrong: Mapping[int, tuple[list[Context], list[Context]]],
        rows: dict[int, Explanation],
    ) -> None:  # fmt: skip
        assert self.recipe.reviser is not None
        reviser = await explaining.in_reply_form(self.recipe.reviser, self.client)

        async def work(evidence: FeatureEvidence) -> None:
            base, (missed, alarms) = bases[evidence.feature], wrong[evidence.feature]
            told = await ask_label(
                self.job, reviser, self.client, evidence, Correction(base.text or "", missed, alarms)
            )
            row = self._row([base], [c.context_id for c in (*missed, *alarms)])
            rows[evidence.feature] = replace(
                row, text=told.text, status=told.status, error=told.error, side=base.side if told.text else None,
                input_tokens=told.input_tokens, output_tokens=told.output_tokens, cost_usd=told.cost_usd,
            )  # fmt: skip

        blocks = Blocks(list(wrong), lambda block: explaining.evidence_for(self.job, reviser.config, block))
        await run_pool(blocks, min(self.job.in_flight, len(wrong)), work, self.client.stop)


# --- rows from rows -------------------------------------------------------------------------------------------------


def joined(row: Explanation, input_label: Explanation, output_label: Explanation) -> Explanation:
    """`row` with the two texts in one sentence, or the one that there is."""
    usable = [e for e in (input_label, output_label) if e.text is not None]
    failed = [e for e in (input_label, output_label) if e.status not in ("ok", "abstained")]
    if any(e.status == "gave_up" for e in failed) or (failed and not usable):
        worst = max(failed, key=lambda e: e.status == "gave_up")
        return replace(row, status=worst.status, error=f"{worst.explainer}: {worst.error or worst.status}")
    if not usable:
        return replace(row, status="abstained", error=input_label.error or output_label.error)
    note = "; ".join(f"{e.explainer}: {e.status}" for e in failed) or None
    if len(usable) == 1:
        return replace(row, text=usable[0].text, status="ok", side=usable[0].side, error=note)
    text = clean_label(join_texts(input_label.text or "", output_label.text or ""))
    return replace(row, text=text, status="ok", side="both")


def join_texts(first: str, second: str) -> str:
    """Both texts with JOINT between them, at most MAX_LABEL characters: the longer one gives way."""
    room = MAX_LABEL - len(JOINT)
    first, second = first.rstrip(". "), second.rstrip(". ")
    half = room // 2
    first = shortened(first, max(half, room - len(second)))
    return f"{first}{JOINT}{shortened(second, room - len(first))}"


def best(row: Explanation, candidates: Sequence[Explanation], scores: Mapping[str, Score]) -> Explanation:
    """`row` with the text of the candidate with the best score, of several the first. Where none has a score the first
    candidate with a text, and `error` says so. Where the endpoint gave up on one of them there is no choice yet."""
    usable = [e for e in candidates if e.text is not None]
    given_up = next((e for e in candidates if e.status == "gave_up"), None)
    if given_up is not None:
        return replace(row, status="gave_up", error=given_up.error)
    if not usable:
        first = next((e for e in candidates if e.status == "abstained"), candidates[0])
        return replace(row, status=first.status, error=first.error)
    if any(e.explanation_id not in scores for e in usable):
        return replace(row, status="gave_up", error="the endpoint gave up on the score of a candidate")
    ranked = [(scores[e.explanation_id].value, e) for e in usable]
    scored = [(value, e) for value, e in ranked if value is not None]
    winner = max(scored, key=lambda pair: pair[0])[1] if scored else usable[0]
    note = None if scored else f"chosen unseen, no candidate has a score: {scores[winner.explanation_id].status}"
    return replace(row, text=winner.text, status="ok", side=winner.side, error=note)


def kept(row: Explanation, base: Explanation, score: Score | None) -> Explanation:
    """`row` with the base's text, or with what became of the base."""
    if base.status != "ok":
        return replace(row, status=base.status, error=base.error)
    if score is None:
        return replace(row, status="gave_up", error="the endpoint gave up on the score of the label")
    note = None if score.value is not None else f"not revised, the label has no score: {score.status}"
    return replace(row, text=base.text, status="ok", side=base.side, error=note)


# --- forecast -------------------------------------------------------------------------------------------------------


def forecast_explain(job: Job, config: ExplainConfig, score_config: ScoreConfig | None = None) -> Forecast:
    """Calls and tokens that `explain` would need now, at one call for each label and each question of a validation.
    Of `revise` as if every label had mistakes. The price is that of all calls, None where one model has none."""
    check_explainer(config.explainer)
    if config.explainer not in COMPOSITES:
        return explaining.forecast_explain(job, config)
    recipe = _Recipe.of(job, config, score_config)
    plan = explaining.make_plan(job, config, recipe.sha256)
    parts: list[tuple[str, Estimate]] = []
    labels: list[Explanation] = []
    for part in recipe.parts:
        chosen = set(plan.ask)
        pending = explaining.pending_features(
            replace(job, selection=Selection()), part.config, part.template.sha256, job_harvest=None
        )
        parts.append((config.model, explaining.expected(job, part, [f for f in pending if f in chosen])))
        labels += _placeholders(job, part.config, part.template.sha256, plan.ask)
    if recipe.reviser is not None:
        # The correction shows as many contexts again as there are mistakes.
        found = explaining.expected(job, recipe.parts[0], plan.ask)
        more = 1 + config.mistakes / max(1, config.contexts)
        parts.append((config.model, replace(found, read=more * found.read)))
    if recipe.validator is not None:
        parts.append((recipe.validator.config.model, recipe.validator.forecast(labels)))
    return Forecast.of(job.llm.prices, plan.size, parts, plan.n_shaped + plan.n_patterned)


def planned_labels(job: Job, config: ExplainConfig, score_config: ScoreConfig | None = None) -> list[Explanation]:
    """Stand-ins for the labels that `explain` would make now, for a forecast of what scoring them takes: those by shape
    or rule as they will be, of the others only the length is guessed."""
    check_explainer(config.explainer)
    if config.explainer in RULE_EXPLAINERS:
        digest = explaining.rule_sha256(config.explainer)
        pending = explaining.pending_features(job, config, digest, job_harvest=job.harvest_id)
        return _placeholders(job, config, digest, pending)
    if config.explainer in COMPOSITES:
        digest = _Recipe.of(job, config, score_config).sha256
    else:
        digest = explaining.llm_explainer(job, config).template.sha256
    plan = explaining.make_plan(job, config, digest)
    return [*(row for row in plan.rows if row.status == "ok"), *_placeholders(job, config, digest, plan.ask)]


def _placeholders(job: Job, config: ExplainConfig, digest: str, features: Sequence[int]) -> list[Explanation]:
    rows = [blank(job, feature, config, config.model, digest, "") for feature in features]
    return [replace(row, text="x" * _LABEL_CHARACTERS, status="ok") for row in rows]
