"""`autointerp demo --real`: labels features of a real language model on English text.

It gets the model and the text into a cache, measures this machine, writes the configuration that a user would write,
and runs the pipeline on it: first for a few features, so that there are labels to read, then for all. Every step is
kept, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autointerp.cli.demo_config import is_written, toml_path, write_config
from autointerp.config import Config, TrainConfig
from autointerp.config_file import load
from autointerp.errors import InputError
from autointerp.real_model.cache_folder import default_cache
from autointerp.real_model.run_forecast import Sizes, Speed, forecast, largest_that_fits, span
from autointerp.report.label_table import print_labels
from autointerp.stages import pipeline
from autointerp.store.selection import Selection
from autointerp.terminal import Terminal

FIRST = 200
"""Features that are labelled, and shown, before the others."""
WITHIN_S = 9 * 60.0
"""The default size is the largest whose first labels are forecast to come within this time."""
WIDTH, CONTEXT, K = 576, 128, 32
"""Of the model's residual stream, in tokens, and features active on one token."""
LAYERS, PROPER_LAYERS = (14,), (14, 22)
FEWEST_TOKENS = 20_000
MOST_HARVESTED = 10_000_000
"""Tokens."""
TRAINING_SHARE = 0.75
"""Of a corpus, in tokens: the explain and select splits."""
_CONFIG = "autointerp.toml"


@dataclass(frozen=True, slots=True)
class RealSizes:
    """What the command line asks for; None: as much as fits."""

    tokens: int | None = None
    features: int | None = None
    proper: bool = False

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < FEWEST_TOKENS:
            raise InputError(f"--tokens {self.tokens} is too little text to learn from; give {FEWEST_TOKENS:,} or more")

    @property
    def layers(self) -> tuple[int, ...]:
        return PROPER_LAYERS if self.proper else LAYERS

    def choices(self) -> tuple[Sizes, ...]:
        """The sizes of the run, the largest first. A harvest reads half as much text as there are training vectors."""
        if self.proper:
            usual, features = [25_000_000], self.features or 8192
        else:
            usual, features = [1_000_000, 800_000, 600_000, 400_000, 250_000], self.features or 4096
        trained = usual if self.tokens is None else [self.tokens]

        def of(tokens: int) -> Sizes:
            corpus = min(MOST_HARVESTED, tokens // 2)
            passes = round(TRAINING_SHARE * corpus) if self.proper else None
            return Sizes(tokens, corpus, features, len(self.layers), passes=passes)

        return tuple(of(tokens) for tokens in trained)


def run_real_demo(out: Path, cache: Path | None, more: Sequence[Path], sizes: RealSizes, terminal: Terminal) -> None:
    """Get what is missing, write OUT/autointerp.toml unless it is there, run every stage, and print the labels. Raises
    InputError where the file is there and sizes, or texts that it does not read, are given too."""
    pipeline.require_torch()
    path = out / _CONFIG
    goes_on = is_written(path)
    if goes_on and sizes != RealSizes():
        raise InputError(
            f"{path} exists, and what it says holds: leave out --tokens, --features and --proper to go on with it, or "
            "name another folder with --out"
        )
    from autointerp.real_model.english_text import english_text
    from autointerp.real_model.model_folder import model_folder

    begun = time.monotonic()
    kept = (default_cache() if cache is None else cache).absolute()
    model, text = model_folder(kept, terminal), english_text(kept, more, terminal)
    if not goes_on:
        write_config(path, _measured_config(model, text, sizes, terminal))
        terminal.say(f"wrote {path}")
    config = load(path)
    if goes_on and more and Path(config.corpus.source) != text:
        raise InputError(
            f"{path} exists, and reads {config.corpus.source}, not what --text names now: leave out --text to go on "
            "with it, or name another folder with --out"
        )
    label_in_two_rounds(config, begun, terminal)
    terminal.say(
        f'look further: cd {out} && autointerp show 0   or   autointerp query "SELECT * FROM labels LIMIT 5". With an '
        "LLM: set [explain] explainer = 'combined', model and base_url, then autointerp explain --random 50"
    )


def label_in_two_rounds(config: Config, begun: float, terminal: Terminal) -> None:
    """Run the pipeline for a few features, show their labels, and run it for all."""
    names, store = [sae.dictionary for sae in config.sae], Path(config.store.path)
    pipeline.run(config, None, Selection(random=FIRST), terminal)
    for name in names:
        print_labels(store, name, terminal, rows=10)
    terminal.say(f"the first labels after {span(time.monotonic() - begun)}; now the other features")
    pipeline.run(config, None, Selection(), terminal)
    for name in names:
        print_labels(store, name, terminal)
    terminal.say(f"done after {span(time.monotonic() - begun)}; everything is in {store.parent}")


def _measured_config(model: Path, text: Path, sizes: RealSizes, terminal: Terminal) -> str:
    """The configuration for this machine, after saying how long it will run."""
    from autointerp.real_model.machine_speed import model_speed, slowness, steps_per_second

    points, choices = [f"model.layers.{layer}" for layer in sizes.layers], sizes.choices()
    with terminal.working("measuring how fast the model runs here"):
        of_model = model_speed(str(model), points, CONTEXT)
        steps = steps_per_second(WIDTH, choices[0].features, K, TrainConfig())
    terminal.say(of_model.reason)
    speed = Speed(of_model.tokens_per_s, steps, slowness())
    chosen = largest_that_fits(speed, choices, FIRST, WITHIN_S)
    for line in forecast_lines(speed, chosen):
        terminal.say(line)
    return config_text(Prepared(str(model), str(text), of_model.dtype, of_model.reason, points), chosen)


def forecast_lines(speed: Speed, sizes: Sizes) -> list[str]:
    found = forecast(speed, sizes, FIRST)
    what = (
        f"{sizes.features:,} features"
        if sizes.dictionaries == 1
        else f"{sizes.dictionaries} x {sizes.features:,} features"
    )
    return [
        f"{what}, trained on {sizes.train_tokens:,} activation vectors, contexts from {sizes.corpus_tokens:,} tokens",
        f"forecast for this machine as it is loaded now ({speed.steps_per_s:.1f} training steps a second): training "
        f"{span(found.train)}, harvest {span(found.harvest)}, evidence {span(found.evidence)}; the first labels in "
        f"about {span(found.until_first_labels)}, all in about {span(found.whole)}",
    ]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a configuration names."""

    model: str
    text: str
    dtype: str
    reason: str
    hookpoints: Sequence[str] = field(default_factory=tuple)


def config_text(found: Prepared, sizes: Sizes) -> str:
    """The autointerp.toml of a run."""
    saes = "\n".join(
        f'[[sae]]\nname = "layer{point.rpartition(".")[2]}"\nhookpoint = "{point}"\narchitecture = "topk"\n'
        f"d_sae = {sizes.features}\nk = {min(K, sizes.features)}\n"
        for point in found.hookpoints
    )
    return f"""\
# A real language model, SmolLM2-135M-Instruct, and dictionaries of its residual stream.

[model]
name = {toml_path(found.model)}
dtype = "{found.dtype}"
# measured when this file was written: {found.reason}

[corpus]
source = {toml_path(found.text)}
id_field = "id"
context_length = {CONTEXT}
max_tokens = {sizes.corpus_tokens}

{saes}
[train]
tokens = {sizes.train_tokens}
{'cache = "activations"' if sizes.passes is not None else ""}
[harvest]
sampled_contexts = 60

[explain]
explainer = "patterns"   # needs no LLM; "combined" asks one (set model and base_url)

[score]
scorers = ["simulation"]

[store]
path = "real.duckdb"
"""
