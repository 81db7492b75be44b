"""The structural evaluation of a dictionary on a corpus: reconstruction, sparsity, features, and the loss it costs.

The windows are a sample of the corpus by hash: its first ones would come from few documents, of one kind where a corpus
is sorted. One forward pass per batch, stopped at the hookpoint, gives everything but the loss. The splice then runs the
whole model over a sample of those windows. reconstruction.py, feature_metrics.py and splice.py define the figures.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.errors import AutointerpError, InputError, MismatchError
from autointerp.evaluate.document_sums import Metric
from autointerp.evaluate.feature_metrics import decoder_metrics, feature_metrics
from autointerp.evaluate.pieces import pieces
from autointerp.evaluate.reconstruction import Reconstruction
from autointerp.evaluate.splice import splice_metrics
from autointerp.model.hooks import Hookpoint, activations_at_all
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import Batch, Halving, eligible, make_batches
from autointerp.records import Window, WorkUnit
from autointerp.sae.long_vectors import is_ordinary
from autointerp.sae.sae import Sae

EARLY_TOKENS = 10_000
"""The FVU is first looked at after this many tokens."""
SUSPICIOUS_FVU = 0.8
"""A dictionary with a higher FVU after EARLY_TOKENS is probably loaded wrongly, or belongs to another model."""
READ_TIMES = 50
"""The sample is drawn from so many times as many tokens as it holds, so that a corpus without an end is not read for
ever."""
MOST_NONFINITE = 1e-3
"""Largest share of tokens whose activations may be NaN or infinite."""

Progress = Callable[[int, str], None]
"""Called with the number of tokens read so far, and a remark that may be empty."""


@dataclass(frozen=True, slots=True)
class StructuralResult:
    metrics: list[Metric]
    """The figures of each split, then of all together (split None)."""
    density: NDArray[np.float64]
    """[d_sae]: the share of all tokens on which each feature is active."""
    early_fvu: float | None
    """The FVU on the first EARLY_TOKENS, or on all if there are fewer; None where the activations are constant."""
    n_tokens: int
    """Number of tokens that counted."""
    n_nonfinite: int
    """Number of tokens left out because of a NaN or an infinity."""

    def value(self, metric: str, split: str | None = None) -> float | None:
        """One figure; None where it is undefined or missing."""
        return next((m.value for m in self.metrics if m.metric == metric and m.split == split), None)


def evaluate_structure(
    loaded: LoadedModel,
    sae: Sae,
    hookpoint: Hookpoint,
    output_hookpoint: Hookpoint | None,
    units: Iterable[WorkUnit],
    excluded_ids: Iterable[int] | Tensor,
    batch_tokens: int,
    *,
    max_tokens: int,
    splice_tokens: int,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> StructuralResult:
    """Evaluate `sae`, on any device, on a sample of the windows of `units` that holds at most `max_tokens` tokens that
    count (no BOS, no `excluded_ids`), but at least one window. It is drawn from the first READ_TIMES * `max_tokens` of
    them, and held in memory. The splice runs on a sample of these windows with at most `splice_tokens` tokens, but with
    at least one window unless `splice_tokens` is 0.

    `output_hookpoint` is None, or the hookpoint itself, for an SAE. The seed draws the windows of the splice, the
    documents of the intervals and, for a large dictionary, the decoder rows compared. Raises InputError when no token
    counts, MismatchError when the SAE's widths are not those of the hookpoints, AutointerpError when more than
    MOST_NONFINITE of the activations are not finite, and errors.OutOfMemoryError when halving the batches no longer
    helps.
    """
    reading = _Reading(loaded, sae, hookpoint, output_hookpoint, excluded_ids, batch_tokens)
    early: float | None = None
    sample = _Sample(splice_tokens, seed)
    for piece in pieces([_sampled(units, reading.excluded, max_tokens, seed)], reading.excluded, cut_at=EARLY_TOKENS):
        for window, n_counted in zip(piece.windows, piece.n_counted):
            sample.offer(window, n_counted)
        for _ in reading.read(piece.windows):
            if on_progress is not None:
                on_progress(reading.n_tokens, "")
        if early is None and piece.n_by_then >= EARLY_TOKENS:
            early = reading.sums.fvu()
            if on_progress is not None and early is not None:
                on_progress(reading.n_tokens, f"FVU {early:.3f} on the first {reading.n_tokens:,} tokens")
    check_read(reading.n_tokens, reading.n_nonfinite)
    early = reading.sums.fvu() if early is None else early
    sums, splits = reading.sums, sorted(reading.sums.splits)
    by_split: dict[str | None, list[Metric]] = {}
    for split in (*splits, None):
        n_tokens = sums.n_tokens(split)
        n_documents = sums.n_documents(split)
        by_split[split] = sums.metrics(split, seed)
        by_split[split] += feature_metrics(sums.counts(split), n_tokens, split, n_documents)
    counts, n_tokens = sums.counts(), sums.n_tokens()
    by_split[None] += decoder_metrics(sae.W_dec, counts > 0, n_tokens, sums.n_documents(), seed)
    if splice_tokens > 0:
        if on_progress is not None:
            on_progress(n_tokens, "the loss with replaced activations")
        # The mean over all tokens read is a better ablation than the mean over the spliced windows.
        for metric in splice_metrics(
            loaded,
            sae,
            hookpoint,
            output_hookpoint,
            sample.windows(),
            reading.excluded,
            batch_tokens,
            mean=sums.mean(),
            seed=seed,
        ):
            by_split[metric.split].append(metric)
    return StructuralResult(
        [metric for split in (*splits, None) for metric in by_split[split]],
        counts / n_tokens,
        early,
        n_tokens,
        reading.n_nonfinite,
    )


def _sampled(units: Iterable[WorkUnit], excluded: Tensor, max_tokens: int, seed: int) -> WorkUnit:
    """The sample of `evaluate_structure` as one unit, in the order of the hash, so that its beginning is a sample,
    too."""
    sample = _Sample(max_tokens, seed)
    for piece in pieces(units, excluded, READ_TIMES * max_tokens):
        for window, n_counted in zip(piece.windows, piece.n_counted):
            sample.offer(window, n_counted)
    return WorkUnit(0, sample.by_hash(), 0)


class _Sample:
    """A sample of windows with at most `budget` tokens that count: those with the smallest hash of seed, document and
    position.

    It draws from all documents, while the first windows of a corpus come from few. It never holds more than it keeps.
    """

    def __init__(self, budget: int, seed: int) -> None:
        self._budget, self._seed = budget, seed
        self._held: list[tuple[int, int, Window, int]] = []
        """A heap of (-hash, number, window, tokens), so the largest hash comes first."""
        self._n_tokens = self._n_offered = 0

    def offer(self, window: Window, n_counted: int) -> None:
        if self._budget <= 0 or n_counted == 0:
            return
        key = f"{self._seed} {window.start} {window.document}".encode("utf-8", "surrogatepass")
        digest = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
        heapq.heappush(self._held, (-digest, self._n_offered, window, n_counted))
        self._n_offered += 1
        self._n_tokens += n_counted
        while self._n_tokens > self._budget and len(self._held) > 1:
            self._n_tokens -= heapq.heappop(self._held)[3]

    def windows(self) -> list[Window]:
        """The sampled windows, in the order in which they were offered."""
        return [window for _, _, window, _ in sorted(self._held, key=lambda held: held[1])]

    def by_hash(self) -> list[Window]:
        """The sampled windows, the smallest hash first."""
        return [window for _, _, window, _ in sorted(self._held, key=lambda held: (-held[0], held[1]))]


class _Reading:
    """The pass that measures the reconstruction."""

    def __init__(
        self,
        loaded: LoadedModel,
        sae: Sae,
        hookpoint: Hookpoint,
        output_hookpoint: Hookpoint | None,
        excluded_ids: Iterable[int] | Tensor,
        batch_tokens: int,
    ) -> None:
        if not isinstance(excluded_ids, Tensor):
            excluded_ids = torch.tensor(sorted(excluded_ids), dtype=torch.int64)
        self.excluded = excluded_ids.to(loaded.device)
        self.loaded, self.sae, self.batch_tokens = loaded, sae, batch_tokens
        self.points = [hookpoint]
        if output_hookpoint is not None and output_hookpoint != hookpoint:
            self.points.append(output_hookpoint)
        self.sums = Reconstruction(sae.d_sae)
        self.n_tokens = self.n_nonfinite = 0
        self._halving = Halving()

    def read(self, windows: Sequence[Window]) -> Iterator[None]:
        """Add the windows to the sums; yields after every batch."""

        def forward(part: Batch) -> list[Tensor]:
            return activations_at_all(self.loaded, self.points, part.ids, part.lengths)

        for batch in make_batches(windows, self.batch_tokens, self.loaded.pad_id):
            for part, activations in self._halving.run(batch.to(self.loaded.device), forward):
                self._check_widths(activations)
                counted = eligible(part, self.excluded)
                if self.sae.longest is not None:
                    counted &= is_ordinary(activations[0], self.sae.longest).to(counted.device)
                position = torch.arange(part.ids.shape[1], device=part.ids.device)
                others = (position < part.lengths[:, None]) & ~counted
                splits = np.array([window.split for window in part.windows])
                for split in dict.fromkeys(splits.tolist()):
                    here = torch.from_numpy(splits == split).to(counted.device)[:, None]
                    self._add(split, part.windows, counted & here, activations, counts=True)
                    self._add(split, part.windows, others & here, activations, counts=False)
            yield

    def _check_widths(self, activations: list[Tensor]) -> None:
        widths = activations[0].shape[-1], activations[-1].shape[-1]
        if widths != (self.sae.d_in, self.sae.d_out):
            places = " to ".join(map(str, self.points))
            raise MismatchError(
                f"the SAE reads vectors of width {self.sae.d_in} and reconstructs {self.sae.d_out}, but {places} of "
                f"{self.loaded.name} has {widths[0]} and {widths[1]}; it belongs to another model or hookpoint"
            )

    def _add(
        self, split: str, windows: Sequence[Window], mask: Tensor, activations: list[Tensor], counts: bool
    ) -> None:
        device = self.sae.W_enc.device
        window = mask.nonzero(as_tuple=True)[0].to(device)
        if not len(window):
            return
        x, y = (a[mask.to(a.device)].to(device) for a in (activations[0], activations[-1]))
        n = len(window)
        good = finite_rows(x) & finite_rows(y)
        if not bool(good.all()):
            x, y, window = x[good], y[good], window[good]
        y_hat, active = self.sae.reconstruct(x)
        good = finite_rows(y_hat)
        if not bool(good.all()):  # rare, so the others are simply encoded again
            x, y, window = x[good], y[good], window[good]
            y_hat, active = self.sae.reconstruct(x)
        source = x if len(self.points) > 1 else None
        if counts:
            self.n_tokens += len(window)
            self.n_nonfinite += n - len(window)
            self.sums.add(split, [w.document for w in windows], window, y, y_hat, active, source)
        else:
            self.sums.add_excluded(split, y, y_hat, active, source)


def check_read(n_tokens: int, n_nonfinite: int) -> None:
    """Raise an error when the tokens read allow no result: too many are not finite, or none counts."""
    if n_nonfinite > MOST_NONFINITE * (n_tokens + n_nonfinite):
        raise AutointerpError(
            f"{n_nonfinite} of {n_tokens + n_nonfinite} tokens have NaN or infinite activations "
            f"(more than {MOST_NONFINITE:.1%}). Try model.dtype = float32 or bfloat16, and check that the SAE's "
            "weights belong to this hookpoint"
        )
    if not n_tokens:
        raise InputError("no token of the corpus counts (all are excluded, or there is no text)")


def finite_rows(x: Tensor) -> Tensor:
    """Which vectors have no NaN or infinity, [n] bool. A sum is finite only if all its terms are."""
    return torch.isfinite(x.sum(-1, dtype=torch.float32))
