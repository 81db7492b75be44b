"""Hugging Face datasets: streamed from the hub, or opened where `save_to_disk` wrote them. Both take the package
`datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.formats.row_pieces import Row
from autointerp.errors import InputError, nearest

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"
_MOST_JSON = 1_000_000


def hub_rows(config: CorpusConfig, report: CorpusReport) -> Iterator[Row]:
    """A dataset of the hub, streamed in its own order. `hf:owner/dataset[:config][@split]`; default split: `train`.
    Raises InputError, at once, if it cannot be opened."""
    datasets = _package(config.source)
    spec, _, split = config.source.removeprefix("hf:").partition("@")
    name, _, subset = spec.partition(":")
    split = split or "train"
    if not name:
        raise InputError(f"corpus.source = {config.source!r} names no dataset; write hf:owner/dataset[:config][@split]")
    try:
        stream = datasets.load_dataset(name, subset or None, split=split, streaming=True)
    except (OSError, ValueError) as error:  # no such dataset, configuration or split; no network
        raise InputError(f"corpus.source = {config.source!r} cannot be opened: {error}") from None
    return _counted(stream, f"{spec}@{split}", report)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    if (folder / SPLITS_FILE).is_file():
        return True
    return (folder / STATE_FILE).is_file() and any(folder.glob("*.arrow"))


def saved_rows(folder: Path, config: CorpusConfig, report: CorpusReport) -> Iterator[Row]:
    """The rows of a folder that `save_to_disk` wrote; of several splits, those of `train`. Raises InputError, at once,
    if it cannot be opened or does not have the wanted columns."""
    datasets = _package(str(folder))
    if (folder / SPLITS_FILE).is_file():
        folder = folder / _split(folder)
    try:
        dataset = datasets.load_from_disk(str(folder))
        columns = [str(column) for column in dataset.column_names]
    except Exception as error:  # a damaged folder raises what its JSON, Arrow or `datasets` happens to raise
        raise InputError(f"{folder}, which save_to_disk wrote, cannot be opened: {error}; save it again") from None
    for column in (config.chat_field or config.text_field, *([config.id_field] if config.id_field else [])):
        if column not in columns:
            raise InputError(
                f"{folder} has no column {column!r}; it has {', '.join(columns)}.{nearest(column, columns)}"
            )
    return _counted(dataset, folder.name, report)


def _split(folder: Path) -> str:
    try:
        with (folder / SPLITS_FILE).open("rb") as handle:
            splits = json.loads(handle.read(_MOST_JSON))["splits"]
        names = [str(split) for split in splits]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder / SPLITS_FILE} cannot be read ({error}); save the dataset again") from None
    if "train" in names:
        return "train"
    if len(names) == 1 and Path(names[0]).name == names[0]:
        return names[0]
    raise InputError(f"{folder} holds the splits {', '.join(names) or 'none'}; name the folder of one of them")


def _package(source: str) -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"corpus.source = {source!r} needs the package `datasets`; pip install datasets, or name other files"
        ) from None
    module: ModuleType = datasets
    return module


def _counted(rows: Iterable[Any], name: str, report: CorpusReport) -> Iterator[Row]:
    for index, row in enumerate(rows):
        report.n_records += 1
        yield f"{name}:{index}", row
