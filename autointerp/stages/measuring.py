"""The stage between asking and judging: what scorers have asked of the model is measured and kept in the store.

A task and its answer are JSON (see records.MeasureTask):

    activations   {texts}                                     -> {max, n_tokens}: a number (or null) for each text
    surprisal     {prefixes, texts, language_model}           -> {nll}: for each prefix a number for each text
    similarity    {query, texts, model}                       -> {cosine}: a number for each text
    steering      {prompts, kl, n_tokens, n_random,           -> {strength, kl, clean, steered, random}: for each
                   temperature, seed}                            prompt a text; of a random feature the same
    label_gain    {steering, template, label, language_model} -> {clean, steered, random}: a number for each text

A task that cannot be answered gets a status that says why (tasks.NotMeasured), never a number. What a configuration or
an installation lacks (a model that is not there) ends the command instead, and its tasks stay to be measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from autointerp.config import SaeConfig
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import bos_prefix
from autointerp.measure.language import label_likelihood, surprisal
from autointerp.measure.similarity import SentenceEncoder, similarities
from autointerp.measure.texts import explain_ids, feature_maxima
from autointerp.model.load import LoadedModel, load_model, resolve_device
from autointerp.model.token_batches import Halving
from autointerp.records import Measurement, MeasureTask, stable_id
from autointerp.sae.sae import Sae
from autointerp.stages.session import Session, matching_sae
from autointerp.steer.steered import Steered, SteeredTexts
from autointerp.steer.steering import Steerer
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.tasks import Asked, LabelGain, NotMeasured, Similarity, Steering, Surprisal, parse

AT_ONCE = {"activations": 32, "steering": 8, "label_gain": 8, "surprisal": 4, "similarity": 16}
"""Tasks measured together and then committed, in the order in which kinds are measured: those that read the subject
model first. A run that is killed loses at most so many."""
KL_WINDOWS, KL_TOKENS = 8, 32
"""Windows of the explain split, and tokens of each, on which the KL of steering is matched."""

Measured = Sequence[tuple[MeasureTask, Any]]
"""Tasks with their payloads as read by `parse`."""


def measure(session: Session, store: Store, sae: SaeConfig, selection: Selection) -> int:
    """Measure what was asked and not measured yet of the chosen features; how many tasks were measured.

    Raises MismatchError where SAE or model are not those of the store; InputError where a model that a task names is
    not there; errors.OutOfMemoryError. What was measured until then is kept.
    """
    dictionary_id = store.dictionary(sae.dictionary).dictionary_id
    features = None if selection == Selection() else store.selected_features(dictionary_id, selection)
    tasks = store.tasks_to_measure(dictionary_id, features)
    if not tasks:
        session.terminal.say(f"{sae.dictionary}: nothing to measure")
        return 0
    measurer = _Measurer(session, store, sae, dictionary_id)
    statuses: Counter[str] = Counter()
    with session.terminal.progress(f"{sae.dictionary}: measuring", len(tasks), "tasks") as update:
        for kind, measured in measurer.run(tasks):
            store.insert_measurements(measured)
            statuses.update(one.status for one in measured)
            update(sum(statuses.values()), note=kind)
            if sum(statuses.values()) < len(tasks):
                session.deadline.check()
    listed = ", ".join(f"{n:,} {status}" for status, n in sorted(statuses.items()))
    session.terminal.say(f"{sae.dictionary}: measured {listed}")
    return len(tasks)


class _Measurer:
    """The models that one command needs, each loaded when the first task needs it."""

    def __init__(self, session: Session, store: Store, sae: SaeConfig, dictionary_id: int) -> None:
        self.session, self.store, self.sae, self.dictionary_id = session, store, sae, dictionary_id
        self.config = session.config
        self.batch_tokens = session.config.model.batch_tokens
        self.halving = Halving()
        """Of the subject model."""
        self._steered: dict[str, Steered | NotMeasured] = {}
        self._language_models: dict[str, tuple[LoadedModel, Halving]] = {}
        self._encoders: dict[str, SentenceEncoder] = {}

    def run(self, tasks: Sequence[MeasureTask]) -> Iterator[tuple[str, list[Measurement]]]:
        """(kind, measurements) of a few tasks at a time."""
        parsed: dict[str, list[tuple[MeasureTask, Asked]]] = {kind: [] for kind in AT_ONCE}
        bad: list[Measurement] = []
        for task in tasks:
            try:
                payload = parse(task.kind, task.payload)
            except NotMeasured as reason:
                bad.append(_failed(task, reason))
                continue
            parsed[task.kind].append((task, payload))
        if bad:
            yield "bad tasks", bad
        work: dict[str, Callable[[Any], list[Measurement]]] = {
            "activations": self.activations,
            "steering": self.steering,
            "label_gain": self.label_gain,
            "surprisal": self.surprisal,
            "similarity": self.similarity,
        }
        for kind, at_once in AT_ONCE.items():
            for group in _by_model(parsed[kind]):
                for start in range(0, len(group), at_once):
                    yield kind, work[kind](group[start : start + at_once])

    # --- what the kinds need ---------------------------------------------------------------------------------------

    @cached_property
    def subject(self) -> tuple[LoadedModel, Sae]:
        """The model and the SAE, which are those of the store."""
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
        """The subject model for "" and for its own name, else another one (one is held at a time)."""
        if name in ("", self.config.model.name):
            return self.subject[0], self.halving
        if name not in self._language_models:
            self._language_models.clear()
            other = replace(self.config.model, name=name, revision=None)
            self._language_models[name] = load_model(other), Halving()
            self.session.terminal.detail(f"language model {name}")
        return self._language_models[name]

    def encoder(self, name: str) -> SentenceEncoder:
        if name not in self._encoders:
            self._encoders.clear()
            self._encoders[name] = SentenceEncoder(name, resolve_device(self.config.model.device))
        return self._encoders[name]

    # --- the kinds -------------------------------------------------------------------------------------------------

    def activations(self, tasks: Measured) -> list[Measurement]:
        loaded, weights = self.subject
        asked = [(task.feature, payload.texts) for task, payload in tasks]
        found = feature_maxima(
            loaded, weights, self.session.points(self.sae)[0], asked, self.config.corpus, self.excluded,
            self.batch_tokens, self.halving,
        )  # fmt: skip
        return [
            _failed(task, one)
            if isinstance(one, NotMeasured)
            else _ok(task, {"max": one.maximum, "n_tokens": one.n_tokens}, one.n_forwards, one.n_read)
            for (task, _), one in zip(tasks, found, strict=True)
        ]

    def surprisal(self, tasks: Measured) -> list[Measurement]:
        loaded, halving = self.language_model(tasks[0][1].language_model)
        found = surprisal(loaded, [payload for _, payload in tasks], self.batch_tokens, halving)
        return [
            _failed(task, one)
            if isinstance(one, NotMeasured)
            else _ok(task, {"nll": one.rows}, one.n_forwards, one.n_tokens)
            for (task, _), one in zip(tasks, found, strict=True)
        ]

    def similarity(self, tasks: Measured) -> list[Measurement]:
        encoder = self.encoder(tasks[0][1].model)
        found = similarities(encoder, [payload for _, payload in tasks], self.batch_tokens)
        return [
            _failed(task, one)
            if isinstance(one, NotMeasured)
            else _ok(task, {"cosine": one.values}, one.n_forwards, one.n_tokens)
            for (task, _), one in zip(tasks, found, strict=True)
        ]

    def steering(self, tasks: Measured) -> list[Measurement]:
        found = self._steer([(task.feature, payload) for task, payload in tasks])
        return [
            _failed(task, one)
            if isinstance(one, NotMeasured)
            else _ok(task, _steering_result(one), one.n_forwards, one.n_tokens)
            for (task, _), one in zip(tasks, found, strict=True)
        ]

    def _steer(self, tasks: Sequence[tuple[int, Steering]]) -> list[Steered | NotMeasured]:
        """Each (feature, payload) is steered once in a command; the second time it costs nothing."""
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
                if isinstance(found, Steered):  # the first bears what was done for all
                    found.n_forwards, found.n_tokens = found.n_forwards + shared[0], found.n_tokens + shared[1]
                    shared = 0, 0
        results = []
        for key in keys:
            found = self._steered[key]
            results.append(found)
            if isinstance(found, Steered):
                self._steered[key] = replace(found, n_forwards=0, n_tokens=0)
        return results

    def label_gain(self, tasks: Measured) -> list[Measurement]:
        steered = self._steer([(task.feature, payload.steered) for task, payload in tasks])
        loaded, halving = self.language_model(tasks[0][1].language_model)
        asked = [
            (payload, one.arms()) for (_, payload), one in zip(tasks, steered, strict=True) if isinstance(one, Steered)
        ]
        likelihoods = iter(label_likelihood(loaded, asked, self.batch_tokens, halving))
        results = []
        for (task, _), texts in zip(tasks, steered, strict=True):
            found = texts if isinstance(texts, NotMeasured) else next(likelihoods)
            if isinstance(texts, NotMeasured) or isinstance(found, NotMeasured):
                assert isinstance(found, NotMeasured)
                results.append(_failed(task, found))
                continue
            clean, own, *random = found.rows
            n_forwards, n_tokens = texts.n_forwards + found.n_forwards, texts.n_tokens + found.n_tokens
            results.append(_ok(task, {"clean": clean, "steered": own, "random": random}, n_forwards, n_tokens))
        return results


def _by_model(tasks: Measured) -> list[list[tuple[MeasureTask, Any]]]:
    """The tasks of each further model by themselves, so that every model is loaded once."""
    groups: dict[str, list[tuple[MeasureTask, Any]]] = {}
    for task, payload in tasks:
        name = payload.model if isinstance(payload, Similarity) else ""
        if isinstance(payload, Surprisal | LabelGain):
            name = payload.language_model
        groups.setdefault(name, []).append((task, payload))
    return list(groups.values())


def _steering_result(steered: Steered) -> dict[str, Any]:
    return {
        "strength": steered.own.strength,
        "kl": steered.own.kl,
        "clean": steered.clean,
        "steered": steered.own.texts,
        "random": [asdict(arm) for arm in steered.random],
    }


def _ok(task: MeasureTask, result: dict[str, Any], n_forwards: int, n_tokens: int) -> Measurement:
    return Measurement(task.task_id, "ok", result, None, n_forwards, n_tokens)


def _failed(task: MeasureTask, reason: NotMeasured) -> Measurement:
    return Measurement(task.task_id, reason.status, None, reason.error)
