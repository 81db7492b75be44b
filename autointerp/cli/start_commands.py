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
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Check this address alone, without a configuration, and label a tiny store."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="With --endpoint: the model; by default the only one it lists.")
    ] = None,
    embedding_model: Annotated[
        str | None, typer.Option("--embedding-model", help="With --endpoint: the model that embeds.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="With --endpoint: the variable that holds the key.")
    ] = None,
    batch: Annotated[bool, typer.Option("--batch", help="With --endpoint: send a batch too, and wait for it.")] = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Check device, model, corpus, SAE and store, and with a few short calls whether the endpoint really returns
    logprobs. With --endpoint, check an endpoint alone."""
    from autointerp.cli.doctor import check_endpoint, run_doctor

    terminal = Terminal(verbose, log_format)
    of_endpoint = {
        "--model": model, "--embedding-model": embedding_model, "--api-key-env": api_key_env, "--batch": batch or None,
    }  # fmt: skip
    given = [flag for flag, value in of_endpoint.items() if value is not None]
    if endpoint is None:
        if given:
            raise InputError(f"{', '.join(given)} says how --endpoint URL is checked: name the endpoint too")
        run_doctor(read_config(config, store), terminal, prompts, not no_calls)
        return
    if no_calls:
        raise InputError("--endpoint asks the endpoint, and --no-calls forbids it: leave one of them out")
    check_endpoint(endpoint, model, embedding_model, api_key_env, batch, terminal)
