"""Reads and writes SAEs in the formats of the tools that train them.

    load_sae(path)                   read an SAE in any format, recognised by its files
    save_saelens(sae, folder, ...)   write it as SAELens v6 does, so that SAELens opens it
    save_sparsify(sae, folder, ...)  write it as sparsify does, which has TopK transcoders
    sae_sha256(path)                 the hash of all that decides its numbers
    local_folder("hf:owner/name//f") download it from the Hugging Face hub

    saelens              cfg.json + sae_weights.safetensors
    sparsify             cfg.json + sae.safetensors
    dictionary_learning  ae.pt + config.json, or one .pt
    gemma_scope          params.npz
    openai               one .pt
    single_layer.py      Gemma Scope 2, Qwen-Scope, Llama Scope, Llamascopium, circuit-tracer and Goodfire

Files have their own conventions. The Sae that is read from one always has raw-input units and unit decoder rows (see
sae.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autointerp.errors import DamagedError, InputError, nearest
from autointerp.progress import Counting, uncounted
from autointerp.sae.files import regular_size
from autointerp.sae.formats import dictionary_learning, gemma_scope, openai, restricted, saelens, single_layer, sparsify
from autointerp.sae.formats.declared import look_for_figures
from autointerp.sae.formats.hub import local_folder
from autointerp.sae.formats.internal import all_finite, read_config
from autointerp.sae.long_vectors import LIMIT, saved_limit
from autointerp.sae.sae import Sae

__all__ = ["FORMATS", "detect", "load_sae", "local_folder", "sae_sha256", "save_saelens", "save_sparsify"]

_MB = 1 << 20
_HASHED: dict[tuple[object, ...], str] = {}
"""The hashes of this process, by the settings and by device, inode, size and time of the last change of each weights
file: one command asks for an SAE's hash several times, and a large one takes minutes."""

_LOAD: dict[str, Callable[[Path], Sae]] = {
    "saelens": saelens.load,
    "sparsify": sparsify.load,
    "dictionary_learning": dictionary_learning.load,
    "gemma_scope": gemma_scope.load,
    "openai": openai.load,
}
_IDENTITY: dict[str, Callable[[Path], tuple[dict[str, Any], list[Path]]]] = {
    "saelens": saelens.identity,
    "sparsify": sparsify.identity,
    "dictionary_learning": dictionary_learning.identity,
    "gemma_scope": gemma_scope.identity,
    "openai": openai.identity,
}
_LOAD |= {name: format.load for name, format in single_layer.FORMATS.items()}
_IDENTITY |= {name: format.identity for name, format in single_layer.FORMATS.items()}
FORMATS = tuple(_LOAD)
_LISTED = 8


def load_sae(path: Path | str, format: str = "auto") -> Sae:
    """Read the SAE or transcoder at `path` (a folder, a file, or the string "hf:owner/name//folder"), on CPU in
    float32. `Sae.metadata` holds what its files say about model and hook point, under SAELens's names.

    Raises InputError when the path does not exist, the format is unknown or not the one named, or the architecture or a
    setting is not supported. Raises DamagedError when a file is cut short, lacks tensors, holds NaN or infinite
    numbers, or names a limit of length that is none.
    """
    found = _path(path)
    sae = _LOAD[_format(found, format)](found)
    look_for_figures(sae, found)
    try:
        saved_limit(sae.metadata)
    except DamagedError as error:
        raise DamagedError(f"{found}: {error}") from None
    if not all(all_finite(tensor) for tensor in sae.buffers()):
        raise DamagedError(f"{found}: some of the SAE's numbers are too large for float32 once its scaling is undone")
    return sae


