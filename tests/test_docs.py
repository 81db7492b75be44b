"""README.md and docs/ tell the truth about what a machine can check: commands and their options, files, links, SQL,
configuration, settings, exit codes."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from support.store_fixtures import explanation, filled, score

from autointerp import errors
from autointerp.cli.app import app
from autointerp.config import Config, SaeConfig
from autointerp.config_file import load
from autointerp.plugins import Group
from autointerp.store import Store
from autointerp.store.query import run_query

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "autointerp"
README = ROOT / "README.md"
PAGES = {path: path.read_text(encoding="utf-8") for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PLACEHOLDER = re.compile(r"[A-Z]{3,}|[<>*{]")
"""A path with one of these stands for many: prompts/explain/NAME.md."""
FILE_ENDINGS = {"py", "safetensors", "pt"}
"""After a section's name they make a file's name, and no setting's: sae.safetensors."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    """'' where the fence names none."""
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.name}-{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    language, begun, inside = "", 0, None
    for number, line in enumerate(PAGES[page].splitlines(), start=1):
        if not line.startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            language, begun, inside = line[3:].strip(), number, []
        else:
            yield Block(page, begun, language, "\n".join(inside))
            inside = None
    assert inside is None, f"{page.name}: a fence is left open"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def in_language(*languages: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language in languages]


def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def spans_of(page: Path) -> list[str]:
    """Inline code."""
    assert prose_of(page).count("`") % 2 == 0, f"{page.name}: a backtick is left open"
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose_of(page))]


SPANS = [(page, span) for page in PAGES for span in spans_of(page)]


def shell_lines() -> Iterator[tuple[str, str]]:
    """(place, line) of every command line that a page shows: all of ```sh, and what follows `$ ` elsewhere."""
    for block in BLOCKS:
        for line in block.text.splitlines():
            if block.language == "sh":
                yield block.place, line
            elif block.language == "" and line.startswith("$ "):
                yield block.place, line[2:]


