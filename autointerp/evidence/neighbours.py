"""The evidence method `neighbours`: which features are alike in what they write, and in where they fire.

feature_relations.py says how the relations are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from autointerp.config import EvidenceConfig
from autointerp.evidence.method import Found, Study, fields_of
from autointerp.evidence.page_lines import shortened
from autointerp.store.finding_tables import NEIGHBOURS, Row

SHOWN = 3
"""Neighbours of each relation on a page."""
LABEL_CHARACTERS = 48
RELATION_NAMES = {
    "decoder": "by direction",
    "coactive": "firing together",
    "correlated": "correlated",
    "anticorrelated": "anticorrelated",
}


class Neighbours:
    """Up to `related` rows of the table neighbours for every feature and relation."""

    name = "neighbours"
    table = NEIGHBOURS
    scope: Literal["dictionary"] = "dictionary"

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        return fields_of(config, "relation_tokens", "related")

    def find(self, study: Study, features: Sequence[int]) -> Found:
        import torch

        from autointerp.evidence.feature_relations import relations

        point, _ = study.points()
        excluded = torch.tensor(sorted(study.excluded_ids()), dtype=torch.int64)
        with study.counting("reading text", study.evidence.relation_tokens, "tokens") as update:
            found = relations(
                study.model(), study.weights(), point, study.windows(), study.evidence, excluded, study.batch_tokens,
                study.alive(), on_tokens=update,
            )  # fmt: skip
        return Found(found.columns, n_forwards=found.n_windows, n_tokens=found.n_tokens)

    def page(self, rows: Sequence[Row]) -> list[str]:
        """neighbours  by direction    12 (0.71) `def` at the start of a line; 33 (0.61) ..."""
        lines: list[str] = []
        for relation, name in RELATION_NAMES.items():
            near = [row for row in rows if row["relation"] == relation][:SHOWN]
            if near:
                told = "; ".join(
                    f"{row['neighbour']} ({row['value']:.2f})"
                    + (f" {shortened(row['label'], LABEL_CHARACTERS)}" if row["label"] else "")
                    for row in near
                )
                lines.append(f"{'neighbours' if not lines else '':10}  {name:15} {told}")
        return lines
