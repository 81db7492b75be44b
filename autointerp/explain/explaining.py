"""Labels for many features, by whichever explainer is configured.

Every label is a row, every failure too. Rows that exist are skipped, calls that are in the ledger are not sent again,
so a run that was stopped goes on where it was.
"""

from __future__ import annotations

from autointerp.ask.forecast import Forecast
from autointerp.ask.job import Job, Outcome
from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.explain.composite import expected_labels
from autointerp.explain.evidence_sections import HARVESTED, needed_methods
from autointerp.explain.explainer import ExplainRun, OpenRun
from autointerp.explain.explainers import explainer_named, explainers, explainers_with
from autointerp.explain.plan import Plan, check_parts, make_plan
from autointerp.records import Explanation
from autointerp.store.same_labels import count_same_labels, flagged_labels


def check_explainer(name: str) -> None:
    """Raises InputError where there is no explainer of that name."""
    explainer_named(name)


def methods_read(config: ExplainConfig) -> tuple[str, ...]:
    """The evidence methods that are to be run on features before the configured explainer has anything to read.

    None for an explainer that does not exist: `explain` says so, and a harvest does not fail for it.
    """
    known = {one.name: one for one in explainers()}
    first = known.get(config.explainer)
    names = () if first is None else (first.name, *first.made_of(config))
    methods = [m for name in names if name in known for m in needed_methods(known[name].reads)]
    return tuple(m for m in dict.fromkeys(methods) if m not in HARVESTED)


def needs_promoted_tokens(config: ExplainConfig) -> bool:
    """Whether the configured explainer has nothing to read where a harvest has no promoted tokens."""
    reads = next((one.reads for one in explainers() if one.name == config.explainer), ())
    methods = needed_methods(reads)
    return bool(methods) and set(methods) <= HARVESTED


async def explain(job: Job, config: ExplainConfig, score_config: ScoreConfig | None = None) -> Outcome:
    """Labels for the chosen features that have none yet. `score_config` says how candidates are validated: best_of_n
    and revise need it.

    Raises InputError (unknown explainer, settings that do not fit, none of the features has the evidence that it
    reads) and whatever ends a run of the client: StoppedError, CredentialsError, an unreachable endpoint. What was done
    until then is kept.
    """
    run = _checked(job, config, score_config)
    plan = make_plan(run)
    if plan.ask:
        check_parts(run)
    outcome = _begin(job, plan)
    try:
        if plan.ask:
            async with OpenRun(run, outcome) as work:
                await run.explainer.explain(work, plan.ask)
    finally:  # what was written before a run was stopped counts too
        if outcome.done:
            count_same_labels(job.store, job.dictionary_id)
    outcome.notes += tuple(_flag_notes(job, config.explainer))
    return outcome


def _flag_notes(job: Job, explainer: str) -> list[str]:
    """A line for each flag that labels of the explainer that ran have."""
    flagged = flagged_labels(job.store, job.dictionary_id, explainer)
    return [f"{n:,} labels are {flag}: many features have them word for word" for flag, n in flagged.items()]


def _checked(job: Job, config: ExplainConfig, score_config: ScoreConfig | None) -> ExplainRun:
    run = ExplainRun(job, config, score_config or ScoreConfig(), explainers_with(config.explainer))
    run.explainer.check(run)
    return run


def check_settings(job: Job, config: ExplainConfig, score_config: ScoreConfig | None = None) -> bool:
    """Whether the configured explainer asks an LLM. Raises InputError where `explain` would refuse the settings, or
    where a template cannot be read. The store may be empty."""
    run = _checked(job, config, score_config)
    for name in run.explainer.made_of(config):
        explainer_named(name)
    run.explainer.digest(run)
    return not run.explainer.is_free


def _begin(job: Job, plan: Plan) -> Outcome:
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


def forecast_explain(job: Job, config: ExplainConfig, score_config: ScoreConfig | None = None) -> Forecast:
    """Calls and tokens that `explain` would need now, at one call for each label and each question of a validation.
    The price is that of all calls, None where one of the models has none."""
    run = _checked(job, config, score_config)
    plan = make_plan(run)
    parts = run.explainer.estimate(run, plan.ask)
    return Forecast.of(job.llm.prices, plan.size, parts, plan.n_free)


def planned_labels(job: Job, config: ExplainConfig, score_config: ScoreConfig | None = None) -> list[Explanation]:
    """Stand-ins for the labels that `explain` would make now, for a forecast of what scoring them takes: labels by
    shape or by `patterns` as they will be, while of the others only the length is guessed."""
    run = _checked(job, config, score_config)
    plan = make_plan(run)
    made = [row for row in plan.rows if row.status == "ok"]
    return [*made, *expected_labels(run, run.explainer.digest(run), plan.ask)]
