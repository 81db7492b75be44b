"""Pools activations over whole texts, so that what a dictionary says about a text does not depend on how the text was
cut into tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from autointerp.config import CorpusConfig
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import bos_prefix, token_ids
from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint
from autointerp.model.input_limits import spelled_unreadable
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import activation_batches, eligible
from autointerp.records import Window
from autointerp.sae.codes import SparseCodes
from autointerp.sae.sae import Sae

BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Pooled:
    """One row per text. A text without a counted token has zeros everywhere."""

    maximum: csr_matrix
    """float32 [n, d_sae]: each feature's largest activation in the text, 0 where it is silent."""
    mean: csr_matrix
    """float32 [n, d_sae]: each feature's mean over the text's counted tokens, silent ones included."""
    raw_mean: NDArray[np.float32]
    """[n, d_in]: the mean activation vector that the dictionary read."""
    n_tokens: NDArray[np.int64]
    """[n]: counted tokens (no BOS, no special tokens)."""
    cut: NDArray[np.bool_]
    """[n]: whether the text was longer than the context and lost its end."""


def pooled(
    loaded: LoadedModel,
    sae: Sae,
    hookpoint: Hookpoint,
    texts: Sequence[str],
    corpus: CorpusConfig,
    batch_tokens: int = BATCH_TOKENS,
    on_texts: Callable[[int], object] = lambda n: None,
) -> Pooled:
    """Read each text as one window of at most `corpus.context_length` tokens, and pool over its counted tokens.
    `on_texts` is called with the number of texts of every batch that was read.

    Of `corpus` only context_length, prepend_bos and exclude_tokens matter. Memory grows with the active features of all
    texts (twice 8 bytes each), never with n * d_sae. Raises the InputErrors of `bos_prefix`, `excluded_ids` and the
    hookpoint, and one for a text that spells a token without an embedding.
    """
    prefix = bos_prefix(loaded.tokenizer, corpus)
    excluded = torch.tensor(
        sorted(TokenText(loaded.tokenizer).excluded_ids(corpus.exclude_tokens)), dtype=torch.int64, device=loaded.device
    )
    ids = token_ids(texts, loaded.tokenizer)
    for i, why in spelled_unreadable(loaded.model, loaded.tokenizer, ids).items():
        raise InputError(f"text {i} ({texts[i][:40]!r}...) {why}; take it out of the texts")
    room = corpus.context_length - len(prefix)
    # An empty text has no window, since a model cannot read a sequence without tokens.
    filled = [i for i, found in enumerate(ids) if found]
    windows = [Window(str(i), 0, "report", [*prefix, *ids[i][:room]], len(prefix)) for i in filled]
    n, n_tokens = len(texts), np.zeros(len(texts), dtype=np.int64)
    raw_mean = np.zeros((n, sae.d_in), dtype=np.float32)
    found_rows, found_features, found_max, found_mean = [], [], [], []
    for batch, activations in activation_batches(loaded, hookpoint, windows, batch_tokens):
        counted = eligible(batch, excluded)
        row_of_token = counted.nonzero(as_tuple=True)[0]
        vectors = activations[counted]
        sums = torch.zeros(len(counted), sae.d_in, device=vectors.device).index_add_(0, row_of_token, vectors.float())
        text_of_row = np.array([filled[i] for i in batch.indices])
        n_tokens[text_of_row] = counted.sum(1).cpu().numpy()
        raw_mean[text_of_row] = (sums / counted.sum(1).clamp_min(1)[:, None]).cpu().numpy()
        text_of_token = text_of_row[row_of_token.cpu().numpy()]
        rows, features, largest, total = pool_codes(sae.encode_sparse(vectors), text_of_token, sae.d_sae)
        found_rows.append(rows)
        found_features.append(features)
        found_max.append(largest)
        found_mean.append(total / np.maximum(n_tokens[rows], 1))
        on_texts(len(batch.indices))
    index = (_joined(found_rows, np.int64), _joined(found_features, np.int64))
    shape = (n, sae.d_sae)
    return Pooled(
        csr_matrix((_joined(found_max, np.float32), index), shape=shape),
        csr_matrix((_joined(found_mean, np.float32), index), shape=shape),
        raw_mean,
        n_tokens,
        np.array([len(found) > room for found in ids], dtype=np.bool_),
    )


def pool_codes(
    codes: SparseCodes, group: NDArray[np.int64], d_sae: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """(group, feature, largest activation, sum of activations) for every feature active in a group of vectors. `group`
    [n_rows] gives the group of each vector."""
    values = codes.values.cpu().numpy()
    key = group[codes.rows.cpu().numpy()] * d_sae + codes.features.cpu().numpy()
    order = np.argsort(key, kind="stable")
    key, values = key[order], values[order]
    if not key.size:
        return key, key, values, values
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    first = key[starts]
    return first // d_sae, first % d_sae, np.maximum.reduceat(values, starts), np.add.reduceat(values, starts)


def _joined(parts: Sequence[NDArray[np.generic]], dtype: type[np.generic]) -> NDArray[np.generic]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]).astype(dtype, copy=False)
