"""`simulation` (after Bills et al. 2023; correlation.py says how it differs): predict each token's activation from the
label, correlate with the truth.

The rows are those of correlation.py. Four scoring methods, never averaged together:

    prompt_logprobs     one forward pass of a completions endpoint: every activation in the prompt is a question mark,
                        and the digits' logprobs at those places give an expected value for every token at once
    generated_logprobs  a chat model lists the tokens with numbers; the expected value over the number's alternatives
    numbers             the same reply without logprobs: the numbers themselves
    rule                no LLM: the rule that came with the label (`patterns`, `rule`). It asks nothing, so the row
                        simulation_natural also says from which activation on the label holds (holding.py)

Predictions and truth are on the 0..10 scale of ask/scale.py. In prompts for completions the scale is 0..9 (and the
expected value is stretched by 10/9): a "10" would be one token for some tokenizers and two for others, and two cannot
be read in one pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from autointerp.ask.chat import chat_body
from autointerp.ask.forecast import CHARACTERS_PER_TOKEN, Estimate
from autointerp.ask.job import RULE_BLOCK
from autointerp.ask.prompts import PromptTemplate, load_template, one_line
from autointerp.ask.question import Asked, Asker
from autointerp.ask.scale import TOP, scaled
from autointerp.config import EndpointConfig, ScoreConfig
from autointerp.errors import InputError
from autointerp.llm.capabilities import UNPROBED, Capabilities, prompt_logprob_fields
from autointerp.llm.requests import Reply, Request
from autointerp.records import Context, Explanation, Prediction, Score
from autointerp.rules.labels import carries_rules
from autointerp.rules.language.token_texts import Texts
from autointerp.rules.patterns import RULE_VERSION, Rule
from autointerp.rules.token_facts import Facts, facts_of
from autointerp.score.correlation import CALIBRATED, SIMULATION, correlation, correlation_rows
from autointerp.score.holding import Claims, claims_of_rule, held_out
from autointerp.score.natural import Prevalence, SilentTiles, natural_rows
from autointerp.score.ordinary_text import OrdinaryText
from autointerp.score.prevalences import prevalences
from autointerp.score.score_rows import Answer
from autointerp.score.scorer import FreeControls, Labels, MadeBy, Needs, Run, Told, Work, a_few, estimate_of, need_model
from autointerp.score.simulation_replies import DIGITS, UNKNOWN, expected_numbers, read_lines, read_prompt_logprobs
from autointerp.scorer_names import NATURAL

LLM_METHODS = ("prompt_logprobs", "generated_logprobs", "numbers")
RULE = "rule"
_RULE_ROWS = 4
"""Raised when rows by rules come to say more, so that the next `score` makes them again, which costs nothing. 2: from
which activation on the label holds. 3: the intervals of what is counted over tiles, and where `label_from` is not
confirmed. 4: a label that claims everything does not hold."""
RULE_SHA256 = hashlib.sha256(f"rule {RULE_VERSION}, rows {_RULE_ROWS}".encode()).hexdigest()
"""Stands for the template where no prompt is involved."""
_TEXTS_KEPT = 16_384
"""Texts whose facts are kept at a time, some 90 MB: features share the tiles that were drawn for them."""
HALVINGS = 2
"""How often the worked examples are halved for an endpoint whose context they do not fit."""


# --- which contexts -------------------------------------------------------------------------------------------------


def choose_contexts(contexts: Sequence[Context], n: int) -> list[Context]:
    """N top, N sampled and N negative contexts of one split, N = `n` or what the scarcest kind has.

    Half of the negatives are random silent tiles, the rest same-token and neighbour ones in turn; where a tier is short
    the others fill in. In the store's rank order, so that the choice is the same in every run, and the sampled ones
    stay a uniform sample of where the feature fires.
    """
    top = [c for c in contexts if c.kind == "top"]
    negatives = [c for c in contexts if c.kind == "negative"]
    sampled = sorted((c for c in contexts if c.kind == "sampled"), key=lambda c: c.rank)
    n = min(n, len(top), len(sampled), len(negatives))
    return [*top[:n], *sampled[:n], *_mixed_tiers(negatives, n)]


def _mixed_tiers(negatives: Sequence[Context], n: int) -> list[Context]:
    random = [c for c in negatives if c.tier == "random"]
    hard = zip_longest(
        [c for c in negatives if c.tier == "same_token"], [c for c in negatives if c.tier == "neighbour"]
    )
    near = [c for pair in hard for c in pair if c is not None]
    half = (n + 1) // 2
    take = max(min(half, len(random)), n - len(near))
    return [*random[:take], *near[: n - take]]


# --- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Simulator:
    """Builds requests and reads replies for one of LLM_METHODS."""

    method: str
    template: PromptTemplate
    endpoint: EndpointConfig
    capabilities: Capabilities
    seed: int = 0

    @classmethod
    def of(
        cls,
        method: str,
        endpoint: EndpointConfig,
        capabilities: Capabilities,
        seed: int = 0,
        prompts: Path | None = None,
    ) -> Simulator:
        return cls(method, template_of(method, prompts), endpoint, capabilities, seed)

    def request(self, label: str, context: Context, dictionary_id: int, examples: int | None = None) -> Request:
        """The question about one context, with the first `examples` worked examples (None: all)."""
        shown = self.template.examples if examples is None else self.template.examples[:examples]
        if self.method == "prompt_logprobs":
            fields = {**prompt_logprob_fields(self.capabilities)}
            body = {"model": self.endpoint.model, "prompt": self._prompt(label, context, shown), **fields}
            if self.endpoint.temperature is not None:
                body["temperature"] = self.endpoint.temperature
            return Request("completions", body, "simulate", dictionary_id=dictionary_id, feature=context.feature)
        messages = [{"role": "system", "content": self.template.block("system")}]
        for example in shown:
            lines = list(zip(map(one_line, example["tokens"]), _numbers(example), strict=True))
            messages.append({"role": "user", "content": self._question(example["label"], example["tokens"])})
            messages.append({"role": "assistant", "content": self.template.block("assistant", answer=lines)})
        messages.append({"role": "user", "content": self._question(label, context.tokens, context.begins)})
        return self._chat(messages, context, dictionary_id)

    def again(self, request: Request, reply: str, problem: str, context: Context, dictionary_id: int) -> Request | None:
        """Asks once more after an unusable reply; None for prompt_logprobs, where asking again gives the same."""
        if request.kind != "chat":
            return None
        text = self.template.block("again", problem=problem, tokens=context.tokens)
        messages = [
            *request.body["messages"],
            {"role": "assistant", "content": reply},
            {"role": "user", "content": text},
        ]
        return self._chat(messages, context, dictionary_id)

    def _chat(self, messages: list[dict[str, str]], context: Context, dictionary_id: int) -> Request:
        extra: dict[str, Any] = {}
        if self.method == "generated_logprobs":
            extra = {"logprobs": True, "top_logprobs": self.capabilities.generated_top}
        # A line repeats its token as JSON, and tokens of strange bytes cost several of the LLM's own.
        limit = max(self.endpoint.max_tokens, 64 + 12 * len(context.tokens))
        body = chat_body(self.endpoint, messages, limit, seed=self.seed, **extra)
        return Request("chat", body, "simulate", dictionary_id=dictionary_id, feature=context.feature)

    def _question(self, label: str, tokens: Sequence[str], begins: str | None = None) -> str:
        return self.template.block("user", label=one_line(label), tokens=[one_line(t) for t in tokens], begins=begins)

    def _prompt(self, label: str, context: Context, examples: Sequence[Mapping[str, Any]]) -> str:
        parts = [self.template.block("head")]
        for number, example in enumerate(examples, start=1):
            digits = [str(round(n * DIGITS / TOP)) for n in _numbers(example)]
            digits = [UNKNOWN if i < example["known_from"] else d for i, d in enumerate(digits)]
            parts.append(self._record(number, example["label"], example["tokens"], digits))
        unknown = [UNKNOWN] * len(context.tokens)
        asked = self._record(len(examples) + 1, label, context.tokens, unknown, context.begins)
        return "\n".join([*parts, asked.rstrip("\n") + "\n"])

    def _record(
        self, number: int, label: str, tokens: Sequence[str], digits: Sequence[str], begins: str | None = None
    ) -> str:
        lines = list(zip(map(one_line, tokens), digits, strict=True))
        return self.template.block("record", number=number, label=one_line(label), lines=lines, begins=begins)

    def read(self, reply: Reply, context: Context) -> list[float]:
        """One expected activation, 0..10, per token. Raises ReplyError."""
        if self.method == "prompt_logprobs":
            return read_prompt_logprobs(reply.prompt_logprobs, len(context.tokens))
        lines = read_lines(reply.text, context.tokens)
        if self.method == "numbers":
            return [line.number for line in lines]
        return expected_numbers(reply.text, reply.token_logprobs, lines)


@dataclass(frozen=True)
class SimulationQuestion:
    """How active is the feature on each token of one context? The answer is a number from 0 to 10 for each."""

    simulator: Simulator
    label: str
    context: Context
    dictionary_id: int
    examples: int | None = None
    """Worked examples that are shown; None: all."""
    halved: int = 0

    @property
    def request(self) -> Request:
        return self.simulator.request(self.label, self.context, self.dictionary_id, self.examples)

    def read(self, reply: Reply) -> list[float]:
        return self.simulator.read(reply, self.context)

    def again(self, reply: str, problem: str) -> Request | None:
        return self.simulator.again(self.request, reply, problem, self.context, self.dictionary_id)

    def shorter(self) -> SimulationQuestion | None:
        """This question with half of the worked examples."""
        shown = len(self.simulator.template.examples) if self.examples is None else self.examples
        if shown == 0 or self.halved == HALVINGS:
            return None
        return replace(self, examples=shown // 2, halved=self.halved + 1)


def template_of(method: str, prompts: Path | None = None) -> PromptTemplate:
    """The chat methods share one prompt."""
    name = "simulation_completions" if method == "prompt_logprobs" else "simulation_chat"
    return load_template(f"score/{name}", prompts, examples="examples.toml")


def _numbers(example: Mapping[str, Any]) -> list[int]:
    active = {int(position): int(number) for position, number in example["active"].items()}
    return [active.get(i, 0) for i in range(len(example["tokens"]))]


# --- the scorer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Simulated:
    """One label, and the contexts on which its feature is simulated."""

    told: Told
    max_activation: float
    """The feature's largest activation on the explain split: what a 10 stands for."""
    report: list[Context]
    select: list[Context] | None
    """The contexts of the select part; None if they are not asked about."""
    prevalence: Prevalence | None = None
    """None where the harvest did not count its tiles."""
    select_sampled: list[Context] = field(default_factory=list)
    """All sampled contexts of the select part, if it was read."""
    select_prevalence: Prevalence | None = None

    @property
    def sampled(self) -> list[Context]:
        """All sampled contexts of the part that is scored."""
        return [c for c in self.told.contexts if c.kind == "sampled"]


