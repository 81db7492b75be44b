"""dictionary_learning's ae.pt: each class read to its own numbers, with and without the configuration beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recorded_steps import RecordedSteps
from support.sae_format_helpers import FIXTURES, check_as_recorded, copied, recorded

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import detect, load_sae, sae_sha256

TOOL = "dictionary_learning"
AMBIGUOUS = {"AutoEncoderTopK", "BatchTopKSAE"}


def change(path: Path, **changes: Any) -> None:
    state = torch.load(path, weights_only=True) | changes
    torch.save({key: value for key, value in state.items() if value is not None}, path)


@pytest.mark.parametrize("name", recorded(TOOL))
def test_recorded_dictionaries_compute_what_the_library_does(name: str) -> None:
    folder = FIXTURES / TOOL / name
    sae = load_sae(folder)
    check_as_recorded(sae, folder)
    check_as_recorded(load_sae(folder / "ae.pt"), folder)
    assert detect(folder) == detect(folder / "ae.pt") == TOOL
    assert sae.metadata.pop("declared", None) == ({"l0": 3.0} if "TopK" in name else None)
    assert sae.metadata == {
        "model_name": "EleutherAI/pythia-70m",
        "hook_layer": 1,
        "submodule_name": "resid_post_layer_1",
        "context_size": 128,
        "hook_name": "blocks.1.hook_resid_post",
    }
    assert sae_sha256(folder) == sae_sha256(folder / "ae.pt")


def test_an_sae_is_hashed_once_until_its_file_changes(tmp_path: Path) -> None:
    folder = copied(TOOL, recorded(TOOL)[0], tmp_path / "sae")
    first, again, changed = RecordedSteps(), RecordedSteps(), RecordedSteps()
    found = sae_sha256(folder, counting=first)
    assert first.totals == {"hashing the SAE": (1, "MB")}
    assert sae_sha256(folder, counting=again) == found and again.totals == {}
    change(folder / "ae.pt", **{key: tensor * 2 for key, tensor in torch.load(folder / "ae.pt").items()})
    assert sae_sha256(folder, counting=changed) != found and changed.totals


@pytest.mark.parametrize("name", sorted(set(recorded(TOOL)) - AMBIGUOUS | {"AutoEncoderTopK"}))
def test_the_keys_tell_the_class_where_there_is_no_configuration(name: str, tmp_path: Path) -> None:
    file = tmp_path / "some.pt"
    shutil.copy(FIXTURES / TOOL / name / "ae.pt", file)
    check_as_recorded(load_sae(file), FIXTURES / TOOL / name)
    check_as_recorded(load_sae(tmp_path), FIXTURES / TOOL / name)


def test_tensors_of_two_classes_are_not_guessed(tmp_path: Path) -> None:
    folder = copied(TOOL, "BatchTopKSAE", tmp_path / "a")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="may be AutoEncoderTopK .* or BatchTopKSAE"):
        load_sae(folder)


def test_a_checkpoint_finds_the_configuration_of_its_run(tmp_path: Path) -> None:
    folder = copied(TOOL, "BatchTopKSAE", tmp_path / "trainer_0")
    (folder / "checkpoints").mkdir()
    (folder / "ae.pt").rename(folder / "checkpoints" / "ae_100.pt")
    check_as_recorded(load_sae(folder / "checkpoints" / "ae_100.pt"), FIXTURES / TOOL / "BatchTopKSAE")


@pytest.mark.parametrize("name", recorded(TOOL))
def test_a_backup_under_the_same_name_is_recognised_and_scaled_back(name: str, tmp_path: Path) -> None:
    """Of a run on activations divided by norm_factor: the same features of an input that much larger."""
    folder = copied(TOOL, name, tmp_path / "a")
    state = torch.load(folder / "ae.pt", weights_only=True)
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    torch.save({"step": 7, "ae": state, "optimizer": optimizer, "config": {}, "norm_factor": 2.5}, folder / "ae.pt")
    sae, plain = load_sae(folder), load_sae(FIXTURES / TOOL / name)
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)) * 2
    torch.testing.assert_close(sae.encode(2.5 * x), 2.5 * plain.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(2.5 * x), 2.5 * plain(x), rtol=1e-5, atol=1e-5)
    torch.save({"step": 7, "ae": [1, 2], "optimizer": optimizer}, folder / "ae.pt")
    with pytest.raises(InputError, match="not a state_dict"):
        load_sae(folder)


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_was_never_set_is_refused(name: str, tmp_path: Path) -> None:
    folder = copied(TOOL, name, tmp_path / "a")
    change(folder / "ae.pt", threshold=torch.tensor(-1.0))
    with pytest.raises(InputError, match="threshold is -1, so training never set it"):
        load_sae(folder)


def test_an_unknown_class_has_near_names(tmp_path: Path) -> None:
    folder = copied(TOOL, "BatchTopKSAE", tmp_path / "a")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopK"}}))
    with pytest.raises(InputError, match="'BatchTopK' is not supported. Did you mean BatchTopKSAE"):
        load_sae(folder)
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "IdentityDict"}}))
    with pytest.raises(InputError, match="Supported: AutoEncoder, AutoEncoderNew"):
        load_sae(folder)


def test_numbers_that_do_not_survive_the_scaling_are_damage(tmp_path: Path) -> None:
    folder = copied(TOOL, "GatedAutoEncoder", tmp_path / "a")
    change(folder / "ae.pt", r_mag=torch.full((16,), 100.0))
    with pytest.raises(DamagedError, match="too large for float32 once its scaling is undone"):
        load_sae(folder)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = copied(TOOL, "AutoEncoderTopK", tmp_path / "a")
    whole = (folder / "ae.pt").read_bytes()
    change(folder / "ae.pt", b_dec=None, **{"encoder.bias": None})
    with pytest.raises(DamagedError, match="lacks encoder.bias, b_dec"):
        load_sae(folder)
    (folder / "ae.pt").write_bytes(whole)
    change(folder / "ae.pt", **{"decoder.weight": torch.zeros(8, 15)})
    with pytest.raises(DamagedError, match=r"decoder.weight has shape \[8, 15\], but encoder.weight says \[8, 16\]"):
        load_sae(folder)
    (folder / "ae.pt").write_bytes(whole)
    change(folder / "ae.pt", b_dec=torch.full((8,), torch.nan))
    with pytest.raises(DamagedError, match="b_dec holds NaN"):
        load_sae(folder)
    (folder / "ae.pt").write_bytes(whole)
    change(folder / "ae.pt", k=torch.tensor(0))
    with pytest.raises(InputError, match="k must be a positive whole number, not 0"):
        load_sae(folder)
    change(folder / "ae.pt", **{"encoder.weight": "text"})
    with pytest.raises(DamagedError, match="encoder.weight should be a matrix, but is str"):
        load_sae(folder)
    (folder / "config.json").unlink()
    torch.save({"weights": torch.zeros(3)}, folder / "ae.pt")
    with pytest.raises(InputError, match=r"is none of AutoEncoder.*it holds: weights"):
        load_sae(folder)
    shutil.copy(folder / "ae.pt", folder / "b.pt")
    (folder / "ae.pt").rename(folder / "c.pt")
    with pytest.raises(InputError, match="holds 2 .pt files and no ae.pt"):
        load_sae(folder, TOOL)
