"""Saves the state of an unfinished work unit, so that a kill costs minutes however long the unit takes.

Each dictionary and unit has one file, `<root>/partial/u00000012.npz`. It holds numeric arrays (never pickle), the zip
format's CRC-32 of each one, and a header that says what they belong to. It is written under another name, flushed and
renamed, so it is either whole or absent. A file that is unreadable or belongs to something else is not used.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autointerp.errors import DiskFullError
from autointerp.harvest.split_pass import Columns
from autointerp.harvest.target import Target
from autointerp.harvest.unit_evidence import EvidenceParts
from autointerp.records import WorkUnit
from autointerp.sae.files import write_atomically

KEEP_EVERY_S = 120.0
"""Seconds of work between writes of a unit's state."""
MOST_TIME_SHARE = 0.1
"""The largest share of the time that goes into writing; large states are written less often."""
FORMAT = 1
_HEADER = "header"
_READ_BYTES = 1 << 20

Place = tuple[int, int, int]
"""How far a unit has got: the numbers of the split, the block of features and the next batch."""
BEGIN: Place = (0, 0, 0)

_UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, TypeError, IndexError, OverflowError, RuntimeError, MemoryError,
    struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged file raises: zipfile parses its directory, which no checksum covers, and believes it. It
raises RuntimeError for an entry that seems encrypted, and its subclass NotImplementedError for an unknown version."""


@dataclass(slots=True)
class UnitState:
    """What one dictionary has gathered in a unit, up to `place`."""

    place: Place
    parts: EvidenceParts
    """The evidence of the finished splits and blocks."""
    unfinished: dict[str, Tensor]
    """SplitPass.state() for the split and block that contain `place`; empty between two blocks."""
    halvings: int


def identity_of(target: Target, unit: WorkUnit, batch_tokens: int, device: torch.device) -> dict[str, Any]:
    """Everything that a unit's state depends on."""
    text = hashlib.sha256()
    for window in unit.windows:
        text.update(f"{window.document!r} {window.start} {window.split} {window.n_prefix} ".encode())
        text.update(np.asarray(window.token_ids, dtype=np.int64).tobytes())
    identity = {
        "format": FORMAT,
        "unit": unit.index,
        "text_sha256": text.hexdigest(),
        "harvest": target.folder.identity,
        "blocks": [[block.low, block.high] for block in target.blocks],
        "batch_tokens": batch_tokens,
        "device": device.type,
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return plain


def write_state(path: Path, identity: Mapping[str, Any], state: UnitState) -> None:
    """Write the state to `path`. Raises DiskFullError or OSError, and then leaves an earlier file in place."""
    arrays: dict[str, np.ndarray] = {}
    columns: list[tuple[str, int, str]] = []
    for table, parts in state.parts.tables.items():
        for number, part in enumerate(parts):
            for column, values in part.items():
                arrays[f"part{len(columns)}"] = values
                columns.append((table, number, column))
    arrays |= {f"pass.{name}": tensor.cpu().numpy() for name, tensor in state.unfinished.items()}
    header = {
        "identity": identity,
        "place": state.place,
        "halvings": state.halvings,
        "n_tokens": state.parts.n_tokens,
        "n_nonfinite": state.parts.n_nonfinite,
        "columns": columns,
        "arrays": sorted(arrays),
    }
    arrays[_HEADER] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
            for name, array in arrays.items():
                with file.open(name, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

    write_atomically(path, write)


def read_state(path: Path, identity: Mapping[str, Any]) -> tuple[UnitState | None, str]:
    """The state at `path`, or None and the reason why it cannot be used ("" if the file does not exist)."""
    if not path.exists():
        return None, ""
    try:
        with zipfile.ZipFile(path) as file:
            header = json.loads(_array(file, _HEADER).tobytes())
            if header["identity"] != identity:
                return None, "it belongs to another harvest, text or device"
            arrays = {name: _array(file, name) for name in header["arrays"]}
        return _state(header, arrays), ""
    except _UNREADABLE as error:
        return None, f"it cannot be read ({str(error) or type(error).__name__})"


def _array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    """The named array. Raises BadZipFile if its checksum is wrong, before anything in it is believed."""
    if file.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{name} is compressed")
    with file.open(name) as member:
        while member.read(_READ_BYTES):  # zipfile compares the checksum at the end
            pass
    with file.open(name) as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _state(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> UnitState:
    parts = EvidenceParts()
    parts.n_tokens = {split: int(n) for split, n in header["n_tokens"].items()}
    parts.n_nonfinite = int(header["n_nonfinite"])
    for i, (table, number, column) in enumerate(header["columns"]):
        tables: list[Columns] = parts.tables.setdefault(table, [])
        if number == len(tables):
            tables.append({})
        tables[number][column] = arrays[f"part{i}"]
    unfinished = {
        name.removeprefix("pass."): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("pass.")
    }
    split, block, batch = header["place"]
    return UnitState((int(split), int(block), int(batch)), parts, unfinished, int(header["halvings"]))


class Checkpoints:
    """Decides when to write the current unit's states, and reads and writes them. Call `begin` for each unit, then
    `is_due` after each batch. `say` reports states that are used or refused, and once if they cannot be written."""

    def __init__(
        self,
        every_s: float = KEEP_EVERY_S,
        say: Callable[[str], None] = lambda message: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every_s, self._say, self._clock = every_s, say, clock
        self._pause_s, self._last = every_s, clock()
        self._identities: dict[Path, dict[str, Any]] = {}
        self._has_complained = False

    def begin(self) -> None:
        self._pause_s, self._last = self._every_s, self._clock()
        self._identities.clear()

    def is_due(self) -> bool:
        return self._clock() - self._last >= self._pause_s

    def read(self, target: Target, unit: WorkUnit, batch_tokens: int, device: torch.device) -> UnitState | None:
        """The state in which an earlier run left the unit; None if there is no usable one."""
        path = target.folder.checkpoint(unit.index)
        if not path.exists():
            return None
        state, reason = read_state(path, self._identity(path, target, unit, batch_tokens, device))
        name = f"{target.name}: " if target.name else ""
        if state is None:
            self._say(f"{name}{path} is not used: {reason}; work unit {unit.index} is harvested from its start")
            return None
        self._say(f"{name}goes on inside work unit {unit.index}, from {path}")
        return state

    def write(
        self, states: Iterator[tuple[Target, UnitState]], unit: WorkUnit, batch_tokens: int, device: torch.device
    ) -> None:
        """Write the states. A full disk does not end the work, since the finished unit may still fit."""
        begun = self._clock()
        for target, state in states:
            path = target.folder.checkpoint(unit.index)
            try:
                write_state(path, self._identity(path, target, unit, batch_tokens, device), state)
            except (DiskFullError, OSError) as error:
                if not self._has_complained:
                    self._say(f"{path} cannot be written ({error}); a kill would cost the whole work unit")
                self._has_complained = True
        self._last = self._clock()
        self._pause_s = max(self._every_s, (self._last - begun) / MOST_TIME_SHARE)

    def _identity(
        self, path: Path, target: Target, unit: WorkUnit, batch_tokens: int, device: torch.device
    ) -> dict[str, Any]:
        if path not in self._identities:  # hashing the text once is enough
            self._identities[path] = identity_of(target, unit, batch_tokens, device)
        return self._identities[path]

    @staticmethod
    def remove(target: Target, unit: int) -> None:
        """Delete the state of a unit that is finished."""
        path = target.folder.checkpoint(unit)
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()  # fails while other units' states are there
