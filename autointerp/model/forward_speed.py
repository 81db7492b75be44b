"""Measures how fast a model's forward pass runs here, and what another dtype would do to it.

A CPU may compute bfloat16 several times as fast as float32 (AMX, AVX512-BF16), or several times as slowly, and nothing
that it says of itself tells which. So it is tried.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autointerp.model.hooks import Hookpoint, activations_at_all
from autointerp.model.load import LoadedModel

WORTH_IT = 1.3
"""The gain from which on another dtype is worth its rounding."""
_WARM_UP_TOKENS, _TRIAL_TOKENS, _ROWS = 512, 2048, 1024
_MOST_SHAPES = 12


def tokens_per_second(
    loaded: LoadedModel, hookpoints: Sequence[Hookpoint], context_length: int, seconds: float,
    batch_tokens: int = _TRIAL_TOKENS,
) -> float:  # fmt: skip
    """Tokens per second of forward passes that end at the last of `hookpoints`, on windows of random ids. They are
    repeated for about `seconds`, at least twice."""
    vocabulary = next(loaded.model.get_input_embeddings().parameters()).shape[0]
    generator = torch.Generator().manual_seed(0)

    def batch(n_tokens: int) -> Tensor:
        rows = max(1, n_tokens // context_length)
        return torch.randint(0, vocabulary, (rows, context_length), generator=generator)

    activations_at_all(loaded, hookpoints, batch(_WARM_UP_TOKENS))
    ids = batch(batch_tokens)
    n_passes, begun = 0, time.perf_counter()
    while n_passes < 2 or time.perf_counter() - begun < seconds:
        activations_at_all(loaded, hookpoints, ids)
        _wait(loaded.device)
        n_passes += 1
    return n_passes * ids.numel() / (time.perf_counter() - begun)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bfloat16_gain(model: nn.Module) -> float | None:
    """How many times as long this CPU takes in float32 as in bfloat16 for matrix products of the sizes of the model's
    own layers. Takes a fraction of a second. None where the model has no such layers."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    shapes = Counter(tuple(p.shape) for p in model.parameters() if p.ndim == 2 and id(p) not in tables)
    if not shapes:
        return None
    wanted = shapes.most_common(_MOST_SHAPES)
    times = [
        sum(n * _product_seconds(shape, dtype) for shape, n in wanted) for dtype in (torch.float32, torch.bfloat16)
    ]
    return times[0] / times[1]


def _product_seconds(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    rows = torch.randn(_ROWS, shape[1], generator=generator).to(dtype)
    return _best_of(3, lambda: F.linear(rows, weight))


def _best_of(n: int, work: Callable[[], object]) -> float:
    """The shortest of `n` runs, after one that does not count."""
    times = []
    for _ in range(n + 1):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times[1:])
