"""Measures how well a dictionary reconstructs what it reads, from sums that are added up batch by batch.

Every figure is a function of sums over all tokens, never a mean of batches' figures; so a variance is taken around the
mean of all tokens. Sums are float64, of vectors shifted by the first batch's mean, so that a large constant part of the
activations costs no digits. They are kept per document, from which the intervals come (document_sums.py).

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

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autointerp.evaluate.document_sums import (
    N_BOOT,
    DocumentSums,
    Floats,
    Metric,
    as_metrics,
    bootstrapped,
    ratio,
    together,
)
from autointerp.sae import codes
from autointerp.sae.codes import SparseCodes

_BLOCK_ELEMENTS = 1 << 22
"""float64 elements of one block of tokens (32 MB)."""
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
        everything = np.stack([*others, rows.sum(axis=0)]).sum(axis=0, keepdims=True)
        fvu = float(self._figures(everything)["fvu"][0])
        n_all = round(float(everything[0, _AT["n"]]))
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
