"""Commands that label features: explain, compile, score, and run, which does all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli.options import (
    DEFAULT_CONFIG,
    Batch,
    ConfigFile,
    Control,
    Controls,
    Deadline,
    DictionaryName,
    DryRun,
    Explainer,
    Features,
    InOrder,
    Limit,
    LogForm,
    Prompts,
    RandomN,
    StorePath,
    Verbose,
    Where,
    chosen_features,
    labelling_config,
    named_controls,
    read_config,
)
from autointerp.dictionary_controls import DICTIONARY_CONTROLS
from autointerp.errors import PartialFailure
from autointerp.log import LogFormat
from autointerp.terminal import Terminal

commands = typer.Typer()


@commands.command()
def explain(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    features: Features = None,
    where: Where = None,
    random: RandomN = None,
    limit: Limit = None,
    order: InOrder = None,
    explainer: Explainer = None,
    prompts: Prompts = None,
    deadline: Deadline = None,
    batch: Batch = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Label features that have no label yet."""
    from autointerp.stages import pipeline

    pipeline.explain(
        labelling_config(read_config(config, store, deadline), explainer, batch),
        dictionary,
        chosen_features(features, where, random, limit, order),
        Terminal(verbose, log_format),
        dry_run,
        is_configured=explainer is None,
        prompts=prompts,
    )


@commands.command("compile")
def compile_labels(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    features: Features = None,
    where: Where = None,
    random: RandomN = None,
    limit: Limit = None,
    order: InOrder = None,
    explainer: Annotated[str | None, typer.Option("--explainer", help="Whose labels to write as rules.")] = None,
    prompts: Prompts = None,
    deadline: Deadline = None,
    batch: Batch = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Write labels as rules, which score without an LLM and scan any text."""
    from autointerp.stages import pipeline

    settings = labelling_config(read_config(config, store, deadline), None, batch)
    chosen = chosen_features(features, where, random, limit, order)
    pipeline.compile_labels(settings, dictionary, explainer, chosen, Terminal(verbose, log_format), dry_run, prompts)


@commands.command()
def score(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    features: Features = None,
    where: Where = None,
    random: RandomN = None,
    limit: Limit = None,
    order: InOrder = None,
    explainer: Annotated[str | None, typer.Option("--explainer", help="Score this explainer's labels.")] = None,
    control: Control = None,
    prompts: Prompts = None,
    deadline: Deadline = None,
    batch: Batch = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Check labels that have no score yet against held-out text."""
    from autointerp.stages import pipeline

    settings = labelling_config(read_config(config, store, deadline), explainer, batch)
    chosen = chosen_features(features, where, random, limit, order)
    pipeline.score(settings, dictionary, chosen, Terminal(verbose, log_format), dry_run, control, prompts)


@commands.command()
def run(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    features: Features = None,
    where: Where = None,
    random: RandomN = None,
    limit: Limit = None,
    order: InOrder = None,
    control: Controls = None,
    prompts: Prompts = None,
    deadline: Deadline = None,
    batch: Batch = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Do all stages. What is done already is skipped, so cron may call this as often as you like."""
    from autointerp.report.control_lifts import print_lifts
    from autointerp.stages import pipeline

    settings = labelling_config(read_config(config, store, deadline), None, batch)
    chosen = chosen_features(features, where, random, limit, order)
    controls, terminal = named_controls(control), Terminal(verbose, log_format)
    failure: PartialFailure | None = None
    try:
        pipeline.run(settings, dictionary, chosen, terminal, dry_run, controls, prompts)
    except PartialFailure as error:
        failure = error
    if not dry_run and any(name in DICTIONARY_CONTROLS for name in controls):
        print_lifts(Path(settings.store.path), dictionary, terminal)
    if failure is not None:
        raise failure
