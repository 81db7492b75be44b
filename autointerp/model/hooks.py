"""Captures, edits and stops at any module of a model by its name, with one context manager (after baukit's nethook).

    Hookpoint.parse("transformer.h.6:in")        which module, and whether its input or its output
    Hookpoint.parse("h.3 + h.7")                 several of them, whose vectors stand side by side in one
    Hookpoint.parse("h.3 + other/h.3")           the same module of two models
    hooked(model, point, capture=, edit=, stop=) collect the activation, replace it, end the forward pass there
    activations_at(loaded, point, ids, lengths)  the activation at one hookpoint; nothing after it is computed
    activations_at_all(loaded, points, ids, ...) the activations at several hookpoints, from one forward pass
    model_inputs(loaded, ids, lengths)           what any forward pass over padded ids is called with

Hooks are removed when their block ends, by an error too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autointerp.config import JOINED
from autointerp.errors import InputError, nearest
from autointerp.model.load import LoadedModel

Edit = Callable[[Tensor], Tensor]
OTHER = "other/"
"""Stands before a module path of the second model."""


class _Stop(Exception):
    """Ends a forward pass; `hooked` catches it."""


@dataclass(frozen=True, slots=True)
class Hookpoint:
    """A module's path as in `model.named_modules()`, and which side of it is read.

    A joined hookpoint has several such parts. Its vector is the vectors of the parts, one behind the other.
    """

    path: str
    side: Literal["in", "out"] = "out"
    others: tuple[Hookpoint, ...] = ()
    """The further parts of a joined hookpoint, none of which is joined itself."""
    of_other: bool = False
    """Whether it is a module of the second model (LoadedModel.other). For a joined hookpoint: its first part."""

    @classmethod
    def parse(cls, text: str) -> Hookpoint:
        """Read `path:in` or `path:out`, or several of them with ` + ` between them; `path` alone means `path:out`.
        Raises InputError for anything else, and for a part that stands there twice."""
        return cls.joined([cls._parsed(part) for part in text.split(JOINED.strip())])

    @classmethod
    def _parsed(cls, text: str) -> Hookpoint:
        name = text.strip()
        path, colon, side = name.removeprefix(OTHER).partition(":")
        if not path or (colon and side not in ("in", "out")):
            raise InputError(f"hookpoint {name!r} is not of the form module.path, module.path:in or module.path:out")
        return cls(path, "in" if side == "in" else "out", (), name.startswith(OTHER))

    @classmethod
    def joined(cls, points: Sequence[Hookpoint]) -> Hookpoint:
        """The hookpoint whose parts are those of `points`. Raises InputError where a part stands there twice."""
        parts = [part for point in points for part in point.parts]
        double = next((part for part in parts if parts.count(part) > 1), None)
        if double is not None:
            raise InputError(f"hookpoint {JOINED.join(map(str, parts))!r} names {double} twice")
        return cls(parts[0].path, parts[0].side, tuple(parts[1:]), parts[0].of_other)

    @property
    def parts(self) -> tuple[Hookpoint, ...]:
        """The parts of a joined hookpoint; the hookpoint itself where it is not joined."""
        return (Hookpoint(self.path, self.side, (), self.of_other), *self.others) if self.others else (self,)

    @property
    def own_parts(self) -> tuple[Hookpoint, ...]:
        """The parts that are modules of the model, and not of the second one."""
        return tuple(part for part in self.parts if not part.of_other)

    def __str__(self) -> str:
        return JOINED.join(
            (OTHER if part.of_other else "") + part.path + (":in" if part.side == "in" else "") for part in self.parts
        )


def resolve(model: nn.Module, hookpoint: Hookpoint) -> nn.Module:
    """The module that a hookpoint names. If there is none, raises InputError with the closest module names. ValueError
    for a joined hookpoint, which names several."""
    if hookpoint.others:
        raise ValueError(f"{hookpoint} names several modules")
    modules = dict(model.named_modules())
    module = modules.get(hookpoint.path)
    if module is None:
        close = nearest(hookpoint.path, (name for name in modules if name)) or (
            f" Its modules begin with {', '.join(name for name, _ in model.named_children())}."
        )
        raise InputError(f"{type(model).__name__} has no module {hookpoint.path!r}.{close}")
    return module


def _first_tensor(value: Any, hookpoint: Hookpoint) -> Tensor:
    """The activation in a module's return value: a tensor, or the first entry of a tuple or ModelOutput."""
    first = value if isinstance(value, Tensor) else value[0] if value else None
    if not isinstance(first, Tensor):
        raise InputError(f"hookpoint {hookpoint} does not carry a tensor but {type(first).__name__}")
    return first


