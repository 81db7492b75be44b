"""Finds the tokens that a feature's decoder row promotes and suppresses: the logit lens on the decoder.

    logits_i = U (N(d_i) - N(0)),  minus their mean over the vocabulary

N is the model's own final norm and U its unembedding (Geva et al. 2022; Gur-Arieh et al. 2025 apply the norm as well).
N(0) is a LayerNorm's bias, which would promote the same tokens for every feature; it is zero for an RMSNorm. A soft cap
on logits is monotone, so it is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autointerp.corpus.token_text import TokenText
from autointerp.errors import InputError
from autointerp.model.load import LoadedModel
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


def final_norm(model: nn.Module) -> nn.Module:
    """The norm before the unembedding: the last norm module that belongs to no layer. Raises InputError if no such
    module is found."""
    found: nn.Module | None = None
    for name, module in model.named_modules():
        parts = name.lower().split(".")
        is_norm = "norm" in type(module).__name__.lower()
        in_layer = any(part.isdigit() for part in parts)
        if is_norm and not in_layer and "embed" not in parts[-1]:
            found = module
    if found is None:
        raise InputError(f"{type(model).__name__} has no final norm that can be found, so no vocabulary projection")
    return found


def ordinary_ids(text: TokenText, n_logits: int) -> list[int]:
    """Ids of the tokens that are neither special nor unused, for a model with `n_logits` logits."""
    n_tokens = min(n_logits, len(text.token_bytes))
    return [i for i in range(n_tokens) if text.token_bytes[i] and i not in text.special_ids]


class Unembedding:
    """A model's final norm and unembedding, as directions in float32 on the model's device."""

    def __init__(self, loaded: LoadedModel, text: TokenText) -> None:
        head = loaded.model.get_output_embeddings()
        if head is None:
            raise InputError(f"model {loaded.name} has no output embedding, so no vocabulary projection")
        self.norm = final_norm(loaded.model)
        weight = head.weight
        self.ids = torch.tensor(ordinary_ids(text, len(weight)), dtype=torch.int64, device=weight.device)
        """Ids of the kept tokens, which are neither special nor unused."""
        self.rows = weight.detach()[self.ids].float()
        self.rows = self.rows - self.rows.mean(0)
        self._dtype = next((p.dtype for p in self.norm.parameters()), loaded.dtype)

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    @torch.no_grad()
    def logits(self, directions: Tensor) -> Tensor:
        """The logits of directions [n, width], float32 [n, kept tokens]."""
        return self.normed(directions) @ self.rows.T

    @torch.no_grad()
    def normed(self, directions: Tensor, *, keep_bias: bool = False) -> Tensor:
        """N(d) - N(0) of directions [n, width], or N(d) with the norm's bias: float32 [n, width]."""
        x = directions.to(self.rows.device, self._dtype)
        normed = self.norm(x).float()
        return normed if keep_bias else normed - self.norm(torch.zeros_like(x[:1])).float()


@torch.no_grad()
def vocab_projection(loaded: LoadedModel, sae: Sae, text: TokenText, n_tokens: int) -> VocabProjection | None:
    """The `n_tokens` most promoted and most suppressed tokens of every feature, in blocks of features.

    None if the SAE does not write into the residual stream, that is, if the widths of its decoder and of the
    unembedding differ. Raises InputError if the model has no final norm or no unembedding.
    """
    head = Unembedding(loaded, text)
    if sae.d_out != head.width:
        return None
    n = min(n_tokens, len(head.ids))
    size = max(1, BLOCK_ELEMENTS // max(1, len(head.ids)))
    logits, ids = [], []
    for low in range(0, sae.d_sae, size):
        found = head.logits(sae.W_dec[low : low + size])
        ends = [found.topk(n, dim=1, largest=largest) for largest in (True, False)]
        logits.append(torch.cat([values for values, _ in ends], 1).cpu())
        ids.append(head.ids[torch.cat([index for _, index in ends], 1)].cpu())
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
