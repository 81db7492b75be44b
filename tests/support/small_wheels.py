"""Wheels that pip takes, made of a few files, in place of the packages of the real model."""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from autointerp.real_model.cache_folder import sha256_of
from autointerp.real_model.wheels import Wheel


def make_wheel(folder: Path, package: str, version: str, files: Mapping[str, bytes]) -> Wheel:
    """A wheel in `folder`, pinned by the hash of what is in it."""
    wheel = Wheel(package, version, "", 1)
    name = f"{package.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    with zipfile.ZipFile(folder / wheel.file_name, "w") as out:
        for path, content in files.items():
            out.writestr(path, content)
        out.writestr(f"{name}/METADATA", metadata)
        out.writestr(f"{name}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{name}/RECORD", "")
    return Wheel(package, version, sha256_of(folder / wheel.file_name), 1)


def zstd(content: bytes) -> bytes:
    try:
        module = importlib.import_module("compression.zstd")
    except ImportError:
        module = importlib.import_module("backports.zstd")
    packed: bytes = module.compress(content)
    return packed
