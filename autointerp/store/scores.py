"""Scores and the predictions that they were counted over."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autointerp.errors import AutointerpError
from autointerp.records import VALUED_STATUSES, Holding, Prediction, Score
from autointerp.store.connection import StoreConnection
from autointerp.store.given_up import first_unless_given_up, replace_given_up
from autointerp.store.named_rows import field_names, select_list
from autointerp.store.values import check_finite

_OF_ITS_OWN = ("predictions",)
"""The field of Score that is no column: predictions have a table of their own."""


def check_score(s: Score) -> None:
    """Raises AutointerpError where the record may not be stored: a value with a status of failure or the reverse, a
    number that is not finite."""
    what = f"score {s.scorer} of feature {s.feature}"
    check_finite(what, value=s.value, ci_low=s.ci_low, ci_high=s.ci_high)
    if (s.status in VALUED_STATUSES) != (s.value is not None):
        raise AutointerpError(
            f"{what}: status is {s.status!r} but value is {s.value!r}; rows have a value if their status is "
            f"{' or '.join(VALUED_STATUSES)}, and only then"
        )
    holding = {name: getattr(s, name) for name in field_names(Holding) if name != "from_status"}
    check_finite(what, **holding)
    if s.label_from is not None and s.from_status != "ok":
        raise AutointerpError(f"{what}: it holds from {s.label_from!r} though from_status is {s.from_status!r}")
    if not all(map(math.isfinite, s.influences or [])):
        raise AutointerpError(f"{what}: the influence of a document is not finite")
    for p in s.predictions:
        if (p.status == "ok") != (p.predicted is not None):
            raise AutointerpError(f"{what}: context {p.context_id} has status {p.status!r} and predicted {p.predicted}")
        for name, numbers in (("truth", p.truth), ("predicted", p.predicted or [])):
            if not all(map(math.isfinite, numbers)):
                raise AutointerpError(f"{what}: context {p.context_id} has a {name} that is not finite")


class StoreScores(StoreConnection):
    """Tables scores and predictions."""

    def insert_scores(self, scores: Sequence[Score]) -> None:
        """Adds scores with their predictions. One recorded before stays as it is, unless it had given up.

        Raises AutointerpError where a prediction's context is not of the score's part and feature (law 3).
        """
        for score in scores:
            check_score(score)
        with self.transaction():
            if scores:
                self._insert_scores(first_unless_given_up(scores, "score_id"))

    def _insert_scores(self, scores: Sequence[Score]) -> None:
        self._check_parts(scores)
        done = {
            row[0]
            for row in self.con.execute(
                "SELECT score_id FROM scores WHERE status <> 'gave_up' AND score_id IN (SELECT unnest(?::VARCHAR[]))",
                [[s.score_id for s in scores]],
            ).fetchall()
        }
        conflict = replace_given_up("scores", "score_id", field_names(Score, _OF_ITS_OWN))
        self.insert_records("scores", scores, conflict, without=_OF_ITS_OWN)
        # A score that gave up is no answer and may be replaced, so it leaves no predictions: those are append-only.
        fresh = [s for s in scores if s.score_id not in done and s.status != "gave_up"]
        new = [(s.score_id, p) for s in fresh for p in s.predictions]
        if new:
            columns = {name: [getattr(p, name) for _, p in new] for name in field_names(Prediction)}
            self.insert_columns("predictions", {"score_id": [score_id for score_id, _ in new], **columns})

    def _check_parts(self, scores: Sequence[Score]) -> None:
        """Law 3: the contexts that a score was computed on lie in its own part of the corpus and belong to its
        feature."""
        flat = [(s.dictionary_id, s.feature, s.part, p.context_id) for s in scores for p in s.predictions]
        if not flat:
            return
        wrong = self.con.execute(
            """
            WITH p AS (
                SELECT unnest(?::INTEGER[]) AS dictionary_id, unnest(?::INTEGER[]) AS feature,
                       unnest(?::VARCHAR[]) AS part, unnest(?::BIGINT[]) AS context_id
            )
            SELECT p.feature, p.part, p.context_id, c.split
            FROM p LEFT JOIN (
                SELECT dictionary_id, feature, context_id, split FROM evidence.context_rows
                WHERE feature IN (SELECT feature FROM p)
            ) AS c USING (dictionary_id, feature, context_id)
            WHERE c.split IS DISTINCT FROM p.part LIMIT 1
            """,
            [list(column) for column in zip(*flat, strict=True)],
        ).fetchone()
        if wrong:
            feature, part, context_id, split = wrong
            where = f"lies in split {split!r}" if split else "is not among the feature's contexts"
            raise AutointerpError(
                f"score of feature {feature} on part {part!r}: context {context_id} {where}; a score may only use "
                "contexts of its own part"
            )

    def scores_of(
        self, explanation_ids: Sequence[str], harvest_id: int, scorer: str, method: str, part: str, model: str,
        template_sha256: str, seed: int,
    ) -> dict[str, Score]:  # fmt: skip
        """For each explanation its latest real score, made in this way, with all predictions. Scores that gave up are
        left out."""
        found = self.records(
            Score,
            f"SELECT {select_list(Score, without=_OF_ITS_OWN)} FROM scores "
            "WHERE explanation_id IN (SELECT unnest(?::VARCHAR[])) AND harvest_id = ? "
            "AND scorer = ? AND method = ? AND part = ? AND model = ? AND template_sha256 = ? AND seed = ? "
            "AND control IS NULL AND status <> 'gave_up' ORDER BY sequence",
            [list(explanation_ids), harvest_id, scorer, method, part, model, template_sha256, seed],
            without=_OF_ITS_OWN,
        )
        latest = {score.explanation_id: score for score in found if score.explanation_id is not None}
        predictions = {score.score_id: score.predictions for score in latest.values()}
        made = self.keyed_records(
            "score_id",
            Prediction,
            f"SELECT score_id, {select_list(Prediction)} FROM predictions "
            "WHERE score_id IN (SELECT unnest(?::VARCHAR[])) ORDER BY score_id, context_id",
            [list(predictions)],
        )
        for score_id, prediction in made:
            predictions[score_id].append(prediction)
        return latest
