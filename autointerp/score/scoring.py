"""Scores for many labels, by every scorer that is configured: simulation by the label's own rule at once or by an LLM
through a fixed pool of workers, then through the same client detection and fuzzing (choice_run.py) and, of features and
not of labels, intruder (intruder_run.py); embedding (embedding_run.py) through a client for its own model; at last
those that need the language model too (measured_run.py)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace

from autointerp.ask.chat import ReplyError
from autointerp.ask.forecast import CHARACTERS_PER_TOKEN, Estimate, Forecast
from autointerp.ask.job import RULE_BLOCK, Blocks, Job, Outcome, run_pool
from autointerp.ask.scale import scaled
from autointerp.config import ScoreConfig
from autointerp.errors import InputError, nearest
from autointerp.llm.capabilities import Capabilities, probe
from autointerp.llm.client import LlmClient
from autointerp.records import Context, Explanation, Prediction, Score
from autointerp.rules.labels import RULE_EXPLAINERS
from autointerp.rules.patterns import RULE_VERSION, Rule
from autointerp.score.choice_run import forecast_choices, pending_choices, score_choices
from autointerp.score.choices import CHOICE_SCORERS
from autointerp.score.controls import CONTROLS, Labelled, SimulationLoader, stand_ins
from autointerp.score.embedding import COSINE, EMBEDDING, check_model, is_local
from autointerp.score.embedding_run import endpoint_of, forecast_embeddings, pending_embeddings, score_embeddings
from autointerp.score.intruder import CHOICE, INTRUDER
from autointerp.score.intruder_run import forecast_intruders, pending_intruders, score_intruders
from autointerp.score.measured_run import (
    MEASURED_SCORERS,
    check_measured,
    forecast_measured,
    pending_measured,
    score_all_measured,
)
from autointerp.score.score_rows import CALIBRATED, SIMULATION, SIMULATION_SCORERS, Answer, Identity, score_rows
from autointerp.score.simulation import LLM_METHODS, RULE, Simulator, template_of
from autointerp.score.stopping import method_of
from autointerp.store.group_writer import GroupWriter
from autointerp.store.labels_left import LabelsLeft

SCORERS = (*SIMULATION_SCORERS, *CHOICE_SCORERS, INTRUDER, *MEASURED_SCORERS)
LABEL_FREE = (INTRUDER,)
"""Scorers of a feature, whatever its label says. No control applies to them."""
RULE_SHA256 = hashlib.sha256(f"rule {RULE_VERSION}".encode()).hexdigest()
"""Stands for the template where no prompt is involved."""
HALVINGS = 2


async def score(job: Job, explainer: str, config: ScoreConfig, control: str | None = None) -> Outcome:
    """Scores for the chosen features' labels by `explainer` that have none yet.

    Label-free scorers score the chosen features that they have not scored, labelled or not. `control` scores something
    else under the same label's name (see labelled.py). Raises InputError (unknown explainer, scorer or control; no
    model named; a method that the endpoint does not support) and whatever ends a run of the client. What was done until
    then is kept.
    """
    outcome = await _score_without_model(job, explainer, config, control)
    return await score_all_measured(job, explainer, config, control, outcome)


async def _score_without_model(job: Job, explainer: str, config: ScoreConfig, control: str | None) -> Outcome:
    """By the scorers that need nothing but an LLM, or not even that."""
    _check(config, control)
    chosen = choice_scorers(config)
    outcome = Outcome()
    simulated: Sequence[Explanation] = []
    if simulates(config) and by_rule(explainer, config):
        outcome = score_by_rule(job, explainer, config, control)
    elif simulates(config):
        simulated = _pending_for_llm(job, explainer, config, control)
    judged = {scorer: pending_choices(job, scorer, explainer, config, control) for scorer in chosen}
    paraded = pending_intruders(job, config) if INTRUDER in config.scorers and control is None else []
    embedded = pending_embeddings(job, explainer, config, control) if embeds(config) else []
    outcome.pending += len(simulated) + sum(map(len, judged.values())) + len(paraded) + len(embedded)
    if control is not None:
        outcome.notes = tuple(f"{s} needs no label, so no control of it is run" for s in label_free(config))
    async with GroupWriter(job.store) as writer:
        if simulated or any(judged.values()) or paraded:
            async with job.client(config, writer) as client:
                if simulated:
                    await _simulate(job, explainer, config, control, simulated, writer, client, outcome)
                for scorer, pending in judged.items():
                    if pending:
                        await score_choices(job, scorer, explainer, config, control, pending, writer, client, outcome)
                if paraded:
                    await score_intruders(job, config, paraded, writer, client, outcome)
        if embedded:
            async with job.client(endpoint_of(config), writer) as client:
                await score_embeddings(job, explainer, config, control, embedded, writer, client, outcome)
    used = (
        method_of(config) if any(judged.values()) else None,
        CHOICE if paraded else None,
        COSINE if embedded else None,
    )
    outcome.method = ", ".join(method for method in (outcome.method, *used) if method is not None) or None
    return outcome


async def _simulate(
    job: Job, explainer: str, config: ScoreConfig, control: str | None, pending: Sequence[Explanation],
    writer: GroupWriter, client: LlmClient, outcome: Outcome,
) -> None:  # fmt: skip
    """Scores the pending labels by an LLM simulator; `outcome` is added to."""
    found = await probe(client)
    method = choose_method(config, found)
    simulator = Simulator.of(method, config, found, config.seed, job.prompts)
    outcome.method, outcome.notes = method, (*outcome.notes, *found.notes)

    async def work(item: Labelled) -> None:
        report = await ask_all(job, simulator, client, item, item.report)
        select = None if item.select is None else await ask_all(job, simulator, client, item, item.select)
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
    workers = 2 + 2 * job.in_flight // max(1, 3 * config.contexts)
    blocks = Blocks(range(len(pending)), _loader(job, explainer, config, control, pending), size=16)
    await run_pool(blocks, min(workers, len(pending)), work, client.stop)


def score_by_rule(job: Job, explainer: str, config: ScoreConfig, control: str | None = None) -> Outcome:
    """Scores of labels that carry a rule, on the same contexts and through the same tables, for free."""
    pending = job.store.explanations_to_score(
        job.dictionary_id, explainer, SIMULATION, RULE, RULE, RULE_SHA256, "report", job.selection, control=control,
        seed=config.seed,
    )  # fmt: skip
    outcome = Outcome(pending=len(pending), method=RULE)
    free = replace(config, scorers=tuple(dict.fromkeys((*config.scorers, CALIBRATED))))
    load = _loader(job, explainer, free, control, pending)
    for start in range(0, len(pending), RULE_BLOCK):
        rows: list[Score] = []
        for item in load(list(range(start, min(start + RULE_BLOCK, len(pending))))):
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


def _check(config: ScoreConfig, control: str | None) -> None:
    for scorer in config.scorers:
        if scorer not in SCORERS:
            raise InputError(f"no scorer {scorer!r}; there are {', '.join(SCORERS)}.{nearest(scorer, SCORERS)}")
    if control is not None and control not in CONTROLS:
        raise InputError(f"no control {control!r}; there are {', '.join(CONTROLS)}")
    check_measured(config)
    if control == "random_model":
        raise InputError(
            "the control 'random_model' scores the features of a model with random weights, which is harvested and "
            "labelled first: it needs `autointerp run --control random_model`"
        )
    judging = [s for s in config.scorers if s in CHOICE_SCORERS or (s == INTRUDER and control is None)]
    if judging:
        _need_model(config, f"scorer {judging[0]!r} asks an LLM")
    if EMBEDDING in config.scorers:
        check_model(config)


def simulates(config: ScoreConfig) -> bool:
    """Whether a simulation is among the configured scorers; where none at all is configured, it is what is done."""
    return not config.scorers or any(s in SIMULATION_SCORERS for s in config.scorers)


def choice_scorers(config: ScoreConfig) -> list[str]:
    """Those of CHOICE_SCORERS that are configured, each once, in the order given."""
    return [s for s in dict.fromkeys(config.scorers) if s in CHOICE_SCORERS]


def label_free(config: ScoreConfig) -> list[str]:
    """Those of LABEL_FREE that are configured, each once, in the order given."""
    return [s for s in dict.fromkeys(config.scorers) if s in LABEL_FREE]


def embeds(config: ScoreConfig) -> bool:
    """Whether embeddings of an endpoint are compared; a model on this machine is the `measure` stage's."""
    return EMBEDDING in config.scorers and not is_local(config)


