"""Maps TransformerLens's hook names to the Hugging Face modules that have the same activations.

    blocks.N.hook_resid_pre      the block's input              blocks.N.hook_attn_out   what attention adds
    blocks.N.hook_resid_mid      between attention and MLP      blocks.N.hook_mlp_out    what the MLP adds
    blocks.N.hook_resid_post     the block's output             blocks.N.attn.hook_z     the heads, side by side
    blocks.N.ln1.hook_normalized, ln2.hook_normalized           a norm's output before its weights
    hook_embed                   the token embedding

"What it adds" matters if a norm follows (Gemma 2, GLM-4): the activation is then the norm's output, not the module's.
A run of the model's first blocks says which it is. Where a module's output is multiplied before it is added (Granite),
no module has the activation, and the name is refused.
TransformerLens may also change a model's weights when it loads it. `check_processing` refuses dictionaries trained on
activations that the Hugging Face model does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from autointerp.errors import InputError, nearest
from autointerp.model.hooks import Hookpoint
from autointerp.model.module_calls import ModuleCall, calls_before

_BLOCKS = (
    "transformer.h",
    "model.layers",
    "gpt_neox.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "h",
    "layers",
)
_EMBEDDINGS = ("wte", "embed_tokens", "embed_in")
_ATTENTION = ("attn", "self_attn", "attention")
_OUT_PROJECTION = ("c_proj", "o_proj", "dense", "out_proj")
_TRIED = 6
"""Tokens on which it is seen what a block adds."""
KINDS = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
    "ln1.hook_normalized",
    "ln2.hook_normalized",
    "hook_mlp_in",
    "mlp.hook_in",
)
"""The hook names known after "blocks.N."; hook_embed is known besides."""


def to_module_path(hook_name: str, model: nn.Module) -> str:
    """The hookpoint ("path" or "path:in") for a TransformerLens hook name. A path of the model is returned as it is.

    Raises InputError when the name is unknown, or when this model has no such activation.
    """
    name = hook_name.strip()
    modules = dict(model.named_modules())
    if name.partition(":")[0] in modules and name.partition(":")[0]:
        return str(Hookpoint.parse(name))
    prefix = _blocks_path(modules)
    if name == "hook_embed":
        return _embedding(model, modules, prefix)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name, re.ASCII)
    if match is None or match[2] not in KINDS:
        raise InputError(
            f"the hook name {hook_name!r} is not known.{nearest(name, [*_names(0), *modules])} Known: hook_embed and "
            f"blocks.N. followed by {', '.join(KINDS)}; or a module of {type(model).__name__}, with :in for its input"
        )
    path = f"{prefix}.{match[1]}"
    if path not in modules:
        n = len(list(modules[prefix].children()))
        raise InputError(f"{hook_name}: {type(model).__name__} has {n} blocks, 0 to {n - 1}")
    return _in_block(hook_name, match[2], path, model, modules)


def to_hook_name(hookpoint: str, model: nn.Module) -> str | None:
    """The TransformerLens name of a hookpoint; None where it has none, as for a projection inside an MLP.

    Raises InputError when `hookpoint` is not of the form "path" or "path:in".
    """
    return next(hook_names(hookpoint, model), None)


def hook_names(hookpoint: str, model: nn.Module) -> Iterator[str]:
    """All TransformerLens names of a hookpoint. Raises the InputError of `to_hook_name`."""
    wanted = str(Hookpoint.parse(hookpoint))
    modules = dict(model.named_modules())
    try:
        prefix = _blocks_path(modules)
    except InputError:
        return
    match = re.match(re.escape(prefix) + r"\.(\d+)(?=[.:]|$)", wanted)
    for name in _names(int(match[1])) if match else ["hook_embed"]:
        try:
            if to_module_path(name, model) == wanted:
                yield name
        except InputError:  # this model has no such activation
            continue


def n_blocks(model: nn.Module) -> int | None:
    """The number of blocks; None where the model has no list of them at a known place."""
    modules = dict(model.named_modules())
    try:
        return len(list(modules[_blocks_path(modules)].children()))
    except InputError:
        return None


def to_base_model_path(path: str, model: nn.Module) -> str | None:
    """A module's path within the base model, by which sparsify names its folders; None where it is not part of it."""
    prefix = getattr(model, "base_model_prefix", "") or ""
    if not prefix or not hasattr(model, prefix):
        return path  # it is the base model
    return path.removeprefix(f"{prefix}.") if path.startswith(f"{prefix}.") else None


