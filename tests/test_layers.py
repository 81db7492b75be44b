"""Imports run one way, and the LLM and SQL side runs where torch is not installed (laws 1 and the house's arrows)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.without_torch import TORCH_SIDE, run_without_torch

PACKAGE = Path(__file__).parents[1] / "autointerp"

GROUND = {
    "errors", "records", "config", "config_file", "stats", "means", "jackknife", "clustered_shares", "prevalence",
    "paired", "resources", "deadline", "tasks", "holds", "plugins", "progress", "background", "template_limits",
    "dictionary_controls", "number_text", "number_ranges", "scorer_names", "scan_rows",
    "sae_reading",
}  # fmt: skip
MAY_IMPORT: dict[str, set[str]] = {
    # what every room may use
    "errors": set(),
    "records": set(),
    "tasks": {"errors", "records"},
    "plugins": {"errors"},
    "deadline": {"errors"},
    "background": {"errors"},
    "number_ranges": {"errors"},
    "sae_reading": {"errors", "number_ranges"},
    "config": {"errors", "deadline", "number_ranges", "sae_reading"},
    "config_file": {"errors", "deadline", "number_ranges", "config"},
    "stats": set(),
    "means": {"stats"},
    "jackknife": {"stats", "means"},
    "clustered_shares": {"stats", "means"},
    "prevalence": {"stats", "jackknife"},
    "number_text": set(),
    "scorer_names": set(),
    "scan_rows": set(),
    "holds": {"records", "number_text"},
    "paired": {"stats", "means", "jackknife", "prevalence"},
    "resources": {"errors"},
    "template_limits": set(),
    "dictionary_controls": set(),
    "log": set(),
    "progress": set(),
    "terminal": {"errors", "log", "progress"},
    # without torch
    "llm": GROUND,
    "store": GROUND,
    "ask": GROUND | {"llm", "store"},
    "rules": GROUND | {"store", "ask"},
    "score": GROUND | {"llm", "store", "ask", "rules"},
    "explain": GROUND | {"llm", "store", "ask", "rules", "score"},
    # with torch
    "corpus": GROUND,
    "model": GROUND | {"corpus"},
    "sae": GROUND | {"corpus", "model"},
    "harvest": GROUND | {"corpus", "model", "sae", "store"},
    "steer": GROUND | {"corpus", "model", "sae"},
    "measure": GROUND | {"corpus", "model", "sae", "steer"},
    "evidence": GROUND | {"log", "corpus", "model", "sae", "store", "harvest", "steer", "measure"},
    "evaluate": GROUND | {"corpus", "model", "sae"},
    # without torch itself; targets that write weights import the room `sae` when they do
    "export": GROUND | {"sae", "store"},
    # both: each file of `stages` belongs to one side, and pipeline runs them in turn
    "stages": GROUND
    | {"corpus", "model", "sae", "harvest", "evidence", "measure", "steer", "evaluate"}
    | {"llm", "store", "ask", "rules", "score", "explain", "export", "terminal"},
    # fetches a real model and its text, and measures the machine for them
    "real_model": GROUND | {"corpus", "model", "sae", "terminal"},
    # for people
    "report": GROUND | {"store", "evidence", "terminal"},
    "cli": GROUND | {"real_model", "stages", "report", "export", "store", "terminal", "log"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""The allowed arrows: a room may import those named. A new room or arrow is a decision, made here."""

TORCH_ROOMS = {"corpus", "model", "sae", "harvest", "evidence", "measure", "steer", "evaluate", "real_model"}
TORCH_STAGES = {
    "session", "held_weights", "model_checks", "training", "training_cache", "harvesting", "verifying", "gathering",
    "evaluating", "measuring", "fit_check",
}  # fmt: skip
"""Files of `stages` that run the model. They import nothing of the rooms that ask an LLM."""
LLM_ROOMS = {"llm", "ask", "rules", "score", "explain"}

LLM_SIDE = {"openai", "asyncio_throttle", "tenacity", "aiohttp", "httpx2"}


def step_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Every module named by an import statement anywhere in the file, late imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "autointerp":
                found.update(f"autointerp.{alias.name}" for alias in node.names)
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if "_resources" not in p.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_arrows(path: Path) -> None:
    step = step_of(path)
    assert step in MAY_IMPORT, f"{step} has no place in the table of arrows"
    targets = {m.split(".")[1] for m in imports_of(path) if m.startswith("autointerp.")} - {"__version__"}
    extra = targets - MAY_IMPORT[step] - {step}
    assert not extra, f"{path.name} ({step}) imports {sorted(extra)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_torch_and_the_llm_client_never_meet(path: Path) -> None:
    step, roots = step_of(path), {m.split(".")[0] for m in imports_of(path)}
    runs_the_model = step in TORCH_ROOMS or (step == "stages" and path.stem in TORCH_STAGES)
    if not runs_the_model:
        assert not roots & TORCH_SIDE, f"{path.name} ({step}) imports {sorted(roots & TORCH_SIDE)}"
    if step == "stages" and runs_the_model:
        met = {m.split(".")[1] for m in imports_of(path) if m.startswith("autointerp.")} & LLM_ROOMS
        assert not met, f"stages/{path.name} runs the model and imports {sorted(met)}"
    if step != "llm":
        assert not roots & LLM_SIDE, f"{path.name} ({step}) imports {sorted(roots & LLM_SIDE)}"
    if step != "store":
        # corpus reads Parquet through DuckDB; harvest writes Parquet shards with it. Neither touches the store's SQL.
        assert step in ("corpus", "harvest") or "duckdb" not in roots, f"{path.name} ({step}) imports duckdb"


def test_no_two_files_have_one_name() -> None:
    """A name says what is inside, so two rooms do not have the same one."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        if path.stem not in ("__init__", "__main__"):
            places.setdefault(path.stem, []).append(path.relative_to(PACKAGE).as_posix())
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_the_command_line_starts_without_torch() -> None:
    done = run_without_torch("--help")
    assert done.returncode == 0, done.stderr
    assert "explain" in done.stdout


def test_a_gpu_command_without_torch_says_what_to_install(tmp_path: Path) -> None:
    config = tmp_path / "autointerp.toml"
    config.write_text('[model]\nname = "m"\n[corpus]\nsource = "stdlib"\n[[sae]]\nhookpoint = "h"\n')
    done = run_without_torch("harvest", "-c", str(config))
    assert done.returncode == 2, done.stderr
    assert "autointerp[gpu]" in done.stderr
    assert "Traceback" not in done.stderr


def test_commands_that_only_read_do_not_import_the_llm_client() -> None:
    """Nor does the process of a query import what it does not need: it is started for every query."""
    heavy = {
        "autointerp.cli.app": {"openai", "aiohttp", "torch", "transformers", "numpy"},
        "autointerp.store.query, autointerp.store.condition": {"numpy", "rich", "typer", "autointerp.records"},
    }
    for modules, names in heavy.items():
        code = f"import sys, {modules}; print(*{names} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "\n"


TESTS = Path(__file__).parent
IMPORT = re.compile(r"^\s*(?:from|import)\s+(?:tests\.)?(test_\w+|conftest)\b", re.MULTILINE)
"""Imports of test modules, in code and in the text of scripts that child processes run."""


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda p: p.relative_to(TESTS).as_posix())
def test_tests_find_their_helpers_in_support(path: Path) -> None:
    found = IMPORT.findall(path.read_text(encoding="utf-8"))
    assert not found, f"{path.name} imports {', '.join(found)}; what tests share belongs into tests/support"
