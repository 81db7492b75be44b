"""Runs commands in this process, and makes the configuration and corpus of a small project for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from autointerp.cli.app import main
from support.small_models import TRAINING_TEXT

CONFIG = """
[model]
name = {model!r}
dtype = "float32"
[corpus]
source = {corpus!r}
context_length = 32
unit_characters = 20000
[[sae]]
name = "tiny"
hookpoint = {hookpoint!r}
d_sae = 64
k = 4
[train]
tokens = 8192
batch_size = 256
buffer_vectors = 2048
lr = 1e-2
[harvest]
context_tokens = 16
top_contexts = 4
sampled_contexts = 4
negatives = 3
[explain]
explainer = "patterns"
[score]
contexts = 3
[store]
path = "tiny.duckdb"
"""


def write_corpus(folder: Path) -> Path:
    """Writes ninety different documents, which rotate and mix the training text's lines."""
    folder.mkdir()
    lines = [line for line in TRAINING_TEXT.splitlines() if line.strip()]
    for i in range(90):
        chosen = [lines[(i * 7 + j * (1 + i % 5)) % len(lines)] for j in range(6 + i % 7)]
        (folder / f"{i:03}.txt").write_text(f"document {i}\n" + "\n".join(chosen) + "\n", encoding="utf-8")
    return folder


def write_config(folder: Path, model: Path, hookpoint: str = "transformer.h.1", corpus: str = "texts") -> Path:
    path = folder / "autointerp.toml"
    path.write_text(CONFIG.format(model=str(model), hookpoint=hookpoint, corpus=corpus), encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Runs one command in this process: (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        main(list(argv))
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err
