"""Robustness: does a text keep its features when it is written a little differently?

Upper case, a typo or another number of spaces change the tokens, so tokens cannot be compared one by one. Instead each
text is pooled to the largest activation of every feature. Two numbers say how similar the pooled vectors a and b are:

    jaccard       sum_i min(a_i, b_i) / sum_i max(a_i, b_i): 1 the same, 0 no feature in common
    correlation   Pearson's, over all features of the dictionary, silent ones included

Both are well above 0 for any two texts that share their common words. So each is reported beside its floor: the same
text compared with the edited version of another text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from autointerp.config import CorpusConfig
from autointerp.errors import InputError
from autointerp.evaluate.metric_rows import MetricRow, metric_row
from autointerp.evaluate.pooled import BATCH_TOKENS, Pooled, pooled
from autointerp.means import mean_interval
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel
from autointerp.progress import Adding, Counting, uncounted
from autointerp.sae.sae import Sae

FEWEST_TEXTS = 10
TYPO_SHARE = 0.2
"""Share of the words of four letters and more that get a typo; at least one word of a text that has such words."""
CHARACTERS = 200

Edit = Callable[[str, random.Random], str]


def typo(text: str, rng: random.Random) -> str:
    """`text` with two adjacent, different inner letters swapped in TYPO_SHARE of the words of four letters and more."""
    words = [m for m in re.finditer(r"[^\W\d_]{4,}", text) if _swaps(m[0])]
    if not words:
        return text
    chosen = rng.sample(words, max(1, round(TYPO_SHARE * len(words))))
    characters = list(text)
    for word in chosen:
        at = word.start() + rng.choice(_swaps(word[0]))
        characters[at], characters[at + 1] = characters[at + 1], characters[at]
    return "".join(characters)


def _swaps(word: str) -> list[int]:
    """Where two inner letters can be swapped. The first and last letter stay, since readers rely on them."""
    return [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]


EDITS: dict[str, Edit] = {
    "upper": lambda text, _: text.upper(),
    "lower": lambda text, _: text.lower(),
    "typo": typo,
    "spaces_doubled": lambda text, _: text.replace(" ", "  "),
    "spaces_stripped": lambda text, _: " ".join(text.split()),
}


def robustness(
    loaded: LoadedModel,
    sae: Sae,
    hookpoint: Hookpoint,
    texts: Sequence[str],
    *,
    corpus: CorpusConfig | None = None,
    characters: int = CHARACTERS,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    n_boot: int = 1000,
    split: str | None = None,
    counting: Counting = uncounted,
) -> list[MetricRow]:
    """Four rows per edit: robustness_<edit>_jaccard and _correlation, each also with _floor. Intervals are a bootstrap
    over texts.

    A text is cut to its first `characters` (at a space) before it is edited, so that an edit which needs more tokens
    still covers the same text. A text is left out of an edit's mean if the edit does not change it, or if it does not
    fit into `corpus.context_length` before or after the edit. With fewer than FEWEST_TEXTS left the value is None.
    Raises InputError when `texts` holds fewer than FEWEST_TEXTS.
    """
    corpus = corpus or CorpusConfig()
    short = [cut for cut in (_cut(text, characters) for text in texts) if cut.strip()]
    if len(short) < FEWEST_TEXTS:
        raise InputError(f"robustness needs at least {FEWEST_TEXTS} texts that are not empty, not {len(short)}")
    versions: dict[str, tuple[list[str], Pooled]] = {}
    with counting("reading the texts for robustness", len(short) * (1 + len(EDITS)), "texts") as update:
        adding = Adding(update)
        plain = pooled(loaded, sae, hookpoint, short, corpus, batch_tokens, adding)
        for name, edit in EDITS.items():
            rng = random.Random(f"{seed}:{name}")
            edited = [edit(text, rng) for text in short]
            versions[name] = edited, pooled(loaded, sae, hookpoint, edited, corpus, batch_tokens, adding)
    rows: list[MetricRow] = []
    for name, (edited, other) in versions.items():
        changed = np.array([a != b for a, b in zip(short, edited)])
        used = np.flatnonzero(changed & ~plain.cut & ~other.cut & (plain.n_tokens > 0) & (other.n_tokens > 0))
        note = f"{int((~changed).sum())} texts unchanged by the edit and {int((plain.cut | other.cut).sum())} too long"
        found = _rows_of(f"robustness_{name}", plain, other, used, note, seed, n_boot)
        rows += [{**row, "split": split} for row in found]
    return rows


def _rows_of(
    name: str, plain: Pooled, edited: Pooled, used: NDArray[np.int64], note: str, seed: int, n_boot: int
) -> list[MetricRow]:
    """The four rows of one edit, over the texts `used`."""
    names = (f"{name}_jaccard", f"{name}_correlation", f"{name}_jaccard_floor", f"{name}_correlation_floor")
    if len(used) < FEWEST_TEXTS:
        reason = f"only {len(used)} texts changed and fitting the context, {FEWEST_TEXTS} needed; {note}"
        return [metric_row(m, None, n=len(used), unit="texts", note=reason) for m in names]
    a, b = plain.maximum[used], edited.maximum[used]
    # One cycle through a random order, so that every text is paired with another one, never with itself.
    order = np.random.default_rng(seed).permutation(len(used))
    partner = np.empty_like(order)
    partner[order] = np.roll(order, 1)
    n_tokens = int(plain.n_tokens[used].sum() + edited.n_tokens[used].sum())
    found = (weighted_jaccard(a, b), correlations(a, b), weighted_jaccard(a, b[partner]), correlations(a, b[partner]))
    rows = []
    for metric, values in zip(names, found, strict=True):
        defined = values[~np.isnan(values)]
        estimate = mean_interval(defined, n_boot, seed)
        left_out = f"; {len(values) - len(defined)} undefined" if len(defined) < len(values) else ""
        rows.append(metric_row(metric, estimate, unit="texts", n_tokens=n_tokens, note=note + left_out))
    return rows


def weighted_jaccard(a: csr_matrix, b: csr_matrix) -> NDArray[np.float64]:
    """sum min / sum max of corresponding non-negative rows of two [n, m] matrices: [n]. NaN where both rows are
    zero."""
    total = _sums(a.minimum(b)), _sums(a.maximum(b))
    return np.divide(total[0], total[1], out=np.full(a.shape[0], np.nan), where=total[1] > 0)


def correlations(a: csr_matrix, b: csr_matrix) -> NDArray[np.float64]:
    """Pearson correlation of corresponding rows of two [n, m] matrices: [n]. NaN where one of the rows is constant."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    m = a.shape[1]
    sum_a, sum_b = _sums(a), _sums(b)
    covariance = _sums(a.multiply(b)) - sum_a * sum_b / m
    spread = (_sums(a.multiply(a)) - sum_a**2 / m) * (_sums(b.multiply(b)) - sum_b**2 / m)
    found = np.full(len(sum_a), np.nan)
    np.divide(covariance, np.sqrt(np.maximum(spread, 0)), out=found, where=spread > 1e-18)
    return found


def _sums(matrix: csr_matrix) -> NDArray[np.float64]:
    return np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()


def _cut(text: str, characters: int) -> str:
    """The first `characters` of a text, without the word that the cut would break."""
    if len(text) <= characters:
        return text
    head = text[:characters]
    whole = head if text[characters].isspace() else re.sub(r"\s\S*$", "", head)
    return whole if whole.strip() else head
