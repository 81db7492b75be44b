"""The folder in which the real model and its text are kept between runs, outside every project.

A file or folder in it is either whole or not there: it is made under another name and renamed when it is finished, and
a folder carries a list of its files with their hashes, which is compared before the folder is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autointerp.errors import DiskFullError, InputError, shown

CONTENTS = "contents.json"
"""The list in a folder: the name of each of its files with the sha256 of what is in it."""
_MOST_BYTES = 1 << 20
_MAKING, _OLD_S = ".making-", 24 * 3600.0


def default_cache() -> Path:
    """$XDG_CACHE_HOME/autointerp/real, or ~/.cache/autointerp/real. A relative XDG_CACHE_HOME does not count, as its
    standard says."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if given and Path(given).is_absolute():
        return Path(given) / "autointerp" / "real"
    try:
        return Path.home() / ".cache" / "autointerp" / "real"
    except RuntimeError:
        raise InputError("this user has no home folder to keep the model in; name a folder with --cache") from None


def sha256_of(path: Path) -> str:
    """The sha256 of a regular file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """A new folder in `cache`, on the same disk, that is deleted afterwards. Raises InputError where `cache` cannot be
    written, and DiskFullError. What a killed run left is deleted when it is a day old: a younger one may still run."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.glob(f"{_MAKING}*"):
            with suppress(FileNotFoundError):  # another run has just deleted its own
                if time.time() - old.stat().st_mtime > _OLD_S:
                    shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_MAKING, dir=cache, ignore_cleanup_errors=True) as made:
            yield Path(made)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space left in {cache}; about 700 MB are needed. Name another with --cache"
            ) from None
        raise InputError(f"{shown(str(cache))} cannot be used as the cache: {error.strerror or error}") from None


def made_file(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, which `make` fills under another name if it is not there."""
    if not path.is_file():
        with scratch(path.parent) as folder:
            make(folder / path.name)
            _keep(folder / path.name)
            os.replace(folder / path.name, path)
    return path


def made_folder(path: Path, make: Callable[[Path], object], say: Callable[[str], None]) -> Path:
    """`path`, which `make` fills under another name if it is not there, or not as it was made."""
    if path.exists():
        damage = _damage(path)
        if damage is None:
            return path
        say(f"{path} is not as it was made ({damage}), so it is made again")
    with scratch(path.parent) as folder:
        (folder / "new").mkdir()
        make(folder / "new")
        files = sorted(file for file in (folder / "new").iterdir() if file.is_file())
        for file in files:
            _keep(file)
        listed = {file.name: sha256_of(file) for file in files}
        (folder / "new" / CONTENTS).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        if path.exists():
            os.replace(path, folder / "old")
        os.replace(folder / "new", path)
    return path


def _damage(path: Path) -> str | None:
    """What differs from the folder's own list; None if nothing does."""
    try:
        with (path / CONTENTS).open("rb") as handle:
            listed = json.loads(handle.read(_MOST_BYTES))
        if not isinstance(listed, dict) or not listed:
            return f"{CONTENTS} lists no files"
        for name, sha256 in listed.items():
            if Path(name).name != name:
                return f"{CONTENTS} names {shown(name)}"
            if sha256_of(path / name) != sha256:
                return f"{name} has another content"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, RecursionError) as error:
        return str(error)
    return None


def _keep(file: Path) -> None:
    """Have the file on disk before its name is, so that a power cut leaves no named file without its content."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
