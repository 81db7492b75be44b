"""`surprisal`: does a language model that was told the label find the activating contexts less surprising (Paulo et
al. 2024)?

A context's number is the mean nats per token that the label saves: those of its tokens after a beginning without the
label, less those after a beginning with it. The score is how well this number tells activating from silent contexts
(AUROC; see auroc.py for the rows). The contexts are those that detection asks about. The scoring method is
'language_model_ordinary' ('language_model' where all silent contexts counted in the headline); no LLM endpoint is
asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autointerp.ask.forecast import Estimate
from autointerp.ask.job import BLOCK
from autointerp.ask.prompts import PromptTemplate, load_template
from autointerp.ask.question import Asker
from autointerp.records import Explanation, Score
from autointerp.score.auroc import auroc_rows, number_answer
from autointerp.score.detection_questions import Example
from autointerp.score.measurements import ContextTasks, Measured, answers_of
from autointerp.score.score_rows import Answer
from autointerp.score.scorer import MadeBy, Needs, Run, Work
from autointerp.tasks import Surprisal, SurprisalAnswer

SURPRISAL = "surprisal"
LANGUAGE_MODEL = "language_model_ordinary"
SUBJECT_MODEL = "subject model"
"""Stands in `scores.model` where score.language_model is not set."""


def surprisal_asked(
    label: str, examples: Sequence[Example], template: PromptTemplate, language_model: str
) -> Surprisal:
    """The contexts after the beginning with the label, and after the one without."""
    # On one line, as in the other beginning; what the language model reads is no order to it.
    described = template.block("described", label=" ".join(label.split()))
    return Surprisal(
        prefixes=[described, template.block("undescribed")],
        texts=[e.context.text for e in examples],
        language_model=language_model,
    )


def surprisal_answers(examples: Sequence[Example], result: dict[str, Any]) -> list[Answer]:
    """Nats per token that the label saves, for every context."""
    with_label, without = SurprisalAnswer.parse_result(result, 2, len(examples)).nll
    return [_answer(*one) for one in zip(examples, with_label, without, strict=True)]


def _answer(example: Example, with_label: float | None, without: float | None) -> Answer:
    if with_label is None or without is None:
        return number_answer(example, None, "no_tokens", "the language model reads no token in it")
    return number_answer(example, without - with_label)


@dataclass(frozen=True)
class SurprisalScorer:
    name: str = SURPRISAL
    reads_label: bool = True

    def needs(self, run: Run) -> Needs:
        return Needs(measured=True)

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        template = load_template(f"score/{SURPRISAL}", run.job.prompts)
        return (MadeBy(LANGUAGE_MODEL, run.config.language_model or SUBJECT_MODEL, template.sha256),)

    async def start(
        self, run: Run, targets: Sequence[Explanation], asker: Asker | None
    ) -> Work[Measured[Sequence[Example]]]:
        (by,) = self.made_by(run)
        template = load_template(f"score/{SURPRISAL}", run.job.prompts)

        def ask(label: str, examples: Sequence[Example]) -> Surprisal:
            return surprisal_asked(label, examples, template, run.config.language_model)

        async def score(item: Measured[Sequence[Example]]) -> list[Score] | None:
            answers = answers_of(item, surprisal_answers)
            identity = run.identity(item.told.explanation, by)
            return None if answers is None else auroc_rows(identity, self.name, answers)

        return Work(by, ContextTasks(run, targets, ask), score, block=BLOCK)

    def estimate(self, run: Run, targets: Sequence[Explanation]) -> Estimate:
        return Estimate()


SURPRISAL_SCORER = SurprisalScorer()
