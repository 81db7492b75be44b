"""What a control leaves as it was drawn stays so through every kind of training, and all else is trained."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sae_training import CONFIG, trainer, vectors
from torch import Tensor
from torch.nn import functional as F

from autointerp.errors import InputError, MismatchError
from autointerp.sae.buffer import ArraySource
from autointerp.sae.families import FAMILIES
from autointerp.sae.formats import load_sae, save_saelens
from autointerp.sae.frozen import SOFT_COSINE, keep_near
from autointerp.sae.sae import Sae
from autointerp.sae.trainer import Trainer
from autointerp.sae.training_run import ENCODER_SCALE, SaeRun, SaeSpec

HARD = replace(CONFIG, tokens=40 * 64, lr=2e-2, dead_after=128)
"""Steps so large that rows leave their start, and features that are soon dead, so that both ways of reviving act."""


class Run(Trainer):
    """A trainer of one SAE of which some features begin dead, and which knows the start of its rows."""

    def __init__(self, folder: Path, spec: SaeSpec, data: Tensor, **settings: Any) -> None:
        super().__init__(ArraySource(data, block=100), HARD, [(spec, folder)], log_every=1, **settings)
        self.run: SaeRun = self.learners[0].run
        if self.run.index == 0:
            self.run.weights["b_enc"].data[:8] -= 4.0
        self.first = {name: tensor.detach().clone() for name, tensor in self.run.weights.items()}


def trained(folder: Path, spec: SaeSpec, data: Tensor | None = None) -> tuple[Run, Sae]:
    run = Run(folder, spec, vectors(1500) if data is None else data)
    return run, run.train()[0]


def cosines(rows: Tensor, start: Tensor) -> Tensor:
    return F.cosine_similarity(rows.double(), start.double(), dim=1)


QUICK = ("topk", "gated", "jumprelu")
"""Families whose features are chosen in different ways; the others are slow tests."""
CASES = [
    *(pytest.param(name, {}, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in FAMILIES),
    pytest.param("relu", {"decoder_norm_penalty": True}, id="relu_free_norms"),
]


@pytest.mark.parametrize(("family", "more"), CASES)
@pytest.mark.parametrize("part", ["decoder", "soft_decoder", "encoder"])
def test_frozen_rows_do_not_move_whatever_the_family(
    tmp_path: Path, part: str, family: str, more: dict[str, Any]
) -> None:
    run, sae = trained(tmp_path / "x", SaeSpec("x", family, 64, 4, settings=more, frozen=part))
    rows = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert any(row["dead"] > 0 for row in rows)  # AuxK and waking had their turn
    now = {name: tensor.detach() for name, tensor in run.run.weights.items()}
    if part == "soft_decoder":
        assert float(cosines(now["decoder"], run.first["decoder"]).min()) >= SOFT_COSINE - 1e-6
        assert float(cosines(sae.W_dec, run.first["decoder"]).min()) >= SOFT_COSINE - 1e-6
        assert not torch.equal(now["decoder"], run.first["decoder"])
    else:
        assert torch.equal(now[part], run.first[part])
    if part == "decoder":
        assert torch.equal(sae.W_dec, run.first["decoder"])
    if part == "encoder" and sae.k is not None:
        assert torch.equal(sae.W_enc.T, run.first["encoder"])
    elif part == "encoder":  # a row takes over the length of its decoder row, and of a gate its gain
        assert float(cosines(sae.W_enc.T, run.first["encoder"]).min()) > 1 - 1e-6
    for name, start in run.first.items():
        assert name == part or not torch.equal(now[name], start), f"{name} was not trained"
    save_saelens(sae, tmp_path / "saved", {})
    again, x = load_sae(tmp_path / "saved"), vectors(50, seed=2)
    torch.testing.assert_close(again(x), sae(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["decoder", "soft_decoder", "encoder"])
@pytest.mark.parametrize("skip", [False, True])
def test_transcoders_have_starts_of_their_own_on_both_sides(tmp_path: Path, part: str, skip: bool) -> None:
    x = vectors(1500)
    data = torch.cat([x, x[:, :12] @ torch.randn(12, 9, generator=torch.Generator().manual_seed(1))], dim=1)
    spec = SaeSpec("t", "topk", 64, 4, inputs=(0, 16), outputs=(16, 25), skip=skip, frozen=part)
    run, sae = trained(tmp_path, spec, data)
    assert (sae.d_in, sae.d_out) == (16, 9)
    now = run.run.weights["encoder" if part == "encoder" else "decoder"].detach()
    start = run.first["encoder" if part == "encoder" else "decoder"]
    if part == "soft_decoder":
        assert float(cosines(now, start).min()) >= SOFT_COSINE - 1e-6
    else:
        assert torch.equal(now, start)


def test_the_start_is_that_of_the_dictionary_itself(tmp_path: Path) -> None:
    """So a control differs from its dictionary in one thing; and what is not frozen learns to explain the vectors."""
    runs = {part: trained(tmp_path / str(part), SaeSpec("x", "topk", 64, 4, frozen=part)) for part in PARTS}
    for run, _ in runs.values():
        assert torch.equal(run.first["decoder"], runs[None][0].first["decoder"])
        torch.testing.assert_close(run.first["encoder"], run.first["decoder"] * ENCODER_SCALE)
    moved = cosines(runs[None][1].W_dec, runs[None][0].first["decoder"])
    assert float((moved < SOFT_COSINE).float().mean()) > 0.1  # without the bound many rows leave it
    kept = cosines(runs["soft_decoder"][1].W_dec, runs[None][0].first["decoder"])
    assert float((kept < SOFT_COSINE + 1e-4).float().mean()) > 0.1  # with it they stop there
    data = vectors(1500)
    spread = (data - data.mean(0)).square().sum()
    unexplained = {part: float((data - sae(data)).square().sum() / spread) for part, (_, sae) in runs.items()}
    assert unexplained[None] < unexplained["soft_decoder"] < unexplained["decoder"] < 0.9
    assert unexplained["encoder"] < 0.9


PARTS: list[str | None] = [None, "decoder", "soft_decoder", "encoder"]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("part", ["decoder", "soft_decoder", "encoder"])
@pytest.mark.parametrize("family", ["topk", "jumprelu"])
def test_a_resumed_training_gives_the_same_bits(tmp_path: Path, part: str, family: str) -> None:
    spec = SaeSpec("x", family, 64, 4, frozen=part)
    whole = Run(tmp_path / "whole", spec, vectors(1500))
    expected = whole.train()[0]

    def interrupt(step: int, _: int) -> None:
        if step == 25:
            raise Interrupted

    with pytest.raises(Interrupted):
        Run(tmp_path / "cut", spec, vectors(1500), on_progress=interrupt).train()
    resumed = Run(tmp_path / "cut", spec, vectors(1500))
    assert resumed.step == 20
    found = resumed.train()[0]
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    if part == "soft_decoder":
        assert resumed.run.start is not None and torch.equal(resumed.run.start, whole.first["decoder"])
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.sae_training import trainer

def kill(step, steps):
    if step == 15:
        os.kill(os.getpid(), signal.SIGKILL)

trainer(Path(sys.argv[1]), frozen="soft_decoder", on_progress=kill).train()
"""


