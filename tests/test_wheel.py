"""The wheel holds what the program reads at run time: prompts, SQL, the demo model."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_prompts_sql_and_demo_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
