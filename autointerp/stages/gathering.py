"""The stage that finds out about features what the harvest does not tell. Every method is run once for a harvest and
its settings, and its findings are rows in the store for explainers and for SQL (see the table method_runs).

    of a whole dictionary at once  shape, words (from the store alone), output_statistic, mutual_information (from the
                                   weights), neighbours (one short pass over the text)
    feature by feature             pruning, token_change: the model runs for each of them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import torch

from autointerp.config import METHODS, EvidenceConfig, SaeConfig
from autointerp.corpus.token_text import TokenText
from autointerp.errors import InputError, nearest
from autointerp.evidence.mutual_information import mutual_information, vocabulary
from autointerp.evidence.neighbours import relations
from autointerp.evidence.output_statistic import output_statistics
from autointerp.evidence.pruning import prune
from autointerp.evidence.token_change import token_change
from autointerp.measure.texts import explain_ids
from autointerp.records import Window
from autointerp.sae.sae import Sae
from autointerp.stages.session import Session, digest, matching_sae
from autointerp.steer.steering import Steerer
from autointerp.store.contexts import strongest_contexts
from autointerp.store.findings import MethodRun
from autointerp.store.input_words import find_input_words
from autointerp.store.rows import DictionaryRow
from autointerp.store.selection import Selection
from autointerp.store.shapes import Describe, find_shapes
from autointerp.store.store import Store

ONE_BY_ONE = ("pruning", "token_change")
BLOCK = 64
"""Features whose findings are written together: what a kill loses at most. Random features to compare with are steered
once for each block."""
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "shape": (),
    "words": ("words",),
    "neighbours": ("relation_tokens", "related"),
    "output_statistic": ("seed",),
    "mutual_information": ("mi_words", "mi_mode", "words"),
    "pruning": ("pruned_contexts", "prune_mode", "prune_keep", "prune_longest", "substitutes"),
    "token_change": ("change_prompts", "change_tokens", "change_kl", "change_random", "words", "seed"),
}
"""What each method's findings depend on; other settings may change without running it again."""
VERSION = 1
"""Raised when a method finds something else with the same settings."""

EVERYTHING = Selection()
Columns = Mapping[str, Sequence[Any]]


def gather(
    session: Session,
    store: Store,
    sae: SaeConfig,
    methods: Sequence[str],
    describe: Describe,
    selection: Selection = EVERYTHING,
) -> bool:
    """Run `methods` on the features that they were not run on yet; whether there were any.

    A method of the whole dictionary ignores the selection. `describe` puts a shape into words. Raises InputError (no
    such method, nothing harvested).
    """
    for method in methods:
        if method not in METHODS:
            raise InputError(f"no method {method!r}; there are {', '.join(METHODS)}.{nearest(method, METHODS)}")
    row = store.dictionary(sae.dictionary)
    harvest_id = store.current_harvest(row.dictionary_id)
    if harvest_id is None:
        raise InputError(f"{row.name} was not harvested yet; run `autointerp harvest` first")
    weights = cache(lambda: matching_sae(session, store, sae)[1])  # not read where nothing is pending
    worked = False
    for method in METHODS:
        if method not in methods:
            continue
        settings = settings_sha256(method, session.config.evidence)
        wanted = store.selected_features(row.dictionary_id, selection if method in ONE_BY_ONE else EVERYTHING)
        studied = store.features_studied(method, row.dictionary_id, harvest_id, settings)
        pending = [feature for feature in wanted if feature not in studied]
        if not pending:
            continue
        study = _Study(session, store, sae, row, harvest_id, method, settings, describe, weights)
        (study.one_by_one if method in ONE_BY_ONE else study.whole)(pending)
        worked = True
    return worked


def settings_sha256(method: str, config: EvidenceConfig) -> str:
    held = asdict(config)
    return digest([VERSION, method, {name: held[name] for name in SETTINGS[method]}])