def _with_first(value: Any, new: Tensor) -> Any:
    if isinstance(value, Tensor):
        return new
    if isinstance(value, dict):  # a ModelOutput
        value[next(iter(value))] = new
        return value
    return type(value)((new, *value[1:]))


def _input_key(args: tuple[Any, ...], kwargs: dict[str, Any], hookpoint: Hookpoint) -> str | None:
    """The keyword under which the module got its input; None where it is the first positional argument."""
    if args and isinstance(args[0], Tensor):
        return None
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return "hidden_states"
    for key, value in kwargs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            return key
    raise InputError(f"hookpoint {hookpoint}: the module takes no tensor as input")


@contextmanager
def hooked(
    model: nn.Module,
    hookpoint: Hookpoint,
    *,
    capture: list[Tensor] | None = None,
    edit: Edit | None = None,
    stop: bool | Callable[[], bool] = False,
    copy: bool = False,
) -> Iterator[None]:
    """While active, every call of the module appends its activation to `capture`, replaces it by `edit(activation)`,
    and ends the forward pass, and with it the `with` block, if `stop` is true or returns true.

    `capture` gets the activation before the edit: the tensor itself, or with `copy` a copy, which modules that run
    afterwards cannot write into.
    """
    module = resolve(model, hookpoint)

    def visit(tensor: Tensor) -> Tensor | None:
        if capture is not None:
            capture.append(tensor.clone() if copy else tensor)
        new = edit(tensor) if edit is not None else None
        if stop() if callable(stop) else stop:
            raise _Stop
        return new

    def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        key = _input_key(args, kwargs, hookpoint)
        new = visit(args[0] if key is None else kwargs[key])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: new})

    def on_output(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        new = visit(_first_tensor(output, hookpoint))
        return None if new is None else _with_first(output, new)

    if hookpoint.side == "in":
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()


def _caller(model: Any, hookpoints: Sequence[Hookpoint]) -> nn.Module:
    """The module to call: the base model, without LM head, if it holds all hookpoints; otherwise the model."""
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else None
    inside = all(point.path == prefix or point.path.startswith(f"{prefix}.") for point in hookpoints)
    return base if isinstance(base, nn.Module) and inside else model


def model_inputs(loaded: LoadedModel, input_ids: Tensor, lengths: Tensor | None) -> dict[str, Any]:
    """The arguments of a forward pass over `input_ids`, int64 [B, T] on any device.

    `lengths`, int64 [B], is how many ids of each row are text; the rest, on the right, is padding. None: no row is
    padded. A causal model never sees what stands to the right, so it gets no mask (which would also cost it its
    fastest attention kernel). A model that looks ahead gets one, and ValueError is raised where several rows come
    without their lengths.
    """
    ids = input_ids.to(loaded.device, non_blocking=True)
    if not loaded.looks_ahead or (lengths is None and len(ids) == 1):
        return {"input_ids": ids, "use_cache": False}
    if lengths is None:
        raise ValueError(f"model {loaded.name} looks ahead, so a batch needs the lengths of its rows")
    position = torch.arange(ids.shape[1], device=ids.device)
    mask = (position < lengths.to(ids.device)[:, None]).to(torch.int64)
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def activations_at_all(
    loaded: LoadedModel, hookpoints: Sequence[Hookpoint], input_ids: Tensor, lengths: Tensor | None = None
) -> list[Tensor]:
    """The activations [B, T, d] at each hookpoint, in the model's dtype, from one forward pass that ends once all are
    captured; at a joined one, those of its parts one behind the other. The second model reads the same ids in a pass of
    its own. For `input_ids` and `lengths` see `model_inputs`; activations on the padding mean nothing. Raises
    InputError when a hookpoint names no module, or one that the forward pass never runs.
    """
    parts = list(dict.fromkeys(part for point in hookpoints for part in point.parts))
    found: dict[Hookpoint, Tensor] = {}
    for model in (loaded, loaded.other):
        own = [part for part in parts if part.of_other == (model is not loaded)]
        if own and model is None:
            raise no_second_model(own[0])
        if own and model is not None:
            found |= zip(own, _captured(model, own, input_ids, lengths), strict=True)
    return [_side_by_side([found[part] for part in point.parts]) for point in hookpoints]


def no_second_model(hookpoint: Hookpoint) -> InputError:
    """The error for a hookpoint of a second model where none is loaded."""
    return InputError(f"hookpoint {hookpoint} is one of a second model; name it with model.other")


def _captured(
    loaded: LoadedModel, parts: Sequence[Hookpoint], input_ids: Tensor, lengths: Tensor | None
) -> list[Tensor]:
    captured: list[list[Tensor]] = [[] for _ in parts]
    # With one hookpoint nothing runs afterwards. With several, some models add later results in place.
    copy = len(parts) > 1
    with torch.inference_mode(), ExitStack() as stack:
        for part, found in zip(parts, captured, strict=True):
            stack.enter_context(hooked(loaded.model, part, capture=found, stop=lambda: all(captured), copy=copy))
        _caller(loaded.model, parts)(**model_inputs(loaded, input_ids, lengths))
    return [_shaped(found, part, input_ids.shape) for found, part in zip(captured, parts, strict=True)]


def _side_by_side(vectors: Sequence[Tensor]) -> Tensor:
    if len(vectors) == 1:
        return vectors[0]
    return torch.cat([x.to(vectors[0].device) for x in vectors], dim=-1)  # a model may be spread over devices


def _shaped(found: list[Tensor], hookpoint: Hookpoint, shape: torch.Size) -> Tensor:
    if not found:
        raise InputError(f"hookpoint {hookpoint}: the model's forward pass never runs this module")
    tensor = found[0]
    if tensor.ndim == 2 and tensor.shape[0] == shape.numel():  # experts and the like get all tokens as rows
        tensor = tensor.view(*shape, -1)
    if tensor.ndim != 3 or tensor.shape[:2] != shape or not tensor.is_floating_point():
        raise InputError(
            f"hookpoint {hookpoint} carries {str(tensor.dtype).removeprefix('torch.')} of shape "
            f"{tuple(tensor.shape)}, not one vector for each of {tuple(shape)} tokens; choose a block, mlp or attention"
        )
    return tensor


def activations_at(
    loaded: LoadedModel, hookpoint: Hookpoint, input_ids: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """The activations [B, T, d] at one hookpoint; see `activations_at_all`."""
    return activations_at_all(loaded, [hookpoint], input_ids, lengths)[0]


def hidden_size_at(loaded: LoadedModel, hookpoint: Hookpoint) -> int:
    """The width d of the vectors at a hookpoint, measured on two rows of three tokens, so that a module that swaps rows
    and tokens (XLNet's) is refused at once."""
    ids, lengths = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 3])
    return int(activations_at(loaded, hookpoint, ids, lengths).shape[-1])


def part_columns(loaded: LoadedModel, hookpoint: Hookpoint) -> list[tuple[int, int]]:
    """Where each part of a hookpoint stands in its vector: the first column, and the one after the last."""
    ends = list(accumulate((hidden_size_at(loaded, part) for part in hookpoint.parts), initial=0))
    return list(pairwise(ends))


def own_columns(loaded: LoadedModel, hookpoint: Hookpoint, width: int) -> dict[Hookpoint, tuple[int, int]]:
    """`part_columns` of the parts that are modules of the model, and not of the second one. `width`: that of the whole
    vector. Raises InputError where there is none."""
    spans = part_columns(loaded, hookpoint) if hookpoint.others else [(0, width)]
    found = {part: span for part, span in zip(hookpoint.parts, spans, strict=True) if not part.of_other}
    if not found:
        raise InputError(f"hookpoint {hookpoint} is one of the second model only, and changes are made to the first")
    return found
