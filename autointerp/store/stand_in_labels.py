"""Labels of other features, which a control puts in the place of a feature's own."""

from __future__ import annotations

from autointerp.store.connection import StoreConnection
from autointerp.store.labels_left import LabelFacts, LabelKey
from autointerp.store.named_rows import select_list
from autointerp.store.selection import latest_labels

_LABELS = f"SELECT * FROM explanations WHERE rowid IN ({latest_labels()}) AND status = 'ok'"
# The nearest feature first; of its labels that by the same model, then the latest.
_NEAREST = f"""
    WITH labels AS ({_LABELS})
    SELECT
        own.explanation_id,
        arg_min(
            {{'explanation_id': other.explanation_id, 'feature': other.feature}},
            [n.rank, (other.model <> own.model)::BIGINT, -other.sequence]
        ) AS donor
    FROM labels AS own
    JOIN neighbours AS n
        ON n.dictionary_id = own.dictionary_id AND n.feature = own.feature AND n.relation = 'decoder'
    JOIN labels AS other ON other.feature = n.neighbour
    GROUP BY own.explanation_id
"""


class StoreStandInLabels(StoreConnection):
    def labels_by(self, dictionary_id: int, explainer: str) -> list[LabelFacts]:
        """The latest label by `explainer` and each explaining model for every feature, in order of features."""
        return self.records(
            LabelFacts,
            f"SELECT {select_list(LabelFacts, 'l', density='f.density')} FROM ({_LABELS}) AS l "
            "JOIN features AS f USING (dictionary_id, feature) ORDER BY l.feature, l.model",
            [dictionary_id, explainer],
        )

    def nearest_labels(self, dictionary_id: int, explainer: str) -> dict[str, LabelKey]:
        """For each of those labels, by its id, that of the feature whose decoder row is nearest by cosine, of those
        with a label. Labels that have none among the stored neighbours are left out."""
        found = self.rows(_NEAREST, [dictionary_id, explainer])
        return {explanation_id: (donor["explanation_id"], donor["feature"]) for explanation_id, donor in found}
