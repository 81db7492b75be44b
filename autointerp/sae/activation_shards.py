"""The activation vectors of one hookpoint on disk: shards of equal length, and a manifest that vouches for them.

    manifest.jsonl            what the vectors are; then one line for each shard, written once the shard is on disk
    000000-16384.safetensors  the first 16,384 vectors, and so on

A shard is written as a whole or not at all, and the manifest only grows, so a kill leaves whole shards. The manifest
has a checksum of each piece of a shard, and of each of its own lines. Readers take pieces, in any order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from autointerp.errors import DamagedError, MismatchError, shown
from autointerp.sae import files

SHARD_VECTORS = 16_384
"""Vectors of one shard. What a kill costs of a fill is at most this many."""
PIECE_VECTORS = 1_024
"""Vectors that are read and checked at once. They are consecutive; the order of pieces is drawn."""
MANIFEST = "manifest.jsonl"
MANIFEST_VERSION = 1

Place = tuple[Any, int]
"""A place in the source: a position, and the number of vectors to skip from there."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A line of the manifest."""

    number: int
    vectors: int
    behind: Place
    """Where the source goes on after this shard."""
    size: int
    """Bytes of the file."""
    sha256: tuple[str, ...]
    """Of each piece's bytes."""


class Shards:
    """The shards in `folder`. `facts` says what the vectors are.

    Raises MismatchError when the folder holds vectors of other facts, and DamagedError when its manifest is damaged.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, dict(facts)
        self.end: int | None = None
        """The number of vectors that the source has; None if it was never read to its end."""
        self._shards: dict[int, Shard] = {}
        self._length = 0  # bytes of the manifest's whole lines
        self.reload()

    def reload(self) -> None:
        """Read the manifest again, to which another process may have written."""
        self._shards, self.end, self._length = {}, None, 0
        path = self.folder / MANIFEST
        data = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(data.splitlines(keepends=True)):
            if not line.endswith(b"\n"):
                break  # a kill cut it short; its shard is made again
            try:
                self._take(_checked(line), path)
            except (KeyError, TypeError, ValueError, RecursionError):
                raise DamagedError(
                    f"line {number + 1} of {path} is damaged, and with it what the activation cache knows of its "
                    f"shards; delete {path.parent}, and `autointerp train` makes it again"
                ) from None
            self._length += len(line)

    def holds(self, number: int, vectors: int) -> bool:
        """Whether the first `vectors` of a shard are on disk, by the manifest and by the size of the file."""
        shard = self._shards.get(number)
        if shard is None or shard.vectors < vectors:
            return False
        path = self.path(shard)
        return path.is_file() and path.stat().st_size == shard.size

    def behind(self, number: int) -> Place | None:
        """Where the source goes on after a shard; None unless the manifest has it, and whole."""
        shard = self._shards.get(number)
        return shard.behind if shard is not None and shard.vectors == SHARD_VECTORS else None

    def path(self, shard: Shard) -> Path:
        # with its length in its name: a longer one does not replace the shorter one, which another process may read
        return self.folder / f"{shard.number:06}-{shard.vectors}.safetensors"

    def write(self, number: int, vectors: Tensor, behind: Place) -> None:
        """Write a shard and then its line. Raises DiskFullError."""
        if not self._length:
            dtype = str(vectors.dtype).removeprefix("torch.")
            self._append({"version": MANIFEST_VERSION, "dtype": dtype, **self.facts})
        # exact: only vectors beside those of another hookpoint with a wider type come in another type
        vectors = vectors.to("cpu", self.dtype).contiguous()
        pieces = tuple(_sha256(piece) for piece in vectors.split(PIECE_VECTORS))
        path = self.path(Shard(number, len(vectors), behind, 0, pieces))
        files.write_tensors(path, {"vectors": vectors})
        self._append(
            {
                "shard": number,
                "vectors": len(vectors),
                "behind": list(behind),
                "size": path.stat().st_size,
                "sha256": list(pieces),
            }  # fmt: skip
        )

    def write_end(self, vectors: int) -> None:
        """Note that the source has this many vectors and no more."""
        if self.end != vectors:
            self._append({"end": vectors})

    def piece(self, index: int) -> Tensor:
        """Piece `index` of the hookpoint's vectors: [at most PIECE_VECTORS, d]. Raises DamagedError, which names the
        file, when it is not what was written."""
        number, within = divmod(index, SHARD_VECTORS // PIECE_VECTORS)
        shard = self._shards[number]
        path, first = self.path(shard), within * PIECE_VECTORS
        try:
            files.regular_size(path)  # so that a pipe is not waited for
            with safe_open(path, framework="pt", device="cpu") as file:
                found = cast(Tensor, file.get_slice("vectors")[first : first + PIECE_VECTORS])
        except (SafetensorError, OSError, ValueError, RuntimeError, IndexError) as error:
            raise DamagedError(f"the shard {path} of the activation cache is damaged ({error}); {_AGAIN}") from None
        if found.dtype != self.dtype or _sha256(found) != shard.sha256[within]:
            raise DamagedError(
                f"the shard {path} of the activation cache is damaged: vectors {first} to {first + len(found) - 1} are "
                f"not those that were written; {_AGAIN}"
            )
        return found

    @property
    def dtype(self) -> torch.dtype:
        found = getattr(torch, str(self._dtype), None)
        assert isinstance(found, torch.dtype)
        return found

    def _take(self, line: dict[str, Any], path: Path) -> None:
        if not self._length:
            self._dtype, version = line.pop("dtype", None), line.pop("version", None)
            if version != MANIFEST_VERSION or self._dtype not in DTYPES or line != self.facts:
                raise MismatchError(
                    f"{path} is of other vectors, or of another version of the program (version {shown(version)}, "
                    f"{shown(line)}); name another folder in train.cache, or delete {self.folder}"
                )
        elif "end" in line:
            self.end = int(line["end"])
        else:
            (position, skip), pieces = line["behind"], tuple(line["sha256"])
            number, vectors = int(line["shard"]), int(line["vectors"])
            self._shards[number] = Shard(number, vectors, (position, int(skip)), int(line["size"]), pieces)

    def _append(self, line: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        data = json.dumps({**line, _CHECK: _line_check(line)}).encode() + b"\n"
        files.append_whole(self.folder / MANIFEST, data, after=self._length)
        self._take(dict(json.loads(json.dumps(line))), self.folder / MANIFEST)
        self._length += len(data)


DTYPES = ("float32", "bfloat16", "float16")
_CHECK = "check"
_AGAIN = "delete it, and `autointerp train` makes it again"


def _line_check(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()[:16]


def _checked(line: bytes) -> dict[str, Any]:
    """A line of the manifest. Raises ValueError when it is not what was written."""
    found = json.loads(line)
    if not isinstance(found, dict) or found.pop(_CHECK, None) != _line_check(found):
        raise ValueError("its checksum is another one")
    return found


def _sha256(vectors: Tensor) -> str:
    return hashlib.sha256(vectors.contiguous().view(torch.uint8).numpy().data).hexdigest()
