"""The evidence of one dictionary from one work unit: columns, gathered part by part, and totals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from autointerp.harvest.split_pass import Columns
from autointerp.records import SPLITS


@dataclass(slots=True)
class UnitEvidence:
    """Everything that is kept of one unit: plain columns (see store/unit_tables.py) and totals."""

    index: int
    tables: dict[str, Columns] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)


class EvidenceParts:
    """The columns of one dictionary's splits and blocks of features, before they are joined."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Columns]] = {}
        self.n_tokens, self.n_nonfinite = dict.fromkeys(SPLITS, 0), 0

    def add(self, code: int, tables: Mapping[str, Columns]) -> None:
        """Add one block's tables for the split with this code. Changes the given columns."""
        for name, columns in tables.items():
            n = len(next(iter(columns.values())))
            if name != "activations":
                columns["split"] = np.full(n, code, dtype=np.int8)
            else:
                before = sum(len(part["feature"]) for part in self.tables.get("candidates", [])[:-1])
                columns["candidate"] = columns["candidate"] + before
            self.tables.setdefault(name, []).append(columns)

    def joined(self) -> dict[str, Columns]:
        joined = {
            name: {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
            for name, parts in self.tables.items()
        }
        if "candidates" in joined:
            joined["candidates"]["candidate"] = np.arange(len(joined["candidates"]["feature"]))
        return joined

    def totals(self) -> dict[str, int]:
        return {f"n_tokens_{split}": n for split, n in self.n_tokens.items()} | {"n_nonfinite": self.n_nonfinite}
