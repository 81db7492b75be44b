"""The evidence method `mutual_information`: words that single out a feature's direction (Wu et al. 2025).

word_information.py holds the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from autointerp.config import EvidenceConfig
from autointerp.errors import NoProjection
from autointerp.evidence.method import PROJECTED, Found, Study, fields_of, no_output_space, read_path
from autointerp.evidence.page_lines import words_line
from autointerp.store.finding_tables import MUTUAL_INFORMATION, Row


class MutualInformation:
    """Up to `words` rows of the table mutual_information for every feature."""

    name = "mutual_information"
    table = MUTUAL_INFORMATION
    scope: Literal["dictionary"] = "dictionary"

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        return {**fields_of(config, "mi_words", "mi_mode", "words"), **PROJECTED}

    def find(self, study: Study, features: Sequence[int]) -> Found:
        from autointerp.evidence.word_information import mutual_information, vocabulary

        text, config = study.text(), study.evidence
        try:
            path = study.once(read_path)
            words = vocabulary(study.windows(), text, config.mi_words)
            found = mutual_information(
                study.model(), path, study.weights(), text, words, config, study.alive(), study.counting
            )
        except NoProjection as reason:
            return no_output_space(features, reason)
        return Found(found)

    def page(self, rows: Sequence[Row]) -> list[str]:
        return words_line("words of its direction", rows, "score")
