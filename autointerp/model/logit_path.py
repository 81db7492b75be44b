"""Finds how a vector at a hookpoint reaches the logits, by running the model.

    vector -> carry: modules that read it alone -> residual stream -> tail: final norm and projection -> unembedding

Nothing is taken from the names of modules. The tail is followed backwards from what the unembedding reads. Whether the
vectors of a hookpoint are in the residual stream is tried: random vectors so long that all else in the stream is
nothing beside them are written there, and the logits must then be what tail and unembedding make of these vectors. That
holds for blocks which read the stream through a norm, so their own outputs stay small. Where it does not hold, but one
module alone reads the tensor and keeps directions apart (an output projection, a norm after the MLP), the vectors are
carried through it, and what it returns is tried in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from autointerp.errors import AutointerpError, NoProjection
from autointerp.model.hooks import Hookpoint, hooked
from autointerp.model.load import LoadedModel
from autointerp.model.module_calls import ModuleCall, applied, calls_before, keeps_directions, less_zero

T = TypeVar("T")

DIRECTIONS = 8
"""Random vectors that are tried."""
LENGTH = {torch.float16: 1e3}
"""Root mean square of the shortest of them, by the model's dtype;"""
USUAL_LENGTH = 1e7
"""in the others."""
SAMPLED_LOGITS = 4096
"""Logits that are compared."""
MOST_MODULES = 4
"""Modules of a tail, or of a carry."""


@dataclass(frozen=True, slots=True)
class LogitPath:
    """The way of the vectors at a hookpoint to the logits."""

    carry: tuple[nn.Module, ...]
    """What leads them into the residual stream; () where they are in it."""
    tail: tuple[nn.Module, ...]
    """What leads the stream to the unembedding: mostly the final norm."""
    head: nn.Module
    """The unembedding, whose `weight` is [n_logits, width of what it reads]."""
    scale: float
    """What the model multiplies logits by, besides."""
    width: int
    """The width of the vectors."""
    dtype: torch.dtype
    names: tuple[str, ...]
    """The modules of carry and tail, then the unembedding, as the model calls them."""

    @torch.no_grad()
    def hidden(self, directions: Tensor, *, keep_bias: bool = False) -> Tensor:
        """What the unembedding reads of directions [n, width], less what it reads of 0 (or, with `keep_bias`, with the
        final norm's bias), times `scale`: float32 [n, width of the unembedding]."""
        x = directions
        for module in self.carry:
            x = less_zero(module, x, self.dtype)
        for module in self.tail:
            x = applied(module, x, self.dtype) if keep_bias else less_zero(module, x, self.dtype)
        x = x.to(self.head.weight.device).float()  # type: ignore[arg-type]
        return x if self.scale == 1 else x * self.scale

    def __str__(self) -> str:
        times = "" if self.scale == 1 else f", times {self.scale:.4g}"
        return " -> ".join(self.names) + times


def find_logit_path(loaded: LoadedModel, point: Hookpoint) -> LogitPath:
    """The way of the vectors at `point` to the logits. Raises NoProjection, with the reason, where there is none that
    could be followed, and InputError where the model has no such module."""
    return _followed(loaded, point, lambda finder: finder.find())


def find_stream_end(loaded: LoadedModel) -> Hookpoint:
    """Where the residual stream ends: before the final norm, or before the unembedding where no module in front of it
    keeps directions apart. Raises NoProjection where the model has no unembedding that could be followed."""
    head = Hookpoint(_head(loaded.model)[1], "in")
    return _followed(loaded, head, lambda finder: Hookpoint(finder.tail[0].name, "in") if finder.tail else head)


