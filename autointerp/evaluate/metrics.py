"""Measures how well a dictionary reconstructs what it reads, from sums that are added up batch by batch.

Every figure is a function of sums over all tokens, never a mean of batches' figures; so a variance is taken around the
mean of all tokens. Sums are float64, of vectors shifted by the first batch's mean, so that a large constant part of the
activations costs no digits. They are kept per document, because tokens of one document are not independent: an
interval comes from resampling documents (percentile bootstrap, 95 %). Blocks that were cut from one file count as one
document. A percentile interval is too narrow on few documents, so its percentiles are moved out by as much as
Student's t exceeds the normal quantile (Hesterberg 2015, "expanded percentile"), and below FEWEST_DOCUMENTS, where that
does not suffice, there is none.

    error e = x - x_hat over the tokens that count; x is what the dictionary reconstructs (a transcoder's target)

    fvu                  sum |e|^2 / sum |x - mean x|^2; `explained_variance` is 1 - fvu
    mse                  mean of |e|^2, summed over the dimensions
    cosine, l2_ratio     mean over tokens of cos(x, x_hat) and |x_hat| / |x|
    relative_bias        sum |x_hat|^2 / sum <x, x_hat>: 1 where nothing is shrunk (Rajamanoharan et al. 2024)
    error_norm_share     mean over tokens of |e| / |x|
    l0, l1               mean number of active features, mean sum of their activations
    input_gamma          |mean| / |standard deviation| of the vectors read (arXiv 2605.31518: where it is large,
                         features are dead from the start unless the mean is subtracted)

Tokens with x = 0 are left out of the three means that divide by |x|. A reconstruction of 0 has cosine 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autointerp import stats
from autointerp.means import mean_interval
from autointerp.records import source_of
from autointerp.sae import codes
from autointerp.sae.codes import SparseCodes

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Mapping[str, Floats]]

MOST_GROUPS = 512
"""How many documents have their own sums. More documents share this many rows, by the hash of their names."""
N_BOOT = 1000
FEWEST_DOCUMENTS = 15
"""Fewest documents with which an interval is given. With fewer, 95 % intervals hold the truth too rarely."""
DENSE_ABOVE = 0.1
"""A feature that is active on a larger share of the tokens is dense."""
REDUNDANT_ABOVE = 0.9
"""A feature is redundant when its decoder row has a larger cosine than this with another one's."""
MOST_QUERY_ROWS = 4096
"""Number of decoder rows whose nearest row is searched; of larger dictionaries a sample."""
DENSITY_EDGES = tuple(-7.0 + 0.5 * i for i in range(14))
"""log10 of the lower edges of the density histogram's bins. The first bin also takes all densities below its edge."""

