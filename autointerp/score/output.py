"""`output`: can the label be told from what the feature does when it is turned up (the output metric of Gur-Arieh et
al. 2025)?

The model continues a few beginnings as usual and with the feature clamped so far that its next-token distribution moves
by `score.steering_kl` nats per token. A judge sees both and picks, among the label and other features' labels, the one
that fits what changed; QUESTIONS times, each time among others or in another order. The scoring method is
'choose_label'.

Rows of one label; `n` and `n_failed` count questions. The questions share the same texts, so an interval tells of the
judge and the other labels, not of how another push would have gone:

    output           (accuracy - 1/k) / (1 - 1/k) with k labels to choose from: 0 is chance, 1 always right
    output_accuracy  share of the questions in which the label was picked (Wilson)
    output_random    that share for texts steered by random features to the same KL, with the same labels to choose
                     from: how often the label is picked where it has nothing to do with the texts
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp import stats
from autointerp.ask.chat import ReplyError, chat_body
from autointerp.ask.forecast import Estimate
from autointerp.ask.job import BLOCK
from autointerp.ask.json_reply import last_object
from autointerp.ask.prompts import PromptTemplate, load_template, mark, one_line
from autointerp.ask.question import Asked, Asker
from autointerp.config import ScoreConfig
from autointerp.llm.requests import Reply, Request
from autointerp.records import Explanation, Measurement, Score, stable_id
from autointerp.score.controls import every_label
from autointerp.score.measurements import Measured, answered, asked_and_answered, measure_task
from autointerp.score.score_rows import Identity, Result, counted_row, obstacle_of
from autointerp.score.scorer import Labels, MadeBy, Needs, Run, Told, Work, a_few, asks_llm, estimate_of
from autointerp.score.steered_texts import pool_of, prompts_for, steering_asked
from autointerp.tasks import SteeringAnswer

OUTPUT = "output"
CHOOSE_LABEL = "choose_label"
QUESTIONS = 5
_PARTS = ("_accuracy", "_random", "")
_TOKEN, _CHOICE = 4, 14
"""Characters of what is not written yet, for forecasts: a steered token, a judge's choice."""


@dataclass(frozen=True)
class Question:
    """Labels to choose from, and which of them is asked for."""

    labels: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Choice:
    """The judge's pick. Without an answer it is None, and `status` says why."""

    right: bool | None
    status: str = "ok"
    error: str | None = None


def draw_questions(
    own: Explanation, told: str, every: Sequence[Explanation], excluded: frozenset[int], n: int, seed: int
) -> list[Question]:
    """`told` among `n` other labels, or as many as there are: those in `every` of other features than the `excluded`
    ones, by the same explaining model, no text twice. QUESTIONS different ones, fewer where there are only a few other
    labels, none where there is not one."""
    whole = {e.whole_text for e in every if e.feature not in excluded and e.model == own.model}
    texts = sorted(whole - {told, ""})
    if not texts:
        return []
    draw = random.Random(stable_id(seed, OUTPUT, own.dictionary_id, own.feature))
    questions: dict[tuple[str, ...], Question] = {}
    for _ in range(4 * QUESTIONS):
        labels = [told, *draw.sample(texts, min(n, len(texts)))]
        draw.shuffle(labels)
        # The same labels in the same order would be the same request, and its answer no second one.
        questions.setdefault(tuple(labels), Question(tuple(labels), labels.index(told)))
    return list(questions.values())[:QUESTIONS]


@dataclass(frozen=True)
class ShownText:
    """One beginning, and how the model went on."""

    beginning: str
    usual: str
    changed: str


def shown_texts(prompts: Sequence[str], result: dict[str, Any]) -> tuple[list[ShownText], list[list[ShownText]]]:
    """The texts to show from a steering measurement: the feature's own, and those of each random feature."""
    answer = SteeringAnswer.parse_result(result, len(prompts))

    def beside(changed: Sequence[str]) -> list[ShownText]:
        return [ShownText(*one) for one in zip(prompts, answer.clean, changed, strict=True)]

    return beside(answer.steered), [beside(other.texts) for other in answer.random]


def asked_about(
    questions: Sequence[Question], own: Sequence[ShownText], others: Sequence[Sequence[ShownText]]
) -> tuple[list[tuple[Question, Sequence[ShownText]]], list[tuple[Question, Sequence[ShownText]]]]:
    """Pairs every question with the feature's own texts, and again with the texts of a random feature; the random
    features take turns."""
    floor = [(question, others[i % len(others)]) for i, question in enumerate(questions)] if others else []
    return [(question, own) for question in questions], floor


