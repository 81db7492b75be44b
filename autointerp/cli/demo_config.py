"""The configuration file that a demo writes for the user."""

from __future__ import annotations

from pathlib import Path

from autointerp.errors import InputError, shown


def toml_path(path: str) -> str:
    """A path as a string of TOML. Raises InputError for one with control characters."""
    text = path.replace("\\", "/")
    if any(ord(sign) < 32 or sign == "\x7f" for sign in text):
        raise InputError(f"the path {shown(text)} holds control characters; name another folder")
    return '"' + text.replace('"', '\\"') + '"'


def is_written(path: Path) -> bool:
    """Whether the file is there. Raises InputError for a path that no file can have."""
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"{shown(str(path))} cannot be looked at: {error.strerror}") from None


def write_config(path: Path, text: str) -> None:
    """Write the file whole or not at all, and its folder if there is none. Raises InputError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise InputError(f"{shown(str(path))} cannot be written: {error.strerror}") from None
