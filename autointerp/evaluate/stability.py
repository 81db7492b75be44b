"""Stability: do dictionaries trained from other seeds, or at other sizes, find the same features?

The features of two dictionaries of one model and hookpoint are matched one to one, so that the sum of decoder cosines
is largest (Hungarian algorithm). A feature is shared if its match has a cosine of at least 0.7. A large dictionary has
a similar row for almost anything. So the matching is repeated with one side replaced by random directions of the same
mean and covariance: only what exceeds that says something about the features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from autointerp.errors import InputError
from autointerp.evaluate.metric_rows import MetricRow, metric_row
from autointerp.means import mean_interval

SHARED_COSINE = 0.7
LARGEST_ASSIGNMENT = 20_000
"""Most rows of the larger dictionary for the Hungarian algorithm, which needs 8 bytes per pair (3.2 GB here) and a
minute or two. In larger dictionaries, two features match if each is the other's nearest."""
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Matching:
    cosines: NDArray[np.float64]
    """The cosine of each matched pair."""
    n: int
    """How many features could be matched: all of the smaller dictionary."""
    method: str
    """hungarian or mutual_nn."""

    def shared(self, threshold: float) -> NDArray[np.float64]:
        """1 for each of the n features that has a match of at least `threshold`, else 0."""
        hits = np.zeros(self.n)
        hits[: int((self.cosines >= threshold).sum())] = 1.0
        return hits


def stability(
    decoders: Sequence[Tensor], seed: int = 0, *, threshold: float = SHARED_COSINE, n_boot: int = 1000
) -> list[MetricRow]:
    """Rows for every pair of `decoders` ([d_sae_i, d], with rows of any length), and for the random baseline. Leave out
    dead features, whose rows are still as initialised. Intervals are a bootstrap over features that keeps the matching.

    stability_hungarian_mean_cosine          mean cosine of the matched rows
    stability_hungarian_shared               share of the smaller dictionary's features matched at `threshold` or above
    ..._random                               the same metrics, with random rows for the larger dictionary

    With more than two decoders, a pair's numbers follow the metric in brackets, and the metric without brackets is the
    mean over pairs. If a dictionary has more than LARGEST_ASSIGNMENT rows, the names say `mutual_nn` instead of
    `hungarian`. Raises InputError when fewer than two decoders are given, one is empty, or their widths differ.
    """
    units = [_unit_rows(decoder) for decoder in decoders]
    _check(units)
    rows: list[MetricRow] = []
    pairs = list(combinations(range(len(units)), 2))
    means: dict[str, list[float]] = {}
    for number, (i, j) in enumerate(pairs):
        small, large = sorted((units[i], units[j]), key=len)
        real = match(small, large)
        random = match(small, random_like(large, seed + number))
        suffix = f" [{i}, {j}]" if len(pairs) > 1 else ""
        for matching, ending in ((real, ""), (random, "_random")):
            name = f"stability_{matching.method}"
            note = f"{len(matching.cosines)} pairs of {len(small)} and {len(large)} features"
            for metric, values in (
                (f"{name}_mean_cosine{ending}", matching.cosines),
                (f"{name}_shared{ending}", matching.shared(threshold)),
            ):
                estimate = mean_interval(values, n_boot, seed)
                if estimate.value is not None:
                    means.setdefault(metric, []).append(estimate.value)
                rows.append(metric_row(metric + suffix, estimate, unit="features", note=note))
    if len(pairs) > 1:
        note = "mean over pairs of dictionaries; the pairs share dictionaries, so no interval"
        rows += [metric_row(m, float(np.mean(v)), n=len(v), unit="pairs", note=note) for m, v in means.items()]
    return rows


def match(small: Tensor, large: Tensor) -> Matching:
    """One-to-one matching of unit rows [n, d] and [m, d], n <= m, by cosine."""
    if len(large) <= LARGEST_ASSIGNMENT:
        cosines = (small @ large.T).numpy()
        row, column = linear_sum_assignment(cosines, maximize=True)
        return Matching(cosines[row, column].astype(np.float64), len(small), "hungarian")
    # Find the best match of each row and of each column, a block of rows at a time.
    best_of_small = torch.empty(len(small), dtype=torch.int64)
    cosine_of_small = torch.empty(len(small))
    cosine_of_large = torch.full((len(large),), -2.0)
    best_of_large = torch.zeros(len(large), dtype=torch.int64)
    for start in range(0, len(small), _BLOCK):
        block = small[start : start + _BLOCK] @ large.T
        cosine_of_small[start : start + _BLOCK], best_of_small[start : start + _BLOCK] = block.max(1)
        value, index = block.max(0)
        better = value > cosine_of_large
        cosine_of_large[better], best_of_large[better] = value[better], index[better] + start
    mutual = best_of_large[best_of_small] == torch.arange(len(small))
    return Matching(cosine_of_small[mutual].double().numpy(), len(small), "mutual_nn")


def random_like(rows: Tensor, seed: int) -> Tensor:
    """Random unit rows [n, d], as many as `rows`, from the normal distribution with the mean and covariance of
    `rows`."""
    generator = torch.Generator().manual_seed(seed)
    mean = rows.double().mean(0)
    centred = rows.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(rows) - 1))
    root = vectors * values.clamp_min(0).sqrt()
    drawn = torch.cat([block @ root.T for block in _normal(len(rows), rows.shape[1], generator)])
    return F.normalize(drawn + mean, dim=1).float()


def _normal(n: int, d: int, generator: torch.Generator) -> Iterator[Tensor]:
    for start in range(0, n, _BLOCK):
        yield torch.randn(min(_BLOCK, n - start), d, dtype=torch.float64, generator=generator)


def _unit_rows(decoder: Tensor) -> Tensor:
    return F.normalize(decoder.detach().float().cpu(), dim=-1)


def _check(units: Sequence[Tensor]) -> None:
    shapes = ", ".join(str(list(unit.shape)) for unit in units)
    if len(units) < 2:
        raise InputError(f"stability compares dictionaries: {len(units)} given, at least 2 needed")
    if any(unit.ndim != 2 or not len(unit) for unit in units) or len({unit.shape[1] for unit in units}) > 1:
        raise InputError(f"stability needs decoders [d_sae, d] of one model and hookpoint, not {shapes}")
    if not all(bool(torch.isfinite(unit).all()) for unit in units):
        raise InputError("stability: a decoder holds numbers that are not finite")
