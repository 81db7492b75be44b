"""Formats of dictionaries that read one place and write one, an entry each: how one is read, what decides its numbers,
and by what it is recognised. Some files are refused by name, because nothing here can read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.errors import InputError
from autointerp.sae.formats import circuit_tracer, gemma_scope_2, goodfire, llama_scope, llamascopium, qwen_scope
from autointerp.sae.sae import Sae


@dataclass(frozen=True, slots=True)
class Format:
    load: Callable[[Path], Sae]
    identity: Callable[[Path], tuple[dict[str, Any], list[Path]]]
    files: str
    """What it consists of, for messages."""
    is_at: Callable[[Path], bool] | None = None
    """Whether a folder or a .safetensors is one."""
    is_state: Callable[[Any], bool] | None = None
    """Whether the content of a .pt is one."""


FORMATS: dict[str, Format] = {
    "gemma_scope_2": Format(
        gemma_scope_2.load, gemma_scope_2.identity, gemma_scope_2.WEIGHTS, is_at=gemma_scope_2.recognises
    ),
    "qwen_scope": Format(
        qwen_scope.load, qwen_scope.identity, f"layerN{qwen_scope.ENDING}", is_state=qwen_scope.recognises
    ),
    "llama_scope": Format(
        llama_scope.load,
        llama_scope.identity,
        f"{llama_scope.CONFIG} + {llama_scope.WEIGHTS}",
        is_at=llama_scope.recognises,
    ),
    "llamascopium": Format(
        llamascopium.load,
        llamascopium.identity,
        f"{llamascopium.CONFIG} + {llamascopium.WEIGHTS}",
        is_at=llamascopium.recognises,
    ),
    "circuit_tracer": Format(
        circuit_tracer.load, circuit_tracer.identity, "layer_N.safetensors", is_at=circuit_tracer.recognises
    ),
    "goodfire": Format(goodfire.load, goodfire.identity, "one .pt or .pth", is_state=goodfire.recognises),
}


def recognised(path: Path) -> str | None:
    """The format of a folder or a .safetensors, judged by its names and the header of its tensors. Raises InputError
    for what is known and cannot be read."""
    _refuse(path)
    return next((name for name, format in FORMATS.items() if format.is_at and format.is_at(path)), None)


def recognised_state(state: Any) -> str | None:
    """The format of what a .pt holds."""
    return next((name for name, format in FORMATS.items() if format.is_state and format.is_state(state)), None)


def _refuse(path: Path) -> None:
    folder = path if path.is_dir() else path.parent
    if (folder / "conf.yaml").exists() and (folder / "latest_ckpt.safetensors").exists():
        raise InputError(
            f"{folder} is a temporal SAE, and those are not read: its novel codes are codes of what attention over all "
            "earlier tokens of the text leaves of a vector, and an SAE here reads one vector at a time"
        )