def may_hold_heads(hookpoint: str) -> bool:
    """Whether a hookpoint, by its name alone, may be what enters an attention's output projection."""
    path, _, side = hookpoint.partition(":")
    return hookpoint.endswith(".attn.hook_z") or (side == "in" and path.rpartition(".")[2] in _OUT_PROJECTION)


def is_heads_output(hookpoint: str, model: nn.Module) -> bool:
    """Whether a hookpoint ("path:in") holds the outputs of the attention heads, side by side."""
    wanted = str(Hookpoint.parse(hookpoint))
    if not may_hold_heads(wanted):
        return False
    for part in wanted.partition(":")[0].split("."):
        if part.isascii() and part.isdigit():
            with suppress(InputError):  # this number is not that of a block
                if to_module_path(f"blocks.{part}.attn.hook_z", model) == wanted:
                    return True
    return False


def from_base_model_path(path: str, model: nn.Module) -> str:
    """The hookpoint for a path within the base model, by which sparsify names its folders: "layers.10", "layers.3.mlp",
    "h.5". A path of the whole model is returned as it is. Raises InputError when it is neither."""
    point = Hookpoint.parse(path)
    modules = dict(model.named_modules())
    if point.path in modules:
        return str(point)
    prefixes = [getattr(model, "base_model_prefix", "") or "", *(name.rpartition(".")[0] for name in _BLOCKS)]
    for prefix in prefixes:
        if prefix and f"{prefix}.{point.path}" in modules:
            return str(Hookpoint(f"{prefix}.{point.path}", point.side))
    raise InputError(
        f"neither {type(model).__name__} nor its base model has a module {point.path!r}."
        f"{nearest(point.path, (name for name in modules if name))}"
    )


def check_processing(metadata: dict[str, Any]) -> None:
    """Raise InputError when the dictionary was trained on activations that the Hugging Face model does not have.

    SAELens loads models unprocessed unless `model_from_pretrained_kwargs` has one of these options:

        center_writing_weights           subtracts the mean over d_model from all that is written to the residual stream
        fold_ln                          moves the norms' weights behind hook_normalized
        fold_value_biases                removes the value bias from hook_z
        refactor_factored_attn_matrices  rotates the activations inside attention
        center_unembed                   changes logits only

    A hook whose activation the option does not change is allowed; an unknown hook is refused. A dictionary of one
    attention head (`hook_head_index`), which reads a part of hook_z, is refused too.
    """
    kwargs = metadata.get("model_from_pretrained_kwargs")
    hook = str(metadata.get("hook_name") or "")
    for option in [name for name, value in (kwargs.items() if isinstance(kwargs, dict) else ()) if value]:
        if option in _CHANGES and not any(re.search(spared, hook) for spared in _CHANGES[option]):
            raise InputError(
                f"this SAE was trained on {hook or 'a hook it does not name'} of a model loaded with {option}=True, "
                "for which TransformerLens changes the weights: the Hugging Face model has other activations there. "
                "Use an SAE trained without it (SAELens: from_pretrained_no_processing)"
            )
    if metadata.get("hook_head_index") is not None:
        raise InputError(
            f"this SAE reads head {metadata['hook_head_index']} of {hook} only; "
            "dictionaries of single heads are not supported"
        )


