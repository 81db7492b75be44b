"""The hookpoints that files declare: TransformerLens's names, and modules with the side behind them, as Gemma Scope 2
names them: model.layers.5.output, model.layers.5.self_attn.o_proj.input.

Files of a language model name its modules as they are without the parts that read images: model.layers.5 may be
model.language_model.layers.5 here.
"""

from __future__ import annotations

import re

from torch import nn

from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint
from autointerp.sae.formats.hooknames import from_base_model_path, to_module_path

_SIDES = {".output": "", ".input": ":in"}


def is_declared(name: str) -> bool:
    """Whether a name is of such a form, so that the model is needed to know which module it means."""
    return name.strip().startswith(("blocks.", "hook_")) or name.strip().endswith(tuple(_SIDES))


def to_hookpoint(name: str, model: nn.Module) -> str:
    """The hookpoint ("path" or "path:in") that a declared name means. A path of the model is returned as it is. Raises
    InputError when the name is unknown, or when this model has no such activation."""
    name = name.strip()
    out = re.fullmatch(r"(blocks\.\d+\.mlp\.)hook_out", name)
    if out:  # circuit-tracer's name of what the MLP returns, before a norm that may follow
        return to_module_path(f"{out[1]}hook_in", model).removesuffix(":in")
    if name.startswith(("blocks.", "hook_")):
        return to_module_path(name, model)
    ending = next((ending for ending in _SIDES if name.endswith(ending)), None)
    if ending is None or Hookpoint.parse(name).path in dict(model.named_modules()):
        return str(Hookpoint.parse(name))
    path = name.removesuffix(ending)
    try:
        return from_base_model_path(path + _SIDES[ending], model)
    except InputError:
        if not path.startswith("model."):
            raise
    return from_base_model_path(path.removeprefix("model.") + _SIDES[ending], model)
