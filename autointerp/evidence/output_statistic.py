"""The evidence method `output_statistic`: whether a feature acts on the output.

logit_tails.py says what is measured on its vocabulary projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from autointerp.config import EvidenceConfig
from autointerp.errors import NoProjection
from autointerp.evidence.method import PROJECTED, Found, Study, fields_of, no_output_space, written_path
from autointerp.store.finding_tables import OUTPUT_STATISTICS, Row, stands_out


class OutputStatistic:
    """One row of output_statistics for every feature."""

    name = "output_statistic"
    table = OUTPUT_STATISTICS
    scope: Literal["dictionary"] = "dictionary"

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        return {**fields_of(config, "seed"), **PROJECTED, "null": "moments of the decoder"}

    def find(self, study: Study, features: Sequence[int]) -> Found:
        from autointerp.evidence.logit_tails import output_statistics

        try:
            path = study.once(written_path)
        except NoProjection as reason:
            return no_output_space(features, reason)
        return Found(
            output_statistics(path, study.weights(), study.text(), study.alive(), study.evidence.seed, study.counting)
        )

    def page(self, rows: Sequence[Row]) -> list[str]:
        """output  its promoted tokens stand out clearly: kurtosis 41.2 (1 in 100 random directions exceeds 1.3), ..."""
        lines = []
        for found in rows:
            acts = "its promoted tokens do not stand out"
            if found["is_output"]:
                acts = f"its promoted tokens stand out {'clearly' if stands_out(found) else 'a little'}"
            chance = f"1 in 100 random directions exceeds {found['threshold']:.1f}"
            if found["p_value"] is not None:  # rows of earlier versions have none
                chance += f"; p {found['p_value']:.2g}"
            lines.append(f"output  {acts}: kurtosis {found['kurtosis']:.1f} ({chance}), skew {found['skew']:+.1f}")
        return lines
