"""Reads files that could do more than hold numbers: PyTorch's .pt, which is a pickle, and NumPy's .npz, which may be
compressed.

This is the only place that opens either. A pickle always goes through PyTorch's restricted reader, which builds
tensors, tables and plain values and calls nothing else. Before that, what a file claims to hold is compared with its
size and the free memory, so that a few kilobytes cannot unfold into gigabytes.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from autointerp.errors import AutointerpError, DamagedError, InputError
from autointerp.sae.files import regular_size
from autointerp.sae.formats.load_memory import BYTES_PER_NUMBER, require_memory, require_size

MAX_PICKLE_BYTES = 16 << 20
"""Largest size of the part of a .pt that is not tensors. Real files have kilobytes of it."""
MAX_ENTRIES = 100_000
_NPY_HEADER_BYTES = 10_000


def read_pt(path: Path, *, look: bool = False) -> Any:
    """The content of a .pt file, with tensors on CPU. With `look` the tensors stay in the file if its layout allows it.

    Raises InputError when there is no file, when it or what is made of it is too large for the memory, or when it asks
    Python to run something. Raises DamagedError when it is cut short or claims more than it holds.
    """
    size = _size(path)
    require_memory(path, size)
    archive = _is_archive(path)
    if archive:
        _check_archive(path, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old storage classes, which the user can do nothing about
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=look and archive)
    except pickle.UnpicklingError as error:
        raise _not_plain(path, str(error)) from None
    except MemoryError:
        raise DamagedError(f"{path} is damaged: it claims more numbers than fit into memory") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise DamagedError(f"{path} is damaged: {_first_line(error)}; copy it again") from None
    n_numbers, n_bytes = _check_tensors(value, path, size)
    if not look:
        require_memory(path, n_numbers * BYTES_PER_NUMBER - n_bytes)
    return value


def _is_archive(path: Path) -> bool:
    """Whether the file is a zip archive. Raises DamagedError where it is one that cannot be opened."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:
        raise DamagedError(f"{path} is damaged: {_first_line(error)}; copy it again") from None


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a .npz file as tensors. Raises InputError when there is no file, it is too large, or it holds
    Python objects instead of numbers. Raises DamagedError when it is damaged or not a .npz."""
    size = _size(path)
    if not _is_archive(path):
        raise DamagedError(f"{path} is damaged: its {size} bytes are not a .npz archive; copy it again")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            require_size(path, sum(entry.file_size for entry in entries))
            if len(entries) > MAX_ENTRIES:
                raise DamagedError(f"{path} is damaged: {len(entries)} arrays")
            require_memory(path, sum(_bytes_needed(archive, entry, path) for entry in entries))
            return {_array_name(entry): _read_array(archive, entry) for entry in entries}
    except AutointerpError:
        raise
    except Exception as error:  # from zipfile, zlib or the parser of array headers
        raise DamagedError(f"{path} is damaged: {_first_line(error)}; copy it again") from None


def npz_names(path: Path) -> list[str]:
    """The names of the arrays in a .npz; [] for any other file."""
    try:
        if not path.is_file() or not zipfile.is_zipfile(path):
            return []
        with zipfile.ZipFile(path) as archive:
            return [_array_name(entry) for entry in archive.infolist() if entry.filename.endswith(".npy")]
    except Exception:  # a damaged file is not recognised
        return []


def _size(path: Path) -> int:
    size = regular_size(path)
    require_size(path, size)
    return size


def _check_archive(path: Path, size: int) -> None:
    """Refuse an archive that PyTorch did not write: it stores records uncompressed, and they never overlap, so together
    they cannot exceed the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile passes on bad encodings, sizes out of range and the like
        raise DamagedError(f"{path} is damaged: {_first_line(error)}; copy it again") from None
    names = [entry.filename for entry in entries]
    if any(name.endswith("constants.pkl") for name in names):
        raise InputError(f"{path} is a TorchScript program, not a file of tensors; save the state_dict instead")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise DamagedError(f"{path} is not read: PyTorch does not compress what it saves, and this file is compressed")
    if sum(entry.file_size for entry in entries) > size or len(entries) > MAX_ENTRIES:
        raise DamagedError(f"{path} is damaged: its records claim more bytes than the file has; copy it again")
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if not pickles:
        raise DamagedError(f"{path} is a zip archive, but PyTorch did not write it: it has no data.pkl")
    if any(entry.file_size > MAX_PICKLE_BYTES for entry in pickles):
        raise DamagedError(f"{path} is not read: more than {MAX_PICKLE_BYTES >> 20} MiB of it are not tensors")


def _check_tensors(value: Any, path: Path, size: int) -> tuple[int, int]:
    """Refuse a tensor whose shape and strides claim more numbers than are stored: one number can be repeated a billion
    times. Returns how many numbers there are, and how many bytes they take."""
    waiting, seen, n_numbers, n_bytes = [value], 0, 0, 0
    while waiting:
        item = waiting.pop()
        seen += 1
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple)):
            waiting.extend(item)
        elif isinstance(item, Tensor):
            plain = item.layout == torch.strided and item.device.type == "cpu" and not item.is_quantized
            if not plain or item.numel() * item.element_size() > size:
                raise DamagedError(
                    f"{path} is not read: it holds a tensor of shape {list(item.shape)} that is not all there"
                )
            n_numbers += item.numel()
            n_bytes += item.numel() * item.element_size()
        if seen > MAX_ENTRIES:
            raise DamagedError(f"{path} is not read: more than {MAX_ENTRIES} values cannot be a dictionary's weights")
    return n_numbers, n_bytes


def _not_plain(path: Path, message: str) -> InputError | DamagedError:
    wanted = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"global[: ]+`?([\w.]*\.[\w.]+)", message)
    if wanted:
        return InputError(
            f"{path} is not a plain file of tensors: opening it would run or build {wanted[1]}. Nothing of it was run. "
            "Save the dictionary's state_dict (torch.save(dictionary.state_dict(), path)), or use a safetensors format"
        )
    # PyTorch's own message begins by proposing to switch the restriction off
    reason = _first_line(message.partition("WeightsUnpickler error:")[2] or "not readable")
    return DamagedError(f"{path} is damaged, or no file that torch.save wrote ({reason}); nothing of it was run")


def _array_name(entry: zipfile.ZipInfo) -> str:
    return entry.filename.removesuffix(".npy")


def _bytes_needed(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> int:
    """The most that loading takes for this array: it, its numbers in float32, and half of those once more, since one of
    the two matrices is scaled while both are there. Refuses what is not plain numbers, or claims more than is there."""
    name = _array_name(entry)
    with archive.open(entry) as file:
        shape, dtype = _npy_header(file, path, name)
    if dtype.hasobject:
        raise InputError(f"{path}: {name} holds Python objects instead of numbers; nothing of it was read")
    if math.prod(shape) * dtype.itemsize > entry.file_size:
        raise DamagedError(f"{path} is damaged: {name} claims the shape {list(shape)}, which is more than is there")
    if dtype.kind not in "fiub":
        raise InputError(f"{path}: {name} holds {dtype}, which are not numbers")
    converted = 4 if (dtype.kind, dtype.itemsize) != ("f", 4) else 0
    return math.prod(shape) * max(6, dtype.itemsize + converted)


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    with archive.open(entry) as file:
        array: Any = np.lib.format.read_array(file, allow_pickle=False)
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _npy_header(file: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_NPY_HEADER_BYTES)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=_NPY_HEADER_BYTES)
    else:
        raise InputError(f"{path}: {name} is a .npy of version {version}; versions 1 and 2 are read")
    return shape, dtype


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