@dataclass(frozen=True)
class Chooser:
    """Builds requests and reads replies."""

    template: PromptTemplate
    config: ScoreConfig

    @classmethod
    def of(cls, config: ScoreConfig, prompts: Path | None = None) -> Chooser:
        return cls(load_template(f"score/{OUTPUT}", prompts), config)

    def request(self, question: Question, texts: Sequence[ShownText], dictionary_id: int, feature: int) -> Request:
        """Which of the labels fits what changed in the texts?"""
        shown = [one_line({"beginning": t.beginning, "as usual": t.usual, "changed": t.changed}) for t in texts]
        labels = [one_line(label) for label in question.labels]
        fence = mark(self.config.seed, OUTPUT, shown, labels)
        messages = [
            {"role": "system", "content": self.template.block("system")},
            {"role": "user", "content": self.template.block("user", texts=shown, labels=labels, mark=fence)},
        ]
        return self._request(messages, dictionary_id, feature)

    def again(self, request: Request, reply: str, problem: str, question: Question) -> Request:
        """Asks once more after an unusable reply, which is shown."""
        messages = [
            *request.body["messages"],
            {"role": "assistant", "content": reply},
            {"role": "user", "content": self.template.block("again", problem=problem, count=len(question.labels))},
        ]
        return self._request(messages, request.dictionary_id, request.feature)

    def _request(self, messages: list[dict[str, str]], dictionary_id: int | None, feature: int | None) -> Request:
        body = chat_body(self.config, messages, self.config.max_tokens, seed=self.config.seed)
        return Request("chat", body, OUTPUT, dictionary_id=dictionary_id, feature=feature)


@dataclass(frozen=True)
class LabelQuestion:
    """Which label fits what changed in the texts? The answer is whether the right one was picked."""

    chooser: Chooser
    question: Question
    texts: Sequence[ShownText]
    dictionary_id: int
    feature: int

    @property
    def request(self) -> Request:
        return self.chooser.request(self.question, self.texts, self.dictionary_id, self.feature)

    def read(self, reply: Reply) -> bool:
        return read_choice(reply.text, len(self.question.labels)) == self.question.right

    def again(self, reply: str, problem: str) -> Request:
        return self.chooser.again(self.request, reply, problem, self.question)


_NUMBER = re.compile(r"[1-9][0-9]{0,3}")


def read_choice(text: str, n: int) -> int:
    """Which of `n` labels a reply names, from 0: the "answer" of its last JSON object, or a reply that is a number and
    nothing else. Raises ReplyError 'no_answer'."""
    found = last_object(text, lambda value: "answer" in value)
    said = text if found is None else found["answer"]
    if isinstance(said, str):
        word = said.strip().strip("*`\"'").rstrip(".*`\"'").strip()
        said = int(word) if _NUMBER.fullmatch(word) else None
    if not isinstance(said, int) or isinstance(said, bool):
        raise ReplyError("no_answer", f"there is no JSON object with a number as its answer in {text[:60]!r}")
    if not 1 <= said <= n:
        raise ReplyError("no_answer", f"there is no description {said}, they are numbered 1 to {n}")
    return said - 1


def output_rows(identity: Identity, options: int, own: Sequence[Choice], others: Sequence[Choice]) -> list[Score]:
    """All rows of one label, the headline last: where it stands, the others do. `options`: labels in a question."""
    accuracy = _share(own)
    chance = 1 / options
    corrected = accuracy
    if accuracy.status == "ok":
        e = accuracy.estimate
        value, low, high = (None if x is None else (x - chance) / (1 - chance) for x in (e.value, e.low, e.high))
        corrected = Result("ok", stats.Estimate(value, low, high, e.n))
    found = zip(_PARTS, (accuracy, _share(others), corrected), (own, others, own), strict=True)
    return [
        counted_row(identity, OUTPUT + part, result, len(choices), *_failures(choices))
        for part, result, choices in found
    ]


def failed_rows(identity: Identity, status: str, error: str | None) -> list[Score]:
    """The rows of a label that cannot be asked about."""
    return [counted_row(identity, OUTPUT + part, Result(status), 0, error=error) for part in _PARTS]


def _share(choices: Sequence[Choice]) -> Result:
    if not choices:
        return Result("no_random_features")
    why = obstacle_of([c.status for c in choices])
    if why is not None:
        return Result(why)
    answered = [c.right for c in choices if c.right is not None]
    return Result("ok", stats.wilson(sum(answered), len(answered)))


def _failures(choices: Sequence[Choice]) -> tuple[int, str | None]:
    failed = [c for c in choices if c.right is None]
    return len(failed), failed[0].error if failed else None


# --- the scorer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steered:
    """What one label is asked about: beginnings that the model continues, and labels to choose from."""

    prompts: list[str]
    questions: list[Question]


