"""The stages that label: explaining and scoring, for one dictionary of an open store. Neither torch nor a tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from autointerp.ask.forecast import Forecast, budget_lines, forecast_lines
from autointerp.ask.job import NO_FAILURES, Job, Outcome
from autointerp.config import Config, EndpointConfig, ExplainConfig
from autointerp.errors import InputError, nearest
from autointerp.explain import composites
from autointerp.explain.explaining import check_explainer
from autointerp.llm.budget import Budget as Budget
from autointerp.llm.capabilities import honours_json_schema, probe
from autointerp.llm.client import LlmClient
from autointerp.records import CallRecord, Explanation, ShapeFacts
from autointerp.rules import shape_labels
from autointerp.score import scoring
from autointerp.score.controls import CONTROLS
from autointerp.store.pace import measured_latency
from autointerp.store.rows import DictionaryRow
from autointerp.store.run_progress import written_by
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.terminal import Terminal

RANDOM_MODEL = "random_model"
"""The control whose labels are those of another dictionary: the same SAE trained on the same model with random
weights."""


def check_control(control: str | None) -> None:
    """InputError where there is no such control."""
    known = tuple(dict.fromkeys((*CONTROLS, RANDOM_MODEL)))
    if control is not None and control not in known:
        raise InputError(f"no control {control!r}; there are {', '.join(known)}.{nearest(control, known)}")


METHODS_READ = {
    "pruned": ("pruning",),
    "token_change": ("token_change",),
    "mutual_information": ("mutual_information",),
}
"""Evidence methods without which an explainer has nothing to read."""


def methods_read(config: ExplainConfig) -> tuple[str, ...]:
    """The evidence methods that the configured explainer needs."""
    composed = config.base if config.explainer in ("best_of_n", "revise") else config.explainer
    return METHODS_READ.get(composed, ())


def describe_shape(facts: ShapeFacts) -> tuple[str | None, str | None]:
    """(label, rule) of a feature whose shape alone explains it; None where it does not."""
    return shape_labels.describe(facts)


def dictionaries(store: Store, config: Config, dictionary: str | None) -> list[DictionaryRow]:
    """Those to work on: the one named, else those of the configuration's [[sae]] tables that the store holds, else
    (a configuration without any) all of them."""
    if dictionary is not None:
        return [store.dictionary(dictionary)]
    names = {sae.dictionary for sae in config.sae}
    held = store.dictionaries()
    found = [row for row in held if row.name in names] if names else held
    if not found:
        raise InputError(f"{store.path} holds no dictionary to label yet; run `autointerp harvest` first")
    return found


def _job(
    config: Config, store: Store, row: DictionaryRow, selection: Selection, run_id: str, budget: Budget,
    prompts: Path | None, say: Callable[[str], None],
) -> Job:  # fmt: skip
    harvest_id = store.current_harvest(row.dictionary_id)
    if harvest_id is None:
        raise InputError(f"{row.name} was not harvested yet; run `autointerp harvest` first")
    return Job(
        store=store,
        dictionary_id=row.dictionary_id,
        harvest_id=harvest_id,
        run_id=run_id,
        selection=selection,
        llm=config.llm,
        budget=budget,
        prompts=prompts,
        say=say,
    )


def explain(
    config: Config,
    store: Store,
    row: DictionaryRow,
    selection: Selection,
    run_id: str,
    terminal: Terminal,
    dry_run: bool,
    budget: Budget | None = None,
    prompts: Path | None = None,
) -> int:
    """Describe what has no description; how many rows failed. `prompts`: a folder of templates instead of the
    program's own."""
    job = _job(config, store, row, selection, run_id, budget or Budget(config.budget), prompts, terminal.say)
    if dry_run:
        forecast(config, store, [row], selection, terminal, ("explain",), prompts=prompts)
        return 0
    name = f"{row.name}: explaining with {config.explain.explainer}"
    with terminal.progress(name, None, "features") as update:
        outcome = asyncio.run(composites.explain(_with_progress(job, update), config.explain, config.score))
    return _say_outcome(f"{row.name}: labels by {config.explain.explainer}", outcome, terminal)


