"""Scores for many labels: by the label's own rule at once, by an LLM simulator through a fixed pool of workers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autointerp.config import ScoreConfig
from autointerp.errors import InputError, nearest
from autointerp.interpret.explain_run import (
    CHARACTERS_PER_TOKEN,
    RULE_EXPLAINERS,
    check_explainer,
    prompt_characters,
)
from autointerp.interpret.patterns import RULE_VERSION, Rule
from autointerp.interpret.runner import BLOCK, Blocks, Forecast, Job, Outcome, StoreLedger, run_pool
from autointerp.interpret.scale import scaled
from autointerp.interpret.scoring import CALIBRATED, RANDOM_ONLY, SIMULATION, Answer, Identity, Part, score_rows
from autointerp.interpret.simulation import (
    LLM_METHODS,
    RULE,
    ReplyError,
    Simulator,
    choose_contexts,
    template_of,
)
from autointerp.llm.budget import cost_usd
from autointerp.llm.capabilities import Capabilities, probe
from autointerp.llm.client import LlmClient
from autointerp.records import Context, Explanation, Prediction, Score, stable_id
from autointerp.store import Selection
from autointerp.store.group_writer import GroupWriter

SCORERS = (SIMULATION, RANDOM_ONLY, CALIBRATED)
CONTROLS = ("shuffled", "empty")
RULE_SHA256 = hashlib.sha256(f"rule {RULE_VERSION}".encode()).hexdigest()
"""Stands for the template where no prompt is involved."""
HALVINGS = 2


@dataclass(frozen=True)
class Labelled:
    """One label and the held-out contexts it is scored on."""

    explanation: Explanation
    told: Explanation | None
    """Whose label or rule the predictions are made from: its own, another's ('shuffled'), none's ('empty')."""
    max_activation: float
    report: list[Context]
    select: list[Context] | None
    """Only where a calibration is asked for."""


async def score(job: Job, explainer: str, config: ScoreConfig, control: str | None = None) -> Outcome:
    """Scores for the chosen features' labels by `explainer` that have none yet.

    `control` scores something else under the same label's name: another feature's label ('shuffled'), or an empty one
    ('empty'). Raises InputError (unknown explainer, scorer or control; no model named; a method that the endpoint does
    not support) and whatever ends a run of the client. What was done until then is kept.
    """
    _check(explainer, config, control)
    if by_rule(explainer, config):
        return score_by_rule(job, explainer, config, control)
    pending = _pending_for_llm(job, explainer, config, control)
    if not pending:
        return Outcome()
    async with GroupWriter(job.store) as writer:
        ledger = StoreLedger(job.store, writer)
        async with LlmClient(config, job.llm, job.budget, ledger, job.run_id) as client:
            found = await probe(client)
            method = choose_method(config, found)
            simulator = Simulator.of(method, config, found, config.seed, job.prompts)
            outcome = Outcome(pending=len(pending), method=method, notes=found.notes)

            async def work(item: Labelled) -> None:
                report = await _ask_all(job, simulator, client, item, item.report)
                select = None if item.select is None else await _ask_all(job, simulator, client, item, item.select)
                identity = Identity(
                    item.explanation, job.harvest_id, method, control, config.model, simulator.template.sha256,
                    config.seed,
                )  # fmt: skip
                rows = score_rows(identity, report, select, config.bootstrap)
                # The writer keeps the order: the headline, without which a label counts as not scored, is never
                # committed before the others.
                await asyncio.gather(*(writer.score(row) for row in rows))
                _note(job, outcome, rows[-1])

            # Twice as many as fill the connections: a label waits for commits too, and the client bounds the calls.
            workers = 2 + 2 * job.llm.max_connections // max(1, 3 * config.contexts)
            blocks = Blocks(range(len(pending)), _loader(job, explainer, config, control, pending), size=16)
            await run_pool(blocks, min(workers, len(pending)), work, client.stop)
    return outcome


def score_by_rule(job: Job, explainer: str, config: ScoreConfig, control: str | None = None) -> Outcome:
    """Scores of labels that carry a rule, on the same contexts and through the same tables, for free."""
    pending = job.store.explanations_to_score(
        job.dictionary_id, explainer, SIMULATION, RULE, RULE, RULE_SHA256, "report", job.selection, control=control,
        seed=config.seed,
    )  # fmt: skip
    outcome = Outcome(pending=len(pending), method=RULE)
    free = replace(config, scorers=tuple(dict.fromkeys((*config.scorers, CALIBRATED))))
    load = _loader(job, explainer, free, control, pending)
    for start in range(0, len(pending), BLOCK):
        rows: list[Score] = []
        for item in load(list(range(start, min(start + BLOCK, len(pending))))):
            identity = Identity(item.explanation, job.harvest_id, RULE, control, RULE, RULE_SHA256, config.seed)
            rule = Rule(0.0) if item.told is None else Rule.from_json(item.told.rule or "")
            report = [_by_rule(rule, c, item.max_activation) for c in item.report]
            select = [_by_rule(rule, c, item.max_activation) for c in item.select or ()]
            rows += score_rows(identity, report, select, config.bootstrap)
            outcome.statuses[rows[-1].status] += 1
        job.store.insert_scores(rows)
        job.report(outcome.done, outcome.pending)
    return outcome


def _by_rule(rule: Rule, context: Context, max_activation: float) -> Answer:
    truth = scaled(context.activations, max_activation)
    return Answer(context, Prediction(context.context_id, truth, rule.predict(context.tokens), "ok"))


def _note(job: Job, outcome: Outcome, headline: Score) -> None:
    outcome.statuses[headline.status] += 1
    job.report(outcome.done, outcome.pending)


def _check(explainer: str, config: ScoreConfig, control: str | None) -> None:
    check_explainer(explainer)
    for scorer in config.scorers:
        if scorer not in SCORERS:
            raise InputError(f"no scorer {scorer!r}; there are {', '.join(SCORERS)}.{nearest(scorer, SCORERS)}")
    if control is not None and control not in CONTROLS:
        raise InputError(f"no control {control!r}; there are {', '.join(CONTROLS)}")


def by_rule(explainer: str, config: ScoreConfig) -> bool:
    """Whether labels of this explainer are scored by their own rule: where they have one and no LLM method is named."""
    return explainer in RULE_EXPLAINERS and config.method == "auto"


def choose_method(config: ScoreConfig, found: Capabilities) -> str:
    """The configured method, or the best the endpoint supports. InputError where it supports none, or not that one."""
    usable = found.methods
    why = "; ".join(found.notes) or "no reason was given"
    if not usable:
        raise InputError(f"{config.model} at {config.base_url} supports no way to simulate: {why}")
    if config.method == "auto":
        return usable[0]
    if config.method not in usable:
        raise InputError(
            f"score.method is {config.method!r}, but {config.model} at {config.base_url} supports "
            f"{', '.join(usable)}: {why}"
        )
    return config.method


def _pending_for_llm(job: Job, explainer: str, config: ScoreConfig, control: str | None) -> list[Explanation]:
    """Labels that no method in question has scored yet; asked before the endpoint is, which may have nothing to do."""
    if not config.model:
        raise InputError(f"labels by {explainer!r} are scored by an LLM; set score.model (and score.base_url)")
    methods = LLM_METHODS if config.method == "auto" else (config.method,)
    left: dict[str, Explanation] | None = None
    for method in methods:
        found = job.store.explanations_to_score(
            job.dictionary_id, explainer, SIMULATION, method, config.model, template_of(method, job.prompts).sha256,
            "report", job.selection, control=control, seed=config.seed,
        )  # fmt: skip
        ids = {e.explanation_id: e for e in found}
        left = ids if left is None else {i: e for i, e in left.items() if i in ids}
    return list((left or {}).values())


class _Loader:
    """Reads the contexts of a block of labels; called in a worker thread."""

    def __init__(
        self, job: Job, config: ScoreConfig, pending: Sequence[Explanation], told: Sequence[Explanation | None]
    ) -> None:
        self._job, self._config, self._pending, self._told = job, config, pending, told

    def __call__(self, places: list[int]) -> list[Labelled]:
        job, n = self._job, self._config.contexts
        features = list(dict.fromkeys(self._pending[i].feature for i in places))
        scales = job.store.feature_evidence(job.dictionary_id, job.harvest_id, features, 0)
        limits = {"top": n, "sampled": 2 * n, "negative": None}
        parts: list[Part] = ["report", "select"] if CALIBRATED in self._config.scorers else ["report"]
        contexts = {
            part: job.store.contexts_of(job.dictionary_id, job.harvest_id, features, part, limits) for part in parts
        }
        return [
            Labelled(
                self._pending[i],
                self._told[i],
                scales[self._pending[i].feature].max_activation,
                choose_contexts(contexts["report"][self._pending[i].feature], n),
                choose_contexts(contexts["select"][self._pending[i].feature], n) if "select" in contexts else None,
            )
            for i in places
        ]


def _loader(
    job: Job, explainer: str, config: ScoreConfig, control: str | None, pending: Sequence[Explanation]
) -> _Loader:
    told: list[Explanation | None] = list(pending)
    if control == "empty":
        told = [None] * len(pending)
    elif control == "shuffled":
        donors = _donors(job, explainer, config.seed)
        told = [donors[e.explanation_id] for e in pending]
    return _Loader(job, config, pending, told)


def _donors(job: Job, explainer: str, seed: int) -> dict[str, Explanation]:
    """For every label of the dictionary another feature's: the next one in an order drawn with `seed`. A function of
    the labels alone, whatever features are chosen. InputError where there are fewer than two features."""
    every = job.store.explanations_to_score(
        job.dictionary_id, explainer, "", None, "", "", "report", Selection(), control="shuffled"
    )
    ordered = sorted(every, key=lambda e: stable_id(seed, e.explanation_id))
    donors = {}
    for i, own in enumerate(ordered):
        others = (ordered[(i + step) % len(ordered)] for step in range(1, len(ordered)))
        donor = next((o for o in others if o.feature != own.feature and o.model == own.model), None)
        if donor is None:
            raise InputError("shuffling labels takes the labels of at least two features")
        donors[own.explanation_id] = donor
    return donors


async def _ask_all(
    job: Job, simulator: Simulator, client: LlmClient, item: Labelled, contexts: Sequence[Context]
) -> list[Answer]:
    """One request per context, side by side; the client bounds how many are in flight."""
    label = "" if item.told is None else item.told.text or ""
    tasks = [asyncio.create_task(_ask(job, simulator, client, label, c, item.max_activation)) for c in contexts]
    # Where one of them ends the run the others end by themselves: what is in flight is paid for, and written down.
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return [task.result() for task in tasks]


async def _ask(
    job: Job, simulator: Simulator, client: LlmClient, label: str, context: Context, max_activation: float
) -> Answer:
    truth = scaled(context.activations, max_activation)
    examples = len(simulator.template.examples)
    request = simulator.request(label, context, job.dictionary_id)
    reply = await client.ask(request)
    for _ in range(HALVINGS):
        if reply.status != "ctx_too_long" or examples == 0:
            break
        examples //= 2 if examples > 1 else examples + 1
        request = simulator.request(label, context, job.dictionary_id, examples)
        reply = await client.ask(request)
    for again in (True, False):
        if not reply.ok:
            status = "gave_up" if reply.status in ("gave_up", "bad_reply") else reply.status
            return Answer(context, Prediction(context.context_id, truth, None, status), reply.error)
        try:
            predicted = simulator.read(reply, context)
            return Answer(context, Prediction(context.context_id, truth, predicted, "ok"))
        except ReplyError as problem:
            second = simulator.again(request, reply.text, str(problem), context, job.dictionary_id) if again else None
            if second is None or problem.status == "no_logprobs":
                return Answer(context, Prediction(context.context_id, truth, None, problem.status), str(problem))
            reply = await client.ask(second)
    raise AssertionError("the second reading returns")


def forecast_score(job: Job, explainer: str, config: ScoreConfig) -> Forecast:
    """Calls and tokens that `score` would need now, at one call per context and without second tries."""
    _check(explainer, config, None)
    if by_rule(explainer, config):
        pending = job.store.explanations_to_score(
            job.dictionary_id, explainer, SIMULATION, RULE, RULE, RULE_SHA256, "report", job.selection,
            seed=config.seed,
        )  # fmt: skip
        return Forecast(len(pending), 0, 0, 0, 0.0)
    pending = _pending_for_llm(job, explainer, config, None)
    if not pending:
        return Forecast(0, 0, 0, 0, 0.0)
    method = "numbers" if config.method == "auto" else config.method
    guess = Capabilities(True, True, method != "numbers", 20, method == "prompt_logprobs", 20, "prompt_logprobs")
    simulator = Simulator.of(method, config, guess, config.seed, job.prompts)
    some = _loader(job, explainer, config, None, pending)(list(range(0, len(pending), max(1, len(pending) // 8))))
    asked = [(item, context) for item in some for context in [*item.report, *(item.select or ())]]
    calls = round(len(pending) * len(asked) / len(some))
    read = sum(prompt_characters(simulator.request(i.explanation.text or "", c, job.dictionary_id)) for i, c in asked)
    input_tokens = int(calls * read / max(1, len(asked)) / CHARACTERS_PER_TOKEN)
    written = 1.0
    if method != "prompt_logprobs":
        written = sum(len(c.text) + 6 * len(c.tokens) for _, c in asked) / max(1, len(asked)) / CHARACTERS_PER_TOKEN
    price = job.llm.prices.get(config.model)
    output_tokens = int(calls * written)
    usd = None if price is None else cost_usd(price, input_tokens, 0, output_tokens)
    return Forecast(len(pending), calls, input_tokens, output_tokens, usd)
