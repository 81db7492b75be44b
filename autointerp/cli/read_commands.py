"""Commands that read the store: status, show, search, query, compare, and scan, which reads a text beside it. None of
them imports the LLM client or torch, whose import takes longer than most queries, and each imports its own report."""

from __future__ import annotations

import math
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from autointerp.cli.options import (
    DEFAULT_CONFIG,
    AsJson,
    ConfigFile,
    DictionaryName,
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
from autointerp.errors import CutShortError, InputError
from autointerp.log import LogFormat
from autointerp.report.show_json import as_json_text, named_apart
from autointerp.store.query import run_query
from autointerp.terminal import Terminal

commands = typer.Typer()


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class CompareForm(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


@commands.command()
def status(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Say what is done, pending, failed and spent."""
    from autointerp.report.status import print_status

    print_status(store_path(config, store), as_json, Terminal(verbose, log_format))


@commands.command()
def show(
    feature: Annotated[str, typer.Argument(help="[NAME:]FEATURE, e.g. 1234 or h6:1234.")],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    contexts: Annotated[int, typer.Option("--contexts", min=0, max=10**6, help="Contexts of each kind.")] = 5,
    as_json: AsJson = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Show one feature: label, scores, evidence, contexts."""
    from autointerp.report.show import print_feature

    path = store_path(config, store)
    print_feature(path, feature, dictionary, contexts, as_json, Terminal(verbose, log_format))


@commands.command()
def compare(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Compare every explainer with this one, instead of all pairs.")
    ] = None,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="How stable labels are, and how alike scorers rank them.")
    ] = False,
    strata: Annotated[
        bool, typer.Option("--strata", help="Also the parts of a score, such as detection_sensitivity_decile_9.")
    ] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="Instead: dictionaries beside their controls that `run --control` made.")
    ] = False,
    form: Annotated[CompareForm, typer.Option("--format", help="How to print the answer.")] = CompareForm.table,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Compare explainers, and each with its controls, on the features that both scored."""
    from autointerp.report.compare import print_comparison

    path, terminal = store_path(config, store), Terminal(verbose, log_format)
    if controls:
        if against or agreement or strata:
            raise InputError("--controls compares dictionaries; it goes with none of --against, --agreement, --strata")
        from autointerp.report.control_lifts import print_lift_table

        print_lift_table(path, dictionary, form.value, terminal)
        return
    print_comparison(path, dictionary, against, agreement, strata, form.value, terminal)


@commands.command()
def search(
    text: Annotated[str, typer.Argument(help="Words to look for in labels.")],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10**9, help="The most hits to print.")] = 20,
    as_json: AsJson = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Find features by words in their label."""
    from autointerp.report.search import print_search

    print_search(store_path(config, store), text, dictionary, limit, as_json, Terminal(verbose, log_format))


@commands.command()
def scan(
    corpus: Annotated[str, typer.Argument(help="The text: a file, folder or glob, hf:DATASET, or stdlib.")],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    features: Features = None,
    where: Where = None,
    random: RandomN = None,
    limit: Limit = None,
    explainer: Annotated[
        str | None, typer.Option("--explainer", help="Whose labels. Default: of each feature the best with a rule.")
    ] = None,
    at_least: Annotated[
        float | None,
        typer.Option(
            "--at-least", min=0, max=10, help="The weakest prediction, 0 to 10, that counts. Default: 1, as for scores."
        ),
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, max=1000, help="Places shown of each feature.")] = 5,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write: .jsonl, .csv or .parquet.")
    ] = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Find where the rules of labels hold in any text, without the model."""
    from autointerp.report.scan_table import print_scan, write_scan
    from autointerp.stages.scanning import Scan, ScanOptions, scan_with_progress
    from autointerp.store.row_files import check_rows_file

    settings, terminal = read_config(config, store), Terminal(verbose, log_format)
    if output is not None:
        if as_json:
            raise InputError(
                f"--json writes to the terminal and -o to {output}; give one of them (a file that ends in .jsonl holds "
                "JSON)"
            )
        check_rows_file(output, Path(settings.store.path))
    chosen = chosen_features(features, where, random, limit)
    found = Scan(settings, corpus, chosen, ScanOptions.of(explainer, at_least, examples), dictionary, terminal.say)
    is_whole = scan_with_progress(found, terminal)
    rows = found.rows
    if output is not None:
        write_scan(output, rows)
        terminal.say(f"wrote {output}")
    else:
        print_scan(rows, as_json, terminal)
    if not is_whole:
        raise CutShortError(f"stopped after {found.counts.n_tiles:,} tiles; what is told is about the text until there")


@commands.command()
def query(
    sql: Annotated[str, typer.Argument(help="One SQL statement, or - to read it from standard input.")],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="How to write the answer. Default: by the output file's name, else a table."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write (needed for parquet).")] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, max=10**6, help="Seconds.")] = 30.0,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Allow reading other files too (nothing is written).")
    ] = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Answer an SQL query over the store, read-only and locked down."""
    if math.isnan(timeout):
        raise InputError("--timeout must be a number of seconds, not nan")
    statement = _from_standard_input() if sql == "-" else sql
    path = store_path(config, store)
    terminal = Terminal(verbose, log_format)
    if output is not None or form is Format.parquet:
        if output is None:
            raise InputError("--format parquet needs a file to write: -o FILE")
        file_form = "csv" if form in (None, Format.table) else form.value
        if form is None and (named := output.suffix.lower().lstrip(".")) in ("json", "parquet"):
            file_form = named
        with TemporaryDirectory(prefix="autointerp-") as folder:
            # Another process may write the file, and its standard output is not ours.
            is_own_output = str(output) in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
            file = Path(folder) / "result" if is_own_output else output
            run_query(
                path, statement, unsafe=unsafe, timeout_s=timeout, output=file, output_format=file_form,
                say=terminal.say,
            )  # fmt: skip
            if is_own_output:
                with file.open("rb") as result:
                    shutil.copyfileobj(result, sys.stdout.buffer)
        terminal.say(f"wrote {output}")
        return
    columns, rows = run_query(path, statement, unsafe=unsafe, timeout_s=timeout, say=terminal.say)
    if form is Format.json:
        names = named_apart(columns)
        terminal.result(as_json_text([dict(zip(names, row, strict=True)) for row in rows]))
    elif form is Format.csv:
        terminal.csv(columns, rows)
    else:
        terminal.table(columns, rows)


def _from_standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the SQL on standard input is not UTF-8: {error.reason} at byte {error.start}") from None