class _Study:
    """One method on one dictionary."""

    def __init__(
        self, session: Session, store: Store, sae: SaeConfig, row: DictionaryRow, harvest_id: int, method: str,
        settings: str, describe: Describe, weights: Callable[[], Sae],
    ) -> None:  # fmt: skip
        self.session, self.store, self.sae, self.row = session, store, sae, row
        self.harvest_id, self.method, self.settings = harvest_id, method, settings
        self.describe, self.weights, self.config = describe, weights, session.config.evidence

    # --- a whole dictionary at once ----------------------------------------------------------------------------------

    def whole(self, pending: Sequence[int]) -> None:
        find: dict[str, Callable[[], tuple[Columns | None, int, int]]] = {
            "shape": self._shape,
            "words": self._words,
            "neighbours": self._neighbours,
            "output_statistic": self._output_statistic,
            "mutual_information": self._mutual_information,
        }
        columns, n_windows, n_tokens = find[self.method]()
        features = self.store.selected_features(self.row.dictionary_id, EVERYTHING)
        if columns is None:
            runs = [MethodRun(f, "no_output_space", _NO_OUTPUT_SPACE) for f in features]
            columns = {}
        else:
            # The cost of a pass is the dictionary's; its first feature's row carries it.
            runs = [MethodRun(f, n_forwards=0 if i else n_windows, n_tokens=0 if i else n_tokens)
                    for i, f in enumerate(features)]  # fmt: skip
            columns = _of_features(columns, set(features))
        self._write(runs, columns)
        n = len(next(iter(columns.values()), ()))
        self.session.terminal.say(f"{self.row.name}: {self.method} of {len(features):,} features: {n:,} rows")

    def _shape(self) -> tuple[Columns, int, int]:
        return find_shapes(self.store, self.row.dictionary_id, self.harvest_id, self.describe), 0, 0

    def _words(self) -> tuple[Columns, int, int]:
        return find_input_words(self.store, self.row.dictionary_id, self.harvest_id, self.config.words), 0, 0

    def _output_statistic(self) -> tuple[Columns | None, int, int]:
        found = output_statistics(self.session.model(), self.weights(), self._text(), self._alive(), self.config.seed)
        return found, 0, 0

    def _mutual_information(self) -> tuple[Columns | None, int, int]:
        text = self._text()
        words = vocabulary(self._windows(), text, self.config.mi_words)
        found = mutual_information(self.session.model(), self.weights(), text, words, self.config, self._alive())
        return found, 0, 0

    def _neighbours(self) -> tuple[Columns, int, int]:
        point, _ = self.session.points(self.sae)
        excluded = torch.tensor(sorted(self._excluded()), dtype=torch.int64)
        batch_tokens = self.session.config.model.batch_tokens
        found = relations(
            self.session.model(), self.weights(), point, self._windows(), self.config, excluded, batch_tokens,
            self._alive(),
        )  # fmt: skip
        return found.columns, found.n_windows, found.n_tokens

    # --- feature by feature ------------------------------------------------------------------------------------------

    def one_by_one(self, pending: Sequence[int]) -> None:
        study = self._pruning() if self.method == "pruning" else self._token_change()
        done = 0
        with self.session.terminal.progress(f"{self.row.name}: {self.method}", len(pending), "features") as update:
            for start in range(0, len(pending), BLOCK):
                block = pending[start : start + BLOCK]
                runs, columns = study(block)
                self._write(runs, columns)
                done += len(block)
                update(done)
                if done < len(pending):
                    self.session.deadline.check()

    def _pruning(self) -> Callable[[Sequence[int]], tuple[list[MethodRun], Columns]]:
        loaded, weights, text = self.session.model(), self.weights(), self._text()
        point, _ = self.session.points(self.sae)
        excluded, batch_tokens = self._excluded(), self.session.config.model.batch_tokens

        def study(block: Sequence[int]) -> tuple[list[MethodRun], Columns]:
            contexts = strongest_contexts(self.store, self.row.dictionary_id, block, self.config.pruned_contexts)
            found = prune(loaded, weights, point, contexts, self.config, text, excluded, batch_tokens=batch_tokens)
            cost = {f: [0, 0] for f in block}
            rows: dict[str, list[Any]] = {name: [] for name in _PRUNED_COLUMNS}
            rank = dict.fromkeys(block, 0)
            for one in found:
                p = one.context
                cost[p.feature][0] += one.n_forwards
                cost[p.feature][1] += one.n_tokens
                tried = [asdict(c) for c in p.counterfactuals]
                values = (
                    p.feature, rank[p.feature], p.context_id, p.mode, p.status, p.tokens, p.importance, p.activation,
                    p.full_activation, tried,
                )  # fmt: skip
                rank[p.feature] += 1
                for name, value in zip(_PRUNED_COLUMNS, values, strict=True):
                    rows[name].append(value)
            runs = [
                MethodRun(f, "ok", None, *cost[f])
                if rank[f]
                else MethodRun(f, "no_contexts", "the explain split has no context of it")
                for f in block
            ]
            return runs, rows

        return study

    def _token_change(self) -> Callable[[Sequence[int]], tuple[list[MethodRun], Columns]]:
        loaded, text, config = self.session.model(), self._text(), self.config
        point, output = self.session.points(self.sae)
        batch_tokens = self.session.config.model.batch_tokens
        steerer = Steerer(loaded, self.weights(), point, output, self._excluded(), batch_tokens)
        scales = self.store.max_activations(self.row.dictionary_id)
        ids = explain_ids(self.session.units(), config.change_prompts, config.change_tokens)

        def study(block: Sequence[int]) -> tuple[list[MethodRun], Columns]:
            found = token_change(steerer, block, scales, ids, config, text, config.words, config.seed, list(scales))
            rows: dict[str, list[Any]] = {name: [] for name in _CHANGE_COLUMNS}
            runs = []
            for one in found:
                error = None if one.status == "ok" else _UNCHANGED[one.status].format(config.change_kl)
                runs.append(MethodRun(one.feature, one.status, error, one.n_forwards, one.n_tokens))
                for row in one.rows:
                    shift = (row.sign, row.rank, row.token_id, row.token, row.delta, row.z)
                    values = (one.feature, *shift, one.strength.value, one.strength.kl)
                    for name, value in zip(_CHANGE_COLUMNS, values, strict=True):
                        rows[name].append(value)
            return runs, rows

        return study

    # --- what they share ---------------------------------------------------------------------------------------------

    def _text(self) -> TokenText:
        return TokenText(self.session.model().tokenizer)

    def _alive(self) -> np.ndarray:
        """bool [d_sae]."""
        alive = np.zeros(self.row.d_sae, dtype=bool)
        alive[self.store.selected_features(self.row.dictionary_id, EVERYTHING)] = True
        return alive

    def _excluded(self) -> frozenset[int]:
        return self._text().excluded_ids(self.session.config.corpus.exclude_tokens)

    def _windows(self) -> Iterator[Sequence[Window]]:
        """Unit by unit, of the explain split: nothing that labels are made from may see the others."""
        for unit in self.session.units():
            yield [window for window in unit.windows if window.split == "explain"]

    def _write(self, runs: Sequence[MethodRun], columns: Columns) -> None:
        self.store.replace_findings(self.method, self.row.dictionary_id, self.harvest_id, self.settings, runs, columns)


_UNCHANGED = {
    "kl_not_reached": "no clamp value moves the model by {} nats per token",
    "no_baseline": "too few random features move the model by {} nats per token to compare with",
}
_NO_OUTPUT_SPACE = "the SAE's vectors have another width than the unembedding, so they say nothing of tokens"
_PRUNED_COLUMNS = (
    "feature", "rank", "context_id", "mode", "status", "tokens", "importance", "activation", "full_activation",
    "counterfactuals",
)  # fmt: skip
_CHANGE_COLUMNS = ("feature", "sign", "rank", "token_id", "token", "delta", "z", "strength", "kl")


def _of_features(columns: Columns, features: set[int]) -> Columns:
    """The rows of these features: dead ones have no findings."""
    kept = [i for i, feature in enumerate(columns["feature"]) if int(feature) in features]
    if len(kept) == len(columns["feature"]):
        return {name: _plain(values) for name, values in columns.items()}
    return {name: [values[i] for i in kept] for name, values in ((n, _plain(v)) for n, v in columns.items())}


def _plain(values: Sequence[Any]) -> Sequence[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else values
