"""The stage between asking and judging: the model answers what scorers have asked, and the answers go into the store.

tasks.py holds the contract. A task that cannot be answered gets a status that says why (tasks.NotMeasured), never a
number. If the configuration or the installation lacks something, such as a model, the command ends instead, and its
tasks remain to be measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from autointerp.config import SaeConfig
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import bos_prefix
from autointerp.measure.language import label_likelihood, surprisal
from autointerp.measure.similarity import SentenceEncoder, similarities
from autointerp.measure.texts import explain_ids, feature_maxima
from autointerp.model.load import LoadedModel, resolve_device
from autointerp.model.padding import load_checked
from autointerp.model.token_batches import Halving
from autointerp.records import Measurement, MeasureTask, stable_id
from autointerp.sae.sae import Sae
from autointerp.stages.session import Session, matching_sae
from autointerp.steer.continuations import Steered, SteeredTexts
from autointerp.steer.steering import Steerer
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.tasks import (
    Activations,
    ActivationsAnswer,
    Answer,
    Asked,
    LabelGain,
    LabelGainAnswer,
    NotMeasured,
    Similarity,
    SimilarityAnswer,
    SteeredByOther,
    Steering,
    SteeringAnswer,
    Surprisal,
    SurprisalAnswer,
    parse,
)

KL_WINDOWS, KL_TOKENS = 8, 32
"""The KL of steering is matched on this many windows of the explain split, and this many tokens of each."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One task's answer and its cost."""

    answer: Answer
    n_forwards: int
    """The number of sequences that a model read."""
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Kind:
    """The way to answer one kind of task."""

    name: str
    at_once: int
    """How many tasks are answered together and then committed; a kill loses no more."""
    answers: Callable[[Models, Sequence[tuple[int, Any]]], list[Answered | NotMeasured]]
    """Gives one result for each (feature, task). All tasks of a call name one further model."""
    further_model: Callable[[Any], str] = lambda task: ""
    """The model that a task names besides the subject model. Its tasks are answered together, so it is loaded once."""


def measure(session: Session, store: Store, sae: SaeConfig, selection: Selection) -> int:
    """Answer the open tasks about the chosen features. Returns how many tasks were measured.

    Raises MismatchError if SAE or model are not those of the store, InputError if a model that a task names is missing,
    and errors.OutOfMemoryError. Earlier measurements are kept.
    """
    dictionary_id = store.dictionary(sae.dictionary).dictionary_id
    features = None if selection == Selection() else store.selected_features(dictionary_id, selection)
    tasks = store.tasks_to_measure(dictionary_id, features)
    if not tasks:
        session.terminal.say(f"{sae.dictionary}: nothing to measure")
        return 0
    statuses: Counter[str] = Counter()
    with session.terminal.progress(f"{sae.dictionary}: measuring", len(tasks), "tasks") as update:
        for kind, measured in _measurements(Models(session, store, sae, dictionary_id), tasks):
            store.insert_measurements(measured)
            statuses.update(one.status for one in measured)
            update(sum(statuses.values()), note=kind)
            if sum(statuses.values()) < len(tasks):
                session.deadline.check()
    listed = ", ".join(f"{n:,} {status}" for status, n in sorted(statuses.items()))
    session.terminal.say(f"{sae.dictionary}: measured {listed}")
    return len(tasks)


def _measurements(models: Models, tasks: Sequence[MeasureTask]) -> Iterator[tuple[str, list[Measurement]]]:
    """Yields (kind, measurements), a few tasks at a time."""
    parsed: dict[str, list[tuple[MeasureTask, Asked]]] = {kind.name: [] for kind in KINDS}
    bad: list[Measurement] = []
    for task in tasks:
        try:
            asked = parse(task.kind, task.payload)
        except NotMeasured as reason:
            bad.append(_measurement(task, reason))
            continue
        parsed[task.kind].append((task, asked))
    if bad:
        yield "bad tasks", bad
    for kind in KINDS:
        groups: dict[str, list[tuple[MeasureTask, Asked]]] = {}
        for task, asked in parsed[kind.name]:
            groups.setdefault(kind.further_model(asked), []).append((task, asked))
        for group in groups.values():
            for start in range(0, len(group), kind.at_once):
                block = group[start : start + kind.at_once]
                found = kind.answers(models, [(task.feature, asked) for task, asked in block])
                yield kind.name, [_measurement(task, one) for (task, _), one in zip(block, found, strict=True)]


