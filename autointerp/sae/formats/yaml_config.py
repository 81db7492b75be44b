"""Reads the YAML that some tools write beside their weights: tables, lists and plain values, and no Python objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from autointerp.errors import DamagedError, InputError
from autointerp.sae import files
from autointerp.sae.formats.internal import MAX_CONFIG_BYTES

_PYTHON_TUPLE = "tag:yaml.org,2002:python/tuple"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which makes plain values only. Aliases are refused: a few of them, each of several others,
    unfold into more values than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        return super().compose_node(parent, index)


def _as_list(loader: _Loader, node: Any) -> list[Any]:
    return list(loader.construct_sequence(node, deep=True))


_Loader.add_constructor(_PYTHON_TUPLE, _as_list)


def read(path: Path) -> dict[str, Any]:
    """The table in a YAML file; what Python wrote as a tuple is a list. Raises InputError where there is no file, and
    DamagedError where it is larger than 1 MB, is not YAML, asks for a Python object, or is not a table."""
    if files.regular_size(path) > MAX_CONFIG_BYTES:
        raise DamagedError(f"{path} is larger than 1 MB, so it is not an SAE configuration")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  (a safe loader)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"{path} is damaged: it is no plain YAML ({reason})") from None
    if not isinstance(config, dict):
        raise DamagedError(f"{path} is damaged: expected a table, found {type(config).__name__}")
    return {str(key): value for key, value in config.items()}