@dataclass(frozen=True)
class SimulationScorer:
    """Labels that carry a rule are simulated by it, for free, unless the configuration names a method that asks an
    LLM."""

    name: str = SIMULATION
    reads_label: bool = True

    def needs(self, run: Run) -> Needs:
        if is_by_rule(run):
            return Needs()
        need_model(run.config, f"labels by {run.explainer!r} are scored by an LLM")
        return Needs(run.config, probes=needs_probe(run.config))

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        if is_by_rule(run):
            return (MadeBy(RULE, RULE, RULE_SHA256),)
        methods = LLM_METHODS if run.config.method == "auto" else (run.config.method,)
        return tuple(_made_by(method, run) for method in methods)

    async def start(self, run: Run, targets: Sequence[Explanation], asker: Asker | None) -> Work[Simulated]:
        if asker is None:
            (by,) = self.made_by(run)
            simulation = RuleSimulation(run, by, targets)
            return Work(by, simulation.load, simulation.score, block=RULE_BLOCK)
        config = run.config
        found = await asker.capabilities() if needs_probe(config) else UNPROBED
        simulator = Simulator.of(choose_method(config, found), config, found, config.seed, run.job.prompts)
        by = _made_by(simulator.method, run)

        async def answers(item: Simulated, contexts: Sequence[Context]) -> list[Answer]:
            asked = await asker.ask_all(
                SimulationQuestion(simulator, item.told.label, context, run.job.dictionary_id) for context in contexts
            )
            return [_answer(c, item.max_activation, a) for c, a in zip(contexts, asked, strict=True)]

        async def score(item: Simulated) -> list[Score]:
            report = await answers(item, item.report)
            return _rows(run, by, item, report, await answers(item, item.select or ()))

        load = _Loader(run, targets, is_calibrated=CALIBRATED in config.scorers)
        return Work(by, load, score, calls=3 * config.contexts, notes=found.notes)

    def estimate(self, run: Run, targets: Sequence[Explanation]) -> Estimate:
        """Estimates one call per context. Before an endpoint is asked, the methods that it supports are not known. If
        no method is configured, `numbers` is assumed, which has the prompts of generated_logprobs."""
        config = run.config
        method = "numbers" if config.method == "auto" else config.method
        guess = Capabilities(True, True, method != "numbers", 20, method == "prompt_logprobs", 20, "prompt_logprobs")
        simulator = Simulator.of(method, config, guess, config.seed, run.job.prompts)
        some = _Loader(run, targets, is_calibrated=CALIBRATED in config.scorers)(a_few(targets))
        asked = [(item.told.label, context) for item in some for context in (*item.report, *(item.select or ()))]
        requests = [simulator.request(label, context, run.job.dictionary_id) for label, context in asked]
        written = float(sum(len(context.text) + 6 * len(context.tokens) for _, context in asked))
        if method == "prompt_logprobs":
            written = len(asked) * CHARACTERS_PER_TOKEN
        return estimate_of(requests, written, targets)


