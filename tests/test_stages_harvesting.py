"""The harvest stage around the pass itself: what it forecasts, what it asks of the disk, how it tells its progress."""

from __future__ import annotations

import itertools
import json
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.commands import write_config, write_corpus

from autointerp.config import Config, SaeConfig
from autointerp.config_file import load
from autointerp.errors import MismatchError
from autointerp.harvest import memory, unit
from autointerp.harvest.checkpoint import Checkpoints
from autointerp.harvest.text_pass import Shard
from autointerp.progress import Standing
from autointerp.sae.formats import sae_sha256
from autointerp.sae.sae import Sae
from autointerp.stages import harvesting, pipeline
from autointerp.stages import session as stages_session
from autointerp.stages.session import Session, matching_sae
from autointerp.store import Store
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

    def known(session: Any, sae: SaeConfig) -> Sae:
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

    monkeypatch.setattr(harvesting, "_known_sizes", known)
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


def test_what_was_done_inside_a_unit_does_not_count_towards_the_speed(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A harvest that is killed after three of its batches and goes on after them."""
    write_corpus(tmp_path / "texts")
    project = write_config(tmp_path, tiny_gpt2)
    text = project.read_text().replace("[corpus]", "batch_tokens = 256\n[corpus]").replace("= 20000", "= 1000000")
    project.write_text(text.replace("tokens = 8192", "tokens = 1024"))
    config, terminal = load(project), Terminal(every_s=0)
    pipeline.train(config, None, terminal)
    monkeypatch.setattr(Checkpoints, "is_due", lambda self: True)
    forward, calls = unit.activations_at_all, itertools.count()

    def dying(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return forward(*arguments)

    seen: list[Standing] = []
    session = Session(config, terminal)
    plan = harvesting._Plan(session, config.sae[0], harvesting._Facts.of(session))
    ready = harvesting._Ready.of(plan)
    terminal.watch(seen.append)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(unit, "activations_at_all", dying)
        harvesting._harvest_units(session, [ready], Shard())
    kept = max(standing.done for standing in seen)
    assert kept > 0 and {standing.begun_at for standing in seen} == {0}
    seen.clear()
    harvesting._harvest_units(session, [ready], Shard())
    harvest = [standing for standing in seen if standing.stage == "harvesting"]
    assert harvest[-1].begun_at == kept < harvest[-1].done
    assert all(s.rate is None for s in harvest if s.done <= kept)


@pytest.mark.slow
def test_a_dictionary_is_known_by_the_hash_that_it_came_in_with(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once the limit of length was no part of an SAE's hash. Units that were left then are gone on with, and what was
    harvested then goes on to be accepted. What is harvested now is not accepted with another limit."""
    write_corpus(tmp_path / "texts")
    config, terminal = load(write_config(tmp_path, tiny_gpt2)), Terminal()
    (sae,) = config.sae
    pipeline.train(config, None, terminal)
    file = Session(config, terminal).sae_folder(sae) / "cfg.json"

    def check(config: Config) -> None:
        with Store.open(config.store.path) as store:
            matching_sae(Session(config, terminal), store, sae)

    def as_once(patched: pytest.MonkeyPatch) -> None:
        patched.setattr(stages_session, "sae_sha256", partial(sae_sha256, with_limit=False))

    with monkeypatch.context() as patched:
        as_once(patched)
        harvesting.harvest_shard(Session(config, terminal), [sae], 0, 1)
    pipeline.merge(config, None, terminal)
    check(config)
    told = file.read_text()
    changed = json.loads(told)
    changed["metadata"]["longest_vector"] *= 2
    file.write_text(json.dumps(changed))
    with pytest.raises(MismatchError, match="has sha256"):
        check(config)
    file.write_text(told)

    old = replace(config, store=replace(config.store, path=str(tmp_path / "old.duckdb")))
    with monkeypatch.context() as patched:
        as_once(patched)
        pipeline.harvest(old, None, terminal)
    capsys.readouterr()
    pipeline.harvest(old, None, terminal)
    assert "harvested already" in capsys.readouterr().err
    check(old)


@pytest.mark.parametrize(
    ("merges", "groups", "needed"),
    [
        (True, [[0, 1, 2]], 150 + 300 + 75),
        (True, [[0], [1], [2]], 100 + 300),
        (True, [[0], [1, 2]], 100 + 300 + 75),
        (True, [[0, 1], [2]], 150 + 300),
        (False, [[0], [1], [2]], 150 + 300 + 75),  # a shard's units all wait for the merge
    ],
)
def test_groups_need_room_one_after_another(
    monkeypatch: pytest.MonkeyPatch, merges: bool, groups: list[list[int]], needed: int
) -> None:
    """Three dictionaries with 100, 200 and 50 bytes of evidence, half as much again while they are harvested."""
    sizes = {"a": 100, "b": 200, "c": 50}
    checked: list[tuple[int, str]] = []
    monkeypatch.setattr(harvesting, "_sizes", lambda session, sae: sae_of(sizes[sae.name]))
    monkeypatch.setattr(memory, "disk_needed", lambda size, *_: int(1.5 * size.d_sae))
    monkeypatch.setattr(memory, "check_disk", lambda folder, needed, names: checked.append((needed, names)))
    monkeypatch.setattr(memory, "share_a_pass", lambda *_: groups)
    session: Any = SimpleNamespace(
        config=Config(),
        terminal=Terminal(every_s=0),
        model=lambda: SimpleNamespace(device=torch.device("cpu")),
        work_folder=lambda sae: Path("not there"),
    )
    plans: Any = [SimpleNamespace(sae=sae) for sae in tables(*sizes)]
    assert harvesting._groups(session, plans, merges=merges) == [[plans[i] for i in group] for group in groups]
    assert max(checked) == (needed, "a, b, c")
    assert checked[0][0] <= needed, "what is asked before the model is loaded never refuses what would fit"