def wants_bos(metadata: dict[str, Any], *, tokenizer_has_bos: bool = True) -> bool | None:
    """Whether training texts began with a beginning-of-text token; None where the file does not say.

    Where the tokenizer has none, TransformerLens takes the EOS for it, but an SAE that SAELens trained on the Hugging
    Face model itself (model_class_name AutoModelForCausalLM) saw none, whatever its prepend_bos says.
    """
    value = metadata.get("prepend_bos")
    if value is True and not tokenizer_has_bos and metadata.get("model_class_name") == "AutoModelForCausalLM":
        return False
    return value if isinstance(value, bool) else None


# The hooks whose activation an option does not change.
_INSIDE_MLP = r"\.mlp\.hook_(pre|post)$"
_NORMALIZED = r"\.hook_normalized$"
_STREAM = r"(^hook_embed|\.hook_resid_(pre|mid|post)|\.hook_mlp_(in|out)|\.hook_attn_out)$"
_CHANGES = {
    "center_writing_weights": (_INSIDE_MLP, _NORMALIZED, r"\.attn\.hook_"),
    "fold_ln": (_STREAM, _INSIDE_MLP, r"\.attn\.hook_"),
    "fold_value_biases": (_STREAM, _INSIDE_MLP, _NORMALIZED),
    "refactor_factored_attn_matrices": (_STREAM, _INSIDE_MLP, _NORMALIZED),
}


def _names(block: int) -> list[str]:
    return [f"blocks.{block}.{kind}" for kind in KINDS]


def _blocks_path(modules: dict[str, nn.Module]) -> str:
    for path in _BLOCKS:
        if isinstance(modules.get(path), nn.ModuleList):
            return path
    model = type(modules[""]).__name__
    raise InputError(
        f"{model} has no list of blocks at {', '.join(_BLOCKS)}, so TransformerLens's hook names cannot be placed in "
        "it; name a module of the model instead"
    )


def _embedding(model: nn.Module, modules: dict[str, nn.Module], prefix: str) -> str:
    if "gemma" in str(getattr(getattr(model, "config", None), "model_type", "")):
        return f"{prefix}.0:in"  # TransformerLens's embedding includes the factor sqrt(d_model)
    outer = prefix.rpartition(".")[0]
    for name in _EMBEDDINGS:
        path = f"{outer}.{name}" if outer else name
        if path in modules:
            return path
    raise InputError(f"{type(model).__name__} has no token embedding called {', '.join(_EMBEDDINGS)}")


def _in_block(hook_name: str, kind: str, path: str, model: nn.Module, modules: dict[str, nn.Module]) -> str:
    def first(names: tuple[str, ...], what: str) -> str:
        for name in names:
            if f"{path}.{name}" in modules:
                return f"{path}.{name}"
        raise InputError(f"{path} has no {what} called {', '.join(names)}")

    if kind in ("hook_resid_pre", "hook_resid_post"):
        return f"{path}:in" if kind == "hook_resid_pre" else path
    attention, mlp = first(_ATTENTION, "attention"), first(("mlp",), "MLP")
    if kind in ("hook_attn_out", "hook_mlp_out"):
        attn_out, mlp_out = _added(hook_name, model, path, attention, mlp)
        return attn_out if kind == "hook_attn_out" else mlp_out
    if kind == "attn.hook_z":
        inner = attention.removeprefix(f"{path}.")
        return first(tuple(f"{inner}.{name}" for name in _OUT_PROJECTION), "output projection") + ":in"
    if kind == "mlp.hook_in":
        return f"{mlp}:in"
    # Attention and MLP may both read the block's input, so that no activation is between them.
    parallel = bool(getattr(modules[path], "use_parallel_residual", False))
    if kind == "hook_resid_mid" and parallel:
        raise InputError(f"{hook_name}: attention and MLP of this model run side by side, so nothing is between them")
    if kind == "hook_mlp_in" and parallel:
        return f"{path}:in"
    if kind == "ln1.hook_normalized":
        norm, reader = first(("ln_1", "input_layernorm"), "norm before attention"), attention
    else:
        sandwich = f"{path}.pre_feedforward_layernorm" in modules  # a norm after attention and after the MLP
        before_mlp = ("pre_feedforward_layernorm",) if sandwich else ("ln_2", "post_attention_layernorm")
        norm, reader = first(before_mlp, "norm before the MLP"), mlp
    calls = _calls(model, path)
    if not kind.endswith("hook_normalized"):
        if not _reads_the_stream(calls, path, attention, norm):
            raise InputError(f"{hook_name}: {norm} of {type(model).__name__} does not read the residual stream")
        return f"{norm}:in"
    if not any(call.name == reader and call.reads(calls[norm].returned) for call in calls.values()):
        raise InputError(f"{hook_name}: {reader} of {type(model).__name__} does not read what {norm} returns")
    if not _without_effect(modules[norm]):
        raise InputError(
            f"{hook_name} is the norm's output before it is multiplied by the norm's weights, which this model "
            f"does not compute by itself; if the SAE reads what enters the module, name {reader}:in"
        )
    return f"{reader}:in"


