"""Commands that run the language model: train, harvest, merge, evaluate, measure, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli.options import (
    DEFAULT_CONFIG,
    ConfigFile,
    Deadline,
    DictionaryName,
    DryRun,
    Features,
    Limit,
    LogForm,
    RandomN,
    StorePath,
    Verbose,
    Where,
    chosen_features,
    read_config,
    store_path,
)
from autointerp.config import SaeConfig
from autointerp.errors import InputError, MismatchError
from autointerp.log import LogFormat
from autointerp.report.show_json import as_json_text
from autointerp.terminal import Terminal

commands = typer.Typer()


@commands.command()
def train(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    deadline: Deadline = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Train the SAEs of [[sae]] tables without a path. Goes on from the last checkpoint."""
    from autointerp.stages import pipeline

    pipeline.train(read_config(config, store, deadline), dictionary, Terminal(verbose, log_format))


@commands.command()
def harvest(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    shard_index: Annotated[
        int, typer.Option("--shard-index", min=0, max=10**6, help="Which shard this process makes.")
    ] = 0,
    num_shards: Annotated[int, typer.Option("--num-shards", min=1, max=10**6, help="How many shards there are.")] = 1,
    deadline: Deadline = None,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Collect every feature's evidence. With --num-shards above 1, `merge` follows once all shards are done."""
    from autointerp.stages import pipeline

    if shard_index >= num_shards:
        raise InputError(f"--shard-index {shard_index} needs --num-shards above {shard_index}, not {num_shards}")
    terminal = Terminal(verbose, log_format)
    pipeline.harvest(read_config(config, store, deadline), dictionary, terminal, shard_index, num_shards, dry_run)


@commands.command()
def merge(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Merge harvested shards into the store."""
    from autointerp.stages import pipeline

    pipeline.merge(read_config(config, store), dictionary, Terminal(verbose, log_format))


@commands.command()
def evaluate(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, max=10**12, help="Tokens of each corpus to measure on.")
    ] = 200_000,
    splice_tokens: Annotated[
        int,
        typer.Option(
            "--splice-tokens", min=0, max=10**12, help="How many of those serve for the loss with the reconstruction."
        ),
    ] = 20_000,
    corpus: Annotated[
        list[str] | None, typer.Option("--corpus", help="Another text to measure on as well; may be repeated.")
    ] = None,
    probes: Annotated[
        list[Path] | None, typer.Option("--probes", help="Labelled text (jsonl) for probing; may be repeated.")
    ] = None,
    structural_only: Annotated[
        bool, typer.Option("--structural-only", help="Leave out robustness, absorption, probing and stability.")
    ] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write one self-contained HTML page.")] = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            help="Only see whether the SAE at this path is read as it was trained; needs no store. Exit code 8 if not.",
        ),
    ] = None,
    hookpoint: Annotated[
        str, typer.Option("--hookpoint", help="With --check: what the SAE reads, where its file does not say.")
    ] = "",
    output_hookpoint: Annotated[
        str | None, typer.Option("--output-hookpoint", help="With --check: what a transcoder writes.")
    ] = None,
    reading: Annotated[
        str, typer.Option("--reading", help="With --check: how the file is read, as in a [[sae]] table.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="All rows as JSON instead of a table.")] = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Measure how good a dictionary is: reconstruction, sparsity, loss, stability, robustness, absorption, probing."""
    from autointerp.stages import pipeline
    from autointerp.stages.evaluate_options import EvaluateOptions

    terminal = Terminal(verbose, log_format)
    if check is not None:
        sae = SaeConfig(hookpoint, check, output_hookpoint=output_hookpoint, path=check, reading=reading)
        tried, refusal = pipeline.check_sae(read_config(config, store), sae, terminal.without_results(as_json))
        if as_json:
            terminal.result(as_json_text(tried))
        if refusal is not None:
            raise MismatchError(refusal)
        return
    if hookpoint or output_hookpoint or reading:
        raise InputError("--hookpoint, --output-hookpoint and --reading go with --check; see [[sae]] for a dictionary")
    options = EvaluateOptions(
        tokens=tokens,
        splice_tokens=splice_tokens,
        corpora=tuple(corpus or ()),
        probes=tuple(probes or ()),
        is_structural_only=structural_only,
        report=report,
    )
    rows = pipeline.evaluate(read_config(config, store), dictionary, options, terminal.without_results(as_json))
    if as_json:
        terminal.result(as_json_text(rows))


@commands.command()
def measure(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    features: Features = None,
    where: Where = None,
    random: RandomN = None,
    limit: Limit = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="An evidence method to run besides the configured ones; may be repeated."),
    ] = None,
    deadline: Deadline = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Run what needs the model after the harvest: evidence methods such as pruning and token_change, and what scorers
    have asked for (activations on written texts, surprisal, similarity, steering)."""
    from autointerp.stages import pipeline

    chosen = chosen_features(features, where, random, limit)
    terminal = Terminal(verbose, log_format)
    pipeline.measure(read_config(config, store, deadline), dictionary, chosen, terminal, tuple(method or ()))


@commands.command()
def verify(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    sample: Annotated[int, typer.Option("--sample", min=1, max=10**9, help="Contexts to recompute.")] = 200,
    leakage_only: Annotated[
        bool, typer.Option("--leakage-only", help="Only look for leakage between the splits; needs no model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The leakage report as JSON instead of text.")] = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Recompute stored activations from the model; check splits, leakage, row ledger. Exit code 1 on a difference."""
    from autointerp.stages import pipeline

    terminal = Terminal(verbose, log_format)
    if leakage_only:
        pipeline.verify_leakage(store_path(config, store), dictionary, terminal, as_json)
        return
    pipeline.verify(read_config(config, store), dictionary, sample, terminal, as_json)
