"""What scorers ask of the language model, and how its answers are read.

A scorer writes tasks into the store, `autointerp measure` answers them, and the next run of the scorer judges. Nothing
is remembered between the two runs but the store: a task is named by its own content, so that the second run finds the
very tasks of the first.
What is asked and answered is said in tasks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from autointerp.ask.job import Job
from autointerp.records import Explanation, Measurement, MeasureTask, stable_id
from autointerp.score.auroc import number_answer
from autointerp.score.detection_fuzzing import ExampleLoader, Questioned
from autointerp.score.detection_questions import Example
from autointerp.score.score_rows import Answer
from autointerp.score.scorer import Run, Told
from autointerp.tasks import Asked


def measure_task(label: Explanation, asked: Asked, shared: bool = False) -> MeasureTask:
    """The task for one label; the same question about the same feature is one task. `shared`: it does not depend on
    the label at all."""
    kind, payload = asked.kind, asked.payload()
    return MeasureTask(
        task_id=stable_id(kind, label.dictionary_id, label.feature, payload),
        dictionary_id=label.dictionary_id,
        feature=label.feature,
        explanation_id=None if shared else label.explanation_id,
        kind=kind,
        payload=payload,
    )


Detail = TypeVar("Detail")


@dataclass(frozen=True)
class Measured(Generic[Detail]):
    """One label, what the language model is asked about it, and its answer."""

    told: Told
    about: Detail
    """What the answer is about: contexts, beginnings, questions."""
    task: MeasureTask | None = None
    """The task; None if there is nothing to ask."""
    measurement: Measurement | None = None
    """The measurement; None until there is one. If there is nothing to ask, its status says why."""


def asked_and_answered(job: Job, items: Sequence[Measured[Detail]]) -> list[Measured[Detail]]:
    """Writes the items' tasks down; the items with what was answered by now."""
    job.store.insert_tasks([item.task for item in items if item.task is not None])
    return answered(job, items)


def answered(job: Job, items: Sequence[Measured[Detail]]) -> list[Measured[Detail]]:
    """The items with the answers that exist by now. Nothing is written."""
    found = job.store.measurements_of([item.task.task_id for item in items if item.task is not None])
    return [i if i.task is None else replace(i, measurement=found.get(i.task.task_id)) for i in items]


# --- scorers for which the model gives every context a number ---------------------------------------------------------


class ContextTasks:
    """Reads labels with the contexts that detection asks about, and writes one task for each label."""

    def __init__(self, run: Run, labels: Sequence[Explanation], ask: Callable[[str, Sequence[Example]], Asked]) -> None:
        """`ask`: from the label and the contexts to what is asked."""
        self._job, self._ask = run.job, ask
        self._examples = ExampleLoader(run, labels)

    def __call__(self, places: Sequence[int]) -> list[Measured[Sequence[Example]]]:
        return asked_and_answered(self._job, [self._item(one) for one in self._examples(places)])

    def _item(self, one: Questioned) -> Measured[Sequence[Example]]:
        if not one.examples:
            return Measured(one.told, one.examples, measurement=Measurement("", "no_contexts"))
        asked = self._ask(one.told.label, one.examples)
        return Measured(one.told, one.examples, measure_task(one.told.explanation, asked))


def answers_of(
    item: Measured[Sequence[Example]], read: Callable[[Sequence[Example], dict[str, Any]], list[Answer]]
) -> list[Answer] | None:
    """An answer for every context, as `read` finds them in the measurement's result; None where the label waits."""
    found, examples = item.measurement, item.about
    if found is None:
        return None
    if found.status == "ok":
        return read(examples, found.result or {})
    return [number_answer(e, None, found.status, found.error) for e in examples]
