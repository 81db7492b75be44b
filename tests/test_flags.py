"""Every flag of every command with values that it does not take: each ends as one of our own errors, at once."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import pytest
import typer
from support.commands import run
from support.store_fixtures import copied

from autointerp.cli.app import app

NONSENSE = (
    "", " ", "-1", "0", "9" * 20, "9" * 5000, "0-" + "9" * 5000, "*/" + "9" * 5000 + " * * * *", "1e400", "nan",
    "inf", "\u00b2", "\u0663", "\udcff", "x" * 300, "x" * 5000, "a/" * 3000, ".", "..", "/dev/null", "no/such/file",
    "~nobody-here/x", "\x1b[31m", "\n", "'; DROP TABLE features; --", "(" * 3000, "[" * 3000, "{{", "*", "?.duckdb",
    "%s", "1,,2", "0001-01-01", "a:b:c", "--", "é→", "= 1", "true", "hf:x", "http://[::1",
)  # fmt: skip


def every_flag() -> list[tuple[str, tuple[str, ...]]]:
    """Each command with what comes before the value of each of its options and arguments."""
    commands = typer.main.get_command(app)
    assert isinstance(commands, click.Group) or hasattr(commands, "commands")
    found = []
    for name, command in sorted(commands.commands.items()):  # type: ignore[union-attr]
        needed = [
            "SELECT 1" if name == "query" else "1"
            for one in command.params
            if one.param_type_name == "argument" and one.required
        ]
        for one in command.params:
            if one.param_type_name == "argument":
                found.append((name, ()))
            elif not getattr(one, "is_flag", False) and name != "demo":  # most values would start it
                found.append((name, (*needed, one.opts[-1])))
    return found


@pytest.fixture
def folder(tmp_path: Path, filled_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    copied(filled_store, tmp_path)
    (tmp_path / "autointerp.toml").write_text('[store]\npath = "x.duckdb"\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    return tmp_path


def check(capsys: pytest.CaptureFixture[str], command: str, before: tuple[str, ...], value: str) -> None:
    for stream in (sys.stdout, sys.stderr):  # as `secure_streams` makes those of a process of its own
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code, _, err = run(capsys, command, *before, value)
    asked = f"{command} {' '.join(before)} {value[:60]!r}: {code} {err[-600:]}"
    assert code in (0, 1, 2, 4, 6, 7, 8) and "unexpected" not in err and "Traceback" not in err, asked


NEEDS_MODEL = {"doctor", "evaluate", "harvest", "measure", "merge", "train", "verify"}


def test_each_flag_refuses_nonsense(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two values a flag, other ones for each. A flag that several commands have is tried with one of them, which does
    not load torch."""
    flags = {
        (before or (command,))[-1]: (command, before) for command, before in every_flag() if command not in NEEDS_MODEL
    }
    for i, (command, before) in enumerate(flags.values()):
        for k in range(2):
            check(capsys, command, before, NONSENSE[(2 * i + k) % len(NONSENSE)])


@pytest.mark.parametrize("value", ["/dev/null", "x" * 5000, "autointerp.toml/x"])
def test_no_folder_of_the_demo_can_be_there(folder: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    check(capsys, "demo", ("--out",), value)


def test_no_folder_of_the_real_demo_can_have_such_a_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(capsys, "demo", ("--real", "--tokens", "30000", "--out"), "x" * 5000)


@pytest.mark.slow
@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: ascii(value[:20]))
def test_each_flag_refuses_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    for command, before in every_flag():
        check(capsys, command, before, value)
