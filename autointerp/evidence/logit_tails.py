"""Whether a feature acts on the output: does its vocabulary projection single out tokens, more than chance does?

The logits of a random direction are close to normally distributed over the vocabulary. Those of a feature that promotes
a few tokens have a heavy tail, so a large excess kurtosis; the skew says on which side (above 0: it promotes, below 0:
it suppresses). A feature counts as an output feature where its kurtosis exceeds that of 99 of 100 random directions,
so about 1 in 100 features that write nowhere in particular counts as one, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from autointerp.corpus.token_text import TokenText
from autointerp.harvest.vocab_projection import BLOCK_ELEMENTS, Unembedding
from autointerp.model.logit_path import LogitPath
from autointerp.progress import Counting, uncounted
from autointerp.sae.sae import Sae

RANDOM_DIRECTIONS = 1000
QUANTILE = 0.99


@torch.no_grad()
def output_statistics(
    path: LogitPath, sae: Sae, text: TokenText, alive: np.ndarray, seed: int, counting: Counting = uncounted
) -> dict[str, list[Any]]:
    """Columns feature, kurtosis, skew, threshold, is_output of the table `output_statistics`, for the `alive` features
    (bool [d_sae]). `path` begins where the SAE writes."""
    head = Unembedding(path, text)
    features = np.flatnonzero(alive)
    rows = sae.W_dec[torch.from_numpy(features).to(sae.W_dec.device)]
    kurtosis, skew = _shape_of_logits(head, rows, counting)
    threshold = random_threshold(head, rows.float().norm(dim=1).cpu(), seed) if len(features) else 0.0
    return {
        "feature": features.tolist(),
        "kurtosis": kurtosis.tolist(),
        "skew": skew.tolist(),
        "threshold": [threshold] * len(features),
        "is_output": (kurtosis > threshold).tolist(),
    }


def random_threshold(head: Unembedding, norms: Tensor, seed: int) -> float:
    """The kurtosis that 1 in 100 random directions exceeds: isotropic, with lengths drawn from `norms` [n]."""
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device draws the same
    directions = torch.randn(RANDOM_DIRECTIONS, head.width, generator=generator)
    drawn = norms[torch.randint(len(norms), (RANDOM_DIRECTIONS,), generator=generator)]
    directions = torch.nn.functional.normalize(directions, dim=1) * drawn[:, None]
    return float(np.quantile(_shape_of_logits(head, directions)[0], QUANTILE))


def _shape_of_logits(
    head: Unembedding, directions: Tensor, counting: Counting = uncounted
) -> tuple[np.ndarray, np.ndarray]:
    """(excess kurtosis, skew), float64 [n], of the logits of directions [n, width]; 0 where all logits are equal."""
    size = max(1, BLOCK_ELEMENTS // max(1, len(head.ids)))
    found = []
    with counting("output statistics", len(directions), "features") as update:
        for part in directions.split(size):
            logits = head.logits(part)
            logits -= logits.mean(1, keepdim=True)
            z = logits / logits.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
            varies = z.square().mean(1) > 0.5
            square = z.square()
            moments = torch.stack([square.square().mean(1) - 3, (square * z).mean(1)])
            found.append(torch.where(varies, moments, 0.0).cpu().double())
            update(sum(block.shape[1] for block in found))
    kurtosis, skew = torch.cat(found, 1).numpy() if found else np.zeros((2, 0))
    return kurtosis, skew
