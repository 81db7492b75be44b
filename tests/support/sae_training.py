"""SAEs trained on vectors that are sums of known directions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.config import TrainConfig
from autointerp.model.hooks import Hookpoint
from autointerp.sae import files, parallel
from autointerp.sae.activation_cache import CachedSource, fill
from autointerp.sae.activation_shards import Shards
from autointerp.sae.buffer import ArraySource
from autointerp.sae.sae import Sae
from autointerp.sae.trainer import Trainer
from autointerp.sae.training_run import SaeRun, SaeSpec

CONFIG = TrainConfig(
    tokens=30 * 64, batch_size=64, buffer_vectors=512, warmup_steps=5, checkpoint_every=10, dead_after=400, seed=3
)


def vectors(n: int, d: int = 16, n_directions: int = 40, seed: int = 0, scale: float = 1.0) -> Tensor:
    """[n, d]: sums of about 3 of `n_directions` fixed unit directions, plus a mean that is far from zero."""
    directions = F.normalize(torch.randn(n_directions, d, generator=torch.Generator().manual_seed(99)), dim=1)
    g = torch.Generator().manual_seed(seed)
    active = torch.rand(n, n_directions, generator=g) < 3 / n_directions
    return scale * ((active * (0.5 + torch.rand(n, n_directions, generator=g))) @ directions + 2.0)


class One(Trainer):
    """A trainer of one SAE."""

    @property
    def run(self) -> SaeRun:
        return self.learners[0].run

    @property
    def sae(self) -> Sae:
        return self.train()[0]


def trainer(folder: Path, data: Tensor | None = None, config: TrainConfig = CONFIG, **settings: Any) -> One:
    source = ArraySource(vectors(1500) if data is None else data, block=100)
    family, k, frozen = settings.pop("architecture", "topk"), settings.pop("k", 4), settings.pop("frozen", None)
    spec = SaeSpec("x", family, 64, k, frozen=frozen)
    return One(source, config, [(spec, folder)], **{"log_every": 1, **settings})


TOGETHER = replace(CONFIG, tokens=60 * 64, dead_after=300)

SPECS = [SaeSpec(name, name, 64, 4) for name in ("topk", "batchtopk", "relu", "jumprelu")]


def train_together(folder: Path) -> None:
    """Trains SPECS in one run, as one of several processes if torch's launcher started them."""
    jobs = [(spec, folder / spec.name) for spec in SPECS]
    trainer = Trainer(ArraySource(vectors(1500), block=100), TOGETHER, jobs, log_every=1)
    for learner in trainer.learners:
        learner.run.weights["b_enc"].data[:6] -= 3.0  # some are silent at first: AuxK and waking are shared too
    trainer.train()


def train_from_cache(folder: Path) -> None:
    """Fills a cache in `folder` and trains from it, as one of several processes if torch's launcher started them."""
    point = Hookpoint("x")

    class Text(ArraySource):
        columns = {point: (0, 16)}

    held = {point: Shards(folder / "cache", {"key": "k"})}
    n = fill(held, 1500, lambda points: Text(vectors(1500), block=100), lambda done: None)
    source = CachedSource(held, Text.columns, n, key="k", seed=3, device=torch.device("cpu"))
    config = replace(TOGETHER, cache="somewhere", cache_vectors=1500)
    Trainer(source, config, [(SPECS[0], folder / SPECS[0].name)], log_every=1).train()


def train_on_long_vectors(folder: Path) -> None:
    """Trains SPECS where some vectors are left out, of which the processes get unequal numbers. Each writes what it
    holds at the end."""
    data = vectors(1500)
    data[torch.rand(1500, generator=torch.Generator().manual_seed(5)) < 0.1] *= 1000
    jobs = [(spec, folder / spec.name) for spec in SPECS]
    trainer = Trainer(ArraySource(data, block=100), TOGETHER, jobs, log_every=1)
    for learner in trainer.learners:
        learner.run.weights["b_enc"].data[:6] -= 3.0
    trainer.train()
    for learner in trainer.learners:
        held = {name: tensor.contiguous() for name, tensor in learner.run.tensors().items()}
        files.write_tensors(learner.folder / f"held-{parallel.rank()}.safetensors", held)
