"""One SAE or transcoder in training: its weights, its optimiser, and one step. The loop is in trainer.py.

Every family is trained in this way:
- b_dec starts at the mean of the vectors to reconstruct. Vectors are scaled so that their mean distance from it is
  sqrt(d), and the scale is folded back into the weights afterwards. The distance is used instead of the norm because
  in a residual stream with a large mean the norm says little about what there is to explain.
- Encoder rows start at 0.6 x the decoder's unit rows. At 1 the strongest of many random directions overshoot, and the
  first hundreds of steps go into undoing that; at 0.3 the learned rows end up less pure (bench_train.py, max_cosine).
- Adam has linear warm-up and linear decay. Before each step the decoder gradient's part along the decoder's rows is
  removed; after it the rows are normalised again (unless the penalty is weighted by their norms, which are then free).
- dead.py revives dead features.
- A control leaves a part of the weights as it was drawn (frozen.py).
- Vectors far longer than the others are left out (long_vectors.py).
- The parts of joined vectors are balanced (balance.py).
- Families with a penalty start sparse (`_sparse_start`).
- Unless a penalty's weight is fixed, the number of active features steers it, on the logarithm of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.config import TrainConfig
from autointerp.errors import InputError, MismatchError
from autointerp.sae import balance, dead, entries, frozen, parallel
from autointerp.sae.adam import Adam
from autointerp.sae.codes import SparseCodes, row_blocks
from autointerp.sae.entries import Pairs
from autointerp.sae.families import Family, Step, family_named
from autointerp.sae.long_vectors import LIMIT, is_ordinary, limit_of
from autointerp.sae.sae import Sae

ENCODER_SCALE = 0.6
ADAM_EPS = 6.25e-10  # Gao et al. 2024: gradients of rare features are far below Adam's usual 1e-8
WAKE_SHARE = 0.25  # how often a woken feature fires, as a share of the average feature's density
STEER_SPEED, STEER_HOLD = 0.01, 0.3
"""A penalty's log weight is an integral, which moves by SPEED x log(L0 / k) a step, plus HOLD x log(L0 / k)."""
SPARSE_START, SPARSE_START_VECTORS = 4, 4096
STATISTICS_VECTORS = 32_768  # for the means and the scales

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class SaeSpec:
    """The SAE that one [[sae]] table asks for."""

    name: str
    architecture: str
    d_sae: int
    k: int
    inputs: tuple[int, int] | None = None
    """The columns of the source's vectors that the SAE reads: the first, and the one after the last; None for all."""
    outputs: tuple[int, int] | None = None
    """The columns that a transcoder reconstructs; None for those that it reads."""
    skip: bool = False
    """Whether a transcoder has a linear path beside the features."""
    penalty: float | None = None
    """Weight of the penalty; if None, it is steered towards k active features."""
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    """The family's own settings: prefixes, p_end, bandwidth, first_threshold, decoder_norm_penalty."""
    frozen: str | None = None
    """What stays as it was drawn (frozen.py); None: nothing."""
    parts_in: tuple[int, ...] = ()
    """The widths of the parts of what it reads, where that is joined;"""
    parts_out: tuple[int, ...] = ()
    """and of what a transcoder reconstructs."""

    def fingerprint(self) -> dict[str, Any]:
        """The facts that must be equal for a checkpoint to be continued."""
        columns = [self.inputs, self.outputs]
        return {
            "architecture": self.architecture, "d_sae": self.d_sae, "k": self.k, "columns": columns, "skip": self.skip,
            "penalty": self.penalty, "init_seed": self.seed, "frozen": self.frozen, **self.settings,
            **({"parts": [self.parts_in, self.parts_out]} if self.parts_in or self.parts_out else {}),
        }  # fmt: skip


DEFAULTS: dict[str, Any] = {
    "prefixes": [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0],
    "p_end": 0.2,
    "bandwidth": 0.5,
    "first_threshold": 0.5,
    "decoder_norm_penalty": False,
}
"""The defaults of SaeSpec.settings. Bandwidth and threshold are in units of scaled vectors, whose length is sqrt(d)."""


