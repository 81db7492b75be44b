"""Scores of one dictionary side by side: the numbers behind a comparison of explainers, controls and scorers.

Only scores on the report part count. Kinds of score (scorer, scoring method, model) are never mixed. Where a label has
several scores of one kind (other seeds or prompts of the scorer), or a feature several labels by one contender, their
mean counts, so that a feature counts once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from autointerp.records import headline_of
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import read_records

Floats = NDArray[np.float64]

_SCORES = """
    CREATE TEMP TABLE compared AS
    SELECT
        s.explanation_id, s.feature, e.explainer, e.model AS explaining_model, s.scorer, s.method,
        s.model AS scorer_model, avg(s.value) AS value
    FROM scores AS s JOIN explanations AS e USING (explanation_id)
    WHERE s.dictionary_id = ? AND s.part = 'report' AND s.control IS NULL AND (? OR s.scorer IN (SELECT unnest(?)))
    GROUP BY ALL
"""
# A control has the same label, scorer, prompt and seed as the real score; the scorer was told something else instead.
_LIFTS = """
    CREATE TEMP TABLE lifts AS
    SELECT
        e.explainer, e.model AS explaining_model, s.scorer, s.method, s.model AS scorer_model, c.control, s.feature,
        avg(s.value) FILTER (c.value IS NOT NULL) AS real, avg(c.value) FILTER (s.value IS NOT NULL) AS floor
    FROM scores AS s
    JOIN scores AS c USING (explanation_id, scorer, method, model, template_sha256, seed, part, dictionary_id)
    JOIN explanations AS e USING (explanation_id)
    WHERE s.dictionary_id = ? AND s.part = 'report' AND s.control IS NULL AND c.control IS NOT NULL
      AND (? OR s.scorer IN (SELECT unnest(?)))
    GROUP BY ALL
"""
_PAIR = """
    WITH one AS (
        SELECT feature, avg(value) AS value FROM compared
        WHERE scorer = $scorer AND method = $method AND scorer_model = $model
          AND explainer = $explainer_a AND explaining_model = $model_a
        GROUP BY feature
    ),
    other AS (
        SELECT feature, avg(value) AS value FROM compared
        WHERE scorer = $scorer AND method = $method AND scorer_model = $model
          AND explainer = $explainer_b AND explaining_model = $model_b
        GROUP BY feature
    )
    SELECT one.value AS a, other.value AS b FROM one FULL JOIN other USING (feature) ORDER BY feature
"""
_LABELS = """
    WITH several AS (
        SELECT feature FROM explanations WHERE dictionary_id = $dictionary AND status = 'ok'
        GROUP BY feature HAVING count(*) > 1
    ),
    kinds AS (
        SELECT explanation_id, list({'scorer': scorer, 'method': method, 'model': scorer_model}) AS kinds,
            list(value) AS values
        FROM compared WHERE value IS NOT NULL GROUP BY explanation_id
    )
    SELECT e.feature, e.explainer, e.model, e.harvest_id, e.template_sha256, e.evidence_sha256, e.seed, e.text,
        k.kinds, k.values
    FROM explanations AS e SEMI JOIN several USING (feature) LEFT JOIN kinds AS k USING (explanation_id)
    WHERE e.dictionary_id = $dictionary AND e.status = 'ok'
    ORDER BY e.feature, e.sequence
"""
_BOTH = """
    SELECT a.feature, a.value AS a, b.value AS b
    FROM compared AS a JOIN compared AS b USING (explanation_id)
    WHERE a.scorer = $scorer_a AND a.method = $method_a AND a.scorer_model = $model_a
      AND b.scorer = $scorer_b AND b.method = $method_b AND b.scorer_model = $model_b
      AND ($explainer::VARCHAR IS NULL OR (a.explainer = $explainer AND a.explaining_model = $explaining_model))
      AND a.value IS NOT NULL AND b.value IS NOT NULL
    ORDER BY a.feature, explanation_id
"""


@dataclass(frozen=True, slots=True, order=True)
class Contender:
    """An explainer with its model."""

    explainer: str
    model: str


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """Scores that can be compared with one another: of one scorer, by one scoring method and model."""

    scorer: str
    method: str
    model: str


@dataclass(frozen=True, slots=True)
class Paired:
    """Values of the same features, in the same order."""

    a: Floats
    b: Floats
    n_unpaired: int
    """Features without a value on one of the two sides."""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One of several labels of a feature."""

    feature: int
    contender: Contender
    harvest_id: int
    template_sha256: str
    evidence_sha256: str
    seed: int
    text: str
    scores: dict[Kind, float]


