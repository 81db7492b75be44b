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

from autointerp.means import SharedDocuments
from autointerp.paired import SIGNIFICANT
from autointerp.prevalence import is_group
from autointerp.scorer_names import headlines_among, scorer_place
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import read_records

Floats = NDArray[np.float64]

_SCORES = """
    CREATE TEMP TABLE compared AS
    WITH of_label AS (
        SELECT
            s.explanation_id, s.feature, e.explainer, e.model AS explaining_model, s.scorer, s.method,
            s.model AS scorer_model, avg(s.value) AS value, count(s.value) AS n_scores
        FROM scores AS s JOIN explanations AS e USING (explanation_id)
        WHERE s.dictionary_id = ? AND s.part = 'report' AND s.control IS NULL AND (? OR s.scorer IN (SELECT unnest(?)))
        GROUP BY ALL
    )
    SELECT
        * EXCLUDE (n_scores),
        1 / (n_scores * count(value) OVER (
            PARTITION BY feature, explainer, explaining_model, scorer, method, scorer_model
        )) AS weight  -- of one of the label's scores in the feature's mean
    FROM of_label
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
# By how much each document moves the difference of a feature's two means, summed up over features. It goes on from
# `influencing`: the scores behind the two means, with sign 1 and -1.
_SHARED = """
    known AS (
        SELECT feature FROM influencing GROUP BY feature
        HAVING bool_and(influences IS NOT NULL) AND min(sign) < max(sign)
    ),
    moving AS (
        SELECT feature, unnest(documents) AS document, sign * weight * unnest(influences) AS moved
        FROM influencing SEMI JOIN known USING (feature)
    ),
    of_feature AS (SELECT feature, document, sum(moved) AS moved FROM moving GROUP BY feature, document),
    of_document AS (SELECT document, sum(moved) AS total, sum(moved ** 2) AS own FROM of_feature GROUP BY document)
    SELECT
        (SELECT count(*) FROM known) AS n_features, coalesce(sum(total ** 2), 0.0) AS squares,
        coalesce(sum(total ** 4), 0.0) AS fourths, coalesce(sum(own), 0.0) AS own,
        coalesce(list(document), []) AS documents
    FROM of_document
"""
_PAIR_INFLUENCES = f"""
    WITH influencing AS (
        SELECT
            c.feature, c.weight, s.documents, s.influences,
            if(c.explainer = $explainer_a AND c.explaining_model = $model_a, 1, -1) AS sign
        FROM compared AS c JOIN scores AS s
            ON s.explanation_id = c.explanation_id AND s.scorer = c.scorer AND s.method = c.method
            AND s.model = c.scorer_model AND s.part = 'report' AND s.control IS NULL AND s.value IS NOT NULL
        WHERE c.scorer = $scorer AND c.method = $method AND c.scorer_model = $model
          AND ((c.explainer = $explainer_a AND c.explaining_model = $model_a)
            OR (c.explainer = $explainer_b AND c.explaining_model = $model_b))
    ),
    {_SHARED}
"""
_LIFT_INFLUENCES = f"""
    WITH lifted AS (
        SELECT
            s.feature, s.documents AS real_documents, s.influences AS real, c.documents AS floor_documents,
            c.influences AS floor, 1 / count(*) OVER (PARTITION BY s.feature) AS weight
        FROM scores AS s
        JOIN scores AS c USING (explanation_id, scorer, method, model, template_sha256, seed, part, dictionary_id)
        JOIN explanations AS e USING (explanation_id)
        WHERE s.dictionary_id = $dictionary AND s.part = 'report' AND s.control IS NULL AND c.control = $control
          AND s.scorer = $scorer AND s.method = $method AND s.model = $model AND e.explainer = $explainer
          AND e.model = $explaining_model AND s.value IS NOT NULL AND c.value IS NOT NULL
    ),
    influencing AS (
        SELECT feature, weight, real_documents AS documents, real AS influences, 1 AS sign FROM lifted
        UNION ALL SELECT feature, weight, floor_documents, floor, -1 FROM lifted
    ),
    {_SHARED}
