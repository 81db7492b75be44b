"""The wheel holds what the program reads at run time; the sdist also holds the documentation, tests and scripts."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _build(target: str, folder: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_prompts_sql_and_demo_data(tmp_path: Path) -> None:
    _build("wheel", tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = {info.filename: info.file_size for info in wheel.infolist()}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "autointerp").rglob("*.sql")}
    for folder in ("prompts", "data"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert files
        wanted |= {f"autointerp/_resources/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert wanted <= set(held), sorted(wanted - set(held))
    weights = "data/demo_model/model.safetensors"
    assert held[f"autointerp/_resources/{weights}"] == (ROOT / weights).stat().st_size


def test_the_sdist_holds_documentation_tests_and_scripts(tmp_path: Path) -> None:
    _build("sdist", tmp_path)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"README.md", "pyproject.toml", "scripts/demo", "tests/test_docs.py"}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert len(wanted) > 8
    assert wanted <= held, sorted(wanted - held)
