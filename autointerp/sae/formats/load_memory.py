"""Compares the memory that loading an SAE takes with what is free, before it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autointerp.errors import InputError
from autointerp.sae import files

MAX_BYTES = 64 << 30
"""The largest file that is opened. A float32 SAE of 4096 inputs and a million features has 34 GB."""
SHARE_OF_MEMORY = 0.8
BYTES_PER_NUMBER = 10
"""At the peak: the file's numbers in float32, turned, and one of the two matrices scaled. Measured: 8 to 10."""
_FALLBACK_BYTES = 8 << 30
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def require_memory(path: Path, n_bytes: int) -> None:
    """Raise InputError if going on to load `path` takes more bytes than SHARE_OF_MEMORY of what is free."""
    free = free_memory()
    if n_bytes > SHARE_OF_MEMORY * free:
        raise InputError(
            f"loading {path} takes {n_bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free; the whole "
            "file is read into memory, so use a machine with more"
        )


def require_size(path: Path, n_bytes: int) -> None:
    """Raise InputError if a file holds more than MAX_BYTES."""
    if n_bytes > MAX_BYTES:
        raise InputError(f"{path} holds {n_bytes / 2**30:.1f} GiB; files above {MAX_BYTES >> 30} GiB are not read")


def require_memory_for_safetensors(path: Path) -> None:
    """`require_memory` for a safetensors file, whose header says how many numbers it has. Raises the errors of
    `files.read_header`."""
    n_numbers = 0
    for entry in files.read_header(path).values():
        facts: dict[str, Any] = entry if isinstance(entry, dict) else {}
        offsets = facts.get("data_offsets")
        if isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(n, int) for n in offsets):
            n_numbers += max(0, offsets[1] - offsets[0]) // _ITEM_BYTES.get(str(facts.get("dtype")), 1)
    require_memory(path, n_numbers * BYTES_PER_NUMBER)


def free_memory() -> int:
    """Bytes of memory that can be used without swapping; 8 GiB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = dict(line.split(":", 1) for line in lines)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _FALLBACK_BYTES
