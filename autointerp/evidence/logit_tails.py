"""Whether a feature acts on the output: does its vocabulary projection single out tokens, more than chance does?

The logits of a random direction are close to normally distributed over the vocabulary. Those of a feature that promotes
a few tokens have a heavy tail, so a large excess kurtosis; the skew says on which side (above 0: it promotes, below 0:
it suppresses). Random directions are drawn with the second moments of the decoder's rows, since most of what a decoder
writes lies in few dimensions, where all directions have heavier tails. A feature's p-value is the share of them with as
large a kurtosis, adjusted by Benjamini-Hochberg over the features; where it is below SIGNIFICANT, the feature counts as
an output feature. So many directions are drawn that hardly any feature's answer depends on the seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from autointerp.corpus.token_text import TokenText
from autointerp.harvest.vocab_projection import BLOCK_ELEMENTS, Unembedding
from autointerp.model.logit_path import LogitPath
from autointerp.progress import Adding, Counting, uncounted
from autointerp.sae.sae import Sae
from autointerp.stats import benjamini_hochberg

RANDOM_DIRECTIONS = 20_000
SIGNIFICANT = 0.05
"""Of the features that count as output features at most this share is expected to be there by chance."""
QUANTILE = 0.99
DRAWN_AT_ONCE = 2048


@torch.no_grad()
def output_statistics(
    path: LogitPath, sae: Sae, text: TokenText, alive: np.ndarray, seed: int, counting: Counting = uncounted
) -> dict[str, list[Any]]:
    """Columns feature, kurtosis, skew, threshold, p_value, is_output of the table `output_statistics`, for the `alive`
    features (bool [d_sae]). `path` begins where the SAE writes."""
    head = Unembedding(path, text)
    features = np.flatnonzero(alive)
    rows = sae.W_dec[torch.from_numpy(features).to(sae.W_dec.device)]
    kurtosis, skew = _shape_of_logits(head, rows, counting)
    random = random_kurtosis(head, rows, seed, counting) if len(features) else np.zeros(1)
    # The feature itself counts among the directions, so that no p-value is 0.
    p = (1 + len(random) - np.searchsorted(random, kurtosis, side="left")) / (1 + len(random))
    p_value = benjamini_hochberg(p, len(features))
    return {
        "feature": features.tolist(),
        "kurtosis": kurtosis.tolist(),
        "skew": skew.tolist(),
        "threshold": [float(np.quantile(random, QUANTILE))] * len(features),
        "p_value": p_value.tolist(),
        "is_output": (p_value < SIGNIFICANT).tolist(),
    }


def random_kurtosis(head: Unembedding, rows: Tensor, seed: int, counting: Counting = uncounted) -> np.ndarray:
    """The kurtosis of random directions, ascending, float64: of RANDOM_DIRECTIONS, or as many as there are rows if that
    is more, since p-values of many features have to be small to count. The directions are Gaussian with the second
    moments of the directions of `rows` [n, width] (shrunken towards equal ones, since few rows say little of them), and
    have lengths drawn from those of the rows."""
    rows = rows.float().cpu()  # on the CPU, so that every device draws the same
    n, width = rows.shape
    norms = rows.norm(dim=1)
    unit = torch.nn.functional.normalize(rows, dim=1).double()
    moments = (unit.T @ unit + torch.eye(width, dtype=torch.float64)) / (n + width)
    values, vectors = torch.linalg.eigh(moments)
    root = (vectors * values.clamp_min(0).sqrt()).T.float()
    generator = torch.Generator().manual_seed(seed)
    found = []
    wanted = max(RANDOM_DIRECTIONS, n)
    with counting("random directions", wanted, "directions") as update:
        adding = Adding(update)
        for start in range(0, wanted, DRAWN_AT_ONCE):
            size = min(DRAWN_AT_ONCE, wanted - start)
            directions = torch.nn.functional.normalize(torch.randn(size, width, generator=generator) @ root, dim=1)
            directions *= norms[torch.randint(n, (size,), generator=generator)][:, None]
            found.append(_shape_of_logits(head, directions)[0])
            adding(size)
    return np.sort(np.concatenate(found))


def _shape_of_logits(
    head: Unembedding, directions: Tensor, counting: Counting = uncounted
) -> tuple[np.ndarray, np.ndarray]:
    """(excess kurtosis, skew), float64 [n], of the logits of directions [n, width]; 0 where all logits are equal."""
    size = max(1, BLOCK_ELEMENTS // max(1, len(head.ids)))
    found = []
    with counting("output statistics", len(directions), "features") as update:
        adding = Adding(update)
        for part in directions.split(size):
            logits = head.logits(part)
            logits -= logits.mean(1, keepdim=True)
            z = logits / logits.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
            varies = z.square().mean(1) > 0.5
            square = z.square()
            moments = torch.stack([square.square().mean(1) - 3, (square * z).mean(1)])
            found.append(torch.where(varies, moments, 0.0).cpu().double())
            adding(len(part))
    kurtosis, skew = torch.cat(found, 1).numpy() if found else np.zeros((2, 0))
    return kurtosis, skew
