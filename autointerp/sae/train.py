"""Training a TopK SAE on a stream of activation vectors.

The recipe:
- b_dec starts at the data's mean, and inputs are scaled so that their mean distance from it is sqrt(d_in); the scale is
  folded back into the weights afterwards. The distance rather than the norm, because in a residual stream with a large
  mean the norm says little about what there is to explain.
- Encoder rows start at 0.6 x the decoder's unit rows: at 1 the k strongest of many random directions overshoot x, and
  the first hundreds of steps go into undoing that; at 0.3 the rows found end up less pure (bench_train.py, max_cosine).
- Adam with linear warm-up and linear decay; before each step the decoder gradient's part along its rows is taken out,
  after it the rows are made unit again.
- A feature that has not fired for `dead_after` vectors gets AuxK. That fits it to the residual, whose scale is below
  that of the weakest active features, so alone it seldom brings one back: after another `dead_after` vectors b_enc is
  raised to where the feature is chosen again, and its Adam state, which AuxK's small gradients shaped, is replaced.

State goes to `checkpoint.safetensors` in the run's folder, metrics to `metrics.jsonl` beside it. A run continued from
its checkpoint gives the same losses as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.config import TrainConfig
from autointerp.errors import AutointerpError, InputError, MismatchError
from autointerp.sae import files, topk
from autointerp.sae.adam import Adam
from autointerp.sae.buffer import ActivationSource, ShuffledBatches
from autointerp.sae.codes import SparseCodes
from autointerp.sae.sae import Sae

ENCODER_SCALE = 0.6
ADAM_EPS = 6.25e-10  # Gao et al. 2024: gradients of rare features are far below Adam's usual 1e-8
WAKE_SHARE = 0.25  # of the average feature's density: how often a feature fires that is woken
MAX_BAD_STEPS = 3
STATISTICS_VECTORS = 32_768  # for the mean and the scale

Metrics = dict[str, float]


class SaeTrainer:
    """Trains one SAE in `folder`; continues from the checkpoint there, if there is one.

    `on_metrics(step, metrics)` is called with every line that goes to metrics.jsonl, `on_progress(step, steps)` after
    every step. Raises InputError (no vectors, impossible sizes), MismatchError (a checkpoint of another configuration),
    DamagedError (a checkpoint that cannot be read), DiskFullError, and AutointerpError when the loss is not a number
    three steps in a row; the last checkpoint is kept.
    """

    def __init__(
        self,
        source: ActivationSource,
        config: TrainConfig,
        *,
        d_sae: int,
        k: int,
        folder: Path,
        device: str | torch.device = "cpu",
        on_metrics: Callable[[int, Metrics], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        log_every: int = 50,
    ) -> None:
        if not 1 <= k <= d_sae:
            raise InputError(f"sae.k ({k}) must lie between 1 and the number of features, {d_sae}")
        self.config, self.k, self.d_sae, self.d_in = config, k, d_sae, source.d_in
        self.folder, self.device, self.log_every = folder, torch.device(device), log_every
        self.on_metrics, self.on_progress = on_metrics, on_progress
        self.steps = max(1, config.tokens // config.batch_size)
        self.step, self.bad_steps = 0, 0
        self.batches = ShuffledBatches(
            source,
            batch_size=config.batch_size,
            buffer_vectors=config.buffer_vectors,
            n_batches=self.steps,
            seed=config.seed,
        )
        self.since_fired = torch.zeros(d_sae, dtype=torch.int64, device=self.device)
        """Vectors since each feature last fired."""
        self.scale, self.variance = 1.0, 1.0
        if self.checkpoint_path.exists():
            self._restore()
        else:
            self._initialise()

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def train(self) -> Sae:
        """Run the steps that are left, and return the SAE in raw-input units."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.metrics_path.open("a", encoding="utf-8") as log:
            for vectors in self.batches:
                metrics = self._train_on(vectors)
                self.step += 1
                if self.step % self.log_every == 0 or self.step == self.steps:
                    log.write(json.dumps({"step": self.step, **metrics}) + "\n")
                    log.flush()
                    if self.on_metrics is not None:
                        self.on_metrics(self.step, metrics)
                due = self.step % self.config.checkpoint_every == 0 or self.step == self.steps
                if due and self.bad_steps == 0:
                    self.save_checkpoint()
                if self.on_progress is not None:
                    self.on_progress(self.step, self.steps)
        return self.sae()

    def sae(self) -> Sae:
        """The SAE as it stands, the input scaling folded back: features then have raw-input units.

        With x' = s x: W (s x - b_dec') + b_enc' = s (W (x - b_dec'/s) + b_enc'/s), and the decoder divides by s.
        """
        weights = self.weights
        return Sae(
            weights.encoder.T.clone(),
            weights.b_enc / self.scale,
            weights.decoder.clone(),
            weights.b_dec / self.scale,
            k=self.k,
        ).to("cpu")

    def learning_rate(self, step: int) -> float:
        """Of the step with that index: linear warm-up, constant, linear decay towards zero."""
        peak = default_lr(self.d_sae) if self.config.lr is None else self.config.lr
        warmup = min(self.config.warmup_steps, self.steps // 5)
        decay = self.config.decay_share * self.steps
        up = min(1.0, (step + 1) / warmup) if warmup else 1.0
        down = min(1.0, (self.steps - step) / decay) if decay else 1.0
        return peak * min(up, down)

    def _train_on(self, vectors: Tensor) -> Metrics:
        config, weights = self.config, self.weights
        x = vectors.to(self.device, torch.float32) * self.scale
        dead = (self.since_fired >= config.dead_after).nonzero().squeeze(1)
        auxk = topk.AuxK(dead, max(1, self.d_in // 2), config.auxk_alpha) if config.auxk_alpha and len(dead) else None
        result = topk.step_gradients(weights, x, self.k, self.variance, auxk)
        lr, loss = self.learning_rate(self.step), float(result.loss)
        if math.isfinite(loss):
            self.bad_steps = 0
            topk.project(result.gradients.decoder, weights.decoder)
            self.optimizer.step(result.gradients.named(), lr)
            topk.normalise_rows(weights.decoder)
            if auxk is not None:
                self._wake(x, result.active)
            self.since_fired.add_(len(x)).masked_fill_(result.fired > 0, 0)
        else:  # no update: one bad vector must not spoil the weights
            self.bad_steps += 1
            if self.bad_steps >= MAX_BAD_STEPS:
                raise AutointerpError(
                    f"the training loss was not a number for {MAX_BAD_STEPS} steps in a row (step {self.step + 1}): "
                    "the activations hold NaN or infinite values, or train.lr is too high. "
                    f"The last checkpoint is {self.checkpoint_path}"
                )
        return {
            "loss": loss,
            "reconstruction": float(result.reconstruction),
            "auxk": float(result.auxiliary),
            "l0": float(result.fired.sum()) / len(x),
            "dead": float(len(dead)) / self.d_sae,
            "lr": lr,
            "vectors": float((self.step + 1) * config.batch_size),
        }

    def _wake(self, x: Tensor, active: SparseCodes) -> None:
        """Bring back what AuxK has had another `dead_after` vectors to fit."""
        asleep = (self.since_fired >= 2 * self.config.dead_after).nonzero().squeeze(1)
        if len(asleep):
            wins = max(1, round(WAKE_SHARE * len(x) * self.k / self.d_sae))
            topk.wake(self.weights, x, active, self.k, asleep, wins)
            self.optimizer.forget(("encoder", "b_enc", "decoder"), asleep)

    def _initialise(self) -> None:
        block = self.batches.block()[:STATISTICS_VECTORS].to(self.device, torch.float32)
        block = block[block.isfinite().all(1)]
        if len(block) == 0:
            raise InputError("every activation vector of the first block holds NaN or infinite values")
        mean = block.mean(0)
        squared = (block - mean).square().sum(1)
        distance = float(squared.sqrt().mean())
        self.scale = math.sqrt(self.d_in) / distance if distance > 0 else 1.0
        variance = float(squared.mean()) * self.scale**2
        self.variance = variance if variance > 0 else 1.0
        generator = torch.Generator().manual_seed(self.config.seed)
        decoder = F.normalize(torch.randn(self.d_sae, self.d_in, generator=generator), dim=1).to(self.device)
        self._set_weights(
            topk.TopkWeights(
                encoder=decoder * ENCODER_SCALE,
                b_enc=torch.zeros(self.d_sae, device=self.device),
                decoder=decoder,
                b_dec=mean * self.scale,
            )
        )

    def _set_weights(self, weights: topk.TopkWeights) -> None:
        self.weights = weights
        self.optimizer = Adam(weights.named(), eps=ADAM_EPS)

    def _fingerprint(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued."""
        fields = dataclasses.asdict(self.config)
        del fields["checkpoint_every"]
        return {"d_in": self.d_in, "d_sae": self.d_sae, "k": self.k, **fields}

    def save_checkpoint(self) -> None:
        """Everything the rest of the run depends on, in one file that replaces the last one whole."""
        tensors = {"since_fired": self.since_fired, **self.weights.named(), **self.optimizer.state()}
        state = {
            "step": self.step,
            "scale": self.scale,
            "variance": self.variance,
            "batches": self.batches.state(),
            "config": self._fingerprint(),
        }
        files.write_tensors(self.checkpoint_path, tensors, state)

    def _restore(self) -> None:
        state: Any = files.read_state(self.checkpoint_path)
        ours = self._fingerprint()
        other = [key for key in ours if state["config"].get(key) != ours[key]]
        if other:
            listed = ", ".join(f"{key} {state['config'].get(key)} there, {ours[key]} here" for key in other)
            raise MismatchError(
                f"{self.checkpoint_path} belongs to another configuration ({listed}); "
                "delete its folder to train anew, or go back to that configuration"
            )
        # cloned: tensors read from a file are not aligned like allocated ones, and the last bit of a matrix product
        # depends on the alignment
        tensors = {name: t.clone() for name, t in files.read_tensors(self.checkpoint_path, self.device).items()}
        names = ("encoder", "b_enc", "decoder", "b_dec")
        self._set_weights(topk.TopkWeights(**{name: tensors[name] for name in names}))
        self.optimizer.restore(tensors)
        self.since_fired = tensors["since_fired"]
        self.step, self.scale, self.variance = int(state["step"]), state["scale"], state["variance"]
        self.batches.restore(state["batches"])
        _cut_metrics(self.metrics_path, self.step)


def default_lr(d_sae: int) -> float:
    """7e-4 / sqrt(d_sae / 2^14): the field's scaling with width (Gao et al. 2024), 3.5 times the usual rate because
    this trainer's runs are thousands of steps rather than hundreds of thousands."""
    return 7e-4 / math.sqrt(d_sae / 2**14)


def _cut_metrics(path: Path, step: int) -> None:
    """Take out the lines a killed run wrote after its last checkpoint, and a line it did not finish."""
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


def train(source: ActivationSource, config: TrainConfig, **settings: Any) -> Sae:
    """`SaeTrainer(source, config, **settings).train()`."""
    return SaeTrainer(source, config, **settings).train()