def by_rule(explainer: str, config: ScoreConfig) -> bool:
    """Whether labels of this explainer are simulated by their own rule: where they have one and no LLM method is
    named."""
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


def _need_model(config: ScoreConfig, why: str) -> None:
    if not config.model:
        raise InputError(f"{why}; set score.model (and score.base_url)")


def _pending_for_llm(job: Job, explainer: str, config: ScoreConfig, control: str | None) -> LabelsLeft:
    """Labels that no method in question has scored yet; asked before the endpoint is, which may have nothing to do."""
    _need_model(config, f"labels by {explainer!r} are scored by an LLM")
    methods = LLM_METHODS if config.method == "auto" else (config.method,)
    left: LabelsLeft | None = None
    for method in methods:
        found = job.store.explanations_to_score(
            job.dictionary_id, explainer, SIMULATION, method, config.model, template_of(method, job.prompts).sha256,
            "report", job.selection, control=control, seed=config.seed,
        )  # fmt: skip
        left = found if left is None else left.among(found)
    assert left is not None  # there is at least one method
    return left


def _loader(
    job: Job, explainer: str, config: ScoreConfig, control: str | None, pending: Sequence[Explanation]
) -> SimulationLoader:
    told = stand_ins(job, explainer, config.seed, control, pending)
    return SimulationLoader(job, config.contexts, CALIBRATED in config.scorers, pending, told)


