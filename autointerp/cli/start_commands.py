"""Commands for a first look: init, demo, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli.config_template import config_template
from autointerp.cli.options import DEFAULT_CONFIG, ConfigFile, LogForm, Prompts, StorePath, Verbose, read_config
from autointerp.errors import InputError, shown
from autointerp.log import LogFormat
from autointerp.terminal import Terminal

commands = typer.Typer()


@commands.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented autointerp.toml."""
    target = directory / "autointerp.toml"
    try:
        if target.exists() and not force:
            raise InputError(f"{target} exists; --force overwrites it")
        directory.mkdir(parents=True, exist_ok=True)
        target.write_text(config_template(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{shown(str(target))} cannot be written: {error.strerror}") from None
    Terminal().result(
        f"wrote {target}; set [model] name, [corpus] source and the [[sae]] hookpoint, then: autointerp run"
    )


@commands.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for the demo's files. Default: autointerp-demo; of --real, autointerp-real."
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, max=10**12, help="Tokens to train on and to harvest; --real harvests half."),
    ] = None,
    real: Annotated[
        bool,
        typer.Option("--real", help="Run on a real language model and English text, fetched once (140 MB)."),
    ] = False,
    features: Annotated[
        int | None, typer.Option("--features", min=1, max=10**6, help="With --real: features of a dictionary.")
    ] = None,
    proper: Annotated[
        bool, typer.Option("--proper", help="With --real: two layers, trained properly; this takes hours.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="With --real: where model and text are kept. Default: ~/.cache/autointerp/real."),
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="With --real: a file or folder with more text. May be repeated.")
    ] = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Run the whole pipeline on the shipped model, offline and without a key, or with --real on a real one; leaves
    config, store and SAE behind."""
    terminal = Terminal(verbose, log_format)
    if real:
        from autointerp.cli.real_demo import RealSizes, run_real_demo

        run_real_demo(out or Path("autointerp-real"), cache, text or [], RealSizes(tokens, features, proper), terminal)
        return
    given = {"--features": features, "--proper": proper or None, "--cache": cache, "--text": text or None}
    for flag, value in given.items():
        if value is not None:
            raise InputError(f"{flag} belongs to the run on the real model: autointerp demo --real {flag} ...")
    from autointerp.cli.demo import run_demo

    run_demo(out or Path("autointerp-demo"), tokens, terminal)


@commands.command()
def doctor(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    prompts: Prompts = None,
    no_calls: Annotated[
        bool, typer.Option("--no-calls", help="Ask the endpoints nothing, which costs nothing.")
    ] = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Check device, model, corpus, SAE and store, and with a few short calls whether the endpoint really returns
    logprobs."""
    from autointerp.cli.doctor import run_doctor

    run_doctor(read_config(config, store), Terminal(verbose, log_format), prompts, not no_calls)
