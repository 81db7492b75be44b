"""Writes and reads the findings of evidence methods, and the tasks that scorers give to the model.

A method's rows and its rows in `method_runs` are written in one transaction, so a feature either has both or neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autointerp.errors import AutointerpError, InputError
from autointerp.records import FeatureShape, Measurement, MeasureTask
from autointerp.store.connection import StoreConnection
from autointerp.store.finding_tables import BUILT_IN, NOTED, FindingTable, Row, tables_in
from autointerp.store.values import as_json, clean

NO_OUTPUT_SPACE = "no_output_space"
"""The status of a run in which the vectors of the SAE could not be said in tokens; the same for all features."""


@dataclass(frozen=True, slots=True)
class MethodRun:
    """One run of a method on one feature, and how it ended."""

    feature: int
    status: str = "ok"
    error: str | None = None
    n_forwards: int = 0
    """The number of sequences that the model read."""
    n_tokens: int = 0


class StoreFindings(StoreConnection):
    # --- evidence methods ------------------------------------------------------------------------------------------

    def finding_tables(self) -> list[FindingTable]:
        """The tables of the built-in methods, then those that other methods added to this store."""
        return tables_in(self)

    def finding_table(self, method: str) -> FindingTable:
        """The method's table. Raises InputError if no method of that name has a table in this store."""
        for table in self.finding_tables():
            if table.method == method:
                return table
        raise InputError(f"{self.path} has no table of an evidence method {method!r}")

    def add_finding_table(self, table: FindingTable) -> None:
        """Makes a method's own table if the store does not have it yet. Built-in tables already exist.

        Raises InputError if the table cannot be made as declared, if its name is taken, or if the store holds the
        method's table with other columns.
        """
        if table in BUILT_IN:
            return
        table.check()
        held = next((held for held in self.finding_tables() if held.method == table.method), None)
        if held is not None and held.noted() == table.noted():
            return
        if held is not None:
            raise InputError(
                f"{self.path} holds findings of the evidence method {table.method!r} in a table {held.name} that is "
                "declared otherwise by the version that is installed; that version must name a new method"
            )
        with self.transaction() as con:
            taken = con.execute(
                "SELECT 1 FROM information_schema.tables WHERE table_catalog = current_database() AND table_name = ?",
                [table.name],
            ).fetchall()
            if taken:
                raise InputError(f"the evidence method {table.method!r} wants a table {table.name}, which there is")
            con.execute(table.create_sql())
            con.execute("INSERT INTO settings VALUES (NULL, ?, ?)", [NOTED + table.method, table.noted()])

    def replace_findings(
        self, method: str, dictionary_id: int, harvest_id: int, settings_sha256: str, runs: Sequence[MethodRun],
        columns: Mapping[str, Sequence[Any]],
    ) -> None:  # fmt: skip
        """Writes what `method` found of the features in `runs`, and removes an earlier run's findings of them.

        `columns` are those of the method's table without dictionary_id and harvest_id. They have equal lengths, and
        list features in any order, all of which must be in `runs`. `add_finding_table` must have added a method's own
        table.
        """
        table = self.finding_table(method).name
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
        """The features on which `method` was run for this harvest with these settings."""
        found = self.rows(
            "SELECT feature FROM method_runs WHERE dictionary_id = ? AND method = ? AND harvest_id = ? "
            "AND settings_sha256 = ?",
            [dictionary_id, method, harvest_id, settings_sha256],
        )
        return {int(feature) for (feature,) in found}

    def features_with_findings(self, method: str, dictionary_id: int) -> set[int]:
        """The features for which `method` (an evidence method, or vocab_projection) found anything informative."""
        name, found_where = "vocab_projection", "true"
        if method != "vocab_projection":
            table = self.finding_table(method)
            name, found_where = table.name, table.found_where
        found = self.rows(
            f"SELECT DISTINCT feature FROM {name} WHERE dictionary_id = ? AND {found_where}", [dictionary_id]
        )
        return {int(feature) for (feature,) in found}

    def why_nothing(self, method: str, dictionary_id: int) -> str | None:
        """Why `method` (an evidence method, or vocab_projection) can find nothing about any feature of this dictionary,
        with this model; None where nothing is in its way."""
        if method == "vocab_projection":
            sql = (
                "SELECT report->>'no_projection' FROM harvests WHERE dictionary_id = $1 "
                "AND harvest_id = (SELECT max(harvest_id) FROM features WHERE dictionary_id = $1)"
            )
            found = self.rows(sql, [dictionary_id])
        else:
            sql = "SELECT max(error) FROM method_runs WHERE dictionary_id = ? AND method = ? AND status = ?"
            found = self.rows(sql, [dictionary_id, method, NO_OUTPUT_SPACE])
        return found[0][0] if found else None

    def shape_labels(self, dictionary_id: int) -> dict[int, FeatureShape]:
        """The shapes that are a label by themselves, by feature."""
        found = self.rows(
            "SELECT feature, kind, unigram, unigram_purity, position_dependence, text, rule FROM feature_shapes "
            "WHERE dictionary_id = ? AND trim(text) <> '' ORDER BY feature",
            [dictionary_id],
        )
        return {int(feature): FeatureShape(*values) for feature, *values in found}

    def findings(self, table: FindingTable, dictionary_id: int, features: Sequence[int]) -> dict[int, list[Row]]:
        """The rows of a method's table by feature, as dicts by column name, in the table's order. Features without rows
        have no entry."""
        wanted = [int(f) for f in features]
        result: dict[int, list[Row]] = {}
        if wanted:
            found = self.dicts(
                f"SELECT * EXCLUDE (dictionary_id) FROM {table.name} WHERE dictionary_id = ? "
                "AND feature BETWEEN ? AND ? AND feature IN (SELECT unnest(?::INTEGER[])) "
                f"ORDER BY {table.order_by()}",
                [dictionary_id, min(wanted), max(wanted), wanted],
            )
            for row in found:
                result.setdefault(row["feature"], []).append(row)
        return result

    def findings_of(self, dictionary_id: int, features: Sequence[int]) -> dict[int, dict[str, Any]]:
        """For every given feature, the fields of FeatureEvidence that evidence methods fill. Fields without findings
        are left out."""
        result: dict[int, dict[str, Any]] = {int(f): {} for f in features}
        for table in BUILT_IN:
            if table.fills is not None and table.read is not None:
                for feature, rows in self.findings(table, dictionary_id, list(result)).items():
                    result[feature][table.fills] = table.read(rows)
        return result

    def findings_page(self, dictionary_id: int, feature: int) -> dict[str, Any]:
        """The findings on one feature for a person, with details that only a person needs: dicts by column, in order of
        rank.

        The keys are method_runs and the key of every method's table (see FindingTable.page_key). A table with one row
        for a feature gives that row, or None if there is no row; every other table gives a list of rows.
        """
        page: dict[str, Any] = {}
        for table in self.finding_tables():
            rows = [
                {name: value for name, value in row.items() if name != "feature"}
                for row in self.findings(table, dictionary_id, [feature]).get(feature, [])
            ]
            if table.other_feature is not None:
                labels = self._labels(dictionary_id, {row[table.other_feature] for row in rows})
                rows = [{**row, "label": labels[row[table.other_feature]]} for row in rows]
            page[table.page_key] = next(iter(rows), None) if table.is_single else rows
        page["method_runs"] = self.dicts(
            "SELECT * EXCLUDE (dictionary_id, feature) FROM method_runs WHERE dictionary_id = ? AND feature = ? "
            "ORDER BY method",
            [dictionary_id, feature],
        )
        return page

    def _labels(self, dictionary_id: int, features: Iterable[int]) -> dict[int, str | None]:
        """The label of each feature. They are looked up one at a time: given a list, DuckDB would read all labels."""
        sql = "SELECT label FROM labels WHERE dictionary_id = ? AND feature = ?"
        found = {feature: self.rows(sql, [dictionary_id, feature]) for feature in features}
        return {feature: rows[0][0] if rows else None for feature, rows in found.items()}

    def method_counts(self, dictionary_id: int) -> list[dict[str, Any]]:
        """On how many features (n) each method was run with each status. The keys are method, status and n."""
        return self.dicts(
            "SELECT method, status, count(*) AS n FROM method_runs WHERE dictionary_id = ? GROUP BY ALL ORDER BY ALL",
            [dictionary_id],
        )

    # --- what scorers ask of the model -----------------------------------------------------------------------------

    def waiting_tasks(self, dictionary_id: int) -> dict[str, int]:
        """The number of tasks of each kind that wait to be measured."""
        return dict(
            self.rows(
                "SELECT kind, count(*) FROM measure_tasks ANTI JOIN measurements USING (task_id) "
                "WHERE dictionary_id = ? GROUP BY kind ORDER BY kind",
                [dictionary_id],
            )
        )

    def insert_tasks(self, tasks: Sequence[MeasureTask]) -> None:
        """Adds tasks. A task that the store already has stays unchanged."""
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
        """Adds the model's answers. A task that was measured already keeps its first answer."""
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
        """The tasks without a measurement, for the given features or for all, in order of kind and feature."""
        found = self.rows(
            "SELECT task_id, dictionary_id, feature, explanation_id, kind, payload FROM measure_tasks "
            "ANTI JOIN measurements USING (task_id) WHERE dictionary_id = ? "
            "AND (?::INTEGER[] IS NULL OR feature IN (SELECT unnest(?::INTEGER[]))) ORDER BY kind, feature, task_id",
            [dictionary_id, features, features or []],
        )
        return [_task(*row) for row in found]

    def firing_features(self, dictionary_id: int) -> dict[int, tuple[str, float]]:
        """Every feature that fires: its status and its largest activation (raw units, above 0)."""
        found = self.rows(
            "SELECT feature, status, max_activation FROM features WHERE dictionary_id = ? AND max_activation > 0 "
            "ORDER BY feature",
            [dictionary_id],
        )
        return {int(feature): (status, value) for feature, status, value in found}

    def measurements_of(self, task_ids: Sequence[str]) -> dict[str, Measurement]:
        """The measurements of the tasks with these ids that were measured, by id."""
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
