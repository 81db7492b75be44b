"""Measures what the language model loses when a dictionary's reconstruction replaces its activations at a hookpoint.

The next-token loss, in nats, is taken in five runs over the same tokens. The activations of tokens that count are
replaced; those of a BOS, of excluded tokens and of vectors longer than the dictionary was trained on stay as they are.

    ce_clean             nothing is replaced
    ce_sae               replaced by x_hat
    ce_zero_ablation     replaced by zeros
    ce_mean_ablation     replaced by the mean activation
    ce_with_error_term   replaced by x_hat + (x - x_hat): must equal ce_clean, or the splice itself is wrong

    delta_ce             ce_sae - ce_clean
    kl_sae, kl_...       KL(clean || spliced) of the next-token distributions, mean over tokens
    loss_recovered_zero  (ce_zero_ablation - ce_sae) / (ce_zero_ablation - ce_clean); loss_recovered_mean likewise

The zero ablation also removes the mean activation, which no dictionary has to learn, so it makes every dictionary look
good. Read the loss recovered from the mean ablation, and delta_ce. Loss and KL are taken where the token counts and
another token follows in its window. For a transcoder, x is the activation at the output hookpoint, and x_hat is what
the transcoder computes from the input hookpoint in the same forward pass. At a joined hookpoint every part is replaced
by its part of x_hat; since parts lie at several depths, x_hat comes there from a pass in which nothing is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.errors import AutointerpError, InputError
from autointerp.evaluate.document_sums import DocumentSums, Floats, Metric, as_metrics, bootstrapped, ratio, together
from autointerp.model.hooks import Hookpoint, activations_at, hooked, model_inputs, own_columns
from autointerp.model.load import LoadedModel
from autointerp.model.padding import require_next_token
from autointerp.model.token_batches import Batch, Halving, eligible, make_batches
from autointerp.records import Window
from autointerp.sae.long_vectors import is_ordinary
from autointerp.sae.whole_clt import Dictionary

Condition = Literal["clean", "sae", "zero_ablation", "mean_ablation", "with_error_term"]
SPLICED: tuple[Condition, ...] = ("sae", "zero_ablation", "mean_ablation", "with_error_term")

_COLUMNS = ("n", "n_bad", "ce_clean", *(f"ce_{c}" for c in SPLICED), *(f"kl_{c}" for c in SPLICED))
_AT = {name: i for i, name in enumerate(_COLUMNS)}
# Logits are the largest tensors here, and several exist at a time. These limit the elements of one batch's logits, and
# of one block that is converted to float32.
_LOGITS_CPU, _LOGITS_DEVICE, _BLOCK = 1 << 24, 1 << 28, 1 << 24
MOST_NONFINITE = 1e-3
"""Largest share of tokens whose loss may be NaN or infinite in any of the runs."""


def splice_metrics(
    loaded: LoadedModel,
    sae: Dictionary,
    hookpoint: Hookpoint,
    output_hookpoint: Hookpoint | None,
    windows: Sequence[Window],
    excluded_ids: Iterable[int] | Tensor,
    batch_tokens: int,
    *,
    mean: Tensor | None = None,
    seed: int = 0,
) -> list[Metric]:
    """The figures above for each split that has tokens, then for all together (split None), with intervals over
    documents.

    `output_hookpoint` is None, or the hookpoint itself, for an SAE. `mean` [d_out] is used by the mean ablation;
    without it, the mean is measured on the windows. `n_tokens` of a metric is the number of losses. Raises InputError
    when a hookpoint does not carry one vector per token, there is no loss to count, or the model looks ahead;
    AutointerpError when more than MOST_NONFINITE of the losses are not finite, and errors.OutOfMemoryError when halving
    the batches no longer helps.
    """
    require_next_token(loaded, "the loss")
    excluded = _ids(excluded_ids, loaded.device)
    point = output_hookpoint or hookpoint
    halving = Halving()
    if mean is None:
        mean = _mean(loaded, point, windows, excluded, batch_tokens, halving)
    splice = _Splice(loaded, sae, hookpoint, point, excluded, mean)
    budget = _LOGITS_CPU if loaded.device.type == "cpu" else _LOGITS_DEVICE
    vocabulary = int(getattr(loaded.model.config.get_text_config(), "vocab_size", 0)) or 1
    batches = make_batches(windows, max(1, min(batch_tokens, budget // vocabulary)), loaded.pad_id)
    tables: dict[str, DocumentSums] = {}
    for batch in batches:
        for part, sums in halving.run(batch.to(loaded.device), splice.losses):
            for split in dict.fromkeys(window.split for window in part.windows):
                rows = [
                    i
                    for i, window in enumerate(part.windows)
                    if window.split == split and sums[i, _AT["n"]] + sums[i, _AT["n_bad"]] > 0
                ]
                if rows:
                    table = tables.setdefault(split, DocumentSums(len(_COLUMNS)))
                    table.add([part.windows[i].document for i in rows], sums[rows])
    whole = together(list(tables.values()))
    if whole is None:
        raise InputError("no token of the corpus is followed by another one, so there is no loss to compare")
    _check_finite(whole.rows())
    found = []
    by_split: list[tuple[str | None, DocumentSums]] = [*sorted(tables.items()), (None, whole)]
    for name, table in by_split:
        counted = table.rows()[table.rows()[:, _AT["n"]] > 0]
        if len(counted):
            n_tokens = round(float(counted[:, _AT["n"]].sum()))
            found += as_metrics(bootstrapped(counted, _figures, seed), name, n_tokens, table.n_documents)
    return found


def _ids(excluded_ids: Iterable[int] | Tensor, device: torch.device) -> Tensor:
    if isinstance(excluded_ids, Tensor):
        return excluded_ids.to(device)
    return torch.tensor(sorted(excluded_ids), dtype=torch.int64, device=device)


def _check_finite(rows: Floats) -> None:
    n, n_bad = float(rows[:, _AT["n"]].sum()), float(rows[:, _AT["n_bad"]].sum())
    if n == 0 or n_bad > MOST_NONFINITE * (n + n_bad):
        raise AutointerpError(
            f"{n_bad:.0f} of {n + n_bad:.0f} losses are NaN or infinite when the activations are replaced. Try "
            "model.dtype = float32 or bfloat16, and check that the SAE's weights belong to this hookpoint"
        )


def _figures(totals: Floats) -> dict[str, Floats]:
    n = totals[:, _AT["n"]]
    mean = {name: ratio(totals[:, _AT[name]], n) for name in _COLUMNS[2:]}
    figures = dict(mean)
    figures["delta_ce"] = mean["ce_sae"] - mean["ce_clean"]
    for name, condition in (("loss_recovered_zero", "ce_zero_ablation"), ("loss_recovered_mean", "ce_mean_ablation")):
        # An ablation that costs nothing leaves nothing to recover. 1e-6 nats is within float32's rounding.
        cost = mean[condition] - mean["ce_clean"]
        figures[name] = ratio(mean[condition] - mean["ce_sae"], cost, cost > 1e-6)
    return figures


def _mean(
    loaded: LoadedModel,
    point: Hookpoint,
    windows: Sequence[Window],
    excluded: Tensor,
    batch_tokens: int,
    halving: Halving,
) -> Tensor:
    """The mean activation of the tokens that count, [d] float64 on CPU."""
    total: Tensor | None = None
    n = 0
    for batch in make_batches(windows, batch_tokens, loaded.pad_id):
        for part, y in halving.run(
            batch.to(loaded.device), lambda part: activations_at(loaded, point, part.ids, part.lengths)
        ):
            counted = y[eligible(part, excluded).to(y.device)]
            counted = counted[torch.isfinite(counted.sum(-1, dtype=torch.float32))]
            summed = counted.cpu().double().sum(0)
            total, n = summed if total is None else total + summed, n + len(counted)
    if total is None or n == 0:
        raise InputError("no token of the corpus counts, so there is no mean activation")
    return total / n


class _Splice:
    """Makes the five runs over each batch."""

    def __init__(
        self, loaded: LoadedModel, sae: Dictionary, source: Hookpoint, target: Hookpoint, excluded: Tensor, mean: Tensor
    ) -> None:
        self.loaded, self.sae, self.source, self.target = loaded, sae, source, target
        self.excluded, self.mean = excluded, mean

        self.columns = own_columns(loaded, target, sae.d_out)
        """What is replaced, and which columns of x_hat belong there."""
        self.reads_first = bool(source.others or target.others) or source.of_other

    def losses(self, batch: Batch) -> Floats:
        """The sums of `_COLUMNS` over each window, [B, columns]."""
        counted = eligible(batch, self.excluded)
        position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        followed = counted & (position + 1 < batch.lengths[:, None])
        row, at = followed.nonzero(as_tuple=True)
        sums = np.zeros((len(batch.windows), len(_COLUMNS)))
        if not len(row):
            return sums
        target = batch.ids[row, at + 1]
        clean = self._logits(batch, counted, "clean", row, at)
        x_hat = self._reconstructed_first(batch, counted) if self.reads_first else None
        columns = {"ce_clean": _blockwise(clean, clean, target)[0]}
        for condition in SPLICED:
            spliced = self._logits(batch, counted, condition, row, at, x_hat)
            columns[f"ce_{condition}"], columns[f"kl_{condition}"] = _blockwise(spliced, clean, target)
        values = torch.stack([columns[name] for name in _COLUMNS[2:]], dim=1).numpy()
        good = np.isfinite(values).all(axis=1)
        windows = row.cpu().numpy()
        sums[:, _AT["n"]] = np.bincount(windows[good], minlength=len(sums))
        sums[:, _AT["n_bad"]] = np.bincount(windows[~good], minlength=len(sums))
        np.add.at(sums[:, 2:], windows[good], values[good])
        return sums

    def _logits(
        self, batch: Batch, counted: Tensor, condition: Condition, row: Tensor, at: Tensor,
        x_hat: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """The logits at the tokens that are followed by another, [n, vocabulary] in the model's dtype."""
        read: list[Tensor] = []
        edited: set[Hookpoint] = set()

        def edit(y: Tensor, part: Hookpoint) -> Tensor:
            edited.add(part)
            return self._replaced(y, part, read, counted, condition, x_hat)

        with torch.inference_mode(), ExitStack() as stack:
            if condition != "clean":
                if self.source != self.target and x_hat is None:
                    stack.enter_context(hooked(self.loaded.model, self.source, capture=read))
                for part in self.columns:
                    stack.enter_context(hooked(self.loaded.model, part, edit=partial(edit, part=part)))
            logits: Tensor = self.loaded.model(**model_inputs(self.loaded, batch.ids, batch.lengths)).logits
        missing = [part for part in self.columns if part not in edited]
        if condition != "clean" and missing:
            raise InputError(f"hookpoint {missing[0]}: the model's forward pass never runs this module")
        return logits[row.to(logits.device), at.to(logits.device)]

    def _reconstructed_first(self, batch: Batch, counted: Tensor) -> tuple[Tensor, Tensor]:
        """(the tokens to replace, bool [B * T]; x_hat of them), from a pass in which nothing is replaced."""
        x = activations_at(self.loaded, self.source, batch.ids, batch.lengths)
        flat = _per_token(x, counted.numel(), self.source)
        mask = counted.to(flat.device).flatten()
        if self.sae.longest is not None:
            mask = mask & is_ordinary(flat, self.sae.longest)
        return mask, self.sae.reconstruct(flat[mask].to(self.sae.device))[0]

    def _replaced(
        self, y: Tensor, part: Hookpoint, read: list[Tensor], counted: Tensor, condition: Condition,
        x_hat: tuple[Tensor, Tensor] | None,
    ) -> Tensor:  # fmt: skip
        flat, columns = _per_token(y, counted.numel(), part), slice(*self.columns[part])
        if x_hat is not None:
            mask = x_hat[0].to(y.device)
        else:
            mask = counted.to(y.device).flatten()
            if self.sae.longest is not None:  # what the dictionary says nothing of stays as it is
                mask = mask & is_ordinary(self._inputs(flat, read), self.sae.longest).to(mask.device)
        if condition == "zero_ablation":
            new = torch.zeros_like(flat[mask])
        elif condition == "mean_ablation":
            new = self.mean[columns].to(y.device, y.dtype).expand(int(mask.sum()), -1)
        else:
            y_hat = self._reconstructed(flat, mask, read) if x_hat is None else x_hat[1][:, columns].to(y.device)
            wide = flat[mask].to(y_hat.dtype)
            new = y_hat if condition == "sae" else y_hat + (wide - y_hat)
        out = flat.clone()
        out[mask] = new.to(out.dtype)
        return out.view(y.shape)

    def _reconstructed(self, flat: Tensor, mask: Tensor, read: list[Tensor]) -> Tensor:
        inputs = self._inputs(flat, read)
        x = inputs[mask.to(inputs.device)]
        return self.sae.reconstruct(x.to(self.sae.device))[0].to(flat.device)

    def _inputs(self, flat: Tensor, read: list[Tensor]) -> Tensor:
        """What the dictionary reads, [n_tokens, d_in], where `flat` is what it reconstructs."""
        if self.source == self.target:
            return flat
        if not read:
            raise InputError(f"hookpoint {self.source} is not computed before {self.target}, which it should predict")
        return _per_token(read[-1], len(flat), self.source)