def _measurement(task: MeasureTask, found: Answered | NotMeasured) -> Measurement:
    if isinstance(found, NotMeasured):
        return Measurement(task.task_id, found.status, None, found.error)
    return Measurement(task.task_id, "ok", found.answer.result(), None, found.n_forwards, found.n_tokens)


class Models:
    """The models of one command, each loaded when the first task needs it."""

    def __init__(self, session: Session, store: Store, sae: SaeConfig, dictionary_id: int) -> None:
        self.session, self.store, self.sae, self.dictionary_id = session, store, sae, dictionary_id
        self.config = session.config
        self.batch_tokens = session.config.model.batch_tokens
        self.halving = Halving()
        """Records how far batches of the subject model were halved."""
        self._steered: dict[str, Steered | NotMeasured] = {}
        self._language_models: dict[str, tuple[LoadedModel, Halving]] = {}
        self._encoders: dict[str, SentenceEncoder] = {}

    @cached_property
    def subject(self) -> tuple[LoadedModel, Sae]:
        """The model and the SAE, checked against the store."""
        weights = matching_sae(self.session, self.store, self.sae)[1]
        return self.session.model(), weights

    @cached_property
    def text(self) -> TokenText:
        return TokenText(self.subject[0].tokenizer)

    @cached_property
    def excluded(self) -> frozenset[int]:
        return self.text.excluded_ids(self.config.corpus.exclude_tokens)

    @cached_property
    def steered_texts(self) -> SteeredTexts:
        (loaded, weights), (point, output) = self.subject, self.session.points(self.sae)
        kl_ids = explain_ids(self.session.units(), KL_WINDOWS, KL_TOKENS)
        steerer = Steerer(loaded, weights, point, output, tuple(sorted(self.excluded)), self.batch_tokens)
        firing = self.store.firing_features(self.dictionary_id)
        prefix = bos_prefix(loaded.tokenizer, self.config.corpus)
        return SteeredTexts(loaded, steerer, self.text, prefix, kl_ids, firing)

    def language_model(self, name: str) -> tuple[LoadedModel, Halving]:
        """The subject model for "" and for its own name, or else another model, of which one is held at a time."""
        if name in ("", self.config.model.name):
            return self.subject[0], self.halving
        if name not in self._language_models:
            self._language_models.clear()
            other = replace(self.config.model, name=name, revision=None)
            self._language_models[name] = load_checked(other, self.config.corpus.context_length), Halving()
            self.session.terminal.detail(f"language model {name}")
        return self._language_models[name]

    def encoder(self, name: str) -> SentenceEncoder:
        if name not in self._encoders:
            self._encoders.clear()
            self._encoders[name] = SentenceEncoder(name, resolve_device(self.config.model.device))
        return self._encoders[name]

    def steer(self, tasks: Sequence[tuple[int, Steering]]) -> list[Steered | NotMeasured]:
        """Steers each (feature, task) once in a command. Asking for it again costs nothing."""
        keys = [stable_id(feature, asdict(asked)) for feature, asked in tasks]
        new = {key: task for key, task in zip(keys, tasks, strict=True) if key not in self._steered}
        if new:
            steerer = self.steered_texts.steerer
            before = steerer.n_forwards, steerer.n_tokens
            self.steered_texts.prepare(list(new.values()))
            shared = steerer.n_forwards - before[0], steerer.n_tokens - before[1]
            for key, (feature, asked) in new.items():
                try:
                    self._steered[key] = self.steered_texts.measure(feature, asked)
                except NotMeasured as reason:
                    self._steered[key] = reason
                found = self._steered[key]
                if isinstance(found, Steered):  # the first one bears the shared cost
                    found.n_forwards, found.n_tokens = found.n_forwards + shared[0], found.n_tokens + shared[1]
                    shared = 0, 0
        results = []
        for key in keys:
            found = self._steered[key]
            results.append(found)
            if isinstance(found, Steered):
                self._steered[key] = replace(found, n_forwards=0, n_tokens=0)
        return results


