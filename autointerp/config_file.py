"""Reads the configuration: autointerp.toml, with AUTOINTERP_SECTION__KEY variables and flags laid over it.

config.py holds the dataclasses. This file fills them and names the key of every value that does not fit.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
import types
import typing
from datetime import date, datetime
from datetime import time as day_time
from pathlib import Path
from typing import Any, Literal

from autointerp.config import Config, EndpointConfig
from autointerp.deadline import fixed
from autointerp.errors import InputError, nearest, shown
from autointerp.number_ranges import ranges

NOT_TOML = (ValueError, RecursionError)
"""What tomllib raises: besides its own error, those for bytes that are not UTF-8, numbers of 5,000 digits, and deep
nests."""
_MOST_BYTES = 16 * 2**20
"""The largest configuration that is read: `-c /dev/zero` has no end."""


def load(path: Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read the configuration at `path`; `overrides` maps dotted keys ("store.path") to values.

    Relative paths in the file (model folder, corpus, SAE, activation cache, store) are taken from the file's own
    folder. A deadline given as a span or a time of day becomes a fixed moment, counted from now.

    Raises InputError when the file is missing or not TOML, and when a key is unknown or a value has the wrong type or
    contradicts another.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise InputError(f"{path} is no configuration: it is longer than {_MOST_BYTES >> 20} MiB")
        table = tomllib.loads(raw.decode("utf-8").replace("\r\n", "\n"))
    except FileNotFoundError:
        raise InputError(f"no configuration at {path}; `autointerp init` writes one, -c names another") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except NOT_TOML as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    return _resolved(from_table(table, overrides), path.parent)


def from_table(table: dict[str, Any], overrides: dict[str, Any] | None = None) -> Config:
    """Build a Config from a parsed TOML table; `overrides` maps dotted keys ("store.path") to values."""
    for dotted, value in (overrides or {}).items():
        _set(table, dotted, value)
    return typing.cast(Config, _build(Config, table, ""))


def environment_overrides(environ: typing.Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Overrides from variables such as AUTOINTERP_STORE__PATH. A value that is not TOML is taken as a plain string."""
    overrides: dict[str, Any] = {}
    for name, raw in environ.items():
        if name.startswith("AUTOINTERP_") and "__" in name:
            dotted = name.removeprefix("AUTOINTERP_").lower().replace("__", ".")
            try:
                overrides[dotted] = tomllib.loads(f"value = {raw}")["value"]
            except NOT_TOML:
                overrides[dotted] = raw
    return overrides


def as_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain values that JSON can hold, for provenance columns. Addresses of endpoints are without
    what may be a secret in them."""
    found = dataclasses.asdict(config)
    for name in found:
        part = getattr(config, name)
        if isinstance(part, EndpointConfig):
            found[name]["base_url"] = part.address
    return found


def _set(table: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"{dotted} cannot be set from outside the file: {part} is not a table there")
    table[last] = value


def _build(kind: type, table: Any, where: str) -> Any:
    """The dataclass `kind` filled from `table`; `where` is its dotted key."""
    if not isinstance(table, dict):
        raise InputError(f"{where or 'the configuration'} must be a table, not {shown(table)}")
    hints, numbers = typing.get_type_hints(kind), ranges(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{where}.{key}" if where else key
        if key not in hints:
            raise InputError(f"unknown configuration key {name!r}.{_section_of(key, where) or nearest(key, hints)}")
        values[key] = _convert(value, hints[key], name)
        if key in numbers:
            numbers[key].check(values[key], name)
    return kind(**values)


def _convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as the field type `kind`, or an InputError that names the key `where`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and (value is None or value == "none"):  # TOML has no null
            return None
        kinds = [a for a in args if a is not type(None)]
        fitting = [a for a in kinds if isinstance(value, a)] if len(kinds) > 1 and not isinstance(value, bool) else []
        if not fitting and str in kinds and isinstance(value, (datetime, date, day_time)):
            return value.isoformat()
        return _convert(value, (fitting or kinds)[0], where)
    if origin is Literal:
        _check(value in args, f"{where} must be one of {', '.join(map(str, args))}, not {shown(value)}")
        return value
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    if origin is tuple:
        _check(isinstance(value, (list, tuple)), f"{where} must be a list, not {shown(value)}")
        return tuple(_convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        _check(isinstance(value, dict), f"{where} must be a table, not {shown(value)}")
        return {str(k): _convert(v, args[1], f'{where}."{k}"') for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf  # refused by the field's range
    good = isinstance(value, kind) and not (kind is not bool and isinstance(value, bool))
    _check(good, f"{where} must be {kind.__name__}, not {shown(value)}")
    _check(not (kind is str and "\0" in value), f"{where} holds a NUL character, which no path or name takes")
    return value


def _check(fits: bool, message: str) -> None:
    if not fits:
        raise InputError(message)


def _section_of(key: str, where: str) -> str:
    """' It belongs in [explain] or [score].' where `key` stands in the wrong table; '' where no table has it."""
    kinds = {name: kind for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)}
    homes = [f"[{name}]" for name, kind in kinds.items() if name != where and key in typing.get_type_hints(kind)]
    return f" It belongs in {' or '.join(homes)}." if homes else ""


def _resolved(config: Config, folder: Path) -> Config:
    """`config` with relative paths taken from `folder` and a relative deadline counted from now."""

    def resolved(value: str, must_exist: bool) -> str:
        """`value` as a path in `folder`. With `must_exist`, a name that no such path has (a hub id) stays as it is."""
        if value.startswith("hf:"):
            return value
        try:
            expanded = Path(value).expanduser()
        except RuntimeError:
            raise InputError(f"{shown(value)} names the home folder of a user who is not known here") from None
        beside = folder / expanded
        if expanded.is_absolute():
            return str(expanded)
        return str(beside) if not must_exist or os.path.exists(beside) else value

    score = config.score
    if score.language_model:
        score = dataclasses.replace(score, language_model=resolved(score.language_model, True))
    if score.embedding_model.startswith("local:"):
        path = resolved(score.embedding_model.removeprefix("local:"), True)
        score = dataclasses.replace(score, embedding_model=f"local:{path}")
    evidence = config.evidence
    if evidence.lens_file:
        evidence = dataclasses.replace(evidence, lens_file=resolved(evidence.lens_file, False))
    source = config.corpus.source
    if source and source != "stdlib":
        source = resolved(source, must_exist=False)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name=resolved(config.model.name, True) if config.model.name else ""),
        corpus=dataclasses.replace(config.corpus, source=source),
        sae=tuple(dataclasses.replace(s, path=resolved(s.path, False) if s.path else None) for s in config.sae),
        train=dataclasses.replace(
            config.train, cache=resolved(config.train.cache, False) if config.train.cache else None
        ),
        evidence=evidence,
        score=score,
        budget=dataclasses.replace(config.budget, deadline=fixed(config.budget.deadline)),
        store=dataclasses.replace(config.store, path=resolved(config.store.path, False)),
    )