def _per_token(activation: Tensor, n_tokens: int, hookpoint: Hookpoint) -> Tensor:
    """An activation [B, T, d] (or [B * T, d], from experts and the like) as [n_tokens, d]."""
    if activation.ndim < 2 or activation.shape[:-1].numel() != n_tokens:
        raise InputError(f"hookpoint {hookpoint} does not carry one vector per token but {list(activation.shape)}")
    return activation.reshape(n_tokens, -1)


def _blockwise(logits: Tensor, clean: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(loss [n], KL(clean || these logits) [n]) as float64 on CPU, computed in blocks of rows of logits [n,
    vocabulary]."""
    size = max(1, _BLOCK // logits.shape[1])
    losses, divergences = [], []
    for rows, clean_rows, next_ids in zip(logits.split(size), clean.split(size), target.split(size)):
        log_p = F.log_softmax(rows.float(), dim=-1)
        losses.append(-log_p.gather(-1, next_ids.to(log_p.device)[:, None])[:, 0].cpu().double())
        if logits is clean:
            divergences.append(torch.zeros_like(losses[-1]))
            continue
        log_q = F.log_softmax(clean_rows.float(), dim=-1)
        # A token that the model rules out has log-probability -inf in both.
        difference = torch.where(log_q > -torch.inf, log_q - log_p, 0.0)
        divergences.append((log_q.exp() * difference).sum(-1).cpu().double())
    return torch.cat(losses), torch.cat(divergences)