def _calls(model: nn.Module, path: str) -> dict[str, ModuleCall]:
    """The last call of every module up to the end of the block at `path`, by name, in the order in which they end."""
    weight = cast(Tensor, cast(Any, model).get_input_embeddings().weight)
    ids = torch.arange(min(_TRIED, len(weight)), device=weight.device)[:, None]
    calls, _ = calls_before(model, Hookpoint(path), ids)
    return {call.name: call for call in calls}


def _tolerance(call: ModuleCall) -> float:
    """How far sums in the residual stream may be off, as a share of its largest value."""
    return 1e-4 if call.returned.dtype == torch.float32 else 2e-2


def _reads_the_stream(calls: dict[str, ModuleCall], path: str, attention: str, norm: str) -> bool:
    """Whether the norm reads the block's input and what attention adds, be it normalised or multiplied first."""
    block, before_mlp = calls[path], calls[norm]
    if block.read_values.shape != before_mlp.read_values.shape:
        return False
    added = before_mlp.read_values - block.read_values
    for name in (attention, *(n for n in calls if n.rpartition(".")[0] == path and n != norm)):
        one = calls[name].returned_values
        if one.shape == added.shape:
            factor = (one * added).sum() / (one * one).sum()
            off = (added - factor * one).abs().amax()
            if off <= _tolerance(block) * before_mlp.read_values.abs().amax():
                return True
    return False


def _added(hook_name: str, model: nn.Module, path: str, attention: str, mlp: str) -> tuple[str, str]:
    """The modules whose outputs, added to the block's input, make its output: what attention and what the MLP adds.

    Raises InputError where the block adds no module's output as it is.
    """
    calls = _calls(model, path)
    block, order = calls[path], list(calls)
    added = block.returned_values - block.read_values
    names = [attention, mlp, *(n for n in calls if n.rpartition(".")[0] == path and n not in (attention, mlp))]
    fitting = [calls[n] for n in names if n in calls and calls[n].returned_values.shape == added.shape]
    pairs = [(a, m) for a in fitting for m in fitting if a.name != mlp and m.name != attention and a is not m]
    for a, m in pairs:  # the modules themselves come first
        rest = added - a.returned_values - m.returned_values
        if rest.abs().amax() <= _tolerance(block) * block.returned_values.abs().amax():
            in_order = attention == a.name or mlp == m.name or order.index(a.name) < order.index(m.name)
            return (a.name, m.name) if in_order else (m.name, a.name)
    raise InputError(
        f"{hook_name} is what the module adds to the residual stream, and {path} of {type(model).__name__} adds "
        f"something else than {attention} and {mlp} return (it may multiply them first), which no module returns; name "
        f"{attention if 'attn' in hook_name else mlp} to read what the module returns"
    )


def _without_effect(norm: nn.Module) -> bool:
    """Whether a norm's weights change nothing. Gemma's norms multiply by 1 + weight."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if isinstance(bias, Tensor) and bool(bias.any()):
        return False
    if not isinstance(weight, Tensor):
        return True
    neutral = 0.0 if "Gemma" in type(norm).__name__ else 1.0
    return bool(torch.all(weight.detach() == neutral))
