"""The command line: parse, call the pipeline, print. Errors end here as one line and an exit code (see errors.py)."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from autointerp import __version__, log
from autointerp.cli import schedule
from autointerp.cli.config_template import config_template
from autointerp.config import Config, environment_overrides, load
from autointerp.errors import AutointerpError, InputError, PartialFailure, StoppedError, StoreBusyError
from autointerp.log import Capture, Log, LogFormat
from autointerp.report import compare, show
from autointerp.report.status import print_status
from autointerp.store.query import run_query
from autointerp.store.safety.recover import recover as recover_store
from autointerp.store.selection import Selection
from autointerp.terminal import Terminal

# pipeline, demo and doctor are imported where they are called: they bring the LLM client, whose import takes longer
# than most queries, and commands that only read do without it.

app = typer.Typer(
    name="autointerp",
    help="From a language model's hidden activations to a labelled, scored, SQL-queryable dictionary of features.",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    rich_markup_mode=None,
)

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
RandomN = Annotated[int | None, typer.Option("--random", min=1, help="So many features drawn at random.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many features.")]


class Order(StrEnum):
    density = "density"
    random = "random"
    score = "score"


InOrder = Annotated[
    Order | None,
    typer.Option("--order", help="Which features first: the most frequent, any, or those whose label scores worst."),
]
Control = Annotated[
    str | None,
    typer.Option(
        "--control", help="Score what stands in for the labels: shuffled, empty, token_lookup or random_model."
    ),
]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="Folder of prompt templates, instead of the program's own.")
]
Deadline = Annotated[
    str | None,
    typer.Option("--deadline", help="When to stop: 5400 (seconds), 3h, 1h30m, 07:30 or 2026-11-23T07:30."),
]
Batch = Annotated[
    bool,
    typer.Option("--batch", help="Through the endpoint's batch API: cheaper, and answered within a day ([llm] batch)."),
]
DEFAULT_CONFIG = Path("autointerp.toml")


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class ScheduleForm(StrEnum):
    systemd = "systemd"
    cron = "cron"


class CompareForm(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


def _config(path: Path, store: Path | None, deadline: str | None = None) -> Config:
    """The configuration with AUTOINTERP_SECTION__KEY variables, --store and --deadline laid over it."""
    overrides = environment_overrides()
    config = load(path, overrides if deadline is None else {**overrides, "budget.deadline": deadline})
    return replace(config, store=replace(config.store, path=str(store))) if store else config


def _store_path(path: Path, store: Path | None) -> Path:
    """Commands that only read a store need no configuration file when --store is given."""
    return store if store else Path(_config(path, None).store.path)


def _selection(
    features: str | None, where: str | None, random: int | None, limit: int | None, order: Order | None = None
) -> Selection:
    return Selection(features=features, where=where, random=random, limit=limit, order=order and order.value)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented autointerp.toml."""
    target = directory / "autointerp.toml"
    if target.exists() and not force:
        raise InputError(f"{target} exists; --force overwrites it")
    directory.mkdir(parents=True, exist_ok=True)
    target.write_text(config_template(), encoding="utf-8")
    Terminal().result(
        f"wrote {target}; set [model] name, [corpus] source and the [[sae]] hookpoint, then: autointerp run"
    )


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the demo's files.")] = Path("autointerp-demo"),
    tokens: Annotated[int | None, typer.Option("--tokens", help="Tokens to train on and to harvest.")] = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """The whole pipeline on the shipped model, offline and without a key; leaves config, store and SAE behind."""
    from autointerp.cli import demo

    demo.run_demo(out, tokens, Terminal(verbose, log_format))


