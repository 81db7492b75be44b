"""Explanations and the labels that they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autointerp.errors import AutointerpError, InputError
from autointerp.records import Explanation
from autointerp.store.connection import StoreConnection
from autointerp.store.given_up import first_unless_given_up, replace_given_up
from autointerp.store.named_rows import field_names, select_list
from autointerp.store.values import check_finite


def check_explanation(e: Explanation) -> None:
    """Raises AutointerpError where the record may not be stored: a text without 'ok' or the reverse, a second meaning
    or a side that belongs to no text, a number that is not finite, a share outside 0..1."""
    what = f"explanation of feature {e.feature} by {e.explainer}"
    check_finite(what, cost_usd=e.cost_usd, share=e.share, second_share=e.second_share)
    told = {name: getattr(e, name) for name in ("output_text", "second_text", "share", "second_share")}
    if e.text is None and any(value is not None for value in told.values()):
        raise AutointerpError(f"{what}: there is no text, but {told}")
    wrong = [name for name in ("share", "second_share") if told[name] is not None and not 0 <= told[name] <= 1]
    if wrong:
        raise AutointerpError(f"{what}: {wrong[0]} is {told[wrong[0]]}, which is no share from 0 to 1")
    if (e.status == "ok") != (e.text is not None):
        raise AutointerpError(f"{what}: status is {e.status!r} but text is {e.text!r}; only 'ok' rows have a text")


class StoreExplanations(StoreConnection):
    """Table explanations, and the view labels."""

    def insert_explanations(self, explanations: Sequence[Explanation]) -> None:
        """Adds explanations. One recorded before stays as it is, unless it had given up."""
        for explanation in explanations:
            check_explanation(explanation)
        with self.transaction():
            if explanations:
                new = first_unless_given_up(explanations, "explanation_id")
                conflict = replace_given_up("explanations", "explanation_id", field_names(Explanation))
                self.insert_records("explanations", new, conflict)

    def explanations_of(self, dictionary_id: int, features: Sequence[int]) -> dict[int, list[Explanation]]:
        """Every explanation of the features, oldest first."""
        result: dict[int, list[Explanation]] = {int(f): [] for f in features}
        found = self.records(
            Explanation,
            f"SELECT {select_list(Explanation)} FROM explanations WHERE dictionary_id = ? "
            "AND feature IN (SELECT unnest(?::INTEGER[])) ORDER BY feature, sequence",
            [dictionary_id, list(result)],
        )
        for explanation in found:
            result[explanation.feature].append(explanation)
        return result

    def search_labels(self, text: str, dictionary_id: int | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """Rows of `labels` whose label, second meaning or output side holds words of `text`: most words first, then the
        better score. Raises InputError where `text` holds no word."""
        words = list(dict.fromkeys(text.lower().split()))[:16]
        if not words:
            raise InputError("nothing to search for: the text is empty")
        return self.dicts(
            """
            SELECT * EXCLUDE (n_words) FROM (
                SELECT *, len(list_filter(
                    ?::VARCHAR[],
                    lambda w: contains(lower(concat_ws(chr(10), label, second_label, output_label)), w)
                )) AS n_words
                FROM labels
                WHERE label IS NOT NULL AND (?::INTEGER IS NULL OR dictionary_id = ?)
            )
            WHERE n_words > 0
            ORDER BY n_words DESC, score DESC NULLS LAST, dictionary_id, feature
            LIMIT ?
            """,
            [words, dictionary_id, dictionary_id, limit],
        )

    def best_labels(self, dictionary_id: int, limit: int) -> list[dict[str, Any]]:
        """Rows of `labels`, the best score first."""
        return self.dicts(
            "SELECT * FROM labels WHERE dictionary_id = ? AND score IS NOT NULL ORDER BY score DESC, feature LIMIT ?",
            [dictionary_id, limit],
        )

    def label_summary(self, dictionary_id: int) -> dict[str, Any]:
        """features: how many of each status; labelled, scored: how many; scores: the rows of explainer_leaderboard,
        without controls, for the explainer that `labels` shows."""
        key = [dictionary_id]
        counts = self.rows(
            "SELECT status, count(*) FROM features WHERE dictionary_id = ? GROUP BY status ORDER BY count(*) DESC", key
        )
        labelled, scored = self.rows("SELECT count(label), count(score) FROM labels WHERE dictionary_id = ?", key)[0]
        scores = self.dicts(
            "SELECT * FROM explainer_leaderboard WHERE dictionary_id = ? AND control IS NULL AND explainer IN "
            "(SELECT explainer FROM labels WHERE dictionary_id = ?) ORDER BY scorer, method",
            [dictionary_id, dictionary_id],
        )
        return {"features": dict(counts), "labelled": labelled, "scored": scored, "scores": scores}