_BLOCK_ELEMENTS = 1 << 22
"""float64 elements of one block of tokens (32 MB), of one block of resamples, and of one block of cosines."""
_TERMS = (
    "n",
    "error",
    "shifted",
    "square",
    "square_hat",
    "product",
    "n_nonzero",
    "cosine",
    "l2_ratio",
    "error_share",
    "l0",
    "l1",
)
_AT = {name: i for i, name in enumerate(_TERMS)}


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure with its 95 % interval. `value` is None where the data do not define it. The ends are None where there
    is no interval: for fewer than FEWEST_DOCUMENTS, and for figures that resampling documents would bias."""

    metric: str
    value: float | None
    split: str | None
    """The split; None for all splits together."""
    ci_low: float | None
    ci_high: float | None
    n_tokens: int
    n_documents: int
    """Documents that the tokens come from; the blocks of one file count once."""


class DocumentSums:
    """Rows of float64 sums [width]: one per document, or for more than MOST_GROUPS documents one per hash of the name.
    The blocks of one file are one document.

    Which documents share a row depends only on their names, so the order and size of batches do not matter.
    """

    def __init__(self, width: int) -> None:
        self._names: dict[str, int] | None = {}
        self._sums = np.zeros((8, width))
        self._seen: set[int] = set()
        """A hash of every document's name."""

    @property
    def n_documents(self) -> int:
        return len(self._seen)

    def add(self, documents: Sequence[str], sums: Floats) -> None:
        """Add `sums` [B, width], taken over stretches of the `documents` [B]. A document may occur more than once."""
        self._add([source_of(name) for name in documents], sums)

    def add_all(self, other: DocumentSums) -> None:
        """Add all that `other`, of the same width, holds."""
        if other._names is not None:
            self._add(list(other._names), other.rows())
            return
        if self._names is not None:
            self._fold()
        self._sums += other._sums
        self._seen |= other._seen

    def _add(self, documents: Sequence[str], sums: Floats) -> None:
        self._seen.update(map(_name_hash, documents))
        rows = np.array([self._row(name) for name in documents], dtype=np.int64)
        if self._names is None:  # the table was folded meanwhile, so all rows are hashes now
            rows = np.array([_bucket(name) for name in documents], dtype=np.int64)
        np.add.at(self._sums, rows, sums)

    def _row(self, name: str) -> int:
        if self._names is None:
            return _bucket(name)
        row = self._names.setdefault(name, len(self._names))
        if row == MOST_GROUPS:
            self._fold()
        elif row == len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        return row

    def _fold(self) -> None:
        assert self._names is not None
        folded = np.zeros((MOST_GROUPS, self._sums.shape[1]))
        held = list(self._names)[: len(self._sums)]
        np.add.at(folded, np.array([_bucket(name) for name in held], dtype=np.int64), self._sums[: len(held)])
        self._sums, self._names = folded, None

    def rows(self) -> Floats:
        """The rows in use, [G, width]."""
        return self._sums if self._names is None else self._sums[: len(self._names)]


def _name_hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _bucket(name: str) -> int:
    return _name_hash(name) % MOST_GROUPS


