"""Labels that a judge was asked about twice, and how consistent judges were found to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.records import JudgeRepeat
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import field_names, select_list
from autointerp.store.values import check_finite


@dataclass(frozen=True, slots=True)
class JudgeConsistency:
    """How consistent one judge is: one row of the view of that name."""

    n_labels: int
    correlation: float | None
    """That of its errors about two contexts of one call, beyond what two calls have in common."""
    ci_low: float | None
    ci_high: float | None


class StoreJudgeRepeats(StoreConnection):
    """Table judge_repeats and view judge_consistency."""

    def insert_judge_repeats(self, repeats: Sequence[JudgeRepeat]) -> None:
        """Adds the rows. One recorded before stays as it is."""
        for one in repeats:
            check_finite(
                f"the repetition of {one.scorer} for feature {one.feature}", square_sum=one.square_sum,
                within_sum=one.within_sum, between_sum=one.between_sum,
            )  # fmt: skip
        unique = list({one.repeat_id: one for one in repeats}.values())
        if not unique:
            return
        with self.transaction():
            columns = {name: [getattr(one, name) for one in unique] for name in field_names(JudgeRepeat)}
            columns["created_at"] = [self.now() for _ in unique]
            self.insert_columns("judge_repeats", columns, "ON CONFLICT DO NOTHING")

    def judge_consistency(
        self, dictionary_id: int, scorer: str, model: str, template_sha256: str
    ) -> JudgeConsistency | None:
        """How consistent the judge is; None where it was never asked twice."""
        found = self.records(
            JudgeConsistency,
            f"SELECT {select_list(JudgeConsistency)} FROM judge_consistency "
            "WHERE dictionary_id = ? AND scorer = ? AND model = ? AND template_sha256 = ?",
            [dictionary_id, scorer, model, template_sha256],
        )
        return found[0] if found else None