async def ask_all(
    job: Job, simulator: Simulator, client: LlmClient, item: Labelled, contexts: Sequence[Context]
) -> list[Answer]:
    """One request per context, side by side; the client bounds how many are in flight."""
    tasks = [asyncio.create_task(_ask(job, simulator, client, item.label, c, item.max_activation)) for c in contexts]
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


def forecast_score(
    job: Job, explainer: str, config: ScoreConfig, control: str | None = None, planned: Sequence[Explanation] = ()
) -> Forecast:
    """Calls and tokens that `score` would need now, without second tries: one call per context for a simulation, one
    for a few contexts for detection, fuzzing and embedding, one per question for intruder. Labels that wait for several
    scorers count once, and so does a feature with the labels of it that wait. `planned`: labels that do not exist yet
    and will wait too."""
    _check(config, control)
    waiting: dict[str, int] = {}
    """The feature of every label that waits."""
    parts: list[tuple[str, Estimate]] = []

    def wait(found: Sequence[Explanation]) -> Sequence[Explanation]:
        if isinstance(found, LabelsLeft) and not planned:  # a million of them maybe, of which eight are looked at
            waiting.update(found.keys)
            return found
        every = [*found, *planned]
        waiting.update((e.explanation_id, e.feature) for e in every)
        return every

    if simulates(config) and by_rule(explainer, config):
        wait(
            job.store.explanations_to_score(
                job.dictionary_id, explainer, SIMULATION, RULE, RULE, RULE_SHA256, "report", job.selection,
                control=control, seed=config.seed,
            )
        )  # fmt: skip
    elif simulates(config):
        found = wait(_pending_for_llm(job, explainer, config, control))
        parts.append((config.model, _forecast_simulation(job, explainer, config, found)))
    for scorer in choice_scorers(config):
        found = wait(pending_choices(job, scorer, explainer, config, control))
        parts.append((config.model, forecast_choices(job, scorer, config, found)))
    paraded = pending_intruders(job, config) if INTRUDER in config.scorers and control is None else []
    parts.append((config.model, forecast_intruders(job, config, paraded)))
    if embeds(config):
        found = wait(pending_embeddings(job, explainer, config, control))
        parts.append((config.embedding_model, forecast_embeddings(job, config, found)))
    for scorer, pending in pending_measured(job, explainer, config, control).items():
        parts.append((config.model, forecast_measured(job, scorer, explainer, config, wait(pending))))
    features = len(waiting) + len(set(paraded) - set(waiting.values()))
    return Forecast.of(job.llm.prices, features, parts)


def _forecast_simulation(job: Job, explainer: str, config: ScoreConfig, pending: Sequence[Explanation]) -> Estimate:
    if not pending:
        return Estimate()
    some = _loader(job, explainer, config, None, pending)(list(range(0, len(pending), max(1, len(pending) // 8))))
    asked = [(i.explanation.text or "", context) for i in some for context in [*i.report, *(i.select or ())]]
    return simulation_estimate(job, config, asked, len(pending) / len(some))


def simulation_estimate(job: Job, config: ScoreConfig, asked: Sequence[tuple[str, Context]], times: float) -> Estimate:
    """Of `times` as many simulations as these of (label, context). Which method an endpoint supports is not known
    before it is asked; where none is named, that of numbers is reckoned with, whose prompts are those of
    generated_logprobs."""
    method = "numbers" if config.method == "auto" else config.method
    guess = Capabilities(True, True, method != "numbers", 20, method == "prompt_logprobs", 20, "prompt_logprobs")
    simulator = Simulator.of(method, config, guess, config.seed, job.prompts)
    requests = [simulator.request(label, context, job.dictionary_id) for label, context in asked]
    if method == "prompt_logprobs":
        written = len(asked) * CHARACTERS_PER_TOKEN
    else:
        written = float(sum(len(c.text) + 6 * len(c.tokens) for _, c in asked))
    return Estimate.of(requests, times, written)
