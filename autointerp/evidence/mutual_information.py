"""The evidence method `mutual_information`: words that single out a feature's direction (Wu et al. 2025).

word_information.py holds the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from autointerp.config import EvidenceConfig
from autointerp.evidence.method import Found, Study, fields_of, no_output_space
from autointerp.evidence.page_lines import words_line
from autointerp.store.finding_tables import MUTUAL_INFORMATION, Row


class MutualInformation:
    """Up to `words` rows of the table mutual_information for every feature."""

    name = "mutual_information"
    table = MUTUAL_INFORMATION
    scope: Literal["dictionary"] = "dictionary"

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        return fields_of(config, "mi_words", "mi_mode", "words")

    def find(self, study: Study, features: Sequence[int]) -> Found:
        from autointerp.evidence.word_information import mutual_information, vocabulary

        text, config = study.text(), study.evidence
        words = vocabulary(study.windows(), text, config.mi_words)
        found = mutual_information(study.model(), study.weights(), text, words, config, study.alive())
        return no_output_space(features) if found is None else Found(found)

    def page(self, rows: Sequence[Row]) -> list[str]:
        return words_line("words of its direction", rows, "score")