SIMULATION_SCORER = SimulationScorer()


class RuleSimulation:
    """Simulates labels by their own rules and, along with each label, the controls that cost nothing."""

    def __init__(self, run: Run, by: MadeBy, targets: Sequence[Explanation]) -> None:
        self._run, self._by = run, by
        self._loader = _Loader(run, targets, is_calibrated=True)
        self._controls = FreeControls(run, targets)
        self._ordinary, self._ordinary_select = OrdinaryText(run.job, run.part), OrdinaryText(run.job, "select")
        self._facts = lru_cache(_TEXTS_KEPT)(facts_of)

    def load(self, places: list[int]) -> list[Simulated]:
        found = self._loader(places)
        features = list(dict.fromkeys(item.told.explanation.feature for item in found))
        for text in (self._ordinary, self._ordinary_select):
            text.read(features)
        return found

    async def score(self, item: Simulated) -> list[Score]:
        """The rows of the controls, then those of the label itself."""
        read = _ReadContexts(item, self._facts)
        rows: list[Score] = []
        for control, told in self._controls.instead_of(item.told.explanation):
            rows += self._rows_of(replace(self._run, control=control), item, told, read)
        return [*rows, *self._rows_of(self._run, item, item.told.told, read)]

    def _rows_of(self, run: Run, item: Simulated, told: Explanation | None, read: _ReadContexts) -> list[Score]:
        rule = Rule(0.0) if told is None else Rule.from_json(told.rule or "")
        answers = read.answers(rule)
        report, select, active = (
            [answers[c.context_id] for c in some] for some in (item.report, item.select or (), item.sampled)
        )
        silent = self._ordinary.silent(item.told.explanation.feature, rule)
        rows = _rows(run, self._by, item, report, select, active, silent)
        if run.control is not None:  # the predictions of a rule that stands in can be made again at any time
            return [replace(row, predictions=[]) for row in rows]
        if item.prevalence is None or silent is None or not active:
            return rows
        measured = claims_of_rule(active, silent, item.prevalence.density)
        holding = asdict(held_out(self._choosing(item, rule, answers), measured, run.config.label_precision))
        return [replace(row, **holding) if row.scorer == NATURAL else row for row in rows]

    def _choosing(self, item: Simulated, rule: Rule, answers: Mapping[int, Answer]) -> Claims | None:
        """What the rule claims of the select part, by which it is chosen from where on it holds; None where nothing is
        known of that."""
        silent = self._ordinary_select.silent(item.told.explanation.feature, rule)
        if silent is None or item.select_prevalence is None:
            return None
        active = [answers[c.context_id] for c in item.select_sampled]
        return claims_of_rule(active, silent, item.select_prevalence.density)


