"""The training loop, in which any number of SAEs learn together from one stream of vectors.

Each SAE keeps its state in `checkpoint.safetensors` in its own folder, and its metrics in `metrics.jsonl` beside it. A
run that continues from its checkpoints gives the same losses as one that was never stopped: the stream restarts at the
step of the SAE that is furthest behind, and the SAEs ahead of it wait.

Under torchrun every process reads the same stream and takes its share of each batch (parallel.py). Only the first
process writes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.config import TrainConfig
from autointerp.errors import AutointerpError, InputError, MismatchError
from autointerp.sae import files, parallel
from autointerp.sae.buffer import ActivationSource, ShuffledBatches
from autointerp.sae.kept_fill import KeptFill
from autointerp.sae.sae import Sae
from autointerp.sae.training_run import Metrics, SaeRun, SaeSpec

MAX_BAD_STEPS = 3
CHECKPOINT_EVERY_S = 300.0
"""A checkpoint is written after this many seconds even if its step has not come."""

CHECKPOINT = "checkpoint.safetensors"
"""The file in an SAE's training folder that holds the steps made so far."""

OnMetrics = Callable[[str, int, Metrics], None]


@dataclass(slots=True)
class _Learner:
    """One SAE of the loop and the folder of its files."""

    run: SaeRun
    folder: Path
    batches: dict[str, Any] | None = None
    """The stream's state at the SAE's checkpoint; None if its training begins anew."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"


class Trainer:
    """Trains the `jobs` (pairs of what to train and its folder) on vectors of `source`. Continues from the checkpoints
    that it finds in the folders.

    `on_metrics(name, step, metrics)` is called with every line that goes to a metrics.jsonl, `on_progress(step, steps)`
    after every step, and `on_fill(vectors, of)` while the shuffle buffer is filled; `kept` keeps a slow fill on disk.
    Checkpoints are written every `config.checkpoint_every` steps, after `checkpoint_every_s` seconds, and at the end.

    Raises InputError (no vectors, impossible sizes), MismatchError (a checkpoint of another configuration),
    DamagedError (a checkpoint that cannot be read), DiskFullError, and AutointerpError if a loss is not a number for
    three steps in a row. The last checkpoints are kept.
    """

    def __init__(
        self,
        source: ActivationSource,
        config: TrainConfig,
        jobs: Sequence[tuple[SaeSpec, Path]],
        *,
        device: str | torch.device = "cpu",
        on_metrics: OnMetrics | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_fill: Callable[[int, int], None] = lambda vectors, of: None,
        kept: KeptFill | None = None,
        log_every: int = 50,
        checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    ) -> None:
        if config.batch_size % parallel.world_size():
            raise InputError(
                f"train.batch_size ({config.batch_size}) must be a multiple of the {parallel.world_size()} processes"
            )
        self.config, self.log_every, self.checkpoint_every_s = config, log_every, checkpoint_every_s
        self.on_metrics, self.on_progress = on_metrics, on_progress
        self.device = torch.device(device)
        self.steps = max(1, config.tokens // config.batch_size)
        self.batches = ShuffledBatches(
            source,
            batch_size=config.batch_size,
            buffer_vectors=config.buffer_vectors,
            n_batches=self.steps,
            seed=config.seed,
            on_fill=on_fill,
            kept=kept,
        )
        self.learners = [
            _Learner(SaeRun(spec, config, source.d_in, self.steps, self.device), folder) for spec, folder in jobs
        ]
        for learner in self.learners:
            if learner.checkpoint.exists():
                self._restore(learner)
        self.step = min(learner.run.index for learner in self.learners)
        behind = min(self.learners, key=lambda learner: learner.run.index)
        if behind.batches is not None:
            self.batches.restore(behind.batches)
        fresh = [learner.run for learner in self.learners if learner.batches is None]
        if fresh:
            first = self.batches.block()
            for run in fresh:
                run.begin(first)
        # a checkpoint inside the block before would need that block again
        self.batches.before_keeping = self.save_checkpoints

    def train(self) -> list[Sae]:
        """Run the remaining steps, and return the SAEs in raw-input units."""
        if parallel.is_first():
            for learner in self.learners:
                learner.folder.mkdir(parents=True, exist_ok=True)
        last = time.monotonic()
        for vectors in self.batches:
            for learner in self.learners:
                if learner.run.index == self.step:
                    self._train_on(learner, vectors)
            self.step += 1
            is_due = time.monotonic() - last >= self.checkpoint_every_s
            if is_due or self.step % self.config.checkpoint_every == 0 or self.step == self.steps:
                self.save_checkpoints()
                last = time.monotonic()
            if self.on_progress is not None:
                self.on_progress(self.step, self.steps)
        parallel.barrier()
        return [learner.run.sae() for learner in self.learners]

    def _train_on(self, learner: _Learner, vectors: Tensor) -> None:
        run = learner.run
        metrics = run.step(vectors[parallel.rank() :: parallel.world_size()])
        if run.bad_steps >= MAX_BAD_STEPS:
            raise AutointerpError(
                f"{run.spec.name}: the training loss was not a number for {MAX_BAD_STEPS} steps in a row (step "
                f"{run.index}): the activations hold NaN or infinite values, or train.lr is too high. "
                f"The last checkpoint is {learner.checkpoint}"
            )
        if parallel.is_first() and (run.index % self.log_every == 0 or run.index == self.steps):
            with learner.metrics.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": run.index, **metrics}) + "\n")
            if self.on_metrics is not None:
                self.on_metrics(run.spec.name, run.index, metrics)

    def save_checkpoints(self) -> None:
        """Write everything that the rest of each run depends on to one file, which replaces the last one as a whole."""
        if not parallel.is_first():
            return
        for learner in self.learners:
            run = learner.run
            if run.bad_steps == 0 and run.index == self.step:
                state = {**run.numbers(), "batches": self.batches.state(), "config": self._fingerprint(run)}
                files.write_tensors(learner.checkpoint, run.tensors(), state)

    def _fingerprint(self, run: SaeRun) -> dict[str, Any]:
        """The facts that must be equal for a checkpoint to be continued."""
        fields = dataclasses.asdict(self.config)
        del fields["checkpoint_every"]
        if self.config.cache is None:  # checkpoints from before there was a cache know nothing of it
            del fields["cache"], fields["cache_vectors"]
        else:
            fields["cache"] = "used"  # wherever it lies now
        if not self.config.longest:  # checkpoints from before long vectors were left out know nothing of it
            del fields["longest"]
        ours: dict[str, Any] = json.loads(json.dumps({**run.spec.fingerprint(), "d_in": run.d_in, **fields}))
        return ours

    def _restore(self, learner: _Learner) -> None:
        state: Any = files.read_state(learner.checkpoint)
        ours, found = self._fingerprint(learner.run), state["config"]
        other = [key for key in sorted(set(ours) | set(found)) if found.get(key) != ours.get(key)]
        if other:
            listed = ", ".join(f"{key} {found.get(key)} there, {ours.get(key)} here" for key in other)
            raise MismatchError(
                f"{learner.checkpoint} belongs to another configuration ({listed}); "
                "delete its folder to train anew, or go back to that configuration"
            )
        learner.run.restore(files.read_tensors(learner.checkpoint, self.device), state)
        learner.batches = state["batches"]
        if parallel.is_first():
            _cut_metrics(learner.metrics, learner.run.index)


def _cut_metrics(path: Path, step: int) -> None:
    """Remove the lines that a killed run wrote after its last checkpoint, and a line that it did not finish."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    files.write_atomically(path, lambda temporary: _write_text(temporary, "".join(kept)))


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