@pytest.mark.slow
def test_a_killed_soft_frozen_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), str(Path(__file__).parent)]
    killed = subprocess.run(arguments, capture_output=True, cwd=Path(__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed = trainer(tmp_path / "cut", frozen="soft_decoder")
    assert resumed.step == 10
    found, expected = resumed.sae, trainer(tmp_path / "whole", frozen="soft_decoder").sae
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_a_checkpoint_is_continued_only_with_the_same_part_frozen(tmp_path: Path) -> None:
    def run(part: str | None) -> Iterator[Any]:
        yield Run(tmp_path, SaeSpec("x", "topk", 64, 4, frozen=part), vectors(1500))

    next(run("decoder")).train()
    with pytest.raises(MismatchError, match="frozen decoder there, None here"):
        next(run(None))
    with pytest.raises(MismatchError, match="frozen decoder there, soft_decoder here"):
        next(run("soft_decoder"))


def test_an_unknown_part(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sae\.frozen must be none, decoder, encoder, soft_decoder, not 'bias'"):
        Run(tmp_path, SaeSpec("x", "topk", 64, 4, frozen="bias"), vectors(100))


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.floats(1e-3, 30.0), st.floats(1e-3, 1e3))
def test_rows_are_turned_back_to_the_nearest_allowed_direction(seed: int, far: float, size: float) -> None:
    g = torch.Generator().manual_seed(seed)
    start = F.normalize(torch.randn(20, 6, generator=g), dim=1)
    rows = size * (start + far * torch.randn(20, 6, generator=g))
    rows[0], rows[1], rows[2] = -size * start[0], 0.0, size * start[2]
    before, length = rows.clone(), rows.norm(dim=1)
    keep_near(rows, start)
    found = cosines(rows, start)
    assert float(found.min()) >= SOFT_COSINE - 1e-6
    near = cosines(before, start) >= SOFT_COSINE + 1e-5
    assert torch.equal(rows[near], before[near])
    moved = cosines(before, start) < SOFT_COSINE - 1e-5
    moved[:3] = False
    assert torch.allclose(found[moved], torch.full_like(found[moved], SOFT_COSINE), atol=1e-6)
    torch.testing.assert_close(rows[2:].norm(dim=1), length[2:], rtol=1e-5, atol=0)
    angle = torch.acos(found[moved].clamp(-1, 1)) + torch.acos(cosines(rows, before)[moved].clamp(-1, 1))
    # the turn is in the plane of the row and its start: the two angles add up
    assert torch.allclose(angle, torch.acos(cosines(before, start)[moved].clamp(-1, 1)), atol=1e-3)