class SaeRun:
    """Trains one SAE. Call `begin` with the first vectors, or `restore`; then call `step` for every batch.

    Raises InputError for an unknown family or impossible sizes.
    """

    def __init__(self, spec: SaeSpec, config: TrainConfig, width: int, steps: int, device: torch.device) -> None:
        self.spec, self.config, self.steps, self.device = spec, config, steps, device
        self.inputs = slice(*(spec.inputs or (0, width)))
        self.outputs = slice(*(spec.outputs or (0, width)))
        self.d_in = self.inputs.stop - self.inputs.start
        self.d_out = self.d_in if spec.outputs is None else self.outputs.stop - self.outputs.start
        if not 1 <= spec.k <= spec.d_sae:
            raise InputError(f"sae.k ({spec.k}) must lie between 1 and the number of features, {spec.d_sae}")
        if spec.skip and spec.outputs is None:
            raise InputError("sae.skip is the linear path of a transcoder; set sae.output_hookpoint too")
        self.settings = DEFAULTS | spec.settings
        self.family: Family = family_named(spec.architecture)(spec.k, spec.d_sae, self.d_out, self.settings)
        self.untrained = frozen.untrained(spec.frozen)
        has_free_rows = self.settings["decoder_norm_penalty"] or "encoder" in self.untrained
        self.has_unit_rows = "decoder" in self.untrained or not has_free_rows
        self.start: Tensor | None = None
        """[d_sae, d_out]: where the decoder's rows began, if they have to stay near it."""
        self.index = 0
        self.state = {name: t.to(device) for name, t in self.family.state().items()}
        self.since_fired = torch.zeros(spec.d_sae, dtype=torch.int64, device=device)
        """[d_sae]: number of vectors since each feature was last active."""
        self.scale_in, self.scale_out, self.variance = 1.0, 1.0, 1.0
        self.longest: float | None = None
        """Inputs that are longer are not trained on."""
        self.balance_in: Tensor | None = None
        """[d_in]: by what the parts of joined inputs are multiplied;"""
        self.balance_out: Tensor | None = None
        """[d_out]: and those of what is reconstructed."""
        self.strength = self._base = self.family.first_strength if spec.penalty is None else spec.penalty
        self.bad_steps = 0

    # --- before the first step -------------------------------------------------------------------------------------

    def begin(self, vectors: Tensor) -> None:
        """Set weights, means and scales from the first vectors [n, width]. Raises InputError if no vector is finite."""
        vectors = vectors[:STATISTICS_VECTORS].to(self.device, torch.float32)
        vectors = vectors[vectors.isfinite().all(1)]
        if len(vectors) == 0:
            raise InputError("every activation vector of the first block holds NaN or infinite values")
        self.longest = limit_of(self._sides(vectors)[0], self.config.longest)
        x, y = self._ordinary(vectors)
        if self.spec.parts_in:
            self.balance_in = balance.factors(x, self.spec.parts_in)
        if self.spec.parts_out:
            self.balance_out = balance.factors(y, self.spec.parts_out)
        x, y = self._balanced(x, y)
        mean_in, mean_out = x.mean(0), y.mean(0)
        self.scale_in, self.scale_out = _scale(x - mean_in), _scale(y - mean_out)
        variance = float((y - mean_out).square().sum(1).mean()) * self.scale_out**2
        self.variance = variance if variance > 0 else 1.0
        generator = torch.Generator().manual_seed(self.spec.seed)
        decoder = F.normalize(torch.randn(self.spec.d_sae, self.d_out, generator=generator), dim=1)
        encoder = decoder.clone() if self.spec.outputs is None else F.normalize(
            torch.randn(self.spec.d_sae, self.d_in, generator=generator), dim=1
        )  # fmt: skip
        weights = {
            "encoder": encoder.mul_(ENCODER_SCALE),
            "b_enc": torch.zeros(self.spec.d_sae),
            "decoder": decoder,
            "b_dec": mean_out * self.scale_out,
        }
        if self.spec.skip:
            weights["W_skip"] = torch.zeros(self.d_in, self.d_out)
        if self.spec.frozen == frozen.SOFT:
            self.start = decoder.clone().to(self.device)
        self.mean_in = mean_in * self.scale_in
        if self.family.has_penalty:
            weights["b_enc"] = self._sparse_start((x - mean_in)[:SPARSE_START_VECTORS] * self.scale_in, weights)
        self._set_weights(weights | self.family.extra())

    def _sparse_start(self, centred: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """The b_enc with which SPARSE_START x k features are active on average, all equally often. With b_enc = 0, half
        of all features are active, and a penalty spends its first hundreds of (dense) steps on silencing them."""
        share = min(0.5, SPARSE_START * self.spec.k / self.spec.d_sae)
        n_active = max(1, round(share * len(centred)))
        parts = [
            (centred @ rows.to(centred.device).T).topk(n_active, dim=0).values[-1]
            for rows in weights["encoder"].split(4096)
        ]
        return torch.cat(parts).neg().cpu() + self.family.start

    def _sides(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        x = vectors[:, self.inputs]
        return x, x if self.spec.outputs is None else vectors[:, self.outputs]

    def _ordinary(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides of the vectors whose input is not far longer than that of others."""
        x, y = self._sides(vectors)
        if self.longest is None:
            return x, y
        kept = is_ordinary(x, self.longest)
        return (x, y) if bool(kept.all()) else (x[kept], y[kept])

    def _balanced(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x if self.balance_in is None else x * self.balance_in
        if self.spec.outputs is None:
            return x, x
        return x, y if self.balance_out is None else y * self.balance_out

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        on_device = {name: tensor.to(self.device).contiguous() for name, tensor in weights.items()}
        self.weights = {n: t.requires_grad_(n not in self.untrained) for n, t in on_device.items()}
        self.trained = {n: t for n, t in self.weights.items() if t.requires_grad}
        self.optimizer = Adam({n: t.detach() for n, t in self.trained.items()}, eps=ADAM_EPS)

    # --- one step --------------------------------------------------------------------------------------------------

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step with this index: linear warm-up, constant, linear decay towards zero."""
        peak = default_lr(self.spec.d_sae) if self.config.lr is None else self.config.lr
        warmup = min(self.config.warmup_steps, self.steps // 5)
        decay = self.config.decay_share * self.steps
        up = min(1.0, (step + 1) / warmup) if warmup else 1.0
        down = min(1.0, (self.steps - step) / decay) if decay else 1.0
        return peak * min(up, down)

    def step(self, vectors: Tensor) -> Metrics:
        """Train on this process's part [n, width] of a batch. A batch whose loss is not a number changes only
        `bad_steps`."""
        x, y = self._balanced(*self._ordinary(vectors.to(self.device, torch.float32)))
        x = x * self.scale_in
        y = x if self.spec.outputs is None else y * self.scale_out
        plain = {name: tensor.detach() for name, tensor in self.weights.items()}
        b_pre = self.weights["b_dec"] if self.spec.outputs is None else self.mean_in
        centred = x - b_pre.detach()
        with torch.no_grad():
            active = self.family.choose(self._pre_blocks(centred, plain), plain, self.state)
        step = self._prepared(active, centred, y, b_pre)
        loss = self.family.loss(step)
        gradients = dict(zip(self.trained, torch.autograd.grad(loss.total, list(self.trained.values())), strict=True))
        acts, residual = loss.acts.detach(), loss.residual.detach()
        dead_features = (self.since_fired >= self.config.dead_after).nonzero().squeeze(1)
        auxiliary = torch.zeros((), device=self.device)
        if self.config.auxk_alpha and len(dead_features):
            k_aux = max(1, self.d_out // 2)
            auxiliary = dead.add_auxk(gradients, plain, centred, residual, dead_features, k_aux, self.config.auxk_alpha)
        figures = torch.stack([loss.total.detach() + self.config.auxk_alpha * auxiliary, loss.reconstruction.detach(),
                               auxiliary, (acts > 0).sum() / len(x)])  # fmt: skip
        parallel.average([figures])
        total, reconstruction, auxk, l0 = figures.tolist()
        lr, strength = self.learning_rate(self.index), self.strength
        if math.isfinite(total):
            self.bad_steps = 0
            self._update(gradients, plain, lr)
            if self.config.auxk_alpha and len(dead_features):
                self._wake(plain, x - plain["b_dec"] if self.spec.outputs is None else centred, active)
            fired = parallel.total(_active_counts(step.pairs, acts))
            self.since_fired.add_(parallel.total_rows(len(x), self.device)).masked_fill_(fired > 0, 0)
            self._steer(l0)
        else:  # no update: one bad vector must not spoil the weights
            self.bad_steps += 1
        self.index += 1
        metrics = {
            "loss": total, "reconstruction": reconstruction, "auxk": auxk, "l0": l0,
            "dead": len(dead_features) / self.spec.d_sae, "lr": lr,
            "vectors": float(self.index * self.config.batch_size),
        }  # fmt: skip
        return metrics | ({"penalty": strength} if self.family.has_penalty else {})

    def _pre_blocks(self, centred: Tensor, weights: dict[str, Tensor]) -> Any:
        encoder, b_enc = weights["encoder"], weights["b_enc"]
        if self.config.precision == "bfloat16" or (self.config.precision == "auto" and centred.is_cuda):
            encoder, b_enc = encoder.bfloat16(), b_enc.bfloat16()  # once a step, where autocast would for every block
        for block in row_blocks(centred, self.spec.d_sae):
            yield F.linear(block.to(encoder.dtype), encoder, b_enc).float()

    def _prepared(self, active: SparseCodes, centred: Tensor, y: Tensor, b_pre: Tensor) -> Step:
        weights = self.weights
        pairs = Pairs.of(active, self.spec.d_sae)
        pre = entries.pre_activations(pairs, active.values, centred, weights["encoder"], weights["b_enc"], b_pre)
        target = y - weights["b_dec"]
        if self.spec.skip:
            target = target - centred @ weights["W_skip"]
        return Step(
            weights=weights,
            pairs=pairs,
            pre=pre,
            target=target,
            frozen_target=target.detach(),
            variance=self.variance,
            strength=self.strength,
            progress=self.index / max(1, self.steps - 1),
        )

    def _update(self, gradients: dict[str, Tensor], weights: dict[str, Tensor], lr: float) -> None:
        parallel.average(gradients.values())
        fits_unit_rows = self.has_unit_rows and "decoder" in gradients
        if fits_unit_rows:
            _project(gradients["decoder"], weights["decoder"])
        self.optimizer.step({name: g.contiguous() for name, g in gradients.items()}, lr)
        if fits_unit_rows:
            _normalise_rows(weights["decoder"])
        if self.start is not None:
            frozen.keep_near(weights["decoder"], self.start)

    def _wake(self, weights: dict[str, Tensor], centred: Tensor, active: SparseCodes) -> None:
        """Wake the features that are still dead after AuxK has had another `dead_after` vectors to fit them."""
        asleep = (self.since_fired >= 2 * self.config.dead_after).nonzero().squeeze(1)
        if len(asleep):
            n = parallel.total_rows(len(centred), self.device)
            wins = max(1, round(WAKE_SHARE * n * self.spec.k / self.spec.d_sae))
            dead.wake(weights, centred, self.family.bar(weights, active, asleep), asleep, wins)
            self.optimizer.forget([n for n in ("encoder", "b_enc", "decoder") if n in self.trained], asleep)

    def _steer(self, l0: float) -> None:
        if not self.family.has_penalty or self.spec.penalty is not None or self.index < self.config.warmup_steps // 4:
            return
        error = max(-1.0, min(1.0, math.log(max(l0, 1e-3) / self.spec.k)))
        self._base *= math.exp(STEER_SPEED * error)
        self.strength = self._base * math.exp(STEER_HOLD * error)

    # --- the result ------------------------------------------------------------------------------------------------

    def sae(self) -> Sae:
        """The current SAE with the scaling folded back, so that its features have the units of what it reconstructs.

        With x' = s x and y' = t y: f = f'/t, so W_enc = s/t W'; b_enc, threshold and b_dec are divided by t.
        """
        weights = {name: tensor.detach() for name, tensor in self.weights.items()}
        s, t = self.scale_in, self.scale_out if self.spec.outputs is not None else self.scale_in
        choice = self.family.choice(weights, self.state)
        encoder, b_enc = choice.pop("encoder", weights["encoder"]), choice.pop("b_enc", weights["b_enc"])
        threshold = choice.get("threshold")
        decoder, norms = weights["decoder"], weights["decoder"].norm(dim=1)
        if not self.has_unit_rows:  # the activations take over the rows' norms; a choice of k precedes that
            if threshold is not None:
                encoder, b_enc, threshold = encoder * norms.unsqueeze(1), b_enc * norms, threshold * norms
            else:
                choice["row_norms"] = norms
            decoder = decoder / norms.clamp_min(1e-12).unsqueeze(1)
        b_dec, b_pre, W_skip = weights["b_dec"] / t, None, None
        if self.spec.outputs is not None:
            b_pre = self.mean_in / s
            if self.spec.skip:
                W_skip = weights["W_skip"] * (s / t)
                b_dec = b_dec - b_pre @ W_skip
        if threshold is not None:
            choice["threshold"] = threshold / t
        found = Sae(
            (encoder.T * (s / t)).clone(), b_enc / t, decoder.clone(), b_dec,
            architecture=self.spec.architecture, b_pre=b_pre, W_skip=W_skip, **choice,
        ).to("cpu")  # fmt: skip
        if self.balance_in is not None or self.balance_out is not None:
            read = torch.ones(self.d_in) if self.balance_in is None else self.balance_in
            other = torch.ones(self.d_out) if self.balance_out is None else self.balance_out
            found = balance.undone(found, read, read if self.spec.outputs is None else other)
        if self.longest is not None:
            found.metadata[LIMIT] = self.longest
        return found

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that, with `numbers`, determine the rest of the run."""
        state = {f"state.{name}": tensor for name, tensor in self.state.items()}
        held = {name: tensor.detach() for name, tensor in self.weights.items()}
        start = {} if self.start is None else {"start": self.start}
        more = {"since_fired": self.since_fired, "mean_in": self.mean_in, **start}
        balances = (("balance_in", self.balance_in), ("balance_out", self.balance_out))
        more |= {name: tensor for name, tensor in balances if tensor is not None}
        return {**more, **held, **self.optimizer.state(), **state}

    def numbers(self) -> dict[str, Any]:
        """The numbers that, with `tensors`, determine the rest of the run. They are JSON-able."""
        return {
            "step": self.index, "scale_in": self.scale_in, "scale_out": self.scale_out, "variance": self.variance,
            "strength": self.strength, "base": self._base, "longest": self.longest,
        }  # fmt: skip

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        # cloned: tensors read from a file are not aligned like allocated ones, and the last bit of a matrix product
        # depends on the alignment
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        names = ["encoder", "b_enc", "decoder", "b_dec", *(["W_skip"] if self.spec.skip else []), *self.family.extra()]
        needed = [*names, *(["start"] if self.spec.frozen == frozen.SOFT else [])]
        needed += ["balance_in"] if self.spec.parts_in else []
        needed += ["balance_out"] if self.spec.parts_out else []
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise MismatchError(f"the checkpoint lacks {', '.join(missing)}; delete its folder to train anew")
        self._set_weights({name: tensors[name] for name in names})
        self.optimizer.restore(tensors)
        self.since_fired, self.mean_in = tensors["since_fired"], tensors["mean_in"]
        self.start = tensors["start"] if self.spec.frozen == frozen.SOFT else None
        self.balance_in, self.balance_out = tensors.get("balance_in"), tensors.get("balance_out")
        self.state = {name: tensors[f"state.{name}"] for name in self.state}
        self.index = int(numbers["step"])
        self.scale_in, self.scale_out = numbers["scale_in"], numbers["scale_out"]
        self.variance, self.strength, self._base = numbers["variance"], numbers["strength"], numbers["base"]
        self.longest = numbers.get("longest")


def default_lr(d_sae: int) -> float:
    """7e-4 / sqrt(d_sae / 2^14). The scaling with width is that of Gao et al. 2024; the rate is 3.5 times the usual one
    because this trainer's runs take thousands of steps, not hundreds of thousands."""
    return 7e-4 / math.sqrt(d_sae / 2**14)


def _scale(centred: Tensor) -> float:
    distance = float(centred.norm(dim=1).mean())
    return math.sqrt(centred.shape[1]) / distance if distance > 0 else 1.0


def _active_counts(pairs: Pairs, acts: Tensor) -> Tensor:
    """[d_sae]: the number of vectors on which each feature is active."""
    return torch.bincount(pairs.features[acts > 0], minlength=pairs.d_sae)


@torch.no_grad()
def _project(gradient: Tensor, decoder: Tensor) -> None:
    """Remove from each row of `gradient`, in place, its part along the unit row of `decoder`. The norm is fixed, so
    that part would only feed the optimiser's averages."""
    gradient.addcmul_(torch.linalg.vecdot(gradient, decoder).unsqueeze(1), decoder, value=-1)


@torch.no_grad()
def _normalise_rows(decoder: Tensor) -> None:
    """Scale the rows to unit norm, in place."""
    decoder.div_(torch.linalg.vector_norm(decoder, dim=1, keepdim=True).clamp_min_(1e-12))
