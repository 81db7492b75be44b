"""Finds the program's files that are not Python: prompts/ and data/.

In a source checkout they are beside the package; an installed wheel has them in autointerp/_resources.
"""

from __future__ import annotations

from pathlib import Path

from autointerp.errors import InputError

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    installed, checkout = _PACKAGE / "_resources" / name, _PACKAGE.parent / name
    for folder in (installed, checkout):
        if folder.is_dir():
            return folder
    raise InputError(f"this installation of autointerp lacks its {name} folder ({installed}); install it again")


def prompts_folder(override: Path | None = None) -> Path:
    """The folder of prompt templates: the program's own, or `override` (--prompts).

    Raises InputError when there is no such folder.
    """
    if override is None:
        return _folder("prompts")
    if not override.is_dir():
        raise InputError(
            f"no folder of prompts at {override}; start from a copy of the program's own ({_folder('prompts')})"
        )
    return override


def data_folder() -> Path:
    """The folder of the shipped demo model and fixtures."""
    return _folder("data")
