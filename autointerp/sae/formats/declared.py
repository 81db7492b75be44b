"""What the files of a dictionary declare of how sparse it is and how well it reconstructs, to be compared with what it
does here.

    k of a dictionary that chooses k features            L0
    average_l0_71 in the path (Gemma Scope)              L0
    sparsity.safetensors (SAELens)                       L0: the sum of the features' frequencies, kept as log10
    eval_results.json (dictionary_learning)              L0, and 1 - frac_variance_explained
    trainer.k or trainer.target_l0 of its config.json    L0
    metadata of our own files                            both

A reader may fill Sae.metadata[DECLARED] itself; then it is left as it is. A figure that is no number declares nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.errors import AutointerpError
from autointerp.sae import files
from autointerp.sae.formats.internal import read_config
from autointerp.sae.sae import Sae

DECLARED = "declared"
SPARSITY, EVALUATION, CONFIG = "sparsity.safetensors", "eval_results.json", "config.json"


@dataclass(frozen=True, slots=True)
class Declared:
    """Figures that a dictionary's files give; None where they give none."""

    l0: float | None = None
    fvu: float | None = None

    def __str__(self) -> str:
        if self.l0 is None and self.fvu is None:
            return "neither L0 nor FVU"
        l0 = "no L0" if self.l0 is None else f"L0 {self.l0:.4g}"
        return f"{l0} and {'no FVU' if self.fvu is None else f'FVU {self.fvu:.3g}'}"


def declared(sae: Sae) -> Declared:
    """What the files of a loaded dictionary declare."""
    found = sae.metadata.get(DECLARED)
    found = found if isinstance(found, Mapping) else {}
    return Declared(_figure(found.get("l0"), sae.d_sae), _figure(found.get("fvu"), 1e6))


def look_for_figures(sae: Sae, path: Path) -> None:
    """Fill metadata[DECLARED] from what lies at `path`, where the format's reader has left it out."""
    if isinstance(sae.metadata.get(DECLARED), Mapping):
        return
    folder = path if path.is_dir() else path.parent
    figures: dict[str, Any] = {} if sae.k is None else {"l0": float(sae.k)}
    for found in (_of_config(folder), _of_path(path), _of_frequencies(folder, sae), _of_evaluation(folder)):
        figures |= {name: value for name, value in found.items() if value is not None}
    if figures:
        sae.metadata = sae.metadata | {DECLARED: figures}


def _figure(value: Any, most: float) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good and 0 < value <= most else None


def _of_path(path: Path) -> dict[str, Any]:
    named = [re.fullmatch(r"average_l0_(\d+)", part) for part in path.absolute().parts]
    return {"l0": next((float(found[1]) for found in reversed(named) if found), None)}


def _of_frequencies(folder: Path, sae: Sae) -> dict[str, Any]:
    if not (folder / SPARSITY).is_file():
        return {}
    with suppress(AutointerpError):  # a file that only describes the dictionary, and cannot be read
        found = files.read_tensors(folder / SPARSITY).get("sparsity")
        if found is not None and found.shape == (sae.d_sae,) and found.is_floating_point():
            return {"l0": _figure(float((10 ** found.double()).sum()), sae.d_sae)}
    return {}


def _of_evaluation(folder: Path) -> dict[str, Any]:
    found = _table(folder / EVALUATION)
    explained = found.get("frac_variance_explained")
    fvu = 1 - explained if isinstance(explained, (int, float)) and not isinstance(explained, bool) else None
    return {"l0": _figure(found.get("l0"), 1e9), "fvu": _figure(fvu, 1e6)}


def _of_config(folder: Path) -> dict[str, Any]:
    trainer = _table(folder / CONFIG).get("trainer")
    trainer = trainer if isinstance(trainer, Mapping) else {}
    chooses_k = "TopK" in str(trainer.get("dict_class"))
    figures = [_figure(trainer.get(name), 1e9) for name in ("target_l0", *(("k",) if chooses_k else ()))]
    return {"l0": next((figure for figure in figures if figure is not None), None)}


def _table(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    with suppress(AutointerpError, json.JSONDecodeError):
        return read_config(path)
    return {}
