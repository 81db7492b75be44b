"""The harvest stage around the pass itself: what it forecasts, what it asks of the disk, how it tells its progress."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autointerp.config import Config, SaeConfig
from autointerp.harvest import memory
from autointerp.sae.sae import Sae
from autointerp.stages import harvesting
from autointerp.terminal import Terminal


def sae_of(d_sae: int, d_in: int = 4) -> Sae:
    return Sae(torch.zeros(d_in, d_sae), torch.zeros(d_sae), torch.zeros(d_sae, d_in), torch.zeros(d_in), k=1)


def tables(*names: str) -> list[SaeConfig]:
    return [SaeConfig(name=name, hookpoint="transformer.h.1") for name in names]


def test_a_forecast_holds_one_dictionary_at_a_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that stay loaded would lower the free memory from which groups are made."""
    held: list[weakref.ref[torch.Tensor]] = []

    def load(session: Any, sae: SaeConfig) -> Sae:
        assert not any(tensor() is not None for tensor in held), f"an earlier one is loaded beside {sae.name}"
        weights = sae_of(100 * int(sae.name))
        held.append(weakref.ref(weights.W_enc))
        return weights

    def free(device: torch.device) -> int:
        return 2**30 - sum(2**28 for tensor in held if tensor() is not None)

    def share(sizes: list[Sae], *_: Any) -> list[list[int]]:
        assert [sae.d_sae for sae in sizes] == [100, 200, 300] and all(sae.W_enc.is_meta for sae in sizes)
        assert free(torch.device("cpu")) == 2**30
        return [[0, 1, 2]]

    monkeypatch.setattr(harvesting, "_known_sizes", load)
    monkeypatch.setattr(memory, "free_bytes", free)
    monkeypatch.setattr(memory, "share_a_pass", share)
    model = SimpleNamespace(device=torch.device("cpu"))
    session: Any = SimpleNamespace(config=Config(), terminal=Terminal(every_s=0), model=lambda: model)
    harvesting.forecast_harvest(session, tables("1", "2", "3"))
    out = capsys.readouterr().out
    assert len(held) == 3 and out.count("harvest of") == 3 and "one pass over the text for 1, 2, 3: about" in out


def test_free_memory_on_cuda_includes_what_the_allocator_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert memory.free_bytes(torch.device("cuda")) == 1400
