"""`output`: can the label be told from what the feature does when it is turned up (the output metric of Gur-Arieh et
al. 2025)?

The model continues a few beginnings as usual and with the feature clamped so far that its next-token distribution moves
by `score.steering_kl` nats per token. A judge sees both and picks, among the label and other features' labels, the one
that fits what changed; QUESTIONS times, each time among others or in another order. The method is 'choose_label'.
No I/O here.

Rows of one label; `n` and `n_failed` count questions. The questions share the same texts, so an interval tells of the
judge and the other labels, not of how another push would have gone:

    output           (accuracy - 1/k) / (1 - 1/k) with k labels to choose from: 0 is chance, 1 always right
    output_accuracy  share of the questions in which the label was picked (Wilson)
    output_random    the same for texts steered by random features to the same KL, with the same labels to choose from:
                     how often the label is picked where it has nothing to do with the texts
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
from autointerp.ask.json_reply import last_object
from autointerp.ask.prompts import PromptTemplate, load_template, mark, one_line
from autointerp.config import ScoreConfig
from autointerp.llm.requests import Reply, Request
from autointerp.records import Explanation, Score, stable_id
from autointerp.score.measured_tasks import counted_row, listed, obstacle_of
from autointerp.score.score_rows import Identity, Result

OUTPUT = "output"
CHOOSE_LABEL = "choose_label"
QUESTIONS = 5
_PARTS = ("_accuracy", "_random", "")


@dataclass(frozen=True)
class Question:
    """Labels to choose from, and which of them is asked for."""

    labels: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Choice:
    """What the judge picked; None where there is no answer, and `status` then says why."""

    right: bool | None
    status: str = "ok"
    error: str | None = None


def draw_questions(
    own: Explanation, told: str, every: Sequence[Explanation], excluded: frozenset[int], n: int, seed: int
) -> list[Question]:
    """`told` among `n` other labels, or as many as there are: those in `every` of other features than the `excluded`
    ones, by the same explaining model, no text twice. QUESTIONS different ones, fewer where there are only a few other
    labels, none where there is not one."""
    others = {e.text: e for e in every if e.feature not in excluded and e.model == own.model and e.text != told}
    texts = sorted(text for text in others if text is not None)
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
    """What a steering measurement holds to be shown: the feature's own texts, and those of each random feature."""
    clean = listed(result, "clean", len(prompts))

    def beside(changed: Sequence[str]) -> list[ShownText]:
        return [ShownText(*one) for one in zip(prompts, clean, changed, strict=True)]

    others = [beside(listed(one, "texts", len(prompts))) for one in result.get("random", [])]
    return beside(listed(result, "steered", len(prompts))), others


def asked_about(
    questions: Sequence[Question], own: Sequence[ShownText], others: Sequence[Sequence[ShownText]]
) -> tuple[list[tuple[Question, Sequence[ShownText]]], list[tuple[Question, Sequence[ShownText]]]]:
    """Which question goes with which texts: every one with the feature's own, then every one with a random feature's,
    which take turns."""
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

    def read(self, reply: Reply, question: Question) -> Choice:
        """Whether the label asked for was picked. Raises ReplyError."""
        return Choice(read_choice(reply.text, len(question.labels)) == question.right)


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
    """The same rows where there is nothing to ask about."""
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
