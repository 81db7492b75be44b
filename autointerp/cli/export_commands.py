"""The command that writes for other tools: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli.options import DEFAULT_CONFIG, ConfigFile, LogForm, StorePath, Verbose, read_config, store_path
from autointerp.log import LogFormat
from autointerp.terminal import Terminal

commands = typer.Typer()


@commands.command()
def export(
    target: Annotated[
        str,
        typer.Argument(help="Weights: saelens, sparsify, circuit-tracer. Labels: circuit-tracer-features or -graph."),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not hold anything.")],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: Annotated[
        list[str] | None, typer.Option("--dictionary", help="Which dictionary; may be repeated. Default: all.")
    ] = None,
    contexts: Annotated[
        int, typer.Option("--contexts", min=0, max=1000, help="The most contexts of each kind that a feature gets.")
    ] = 5,
    graph: Annotated[
        list[Path] | None,
        typer.Option("--graph", help="A graph file of circuit-tracer, for circuit-tracer-graph; may be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Write dictionaries or labels for another tool, whole or not at all."""
    from autointerp.export.export_folder import check_job, lines_of
    from autointerp.export.export_target import Job
    from autointerp.export.targets import target_named
    from autointerp.stages import pipeline

    chosen, terminal = target_named(target), Terminal(verbose, log_format)
    settings = read_config(config, store) if chosen.needs_weights else None
    job = Job(
        name=out.name,
        store=Path(settings.store.path) if settings else store_path(config, store),
        dictionaries=tuple(dict.fromkeys(dictionary or ())),
        contexts=contexts,
        graphs=tuple(graph or ()),
        counting=terminal.counting,
        say=terminal.say,
    )
    check_job(job, chosen)
    for line in lines_of(pipeline.export(settings, job, chosen, out, terminal, force), out):
        terminal.say(line)
