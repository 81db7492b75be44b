"""Feature blocks cover every feature once, and are as few as memory allows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from autointerp.config import CorpusConfig, HarvestConfig
from autointerp.harvest import memory
from autointerp.harvest.memory import bytes_per_feature, estimate, feature_blocks
from autointerp.sae.sae import Sae

CONFIG = HarvestConfig()


def sae(d_sae: int) -> Sae:
    return Sae(torch.zeros(2, d_sae), torch.zeros(d_sae), torch.zeros(d_sae, 2), torch.zeros(2), k=1)


@pytest.mark.parametrize("size", [1, 7, 30, 31, 500])
def test_blocks_of_a_given_size(size: int) -> None:
    blocks = feature_blocks(sae(31), dataclasses.replace(CONFIG, feature_block=size), 64)
    assert [f for b in blocks for f in range(b.low, b.high)] == list(range(31))
    assert all(len(b) <= size for b in blocks)


def test_blocks_follow_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sae(1000)
    assert len(feature_blocks(model, CONFIG, 64)) == 1
    need = 1000 * bytes_per_feature(CONFIG)
    fixed = memory.fixed_bytes(model, 64, torch.device("cpu"))
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(2 * (fixed + need / 3.5)))
    blocks = feature_blocks(model, CONFIG, 64)
    assert len(blocks) == 4
    found = estimate(model, CONFIG, CorpusConfig(), 64)
    assert found.n_passes == 4 and found.device < fixed + need
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    assert len(feature_blocks(model, CONFIG, 64)) == 1000


def test_nothing_grows_with_the_corpus() -> None:
    model = sae(100)
    small, large = (estimate(model, CONFIG, CorpusConfig(max_tokens=n), 64) for n in (10**5, 10**9))
    assert small == large
    more = estimate(model, dataclasses.replace(CONFIG, top_contexts=40), CorpusConfig(), 64)
    assert more.per_feature > small.per_feature and more.evidence_file > small.evidence_file


def test_dictionaries_share_a_pass_as_far_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    saes, cpu = [sae(n) for n in (1000, 500, 500, 4000)], torch.device("cpu")
    needed = [
        memory.weight_bytes(one) + memory.fixed_bytes(one, 64, cpu) + one.d_sae * bytes_per_feature(CONFIG)
        for one in saes
    ]
    for room, groups in (
        (sum(needed), [[0, 1, 2, 3]]),
        (sum(needed) - 1, [[0, 1, 2], [3]]),
        (needed[0] + needed[1], [[0, 1], [2], [3]]),
        (0, [[0], [1], [2], [3]]),
    ):
        monkeypatch.setattr(memory, "free_bytes", lambda device, room=room: 2 * room)
        assert memory.share_a_pass(saes, CONFIG, 64, cpu) == groups
    blocked = dataclasses.replace(CONFIG, feature_block=100)
    monkeypatch.setattr(memory, "free_bytes", lambda device: sum(needed))
    assert memory.share_a_pass(saes, blocked, 64, cpu) == [[0, 1, 2, 3]]
