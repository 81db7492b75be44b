"""What all readers share: they check that tensors are complete, finite and of the right shapes, and convert them to the
units of `Sae`, whose decoder rows have length 1.

With W_dec_i = n_i d_i, a feature adds f_i n_i in the direction d_i. If thresholds choose the features, n_i moves into
the encoder and the threshold, which changes nothing else:

    n_i f_i = n_i pre_i  where  n_i pre_i > n_i threshold_i        W_enc_i n_i,  b_enc_i n_i,  threshold_i n_i

If the k largest are chosen, or by pursuit, that would change the choice, so n_i is kept separately
(`Sae.row_norms`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae import files
from autointerp.sae.pursuit import Pursuit
from autointerp.sae.sae import GATED_BY_NORM, INPUT_SCALE, Normalize, Sae

MAX_CONFIG_BYTES = 1_000_000
_TESTED_AT_ONCE = 1 << 20
UNIT_TOLERANCE = 1e-4
"""Rows this close to length 1 are not scaled, so that a saved SAE is read back bit for bit."""


def build(
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    *,
    architecture: str,
    metadata: dict[str, Any],
    k: int | None = None,
    threshold: Tensor | None = None,
    b_pre: Tensor | None = None,
    W_skip: Tensor | None = None,
    normalize: Normalize = "none",
    relu: bool = True,
    pursuit: Pursuit | None = None,
    W_glu: Tensor | None = None,
    b_glu: Tensor | None = None,
) -> Sae:
    """The Sae with unit decoder rows that computes the same as these float32 tensors. Shapes and errors are those of
    `Sae`."""
    norms, row_norms = W_dec.norm(dim=1), None
    if not bool(((norms - 1).abs() < UNIT_TOLERANCE).all()):
        W_dec = W_dec / norms.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
        if threshold is None:
            row_norms = norms
        else:
            W_enc, b_enc, threshold = W_enc * norms, b_enc * norms, threshold * norms
    sae = Sae(
        W_enc,
        b_enc,
        W_dec,
        b_dec,
        k=k,
        threshold=threshold,
        architecture=architecture,
        row_norms=row_norms,
        b_pre=b_pre,
        W_skip=W_skip,
        normalize=normalize,
        relu=relu,
        pursuit=pursuit,
        W_glu=W_glu,
        b_glu=b_glu,
    )
    sae.metadata = metadata
    sae.file_norms = norms * metadata.get(INPUT_SCALE, 1.0)  # a reader that folds a scale has divided W_dec by it
    return sae


def gated_as_threshold(W_enc: Tensor, r_mag: Tensor, b_mag: Tensor, b_gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(W_enc, b_enc, threshold) equivalent to a gated encoder: W_enc [d_in, d_sae], the others [d_sae].

    With p = (x - b) W_enc, its magnitude is m = e^r p + b_mag and its gate is p + b_gate > 0, which is the same as
    m > b_mag - e^r b_gate. A feature with a magnitude of 0 or less is silent anyway.
    """
    gain = r_mag.exp()
    return W_enc * gain, b_mag, (b_mag - gain * b_gate).clamp_min(0)


def checked(
    tensors: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], path: Path, says: str
) -> dict[str, Tensor]:
    """The named tensors in float32. `says` names the source of the expected shapes, for messages. Raises DamagedError,
    which lists the missing names, or names a tensor that has another shape, whole numbers, NaN or infinite numbers."""
    missing = [name for name in shapes if name not in tensors]
    if missing:
        present = ", ".join(sorted(map(str, tensors))) or "nothing"
        raise DamagedError(f"{path} lacks {', '.join(missing)} (it holds: {present})")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor):
            raise DamagedError(f"{path}: {name} is not a tensor but {type(tensor).__name__}")
        if list(tensor.shape) != list(shape):
            raise DamagedError(f"{path}: {name} has shape {list(tensor.shape)}, but {says} says {list(shape)}")
        if not tensor.is_floating_point():
            raise DamagedError(f"{path}: {name} holds {tensor.dtype}, not floating-point numbers")
        if not all_finite(tensor):
            raise DamagedError(f"{path}: {name} holds NaN or infinite numbers")
    converted = {name: tensors[name].detach().float() for name in shapes}
    for name, tensor in converted.items():
        if tensor.dtype != tensors[name].dtype and not all_finite(tensor):
            raise DamagedError(f"{path}: {name} holds numbers too large for float32")
    return converted


