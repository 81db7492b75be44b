"""The activation cache: every vector once an epoch, what a kill at any point costs, and that no damage goes unseen."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.sae_training import CONFIG, vectors
from torch import Tensor

from autointerp.errors import DamagedError, InputError, MismatchError, StoreBusyError
from autointerp.model.hooks import Hookpoint
from autointerp.sae import activation_cache, activation_shards, files
from autointerp.sae.activation_cache import CachedSource, fill, filling
from autointerp.sae.activation_shards import MANIFEST, Shards
from autointerp.sae.buffer import ArraySource, ShuffledBatches
from autointerp.sae.trainer import Trainer
from autointerp.sae.training_run import SaeSpec

A, B = Hookpoint("a"), Hookpoint("b", "in")
WIDTHS = {A: 3, B: 2}


class Killed(BaseException): ...


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (activation_cache, activation_shards):
        monkeypatch.setattr(module, "SHARD_VECTORS", 40)
        monkeypatch.setattr(module, "PIECE_VECTORS", 8)


class Model(ArraySource):
    """Gives `n` numbered vectors at the hookpoints, and dies when `left` are read."""

    n_read = 0

    def __init__(self, points: Sequence[Hookpoint], n: int = 333, left: float = float("inf")) -> None:
        self.columns, end = {}, 0
        for point in points:
            self.columns[point] = (end, end := end + WIDTHS[point])
        number = torch.arange(n).unsqueeze(1)
        sides = [(number + 1000 * (point == B)).repeat(1, WIDTHS[point]) for point in points]
        super().__init__(torch.cat(sides, dim=1).float(), block=17)
        self.left = left

    def read(self, position: Any) -> Iterator[tuple[Tensor, Any]]:
        for part, behind in super().read(position):
            Model.n_read += len(part)
            self.left -= len(part)
            if self.left < 0:
                raise Killed
            yield part, behind


def held(folder: Path, points: Sequence[Hookpoint] = (A, B), key: str = "k") -> dict[Hookpoint, Shards]:
    return {point: Shards(folder / point.path, {"key": key, "hookpoint": str(point)}) for point in points}


def filled(folder: Path, wanted: int = 333, points: Sequence[Hookpoint] = (A, B), **model: Any) -> CachedSource:
    shards = held(folder, points)
    n = fill(shards, wanted, lambda needed: Model(needed, **model), lambda done: None)
    return CachedSource(shards, Model(points).columns, n, key="k", seed=3, device=torch.device("cpu"))


def take(source: CachedSource, n: int, position: Any = None) -> Tensor:
    parts: list[Tensor] = []
    for part, _ in source.read(position):
        parts.append(part)
        if sum(map(len, parts)) >= n:
            return torch.cat(parts)[:n]
    raise AssertionError


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_vector_comes_once_an_epoch_and_each_epoch_has_an_order_of_its_own(tmp_path: Path) -> None:
    seen = take(filled(tmp_path), 999)
    assert torch.equal(seen[:, 3] - seen[:, 0], torch.full((999,), 1000.0))  # the hookpoints stay side by side
    epochs = seen[:, 0].split(333)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(333).float())
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    # forty vectors that follow each other come from five places, and not from one
    assert len({int(number) // 8 for number in epochs[0][:40]}) == 5
    assert epochs[0][:40].max() - epochs[0][:40].min() > 80


def test_the_source_is_read_once_and_a_cache_may_grow(tmp_path: Path) -> None:
    Model.n_read = 0
    before = take(filled(tmp_path, 100), 300)
    assert Model.n_read == 102  # six blocks of 17
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 3
    filled(tmp_path, 100)
    assert Model.n_read == 102
    filled(tmp_path, 1000)
    assert Model.n_read == 102 + 333 - 68  # from the block on in which the 80th vector is, which ends the second shard
    assert torch.equal(take(filled(tmp_path, 100), 300), before)  # what a run that goes on reads is the same
    Model.n_read = 0
    assert filled(tmp_path, 1000).n_vectors == 333 and Model.n_read == 0


def test_a_hookpoint_that_is_added_is_filled_alone(tmp_path: Path) -> None:
    filled(tmp_path, points=[A])
    asked: list[Sequence[Hookpoint]] = []
    fill(held(tmp_path), 333, lambda points: asked.append(points) or Model(points), lambda done: None)  # type: ignore[func-returns-value]
    assert asked == [[B]]
    filled(tmp_path / "other")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "other" / "a")
    assert files_of(tmp_path / "b") == files_of(tmp_path / "other" / "b")


@pytest.mark.parametrize("left", [0, 39, 41, 120, 332])
def test_a_fill_that_was_killed_goes_on(tmp_path: Path, left: int) -> None:
    filled(tmp_path / "whole")
    with pytest.raises(Killed):
        filled(tmp_path / "cut", left=left)
    Model.n_read = 0
    filled(tmp_path / "cut")
    assert Model.n_read <= 333 - left // 17 * 17 + 40 + 17  # what a kill costs is no more than a shard and a block
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_a_kill_between_any_two_bytes_of_the_manifest(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole", 120)
    expected, manifest = take(whole, 240), (tmp_path / "whole" / "a" / MANIFEST).read_bytes()
    for length in random.Random(0).sample(range(len(manifest)), 12):
        shutil.copytree(tmp_path / "whole", tmp_path / str(length))
        (tmp_path / str(length) / "a" / MANIFEST).write_bytes(manifest[:length])
        assert torch.equal(take(filled(tmp_path / str(length), 120), 240), expected)
        assert files_of(tmp_path / str(length)) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("fault", ["cut", "lost", "empty"])
def test_a_torn_shard_is_made_again(tmp_path: Path, fault: str) -> None:
    expected = take(filled(tmp_path), 333)
    before = files_of(tmp_path)
    shard = tmp_path / "b" / "000002-40.safetensors"
    if fault == "lost":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-3] if fault == "cut" else b"")
    Model.n_read = 0
    assert torch.equal(take(filled(tmp_path), 333), expected)
    assert Model.n_read == 136 - 68  # the blocks of one shard
    again = files_of(tmp_path)
    assert {name for name in again if again[name] != before[name]} == {f"b/{MANIFEST}"}


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    """A bit anywhere in the folder: what is read is what was written, or it is refused with the name of the file."""
    expected, draw = take(filled(tmp_path / "whole"), 333), random.Random(1)
    shutil.copytree(tmp_path / "whole", tmp_path / "bad")
    paths, refused = sorted(path for path in (tmp_path / "bad").rglob("*") if path.is_file()), 0
    for _ in range(60):
        path = draw.choice(paths)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        try:
            assert torch.equal(take(filled(tmp_path / "bad"), 333), expected), path
        except DamagedError as error:
            refused += 1
            assert str(path) in str(error) and "delete" in str(error)
        finally:
            shutil.rmtree(tmp_path / "bad")
            shutil.copytree(tmp_path / "whole", tmp_path / "bad")
    assert refused > 25


def test_vectors_of_something_else_are_refused(tmp_path: Path) -> None:
    source = filled(tmp_path)
    with pytest.raises(MismatchError, match="other vectors"):
        held(tmp_path, key="another")
    position = json.loads(json.dumps(next(source.read(None))[1]))
    other = CachedSource(source.held, source.columns, 333, key="another", seed=3, device=torch.device("cpu"))
    with pytest.raises(MismatchError, match="another model, text or device"):
        next(other.read(position))


def test_a_source_without_vectors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no activation vectors"):
        filled(tmp_path, n=0)


def test_two_processes_do_not_fill_one_cache(tmp_path: Path) -> None:
    with filling(tmp_path), pytest.raises(StoreBusyError, match="another process"), filling(tmp_path):
        pass
    with filling(tmp_path):  # it is free again
        pass


@pytest.mark.parametrize("stop", [1, 7, 8, 9, 20])
def test_batches_go_on_where_a_run_stopped(tmp_path: Path, stop: int) -> None:
    def batches() -> ShuffledBatches:
        return ShuffledBatches(filled(tmp_path), batch_size=20, buffer_vectors=170, n_batches=40, seed=4)

    whole, first = list(batches()), batches()
    for _ in zip(range(stop), first, strict=False):
        pass
    state, second = json.loads(json.dumps(first.state())), batches()
    second.restore(state)
    rest = list(second)
    assert len(rest) == 40 - state["served"]
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[state["served"] :], strict=True))


def test_training_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Also where the cache has grown meanwhile, by another run's wish."""
    data, config = vectors(700), replace(CONFIG, cache="somewhere", cache_vectors=500)

    class Text(ArraySource):
        columns = {A: (0, 16)}

    def trainer(folder: str, **hooks: Any) -> Trainer:
        shards = held(tmp_path / f"cache {folder}", [A])
        n = fill(shards, 500, lambda points: Text(data, 100), lambda done: None)
        source = CachedSource(shards, Text.columns, n, key="k", seed=3, device=torch.device("cpu"))
        return Trainer(source, config, [(SaeSpec("x", "topk", 64, 4), tmp_path / folder)], log_every=1, **hooks)

    def die(step: int, steps: int) -> None:
        if step == 17:
            raise Killed

    trainer("whole").train()
    with pytest.raises(Killed):
        trainer("cut", on_progress=die).train()
    fill(held(tmp_path / "cache cut", [A]), 700, lambda points: Text(data, 100), lambda done: None)
    assert trainer("cut").step == 10
    trainer("cut").train()
    one, other = (files.read_tensors(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
