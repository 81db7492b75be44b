"""What a dictionary's files declare is found where each tool leaves it; what is no number declares nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.analytic_dictionary import save
from support.sae_format_helpers import FIXTURES, change_config, make, tensors

from autointerp.sae.formats import load_sae, sae_sha256
from autointerp.sae.formats.declared import Declared, declared


def of(path: Path) -> Declared:
    return declared(load_sae(path))


def jumprelu(folder: Path, figures: dict[str, float] | None = None) -> Path:
    return save(folder, tensors() | {"threshold": torch.full((40,), 0.1)}, figures)


def test_k_is_the_declared_l0(tmp_path: Path) -> None:
    topk = save(tmp_path / "topk", tensors(), None, architecture="topk", k=4)
    assert of(topk) == Declared(4.0)
    assert of(FIXTURES / "sparsify" / "sae").l0 == load_sae(FIXTURES / "sparsify" / "sae").k
    batch = FIXTURES / "dictionary_learning" / "BatchTopKSAE"
    assert of(batch).l0 == json.loads((batch / "config.json").read_text())["trainer"]["k"]
    assert of(jumprelu(tmp_path / "jumprelu")) == Declared()


def test_gemma_scope_names_it_in_the_folder(tmp_path: Path) -> None:
    (recorded, *_) = sorted((FIXTURES / "gemma_scope").rglob("params.npz"))
    folder = tmp_path / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    shutil.copy(recorded, folder / "params.npz")
    assert of(folder) == of(folder / "params.npz") == Declared(71.0 if load_sae(folder).d_sae >= 71 else None)


def test_saelens_keeps_each_feature_s_frequency(tmp_path: Path) -> None:
    folder = jumprelu(tmp_path / "sae")
    before = sae_sha256(folder)
    frequency = torch.linspace(0.01, 0.4, 40)
    save_file({"sparsity": torch.log10(frequency)}, folder / "sparsity.safetensors")
    assert of(folder).l0 == pytest.approx(float(frequency.sum()), rel=1e-5)
    assert sae_sha256(folder) == before  # what is declared decides no number
    save_file({"sparsity": torch.zeros(7)}, folder / "sparsity.safetensors")
    assert of(folder) == Declared()
    (folder / "sparsity.safetensors").write_bytes(b"cut")
    assert of(folder) == Declared()


def test_dictionary_learning_evaluates(tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    shutil.copytree(FIXTURES / "dictionary_learning" / "AutoEncoder", folder)
    change_config(folder, "config.json", trainer={"dict_class": "AutoEncoder"})
    (folder / "eval_results.json").write_text(json.dumps({"l0": 5.5, "frac_variance_explained": 0.75, "cossim": 0.9}))
    assert of(folder) == of(folder / "ae.pt") == Declared(5.5, 0.25)
    (folder / "eval_results.json").write_text('{"l0": NaN, "frac_variance_explained": "much"}')
    assert of(folder) == Declared()
    (folder / "eval_results.json").write_text("[1, 2")
    assert of(folder) == Declared()


def test_metadata_declares_what_is_a_figure(tmp_path: Path) -> None:
    assert of(jumprelu(tmp_path / "a", {"l0": 3.5, "fvu": 0.2})) == Declared(3.5, 0.2)
    for i, (l0, fvu) in enumerate(((0, -0.1), (41, 1e9), ("3", "x"), (True, False), (None, [0.1]))):
        assert of(jumprelu(tmp_path / str(i), {"l0": l0, "fvu": fvu})) == Declared()  # type: ignore[dict-item]
    sae = make()
    sae.metadata = {"declared": [3]}
    assert declared(sae) == Declared()
    assert [str(Declared()), str(Declared(3.5)), str(Declared(None, 0.2))] == [
        "neither L0 nor FVU", "L0 3.5 and no FVU", "no L0 and FVU 0.2",
    ]  # fmt: skip
    assert np.isfinite(declared(load_sae(tmp_path / "a")).l0 or 0)


def test_what_a_reader_does_to_the_weights_is_not_taken_from_the_file(tmp_path: Path) -> None:
    odd = {"input_scale": "much", "gated_by_norm": True}
    topk = save(tmp_path / "topk", tensors(unit=False), None, architecture="topk", k=4, metadata=odd)
    sae = load_sae(topk)
    assert not set(odd) & set(sae.metadata) and sae.file_norms is not None
    torch.testing.assert_close(sae.file_norms, tensors(unit=False)["W_dec"].norm(dim=1))
