"""Which labels score better than what a control puts in their place: a test for every feature, adjusted over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from autointerp.paired import SIGNIFICANT, paired_difference
from autointerp.scorer_names import MIXTURES, NATURAL, headlines_among
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import read_records

_AT_ONCE = 4096
"""Pairs that are read and written together."""

# The latest score of each feature's label by every explainer and kind of score, and its control on the same contexts.
_PAIRED = """
    CREATE TEMP TABLE paired AS
    WITH latest AS (
        SELECT arg_max(s.rowid, s.sequence) AS row_id, e.explainer, e.model AS explaining_model
        FROM scores AS s JOIN explanations AS e USING (explanation_id)
        WHERE s.dictionary_id = ? AND s.part = 'report' AND s.control IS NULL AND s.value IS NOT NULL
          AND s.scorer IN (SELECT unnest(?::VARCHAR[]))
        GROUP BY s.feature, e.explainer, e.model, s.scorer, s.method, s.model
    )
    SELECT
        s.dictionary_id, s.feature, s.explanation_id, l.explainer, l.explaining_model AS model, s.scorer, s.method,
        s.model AS scorer_model, c.control, s.score_id, arg_max(c.score_id, c.sequence) AS control_score_id
    FROM latest AS l JOIN scores AS s ON s.rowid = l.row_id
    JOIN scores AS c USING (
        dictionary_id, feature, explanation_id, scorer, method, model, template_sha256, seed, part, harvest_id
    )
    WHERE c.control IS NOT NULL AND c.value IS NOT NULL
    GROUP BY ALL
"""
_KEY = "(score_id, control, control_score_id)"
_NEW = f"SELECT * FROM paired WHERE {_KEY} NOT IN (SELECT {_KEY} FROM label_controls WHERE dictionary_id = ?)"
_OLD = (
    f"SELECT control_score_id FROM label_controls WHERE dictionary_id = ? AND {_KEY} NOT IN (SELECT {_KEY} FROM paired)"
)
_NEW_SCORES = f"""
    SELECT p.*, s.value, s.documents, s.influences, c.value AS other_value, c.documents AS other_documents,
        c.influences AS other_influences
    FROM ({_NEW}) AS p JOIN scores AS s ON s.score_id = p.score_id JOIN scores AS c ON c.score_id = p.control_score_id
    ORDER BY p.feature
"""
# Benjamini and Hochberg's q over the features, for each explainer, kind of score and control by itself.
_ADJUST = """
    UPDATE label_controls AS l
    SET q_value = t.q, beats = t.q < $significant AND l.difference > 0
    FROM (
        SELECT
            score_id, control, least(1.0, min(p_value * n / place) OVER (
                PARTITION BY explainer, model, scorer, method, scorer_model, control ORDER BY place DESC
            )) AS q
        FROM (
            SELECT *,
                count(*) OVER (PARTITION BY explainer, model, scorer, method, scorer_model, control) AS n,
                row_number() OVER (
                    PARTITION BY explainer, model, scorer, method, scorer_model, control ORDER BY p_value
                ) AS place
            FROM label_controls WHERE dictionary_id = $dictionary AND p_value IS NOT NULL
        )
    ) AS t
    WHERE l.score_id = t.score_id AND l.control = t.control AND l.q_value IS DISTINCT FROM t.q
"""


@dataclass(frozen=True, slots=True)
class LabelControl:
    """One row of the table `label_controls`, without its keys: a label's score beside that of a control."""

    explanation_id: str
    explainer: str
    model: str
    """The explainer LLM, or the name of the rule."""
    scorer: str
    method: str
    scorer_model: str
    control: str
    score_id: str
    control_score_id: str
    difference: float
    """The label's score minus the control's."""
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    """Of no difference, two-sided; None where the documents are too few for a test."""
    q_value: float | None
    """p_value, Benjamini-Hochberg adjusted over the features of the dictionary."""
    beats: bool | None
    """Whether the label scores higher, and q_value is below .05; None where there is no test."""
    n_documents: int

    @property
    def loses(self) -> bool:
        """Whether the control scores higher, and q_value is below .05."""
        return self.q_value is not None and self.q_value < SIGNIFICANT and self.difference < 0


class StoreLabelControls(StoreConnection):
    """Table label_controls."""

    def update_label_controls(self, dictionary_id: int) -> int:
        """Tests the labels of one dictionary whose scores or controls are new since the last call. Rows of scores that
        newer ones replaced are removed, and the q-values of all features are made anew. Returns how many were tested;
        where nothing is new, nothing is written."""
        found = self.rows(
            "SELECT DISTINCT scorer FROM scores WHERE dictionary_id = ? AND control IS NOT NULL", [dictionary_id]
        )
        with self.cursor() as cursor:
            cursor.execute(_PAIRED, [dictionary_id, _to_test([name for (name,) in found])])
            new = cursor.execute(f"SELECT count(*) FROM ({_NEW})", [dictionary_id]).fetchall()[0][0]
            old = [name for (name,) in cursor.execute(_OLD, [dictionary_id]).fetchall()]
            if not new and not old:
                return 0
            with self.transaction() as con:
                con.execute(
                    "DELETE FROM label_controls WHERE dictionary_id = ? "
                    "AND control_score_id IN (SELECT unnest(?::VARCHAR[]))",
                    [dictionary_id, old],
                )
                cursor.execute(_NEW_SCORES, [dictionary_id])
                for columns in _tested(cursor):
                    self.insert_columns("label_controls", columns)
                con.execute(_ADJUST, {"dictionary": dictionary_id, "significant": SIGNIFICANT})
        return int(new)

    def label_controls_of(self, dictionary_id: int, feature: int) -> list[LabelControl]:
        """The tests of one feature's labels, by explainer, scorer and control."""
        with self.cursor() as cursor:
            cursor.execute(
                "SELECT * EXCLUDE (dictionary_id, feature) FROM label_controls WHERE dictionary_id = ? "
                "AND feature = ? ORDER BY explainer, model, scorer, method, scorer_model, control",
                [dictionary_id, feature],
            )
            return read_records(cursor, LabelControl)


def _to_test(scorers: Sequence[str]) -> list[str]:
    """Those of the names whose rows are tested. The simulation's correlations are ways to put one thing, so that one
    test is enough: of that on text as it comes, which stands in the place of the scorer's own row where there is one.
    """
    others = MIXTURES if NATURAL in scorers else MIXTURES[1:]
    return sorted(set(headlines_among(scorers)) - set(others))


def _tested(cursor: duckdb.DuckDBPyConnection) -> Iterator[Mapping[str, Sequence[Any]]]:
    """Columns of label_controls, from the rows of _NEW_SCORES."""
    names = [column[0] for column in cursor.description or []]
    kept = names[: names.index("value")]
    while rows := cursor.fetchmany(_AT_ONCE):
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        found = [
            paired_difference(value, _influences(documents, moved), other, _influences(other_documents, other_moved))
            for value, documents, moved, other, other_documents, other_moved in zip(
                *(columns[name] for name in names[len(kept) :]), strict=True
            )
        ]
        yield {name: list(columns[name]) for name in kept} | {
            "difference": [one.value for one in found],
            "ci_low": [one.low for one in found],
            "ci_high": [one.high for one in found],
            "p_value": [one.p_value for one in found],
            "n_documents": [one.n_documents for one in found],
        }


def _influences(documents: list[str] | None, moved: list[float] | None) -> dict[str, float] | None:
    return None if documents is None or moved is None else dict(zip(documents, moved, strict=True))