@app.command("doctor")
def doctor_command(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Check device, model, corpus, SAE and endpoint, and whether it really returns logprobs."""
    from autointerp.cli import doctor

    doctor.run_doctor(_config(config, store), Terminal(verbose, log_format))


@app.command()
def train(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    deadline: Deadline = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Train the SAEs of [[sae]] tables that name no path. Goes on from the last checkpoint."""
    from autointerp.stages import pipeline

    pipeline.train(_config(config, store, deadline), dictionary, Terminal(verbose, log_format))


@app.command()
def harvest(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    shard_index: Annotated[int, typer.Option("--shard-index", min=0, help="Which shard this process makes.")] = 0,
    num_shards: Annotated[int, typer.Option("--num-shards", min=1, help="Of how many.")] = 1,
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
    pipeline.harvest(_config(config, store, deadline), dictionary, terminal, shard_index, num_shards, dry_run)


@app.command()
def merge(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Merge harvested shards into the store."""
    from autointerp.stages import pipeline

    pipeline.merge(_config(config, store), dictionary, Terminal(verbose, log_format))


@app.command()
def evaluate(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens of each corpus to measure on.")] = 200_000,
    splice_tokens: Annotated[
        int, typer.Option("--splice-tokens", help="Of those, tokens for the loss with the reconstruction spliced in.")
    ] = 20_000,
    corpus: Annotated[
        list[str] | None, typer.Option("--corpus", help="Another text to measure on as well; may be repeated.")
    ] = None,
    probes: Annotated[
        list[Path] | None, typer.Option("--probes", help="Labelled text (jsonl) for probing; may be repeated.")
    ] = None,
    structural_only: Annotated[
        bool, typer.Option("--structural-only", help="No robustness, absorption, probing, stability.")
    ] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write one self-contained HTML page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All rows as JSON instead of a table.")] = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """How good a dictionary is: reconstruction, sparsity, loss, stability, robustness, absorption, probing."""
    from autointerp.stages import pipeline
    from autointerp.stages.evaluate_options import EvaluateOptions

    options = EvaluateOptions(
        tokens=tokens,
        splice_tokens=splice_tokens,
        corpora=tuple(corpus or ()),
        probes=tuple(probes or ()),
        is_structural_only=structural_only,
        report=report,
    )
    terminal = Terminal(verbose, log_format)
    rows = pipeline.evaluate(_config(config, store), dictionary, options, terminal.without_results(as_json))
    if as_json:
        terminal.result(json.dumps(rows, indent=1, default=str))


def _with_batch(settings: Config, batch: bool) -> Config:
    return replace(settings, llm=replace(settings.llm, batch=True)) if batch else settings


@app.command()
def explain(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    features: Features = None,
    where: Where = None,
    random: RandomN = None,
    limit: Limit = None,
    order: InOrder = None,
    explainer: Annotated[str | None, typer.Option("--explainer", help="Instead of [explain] explainer.")] = None,
    prompts: Prompts = None,
    deadline: Deadline = None,
    batch: Batch = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Describe features that have no description yet."""
    from autointerp.stages import pipeline

    settings = _with_batch(_config(config, store, deadline), batch)
    if explainer:
        settings = replace(settings, explain=replace(settings.explain, explainer=explainer))
    chosen = _selection(features, where, random, limit, order)
    pipeline.explain(
        settings,
        dictionary,
        chosen,
        Terminal(verbose, log_format),
        dry_run,
        is_configured=explainer is None,
        prompts=prompts,
    )


@app.command()
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
    """What takes the model after the harvest: evidence methods such as pruning and token_change, and what scorers have
    asked (activations on written texts, surprisal, similarity, steering)."""
    from autointerp.stages import pipeline

    chosen = _selection(features, where, random, limit)
    terminal = Terminal(verbose, log_format)
    pipeline.measure(_config(config, store, deadline), dictionary, chosen, terminal, tuple(method or ()))


@app.command()
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
    """Check descriptions that have no score yet against held-out text."""
    from autointerp.stages import pipeline

    settings = _with_batch(_config(config, store, deadline), batch)
    if explainer:
        settings = replace(settings, explain=replace(settings.explain, explainer=explainer))
    chosen = _selection(features, where, random, limit, order)
    pipeline.score(settings, dictionary, chosen, Terminal(verbose, log_format), dry_run, control, prompts)


@app.command()
def run(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    features: Features = None,
    where: Where = None,
    random: RandomN = None,
    limit: Limit = None,
    order: InOrder = None,
    control: Control = None,
    prompts: Prompts = None,
    deadline: Deadline = None,
    batch: Batch = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """All stages. What is done is skipped, so it may run from cron as often as you like."""
    from autointerp.stages import pipeline

    settings = _with_batch(_config(config, store, deadline), batch)
    chosen = _selection(features, where, random, limit, order)
    pipeline.run(settings, dictionary, chosen, Terminal(verbose, log_format), dry_run, control, prompts)


@app.command("schedule")
def schedule_command(
    config: ConfigFile = DEFAULT_CONFIG,
    form: Annotated[ScheduleForm, typer.Option("--print", help="What to print.")] = ScheduleForm.systemd,
    every: Annotated[
        str, typer.Option("--every", help="hourly, daily, weekly, or five fields as in a crontab: '30 2 * * 1-5'.")
    ] = "daily",
    deadline: Deadline = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Print what makes systemd or cron call `autointerp run`; nothing is installed."""
    settings = _config(config, None, deadline)
    names = (settings.explain.api_key_env, settings.score.api_key_env)
    job = schedule.Job(config, every.strip(), names, deadline)
    text = schedule.systemd_units(job) if form is ScheduleForm.systemd else schedule.crontab_line(job)
    Terminal(verbose, log_format).out.file.write(text)


@app.command()
def verify(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Contexts to recompute.")] = 200,
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
        pipeline.verify_leakage(_store_path(config, store), dictionary, terminal, as_json)
        return
    pipeline.verify(_config(config, store), dictionary, sample, terminal, as_json)


@app.command()
def recover(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is wrong and what would be done.")] = False,
    verbose: Verbose = False,
) -> None:
    """Make a store that refuses to open one that opens, and say what is lost. Nothing is deleted."""
    recovery, terminal = recover_store(_store_path(config, store), dry_run=dry_run), Terminal(verbose)
    for line in recovery.lines:
        terminal.result(line)
    if recovery.recovered is not None:
        raise PartialFailure(f"what could be read was copied into {recovery.recovered}; see above for the rest")


@app.command()
def status(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """What is done, pending, failed and spent."""
    print_status(_store_path(config, store), as_json, Terminal(verbose, log_format))


@app.command("show")
def show_command(
    feature: Annotated[str, typer.Argument(help="[NAME:]FEATURE, e.g. 1234 or h6:1234.")],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    contexts: Annotated[int, typer.Option("--contexts", min=0, help="Contexts of each kind.")] = 5,
    as_json: AsJson = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """One feature as a person wants to read it."""
    path = _store_path(config, store)
    show.print_feature(path, feature, dictionary, contexts, as_json, Terminal(verbose, log_format))


@app.command("compare")
def compare_command(
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
        bool, typer.Option("--strata", help="Also the parts of a score, detection_sensitivity_decile_9 say.")
    ] = False,
    form: Annotated[CompareForm, typer.Option("--format", help="How to print the answer.")] = CompareForm.table,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Compare explainers, and each with its controls, on the features that both scored."""
    path, terminal = _store_path(config, store), Terminal(verbose, log_format)
    compare.print_comparison(path, dictionary, against, agreement, strata, form.value, terminal)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="Words to look for in labels.")],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dictionary: DictionaryName = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many hits.")] = 20,
    as_json: AsJson = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Find features by their label."""
    show.print_search(_store_path(config, store), text, dictionary, limit, as_json, Terminal(verbose, log_format))


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="One SQL statement, or - to read it from standard input.")],
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="How to write the answer; else by the file's name, or a table.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write (needed for parquet).")] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds.")] = 30.0,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Allow reading and writing other files (still read-only).")
    ] = False,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Answer an SQL query over the store, read-only and locked down."""
    statement = sys.stdin.read() if sql == "-" else sql
    path = _store_path(config, store)
    terminal = Terminal(verbose, log_format)
    if output is not None or form is Format.parquet:
        if output is None:
            raise InputError("--format parquet needs a file to write: -o FILE")
        file_form = "csv" if form in (None, Format.table) else form.value
        if form is None and (named := output.suffix.lower().lstrip(".")) in ("json", "parquet"):
            file_form = named
        run_query(
            path, statement, unsafe=unsafe, timeout_s=timeout, output=output, output_format=file_form, say=terminal.say
        )
        terminal.say(f"wrote {output}")
        return
    columns, rows = run_query(path, statement, unsafe=unsafe, timeout_s=timeout, say=terminal.say)
    if form is Format.json:
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        terminal.result(json.dumps(records, default=str, ensure_ascii=False, indent=1))
    elif form is Format.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows(rows)
    else:
        terminal.table(columns, rows)


GOES_ON = (StoppedError, PartialFailure, StoreBusyError)
"""Ends that the next run goes on from: a warning in a log, no failure of a service."""


def _end(code: int) -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    sys.exit(code)


def _drop_output() -> None:
    """The reader of our pipe has gone: nothing more to say, to Python's own flush at its end either."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def guarded(call: Callable[[], Any], verbose: bool, told: Log | None = None) -> int:
    """Run `call`; its exit code. The one place where an error becomes a line on stderr."""
    told = told or Log()
    try:
        if call() == 130:  # Typer hands Ctrl-C back as an exit code where it does not end the process itself
            raise KeyboardInterrupt
    except AutointerpError as error:
        word = "note: " if isinstance(error, PartialFailure) else "error: "
        level: log.Level = "warning" if isinstance(error, GOES_ON) else "error"
        told.end(word, str(error), error.exit_code, level, traceback.format_exc() if verbose else None)
        return error.exit_code
    except TyperException as error:
        told.end("error: ", f"{error.format_message()} (--help shows what there is)", 2)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        told.end("", "stopped; what is done is kept, the same command goes on from there", 130, "warning")
        return 130
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        _drop_output()
        return 0
    except Exception as error:  # the last resort: an unforeseen fault is reported as one, with a way to its details
        what = f"unexpected {type(error).__name__}: {error} (run with -v for the traceback)"
        told.end("error: ", what, 1, trace=traceback.format_exc() if verbose else None)
        return 1
    return 0


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    """SIGTERM, which `kill`, `timeout`, containers and shutdowns send, ends a run as Ctrl-C does: what has arrived is
    written, and the run's row says how it ended."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(number, frame)


def main(argv: list[str] | None = None) -> None:
    """`argv`: a command line other than the process's own, whose stderr is then left as it was found."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] == "--version":
        _end(guarded(lambda: Terminal().result(f"autointerp {__version__}"), False))
    arguments = arguments or ["--help"]
    verbose = "-v" in arguments or "--verbose" in arguments
    told = Log(log.asked_for(arguments))
    if argv is None and "WORLD_SIZE" not in os.environ:  # torchrun ends its processes in its own way
        # A shell's `... &` starts us with SIGINT ignored; asyncio then would not end its tasks in order.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _as_ctrl_c)
    capture = Capture(told) if told.is_for_programs else None
    code = guarded(lambda: app(arguments, standalone_mode=False), verbose, told)
    if capture is not None:
        if argv is None:  # to the very end: what Python has to say while it shuts down goes the same way
            capture.flush()
        else:
            capture.end()
    _end(code)