def all_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite. Looks at some rows at a time, since torch makes a copy of what it tests."""
    if tensor.numel() <= _TESTED_AT_ONCE or tensor.ndim == 0:
        return bool(tensor.isfinite().all())
    rows = max(1, _TESTED_AT_ONCE * len(tensor) // tensor.numel())
    return all(bool(part.isfinite().all()) for part in tensor.split(rows))


def matrix_shape(tensors: Mapping[str, Any], name: str, path: Path) -> tuple[int, int]:
    """Rows and columns of the matrix that fixes all other shapes. Raises DamagedError when it is not a matrix."""
    tensor = tensors.get(name)
    if tensor is None:
        raise DamagedError(f"{path} lacks {name} (it holds: {', '.join(sorted(map(str, tensors))) or 'nothing'})")
    if not isinstance(tensor, Tensor) or tensor.ndim != 2 or 0 in tensor.shape:
        shape = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise DamagedError(f"{path}: {name} should be a matrix, but is {shape}")
    return int(tensor.shape[0]), int(tensor.shape[1])


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON table. Raises InputError when there is no file, and DamagedError when it is larger than 1 MB or is
    not a table."""
    if files.regular_size(path) > MAX_CONFIG_BYTES:
        raise DamagedError(f"{path} is larger than 1 MB, so it is not an SAE configuration")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # a number of more than 4,300 digits is a ValueError
        raise DamagedError(f"{path} is damaged: not JSON ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise DamagedError(f"{path} is damaged: expected a table, found {type(config).__name__}")
    return config


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write a JSON table, completely or not at all. Raises DiskFullError."""
    text = json.dumps(config, indent=2)

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    files.write_atomically(path, write)


def told_by_file(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A file's metadata without the names under which a reader keeps what it did to the weights."""
    return {name: value for name, value in metadata.items() if name not in (INPUT_SCALE, GATED_BY_NORM)}


def positive_int(config: Mapping[str, Any], key: str, path: Path) -> int:
    """The positive whole number under `key`. Raises InputError when the value is anything else."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{path}: {key} must be a positive whole number, not {value!r}")
    return value


def is_transcoder(sae: Sae) -> bool:
    """Whether the dictionary reconstructs something other than what it reads."""
    return sae.W_skip is not None or sae.d_in != sae.d_out or "transcoder" in sae.architecture


def check_plain(sae: Sae, format: str) -> None:
    """Raise InputError for a dictionary that computes something for which `format` has no form."""
    what = (
        "matching pursuit" if sae.pursuit is not None
        else "a gated linear unit in the encoder" if sae.W_glu is not None
        else "chosen values below 0 that are part of the reconstruction" if not sae.relu
        else None
    )  # fmt: skip
    if what is not None:
        raise InputError(f"{format} has no form for {what}, which this dictionary ({sae.architecture}) has")


def same_pre_bias(sae: Sae) -> bool:
    """Whether b_dec is subtracted from the input."""
    return sae.d_in == sae.d_out and torch.equal(sae.b_pre, sae.b_dec)


def b_enc_without_pre_bias(sae: Sae) -> Tensor:
    """The b_enc with which nothing needs to be subtracted from the input: (u - b) W + c = u W + (c - b W)."""
    return sae.b_enc if not bool(sae.b_pre.any()) else sae.b_enc - sae.b_pre @ sae.W_enc


def file_W_dec(sae: Sae) -> Tensor:
    """The decoder rows as the file had them. With a choice of k, they are W_dec times the norms kept in `row_norms`."""
    return sae.W_dec if sae.row_norms is None else sae.W_dec * sae.row_norms.unsqueeze(1)