"""
_TESTED = """
    SELECT
        if(count(*) = 0, NULL, count(beats)) AS n_tested,
        count(*) FILTER (beats) / nullif(count(beats), 0) AS share_better,
        count(*) FILTER (q_value < $significant AND difference < 0) / nullif(count(beats), 0) AS share_worse
    FROM label_controls
    WHERE dictionary_id = $dictionary AND explainer = $explainer AND model = $explaining_model AND scorer = $scorer
      AND method = $method AND scorer_model = $model AND control = $control
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
    shared: SharedDocuments | None = None
    """By how much the documents that features share move the differences a - b; None where no influences are known."""


@dataclass(frozen=True, slots=True)
class Tested:
    """Labels that were tested against a control one by one (see label_controls.py)."""

    n_tested: int | None
    """None where scores of the kind are not tested at all: of one scorer only the headline row is."""
    share_better: float | None
    """Share of them that scored better than the control; None without any."""
    share_worse: float | None


NOT_TESTED = Tested(None, None, None)
"""Where b is no control."""


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
        return sorted(read_records(cursor, Kind), key=lambda kind: (*scorer_place(kind.scorer), kind))

    def pair(self, kind: Kind, a: Contender, b: Contender) -> Paired:
        """Scores of one kind for the features that both contenders labelled."""
        chosen = {
            "scorer": kind.scorer, "method": kind.method, "model": kind.model, "explainer_a": a.explainer,
            "model_a": a.model, "explainer_b": b.explainer, "model_b": b.model,
        }  # fmt: skip
        return _paired(self._columns(_PAIR, chosen), self._shared(_PAIR_INFLUENCES, chosen))

    def _shared(self, sql: str, parameters: Any) -> SharedDocuments | None:
        ((n_features, squares, fourths, own, documents),) = self._cursor.execute(sql, parameters).fetchall()
        if not n_features:
            return None
        n_documents = sum(not is_group(document) for document in documents)
        return SharedDocuments(n_features, n_documents, squares, fourths, own, n_terms=len(documents))

    def controls(self) -> list[tuple[Contender, Kind, str]]:
        """For which contenders, kinds and controls a control was scored beside the real label."""
        found = self._cursor.execute(
            "SELECT DISTINCT explainer, explaining_model, scorer, method, scorer_model, control FROM lifts"
        ).fetchall()
        rows = [
            (Contender(explainer, explaining_model), Kind(scorer, method, scorer_model), control)
            for explainer, explaining_model, scorer, method, scorer_model, control in found
        ]
        return sorted(rows, key=lambda row: (row[0], *scorer_place(row[1].scorer), row[1], row[2]))

    def lift(self, contender: Contender, kind: Kind, control: str) -> Paired:
        """Scores of the real labels (a), and of the control in their place (b)."""
        chosen = _control_key(contender, kind, control)
        columns = self._columns(
            "SELECT real AS a, floor AS b FROM lifts WHERE explainer = $explainer "
            "AND explaining_model = $explaining_model AND scorer = $scorer AND method = $method "
            "AND scorer_model = $model AND control = $control ORDER BY feature",
            chosen,
        )
        return _paired(columns, self._shared(_LIFT_INFLUENCES, {**chosen, "dictionary": self._dictionary_id}))

    def tested(self, contender: Contender, kind: Kind, control: str) -> Tested:
        """On how many features the real labels were better, and worse, than the control in a test of that feature."""
        chosen = {"dictionary": self._dictionary_id, "significant": SIGNIFICANT}
        self._cursor.execute(_TESTED, {**_control_key(contender, kind, control), **chosen})
        (found,) = read_records(self._cursor, Tested)
        return found

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
    with store.cursor() as cursor:
        chosen = [dictionary_id, strata, headlines_among(name for (name,) in found)]
        cursor.execute(_SCORES, chosen)
        cursor.execute(_LIFTS, chosen)
        yield Comparison(cursor, dictionary_id)


def _control_key(contender: Contender, kind: Kind, control: str) -> dict[str, str]:
    return {
        "explainer": contender.explainer, "explaining_model": contender.model, "scorer": kind.scorer,
        "method": kind.method, "model": kind.model, "control": control,
    }  # fmt: skip


def _paired(columns: dict[str, Any], shared: SharedDocuments | None) -> Paired:
    a, b = (np.ma.filled(np.ma.asarray(columns[name], dtype=np.float64), np.nan) for name in "ab")
    kept = np.isfinite(a) & np.isfinite(b)
    return Paired(a[kept], b[kept], int((~kept).sum()), shared)