def score(
    config: Config,
    store: Store,
    row: DictionaryRow,
    selection: Selection,
    run_id: str,
    terminal: Terminal,
    dry_run: bool,
    budget: Budget | None = None,
    control: str | None = None,
    prompts: Path | None = None,
) -> int:
    """Score the configured explainer's descriptions that have no score, or under a `control` what stands in for them;
    how many rows failed."""
    check_explainer(config.explain.explainer)
    job = _job(config, store, row, selection, run_id, budget or Budget(config.budget), prompts, terminal.say)
    explainer = config.explain.explainer
    if dry_run:
        forecast(config, store, [row], selection, terminal, ("score",), control, prompts)
        return 0
    what = explainer if control is None else f"{explainer} under the control {control}"
    with terminal.progress(f"{row.name}: scoring {what}", None, "labels") as update:
        outcome = asyncio.run(scoring.score(_with_progress(job, update), explainer, config.score, control))
    return _say_outcome(f"{row.name}: scores of {what}", outcome, terminal)


def forecast(
    config: Config, store: Store, rows: Sequence[DictionaryRow], selection: Selection, terminal: Terminal,
    stages: Sequence[str] = ("explain", "score"), control: str | None = None, prompts: Path | None = None,
) -> list[Forecast]:  # fmt: skip
    """Print what the stages would ask of the endpoint for these dictionaries, and which budget would end them early.
    Where both stages are named, the labels that the first would make are among those that the second scores."""
    found: list[tuple[str, Forecast]] = []
    for row in rows:
        job = _priced(_job(config, store, row, selection, "dry-run", Budget(config.budget), prompts, terminal.say))
        planned: list[Explanation] = []
        if "explain" in stages:
            found.append(("explain", composites.forecast_explain(job, config.explain, config.score)))
            planned = composites.planned_labels(job, config.explain, config.score)
        if "score" in stages:
            told = scoring.forecast_score(job, config.explain.explainer, config.score, control, planned)
            found.append(("score", told))
    forecasts = [one for _, one in found]
    models = {model for one in forecasts for model, _, _ in one.calls_by_model}
    latencies = {model: measured_latency(store, model) for model in models}
    for name, one in found:
        for line in forecast_lines(name, one, config.llm, latencies):
            terminal.result(line)
    for line in budget_lines(forecasts, config.llm, config.budget, latencies):
        terminal.result(line)
    return forecasts


def _priced(job: Job) -> Job:
    """With the batch API's prices where the calls would go through it."""
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
    """One last line for whoever reads the log of a job: what the command has labelled, scored and spent, however it
    ended."""
    done = written_by(store, run_id)
    labelled, scored, spent = done.labels["ok"], done.scores["ok"], done.spent
    failed = sum(n for status, n in (done.labels + done.scores).items() if status not in NO_FAILURES)
    terminal.say(
        f"{command}: {labelled:,} labelled, {scored:,} scored, {failed:,} failed; {spent.requests:,} requests, "
        f"{spent.input_tokens:,} input and {spent.output_tokens:,} output tokens, ${spent.usd:.4f}, {seconds:.0f} s",
        event="summary", command=command, labelled=labelled, scored=scored, failed=failed, requests=spent.requests,
        input_tokens=spent.input_tokens, output_tokens=spent.output_tokens, cost_usd=round(spent.usd, 6),
        seconds=round(seconds, 3),
    )  # fmt: skip


def show_in_labels(config: Config, store: Store, row: DictionaryRow) -> None:
    """Make the configured explainer, and the first configured scorer that scores labels, those that the view `labels`
    shows."""
    scorer = next((s for s in config.score.scorers if s not in scoring.LABEL_FREE), None)
    store.set_label_choice(row.dictionary_id, config.explain.explainer, scorer)


async def describe_endpoint(config: Config, endpoint: EndpointConfig) -> str:
    """What the endpoint was found to support: a few short calls, which are paid for like any others."""
    async with LlmClient(endpoint, config.llm, Budget(config.budget), Unrecorded(), "doctor") as client:
        found = await probe(client)
        in_json = found.chat and await honours_json_schema(client)
    methods = ", ".join(found.methods) or "none"
    schemas = "honoured" if in_json else "not honoured, so labels are read from plain text"
    notes = "".join(f"; {note}" for note in found.notes)
    found_to = f"simulation methods: {methods}; JSON schemas: {schemas}{notes}"
    return f"{endpoint.model} at {endpoint.base_url} answers; {found_to}"


class Unrecorded:
    """A call ledger that keeps nothing: a check-up is no part of any store."""

    def find(self, request_sha256: str, sample: int) -> CallRecord | None:
        return None

    async def record(self, record: CallRecord) -> None:
        return None