def words_of(line: str) -> Iterator[list[str]]:
    """The words of each command of a shell line, comments and redirections left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def command_lines() -> list[Any]:
    """The arguments of `autointerp` in every command line shown."""
    found = []
    for place, line in shell_lines():
        for words in words_of(line):
            if "autointerp" in words:
                arguments = words[words.index("autointerp") + 1 :]
                found.append(pytest.param(arguments, id=f"{place}: {' '.join(arguments)}"))
    return found


def options_of(command: str) -> set[str]:
    return {option for parameter in COMMANDS[command].params for option in parameter.opts} | {"--help"}


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme_and_has_help(name: str) -> None:
    assert f"| `autointerp {name}" in PAGES[README], f"autointerp {name} is not in the README's table"
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None) or parameter.name == "help", f"{name} {parameter.name} has no help"


@pytest.mark.parametrize("arguments", command_lines())
def test_command_lines_parse(arguments: list[str]) -> None:
    """As the program would parse them; nothing is run."""
    name, *rest = arguments
    assert name in COMMANDS, f"there is no autointerp {name}"
    COMMANDS[name].make_context(name, rest)


def test_commands_and_options_named_in_text_exist() -> None:
    for page, span in SPANS:
        match = re.match(r"autointerp ([a-z]+)\b", span)
        if match:
            assert match[1] in COMMANDS, f"{page.name}: `{span}`"
            wrong = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", span)) - options_of(match[1])
            assert not wrong, f"{page.name}: `{span}` has no {sorted(wrong)}"
    everything = {option for name in COMMANDS for option in options_of(name)}
    for page, span in SPANS:
        if re.fullmatch(r"--[a-z][a-z-]+( .*)?", span) and not _belongs_to_a_script(page, span):
            assert span.split()[0] in everything, f"{page.name}: `{span}` is an option of no command"


def _belongs_to_a_script(page: Path, span: str) -> bool:
    """measured.md names options of the script whose table it shows."""
    named = re.findall(r"scripts/\w+\.py", PAGES[page])
    return page.name == "measured.md" and any(_takes(name, span.split()[0]) for name in named)


def _takes(script: str, option: str) -> bool:
    return f'"{option}"' in (ROOT / script).read_text(encoding="utf-8")


def test_options_in_the_table_of_commands_belong_to_the_command() -> None:
    rows = re.findall(r"^\| `autointerp ([a-z]+)[^|]*\|(.*)\|$", PAGES[README], re.MULTILINE)
    assert len(rows) == len(COMMANDS)
    for name, told in rows:
        wrong = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", told)) - options_of(name)
        assert not wrong, f"autointerp {name} has no {sorted(wrong)}"


def test_scripts_take_the_options_shown() -> None:
    lines = [*shell_lines(), *((page.name, span) for page, span in SPANS)]
    shown = [
        (place, word, words[i + 1 :])
        for place, line in lines
        if "scripts/" in line
        for words in words_of(line)
        for i, word in enumerate(words)
        if re.fullmatch(r"scripts/\w+\.py", word)
    ]
    assert len(shown) > 10
    for place, script, arguments in shown:
        for option in (word for word in arguments if word.startswith("--")):
            assert _takes(script, option), f"{place}: {script} has no {option}"


# --- files and links --------------------------------------------------------------------------------------------------


def test_files_named_exist() -> None:
    named = [(page.name, span.rstrip(":")) for page, span in SPANS]
    named += [(place, word) for place, line in shell_lines() for words in words_of(line) for word in words]
    seen = 0
    for place, name in named:
        if PLACEHOLDER.search(name):
            continue
        if re.fullmatch(r"(?:scripts|data|tests|prompts|docs|autointerp)/[\w./-]*", name):
            seen += 1
            assert (ROOT / name).exists(), f"{place}: {name}"
        elif re.fullmatch(r"\w+/(?:\w+\.py)?", name):  # a room, or a file of one
            seen += 1
            assert (PACKAGE / name).exists() or (ROOT / name).exists(), f"{place}: {name}"
    assert seen > 40


def test_the_file_tree_names_every_room() -> None:
    tree = next(b.text for b in blocks_of(README) if b.text.startswith("autointerp/\n"))
    rooms = set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE))
    assert rooms == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    for name in re.findall(r"^(\w+)/", tree, re.MULTILINE):
        assert (ROOT / name).is_dir(), name


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        assert anchor not in anchors, f"{page.name} has two headings {heading!r}"
        anchors.add(anchor)
    return anchors


def test_links_lead_somewhere() -> None:
    links = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)]+)\)", prose_of(page))]
    assert len(links) > 20
    for page, target in links:
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors_of(file), f"{page.name}: {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    for page in PAGES:
        assert page == README or f"](docs/{page.name})" in PAGES[README], page.name


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(PAGES[README].splitlines()) <= 200


# --- SQL --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with evidence, a label and a score for two features, under the name that docs use."""
    path = tmp_path_factory.mktemp("docs") / "autointerp.duckdb"
    store, _, _ = filled(path)
    with store:
        labels = [explanation(feature) for feature in (0, 1)]
        store.insert_explanations(labels)
        store.insert_scores([score(label) for label in labels])
    return path


@pytest.mark.parametrize("block", in_language("sql"))
def test_queries_run(block: Block, store_path: Path) -> None:
    columns, _ = run_query(store_path, block.text)
    assert columns


@pytest.mark.parametrize("arguments", [p for p in command_lines() if "query" in p.values[0]])
def test_queries_of_command_lines_run(arguments: list[str], store_path: Path) -> None:
    sql = COMMANDS["query"].make_context("query", arguments[1:]).params["sql"]
    if sql != "-":
        run_query(store_path, sql)


