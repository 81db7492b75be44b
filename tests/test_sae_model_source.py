"""What training reads: every token that counts, but of the report split none."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from autointerp.config import CorpusConfig, ModelConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import read_documents
from autointerp.corpus.windows import work_units
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.model.load import load_model
from autointerp.sae.model_source import ModelSource
from autointerp.sae.trainer import CHECKPOINT
from autointerp.stages.session import held_out_from_training
from autointerp.stages.training import _mark_held_out


def test_the_report_split_is_not_trained_on(tiny_neox: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    for i in range(70):
        text = " ".join(rng.choice(("return", "import", "self", "value", "index")) for _ in range(20))
        (tmp_path / f"{i:02}.txt").write_text(text)
    loaded = load_model(ModelConfig(name=str(tiny_neox), device="cpu"))
    corpus, point = CorpusConfig(source=str(tmp_path), context_length=32), Hookpoint("gpt_neox.layers.0")
    got = torch.cat([vectors for vectors, _ in ModelSource(loaded, [point], corpus, 512).read(None)])
    documents = read_documents(corpus, CorpusReport(), lambda messages: str(messages))
    windows = [w for unit in work_units(documents, loaded.tokenizer, corpus) for w in unit.windows]
    assert {w.split for w in windows} == {"explain", "select", "report"}
    wanted = torch.cat(
        [
            activations_at(loaded, point, torch.tensor([list(w.token_ids)]))[0][w.n_prefix :]
            for w in windows
            if w.split != "report"
        ]
    )
    assert got.shape == wanted.shape
    torch.testing.assert_close(got.sum(0), wanted.sum(0), rtol=1e-4, atol=1e-3)


def test_only_a_training_that_begins_here_is_said_to_hold_out(tmp_path: Path) -> None:
    """The folder alone says nothing: a kill may have left it without the note, and without a step."""
    for name in ("new", "killed", "old", "resumed"):
        if name in ("killed", "old"):
            (tmp_path / name / "training").mkdir(parents=True)
        if name == "old":
            (tmp_path / name / "training" / CHECKPOINT).touch()  # of an earlier version, which read all splits
        _mark_held_out(tmp_path / name / "training")
        if name == "resumed":
            (tmp_path / name / "training" / CHECKPOINT).touch()
            _mark_held_out(tmp_path / name / "training")
    held_out = [name for name in ("new", "killed", "old", "resumed") if held_out_from_training(tmp_path / name)]
    assert held_out == ["new", "killed", "resumed"]
