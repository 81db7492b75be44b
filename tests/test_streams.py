"""Standard streams and signals: whatever they lead to, the work goes on, and no file takes the place of a stream."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest
from support.commands import run
from support.store_fixtures import filled

from autointerp.cli import app
from autointerp.cli.streams import text_stream
from autointerp.errors import AutointerpError, DiskFullError, InputError
from autointerp.terminal import Terminal


@contextmanager
def piped(encoding: str = "utf-8") -> Iterator[tuple[TextIO, int]]:
    """A stream into a pipe, and the pipe's other end."""
    read, write = os.pipe()
    yield text_stream(write, io.TextIOWrapper(io.BytesIO(), encoding), must_arrive=True), read
    for end in (read, write):
        with suppress(OSError):  # the test has closed it
            os.close(end)


TEXT = "caf\u00e9 \u2192 \U0001f600 \ud800"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", rb"caf\u00e9 \u2192 \ud83d\ude00 \ud800"),
        ("iso-8859-1", b"caf\xe9 " + rb"\u2192 \ud83d\ude00 \ud800"),
        ("utf-8", "caf\u00e9 \u2192 \U0001f600 ".encode() + rb"\ud800"),
    ],
)
def test_what_an_encoding_lacks_is_written_as_in_json(encoding: str, written: bytes) -> None:
    with piped(encoding) as (out, read):
        out.write(TEXT)
        out.flush()
        found = os.read(read, 1000)
    assert found == written
    assert json.loads(f'"{found.decode(encoding)}"') == TEXT


def test_csv_is_whole_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, lacks in (("ascii", r"'\\xe9'"), ("iso-8859-1", r"'\\u2192'"), ("utf-8", None)):
        data = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding, newline=""))
        if lacks is None:
            Terminal().csv(["a"], [["é→"]])
            sys.stdout.flush()
            assert data.getvalue() == "a\r\né→\r\n".encode()
            continue
        with pytest.raises(InputError, match=f"{encoding}, which lacks {lacks}"):
            Terminal().csv(["a"], [["é→"]])
        assert data.getvalue() == b""


def test_a_reader_that_has_gone_ends_nothing() -> None:
    with piped() as (out, read):
        os.close(read)
        for _ in range(3):
            out.write("x" * 100_000)
            out.flush()


def test_a_terminal_that_was_closed_ends_nothing() -> None:
    controller, terminal = os.openpty()
    out = text_stream(terminal, None, must_arrive=True)
    assert out.isatty()
    os.close(controller)
    out.write("into the void\n")
    out.flush()
    os.close(terminal)


def test_results_that_cannot_be_written_are_an_error_and_messages_are_not() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    read_only = os.open(os.devnull, os.O_RDONLY)
    for number, error in ((full, DiskFullError), (read_only, AutointerpError)):
        out = text_stream(number, None, must_arrive=True)
        out.write("an answer")
        with pytest.raises(error, match="results cannot be written to standard output: "):
            out.flush()
        out.flush()  # it is told once
        said = text_stream(number, None, must_arrive=False)
        said.write("a message\n")
        said.flush()
        os.close(number)


@pytest.mark.parametrize(("to", "code", "said"), [("/dev/full", 5, "No space left on device"), ("/dev/null", 0, "")])
def test_a_command_whose_results_are_lost_fails(to: str, code: int, said: str) -> None:
    with open(to, "w") as out:
        command = [sys.executable, "-m", "autointerp", "--version"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr


CLOSED = """
import os, sys
from autointerp.cli.streams import secure_streams
assert sys.stdout is None and sys.stderr is None and sys.stdin is None
secure_streams()
with open(sys.argv[1], "w") as file:
    print("lost")
    os.write(1, b"printed by a library")
    print("lost too", file=sys.stderr)
    print(file.fileno(), [os.readlink(f"/proc/self/fd/{n}") for n in range(3)], repr(sys.stdin.read()), file=file)
sys.stdout.flush()
"""


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    file = tmp_path / "store"
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", CLOSED, str(file)]
    assert (
        subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}).returncode
        == 0
    )
    number, _, rest = file.read_text().partition(" ")
    assert int(number) > 2 and rest == "['/dev/null', '/dev/null', '/dev/null'] ''\n"


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_to_stop_is_a_ctrl_c(number: signal.Signals, handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    app.handle_signals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_under_nohup_a_closed_terminal_ends_nothing(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    app.handle_signals()
    signal.raise_signal(signal.SIGHUP)


def test_sql_from_standard_input_is_utf_8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "x.duckdb")[0].close()
    given = ("query", "-", "--format", "json", "--store", str(tmp_path / "x.duckdb"))
    for data, code, told in (
        (b"\xef\xbb\xbfSELECT '\xc3\xa9' AS a", 0, '"a": "é"'), (b"SELECT '\xe9'", 2, "not UTF-8"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
        ended, out, err = run(capsys, *given)
        assert ended == code and told in out + err
