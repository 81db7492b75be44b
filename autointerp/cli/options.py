"""Options that several commands share, and what a command makes of them: the configuration, the store, the features.

Typer reads a command's options from its parameters, so every command lists those it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autointerp import log
from autointerp.config import Config
from autointerp.config_file import environment_overrides, load
from autointerp.dictionary_controls import DICTIONARY_CONTROLS, LABEL_CONTROLS
from autointerp.log import LogFormat
from autointerp.store.selection import Selection

DEFAULT_CONFIG = Path("autointerp.toml")

ConfigFile = Annotated[Path, typer.Option("-c", "--config", envvar="AUTOINTERP_CONFIG", help="The configuration file.")]
StorePath = Annotated[
    Path | None, typer.Option("--store", envvar="AUTOINTERP_STORE", help="The store, instead of [store] path.")
]
DictionaryName = Annotated[
    str | None, typer.Option("--dictionary", envvar="AUTOINTERP_DICTIONARY", help="Which dictionary of the store.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More detail, and a traceback when something breaks.")]
LogForm = Annotated[
    LogFormat, typer.Option("--log-format", envvar=log.ENVIRONMENT, help="How the lines on standard error look.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done and what it would cost.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Features = Annotated[str | None, typer.Option("--features", help="Which features: 0-999,1234.")]
Where = Annotated[str | None, typer.Option("--where", help="Which features: an SQL condition on the table features.")]
RandomN = Annotated[int | None, typer.Option("--random", min=1, max=10**9, help="How many features to draw at random.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, max=10**9, help="The most features to work on.")]


class Order(StrEnum):
    density = "density"
    random = "random"
    score = "score"


InOrder = Annotated[
    Order | None,
    typer.Option(
        "--order", help="Which features come first: the most frequent, random ones, or those whose label scores worst."
    ),
]


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


Explainer = Annotated[str | None, typer.Option("--explainer", help="Instead of [explain] explainer.")]
Control = Annotated[
    str | None,
    typer.Option(
        "--control",
        help=f"Score a control, not the labels: {_either(LABEL_CONTROLS)}; or a dictionary that `run --control` made: "
        f"{_either(DICTIONARY_CONTROLS)}.",
    ),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        help=f"Score a control too: {_either(LABEL_CONTROLS)}. Or make a control of the whole dictionary: "
        f"{_either(DICTIONARY_CONTROLS)}. Separate several by commas, or repeat the flag.",
    ),
]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="Folder of prompt templates to use instead of the built-in ones.")
]
Deadline = Annotated[
    str | None,
    typer.Option("--deadline", help="When to stop: 5400 (seconds), 3h, 1h30m, 07:30 or 2026-11-23T07:30."),
]
Batch = Annotated[
    bool,
    typer.Option("--batch", help="Use the endpoint's batch API: cheaper, and answered within a day (see [llm] batch)."),
]


def read_config(path: Path, store: Path | None, deadline: str | None = None) -> Config:
    """The configuration at `path`; AUTOINTERP_SECTION__KEY variables, --store and --deadline override it."""
    overrides = environment_overrides()
    config = load(path, overrides if deadline is None else {**overrides, "budget.deadline": deadline})
    return replace(config, store=replace(config.store, path=str(store))) if store else config


def store_path(path: Path, store: Path | None) -> Path:
    """The store to read. The configuration at `path` is needed only where --store is not given."""
    return store if store else Path(read_config(path, None).store.path)


def labelling_config(config: Config, explainer: str | None, batch: bool) -> Config:
    """`config` with --explainer and --batch laid over it."""
    if batch:
        config = replace(config, llm=replace(config.llm, batch=True))
    return replace(config, explain=replace(config.explain, explainer=explainer)) if explainer else config


def chosen_features(
    features: str | None, where: str | None, random: int | None, limit: int | None, order: Order | None = None
) -> Selection:
    return Selection(features=features, where=where, random=random, limit=limit, order=order and order.value)


def named_controls(given: list[str] | None) -> tuple[str, ...]:
    """The values of --control, each once, also where one value names several."""
    return tuple(dict.fromkeys(name.strip() for value in given or () for name in value.split(",")))
