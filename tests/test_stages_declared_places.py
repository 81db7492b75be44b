"""What a dictionary's file declares of its place is compared with where it is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.commands import write_config, write_corpus

from autointerp.config_file import load
from autointerp.errors import MismatchError
from autointerp.stages.session import Session, loaded_sae
from autointerp.terminal import Terminal


@pytest.fixture
def session(tiny_gpt2: Path, tmp_path: Path) -> Session:
    write_corpus(tmp_path / "texts")
    return Session(load(write_config(tmp_path, tiny_gpt2, corpus=str(tmp_path / "texts"))), Terminal().silent())


def transcoder(folder: Path, width: int) -> Path:
    """circuit-tracer's, of layer 1."""
    g = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(64, width, generator=g), torch.randn(64, width, generator=g)
    tensors = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": torch.zeros(64), "b_dec": torch.zeros(width)}
    folder.mkdir()
    save_file(tensors, folder / "layer_1.safetensors")
    (folder / "config.yaml").write_text("feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n")
    return folder / "layer_1.safetensors"


def test_a_transcoder_is_not_read_as_an_sae(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(session.terminal, "say", told.append)
    width = session.model().model.get_input_embeddings().weight.shape[1]
    table = replace(session.config.sae[0], path=str(transcoder(tmp_path / "plt", width)))
    reads = replace(table, hookpoint="blocks.1.mlp.hook_in")
    with pytest.raises(MismatchError, match="transcoder, which writes at blocks.1.hook_mlp_out; set output_hookpoint"):
        loaded_sae(session, reads)
    both = replace(reads, output_hookpoint="blocks.1.hook_mlp_out")
    assert loaded_sae(session, both)[0].metadata["hook_name"] == "blocks.1.mlp.hook_in"
    assert list(map(str, session.points(both))) == ["transformer.h.1.mlp:in", "transformer.h.1.mlp"]
    assert not told
    loaded_sae(session, replace(both, output_hookpoint="transformer.h.0.mlp"))
    (said,) = told
    assert "says it was trained at blocks.1.hook_mlp_out, which is transformer.h.1.mlp here" in said
    assert "used at transformer.h.0.mlp" in said


def test_a_module_with_its_side_behind_it_is_a_hookpoint(session: Session) -> None:
    assert str(session.point("transformer.h.1.mlp.input")) == "transformer.h.1.mlp:in"
    assert str(session.point("h.1.output")) == "transformer.h.1"
