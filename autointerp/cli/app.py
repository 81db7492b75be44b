"""The command line: every command in one Typer app, and the one place where an error becomes a line and an exit code.

A command parses its options, calls the pipeline or the report, and prints. The commands are in the *_commands.py files,
by what a person does with them; to add one, add a function to one of those files. What brings in the LLM client,
torch (pipeline, demo, doctor) or numpy (most reports) is imported inside the commands that call it, so that the others
start fast.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

import typer
from typer.exceptions import TyperException

from autointerp import __version__, log
from autointerp.cli import export_commands, label_commands, model_commands, read_commands, start_commands, tend_commands
from autointerp.cli.streams import secure_streams
from autointerp.errors import AutointerpError, CutShortError, PartialFailure, StoppedError, StoreBusyError
from autointerp.log import Capture, Log
from autointerp.terminal import Terminal

app = typer.Typer(
    name="autointerp",
    help="From a language model's hidden activations to a labelled, scored, SQL-queryable dictionary of features.",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    rich_markup_mode=None,
)
for part in (start_commands, model_commands, label_commands, read_commands, export_commands, tend_commands):
    app.add_typer(part.commands)  # without a name, so its commands become commands of the app

GOES_ON = (StoppedError, PartialFailure, StoreBusyError)
"""Errors after which the next run simply goes on: the log shows a warning, not an error."""


def guarded(call: Callable[[], Any], verbose: bool, told: Log | None = None) -> int:
    """Run `call` and return its exit code. An error becomes a line of the log, with its traceback if `verbose`."""
    told = told or Log()
    try:
        if call() == 130:  # Typer returns Ctrl-C as an exit code unless it ends the process itself
            raise KeyboardInterrupt
    except AutointerpError as error:
        word = "note: " if isinstance(error, (PartialFailure, CutShortError)) else "error: "
        level: log.Level = "warning" if isinstance(error, (*GOES_ON, CutShortError)) else "error"
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
    except Exception as error:  # an unforeseen error: say so, and how to see the details
        what = f"unexpected {type(error).__name__}: {error} (run with -v for the traceback)"
        told.end("error: ", what, 1, trace=traceback.format_exc() if verbose else None)
        return 1
    return 0


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM (sent by `kill`, `timeout`, containers and shutdowns) and SIGHUP (a terminal that was closed) like
    Ctrl-C: replies that have arrived are written, and the run's row says how it ended."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(number, frame)


def handle_signals() -> None:
    """Makes each signal to stop a KeyboardInterrupt of the main thread."""
    if "WORLD_SIZE" in os.environ:  # torchrun ends its processes by its own signals
        return
    # A shell's `... &` starts us with SIGINT ignored, and asyncio would then not end its tasks in order.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else `nohup` started us
        signal.signal(signal.SIGHUP, _as_ctrl_c)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit the process with its code.

    `argv` replaces the process's own arguments; the streams and signal handlers are then left alone, and stderr is
    restored at the end.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if argv is None:
        secure_streams()
        handle_signals()
    arguments = arguments or ["--help"]
    verbose = "-v" in arguments or "--verbose" in arguments
    told = Log(log.asked_for(arguments))
    capture = Capture(told) if told.is_for_programs else None
    if arguments[0] == "--version":
        code = guarded(lambda: Terminal().result(f"autointerp {__version__}"), verbose, told)
    else:
        code = guarded(lambda: app(arguments, standalone_mode=False), verbose, told)
    code = guarded(sys.stdout.flush, verbose, told) or code
    if capture is not None:
        if argv is None:  # not ended: what Python prints while it shuts down is captured too
            capture.flush()
        else:
            capture.end()
    sys.exit(code)