class Comparison:
    """Reads from the temporary tables that `compared_scores` makes."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, dictionary_id: int) -> None:
        self._cursor, self._dictionary_id = cursor, dictionary_id

    def _columns(self, sql: str, parameters: Any) -> dict[str, Any]:
        return self._cursor.execute(sql, parameters).fetchnumpy()

    def contenders(self) -> list[Contender]:
        """The contenders that have a score."""
        cursor = self._cursor.execute("SELECT DISTINCT explainer, explaining_model AS model FROM compared")
        return sorted(read_records(cursor, Contender))

    def kinds(self) -> list[Kind]:
        cursor = self._cursor.execute("SELECT DISTINCT scorer, method, scorer_model AS model FROM compared")
        return sorted(read_records(cursor, Kind))

    def pair(self, kind: Kind, a: Contender, b: Contender) -> Paired:
        """Scores of one kind for the features that both contenders labelled."""
        return _paired(
            self._columns(
                _PAIR,
                {
                    "scorer": kind.scorer, "method": kind.method, "model": kind.model, "explainer_a": a.explainer,
                    "model_a": a.model, "explainer_b": b.explainer, "model_b": b.model,
                },
            )
        )  # fmt: skip

    def controls(self) -> list[tuple[Contender, Kind, str]]:
        """For which contenders, kinds and controls a control was scored beside the real label."""
        found = self._cursor.execute(
            "SELECT DISTINCT explainer, explaining_model, scorer, method, scorer_model, control FROM lifts ORDER BY ALL"
        ).fetchall()
        return [
            (Contender(explainer, explaining_model), Kind(scorer, method, scorer_model), control)
            for explainer, explaining_model, scorer, method, scorer_model, control in found
        ]

    def lift(self, contender: Contender, kind: Kind, control: str) -> Paired:
        """Scores of the real labels (a), and of the control in their place (b)."""
        return _paired(
            self._columns(
                "SELECT real AS a, floor AS b FROM lifts WHERE explainer = ? AND explaining_model = ? AND scorer = ? "
                "AND method = ? AND scorer_model = ? AND control = ? ORDER BY feature",
                [contender.explainer, contender.model, kind.scorer, kind.method, kind.model, control],
            )
        )

    def both(self, a: Kind, b: Kind, contender: Contender | None) -> tuple[Floats, Floats, list[int]]:
        """Two kinds of score of the same labels, by one contender or by all (None), and the labels' features."""
        found = self._columns(
            _BOTH,
            {
                "scorer_a": a.scorer, "method_a": a.method, "model_a": a.model, "scorer_b": b.scorer,
                "method_b": b.method, "model_b": b.model, "explainer": contender and contender.explainer,
                "explaining_model": contender and contender.model,
            },
        )  # fmt: skip
        return found["a"].astype(np.float64), found["b"].astype(np.float64), found["feature"].tolist()

    def labels(self) -> Iterator[list[LabelRow]]:
        """For every feature that has several labels, all of them."""
        self._cursor.execute(_LABELS, {"dictionary": self._dictionary_id})
        columns = [column[0] for column in self._cursor.description or []]
        held: list[LabelRow] = []
        while rows := self._cursor.fetchmany(4096):
            for row in rows:
                found = dict(zip(columns, row, strict=True))
                kinds, values = found.pop("kinds") or (), found.pop("values") or ()
                scores = {Kind(**kind): value for kind, value in zip(kinds, values, strict=True)}
                contender = Contender(found.pop("explainer"), found.pop("model"))
                label = LabelRow(**found, contender=contender, scores=scores)
                if held and held[-1].feature != label.feature:
                    yield held
                    held = []
                held.append(label)
        if held:
            yield held


@contextmanager
def compared_scores(store: StoreConnection, dictionary_id: int, *, strata: bool = False) -> Iterator[Comparison]:
    """The dictionary's scores, gathered once in temporary tables. `strata`: those of all scorers, not only of the
    headline scorers."""
    found = store.rows("SELECT DISTINCT scorer FROM scores WHERE dictionary_id = ?", [dictionary_id])
    names = [name for (name,) in found]
    with store.cursor() as cursor:
        chosen = [dictionary_id, strata, [name for name in names if headline_of(name, names) == name]]
        cursor.execute(_SCORES, chosen)
        cursor.execute(_LIFTS, chosen)
        yield Comparison(cursor, dictionary_id)


def _paired(columns: dict[str, Any]) -> Paired:
    a, b = (np.ma.filled(np.ma.asarray(columns[name], dtype=np.float64), np.nan) for name in "ab")
    kept = np.isfinite(a) & np.isfinite(b)
    return Paired(a[kept], b[kept], int((~kept).sum()))