def _followed(loaded: LoadedModel, point: Hookpoint, work: Callable[[_Finder], T]) -> T:
    try:
        with torch.no_grad():
            return work(_Finder(loaded, point))
    except (AutointerpError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001  # the code of any architecture runs here, on inputs of an unusual size
        reason = (str(error).strip().splitlines() or [""])[0]
        raise NoProjection(
            f"{type(loaded.model).__name__} cannot be followed from {point} to its logits ({type(error).__name__}: "
            f"{reason})"
        ) from error


class _Finder:
    def __init__(self, loaded: LoadedModel, point: Hookpoint) -> None:
        self.loaded, self.point, self.kind = loaded, point, type(loaded.model).__name__
        exact = loaded.dtype == torch.float32
        self.tolerance = 1e-3 if exact else 2e-2
        self.agreed = 1e-2 if exact else 5e-2
        """How far logits may be from what is expected, as a share of their length."""
        self.equal = 1e-5 if exact else 1e-2
        """How far apart, as a share of the largest, two tensors may be that count as the same one times a number."""
        self.head, self.head_path = _head(loaded.model)
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        n = len(weight)
        self.sample = torch.linspace(0, n - 1, min(n, SAMPLED_LOGITS)).long().to(weight.device)
        self.rows = weight.detach()[self.sample].float()
        self.generator = torch.Generator().manual_seed(0)
        self.text = [n // 3, n // 2]
        """What the model reads. All is written and read on the second token: many models write very long vectors on a
        first one."""
        pad = loaded.pad_id
        ids = [i for i in range(min(n, DIRECTIONS + 1)) if i != pad]
        tokens = torch.tensor(ids, device=loaded.device)[:, None]
        self.calls, read = calls_before(loaded.model, Hookpoint(self.head_path, "in"), tokens)
        if not read.numel():
            raise NoProjection(f"{self.kind} does not run its output embedding {self.head_path}")
        self.bent: ModuleCall | None = None
        """A module on the way to the unembedding that is not linear."""
        self.tail = self._followed_back(read)
        self.scale = self._scale_of_logits(n)

    def find(self) -> LogitPath:
        carry: list[ModuleCall] = []
        at = self.point
        while True:
            found = self._in_stream(at)
            if found is not None:
                tail, factor, width = found
                names = (*(call.name for call in (*carry, *tail)), self.head_path)
                return LogitPath(
                    tuple(call.module for call in carry),
                    tuple(call.module for call in tail),
                    self.head,
                    self.scale * factor,
                    carry[0].read_values.shape[1] if carry else width,
                    self.loaded.dtype,
                    names,
                )
            if len(carry) == MOST_MODULES:
                raise NoProjection(f"what {self.point} holds does not reach the residual stream of {self.kind}")
            carry.append(self._only_reader(at))
            at = Hookpoint(carry[-1].name)

    # --- the tail ---------------------------------------------------------------------------------------------------

    def _followed_back(self, read: Tensor) -> list[ModuleCall]:
        """The modules that lead to `read`, what the unembedding reads, as far back as they keep directions apart."""
        tail: list[ModuleCall] = []
        while len(tail) < MOST_MODULES:
            # The first call that returned it: later ones only hand it on.
            call = next((call for call in self.calls if _are_multiples(call.returned_values, read, self.equal)), None)
            if call is None or not call.is_leaf or call in tail:
                break
            if not self._keeps_directions(call):
                self.bent = call
                break
            tail.insert(0, call)
            read = call.read_values
        return tail

    def _keeps_directions(self, call: ModuleCall) -> bool:
        return keeps_directions(call, self.loaded.dtype, self.tolerance)

    # --- the stream -------------------------------------------------------------------------------------------------

    def _in_stream(self, at: Hookpoint) -> tuple[list[ModuleCall], float, int] | None:
        """(tail, what it makes of vectors is to be multiplied by this, their width) where vectors at `at` reach the
        unembedding through the tail, or through its later modules alone; None where they do not."""
        x = self._vectors(self._width(at), LENGTH.get(self.loaded.dtype, USUAL_LENGTH))
        real = self._logits(at, x)
        real = real - real.mean(1, keepdim=True)
        for start in range(len(self.tail) + 1):
            tail = self.tail[start:]
            reads = tail[0].read_values.shape[1] if tail else self.rows.shape[1]
            if reads != x.shape[1]:
                continue
            hidden = x
            for call in tail:
                hidden = less_zero(call.module, hidden, self.loaded.dtype)
            expected = hidden.to(self.rows.device) @ self.rows.T
            factor = _common_factor(expected - expected.mean(1, keepdim=True), real, self.agreed)
            if factor is not None:
                return tail, factor, x.shape[1]
        return None

    def _only_reader(self, at: Hookpoint) -> ModuleCall:
        """The call of the only module that reads what is at `at`. Raises NoProjection where it is not the only one, or
        does not keep directions apart."""
        if at.side == "in":
            readers = [call for call in self.calls if call.name == at.path]
        else:
            held = next((call.returned for call in self.calls if call.name == at.path), None)
            own = f"{at.path}."
            readers = [] if held is None else [call for call in self.calls if call.reads(held)]
            readers = [call for call in readers if call.name != at.path and not call.name.startswith(own)]
        if not readers:
            raise self._refused(at, "no module reads it as it is, and what it goes into does not keep it")
        # A container begins before, and ends after, the modules that it hands the tensor on to.
        outer = readers[-1]
        if not all(call.name == outer.name or call.name.startswith(f"{outer.name}.") for call in readers):
            names = dict.fromkeys(call.name for call in readers)
            raise self._refused(at, f"{len(names)} modules read it ({', '.join(list(names)[:3])})")
        if not outer.is_leaf or not self._keeps_directions(outer):
            raise self._refused(at, f"it is read by {outer.name} ({type(outer.module).__name__}), which is not linear")
        x = self._vectors(outer.read_values.shape[1], 1)
        past = self._logits(at, x, silenced=Hookpoint(outer.name))
        if not past.abs().amax() <= self.tolerance * self._logits(at, x).abs().amax():
            raise self._refused(at, f"{outer.name} is not all that reads it")
        return outer

    def _refused(self, at: Hookpoint, reason: str) -> NoProjection:
        if self.bent is not None:
            reason = f"{self.bent.name} ({type(self.bent.module).__name__}), before the unembedding, is not linear"
        through = "" if at == self.point else f" (carried to {at})"
        return NoProjection(
            f"what {self.point} of {self.kind} holds{through} is not part of the residual stream that its final norm "
            f"and unembedding read: {reason}"
        )

    # --- runs of the model ------------------------------------------------------------------------------------------

    def _run(self, n: int, hooks: Sequence[Any]) -> Any:
        ids = torch.tensor([self.text] * n, device=self.loaded.device)
        with ExitStack() as stack:
            for hook in hooks:
                stack.enter_context(hook)
            return self.loaded.model(input_ids=ids, use_cache=False)
        return None  # a hook has ended the forward pass

    def _width(self, at: Hookpoint) -> int:
        found: list[Tensor] = []
        self._run(1, [hooked(self.loaded.model, at, capture=found, stop=True)])
        if not found:
            raise NoProjection(f"{self.kind} does not run {at}")
        return found[0].numel() // len(self.text)

    def _vectors(self, width: int, length: float) -> Tensor:
        """[DIRECTIONS, width] float32, of different lengths from a root mean square of `length` up, as the model's
        dtype can hold them."""
        x = torch.randn(DIRECTIONS, width, generator=self.generator)
        x *= torch.linspace(1, 3, DIRECTIONS)[:, None] * length
        return x.to(self.loaded.device, self.loaded.dtype).float()

    def _logits(self, at: Hookpoint, x: Tensor, silenced: Hookpoint | None = None) -> Tensor:
        """Half of what the unembedding returns with x [n, width] written at `at`, less the same for -x: what biases
        add is gone. float32 [n, sampled logits]. `silenced`: a module whose output is replaced by one without x."""
        found: list[Tensor] = []
        model = self.loaded.model
        hooks = [hooked(model, at, edit=lambda held: _write(held, torch.cat([x, -x]), model))]
        if silenced is not None:
            hooks.append(hooked(model, silenced, edit=_same_for_all))
        self._run(2 * len(x), [*hooks, hooked(model, Hookpoint(self.head_path), capture=found, stop=True)])
        logits = found[0].reshape(2, len(x), len(self.text), -1)[:, :, -1, self.sample].float()
        return (logits[0] - logits[1]) / 2

    def _scale_of_logits(self, n: int) -> float:
        """What the model multiplies logits by after the unembedding. A soft cap, which keeps their order, is not
        looked at, and neither is a bias. Raises NoProjection where it does anything else to them."""
        small = 2.0**-6
        steps = torch.tensor([0.0, small, -30.0, -1.0, 1.0, 30.0])
        ramp = torch.linspace(-5, 5, n)
        probes = torch.cat([steps[:, None].expand(-1, n), torch.stack([ramp, ramp.flip(0)])])
        probes = probes[:, None].repeat(1, len(self.text), 1)
        point = Hookpoint(self.head_path)
        output = self._run(
            len(probes), [hooked(self.loaded.model, point, edit=lambda held: probes.to(held.device).view_as(held))]
        )
        logits = output.logits if hasattr(output, "logits") else output[0]
        if logits.numel() != probes.numel():
            raise NoProjection(f"{self.kind} does not return the {n} logits of its unembedding for each token")
        found = logits.reshape(probes.shape)[:, -1].float().cpu()
        slopes = (found[1] - found[0]) / small
        slope = float(slopes.median())
        rising = found[[2, 3, 0, 4, 5]].diff(dim=0)
        ramps = found[6:] - found[0]
        same = (slopes - slope).abs().amax() <= self.tolerance * abs(slope)
        alike = (ramps[0] - ramps[1].flip(0)).abs().amax() <= self.tolerance * ramps.abs().amax()
        if not (slope > 0 and same and alike and (rising >= 0).all() and (rising[1:3] > 0).all()):
            raise NoProjection(f"{self.kind} changes its logits after the unembedding in a way that moves their order")
        return 1.0 if abs(slope - 1) <= 1e-3 else slope


def _head(model: nn.Module) -> tuple[nn.Module, str]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    path = next((name for name, module in model.named_modules() if module is head), None)
    weight = getattr(head, "weight", None)
    if head is None or path is None or not isinstance(weight, Tensor):
        raise NoProjection(f"{type(model).__name__} has no output embedding")
    if weight.ndim != 2 or not weight.is_floating_point() or weight.is_meta:
        raise NoProjection(f"the output embedding of {type(model).__name__} is no matrix of numbers that can be read")
    return head, path


def _write(held: Tensor, values: Tensor, model: nn.Module) -> Tensor:
    """Writes values [n, width] on the last token of n texts into the tensor itself, so that everything that reads it,
    now or later, reads the new values."""
    if held.numel() % values.numel() or held.shape[-1] != values.shape[1]:
        raise NoProjection(f"a hookpoint of {type(model).__name__} holds no single vector for each token")
    storage = held.untyped_storage().data_ptr()
    if any(p.untyped_storage().data_ptr() == storage for p in model.parameters()):
        raise NoProjection(f"a hookpoint of {type(model).__name__} holds weights")
    texts = held if held.ndim == 3 else held.view(len(values), -1, values.shape[1])  # experts get tokens as rows
    texts[:, -1] = values.to(held.device, held.dtype)
    return held


def _same_for_all(held: Tensor) -> Tensor:
    """One random vector for every token. Zeros would also silence what they are multiplied with."""
    row = torch.randn(held.shape[-1], generator=torch.Generator().manual_seed(1))
    return row.to(held.device, held.dtype).expand_as(held).clone()


def _are_multiples(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether b [n, width] is a, or a times one number."""
    if a.shape != b.shape or a.device != b.device:
        return False
    factor = (a * b).sum() / (a * a).sum()
    return bool((factor * a - b).abs().amax() <= tolerance * b.abs().amax())


def _common_factor(expected: Tensor, real: Tensor, tolerance: float) -> float | None:
    """The one positive number by which every row of `expected` is `real`; 1 where it is about that, None where there
    is none."""
    factors = (expected * real).sum(1) / (expected * expected).sum(1)
    mean = factors.mean()
    off = (real - mean * expected).norm(dim=1) / real.norm(dim=1)
    # Not finite values fail, too.
    if not (mean > 0 and (off <= tolerance).all()):
        return None
    return 1.0 if abs(float(mean) - 1) <= tolerance else float(mean)
