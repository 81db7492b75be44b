"""What it takes to ask the model about a block of labels: contexts, beginnings to continue, other labels; and the task
itself wherever no LLM has to be asked for texts first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autointerp.ask.job import Job
from autointerp.ask.prompts import load_template
from autointerp.config import ScoreConfig
from autointerp.records import Context, Explanation, Measurement, MeasureTask
from autointerp.score.choices import DETECTION, Example, choose_examples
from autointerp.score.controls import every_label
from autointerp.score.embedding import EMBEDDING
from autointerp.score.generation import GENERATION, snippets
from autointerp.score.intervention import INTERVENTION, gain_payload
from autointerp.score.local_embedding import similarity_payload
from autointerp.score.measured_tasks import measure_task
from autointerp.score.output import OUTPUT, Question, draw_questions
from autointerp.score.steered_texts import POOL, beginnings, prompts_for, steering_payload
from autointerp.score.surprisal import SURPRISAL, surprisal_payload
from autointerp.store import Selection


@dataclass(frozen=True)
class Item:
    """One label and what it takes to ask about it."""

    explanation: Explanation
    told: Explanation | None
    """Whose label is asked about: its own, another's ('shuffled'), none's ('empty')."""
    examples: Sequence[Example] = ()
    """surprisal, embedding: the contexts."""
    excerpts: Sequence[str] = ()
    """generation: text that shows the style."""
    prompts: Sequence[str] = ()
    """output, intervention: beginnings that are continued."""
    questions: Sequence[Question] = ()
    """output."""
    task: MeasureTask | None = None
    """None for generation, where an LLM writes what is asked about, and where there is nothing to ask."""
    measurement: Measurement | None = None
    """The model's answer; None: not there yet. Where there is nothing to ask, why not is its status."""

    @property
    def label(self) -> str:
        return "" if self.told is None else self.told.text or ""


class MeasuredLoader:
    """Called with places in `pending`, in a worker thread: writes the tasks of these labels down and reads what was
    measured of them."""

    def __init__(
        self, job: Job, scorer: str, explainer: str, config: ScoreConfig, pending: Sequence[Explanation],
        told: Sequence[Explanation | None],
    ) -> None:  # fmt: skip
        self._job, self._scorer, self._config, self._pending, self._told = job, scorer, config, pending, told
        self.template = load_template(f"score/{scorer}", job.prompts)
        self._labels = every_label(job, explainer) if scorer == OUTPUT else []
        self._pool = _pool(job, config.seed) if scorer in (OUTPUT, INTERVENTION) else []

    def __call__(self, places: list[int]) -> list[Item]:
        items = self.prepared(places)
        self._job.store.insert_tasks([item.task for item in items if item.task is not None])
        return self.with_measurements(items)

    def with_measurements(self, items: Sequence[Item]) -> list[Item]:
        """The items with what the model answered to their tasks by now."""
        found = self._job.store.measurements_of([item.task.task_id for item in items if item.task is not None])
        return [i if i.task is None else replace(i, measurement=found.get(i.task.task_id)) for i in items]

    def prepared(self, places: Sequence[int]) -> list[Item]:
        """The items with their tasks; nothing is written."""
        features = list(dict.fromkeys(self._pending[i].feature for i in places))
        contexts = self._contexts(features)
        return [self._item(self._pending[i], self._told[i], contexts) for i in places]

    def _contexts(self, features: Sequence[int]) -> Mapping[int, list[Context]]:
        job = self._job
        if self._scorer in (SURPRISAL, EMBEDDING):
            limits = {"top": 2 * self._config.contexts, "sampled": None, "negative": None}
            return job.store.contexts_of(job.dictionary_id, job.harvest_id, features, "report", limits)
        if self._scorer == GENERATION:
            return job.store.contexts_of(job.dictionary_id, job.harvest_id, features, "select", {"negative": None})
        return {}

    def _item(self, own: Explanation, told: Explanation | None, contexts: Mapping[int, list[Context]]) -> Item:
        item = Item(own, told)
        if self._scorer == GENERATION:
            return replace(item, excerpts=snippets(contexts[own.feature]))
        if self._scorer in (SURPRISAL, EMBEDDING):
            return self._on_contexts(item, contexts[own.feature])
        return self._steered(item)

    def _on_contexts(self, item: Item, contexts: Sequence[Context]) -> Item:
        config, own = self._config, item.explanation
        examples = choose_examples(DETECTION, contexts, config.contexts, config.seed, own.dictionary_id)
        if not examples:
            return replace(item, measurement=Measurement("", "no_contexts"))
        payload: dict[str, Any]
        if self._scorer == SURPRISAL:
            payload = surprisal_payload(item.label, examples, self.template, config.language_model)
        else:
            payload = similarity_payload(item.label, examples, self.template, config.embedding_model)
        kind = "surprisal" if self._scorer == SURPRISAL else "similarity"
        return replace(item, examples=examples, task=measure_task(own, kind, payload))

    def _steered(self, item: Item) -> Item:
        config, own = self._config, item.explanation
        prompts = prompts_for(self._pool, own.feature)
        if not prompts:
            return replace(item, measurement=Measurement("", "no_contexts"))
        item = replace(item, prompts=prompts)
        steering = steering_payload(prompts, config)
        if self._scorer == INTERVENTION:
            if not item.label.strip():
                return replace(item, measurement=Measurement("", "empty_label"))
            payload = gain_payload(item.label, steering, self.template, config.language_model)
            return replace(item, task=measure_task(own, "label_gain", payload))
        excluded = frozenset({own.feature} if item.told is None else {own.feature, item.told.feature})
        questions = draw_questions(own, item.label, self._labels, excluded, config.distractors, config.seed)
        if not questions:
            return replace(item, measurement=Measurement("", "no_distractors"))
        return replace(item, questions=questions, task=measure_task(own, "steering", steering, shared=True))


def _pool(job: Job, seed: int) -> list[tuple[int, str]]:
    """(feature, beginning) of the texts that the model continues."""
    features = job.store.selected_features(job.dictionary_id, Selection(random=POOL, seed=seed))
    found = job.store.contexts_of(job.dictionary_id, job.harvest_id, features, "select", {"negative": None})
    return beginnings(found)
