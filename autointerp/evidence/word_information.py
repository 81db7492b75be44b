"""Which words of a fixed vocabulary a feature's direction shares most information with (Wu et al. 2025, 2502.15576).

The logit lens ranks words by their logit alone, and so lists the same frequent words for many features. Here a word
must also single out the feature among all features. With e_w the mean of the output embedding's rows of the tokens of
" w", n_c the final norm of the encoder's column of feature c (what the paper reads), and L = n E^T,

    p(w|c) = softmax of L over words          p(c|w) = softmax of L over the alive features

    mode paper    p(w|c) log p(c|w)                     as published, on L as it is (temperatures of 1), highest first
    mode pmi      p(w|c) (log p(c|w) - log p(c))        with p(c) = 1 / number of features

No published score is above 0, so words with p(w|c) near 0 lead the paper's order as well as words with p(c|w) near 1.
The paper selects words by a sum from which it dropped the entropy of the features as constant, and for a selection it
is not constant. Pointwise mutual information puts it back. Its p(c) is uniform because p(c|w) is a softmax over
weights, in which a feature that fires often weighs no more than another one; a prior from densities would only rank by
rarity.

Dot products have the scale of the weights, and at that scale a softmax may give all to one word or the same to each.
In mode pmi each feature's logits are therefore centred and divided by their deviation over the vocabulary, which gives
each feature a temperature of its own.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autointerp.config import EvidenceConfig
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import token_ids
from autointerp.errors import NoProjection
from autointerp.model.load import LoadedModel
from autointerp.model.logit_path import LogitPath
from autointerp.progress import Adding, Counting, uncounted
from autointerp.records import Window
from autointerp.sae.sae import Sae

BLOCK_ELEMENTS = 1 << 24
"""Logits of features times words held at once."""
VOCABULARY_TOKENS = 2_000_000
"""Tokens of the explain split that are enough to know its commonest words."""
_WORD = re.compile(r"[^\W\d_]{2,}")


def vocabulary(
    windows: Iterable[Sequence[Window]], text: TokenText, n_words: int, max_tokens: int = VOCABULARY_TOKENS
) -> list[str]:
    """The commonest `n_words` words (runs of two letters or more) of the explain split, commonest first, each in its
    commonest spelling of upper and lower case.

    `windows`: those of each work unit in turn; no unit is asked for once `max_tokens` tokens were read.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    left = max_tokens
    for unit in windows:
        for window in unit:
            if window.split != "explain":
                continue
            for word in _words(window, text):
                counts[word.lower()][word] += 1
            left -= len(window.token_ids) - window.n_prefix
            if left <= 0:
                break
        if left <= 0:
            break
    order = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    return [min(spellings.items(), key=lambda item: (-item[1], item[0]))[0] for _, spellings in order[:n_words]]


def _words(window: Window, text: TokenText) -> Iterator[str]:
    """The whole words of a window: those at its edges may go on outside of it."""
    string = "".join(text.tokens(window.token_ids[window.n_prefix :]))
    for match in _WORD.finditer(string):
        if (match.start() > 0 or window.start == 0) and match.end() < len(string):
            yield match.group()


@torch.no_grad()
def mutual_information(
    loaded: LoadedModel, path: LogitPath, sae: Sae, text: TokenText, words: Sequence[str], config: EvidenceConfig,
    alive: np.ndarray, counting: Counting = uncounted,
) -> dict[str, list[Any]]:  # fmt: skip
    """Columns feature, mode, rank, word, score of the table `mutual_information`: the best `config.words` of `words`
    by `config.mi_mode`, for the `alive` features (bool [d_sae]).

    `path` begins where the SAE reads. Features are worked on in blocks, so the table of features times words is never
    there as a whole. Raises NoProjection where what the SAE reads is not in the residual stream: the encoder then
    weighs what goes in, and says nothing of what comes out.
    """
    if path.carry:
        raise NoProjection(
            f"what the SAE reads enters the residual stream through {path.names[0]}, so its encoder is not part of it"
        )
    features = np.flatnonzero(alive)
    kept, E = word_embeddings(loaded, text, words)
    if len(features) == 0 or len(kept) == 0:
        return {"feature": [], "mode": [], "rank": [], "word": [], "score": []}
    index = torch.from_numpy(features).to(sae.W_enc.device)
    size = max(1, BLOCK_ELEMENTS // len(kept))

    def blocks() -> Iterator[Tensor]:
        """L, a block of features at a time: float32 [at most size, words]."""
        for part in index.split(size):
            directions = sae.W_enc[:, part].T
            if config.mi_mode == "paper":
                yield path.hidden(directions, keep_bias=True) @ E.T
            else:
                yield _standardised(path.hidden(directions) @ E.T)

    over_features = torch.full((len(kept),), -torch.inf, device=E.device)
    with counting("mutual information, words", len(features), "features") as update:
        adding = Adding(update)
        for L in blocks():
            over_features = torch.logaddexp(over_features, L.logsumexp(0))
            adding(len(L))
    n = min(config.words, len(kept))
    scores, ranked = [], []
    with counting("mutual information", len(features), "features") as update:
        adding = Adding(update)
        for L in blocks():
            information = L - over_features  # log p(c|w)
            if config.mi_mode == "pmi":
                information += float(np.log(len(features)))
            best = (L.softmax(1) * information).topk(n, dim=1)
            scores.append(best.values.cpu())
            ranked.append(best.indices.cpu())
            adding(len(L))
    return {
        "feature": np.repeat(features, n).tolist(),
        "mode": [config.mi_mode] * (n * len(features)),
        "rank": list(range(n)) * len(features),
        "word": [kept[i] for i in torch.cat(ranked).ravel().tolist()],
        "score": torch.cat(scores).ravel().tolist(),
    }


def _standardised(L: Tensor) -> Tensor:
    """Rows with mean 0 and deviation 1; a row without any deviation is all 0."""
    L = L - L.mean(1, keepdim=True)
    return L / L.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)


def word_embeddings(loaded: LoadedModel, text: TokenText, words: Sequence[str]) -> tuple[list[str], Tensor]:
    """(words, float32 [words, width]): the mean of the output embedding's rows of the tokens of a space and the word.
    Words that the tokenizer cannot write are left out."""
    weight = loaded.model.get_output_embeddings().weight.detach()
    # Some tokenizers put the space before a text themselves.
    spaced, bare = (token_ids([lead + word for word in words], loaded.tokenizer) for lead in (" ", ""))
    kept: list[str] = []
    ids: list[list[int]] = []
    for word, first, second in zip(words, spaced, bare, strict=True):
        for tokens in (first, second):
            # A `</w>` tokenizer writes the space behind the word.
            if tokens and max(tokens) < len(weight) and "".join(text.tokens(tokens)) in (f" {word}", f"{word} "):
                kept.append(word)
                ids.append(tokens)
                break
    if not kept:
        return [], weight.new_zeros(0, weight.shape[1]).float()
    lengths = torch.tensor([len(tokens) for tokens in ids])
    flat = torch.tensor([i for tokens in ids for i in tokens], device=weight.device)
    rows = weight[flat].float()
    owner = torch.repeat_interleave(torch.arange(len(ids)), lengths).to(weight.device)
    sums = rows.new_zeros(len(ids), rows.shape[1]).index_add_(0, owner, rows)
    return kept, sums / lengths.to(weight.device)[:, None]
