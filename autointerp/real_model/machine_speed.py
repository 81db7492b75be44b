"""Measures what the forecast of a run on the real model needs to know of the machine, and which dtype to use."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from autointerp.config import ModelConfig, TrainConfig
from autointerp.model.forward_speed import WORTH_IT, tokens_per_second
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel, load_model, resolve_device
from autointerp.sae.training_run import SaeRun, SaeSpec

_TRIAL_S, _MOST_STEPS = 2.0, 5
_D_IN_VECTORS = 4096
_LOOPS, _LOOPS_S = 2_000_000, 0.45
"""The fixed piece of Python, and its CPU seconds where the constants of the forecast were measured."""


@dataclass(frozen=True, slots=True)
class ModelSpeed:
    """The dtype to run the model in, and why."""

    dtype: str
    tokens_per_s: float
    reason: str
    """A sentence for people."""


def model_speed(name: str, hookpoints: Sequence[str], context_length: int, dtype: str | None = None) -> ModelSpeed:
    """Tries the model's passes up to the last hookpoint: on a CPU in bfloat16 and float32, of which bfloat16 is taken
    where it is WORTH_IT times as fast; on a GPU in the dtype that `auto` takes there. With a `dtype`, only that."""
    points = [Hookpoint.parse(text) for text in hookpoints]

    def tried(loaded: LoadedModel) -> float:
        return tokens_per_second(loaded, points, context_length, _TRIAL_S)

    loaded = load_model(ModelConfig(name=name, dtype=dtype or "auto"))
    if dtype is not None or loaded.device.type != "cpu":
        of = dtype or str(loaded.dtype).removeprefix("torch.")
        speed = tried(loaded)
        return ModelSpeed(dtype or "auto", speed, f"{speed:,.0f} tokens a second on {loaded.device} in {of}")
    in_float32 = tried(loaded)
    loaded.model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers wraps it and loses its type
    in_bfloat16 = tried(replace(loaded, dtype=torch.bfloat16))
    return chosen(in_float32, in_bfloat16)


def chosen(in_float32: float, in_bfloat16: float) -> ModelSpeed:
    """The choice between two measured speeds on a CPU."""
    gain = in_bfloat16 / in_float32
    seen = f"this CPU passes {in_bfloat16:,.0f} tokens a second in bfloat16 and {in_float32:,.0f} in float32"
    if gain >= WORTH_IT:
        return ModelSpeed("bfloat16", in_bfloat16, f"{seen}, {gain:.1f} times as many, so bfloat16 is used")
    return ModelSpeed("float32", in_float32, f"{seen}, not {WORTH_IT} times as many, so float32 is used")


def slowness() -> float:
    """How many times as long this machine, as it is loaded now, takes for a fixed piece of Python as the one where the
    constants of run_forecast.py were measured."""
    begun = time.perf_counter()
    counts: dict[int, int] = {}
    for i in range(_LOOPS):
        counts[i % 1000] = counts.get(i % 997, 0) + len(str(i))
    return (time.perf_counter() - begun) / _LOOPS_S


def steps_per_second(d_in: int, d_sae: int, k: int, train: TrainConfig) -> float:
    """Training steps per second of a topk dictionary on the device that `auto` takes, on random vectors, after one step
    that does not count."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(max(_D_IN_VECTORS, train.batch_size), d_in, generator=generator)
    run = SaeRun(SaeSpec("trial", "topk", d_sae, k), train, d_in, 100, resolve_device("auto"))
    run.begin(vectors)
    run.step(vectors[: train.batch_size])
    n_steps, begun = 0, time.perf_counter()
    while n_steps < 2 or (n_steps < _MOST_STEPS and time.perf_counter() - begun < _TRIAL_S):
        run.step(vectors[: train.batch_size])
        n_steps += 1
    return n_steps / (time.perf_counter() - begun)
