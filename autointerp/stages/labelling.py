"""The labelling stages, explaining and scoring, for one dictionary of an open store. Neither needs torch or a
tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from autointerp.ask.forecast import Forecast, budget_lines, forecast_lines
from autointerp.ask.job import NO_FAILURES, Job, Outcome
from autointerp.config import Config, EndpointConfig, ExplainConfig, ScoreConfig
from autointerp.errors import InputError, nearest
from autointerp.explain import explaining
from autointerp.explain.explaining import check_explainer
from autointerp.explain.explaining import methods_read as methods_read
from autointerp.explain.explaining import needs_promoted_tokens as needs_promoted_tokens
from autointerp.explain.revise import DRAFT
from autointerp.llm.budget import Budget, price_of
from autointerp.llm.capabilities import honours_json_schema, probe, takes_seed
from autointerp.llm.client import ClientCounts, LlmClient
from autointerp.records import VALUED_STATUSES, CallRecord, Explanation, ShapeFacts
from autointerp.rules import shape_labels
from autointerp.rules.labels import COMPILED, carries_rules
from autointerp.score import scoring
from autointerp.score.controls import AUTO, CONTROLS
from autointerp.score.kept_contexts import kept_by, shortfall
from autointerp.score.scorers import scorers
from autointerp.store.pace import measured_latency
from autointerp.store.rows import DictionaryRow
from autointerp.store.run_progress import written_by
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.terminal import Terminal


def check_control(control: str | None) -> None:
    """Raise InputError if there is no such control."""
    if control is not None and control not in CONTROLS:
        raise InputError(f"no control {control!r}; there are {', '.join(CONTROLS)}.{nearest(control, CONTROLS)}")


def describe_shape(facts: ShapeFacts) -> tuple[str | None, str | None]:
    """(label, rule) of a feature that its shape alone explains; each is None if it does not."""
    return shape_labels.describe(facts)


def dictionaries(store: Store, config: Config, dictionary: str | None) -> list[DictionaryRow]:
    """The dictionaries to work on. That is the named one, or else those of the configuration's [[sae]] tables that the
    store holds, or all in the store if there is no [[sae]] table. Raises InputError if none is found."""
    if dictionary is not None:
        return [store.dictionary(dictionary)]
    names = {sae.dictionary for sae in config.sae}
    held = store.dictionaries()
    found = [row for row in held if row.name in names] if names else held
    if not found:
        raise InputError(f"{store.path} holds no dictionary to label yet; run `autointerp harvest` first")
    return found


def compiled_name(explainer: str) -> str:
    """The explainer that writes the labels by `explainer` as rules. Raises InputError where they are rules already."""
    if carries_rules(explainer):
        raise InputError(f"labels by {explainer!r} carry rules already; compile labels in words, such as combined's")
    return f"{COMPILED}{explainer}"


def explainer_to_compile(store: Store, config: Config, dictionary: str | None) -> str:
    """The only explainer with labels that carry no rule. Raises InputError where there is none, or more than one."""
    rows = dictionaries(store, config, dictionary)
    names = sorted({name for row in rows for name in store.explainers_with_labels(row.dictionary_id, with_rule=False)})
    found = [name for name in names if not carries_rules(name) and name != DRAFT]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError("no label is there to compile: all carry rules, or there are none; run `autointerp explain`")
    raise InputError(f"labels by {', '.join(found)} could be compiled; choose one with --explainer")


@dataclass(frozen=True)
class Labelling:
    """The state that explaining and scoring share while one command runs."""

    config: Config
    store: Store
    run_id: str
    selection: Selection
    """The features to label."""
    terminal: Terminal
    prompts: Path | None = None
    """A folder of templates that replace the program's own."""

    @cached_property
    def budget(self) -> Budget:
        """The limits of what the command may spend on all dictionaries together."""
        return Budget(self.config.budget)

    def job(self, row: DictionaryRow) -> Job:
        """The work on one dictionary. Raises InputError if it has not been harvested yet."""
        harvest_id = self.store.current_harvest(row.dictionary_id)
        if harvest_id is None:
            raise InputError(f"{row.name} was not harvested yet; run `autointerp harvest` first")
        return Job(
            store=self.store,
            dictionary_id=row.dictionary_id,
            harvest_id=harvest_id,
            run_id=self.run_id,
            selection=self.selection,
            llm=self.config.llm,
            budget=self.budget,
            prompts=self.prompts,
            say=self.terminal.say,
        )


