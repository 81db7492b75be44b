"""Results that hold what a terminal or rich would obey: shown as they are, in every form."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from rich.console import Console
from support.commands import run
from support.store_fixtures import filled

from autointerp.cli.read_commands import Format, query
from autointerp.report.show_json import as_json_text, named_apart
from autointerp.store.connection import quoted
from autointerp.store.safety.paths import evidence_path_of
from autointerp.terminal import Terminal

EVIL = "\x1b]0;title\x07 \x9b31m \u202e [/x] [red]r[/red] :x: a\\"
SHOWN = r"\x1b]0;title\x07 \x9b31m \x202e [/x] [red]r[/red] :x: a" + "\\"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 300 columns gets on standard output."""
    out = io.StringIO()
    made = Terminal.__init__

    def with_screen(self: Terminal, *given: object, **named: object) -> None:
        made(self, *given, **named)  # type: ignore[arg-type]
        self.out = Console(
            file=out, force_terminal=True, width=300, no_color=True, highlight=False, emoji=self.out._emoji
        )

    monkeypatch.setattr(Terminal, "__init__", with_screen)
    return out


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "s.duckdb"
    filled(path)[0].close()
    return path


def test_a_table_shows_names_and_cells_as_they_are(screen: io.StringIO) -> None:
    Terminal().table([EVIL, "[feature]"], [[EVIL, 1]], title=EVIL)
    text = screen.getvalue()
    assert text.count(SHOWN) == 3 and "[feature]" in text
    assert not {"\x07", "\x9b", "\u202e"} & set(text) and "\x1b]" not in text


def test_a_table_in_a_pipe_has_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().table(["a\nb" + EVIL], [[EVIL]])
    assert capsys.readouterr().out.splitlines() == ["a\u21b5b" + SHOWN, SHOWN]


def test_a_page_shows_tokens_that_are_markup_together(
    screen: io.StringIO, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`x[i]` and `[/b]` are markup, though no token of them is."""
    tokens = ["", "", "[", "i", "]:x:", "[/b]\x1b[31m\\", "", ""]
    with duckdb.connect(str(evidence_path_of(store))) as con:
        con.execute("UPDATE windows SET tokens = ?", [tokens])
    with duckdb.connect(str(store)) as con:
        con.execute(f"UPDATE dictionaries SET name = {quoted(EVIL)}")
    assert run(capsys, "show", "4", "--store", str(store))[0] == 0
    text = screen.getvalue()
    lines = [line for line in re.sub("\x1b\\[[0-9;]*m", "", text).splitlines() if "@" in line]
    assert len(lines) > 4 and all(r"[i]:x:[/b]\x1b[31m" + "\\  doc" in line for line in lines)
    assert SHOWN in text and "\x1b[31m" not in text and "\x1b]" not in text


@pytest.mark.parametrize("form", [Format.table, Format.csv, Format.json])
def test_no_form_sends_control_characters_to_a_terminal(screen: io.StringIO, store: Path, form: Format) -> None:
    name = EVIL.replace("\\", "")
    query(f"""SELECT '{EVIL}' AS "{name}", 1 AS "[/x]" """, store=store, form=form)
    text = screen.getvalue()
    assert ":x:" in text and "[/x]" in text and "[red]r[/red]" in text
    assert not {"\x07", "\x9b", "\u202e", "\r"} & set(text) and "\x1b]" not in text


def test_json_keeps_every_column_and_is_json(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    sql = "SELECT 1 AS a, 2 AS a, 3 AS a_1, 'nan'::DOUBLE AS n, ['inf'::FLOAT] AS i, MAP {1: 'nan'::DOUBLE} AS m"
    code, out, err = run(capsys, "query", sql, "--format", "json", "--store", str(store))
    assert code == 0, err
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert found == [{"a": 1, "a_2": 2, "a_1": 3, "n": None, "i": [None], "m": {"1": None}}]
    assert named_apart(["a", "a", "a"]) == ["a", "a_1", "a_2"]
    assert json.loads(as_json_text([EVIL, math.inf, {"k": -math.inf}])) == [EVIL, None, {"k": None}]
    assert as_json_text(EVIL).isprintable()


def test_csv_in_a_pipe_is_unchanged(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    _, out, _ = run(capsys, "query", "SELECT chr(27) AS a, 1 AS a", "--format", "csv", "--store", str(store))
    assert out == "a,a\r\n\x1b,1\r\n"


def test_the_answer_can_be_written_to_standard_output(store: Path) -> None:
    command = [sys.executable, "-m", "autointerp", "query", "SELECT 1 AS a", "--store", str(store), "-o", "/dev/stdout"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert (done.returncode, done.stdout) == (0, "a\n1\n"), done.stderr
