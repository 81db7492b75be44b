"""Reads and writes tensor files. Only safetensors, no pickle; a file is never left half written, and never trusted."""

from __future__ import annotations

import errno
import glob
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autointerp.errors import DamagedError, DiskFullError, InputError

MAX_HEADER_BYTES = 1_000_000


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it to `path`. A reader, even after a kill, finds the
    complete old file or the complete new one. Temporary files of killed writers are deleted, so no other process may
    write to `path`. Raises DiskFullError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        if _is_full(error):
            raise DiskFullError(f"no space left to write {path}; the file that was there is intact") from error
        raise


def append_whole(path: Path, data: bytes, after: int) -> None:
    """Put `data` behind the first `after` bytes of a file, in place of what a killed writer may have left there, and
    return when it is on disk. Raises DiskFullError."""
    try:
        with path.open("r+b" if path.exists() else "xb") as file:
            file.truncate(after)
            file.seek(after)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if _is_full(error):
            raise DiskFullError(f"no space left to write {path}; what it held is intact") from error
        raise


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tensors(path: Path, tensors: dict[str, Tensor], state: object | None = None) -> None:
    """Write `tensors` and `state` (JSON-able) into one file, so that the two cannot come apart."""
    metadata = {"format": "pt"} | ({} if state is None else {"state": json.dumps(state)})
    # a copy, since safetensors refuses tensors that share memory or are not contiguous
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(flat, temporary, metadata=metadata))


def regular_size(path: Path) -> int:
    """The size of a file in bytes. Raises InputError when there is none, and when it is something that has no end or
    no content of its own, as a pipe, a device or a folder."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a regular file but a folder, a pipe or a device; put the file itself there")
    return found.st_size


def read_header(path: Path) -> dict[str, object]:
    """The header of a safetensors file. Raises InputError when there is no file. Raises DamagedError when it is not a
    safetensors file, is cut short, or claims a header above 1 MB, which would be read into memory unchecked."""
    size = regular_size(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise DamagedError(f"{path} is damaged: {size} bytes are fewer than its header claims; copy it again")
            if length > MAX_HEADER_BYTES:
                raise DamagedError(f"{path} claims a header of {length} bytes; more than 1 MB is not read")
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: its header is not JSON ({error}); copy it again") from None
    if not isinstance(header, dict):
        raise DamagedError(f"{path} is damaged: its header is not a table")
    return header


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises the errors of `read_header`."""
    read_header(path)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise DamagedError(f"{path} is damaged: {error}; copy it again") from error


def read_state(path: Path) -> object:
    """The state that `write_tensors` wrote. Raises DamagedError when there is none."""
    metadata = read_header(path).get("__metadata__")
    try:
        return json.loads(metadata["state"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError, RecursionError):
        raise DamagedError(f"{path} holds no training state; it was not written as a checkpoint") from None