def explain(labelling: Labelling, row: DictionaryRow) -> int:
    """Labels the chosen features that have no label yet. Returns how many rows failed."""
    config, terminal, job = labelling.config, labelling.terminal, labelling.job(row)
    name = f"{row.name}: explaining with {config.explain.explainer}"
    with terminal.progress(name, None, "features") as update:
        outcome = asyncio.run(explaining.explain(_with_progress(job, update), config.explain, config.score))
    return _say_outcome(f"{row.name}: labels by {config.explain.explainer}", outcome, terminal)


def score(labelling: Labelling, row: DictionaryRow, control: str | None = None) -> int:
    """Scores the configured explainer's labels that have no score yet, then the configured controls of them; or only
    the texts that replace them under `control`. Tests each label against its controls. Returns how many rows failed."""
    explainer, store = labelling.config.explain.explainer, labelling.store
    check_explainer(explainer)
    job, config = labelling.job(row), labelling.config.score
    _warn_of_shortfall(labelling, job)
    failed = _score(labelling, row, job, config, control)
    for beside, of_control in [] if control is not None else scoring.controls_beside(job, explainer, config):
        failed += _score(labelling, row, job, of_control, beside, is_asked_for=False)
    n_tested = store.update_label_controls(row.dictionary_id)
    if n_tested:
        labelling.terminal.detail(f"{row.name}: {n_tested:,} labels compared with their controls")
    return failed


def _score(
    labelling: Labelling, row: DictionaryRow, job: Job, config: ScoreConfig, control: str | None,
    is_asked_for: bool = True,
) -> int:  # fmt: skip
    """One pass of the scorers. What nobody asked for by name is passed over in silence where nothing is pending."""
    explainer, terminal = labelling.config.explain.explainer, labelling.terminal
    what = explainer if control is None else f"{explainer} under the control {control}"
    with terminal.progress(f"{row.name}: scoring {what}", None, "labels") as update:
        outcome = asyncio.run(scoring.score(_with_progress(job, update), explainer, config, control))
    if not outcome.pending and not is_asked_for:
        return 0
    return _say_outcome(f"{row.name}: scores of {what}", outcome, terminal)


def forecast(
    labelling: Labelling,
    rows: Sequence[DictionaryRow],
    stages: Sequence[str] = ("explain", "score"),
    controls: Sequence[str | None] = (None,),
) -> list[Forecast]:
    """Prints what the stages would ask of the endpoint for these dictionaries, and which budget would end them early.
    If both stages are named, the second also scores the labels that the first would make. `controls`: what is scored;
    None for the labels, with the configured controls of them. Raises InputError where a budget in dollars lacks the
    price of a model that would be asked."""
    config, store, terminal = labelling.config, labelling.store, labelling.terminal
    check_explainer(config.explain.explainer)
    found: list[tuple[str, Forecast]] = []
    for row in rows:
        job = _priced(labelling.job(row))
        planned: list[Explanation] = []
        if "explain" in stages:
            found.append(("explain", explaining.forecast_explain(job, config.explain, config.score)))
            planned = explaining.planned_labels(job, config.explain, config.score)
        if "score" in stages:
            _warn_of_shortfall(labelling, job)
            beside = [name for name in config.score.controls if name != AUTO]  # those of auto cost nothing
            for name in dict.fromkeys([*controls, *(beside if None in controls else ())]):
                told = scoring.forecast_score(job, config.explain.explainer, config.score, name, planned)
                found.append(("score" if name == controls[0] else f"score under the control {name}", told))
    forecasts = [one for _, one in found]
    models = {model for one in forecasts for model, _, _ in one.calls_by_model}
    latencies = {model: measured_latency(store, model) for model in models}
    for name, one in found:
        for line in forecast_lines(name, one, config.llm, latencies):
            terminal.result(line)
    for line in budget_lines(forecasts, config.llm, config.budget, latencies):
        terminal.result(line)
    for model in sorted(models):
        price_of(model, config.llm.prices, config.budget)
    return forecasts


def _warn_of_shortfall(labelling: Labelling, job: Job) -> None:
    """Warns where the scores ask for more contexts than the job's harvest kept."""
    rows = {row.harvest_id: row.config for row in job.store.harvests(job.dictionary_id)}
    short = shortfall(labelling.config.score.contexts, kept_by(rows.get(job.harvest_id, {})))
    if short is not None:
        labelling.terminal.warn(short)


