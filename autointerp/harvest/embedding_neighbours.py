"""Which words of the vocabulary are nearest to one another in the model's input embedding.

A word is what a token is without the spaces around it and without case; its vector is the mean of its tokens' rows,
each of length one. Tokens that begin a word count before those within words: ` us` is a word and `us` often a part of
one. The embedding's mean and its LEADING largest directions are taken out, since they say how common a word is (Mu and
Viswanath 2018). Only the first MOST_WORDS words, by token id, take part: tokenizers number common tokens first, and the
time goes with the square of the number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autointerp.corpus.token_text import TokenText

MOST_WORDS = 32_768
NEIGHBOURS = 16
LEAST_COSINE = 0.2
LEADING = 3
_BLOCK = 2048
_ROUNDS = 20

NearWords = dict[str, list[tuple[str, float]]]


@torch.no_grad()
def embedding_neighbours(embedding: Tensor, text: TokenText) -> NearWords:
    """(neighbour, cosine) by word, nearest first; words without any neighbour as near as LEAST_COSINE have an empty
    list. `embedding`: [tokens, width], the rows by token id."""
    words = list(_token_ids(text, len(embedding)).items())[:MOST_WORDS]
    if len(words) <= LEADING:
        return {word: [] for word, _ in words}
    rows = torch.nan_to_num(torch.nn.functional.normalize(embedding.detach().float(), dim=1))
    vectors = torch.stack([rows[torch.tensor(ids, device=rows.device)].mean(0) for _, ids in words])
    vectors = torch.nn.functional.normalize(_without_leading(vectors - vectors.mean(0)), dim=1)
    names = [word for word, _ in words]
    found: NearWords = {}
    n = min(NEIGHBOURS, len(names) - 1)
    for low in range(0, len(names), _BLOCK):
        cosines = vectors[low : low + _BLOCK] @ vectors.T
        own = torch.arange(len(cosines), device=cosines.device)
        cosines[own, own + low] = -2.0
        nearest = cosines.topk(n, dim=1)
        pairs = zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True)
        for name, (values, ids) in zip(names[low : low + _BLOCK], pairs, strict=True):
            near = zip(ids, values, strict=True)
            found[name] = [(names[i], min(cosine, 1.0)) for i, cosine in near if cosine >= LEAST_COSINE]
    return found


def _token_ids(text: TokenText, n_rows: int) -> dict[str, list[int]]:
    """The ids of each word's tokens, by the first of them."""
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for i in range(min(n_rows, len(text.token_bytes))):
        if not text.token_bytes[i] or i in text.special_ids:
            continue
        token = text.tokens([i])[0]
        word = token.strip().lower()
        if any(c.isalnum() for c in word):
            (whole if token[:1].isspace() or token[-1:].isspace() else parts).setdefault(word, []).append(i)
    ids = {word: whole.get(word, part) for word, part in {**parts, **whole}.items()}
    return dict(sorted(ids.items(), key=lambda item: item[1][0]))


def _without_leading(vectors: Tensor) -> Tensor:
    """The vectors without their LEADING directions of largest variance, found by orthogonal iteration."""
    leading = vectors[:LEADING].T
    for _ in range(_ROUNDS):
        leading, _ = torch.linalg.qr(vectors.T @ (vectors @ leading))
    return vectors - (vectors @ leading) @ leading.T
