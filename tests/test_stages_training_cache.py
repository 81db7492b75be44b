"""`train.cache` through the commands: one pass of the model for all SAEs, equal results, and what is refused before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import run, write_config, write_corpus
from torch import Tensor

from autointerp.config import Config, SaeConfig, TrainConfig
from autointerp.config_file import load
from autointerp.errors import DiskFullError, InputError, StoppedError
from autointerp.sae import activation_cache, activation_shards, files, model_source
from autointerp.sae.training_run import SaeRun
from autointerp.stages import pipeline, training_cache
from autointerp.terminal import Terminal

TRANSCODER = SaeConfig("transformer.h.0.mlp:in", "trans", output_hookpoint="transformer.h.0.mlp", d_sae=32, k=4)


class Killed(BaseException): ...


@pytest.fixture
def config(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Two dictionaries at three hookpoints, and shards so small that the corpus fills several."""
    for module in (activation_cache, activation_shards, training_cache):
        monkeypatch.setattr(module, "SHARD_VECTORS", 1024)
    for module in (activation_cache, activation_shards):
        monkeypatch.setattr(module, "PIECE_VECTORS", 64)
    write_corpus(tmp_path / "texts")
    path = write_config(tmp_path, tiny_gpt2)
    text = path.read_text().replace("tokens = 8192", "tokens = 3072")
    path.write_text(text.replace("[train]", '[train]\ncache = "cache"'))
    loaded = load(path)
    assert loaded.train.cache == str(tmp_path / "cache")  # beside the configuration, as all paths are
    return replace(loaded, sae=(*loaded.sae, TRANSCODER), model=replace(loaded.model, batch_tokens=512))


def train(config: Config, folder: str) -> dict[str, Tensor]:
    """Train everything, with a store of its own in `folder`. Returns the tensors of the SAEs."""
    store = Path(config.store.path).parent / folder / "x.duckdb"
    pipeline.train(replace(config, store=replace(config.store, path=str(store))), None, Terminal(every_s=0))
    found = sorted((store.parent / "sae").glob("*/*.safetensors"))
    assert len(found) == len(config.sae)
    return {f"{path.parent.name} {name}": t for path in found for name, t in files.read_tensors(path).items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def dying(after: int, work: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter(range(after))

    def step(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise Killed
        return work(*arguments)

    return step


def test_the_model_reads_the_text_once_for_all_and_kills_change_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward, passes = model_source.activations_at_all, list[int]()

    def counted(*arguments: Any) -> Any:
        passes.append(len(arguments[1]))
        return forward(*arguments)

    monkeypatch.setattr(model_source, "activations_at_all", counted)
    first = train(config, "first")
    said = capsys.readouterr().err
    n_passes = len(passes)
    assert set(passes) == {3}  # one pass of the model for all hookpoints
    assert "filling the activation cache of transformer.h.1, transformer.h.0.mlp:in, transformer.h.0.mlp" in said
    assert "vectors of transformer.h.1" in said and "shuffle buffer" not in said
    lone = replace(config, sae=(config.sae[0],), train=replace(config.train, lr=3e-3))
    train(lone, "sweep")
    assert len(passes) == n_passes
    # killed in the midst of filling, then in training
    shutil.rmtree(str(config.train.cache))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(model_source, "activations_at_all", dying(n_passes // 2, forward))
        train(config, "cut")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SaeRun, "step", dying(2 * 7 + 1, SaeRun.step))
        train(replace(config, train=replace(config.train, checkpoint_every=5)), "cut")
    assert equal(train(config, "cut"), first)  # bit for bit


def test_what_belongs_to_other_settings_has_a_folder_of_its_own(config: Config, tmp_path: Path) -> None:
    one = replace(config, sae=(config.sae[0],), train=replace(config.train, tokens=1024, cache_vectors=512))
    train(one, "first")
    (tmp_path / "texts" / "new.txt").write_text("Another document stands here. " * 40)
    train(one, "text")
    train(replace(one, model=replace(one.model, dtype="bfloat16")), "dtype")
    folders = sorted((tmp_path / "cache").iterdir())
    assert len(folders) == 3
    shards = list((tmp_path / "cache").rglob("*.safetensors"))
    assert [path.name for path in shards] == ["000000-512.safetensors"] * 3  # the bound holds, and text is read again
    sizes = sorted(path.stat().st_size for path in shards)
    assert sizes[0] < 0.6 * sizes[1] and sizes[1] == sizes[2]  # bfloat16 takes half


def test_a_disk_without_room_is_refused_before_the_pass_and_named_by_doctor(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300 * 2**10))
    config = replace(config, sae=(config.sae[0],))
    with pytest.raises(DiskFullError, match=r"needs 0\.6 MiB, and 0\.3 MiB are free .*train\.cache_vectors"):
        train(config, "first")
    assert not (tmp_path / "cache").exists()
    assert run(capsys, "doctor", "--no-calls", "-c", str(tmp_path / "autointerp.toml"))[0] == DiskFullError.exit_code


def test_a_folder_that_cannot_be_one(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="name another folder in train.cache"):
        train(replace(config, train=replace(config.train, cache=str(tmp_path / "file"))), "first")


def test_a_deadline_stops_a_fill_and_keeps_what_it_did(config: Config, tmp_path: Path) -> None:
    config = replace(config, sae=(config.sae[0],), train=replace(config.train, tokens=2048, cache_vectors=2048))
    late = replace(config, budget=replace(config.budget, deadline="2020-01-01T00:00"))
    with pytest.raises(StoppedError):
        train(late, "first")
    assert [path.name for path in (tmp_path / "cache").rglob("*.safetensors")] == ["000000-1024.safetensors"]
    train(config, "first")


def test_a_bound_without_a_cache_is_a_mistake() -> None:
    with pytest.raises(InputError, match=r"cache_vectors = 5 bounds a cache, of which there is none"):
        TrainConfig(cache_vectors=5)
    with pytest.raises(InputError, match="empty name"):
        TrainConfig(cache="")