def short_of_contexts(config: Config) -> str | None:
    """What a harvest as configured would keep too few of for the scores; None where nothing is short."""
    return shortfall(config.score.contexts, kept_by({"harvest": asdict(config.harvest)}))


def _priced(job: Job) -> Job:
    """The job, with the batch API's prices if its calls would go through that API."""
    if not job.llm.batch:
        return job
    prices = {model: price.in_batch() for model, price in job.llm.prices.items()}
    return replace(job, llm=replace(job.llm, prices=prices))


def _with_progress(job: Job, update: Callable[[int, int | None], None]) -> Job:
    return replace(job, progress=lambda done, of: update(done, of))


def _say_outcome(what: str, outcome: Outcome, terminal: Terminal) -> int:
    if not outcome.pending:
        terminal.say(f"{what}: nothing pending")
        return 0
    counts = ", ".join(f"{n:,} {status}" for status, n in sorted(outcome.statuses.items()))
    method = f" (method {outcome.method})" if outcome.method else ""
    if outcome.waiting:
        waiting = f"{outcome.waiting:,} wait for `autointerp measure`, then `autointerp score` again"
        counts = f"{counts}, {waiting}" if counts else waiting
    terminal.say(f"{what}{method}: {counts}")
    for note in outcome.notes:
        terminal.detail(note)
    return outcome.failed


def say_summary(store: Store, run_id: str, command: str, seconds: float, terminal: Terminal) -> None:
    """Prints the last line of a command's log, however it ended: what it has labelled, scored and spent."""
    done = written_by(store, run_id)
    labelled, spent = done.labels["ok"], done.spent
    scored = sum(done.scores[status] for status in VALUED_STATUSES)
    failed = sum(n for status, n in (done.labels + done.scores).items() if status not in NO_FAILURES)
    terminal.say(
        f"{command}: {labelled:,} labelled, {scored:,} scored, {failed:,} failed; {spent.requests:,} requests, "
        f"{spent.input_tokens:,} input and {spent.output_tokens:,} output tokens, ${spent.usd:.4f}, {seconds:.0f} s",
        event="summary", command=command, labelled=labelled, scored=scored, failed=failed, requests=spent.requests,
        input_tokens=spent.input_tokens, output_tokens=spent.output_tokens, cost_usd=round(spent.usd, 6),
        seconds=round(seconds, 3),
    )  # fmt: skip


def show_in_labels(config: Config, store: Store, row: DictionaryRow) -> None:
    """Makes the view `labels` show the configured explainer, and the first configured scorer that scores labels."""
    label_free = {scorer.name for scorer in scorers() if not scorer.reads_label}
    shown = next((name for name in config.score.scorers if name not in label_free), None)
    store.set_label_choice(row.dictionary_id, config.explain.explainer, shown)


async def describe_endpoint(config: Config, endpoint: EndpointConfig) -> str:
    """Says in words what the endpoint supports. This takes a few short calls, which cost like any others."""
    async with LlmClient(endpoint, config.llm, Budget(config.budget), Unrecorded(), "doctor") as client:
        found = await probe(client)
        in_json = found.chat and await honours_json_schema(client)
        with_seed = isinstance(endpoint, ExplainConfig) and (endpoint.seed > 0 or endpoint.explainer == "best_of_n")
        seed_refused = found.chat and with_seed and not await takes_seed(client)
    methods = ", ".join(found.methods) or "none"
    schemas = "honoured" if in_json else "not honoured, so labels are read from plain text"
    notes = "".join(f"; {note}" for note in found.notes)
    if seed_refused:
        notes += "; it refuses `seed`, so labels with a seed are drawn by the temperature alone"
    found_to = f"simulation methods: {methods}; JSON schemas: {schemas}{notes}; {_spent(client.counts)}"
    return f"{endpoint.model} at {endpoint.address} answers; {found_to}"


def _spent(counts: ClientCounts) -> str:
    tokens = f"{counts.input_tokens:,} input and {counts.output_tokens:,} output tokens"
    return f"this took {counts.sent} calls, {tokens}, ${counts.cost_usd:.4f}"


class Unrecorded:
    """A call ledger that keeps nothing, for the calls of a check, which belong to no store."""

    def find(self, request_sha256: str, sample: int) -> CallRecord | None:
        return None

    async def record(self, record: CallRecord) -> None:
        return None
