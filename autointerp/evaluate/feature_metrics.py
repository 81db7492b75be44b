"""Measures the features of a dictionary by themselves: how often each is active, and how alike their directions are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autointerp import stats
from autointerp.evaluate.document_sums import Metric
from autointerp.means import mean_interval

DENSE_ABOVE = 0.1
"""A feature that is active on a larger share of the tokens is dense."""
REDUNDANT_ABOVE = 0.9
"""A feature is redundant when its decoder row has a larger cosine than this with another one's."""
MOST_QUERY_ROWS = 4096
"""Number of decoder rows whose nearest row is searched; of larger dictionaries a sample."""
DENSITY_EDGES = tuple(-7.0 + 0.5 * i for i in range(14))
"""log10 of the lower edges of the density histogram's bins. The first bin also takes all densities below its edge."""

_BLOCK_ELEMENTS = 1 << 22
"""float32 elements of one block of cosines (16 MB)."""


def feature_metrics(counts: NDArray[np.int64], n_tokens: int, split: str | None, n_documents: int) -> list[Metric]:
    """Shares of all features: never active (`dead_fraction`), active on more than a tenth of the tokens
    (`dense_fraction`), and in each bin of the density histogram (`log10_density_bin_<lower edge>`). The bins and the
    dead features sum to 1. There are no intervals, since a resample misses features that the corpus does show, and so
    would call too many dead.

    Whether a feature is dead depends on how much text was read: one that fires once in ten million tokens needs as
    many.
    """
    if n_tokens == 0 or not len(counts):
        return []
    density = counts / n_tokens
    alive = density[counts > 0]
    figures = {"dead_fraction": 1.0 - len(alive) / len(density), "dense_fraction": (density > DENSE_ABOVE).mean()}
    bins = np.searchsorted(DENSITY_EDGES, np.log10(alive), side="right").clip(min=1) - 1
    for edge, count in zip(DENSITY_EDGES, np.bincount(bins, minlength=len(DENSITY_EDGES))):
        figures[f"log10_density_bin_{edge:.1f}"] = count / len(density)
    return [Metric(name, float(value), split, None, None, n_tokens, n_documents) for name, value in figures.items()]


@torch.no_grad()
def decoder_metrics(
    W_dec: Tensor, alive: NDArray[np.bool_], n_tokens: int, n_documents: int, seed: int
) -> list[Metric]:
    """How similar the decoder rows of live features are: `decoder_mean_max_cosine`, the mean cosine of a row with the
    nearest other row, and `decoder_redundant_fraction`, the share of rows whose nearest one is above REDUNDANT_ABOVE.

    W_dec is [d_sae, d_out], alive [d_sae]. Empty when fewer than two features are alive. Of more than MOST_QUERY_ROWS
    features a sample is compared with all; only then is there an interval, over the features drawn.
    """
    kept = np.flatnonzero(alive)
    if len(kept) < 2:
        return []
    rows = F.normalize(W_dec[torch.from_numpy(kept).to(W_dec.device)].float(), dim=1)
    sampled = len(kept) > MOST_QUERY_ROWS
    query = np.arange(len(kept))
    if sampled:
        query = np.sort(np.random.default_rng(seed).choice(len(kept), MOST_QUERY_ROWS, replace=False))
    nearest = []
    for block in torch.from_numpy(query).to(rows.device).split(max(1, _BLOCK_ELEMENTS // len(rows))):
        cosines = rows[block] @ rows.T
        cosines[torch.arange(len(block), device=rows.device), block] = -1.0
        nearest.append(cosines.amax(1).clamp(-1.0, 1.0).cpu())
    cosine = torch.cat(nearest).double().numpy()
    share = stats.wilson(int((cosine > REDUNDANT_ABOVE).sum()), len(cosine))
    mean = mean_interval(cosine, seed=seed)
    return [
        Metric(name, e.value, None, e.low if sampled else None, e.high if sampled else None, n_tokens, n_documents)
        for name, e in (("decoder_redundant_fraction", share), ("decoder_mean_max_cosine", mean))
    ]
