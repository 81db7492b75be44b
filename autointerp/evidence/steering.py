"""Holding features at a value while the model runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from autointerp.model.hooks import Hookpoint, hooked
from autointerp.model.load import LoadedModel
from autointerp.sae.sae import Sae


@dataclass(frozen=True, slots=True)
class Strength:
    feature: int
    value: float
    kl: float
    reached: bool


class Steerer:
    def __init__(
        self, loaded: LoadedModel, sae: Sae, point: Hookpoint, output: Hookpoint | None,
        excluded_ids: Sequence[int] = (), batch_tokens: int = 8192,
    ) -> None:  # fmt: skip
        self.loaded, self.sae, self.point, self.output = loaded, sae, point, output or point
        self.excluded = torch.tensor(sorted(excluded_ids), dtype=torch.int64)
        self.n_forwards = self.n_tokens = 0

    def _logits(self, ids: Tensor, feature: int | None, value: float) -> Tensor:
        self.n_forwards, self.n_tokens = self.n_forwards + len(ids), self.n_tokens + ids.numel()
        read: list[Tensor] = []

        def edit(y: Tensor) -> Tensor:
            x = y if self.point == self.output else read[-1]
            now = self.sae.encode(x.float())[..., feature]
            change = torch.where(torch.isin(ids, self.excluded), 0.0, value - now)
            return y + change[..., None] * self.sae.W_dec[feature]

        with torch.inference_mode(), ExitStack() as stack:
            if feature is not None:
                if self.point != self.output:
                    stack.enter_context(hooked(self.loaded.model, self.point, capture=read))
                stack.enter_context(hooked(self.loaded.model, self.output, edit=edit))
            logits: Tensor = self.loaded.model(input_ids=ids, use_cache=False).logits
            return logits.double().log_softmax(-1)

    def strengths(
        self, features: Sequence[int], ids: Tensor, target_kl: float, scales: Sequence[float]
    ) -> list[Strength]:
        clean = self._logits(ids, None, 0.0)
        found, counted = [], ~torch.isin(ids, self.excluded)
        for feature, scale in zip(features, scales, strict=True):
            low, high, kl, value = 0.0, 64 * scale, math.nan, math.nan
            for _ in range(20):
                value = (low + high) / 2
                steered = self._logits(ids, feature, value)
                kl = float((steered.exp() * (steered - clean)).sum(-1)[counted].mean())
                if abs(kl - target_kl) < 0.05 * target_kl:
                    break
                low, high = (low, value) if kl > target_kl else (value, high)
            found.append(Strength(feature, value, kl, abs(kl - target_kl) < 0.1 * target_kl))
        return found

    def generate(
        self, prompts: Sequence[Sequence[int]], features: Sequence[int | None], values: Sequence[float],
        n_tokens: int, temperature: float, seed: int,
    ) -> list[list[int]]:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        written = []
        for prompt, feature, value in zip(prompts, features, values, strict=True):
            ids = list(prompt)
            for _ in range(n_tokens):
                last = self._logits(torch.tensor([ids]), feature, value)[0, -1]
                sampled = torch.multinomial((last / max(temperature, 1e-9)).softmax(-1), 1, generator=generator)
                ids.append(int(last.argmax() if temperature == 0 else sampled))
            written.append(ids[len(prompt) :])
        return written