class _ReadContexts:
    """The contexts of one label. Reading their tokens takes most of the time, so it is done once for all rules."""

    def __init__(self, item: Simulated, read: Callable[[tuple[str, ...]], list[Facts]]) -> None:
        self._read = read
        every = (*item.report, *(item.select or ()), *item.sampled, *item.select_sampled)
        contexts = {context.context_id: context for context in every}.values()
        self._contexts = [(c, scaled(c.activations, item.max_activation)) for c in contexts]
        """Each with the truth."""
        self._texts = Texts.of(contexts)

    @cached_property
    def _facts(self) -> list[Facts]:
        return [fact for tokens in self._texts.texts for fact in self._read(tuple(tokens))]

    def answers(self, rule: Rule) -> dict[int, Answer]:
        """What the rule predicts of each context, by its id."""
        facts = self._facts if rule.tables else []
        predicted, start, found = rule.predict_from(facts, self._texts), 0, {}
        for context, truth in self._contexts:
            end = start + len(context.tokens)
            prediction = Prediction(context.context_id, truth, predicted[start:end], "ok")
            found[context.context_id], start = Answer(context, prediction), end
        return found


def is_by_rule(run: Run) -> bool:
    """Whether labels are simulated by their own rule: where their explainer makes rules, no method that asks an LLM is
    configured, and the score is one to report."""
    return carries_rules(run.explainer) and run.config.method == "auto" and run.part == "report"