def bootstrapped(rows: Floats, statistic: Statistic, seed: int, n_boot: int = N_BOOT) -> dict[str, stats.Estimate]:
    """Each figure of `statistic` with its interval, from resampling the rows [G, width] (sums of documents).

    `statistic` maps totals [B, width] to figures [B], with NaN where undefined. An estimate's `n` is the number of
    rows. The interval is None with fewer than FEWEST_DOCUMENTS rows, or when fewer than half of the resamples define
    the figure.
    """
    found = statistic(rows.sum(axis=0, keepdims=True))
    drawn: dict[str, list[Floats]] = {name: [] for name in found}
    n_rows, width = rows.shape
    rng = np.random.default_rng(seed)
    left = n_boot if n_rows >= FEWEST_DOCUMENTS else 0
    while left > 0:
        size = min(left, max(1, _BLOCK_ELEMENTS // max(width, n_rows)))
        times = rng.multinomial(n_rows, np.full(n_rows, 1.0 / n_rows), size=size).astype(np.float64)
        for name, values in statistic(times @ rows).items():
            drawn[name].append(values)
        left -= size
    return {
        name: _estimate(value, np.concatenate([*drawn[name], np.zeros(0)]), n_rows) for name, value in found.items()
    }


def _estimate(value: Floats, drawn: Floats, n: int) -> stats.Estimate:
    defined = drawn[np.isfinite(drawn)]
    if not np.isfinite(value[0]):
        return stats.Estimate(None, None, None, n)
    if not len(defined) or 2 * len(defined) < len(drawn):
        return stats.Estimate(float(value[0]), None, None, n)
    outside = 100 * expanded_tail(n)
    low, high = np.percentile(defined, [outside, 100 - outside])
    return stats.Estimate(float(value[0]), float(low), float(high), n)


def expanded_tail(n: int) -> float:
    """The share of resamples to leave out on either side for a 95 % interval from `n` documents: below .025."""
    z, freedom = stats.Z95, n - 1
    # Student's quantile by its expansion in 1 / freedom, good to three decimals from FEWEST_DOCUMENTS on
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return 0.5 * math.erfc(t * math.sqrt(n / freedom) / math.sqrt(2))


def ratio(top: Floats, bottom: Floats, defined: NDArray[np.bool_] | None = None) -> Floats:
    """top / bottom, with NaN where it is not `defined`; by default it is defined where bottom is above 0."""
    good = bottom > 0 if defined is None else defined
    return np.where(good, top / np.where(good, bottom, 1.0), np.nan)


def as_metrics(
    estimates: Mapping[str, stats.Estimate], split: str | None, n_tokens: int, n_documents: int
) -> list[Metric]:
    return [Metric(name, e.value, split, e.low, e.high, n_tokens, n_documents) for name, e in estimates.items()]


def together(tables: Sequence[DocumentSums]) -> DocumentSums | None:
    """The sums of several tables; a document that stands in more than one has one row. None without tables."""
    if len(tables) < 2:
        return tables[0] if tables else None
    whole = DocumentSums(tables[0].rows().shape[1])
    for table in tables:
        whole.add_all(table)
    return whole


class Reconstruction:
    """Sums over the tokens of each split, from which the figures above come, and how often each feature was active.

    Memory per split, for any corpus: 512 rows of d_out float64 (and d_in for a transcoder), and d_sae int64.
    """

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self._shift: Tensor | None = None
        self._shift_in: Tensor | None = None
        self._tables: dict[str, DocumentSums] = {}
        self._others: dict[str, Floats] = {}
        self._counts: dict[str, Tensor] = {}

    @property
    def splits(self) -> list[str]:
        """The splits with a token that counts, in the order in which they came."""
        return list(self._tables)

    def add(
        self,
        split: str,
        documents: Sequence[str],
        window: Tensor,
        y: Tensor,
        y_hat: Tensor,
        active: SparseCodes,
        x: Tensor | None = None,
    ) -> None:
        """Add the tokens of one batch that count: y [n, d_out] and its reconstruction, in any float dtype.

        `window` [n] int64, ascending: the index in `documents` [B] of each token's document. `active`: the codes from
        which y_hat was made. Pass `x` [n, d_in] if the dictionary reads something other than y.
        """
        if len(y) == 0:
            return
        self._set_shifts(y, x)
        sums = self._sums(len(documents), window, y, y_hat, active, x)
        if split not in self._tables:
            self._tables[split] = DocumentSums(sums.shape[1])
            self._counts[split] = torch.zeros(self.d_sae, dtype=torch.int64, device=active.features.device)
        present = sums[:, _AT["n"]] > 0
        self._tables[split].add([name for name, kept in zip(documents, present) if kept], sums[present])
        self._counts[split] += torch.bincount(active.features, minlength=self.d_sae)

    def add_excluded(self, split: str, y: Tensor, y_hat: Tensor, active: SparseCodes, x: Tensor | None = None) -> None:
        """Add tokens that do not count (a BOS, an excluded token). Only `fvu_all_tokens` uses them."""
        if len(y):
            self._set_shifts(y, x)
            window = torch.zeros(len(y), dtype=torch.int64, device=y.device)
            sums = self._sums(1, window, y, y_hat, active, x)[0]
            self._others[split] = self._others.get(split, 0.0) + sums

    def _set_shifts(self, y: Tensor, x: Tensor | None) -> None:
        if self._shift is None:
            self._shift = _wide(y).mean(0)
            self._shift_in = None if x is None else _wide(x).mean(0)

    def _sums(
        self, n_windows: int, window: Tensor, y: Tensor, y_hat: Tensor, active: SparseCodes, x: Tensor | None
    ) -> Floats:
        """The sums of each window, [n_windows, terms + d_out (+ 1 + d_in)]: those of `_TERMS`, then of y - shift, and
        for a transcoder of |x - shift|^2 and x - shift."""
        assert self._shift is not None
        d_out, d_in = y.shape[1], 0 if x is None else x.shape[1]
        size = max(1, _BLOCK_ELEMENTS // max(d_out, d_in))
        total: Tensor | None = None
        for start in range(0, len(y), size):
            part = slice(start, start + size)
            columns = self._columns(y[part], y_hat[part], None if x is None else x[part])
            summed = _by_group(columns, window[part].to(columns.device), n_windows)
            total = summed if total is None else total + summed
        assert total is not None
        window = window.to(active.rows.device)
        entry_window = window[active.rows]
        values = _wide(active.values[:, None])
        total[:, _AT["l0"]] = torch.bincount(entry_window, minlength=n_windows).to(total)
        total[:, _AT["l1"]] = _by_group(values, entry_window.to(values.device), n_windows)[:, 0].to(total)
        result: Floats = total.cpu().numpy()
        return result

    def _columns(self, y: Tensor, y_hat: Tensor, x: Tensor | None) -> Tensor:
        """The terms of every token, [n, width] float64."""
        assert self._shift is not None
        y, y_hat = _wide(y), _wide(y_hat)
        centred = y - self._shift
        error = ((y - y_hat) ** 2).sum(-1)
        square, square_hat, product = (y * y).sum(-1), (y_hat * y_hat).sum(-1), (y * y_hat).sum(-1)
        nonzero = square > 0
        safe = torch.where(nonzero, square, 1.0)
        norms = torch.where(square_hat > 0, square_hat, 1.0).sqrt() * safe.sqrt()
        terms = torch.zeros(len(y), len(_TERMS), dtype=y.dtype, device=y.device)
        for name, column in (
            ("n", torch.ones_like(square)),
            ("error", error),
            ("shifted", (centred * centred).sum(-1)),
            ("square", square),
            ("square_hat", square_hat),
            ("product", product),
            ("n_nonzero", nonzero.to(y.dtype)),
            ("cosine", product / norms),
            ("l2_ratio", torch.where(nonzero, (square_hat / safe).sqrt(), 0.0)),
            ("error_share", torch.where(nonzero, (error / safe).sqrt(), 0.0)),
        ):
            terms[:, _AT[name]] = column
        parts = [terms, centred]
        if x is not None:
            assert self._shift_in is not None
            centred_in = _wide(x) - self._shift_in
            parts += [(centred_in * centred_in).sum(-1, keepdim=True), centred_in]
        return torch.cat(parts, dim=1)

    # --- results ---

    def _rows(self, split: str | None) -> Floats:
        table = self._table(split)
        rows = np.zeros((0, len(_TERMS))) if table is None else table.rows()
        return rows[rows[:, _AT["n"]] > 0]

    def _table(self, split: str | None) -> DocumentSums | None:
        """The sums of one split or, for None, of all; None where there are none."""
        return together([table for name, table in self._tables.items() if split in (None, name)])

    def n_documents(self, split: str | None = None) -> int:
        table = self._table(split)
        return 0 if table is None else table.n_documents

    def n_tokens(self, split: str | None = None) -> int:
        return round(float(self._rows(split)[:, _AT["n"]].sum()))

    def counts(self, split: str | None = None) -> NDArray[np.int64]:
        """The number of tokens on which each feature was active, [d_sae]."""
        found = np.zeros(self.d_sae, dtype=np.int64)
        for name, counts in self._counts.items():
            if split in (None, name):
                found += counts.cpu().numpy()
        return found

    def mean(self) -> Tensor:
        """The mean of y over all tokens that count, [d_out] float64. Raises ValueError when there are none."""
        rows = self._rows(None)
        if not len(rows) or self._shift is None:
            raise ValueError("no token counts, so there is no mean activation")
        totals, at = rows.sum(axis=0), len(_TERMS)
        mean: Tensor = self._shift.cpu() + torch.from_numpy(totals[at : at + len(self._shift)] / totals[_AT["n"]])
        return mean

    def fvu(self, split: str | None = None) -> float | None:
        """Only the fraction of variance unexplained, without an interval; None where the variance is zero."""
        rows = self._rows(split)
        value = self._figures(rows.sum(axis=0, keepdims=True))["fvu"][0] if len(rows) else np.nan
        return float(value) if np.isfinite(value) else None

    def metrics(self, split: str | None, seed: int, n_boot: int = N_BOOT) -> list[Metric]:
        """The figures of reconstruction and sparsity over a split (None: all together). Empty without tokens."""
        rows = self._rows(split)
        if not len(rows):
            return []
        n_tokens = self.n_tokens(split)
        n_documents = self.n_documents(split)
        found = as_metrics(bootstrapped(rows, self._figures, seed, n_boot), split, n_tokens, n_documents)
        others = [sums for name, sums in self._others.items() if split in (None, name)]
        together = np.stack([*others, rows.sum(axis=0)]).sum(axis=0, keepdims=True)
        fvu = float(self._figures(together)["fvu"][0])
        n_all = round(float(together[0, _AT["n"]]))
        # Excluded tokens are not kept per document, so there is nothing to resample.
        found.append(Metric("fvu_all_tokens", fvu if np.isfinite(fvu) else None, split, None, None, n_all, n_documents))
        return found

    def _figures(self, totals: Floats) -> dict[str, Floats]:
        assert self._shift is not None
        n, error, shifted, square, square_hat, product, n_nonzero, cosine, l2_ratio, share, l0, l1 = totals[
            :, : len(_TERMS)
        ].T
        at, d_out = len(_TERMS), len(self._shift)
        summed = totals[:, at : at + d_out]
        variance = _variance(n, shifted, summed, square)
        fvu = ratio(error, variance)
        if self._shift_in is None:
            gamma = _gamma(n, summed, variance, self._shift)
        else:
            shifted_in, summed_in = totals[:, at + d_out], totals[:, at + d_out + 1 :]
            shift = self._shift_in.cpu().numpy()
            mean = summed_in / np.maximum(n, 1.0)[:, None] + shift
            spread = shifted_in - (summed_in**2).sum(1) / np.maximum(n, 1.0)
            whole = np.maximum(spread, 0.0) + n * (mean**2).sum(1)
            gamma = _gamma(n, summed_in, _variance(n, shifted_in, summed_in, whole), self._shift_in)
        return {
            "fvu": fvu,
            "explained_variance": 1.0 - fvu,
            "mse": ratio(error, n),
            "cosine": ratio(cosine, n_nonzero),
            "l2_ratio": ratio(l2_ratio, n_nonzero),
            "relative_bias": ratio(square_hat, product, np.abs(product) > 1e-12 * np.sqrt(square * square_hat)),
            "error_norm_share": ratio(share, n_nonzero),
            "l0": ratio(l0, n),
            "l1": ratio(l1, n),
            "input_gamma": gamma,
        }


def _variance(n: Floats, shifted: Floats, summed: Floats, square: Floats) -> Floats:
    """sum |x - mean|^2 [B], from `summed` [B, d] = sum (x - shift), `shifted` = sum |x - shift|^2 and `square` = sum
    |x|^2. It is 0 where it is no more than the rounding error of a constant."""
    variance = shifted - (summed**2).sum(1) / np.maximum(n, 1.0)
    return np.where((variance > 1e-12 * shifted) & (variance > 1e-20 * square), variance, 0.0)


def _gamma(n: Floats, summed: Floats, variance: Floats, shift: Tensor) -> Floats:
    mean = summed / np.maximum(n, 1.0)[:, None] + shift.cpu().numpy()
    return np.sqrt(ratio(n * (mean**2).sum(1), variance))


def _wide(x: Tensor) -> Tensor:
    """`x` as float64, moved to the CPU if its device has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _by_group(columns: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Sums [n_groups, w] of the rows of `columns` [n, w] by `group` [n] (ascending), the same on every run."""
    index = torch.arange(len(columns), device=columns.device)
    if not len(index):
        return columns.new_zeros(n_groups, columns.shape[1])
    return F.embedding_bag(index, columns, codes.starts(group, n_groups), mode="sum")


# --- features --------------------------------------------------------------------------------------------------------


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