# --- how each kind is answered ----------------------------------------------------------------------------------------


def _activations(models: Models, tasks: Sequence[tuple[int, Activations]]) -> list[Answered | NotMeasured]:
    loaded, weights = models.subject
    found = feature_maxima(
        loaded, weights, models.session.points(models.sae)[0], [(feature, asked.texts) for feature, asked in tasks],
        models.config.corpus, models.excluded, models.batch_tokens, models.halving,
    )  # fmt: skip
    return [
        one
        if isinstance(one, NotMeasured)
        else Answered(ActivationsAnswer(one.maximum, one.n_tokens), one.n_forwards, one.n_read)
        for one in found
    ]


def _surprisal(models: Models, tasks: Sequence[tuple[int, Surprisal]]) -> list[Answered | NotMeasured]:
    loaded, halving = models.language_model(tasks[0][1].language_model)
    found = surprisal(loaded, [asked for _, asked in tasks], models.batch_tokens, halving)
    return [
        one if isinstance(one, NotMeasured) else Answered(SurprisalAnswer(one.rows), one.n_forwards, one.n_tokens)
        for one in found
    ]


def _similarity(models: Models, tasks: Sequence[tuple[int, Similarity]]) -> list[Answered | NotMeasured]:
    found = similarities(models.encoder(tasks[0][1].model), [asked for _, asked in tasks], models.batch_tokens)
    return [
        one if isinstance(one, NotMeasured) else Answered(SimilarityAnswer(one.values), one.n_forwards, one.n_tokens)
        for one in found
    ]


def _steering(models: Models, tasks: Sequence[tuple[int, Steering]]) -> list[Answered | NotMeasured]:
    return [
        one if isinstance(one, NotMeasured) else Answered(_steering_answer(one), one.n_forwards, one.n_tokens)
        for one in models.steer(tasks)
    ]


def _steering_answer(steered: Steered) -> SteeringAnswer:
    own, others = steered.own, [SteeredByOther(arm.feature, arm.strength, arm.kl, arm.texts) for arm in steered.random]
    return SteeringAnswer(own.strength, own.kl, steered.clean, own.texts, others)


def _label_gain(models: Models, tasks: Sequence[tuple[int, LabelGain]]) -> list[Answered | NotMeasured]:
    steered = models.steer([(feature, asked.steering) for feature, asked in tasks])
    loaded, halving = models.language_model(tasks[0][1].language_model)
    read = [(asked, one.arms()) for (_, asked), one in zip(tasks, steered, strict=True) if isinstance(one, Steered)]
    likelihoods = iter(label_likelihood(loaded, read, models.batch_tokens, halving))
    results: list[Answered | NotMeasured] = []
    for texts in steered:
        found = texts if isinstance(texts, NotMeasured) else next(likelihoods)
        if isinstance(texts, NotMeasured) or isinstance(found, NotMeasured):
            assert isinstance(found, NotMeasured)
            results.append(found)
            continue
        clean, own, *others = found.rows
        n_forwards, n_tokens = texts.n_forwards + found.n_forwards, texts.n_tokens + found.n_tokens
        results.append(Answered(LabelGainAnswer(clean, own, others), n_forwards, n_tokens))
    return results


KINDS = (
    Kind(Activations.kind, 32, _activations),
    Kind(Steering.kind, 8, _steering),
    Kind(LabelGain.kind, 8, _label_gain, lambda task: str(task.language_model)),
    Kind(Surprisal.kind, 4, _surprisal, lambda task: str(task.language_model)),
    Kind(Similarity.kind, 16, _similarity, lambda task: str(task.model)),
)
"""The kinds in the order in which they are measured. Those that read the subject model come first."""
