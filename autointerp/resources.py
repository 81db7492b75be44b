"""Where the files that belong to the program but are no Python lie: prompts/ and data/.

In a source checkout they stand beside the package; an installed wheel holds them in autointerp/_resources.
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
    """The prompt templates: those of this version, or the folder given with --prompts.

    Raises InputError: no such folder.
    """
    if override is None:
        return _folder("prompts")
    if not override.is_dir():
        raise InputError(f"no folder of prompts at {override}; copy the program's own ({_folder('prompts')}) to start")
    return override


def data_folder() -> Path:
    """The shipped demo model and fixtures."""
    return _folder("data")
