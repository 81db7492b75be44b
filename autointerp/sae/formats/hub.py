"""Downloads SAEs from the Hugging Face hub: "hf:owner/name//folder", "hf:owner/name@revision//folder" or
"hf:owner/name//file.pt".

Only the files directly in that folder are downloaded, since a repository may hold hundreds of SAEs in folders below,
and checkpoints/final.safetensors, where Llama Scope keeps its weights.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from autointerp.errors import AutointerpError, InputError

PREFIX = "hf:"
_ENDINGS = ("json", "yaml", "safetensors", "npz", "pt", "pth")
_FILE_ENDINGS = (".pt", ".pth", ".npz", ".safetensors")
_BESIDE = ("config.json", "config.yaml")
_BELOW = "checkpoints/final.safetensors"
_EXAMPLES = "examples.safetensors"
"""Gemma Scope 2's texts, some hundred megabytes beside each dictionary."""


class HubPath(NamedTuple):
    repository: str
    revision: str | None
    inside: str
    """The folder or file in the repository; "" for the whole of it."""


def local_folder(path: str) -> Path:
    """The SAE's place on this machine. "hf:..." is downloaded first; anything else is a path already.

    Raises InputError when `path` begins with hf: but has another form, when the repository, revision or folder does not
    exist, when the repository is gated or private, and when the hub cannot be reached and there is no local copy.
    """
    if not path.startswith(PREFIX):
        return Path(path)
    where = parse(path)
    from huggingface_hub import errors, snapshot_download  # slow to import, and rarely needed

    try:
        root = Path(
            snapshot_download(
                where.repository,
                revision=where.revision,
                allow_patterns=_wanted(where.inside),
                ignore_patterns=_unwanted(where.inside),
            )
        )
    except errors.GatedRepoError:
        raise InputError(
            f"{where.repository} is gated: accept its terms on the hub, and set HF_TOKEN to a token of that account"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"the hub has no repository {where.repository}, or it is private: check the name, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{where.repository} has no revision {where.revision!r}") from None
    except AutointerpError:
        raise
    except Exception as error:  # an error of the hub's own or, by version, of one of three HTTP libraries
        raise InputError(f"{path} could not be downloaded: {_reason(error)}") from None
    found = root / where.inside
    if not found.exists():
        raise InputError(f"{where.repository} has no {where.inside!r}; look at its list of files on the hub")
    return found


def parse(path: str) -> HubPath:
    """The parts of "hf:owner/name@revision//folder". Raises InputError for anything else."""
    name, _, inside = path.removeprefix(PREFIX).partition("//")
    name, _, revision = name.partition("@")
    inside = inside.strip("/")
    good = re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) and ".." not in PurePosixPath(inside).parts
    if not path.startswith(PREFIX) or not good or "\\" in inside:
        raise InputError(f"{path!r} is not of the form hf:owner/name//folder or hf:owner/name@revision//folder")
    return HubPath(name, revision or None, inside)


def _wanted(inside: str) -> list[str]:
    folder = f"{glob.escape(inside)}/" if inside else ""
    if inside.endswith(_FILE_ENDINGS):
        return [
            glob.escape(str(PurePosixPath(inside).parent / name)) for name in (PurePosixPath(inside).name, *_BESIDE)
        ]
    return [f"{folder}*.{ending}" for ending in _ENDINGS]


def _unwanted(inside: str) -> list[str]:
    """Patterns for the files in folders below, which must be excluded because * in a pattern matches / too, and for
    what is no part of a dictionary."""
    folder, kept = f"{glob.escape(inside)}/" if inside else "", str(PurePosixPath(_BELOW).parent)
    # A pattern has no "but for", so the folders whose names part from that of `kept` are listed letter by letter.
    others = [f"{kept[:n]}[!{letter}]*/*" for n, letter in enumerate(kept)]
    others += [f"{kept[:n]}/*" for n in range(1, len(kept))]
    others += [f"{kept}[!/]*/*", f"{kept}/[!f]*", f"{kept}/*/*", _EXAMPLES]
    return [f"{folder}{other}" for other in others]


def _reason(error: BaseException) -> str:
    text: Any = str(error).strip().splitlines()
    line = text[0][:300] if text else type(error).__name__
    offline = type(error).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "IncompleteSnapshotError")
    if offline or "onnect" in line:
        return f"the hub cannot be reached (or HF_HUB_OFFLINE is set), and no copy is kept here ({line})"
    return line
