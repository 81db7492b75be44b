"""Recomputes stored activations from the model and the SAE alone, and measures how far the stored ones deviate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autointerp.model.hooks import Hookpoint, activations_at_all
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import Halving, make_batches
from autointerp.records import Window
from autointerp.sae.sae import Sae
from autointerp.store.contexts import StoredContext

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""The largest accepted Deviation.relative, by the model's dtype. Other batch shapes and kernels round differently, and
the weakest features that a TopK chooses may then change."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far stored activations are from recomputed ones, over all tokens of the sampled contexts."""

    n_contexts: int
    n_activations: int
    absolute: float
    """The largest difference, in raw units."""
    relative: float
    """The largest difference as a share of the peak: the larger one of the context's stored peak and the feature's
    recomputed peak in the window."""
    tolerance: float
    worst_context: int | None

    @property
    def is_ok(self) -> bool:
        return self.relative <= self.tolerance


def recompute(
    loaded: LoadedModel, hookpoint: Hookpoint, sae: Sae, contexts: Sequence[StoredContext], batch_tokens: int,
    excluded_ids: frozenset[int], on_windows: Callable[[int, int], None] = lambda done, of: None,
) -> Deviation:  # fmt: skip
    """Run each context's window through the model and compare its feature on the context's tokens, silent tokens
    included. The harvest's batches are not made again: windows run beside equally long ones only, without padding, and
    in at most half of `batch_tokens`, so what a harvest's padding or neighbours changed shows. Tokens in `excluded_ids`
    (TokenText.excluded_ids) are not compared. `on_windows` is called after each batch with the number of windows done
    and the number of all windows."""
    windows: dict[int, Window] = {}
    by_window: dict[int, list[StoredContext]] = {}
    for context in contexts:
        windows.setdefault(context.window_id, Window("", 0, "explain", context.token_ids, context.n_prefix))
        by_window.setdefault(context.window_id, []).append(context)
    window_ids = list(windows)
    half = max(1, batch_tokens // 2)
    batches = make_batches([windows[i] for i in window_ids], half, loaded.pad_id, shortest_share=1)
    worst, absolute, relative, n_values = None, 0.0, 0.0, 0
    halving, n_done = Halving(), 0
    for batch in batches:
        for part, found in halving.run(
            batch.to(loaded.device), lambda p: activations_at_all(loaded, [hookpoint], p.ids, p.lengths)
        ):
            for row, index in enumerate(part.indices):
                codes = sae.encode_sparse(found[0][row, : int(part.lengths[row])].to(sae.W_enc.device))
                dense = codes.dense(sae.d_sae).cpu()
                for context in by_window[window_ids[index]]:
                    difference, scale = _difference(context, dense[:, context.feature], excluded_ids)
                    n_values += context.length
                    absolute = max(absolute, difference)
                    if scale > 0 and difference / scale > relative:
                        relative, worst = difference / scale, context.context_id
        n_done += len(batch.windows)
        on_windows(n_done, len(window_ids))
    return Deviation(len(contexts), n_values, absolute, relative, TOLERANCE[loaded.dtype], worst)


def _difference(context: StoredContext, recomputed: torch.Tensor, excluded_ids: frozenset[int]) -> tuple[float, float]:
    """Compares one context with its feature's activations [t] over the whole window: (largest difference, scale)."""
    span = slice(context.offset, context.offset + context.length)
    stored = torch.zeros(context.length)
    stored[torch.tensor(context.positions, dtype=torch.int64)] = torch.tensor(context.values)
    counted = torch.tensor([i not in excluded_ids for i in context.token_ids])
    counted[: context.n_prefix] = False
    whole = torch.where(counted, recomputed, 0)
    difference = float((whole[span] - stored).abs().max())
    return difference, max(float(stored.max()), float(whole.max()))
