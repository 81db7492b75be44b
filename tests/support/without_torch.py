"""Runs commands in a process that finds no torch."""

from __future__ import annotations

import subprocess
import sys

TORCH_SIDE = {"torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "datasets"}

WITHOUT_TORCH = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
import autointerp.cli.app, autointerp.cli.doctor
import autointerp.report.show, autointerp.stages.labelling, autointerp.stages.pipeline, autointerp.evidence.methods
from autointerp.cli.app import main
try:
    main({argv!r})
except SystemExit as end:
    sys.exit(end.code)
"""


def run_without_torch(*argv: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT_TORCH.format(blocked=TORCH_SIDE, argv=list(argv))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
