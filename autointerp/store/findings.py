"""What evidence methods found beyond the harvest, and what scorers ask of the model: writing and reading.

A method's rows and its rows in `method_runs` are written in one transaction, so a feature either has both or neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autointerp.errors import AutointerpError
from autointerp.records import (
    ChangedToken,
    Counterfactual,
    FeatureShape,
    Measurement,
    MeasureTask,
    PrunedContext,
    RelatedWord,
)
from autointerp.store.connection import StoreConnection
from autointerp.store.values import as_json, clean

TABLE_OF: dict[str, str] = {
    "shape": "feature_shapes",
    "words": "input_words",
    "neighbours": "neighbours",
    "output_statistic": "output_statistics",
    "mutual_information": "mutual_information",
    "pruning": "pruned_contexts",
    "token_change": "token_changes",
}
"""Where each method's findings are."""


@dataclass(frozen=True, slots=True)
class MethodRun:
    """That a method was run on a feature, and what came of it."""

    feature: int
    status: str = "ok"
    error: str | None = None
    n_forwards: int = 0
    """Sequences that the model read."""
    n_tokens: int = 0


class StoreFindings(StoreConnection):
    # --- evidence methods ------------------------------------------------------------------------------------------

    def replace_findings(
        self, method: str, dictionary_id: int, harvest_id: int, settings_sha256: str, runs: Sequence[MethodRun],
        columns: Mapping[str, Sequence[Any]],
    ) -> None:  # fmt: skip
        """Sets what `method` found of the features in `runs`, whatever an earlier run had found of them.

        `columns`: those of the method's table, without dictionary_id and harvest_id; equally long, in any order of
        features, all of which are in `runs`.
        """
        table = TABLE_OF[method]
        features = [run.feature for run in runs]
        stray = set(columns.get("feature", ())) - set(features)
        if stray:
            raise AutointerpError(f"{method}: findings of feature {min(stray)}, on which it was not run")
        with self.transaction() as con:
            types = {row[0]: row[1] for row in con.execute(f"DESCRIBE {table}").fetchall()}
            for name, keys, values in (
                (table, "dictionary_id = ?", [dictionary_id]),
                ("method_runs", "dictionary_id = ? AND method = ?", [dictionary_id, method]),
            ):
                con.execute(
                    f"DELETE FROM {name} WHERE {keys} AND feature IN (SELECT unnest(?::INTEGER[]))",
                    [*values, features],
                )
            n = len(columns["feature"]) if columns else 0
            if n:
                own = {"dictionary_id": [dictionary_id] * n, "harvest_id": [harvest_id] * n}
                data = {name: values for name, values in own.items() if name in types}
                data |= {name: [clean(value) for value in values] for name, values in columns.items()}
                self.insert_columns(table, data)
            now = self.now()
            self.insert_columns(
                "method_runs",
                {
                    "dictionary_id": [dictionary_id] * len(runs),
                    "feature": features,
                    "harvest_id": [harvest_id] * len(runs),
                    "method": [method] * len(runs),
                    "settings_sha256": [settings_sha256] * len(runs),
                    "status": [run.status for run in runs],
                    "error": [clean(run.error) for run in runs],
                    "n_forwards": [run.n_forwards for run in runs],
                    "n_tokens": [run.n_tokens for run in runs],
                    "created_at": [now] * len(runs),
                },
            )

    def features_studied(self, method: str, dictionary_id: int, harvest_id: int, settings_sha256: str) -> set[int]:
        """Features on which `method` was run on this harvest with these settings."""
        found = self.rows(
            "SELECT feature FROM method_runs WHERE dictionary_id = ? AND method = ? AND harvest_id = ? "
            "AND settings_sha256 = ?",
            [dictionary_id, method, harvest_id, settings_sha256],
        )
        return {int(feature) for (feature,) in found}

    def features_with_findings(self, method: str, dictionary_id: int) -> set[int]:
        """Features of which `method` (one of TABLE_OF, or vocab_projection) found anything; of pruning, only what keeps
        the peak counts."""
        table = TABLE_OF.get(method, "vocab_projection")
        kept = " AND status = 'ok'" if method == "pruning" else ""
        found = self.rows(f"SELECT DISTINCT feature FROM {table} WHERE dictionary_id = ?{kept}", [dictionary_id])
        return {int(feature) for (feature,) in found}

    def shape_labels(self, dictionary_id: int) -> dict[int, FeatureShape]:
        """Shapes that are a label by themselves."""
        found = self.rows(
            "SELECT feature, kind, unigram, unigram_purity, position_dependence, text, rule FROM feature_shapes "
            "WHERE dictionary_id = ? AND trim(text) <> '' ORDER BY feature",
            [dictionary_id],
        )
        return {int(feature): FeatureShape(*values) for feature, *values in found}

    def findings_of(self, dictionary_id: int, features: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Per feature the fields of FeatureEvidence that evidence methods fill; where they found nothing, none."""
        wanted = [int(f) for f in features]
        result: dict[int, dict[str, Any]] = {f: {} for f in wanted}
        if not wanted:
            return result
        key = [dictionary_id, min(wanted), max(wanted), wanted]

        def rows(columns: str, table: str, order: str) -> list[tuple[Any, ...]]:
            return self.rows(
                f"SELECT feature, {columns} FROM {table} WHERE dictionary_id = ? AND feature BETWEEN ? AND ? "
                f"AND feature IN (SELECT unnest(?::INTEGER[])) ORDER BY {order}",
                key,
            )

        for feature, context_id, mode, tokens, importance, activation, full, status, tried in rows(
            "context_id, mode, tokens, importance, activation, full_activation, status, counterfactuals",
            "pruned_contexts", "feature, rank",
        ):  # fmt: skip
            counterfactuals = [Counterfactual(**one) for one in tried]
            pruned = PrunedContext(
                feature, context_id, mode, tokens, importance, activation, full, status, counterfactuals
            )
            result[feature].setdefault("pruned", []).append(pruned)
        for feature, *values in rows("token, sign, rank, delta, z", "token_changes", "feature, sign DESC, rank"):
            result[feature].setdefault("changed", []).append(ChangedToken(*values))
        for feature, *values in rows("word, rank, score", "mutual_information", "feature, rank"):
            result[feature].setdefault("related_words", []).append(RelatedWord(*values))
        for feature, *values in rows("word, rank, pmi", "input_words", "feature, rank"):
            result[feature].setdefault("input_words", []).append(RelatedWord(*values))
        shape = "kind, unigram, unigram_purity, position_dependence, text, rule"
        for feature, *values in rows(shape, "feature_shapes", "feature"):
            result[feature]["shape"] = FeatureShape(*values)
        for feature, is_output in rows("is_output", "output_statistics", "feature"):
            result[feature]["is_output"] = is_output
        return result

    def findings_page(self, dictionary_id: int, feature: int) -> dict[str, Any]:
        """The same of one feature for a reader, and what only a reader wants: dicts by column, lists in order of rank.

        Keys: shape, output_statistic (None where the method found nothing); pruned, changed (said more, then less),
        related_words, input_words; neighbours (by relation, each with its own label); method_runs.
        """

        def rows(table: str, order: str) -> list[dict[str, Any]]:
            return self.dicts(
                f"SELECT * EXCLUDE (dictionary_id, feature) FROM {table} "
                f"WHERE dictionary_id = ? AND feature = ? ORDER BY {order}",
                [dictionary_id, feature],
            )

        neighbours = rows("neighbours", "relation, rank")
        # One at a time: a single feature is looked up, where a list of them is picked out of all labels.
        labels = {
            neighbour: self.rows(
                "SELECT label FROM labels WHERE dictionary_id = ? AND feature = ?", [dictionary_id, neighbour]
            )
            for neighbour in {row["neighbour"] for row in neighbours}
        }
        return {
            "shape": next(iter(rows("feature_shapes", "kind")), None),
            "output_statistic": next(iter(rows("output_statistics", "kurtosis")), None),
            "neighbours": [
                {**row, "label": next((label for (label,) in labels[row["neighbour"]]), None)} for row in neighbours
            ],
            "pruned": rows("pruned_contexts", "rank"),
            "changed": rows("token_changes", "sign DESC, rank"),
            "related_words": rows("mutual_information", "rank"),
            "input_words": rows("input_words", "rank"),
            "method_runs": rows("method_runs", "method"),
        }

    def method_counts(self, dictionary_id: int) -> list[dict[str, Any]]:
        """method, status and n: on how many features a method was run, and what came of it."""
        return self.dicts(
            "SELECT method, status, count(*) AS n FROM method_runs WHERE dictionary_id = ? GROUP BY ALL ORDER BY ALL",
            [dictionary_id],
        )

    # --- what scorers ask of the model -----------------------------------------------------------------------------

    def waiting_tasks(self, dictionary_id: int) -> dict[str, int]:
        """How many tasks of each kind wait to be measured."""
        return dict(
            self.rows(
                "SELECT kind, count(*) FROM measure_tasks ANTI JOIN measurements USING (task_id) "
                "WHERE dictionary_id = ? GROUP BY kind ORDER BY kind",
                [dictionary_id],
            )
        )

    def insert_tasks(self, tasks: Sequence[MeasureTask]) -> None:
        """Adds tasks; one that is there already stays as it is."""
        unique = list({task.task_id: task for task in tasks}.values())
        if not unique:
            return
        with self.transaction() as con:
            now = self.now()
            con.execute(
                "INSERT INTO measure_tasks SELECT unnest(?::VARCHAR[]), unnest(?::INTEGER[]), unnest(?::INTEGER[]), "
                "unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), unnest(?::VARCHAR[])::JSON, ? ON CONFLICT DO NOTHING",
                [
                    [t.task_id for t in unique], [t.dictionary_id for t in unique], [t.feature for t in unique],
                    [t.explanation_id for t in unique], [t.kind for t in unique],
                    [as_json(t.payload) for t in unique], now,
                ],
            )  # fmt: skip

    def insert_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Adds the model's answers; of a task that was measured already the first answer stays."""
        unique = list({m.task_id: m for m in measurements}.values())
        if not unique:
            return
        with self.transaction() as con:
            con.execute(
                "INSERT INTO measurements SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), "
                "unnest(?::VARCHAR[])::JSON, unnest(?::VARCHAR[]), unnest(?::BIGINT[]), unnest(?::BIGINT[]), ? "
                "ON CONFLICT DO NOTHING",
                [
                    [m.task_id for m in unique], [m.status for m in unique],
                    [None if m.result is None else as_json(m.result) for m in unique], [clean(m.error) for m in unique],
                    [m.n_forwards for m in unique], [m.n_tokens for m in unique], self.now(),
                ],
            )  # fmt: skip

    def tasks_to_measure(self, dictionary_id: int, features: Sequence[int] | None = None) -> list[MeasureTask]:
        """Tasks without a measurement, of the given features or of all, in order of kind and feature."""
        found = self.rows(
            "SELECT task_id, dictionary_id, feature, explanation_id, kind, payload FROM measure_tasks "
            "ANTI JOIN measurements USING (task_id) WHERE dictionary_id = ? "
            "AND (?::INTEGER[] IS NULL OR feature IN (SELECT unnest(?::INTEGER[]))) ORDER BY kind, feature, task_id",
            [dictionary_id, features, features or []],
        )
        return [_task(*row) for row in found]

    def firing_features(self, dictionary_id: int) -> dict[int, tuple[str, float]]:
        """Every feature that fires, with its status and its largest activation (raw units, above 0)."""
        found = self.rows(
            "SELECT feature, status, max_activation FROM features WHERE dictionary_id = ? AND max_activation > 0 "
            "ORDER BY feature",
            [dictionary_id],
        )
        return {int(feature): (status, value) for feature, status, value in found}

    def tasks_of(self, task_ids: Sequence[str]) -> dict[str, MeasureTask]:
        """Those of the tasks that were asked."""
        found = self.rows(
            "SELECT task_id, dictionary_id, feature, explanation_id, kind, payload FROM measure_tasks "
            "WHERE task_id IN (SELECT unnest(?::VARCHAR[]))",
            [list(task_ids)],
        )
        return {row[0]: _task(*row) for row in found}

    def measurements_of(self, task_ids: Sequence[str]) -> dict[str, Measurement]:
        """Those of the tasks that were measured."""
        found = self.rows(
            "SELECT task_id, status, result, error, n_forwards, n_tokens FROM measurements "
            "WHERE task_id IN (SELECT unnest(?::VARCHAR[]))",
            [list(task_ids)],
        )
        return {
            row[0]: Measurement(row[0], row[1], None if row[2] is None else json.loads(row[2]), *row[3:])
            for row in found
        }


def _task(
    task_id: str, dictionary_id: int, feature: int, explanation_id: str | None, kind: str, payload: str
) -> MeasureTask:
    return MeasureTask(task_id, dictionary_id, feature, explanation_id, kind, json.loads(payload))
