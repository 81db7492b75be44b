"""Which files a corpus has, in which order, and a fingerprint of them."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autointerp.config import CorpusConfig
from autointerp.corpus.formats.unpack import PACKED_SUFFIXES, ZSTD_SUFFIXES, require_zstd
from autointerp.errors import InputError

Format = Literal["text", "jsonl", "json", "csv", "parquet"]

FINGERPRINT_BYTES = 65_536
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip
WANTED_SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson", ".json"), "json": (".json",), "csv": (".csv", ".tsv"), "parquet": (".parquet",),
}  # fmt: skip
"""The files of a folder that are read when corpus.format names a format. For text, all are."""
STDLIB_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "encodings", "pydoc_data", "test", "tests", "idle_test", "testmock"}
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    path: Path
    name: str
    """The path relative to the source's folder, with forward slashes. The file's documents are named after it."""
    format: Format
    """As corpus.format or the suffix says."""


@dataclass(slots=True)
class FoundFiles:
    files: list[SourceFile]
    """Sorted by name."""
    links_out: list[str] = field(default_factory=list)
    """Names of links that lead out of the source's folder. They are not followed."""


def source_files(config: CorpusConfig) -> FoundFiles:
    """The files behind `config.source`. Raises InputError when there are none, and when one is zstd and nothing here
    can unpack that."""
    source = config.source
    if not source:
        raise InputError("corpus.source is not set; name a file, folder, glob, hf:dataset, or stdlib")
    if source == "stdlib":
        return FoundFiles(_stdlib_files())
    path = place_of(config)
    links_out: list[str] = []
    if path.is_file():
        found = [(path, path.name)]
    elif path.is_dir():
        inside = [f for f in _walk(path) if _wanted_in_folder(f, config)]
        found = _within(path, inside, links_out)
    elif path.exists():
        raise InputError(f"corpus.source: {source!r} is not a regular file (a pipe or a device); name a file or folder")
    elif glob.has_magic(str(path)):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))
        found = _within(_glob_root(path), [f for f in matches if f.is_file()], links_out)
    else:
        raise InputError(f"corpus.source: there is no file or folder {source!r}")
    if not found:
        raise InputError(f"corpus.source: no {_kind(config)} files match {source!r}{_links_told(links_out)}")
    found.sort(key=lambda pair: pair[1])
    for file, _ in found:
        if file.suffix.lower() in ZSTD_SUFFIXES:
            require_zstd(file)  # now, not when it is that file's turn
    return FoundFiles([SourceFile(f, name, _format_of(f, config)) for f, name in found], sorted(links_out))


def place_of(config: CorpusConfig) -> Path:
    """The path that corpus.source names; it may be a glob or not exist. Raises InputError if the system refuses it."""
    path = Path(config.source)
    try:
        path = path.expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as error:  # no permission, too long a name, a NUL, ~ of nobody
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"corpus.source: {config.source[:200]!r} cannot be read: {reason}") from None
    return path


def _kind(config: CorpusConfig) -> str:
    return "text, jsonl, JSON, CSV or Parquet" if config.format == "auto" else config.format


def _links_told(links_out: list[str]) -> str:
    if not links_out:
        return ""
    return (
        f"; links that lead out of the folder are not followed ({links_out[0]}"
        f"{f' and {len(links_out) - 1} more' if len(links_out) > 1 else ''}): name the files themselves, or copy them"
    )


def _walk(folder: Path, left_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Regular files below `folder`, without hidden ones. Links to folders, hidden folders and folders with a name in
    `left_out` are not entered. Raises InputError for a folder that cannot be listed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"corpus.source: {error.filename} cannot be read: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in left_out]
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _within(root: Path, files: list[Path], links_out: list[str]) -> list[tuple[Path, str]]:
    """The files with their names, without those that a link leads to from inside the folder `root` to outside of it.
    The names of such links go to `links_out`: a corpus from elsewhere could name any file of this machine."""
    homes = _homes(root.resolve())
    found = []
    for file in files:
        name = file.relative_to(root).as_posix()
        real = file.resolve()
        if any(real.is_relative_to(home) for home in homes):
            found.append((file, name))
        else:
            links_out.append(name)
    return found


def _homes(root: Path) -> list[Path]:
    """The folder itself and, for a snapshot in the hub's cache, whose files are all links, the folder they lead to."""
    for parent in (root, *root.parents):
        if parent.parent.name == "snapshots" and (parent.parent.parent / "blobs").is_dir():
            return [root, parent.parent.parent / "blobs"]
    return [root]


def _glob_root(pattern: Path) -> Path:
    """The part of a glob before its first wildcard."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def suffix_of(path: Path) -> str:
    """The suffix in lower case, without that of a compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED_SUFFIXES else suffix


def _wanted_in_folder(path: Path, config: CorpusConfig) -> bool:
    """Whether a file of a folder is read: any, or only those of the format that corpus.format names."""
    wanted = WANTED_SUFFIXES.get(config.format)
    return wanted is None or suffix_of(path) in wanted


def _format_of(path: Path, config: CorpusConfig) -> Format:
    return config.format if config.format != "auto" else SUFFIXES.get(suffix_of(path), "text")


def _stdlib_files() -> list[SourceFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [path.relative_to(root).as_posix() for path in _walk(root, STDLIB_LEFT_OUT) if path.suffix == ".py"]
    # The order is random but fixed, so that the first max_tokens are a sample of the whole.
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    if not names:
        raise InputError(f"corpus.source = 'stdlib': no Python source files under {root}; name a folder of text")
    return [SourceFile(root / name, name, "text") for name in names]


def corpus_fingerprint(config: CorpusConfig) -> str:
    """A sha256 in hex that changes with the corpus' content and with the options that decide how it is read.

    It is cheap: it covers names, sizes, and the first and last 64 kB of each file, but not the folder they are in. An
    `hf:` dataset counts by its name.
    """
    how = [config.format, config.text_field, config.chat_field, config.id_field, config.document_separator]
    digest = hashlib.sha256(json.dumps(how).encode())
    if config.source.startswith("hf:"):
        digest.update(config.source.encode())
        return digest.hexdigest()
    for file in source_files(config).files:
        try:
            with file.path.open("rb") as handle:
                size = handle.seek(0, os.SEEK_END)
                handle.seek(0)
                ends = handle.read(FINGERPRINT_BYTES)
                handle.seek(max(FINGERPRINT_BYTES, size - FINGERPRINT_BYTES))
                ends += handle.read(FINGERPRINT_BYTES)
        except OSError as error:  # counted as unreadable when the corpus is read
            size, ends = -1, type(error).__name__.encode()
        digest.update(json.dumps([file.name, file.format, size]).encode())
        digest.update(hashlib.sha256(ends).digest())
    return digest.hexdigest()
