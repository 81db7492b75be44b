"""Finds the tokens that a feature's decoder row promotes and suppresses: the logit lens on the decoder.

    logits_i = U (N(C d_i) - N(0)),  minus their mean over the vocabulary

N is the model's own final norm and U its unembedding (Geva et al. 2022; Gur-Arieh et al. 2025 apply the norm as well).
N(0) is a LayerNorm's bias, which would promote the same tokens for every feature; it is zero for an RMSNorm. C is what
leads the row into the residual stream: nothing for most SAEs, the output projection for one on attention's heads.
model/logit_path.py finds all three by running the model. Logits are as large as the model makes them, but for a soft
cap, which is monotone and left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autointerp.corpus.token_text import TokenText
from autointerp.model.logit_path import LogitPath
from autointerp.progress import Counting, uncounted
from autointerp.sae.sae import Sae

BLOCK_ELEMENTS = 1 << 25
"""Number of logits held in memory at once."""


@dataclass(frozen=True, slots=True)
class VocabProjection:
    """Rows for `Store.insert_vocab_projection`, all [n]: each feature's promoted tokens, then its suppressed ones."""

    feature: np.ndarray
    sign: np.ndarray
    """1 for promoted tokens, -1 for suppressed ones."""
    rank: np.ndarray
    token_id: np.ndarray
    token: list[str]
    logit: np.ndarray
    """The logit minus the mean over the vocabulary."""


def ordinary_ids(text: TokenText, n_logits: int) -> list[int]:
    """Ids of the tokens that are neither special nor unused, for a model with `n_logits` logits."""
    n_tokens = min(n_logits, len(text.token_bytes))
    return [i for i in range(n_tokens) if text.token_bytes[i] and i not in text.special_ids]


class Unembedding:
    """The way from a hookpoint's directions to the logits of the tokens that are neither special nor unused."""

    def __init__(self, path: LogitPath, text: TokenText) -> None:
        self.path = path
        weight = path.head.weight
        assert isinstance(weight, Tensor)
        self.ids = torch.tensor(ordinary_ids(text, len(weight)), dtype=torch.int64, device=weight.device)
        """Ids of the kept tokens, which are neither special nor unused."""
        self.rows = weight.detach()[self.ids].float()
        self.rows = self.rows - self.rows.mean(0)

    @property
    def width(self) -> int:
        """The width of directions."""
        return self.path.width

    @torch.no_grad()
    def logits(self, directions: Tensor) -> Tensor:
        """The logits of directions [n, width], float32 [n, kept tokens]."""
        return self.path.hidden(directions) @ self.rows.T


@torch.no_grad()
def vocab_projection(
    path: LogitPath, sae: Sae, text: TokenText, n_tokens: int, counting: Counting = uncounted,
    through: Tensor | None = None,
) -> VocabProjection:  # fmt: skip
    """The `n_tokens` most promoted and most suppressed tokens of every feature, in blocks of features. `path` begins
    where the SAE writes, or where `through` [width there, width of the rows] leads its decoder rows."""
    head = Unembedding(path, text)
    n = min(n_tokens, len(head.ids))
    size = max(1, BLOCK_ELEMENTS // max(1, len(head.ids)))
    logits, ids = [], []
    with counting("projecting onto the vocabulary", sae.d_sae, "features") as update:
        for low in range(0, sae.d_sae, size):
            rows = sae.W_dec[low : low + size]
            found = head.logits(rows if through is None else rows.float() @ through.T)
            ends = [found.topk(n, dim=1, largest=largest) for largest in (True, False)]
            logits.append(torch.cat([values for values, _ in ends], 1).cpu())
            ids.append(head.ids[torch.cat([index for _, index in ends], 1)].cpu())
            update(min(low + size, sae.d_sae))
    logit, token_id = (torch.cat(blocks).numpy().ravel() for blocks in (logits, ids))
    strings = {int(i): text.tokens([int(i)])[0] for i in np.unique(token_id)}
    return VocabProjection(
        feature=np.repeat(np.arange(sae.d_sae, dtype=np.int32), 2 * n),
        sign=np.tile(np.repeat(np.array([1, -1], dtype=np.int8), n), sae.d_sae),
        rank=np.tile(np.arange(n, dtype=np.int32), 2 * sae.d_sae),
        token_id=token_id.astype(np.int32),
        token=[strings[i] for i in token_id.tolist()],
        logit=logit,
    )


def no_projection() -> VocabProjection:
    """No rows, for a model whose logits cannot be reached."""
    none = np.zeros(0)
    return VocabProjection(none, none, none, none, [], none)
