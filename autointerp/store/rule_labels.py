"""Labels that carry a rule, with what their scores say that a claim of the rule is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import field_names, select_list
from autointerp.store.selection import is_chosen, latest_labels


@dataclass(frozen=True, slots=True)
class RuleLabelRow:
    """One label with its rule, and how it did on the report part; None for what was not scored."""

    feature: int
    explanation_id: str
    explainer: str
    text: str
    second_text: str | None
    rule: str
    density: float
    """The share of the tiles of the harvested text in which the feature fires."""
    natural: float | None
    """simulation_natural: how well the rule predicts ordinary text."""
    precision: float | None
    """The share of the claimed tiles of that text in which the feature fires."""
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    """The share of the tiles in which the feature fires that the rule claims."""
    recall_low: float | None
    recall_high: float | None


_SCORES = {"natural": "simulation_natural", "precision": "simulation_precision", "recall": "simulation_recall"}


def _score_columns() -> str:
    """SQL: what the latest row of each of these scorers says of a label."""
    columns = []
    for name, scorer in _SCORES.items():
        ends = [(f"{name}_{end}", f"ci_{end}") for end in ("low", "high")] if name != "natural" else []
        for column, value in [(name, "value"), *ends]:
            latest = f"arg_max({{'it': {value}}}, sequence) FILTER (scorer = '{scorer}')"  # its value may be NULL
            columns.append(f"({latest})['it'] AS {column}")
    return ", ".join(columns)


class StoreRuleLabels(StoreConnection):
    def rule_labels(
        self, dictionary_id: int, features: Sequence[int] | None, explainer: str | None = None
    ) -> list[RuleLabelRow]:
        """For each of the features (None: all) that has one, the label with a rule that predicts ordinary text best,
        by feature. Of every explainer, or the named one, the latest label counts; one without a score comes after those
        with one, and of equal ones the latest is taken."""
        chosen, parameters = is_chosen(dictionary_id, None if features is None else list(features))
        columns = select_list(
            RuleLabelRow, "e", density="f.density",
            **{name: f"s.{name}" for name in field_names(RuleLabelRow) if name.partition("_")[0] in _SCORES},
        )  # fmt: skip
        return self.records(
            RuleLabelRow,
            f"""
            WITH latest AS (
                SELECT arg_max(rowid, sequence) AS row_id FROM explanations
                WHERE dictionary_id = ? AND status <> 'gave_up' AND (?::VARCHAR IS NULL OR explainer = ?) AND {chosen}
                GROUP BY feature, explainer
            ),
            s AS (
                SELECT explanation_id, {_score_columns()} FROM scores
                WHERE dictionary_id = ? AND control IS NULL AND part = 'report'
                  AND scorer IN ({", ".join(f"'{scorer}'" for scorer in _SCORES.values())})
                GROUP BY explanation_id
            )
            SELECT {columns} FROM explanations AS e
            JOIN features AS f USING (dictionary_id, feature)
            LEFT JOIN s ON s.explanation_id = e.explanation_id
            WHERE e.rowid IN (SELECT row_id FROM latest) AND e.status = 'ok' AND e.rule IS NOT NULL
            QUALIFY row_number() OVER (
                PARTITION BY e.feature ORDER BY s.natural DESC NULLS LAST, e.sequence DESC
            ) = 1
            ORDER BY e.feature
            """,
            [dictionary_id, explainer, explainer, *parameters, dictionary_id],
        )

    def latest_label_ids(
        self, dictionary_id: int, explainer: str, features: Sequence[int] | None = None
    ) -> dict[int, str]:
        """The id of the latest label by `explainer` of each of the features (None: all) that has one; labels that
        best_of_n only chose among are left out."""
        chosen, parameters = is_chosen(dictionary_id, None if features is None else list(features))
        found = self.rows(
            f"""
            SELECT feature, arg_max(explanation_id, sequence)
            FROM explanations WHERE rowid IN ({latest_labels(chosen)})
            GROUP BY feature HAVING arg_max(status, sequence) = 'ok'
            """,
            [dictionary_id, explainer, *parameters],
        )
        return dict(found)

    def labels_made_from(
        self, dictionary_id: int, explainer: str, model: str, template_sha256: str, seed: int
    ) -> set[str]:
        """The ids of the labels from which this explainer, with this model, template and seed, has made one or failed
        to, a given-up attempt apart."""
        found = self.rows(
            "SELECT DISTINCT unnest(derived_from) FROM explanations WHERE dictionary_id = ? AND explainer = ? "
            "AND model = ? AND template_sha256 = ? AND seed = ? AND status <> 'gave_up'",
            [dictionary_id, explainer, model, template_sha256, seed],
        )
        return {explanation_id for (explanation_id,) in found}

    def explainers_with_labels(self, dictionary_id: int, with_rule: bool) -> list[str]:
        """The explainers that have labels of the dictionary that carry a rule, or that carry none."""
        found = self.rows(
            "SELECT DISTINCT explainer FROM explanations WHERE dictionary_id = ? AND status = 'ok' "
            "AND (rule IS NOT NULL) = ? ORDER BY explainer",
            [dictionary_id, with_rule],
        )
        return [name for (name,) in found]
