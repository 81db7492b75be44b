"""Imports run one way, and the LLM and SQL side runs where torch is not installed (laws 1 and the house's arrows)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autointerp"

GROUND = {"errors", "records", "config", "stats", "resources", "deadline"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "deadline": {"errors"},
    "config": {"errors", "deadline"},
    "stats": set(),
    "resources": {"errors"},
    "log": set(),
    "terminal": {"log"},
    "schedule": {"errors"},
    "corpus": GROUND,
    "model": GROUND | {"corpus"},
    "sae": GROUND | {"corpus", "model"},
    "store": GROUND,
    "evidence": GROUND | {"corpus", "model", "sae", "store"},
    "evaluate": GROUND | {"corpus", "model", "sae"},
    "llm": GROUND,
    "interpret": GROUND | {"llm", "store"},
    "gpu_session": GROUND | {"corpus", "model", "sae", "evaluate", "store", "terminal"},
    "gpu_stage": GROUND | {"corpus", "model", "sae", "evidence", "gpu_session", "store", "terminal"},
    "evaluate_stage": GROUND | {"corpus", "model", "sae", "evaluate", "store", "terminal", "gpu_session"},
    "measure_stage": GROUND | {"corpus", "model", "sae", "evidence", "store", "terminal", "gpu_session"},
    "evidence_stage": GROUND | {"corpus", "model", "sae", "evidence", "gpu_session", "store", "terminal"},
    "llm_stage": GROUND | {"llm", "interpret", "store", "terminal"},
    "pipeline": GROUND
    | {"gpu_stage", "evidence_stage", "evaluate_stage", "measure_stage", "llm_stage", "store", "terminal"},
    "show": GROUND | {"store", "terminal", "show_evidence"},
    "show_evidence": {"terminal"},
    "compare": GROUND | {"store", "terminal"},
    "doctor": GROUND | {"pipeline", "gpu_stage", "llm_stage", "llm", "store", "terminal"},
    "config_template": GROUND,
    "demo": GROUND | {"pipeline", "show", "store", "terminal"},
    "cli": GROUND
    | {"pipeline", "llm_stage", "gpu_stage", "show", "compare", "doctor", "demo", "config_template", "store"}
    | {"schedule"}
    | {"terminal", "log"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""The allowed arrows: a step may import those named. A new module or arrow is a decision, made here."""

TORCH_SIDE = {"torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "datasets"}
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
    gpu_side = ("gpu_session", "gpu_stage", "evidence_stage", "evaluate_stage", "measure_stage")
    if step not in ("corpus", "model", "sae", "evidence", "evaluate", *gpu_side):
        assert not roots & TORCH_SIDE, f"{path.name} ({step}) imports {sorted(roots & TORCH_SIDE)}"
    if step != "llm":
        assert not roots & LLM_SIDE, f"{path.name} ({step}) imports {sorted(roots & LLM_SIDE)}"
    if step != "store":
        # corpus reads Parquet through DuckDB; evidence writes Parquet shards with it. Neither touches the store's SQL.
        assert step in ("corpus", "evidence") or "duckdb" not in roots, f"{path.name} ({step}) imports duckdb"


WITHOUT_TORCH = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
import autointerp.cli, autointerp.pipeline, autointerp.llm_stage, autointerp.show, autointerp.doctor
from autointerp.cli import main
try:
    main({argv!r})
except SystemExit as end:
    sys.exit(end.code)
"""


def run_without_torch(*argv: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT_TORCH.format(blocked=TORCH_SIDE, argv=list(argv))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


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
    code = "import sys, autointerp.cli; print(*{'openai', 'aiohttp', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
