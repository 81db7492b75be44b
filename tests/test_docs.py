"""The README tells the truth about what can be checked by machine: commands, files, SQL names, exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from autointerp import errors
from autointerp.cli.app import app
from autointerp.store import Store

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_has_help(name: str) -> None:
    assert f"`autointerp {name}" in README, f"autointerp {name} is not documented"
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None) or parameter.name == "help", f"{name} {parameter.name} has no help"


def test_commands_in_the_readme_exist() -> None:
    named = set(re.findall(r"(?:^|[`\s])autointerp ([a-z]+)\b", README, re.MULTILINE))
    words = {"is", "needs", "turns", "and", "does", "in", "store", "reads", "python", "uses"}
    assert named - set(COMMANDS) <= words, sorted(named - set(COMMANDS))


def test_files_in_the_readme_exist() -> None:
    for name in re.findall(r"`((?:scripts|data|tests|prompts)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name
    tree = README[README.index("autointerp/\n  config.py") :]
    for name in re.findall(r"^  (\w+(?:\.py|/))", tree[: tree.index("```")], re.MULTILINE):
        assert (ROOT / "autointerp" / name).exists(), name


def test_tables_and_columns_in_the_readme_exist(tmp_path: Path) -> None:
    section = README[README.index("## The SQL tables") : README.index("## Measured")]
    rows = re.findall(r"^\| (`\w+`[^|]*)\|[^|]*\|([^|]*)\|$", section, re.MULTILINE)
    assert len(rows) > 8
    with Store.open(tmp_path / "new.duckdb", create=True) as store:
        for names, columns in rows:
            for table in re.findall(r"`(\w+)`", names):
                held = {row[0] for row in store.rows(f"DESCRIBE {table}")}
                if len(re.findall(r"`\w+`", names)) > 1:
                    continue  # several tables in one row are described in words
                wanted = set(re.findall(r"\b[a-z_0-9]+\b", re.sub(r"\([^)]*\)", "", columns)))
                assert wanted <= held, f"{table}: {sorted(wanted - held)}"


def test_exit_codes_in_the_readme() -> None:
    codes = {
        c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.AutointerpError)
    }
    paragraph = README[README.index("Exit codes:") :][:700]
    for code in codes:
        assert re.search(rf"\b{code}\b", paragraph), f"exit code {code} is not documented"
