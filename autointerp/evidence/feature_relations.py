"""How features relate to each other: alike in what they write, and in where they fire.

    decoder          cosine of the decoder rows
    coactive         Jaccard index of the tokens on which they fire: n_ij / (n_i + n_j - n_ij)
    correlated       Pearson correlation of their activations over tokens; the largest above 0
    anticorrelated   Pearson correlation of their activations over tokens; the most negative

The last three are taken over a stretch of the explain split. Only the sparse codes of its tokens are kept, and their
products are formed for a block of features at a time. Activations are not negative, so two features that never fire
together have r_ij = -(mean_i mean_j) / (sd_i sd_j): for such pairs the order of the mean_j / sd_j is the order of the
correlations, and no dense row is ever needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from autointerp.config import EvidenceConfig
from autointerp.harvest.decoder_neighbours import decoder_cosines
from autointerp.harvest.unit import encoded
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import activation_batches, eligible
from autointerp.records import Window
from autointerp.sae.sae import Sae

BLOCK_ELEMENTS = 1 << 22
"""Entries of one block of products, at most."""
FEWEST_TOKENS = 5
"""A feature that fires on fewer tokens neither has nor is a neighbour by where it fires. The Jaccard index of two
features that fired once, on the same token, is 1 and says nothing."""
RELATIONS = ("decoder", "coactive", "correlated", "anticorrelated")


@dataclass(frozen=True, slots=True)
class TokenCodes:
    """The active features of a stretch of text, as sparse triples."""

    token: np.ndarray
    """int64 [n]: which token; numbers are unique, not consecutive, and below `size`."""
    feature: np.ndarray
    """int64 [n]."""
    value: np.ndarray
    """float32 [n], above 0."""
    size: int
    n_tokens: int
    """Tokens that were encoded, those without any active feature included."""
    n_windows: int


@dataclass(frozen=True, slots=True)
class Relations:
    """Rows for the table `neighbours`, and how much text they are from."""

    columns: dict[str, list[Any]]
    n_windows: int
    n_tokens: int


def relations(
    loaded: LoadedModel, sae: Sae, point: Hookpoint, windows: Iterable[Sequence[Window]], config: EvidenceConfig,
    excluded_ids: Tensor, batch_tokens: int, alive: np.ndarray, *, on_tokens: Callable[[int], None] = lambda n: None,
) -> Relations:  # fmt: skip
    """The columns feature, relation, rank, neighbour and value of the table `neighbours`, for the `alive` features
    (bool [d_sae]). A dead feature neither has nor is a neighbour.

    `windows` yields the windows of one work unit after the other. Those of the explain split are used, until there are
    `config.relation_tokens` tokens. `excluded_ids` (int64 on the model's device) are ids that never count. `on_tokens`
    is called after every batch with the number of tokens encoded.
    """
    codes = token_codes(
        loaded, sae, point, windows, config.relation_tokens, excluded_ids, batch_tokens, on_tokens=on_tokens
    )
    rows = [
        *_decoder_rows(sae.W_dec, config.related, alive),
        *firing_relations(codes, config.related, alive),
    ]
    order = {name: number for number, name in enumerate(RELATIONS)}
    rows.sort(key=lambda part: (part[0], order[part[1]]))
    columns: dict[str, list[Any]] = {name: [] for name in ("feature", "relation", "rank", "neighbour", "value")}
    for feature, relation, neighbours, values in rows:
        n = len(neighbours)
        columns["feature"] += [feature] * n
        columns["relation"] += [relation] * n
        columns["rank"] += range(n)
        columns["neighbour"] += neighbours.tolist()
        columns["value"] += values.tolist()
    return Relations(columns, codes.n_windows, codes.n_tokens)


Related = tuple[int, str, np.ndarray, np.ndarray]
"""(feature, relation, its neighbours from the nearest on, their values)."""


def token_codes(
    loaded: LoadedModel, sae: Sae, point: Hookpoint, windows: Iterable[Sequence[Window]], n_tokens: int,
    excluded_ids: Tensor, batch_tokens: int, *, on_tokens: Callable[[int], None] = lambda n: None,
) -> TokenCodes:  # fmt: skip
    """The codes of at most `n_tokens` tokens (but at least one window) of the explain split.

    A unit that holds more than is wanted gives windows spread evenly over it, so that a few long documents at its
    beginning do not stand for the corpus. `on_tokens` hears after every batch how many tokens are encoded. Raises
    errors.OutOfMemoryError where halving the batches no longer helps.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [
        (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    ]
    size, n_encoded, n_windows, halvings = 0, 0, 0, 0
    for chosen in explain_windows(windows, n_tokens):
        batches = activation_batches(loaded, point, chosen, batch_tokens, halvings=halvings)
        for batch, x in batches:
            counted = eligible(batch, excluded_ids)
            row, position, feature, value, n_good, _ = encoded(sae, counted, x)
            token = size + row * counted.shape[1] + position
            parts.append((token.cpu().numpy(), feature.cpu().numpy(), value.float().cpu().numpy()))
            size += counted.numel()
            n_encoded += n_good
            on_tokens(n_encoded)
        halvings = batches.halvings
        n_windows += len(chosen)
    tokens, features, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return TokenCodes(tokens, features, values, size, n_encoded, n_windows)


def explain_windows(windows: Iterable[Sequence[Window]], n_tokens: int) -> Iterator[list[Window]]:
    """Explain-split windows of about `n_tokens` tokens, from as few units as hold them: never more, except that the
    first window is always given. Units are asked for one at a time."""
    left, is_first = n_tokens, True
    for unit in windows:
        own = [w for w in unit if w.split == "explain"]
        lengths = np.array([len(w.token_ids) - w.n_prefix for w in own], dtype=np.int64)
        total = int(lengths.sum())
        if total > left:
            n_chosen = max(1, int(len(own) * left / total))
            spread = np.linspace(0, len(own) - 1, n_chosen).round().astype(np.int64)
            fits = np.cumsum(lengths[spread]) <= left
            fits[0] |= is_first
            own = [own[i] for i in spread[fits]]
        if own:
            is_first = False
            yield own
        left -= total
        if left <= 0:
            return


def _decoder_rows(W_dec: Tensor, n: int, alive: np.ndarray) -> Iterator[Related]:
    ids = np.flatnonzero(alive)
    cosines, nearest = decoder_cosines(W_dec[torch.from_numpy(ids).to(W_dec.device)], n)
    for feature, value, index in zip(ids.tolist(), cosines.numpy(), nearest.numpy(), strict=True):
        yield feature, "decoder", ids[index], value


def firing_relations(codes: TokenCodes, n: int, alive: np.ndarray) -> Iterator[Related]:
    """coactive, correlated and anticorrelated of every `alive` feature (bool [d_sae]) that fires on FEWEST_TOKENS of
    the tokens, at most `n` neighbours each; equal values in the order of features."""
    fired = np.bincount(codes.feature, minlength=len(alive))
    ids = np.flatnonzero(alive & (fired >= FEWEST_TOKENS))
    if len(ids) < 2:
        return
    column = np.full(len(alive), -1)
    column[ids] = np.arange(len(ids))
    kept = column[codes.feature] >= 0
    where = codes.token[kept], column[codes.feature[kept]]
    shape = (codes.size, len(ids))
    values = csr_matrix((codes.value[kept].astype(np.float64), where), shape)
    active = csr_matrix((np.ones(int(kept.sum())), where), shape)
    counts = fired[ids].astype(np.float64)
    mean = values.sum(0).A1 / codes.n_tokens
    square = values.multiply(values).sum(0).A1 / codes.n_tokens
    variance = square - mean**2
    # A feature that always fires with one strength correlates with nothing.
    varies = variance > 1e-12 * square
    deviation = np.sqrt(np.where(varies, variance, 1.0))
    lean = np.where(varies, mean / deviation, 0.0)
    by_lean = np.argsort(-lean, kind="stable")[: int(varies.sum())]
    values_by_feature, active_by_feature = values.T.tocsr(), active.T.tocsr()
    size = max(1, BLOCK_ELEMENTS // len(ids))
    for low in range(0, len(ids), size):
        together = (active_by_feature[low : low + size] @ active).sorted_indices()
        products = (values_by_feature[low : low + size] @ values).sorted_indices()
        for offset in range(together.shape[0]):
            i = low + offset
            begin, end = together.indptr[offset : offset + 2]
            others = together.indices[begin:end]
            both, product = together.data[begin:end], products.data[begin:end]
            own = others == i
            jaccard = np.where(own, 0.0, both / (counts[i] + counts[others] - both))
            yield _related(int(ids[i]), "coactive", ids[others], jaccard, n)
            if not varies[i]:
                continue
            pearson = (product / codes.n_tokens - mean[i] * mean[others]) / (deviation[i] * deviation[others])
            pearson = np.clip(np.where(own | ~varies[others], 0.0, pearson), -1.0, 1.0)
            yield _related(int(ids[i]), "correlated", ids[others], pearson, n)
            apart = _first_outside(by_lean, others, n)
            candidates, r = np.concatenate([others, apart]), np.concatenate([pearson, -lean[i] * lean[apart]])
            feature, _, nearest, strength = _related(int(ids[i]), "anticorrelated", ids[candidates], -r, n)
            yield feature, "anticorrelated", nearest, -strength


def _related(feature: int, relation: str, neighbours: np.ndarray, values: np.ndarray, n: int) -> Related:
    """The `n` largest values above 0."""
    positive = values > 0
    neighbours, values = neighbours[positive], values[positive]
    order = np.lexsort((neighbours, -values))[:n]
    return feature, relation, neighbours[order], values[order]


def _first_outside(order: np.ndarray, excluded: np.ndarray, n: int) -> np.ndarray:
    """The first n entries of `order` that are not `excluded`, which holds len(excluded) of them at most."""
    found = order[: n + len(excluded)]
    return found[~np.isin(found, excluded)][:n]
