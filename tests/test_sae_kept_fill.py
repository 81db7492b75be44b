"""A shuffle buffer that takes long to fill: what a kill costs of it, and that the vectors stay the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from autointerp.config import Config, CorpusConfig, SaeConfig, TrainConfig
from autointerp.errors import StoppedError
from autointerp.sae.buffer import ArraySource, ShuffledBatches
from autointerp.sae.kept_fill import KeptFill
from autointerp.sae.trainer import Trainer
from autointerp.sae.training_run import SaeSpec
from autointerp.stages import training


class Killed(BaseException): ...


class CountedSource(ArraySource):
    """Counts the vectors that were read, and dies when `left` are."""

    def __init__(self, vectors: Tensor, block: int, left: float = float("inf")) -> None:
        super().__init__(vectors, block)
        self.n_read, self.left = 0, left

    def read(self, position: Any) -> Iterator[tuple[Tensor, Any]]:
        for vectors, behind in super().read(position):
            self.n_read += len(vectors)
            if self.n_read > self.left:
                raise Killed
            yield vectors, behind


def source(left: float = float("inf")) -> CountedSource:
    return CountedSource(torch.arange(333).unsqueeze(1).repeat(1, 2).bfloat16(), 17, left)


def batches(src: CountedSource, kept: KeptFill | None, **hooks: Any) -> ShuffledBatches:
    return ShuffledBatches(src, batch_size=16, buffer_vectors=160, n_batches=25, seed=4, kept=kept, **hooks)


WHOLE = list(batches(source(), None))


def test_a_fill_goes_on_where_the_kill_came(tmp_path: Path) -> None:
    dying = source(left=100)
    with pytest.raises(Killed):
        batches(dying, KeptFill(tmp_path, "key", every_s=0)).block()
    again = source()
    first = batches(again, KeptFill(tmp_path, "key", every_s=0))
    first.block()
    assert again.n_read == 170 - 85  # five blocks of 17 were kept, and the tenth goes past the 160th vector
    assert all(torch.equal(a, b) for a, b in zip(first, WHOLE, strict=True))


def test_a_run_that_goes_on_in_the_middle_of_a_block_reads_none_of_it_again(tmp_path: Path) -> None:
    first = batches(source(), KeptFill(tmp_path, "key", every_s=0))
    taken = [vectors for _, vectors in zip(range(13), first, strict=False)]
    state = json.loads(json.dumps(first.state()))
    again = source()
    second = batches(again, KeptFill(tmp_path, "key", every_s=0))
    second.restore(state)
    second.block()
    assert again.n_read == 0
    assert all(torch.equal(a, b) for a, b in zip([*taken, *second], WHOLE, strict=True))


def test_nothing_is_written_for_a_quick_fill_and_a_deadline_keeps_what_there_is(tmp_path: Path) -> None:
    list(batches(source(), KeptFill(tmp_path, "key")))
    assert list(tmp_path.iterdir()) == []

    def stop(vectors: int, of: int) -> None:
        if vectors == 51:
            raise StoppedError("the deadline has come")

    with pytest.raises(StoppedError):
        batches(source(), KeptFill(tmp_path, "key"), on_fill=stop).block()
    again = source()
    first = batches(again, KeptFill(tmp_path, "key"))
    first.block()
    assert again.n_read == 170 - 51
    assert all(torch.equal(a, b) for a, b in zip(first, WHOLE, strict=True))


@pytest.mark.parametrize("fault", ["key", "bits", "short", "lost"])
def test_what_is_damaged_or_belongs_to_another_source_is_read_again(tmp_path: Path, fault: str) -> None:
    with pytest.raises(Killed):
        batches(source(left=100), KeptFill(tmp_path, "key", every_s=0)).block()
    second = tmp_path / "0-1.safetensors"
    data = bytearray(second.read_bytes())
    data[-3] ^= 1
    if fault == "lost":
        second.unlink()
    elif fault != "key":
        second.write_bytes(data if fault == "bits" else data[:-5])
    again = source()
    first = batches(again, KeptFill(tmp_path, "other" if fault == "key" else "key", every_s=0))
    first.block()
    assert again.n_read == 170 - (0 if fault == "key" else 17)
    assert all(torch.equal(a, b) for a, b in zip(first, WHOLE, strict=True))


def test_the_block_before_goes_only_after_a_checkpoint_that_does_not_need_it(tmp_path: Path) -> None:
    config = TrainConfig(tokens=640, batch_size=16, buffer_vectors=160, checkpoint_every=1000, warmup_steps=2)
    vectors = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))

    def trainer(left: float, folder: str, every_s: float) -> tuple[Trainer, CountedSource]:
        src = CountedSource(vectors, 17, left)
        spec = SaeSpec(name="a", architecture="topk", d_sae=16, k=2)
        kept = KeptFill(tmp_path / folder / "buffer", "key", every_s=every_s)
        return Trainer(src, replace(config), [(spec, tmp_path / folder)], kept=kept, log_every=1), src

    whole, _ = trainer(float("inf"), "whole", 1000)
    whole.train()
    cut, _ = trainer(250, "cut", 0)
    with pytest.raises(Killed):  # while the second block is gathered, of which part is kept
        cut.train()
    again, src = trainer(float("inf"), "cut", 0)
    assert again.step == 10
    again.train()
    assert src.n_read == 646 - 238  # what had been read by the last part that was kept is not read again
    lines = [(tmp_path / folder / "metrics.jsonl").read_text() for folder in ("whole", "cut")]
    assert lines[0] == lines[1]


def test_what_is_done_with_the_vectors_of_the_buffer_is_not_asked(tmp_path: Path) -> None:
    """A fill from before long vectors were left out is still used."""

    def key(train: TrainConfig) -> str:
        config = Config(corpus=CorpusConfig(source="stdlib"), train=train)
        session = SimpleNamespace(config=config, sae_folder=lambda sae: tmp_path)
        read = SimpleNamespace(loaded=SimpleNamespace(device=torch.device("cpu")), hookpoints=["model.layers.1"])
        kept = training._kept_fill(cast(Any, session), SaeConfig("model.layers.1"), cast(Any, read))
        assert kept is not None
        return kept._key

    assert key(TrainConfig(longest=0)) == key(TrainConfig(longest=10))
    assert key(TrainConfig(seed=1)) != key(TrainConfig(seed=2))