def needs_probe(config: ScoreConfig) -> bool:
    """Whether the endpoint must be asked what it supports. `numbers` needs plain chat only, and a refused question ends
    the run as well as a refused probe."""
    return config.method != "numbers"


def choose_method(config: ScoreConfig, found: Capabilities) -> str:
    """The configured method, or the best the endpoint supports. InputError where it supports none, or not that one."""
    usable = found.methods
    why = "; ".join(found.notes) or "no reason was given"
    if not usable:
        raise InputError(f"{config.model} at {config.address} supports no way to simulate: {why}")
    if config.method == "auto":
        return usable[0]
    if config.method not in usable:
        raise InputError(
            f"score.method is {config.method!r}, but {config.model} at {config.address} supports "
            f"{', '.join(usable)}: {why}"
        )
    return config.method


class _Loader:
    def __init__(self, run: Run, labels: Sequence[Explanation], is_calibrated: bool) -> None:
        self._run, self._is_calibrated = run, is_calibrated and run.part == "report"
        n = run.config.contexts
        self._limits: dict[str, int | None] = {"top": n, "sampled": None, "negative": None}
        self._labels = Labels(run, labels, self._limits)

    def __call__(self, places: list[int]) -> list[Simulated]:
        job, n = self._run.job, self._run.config.contexts
        told = self._labels(places)
        features = list(dict.fromkeys(one.explanation.feature for one in told))
        scales = job.store.feature_evidence(job.dictionary_id, job.harvest_id, features, 0)
        prevalence = prevalences(job, self._run.part, features)
        select: Mapping[int, Sequence[Context]] = {}
        select_prevalence: Mapping[int, Prevalence] = {}
        if self._is_calibrated:
            select = job.store.contexts_of(job.dictionary_id, job.harvest_id, features, "select", self._limits)
            select_prevalence = prevalences(job, "select", features)
        found = []
        for one in told:
            feature = one.explanation.feature
            chosen = choose_contexts(one.contexts, n)
            calibrating = choose_contexts(select[feature], n) if self._is_calibrated else None
            if self._run.part == "select":
                chosen, calibrating = [], chosen
            sampled = [c for c in select.get(feature, ()) if c.kind == "sampled"]
            found.append(
                Simulated(
                    one, scales[feature].max_activation, chosen, calibrating, prevalence.get(feature), sampled,
                    select_prevalence.get(feature),
                )
            )  # fmt: skip
        return found


def _made_by(method: str, run: Run) -> MadeBy:
    return MadeBy(method, run.config.model, template_of(method, run.job.prompts).sha256)


def _answer(context: Context, max_activation: float, asked: Asked[list[float]]) -> Answer:
    truth = scaled(context.activations, max_activation)
    return Answer(context, Prediction(context.context_id, truth, asked.value, asked.status), asked.error)


def _rows(
    run: Run, by: MadeBy, item: Simulated, report: Sequence[Answer], select: Sequence[Answer],
    active: Sequence[Answer] | None = None, silent: SilentTiles | None = None,
) -> list[Score]:  # fmt: skip
    """`active` and `silent`: what was predicted of more ordinary text than `report` holds."""
    identity = run.identity(item.told.explanation, by)
    if run.part == "select":
        return [identity.row(SIMULATION, "select", select, correlation(select), keep=True)]
    rows = correlation_rows(identity, report, None if item.select is None else select)
    if item.prevalence is None:
        return rows
    if silent is None:
        silent = SilentTiles.of([a for a in report if a.context.tier == "random"])
    sampled = [a for a in report if a.context.kind == "sampled"] if active is None else active
    return [*natural_rows(identity, sampled, silent, item.prevalence), *rows]