def sae_sha256(
    folder: Path | str, format: str = "auto", counting: Counting = uncounted, with_limit: bool = True
) -> str:
    """The sha256, in hex, of the weights file and of the settings that decide the numbers. `counting` is told of the MB
    that were read. `with_limit` False: as it was when the limit of length (long_vectors.LIMIT) was none of them.
    Raises the InputError and DamagedError of `load_sae`, as far as they show without reading the weights."""
    path = _path(folder)
    settings, weights = _IDENTITY[_format(path, format)](path)
    told = json.dumps(settings, sort_keys=True)
    without = json.dumps({key: value for key, value in settings.items() if key != LIMIT}, sort_keys=True)
    size = sum(regular_size(file) for file in weights)
    files = tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in map(Path.stat, weights))
    seen = (told if with_limit else without), *files
    if seen in _HASHED:
        return _HASHED[seen]
    digests, n_read = {one: hashlib.sha256(one.encode()) for one in (told, without)}, 0
    with counting("hashing the SAE", -(-size // _MB), "MB") as update:
        for file in weights:
            with file.open("rb") as opened:
                while part := opened.read(_MB):
                    for digest in digests.values():
                        digest.update(part)
                    n_read += len(part)
                    update(-(-n_read // _MB))
    _HASHED.update({(one, *files): digest.hexdigest() for one, digest in digests.items()})
    return _HASHED[seen]


def save_saelens(sae: Sae, folder: Path, metadata: dict[str, Any]) -> None:
    """Write `sae` to `folder`. `metadata` (JSON-able) becomes the metadata in cfg.json: model_name, hook_name (the
    module's path in the Hugging Face model), context_size, prepend_bos and anything else that belongs to the SAE.

    The configuration is written last, so a folder with a cfg.json is complete. Raises InputError for a TopK transcoder
    (see `save_sparsify`), and DiskFullError.
    """
    saelens.save(sae, folder, metadata)


def save_sparsify(sae: Sae, folder: Path, metadata: dict[str, Any]) -> None:
    """Write a TopK SAE or transcoder to `folder` as sparsify does. sparsify finds the module by the folder's name, so
    name the folder after the module's path in the base model. `metadata` is kept in cfg.json, where `load_sae` finds
    it.

    Raises InputError for an SAE that chooses features by thresholds, and DiskFullError.
    """
    sparsify.save(sae, folder, metadata)


def detect(path: Path) -> str:
    """The format of a folder or file, judged by its files and the keys in them. Raises InputError, which lists what is
    there and which formats are known. A .pt or .npz that cannot be read raises the error of reading it."""
    if path.is_file():
        found = _of_file(path)
    else:
        found = _of_folder(path)
    if found is not None:
        return found
    raise InputError(
        f"{path} is no SAE in a known format (it holds: {_listing(path)}){_subfolders(path)}. Known: "
        f"saelens (cfg.json + {saelens.WEIGHTS}), sparsify (cfg.json + {sparsify.WEIGHTS}), "
        f"dictionary_learning ({dictionary_learning.WEIGHTS} + config.json, or one .pt), "
        f"gemma_scope ({gemma_scope.WEIGHTS}), openai (one .pt), "
        + ", ".join(f"{name} ({format.files})" for name, format in single_layer.FORMATS.items())
    )


def _path(path: Path | str) -> Path:
    found = local_folder(path) if isinstance(path, str) else path
    if not found.exists():
        raise InputError(f"there is no SAE folder {found}; check [[sae]].path")
    if not found.is_dir():
        regular_size(found)
    return found


def _format(path: Path, format: str) -> str:
    if format == "auto":
        return detect(path)
    if format not in _LOAD:
        known = ("auto", *FORMATS)
        raise InputError(f"SAE format {format!r} is not known.{nearest(format, known)} Known: {', '.join(known)}")
    needs_config = {"saelens": saelens.CONFIG, "sparsify": sparsify.CONFIG}.get(format)
    if needs_config and not (path / needs_config).exists():
        raise InputError(
            f"{path} holds no {needs_config}, so it is not in {format} format (it holds: {_listing(path)})"
        )
    return format


def _of_folder(folder: Path) -> str | None:
    if (folder / saelens.CONFIG).exists():
        if (folder / saelens.WEIGHTS).exists():
            return "saelens"
        if (folder / sparsify.WEIGHTS).exists():
            return "sparsify"
        config = read_config(folder / saelens.CONFIG)  # the weights are missing, and the format's reader will say so
        return "sparsify" if "d_sae" not in config and {"k", "d_in"} <= config.keys() else "saelens"
    if (known := single_layer.recognised(folder)) is not None:
        return known
    if (folder / saelens.WEIGHTS).exists() or (folder / sparsify.WEIGHTS).exists():
        return None
    if (folder / gemma_scope.WEIGHTS).exists():
        return "gemma_scope"
    if (folder / dictionary_learning.WEIGHTS).exists():
        return "dictionary_learning"
    if any(gemma_scope.recognises(file) for file in folder.glob("*.npz")):
        return "gemma_scope"
    pickles = sorted(p for p in folder.iterdir() if p.suffix in (".pt", ".pth"))
    return _of_file(pickles[0]) if len(pickles) == 1 else None


def _of_file(file: Path) -> str | None:
    if file.suffix == ".npz":
        return "gemma_scope" if file.name == gemma_scope.WEIGHTS or gemma_scope.recognises(file) else None
    if file.suffix == ".safetensors":
        return single_layer.recognised(file)
    if file.suffix not in (".pt", ".pth"):
        return None
    state = restricted.read_pt(file, look=True)
    if openai.recognises(state):
        return "openai"
    if (known := single_layer.recognised_state(state)) is not None:
        return known
    return "dictionary_learning" if dictionary_learning.recognises(state) else None


def _listing(path: Path) -> str:
    if path.is_file():
        return f"{path.stat().st_size} bytes"
    names = sorted(p.name for p in path.iterdir())
    return (
        ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "") or "nothing"
    )


def _subfolders(path: Path) -> str:
    """A hint for the message when the SAEs are in folders inside `path`, as after a run with several."""
    if path.is_file():
        return ""
    inside = sorted(p.parent.name for p in path.glob(f"*/{saelens.CONFIG}"))
    inside += sorted(p.parent.name for p in path.glob(f"*/{dictionary_learning.WEIGHTS}"))
    return f"; name one of its folders: {', '.join(inside[:_LISTED])}" if inside else ""