@pytest.mark.parametrize("block", [p for p in in_language("python") if p.values[0].page.name == "sql.md"])
def test_python_that_opens_a_store_runs(
    block: Block, store_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(store_path.parent)
    names: dict[str, Any] = {}
    exec(compile(block.text, block.place, "exec"), names)
    names["con"].close()
    assert "words about 1" in capsys.readouterr().out


def test_tables_and_columns_exist_and_are_all_told(store_path: Path) -> None:
    page = PAGES[ROOT / "docs" / "sql.md"]
    section = page[page.index("## Tables and views") : page.index("## Useful queries")]
    rows = re.findall(r"^\| `(\w+)`( \(view\))? \|[^|]*\|([^|]*)\|$", section, re.MULTILINE)
    with Store.open(store_path, read_only=True) as store:
        held = dict(
            store.rows(
                "SELECT table_name, table_type FROM information_schema.tables "
                "WHERE table_catalog = current_database() AND table_schema = 'main'"
            )
        )
        for table, is_view, told in rows:
            assert (held[table] == "VIEW") == bool(is_view), f"{table} is a {held[table]}"
            columns = {row[0] for row in store.rows(f"DESCRIBE {table}")}
            wanted = set(re.findall(r"\b[a-z_0-9]+\b", re.sub(r"\([^)]*\)", "", told)))
            assert wanted and wanted <= columns, f"{table}: {sorted(wanted - columns)}"
    own = set(re.findall(r"`(\w+)`", section[section.index("Most tables also have") :]))
    missing = set(held) - {table for table, _, _ in rows} - own
    assert not missing, f"docs/sql.md does not tell of {sorted(missing)}"


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", in_language("toml"))
def test_configuration_loads(block: Block, tmp_path: Path) -> None:
    table = tomllib.loads(block.text)
    if "project" in table:  # the pyproject.toml of a package that adds parts
        groups = set(table["project"]["entry-points"])
        assert groups == {f"autointerp.{group}" for group in typing.get_args(Group)}
        return
    (tmp_path / "autointerp.toml").write_text(block.text, encoding="utf-8")
    load(tmp_path / "autointerp.toml")


def settings() -> dict[str, set[str]]:
    """The keys of each section."""
    kinds = {**typing.get_type_hints(Config), "sae": SaeConfig}
    return {name: set(typing.get_type_hints(kind)) for name, kind in kinds.items()}


def test_settings_named_in_text_exist() -> None:
    known, seen = settings(), 0
    for page, span in SPANS:
        match = re.fullmatch(r"(?:\[+(\w+)\]+ (\w+)|(\w+)\.(\w+))(?: = .*)?", span)
        section, key = (match[1] or match[3], match[2] or match[4]) if match else ("", "")
        if section in known and key not in FILE_ENDINGS:
            seen += 1
            assert key in known[section], f"{page.name}: `{span}`"
    assert seen > 15


def test_what_can_be_named_is_told() -> None:
    """Every prompt belongs to an explainer or scorer, every format and family of SAEs is one: each has its row."""
    from autointerp.sae.families import FAMILIES
    from autointerp.score.controls import CONTROLS

    methods, saes = PAGES[ROOT / "docs" / "methods.md"], PAGES[ROOT / "docs" / "saes.md"]
    no_names = {"rule_mend", "rule_language", "compile"}  # rule's second, a part of both, and that of compiled:NAME
    explainers = {path.stem for path in (ROOT / "prompts" / "explain").glob("*.md")} - no_names
    scorers = {path.stem for path in (ROOT / "prompts" / "score").glob("*.md") if "simulation" not in path.stem}
    for name in (*explainers, *scorers, *CONTROLS, *Config().evidence.methods):
        assert f"| `{name}` |" in methods, f"docs/methods.md has no row for {name}"
    formats = set(typing.get_args(typing.get_type_hints(SaeConfig)["format"])) - {"auto"}
    for name in (*FAMILIES, *formats):
        assert re.search(rf"^\| `{name}`", saes, re.MULTILINE), f"docs/saes.md has no row for {name}"


# --- exit codes and code ----------------------------------------------------------------------------------------------


def test_exit_codes() -> None:
    raised = {
        c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.AutointerpError)
    }
    page = PAGES[ROOT / "docs" / "running.md"]
    section = page[page.index("## Exit codes") : page.index("## When something goes wrong")]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    assert told == raised | {0, 130}
    faults = page[page.index("## When something goes wrong") : page.index("## When something is damaged")]
    used = re.findall(r"\| ([\d ()]+) \|$", faults, re.MULTILINE)
    assert len(used) > 15
    assert {int(code) for cell in used for code in re.findall(r"\d+", cell)} <= told


def _without_docstrings(node: ast.AST) -> str:
    for inner in ast.walk(node):
        if isinstance(inner, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(inner) is not None:
            del inner.body[0]
    return ast.dump(node)


def test_code_shown_from_the_package_is_the_packages() -> None:
    """A class in docs/developing.md is that of the package, or of the test that installs it as a stranger's."""
    compared = set()
    held = {
        node.name: node
        for path in (*PACKAGE.rglob("*.py"), ROOT / "tests" / "test_strangers.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    for block in BLOCKS:
        if block.language == "python" and block.page.name == "developing.md":
            for node in ast.parse(block.text).body:
                if isinstance(node, ast.ClassDef):
                    compared.add(node.name)
                    assert _without_docstrings(node) == _without_docstrings(held[node.name]), node.name
    assert compared >= {"Matryoshka", "HowLikely", "Chance", "Longest"}