class _Loader:
    """Reads labels with their questions and what the model was made to write."""

    def __init__(self, run: Run, labels: Sequence[Explanation]) -> None:
        self._run = run
        self._labels = Labels(run, labels)
        self._every = every_label(run.job, run.explainer)
        self._pool = pool_of(run.job, run.config.seed)

    def __call__(self, places: Sequence[int]) -> list[Measured[Steered]]:
        return asked_and_answered(self._run.job, self.unasked(places))

    def unasked(self, places: Sequence[int]) -> list[Measured[Steered]]:
        """The items with their tasks. Nothing is written."""
        return [self._item(told) for told in self._labels(places)]

    def _item(self, told: Told) -> Measured[Steered]:
        config, own = self._run.config, told.explanation
        prompts = prompts_for(self._pool, own.feature)
        if not prompts:
            return Measured(told, Steered([], []), measurement=Measurement("", "no_contexts"))
        excluded = frozenset({own.feature} if told.told is None else {own.feature, told.told.feature})
        questions = draw_questions(own, told.whole_label, self._every, excluded, config.distractors, config.seed)
        if not questions:
            return Measured(told, Steered(prompts, []), measurement=Measurement("", "no_distractors"))
        task = measure_task(own, steering_asked(prompts, config), shared=True)
        return Measured(told, Steered(prompts, questions), task)


@dataclass(frozen=True)
class OutputScorer:
    name: str = OUTPUT
    reads_label: bool = True

    def needs(self, run: Run) -> Needs:
        return Needs(asks_llm(self.name, run.config).endpoint, measured=True)

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        template = load_template(f"score/{OUTPUT}", run.job.prompts)
        return (MadeBy(CHOOSE_LABEL, run.config.model, template.sha256),)

    async def start(self, run: Run, targets: Sequence[Explanation], asker: Asker | None) -> Work[Measured[Steered]]:
        assert asker is not None, self.name
        (by,), chooser = self.made_by(run), Chooser.of(run.config, run.job.prompts)

        async def score(item: Measured[Steered]) -> list[Score] | None:
            found, identity = item.measurement, run.identity(item.told.explanation, by)
            if found is None:
                return None
            if found.status != "ok":
                return failed_rows(identity, found.status, found.error)
            own, floor = _questions(run, chooser, item, *shown_texts(item.about.prompts, found.result or {}))
            choices = [_choice(asked) for asked in await asker.ask_all([*own, *floor])]
            options = len(item.about.questions[0].labels)
            return output_rows(identity, options, choices[: len(own)], choices[len(own) :])

        # Every question is asked about the feature's texts and about a random feature's.
        return Work(by, _Loader(run, targets), score, calls=2 * QUESTIONS, block=BLOCK)

    def estimate(self, run: Run, targets: Sequence[Explanation]) -> Estimate:
        """What the labels still need of the endpoint, measured or not. Answers that were paid for are not in it."""
        chooser, load = Chooser.of(run.config, run.job.prompts), _Loader(run, targets)
        items = answered(run.job, load.unasked(a_few(targets)))
        requests = [question.request for item in items for question in _expected(run, chooser, item)]
        requests = [r for r in requests if run.job.store.find_call(r.sha256, r.sample) is None]
        return estimate_of(requests, len(requests) * _CHOICE, targets)


OUTPUT_SCORER = OutputScorer()


def _questions(
    run: Run, chooser: Chooser, item: Measured[Steered], own: Sequence[ShownText],
    others: Sequence[Sequence[ShownText]],
) -> tuple[list[LabelQuestion], list[LabelQuestion]]:  # fmt: skip
    """The questions about the feature's own texts, and those about random features' texts."""
    feature = item.told.explanation.feature
    first, floor = (
        [LabelQuestion(chooser, question, texts, run.job.dictionary_id, feature) for question, texts in pairs]
        for pairs in asked_about(item.about.questions, own, others)
    )
    return first, floor


def _expected(run: Run, chooser: Chooser, item: Measured[Steered]) -> list[LabelQuestion]:
    """The questions about one label; with filling in place of texts that the model has not written yet."""
    found, prompts = item.measurement, item.about.prompts
    if found is None:
        filling = "x" * (_TOKEN * run.config.steered_tokens)
        own = [ShownText(prompt, filling, filling) for prompt in prompts]
        others = [own]
    elif found.status == "ok":
        own, others = shown_texts(prompts, found.result or {})
    else:
        return []
    first, floor = _questions(run, chooser, item, own, others)
    return [*first, *floor]


def _choice(asked: Asked[bool]) -> Choice:
    return Choice(asked.value, asked.status, asked.error)
