"""Training on vectors made of known directions: what is learnt, what is folded back, what a kill costs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.sae_training import CONFIG, One, trainer, vectors
from torch import Tensor
from torch.nn import functional as F

from autointerp.errors import AutointerpError, DamagedError, InputError, MismatchError
from autointerp.sae.buffer import ArraySource, ShuffledBatches
from autointerp.sae.codes import topk_codes
from autointerp.sae.trainer import Trainer
from autointerp.sae.training_run import SaeSpec, default_lr


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


# --- shuffled batches ---------------------------------------------------------------------------------------------


def numbered(n: int) -> Tensor:
    return torch.arange(n).float().unsqueeze(1).expand(n, 2).contiguous()


def test_every_vector_is_handed_out_once_and_out_of_order() -> None:
    batches = ShuffledBatches(ArraySource(numbered(960), 100), batch_size=32, buffer_vectors=320, n_batches=30, seed=0)
    seen = torch.cat([b[:, 0] for b in batches])
    assert torch.equal(seen.sort().values, torch.arange(960).float())
    assert torch.equal(seen[:320].sort().values, torch.arange(320).float())  # a block is consecutive, its order is not
    assert not torch.equal(seen[:320], torch.arange(320).float())
    assert not torch.equal(seen[320:640] - 320, seen[:320])  # each block has a permutation of its own


def test_a_state_taken_while_the_buffer_fills_gives_the_batches_that_are_left() -> None:
    states: list[dict[str, object]] = []

    def make(on_fill: Callable[[int, int], None] = lambda vectors, of: None) -> ShuffledBatches:
        source = ArraySource(numbered(333), 17)
        return ShuffledBatches(source, batch_size=16, buffer_vectors=90, n_batches=12, seed=4, on_fill=on_fill)

    first = make(lambda vectors, of: states.append(json.loads(json.dumps(first.state()))))
    whole = list(first)
    assert {state["served"] for state in states} == {0, 5, 10} and len(states) > 10
    for state in states:
        second = make()
        second.restore(state)
        assert torch.equal(torch.cat(list(second)), torch.cat(whole[int(str(state["served"])) :]))


def test_the_corpus_is_read_again_where_it_is_shorter() -> None:
    batches = ShuffledBatches(ArraySource(numbered(50), 7), batch_size=20, buffer_vectors=40, n_batches=10, seed=0)
    counts = torch.bincount(torch.cat([b[:, 0] for b in batches]).long(), minlength=50)
    assert counts.tolist() == [4] * 50


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 9, 10, 22])
def test_a_restart_hands_out_exactly_the_batches_that_were_left(stop: int) -> None:
    def make() -> ShuffledBatches:
        return ShuffledBatches(ArraySource(numbered(333), 17), batch_size=16, buffer_vectors=90, n_batches=23, seed=4)

    whole = list(make())
    first = make()
    first.block()  # looking at the block must not move anything
    taken = [b for b, _ in zip(first, range(stop), strict=False)] if stop else []
    state = json.loads(json.dumps(first.state()))
    second = make()
    second.restore(state)
    rest = list(second)
    assert len(whole) == 23 and len(rest) == 23 - state["served"]
    for a, b in zip(whole[: len(taken)], taken, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole[state["served"] :], rest, strict=True):
        assert torch.equal(a, b)


def test_a_source_without_vectors_or_of_another_width() -> None:
    with pytest.raises(InputError, match="no activation vectors"):
        next(iter(ShuffledBatches(ArraySource(numbered(0)), batch_size=4, buffer_vectors=8, n_batches=2, seed=0)))

    class Odd(ArraySource):
        d_in = 3

    with pytest.raises(MismatchError, match=r"\[20, 2\], expected \[n, 3\]"):
        next(iter(ShuffledBatches(Odd(numbered(20)), batch_size=4, buffer_vectors=8, n_batches=2, seed=0)))


# --- training -----------------------------------------------------------------------------------------------------


def test_the_directions_the_data_is_made_of_are_found(tmp_path: Path) -> None:
    config = replace(CONFIG, tokens=600 * 128, batch_size=128, buffer_vectors=4096, warmup_steps=50, lr=5e-3)
    config = replace(config, dead_after=20_000)
    sae = trainer(tmp_path, vectors(20_000), config, log_every=100).sae
    true = F.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(99)), dim=1)
    assert float((true @ sae.W_dec.T).amax(1).mean()) > 0.9
    held_out = vectors(2000, seed=1)
    unexplained = (held_out - sae(held_out)).square().sum() / (held_out - held_out.mean(0)).square().sum()
    assert float(unexplained) < 0.15


def test_decoder_rows_are_unit_and_the_input_scale_is_folded_back(tmp_path: Path) -> None:
    """The same data 50 times as large gives the same SAE with 50 times as large activations and biases."""
    small, large = trainer(tmp_path / "a"), trainer(tmp_path / "b", vectors(1500, scale=50.0))
    a, b, x = small.sae, large.sae, vectors(100, seed=2)
    torch.testing.assert_close(a.W_dec.norm(dim=1), torch.ones(64))
    torch.testing.assert_close(b.b_dec, 50 * a.b_dec, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(b(50 * x), 50 * a(x), rtol=1e-3, atol=1e-2)
    # and what comes out is what was trained: the trainer's own reconstruction of scaled inputs
    weights, scale = {n: w.detach() for n, w in small.run.weights.items()}, small.run.scale_in
    pre = (x * scale - weights["b_dec"]) @ weights["encoder"].T + weights["b_enc"]
    active = topk_codes(pre, 4)
    torch.testing.assert_close(a.encode_sparse(x).values * scale, active.values, rtol=1e-4, atol=1e-5)


def test_the_start_is_the_data_mean_and_a_mean_distance_of_sqrt_d(tmp_path: Path) -> None:
    data = vectors(1500)
    run = trainer(tmp_path, data).run
    torch.testing.assert_close(run.weights["b_dec"].detach() / run.scale_in, data[:512].mean(0))
    centred = data[:512] - data[:512].mean(0)
    assert float((centred * run.scale_in).norm(dim=1).mean()) == pytest.approx(math.sqrt(16), rel=1e-5)


def test_warm_up_and_decay(tmp_path: Path) -> None:
    run = trainer(tmp_path, config=replace(CONFIG, lr=1.0, decay_share=0.2)).run
    rates = [run.learning_rate(step) for step in range(30)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[23:] == pytest.approx([1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert trainer(tmp_path).run.learning_rate(10) == default_lr(64)


def test_dead_features_are_counted_and_auxk_wakes_them(tmp_path: Path) -> None:
    config = replace(CONFIG, tokens=300 * 64, lr=3e-3)

    def run(folder: str, alpha: float) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []
        run = trainer(
            tmp_path / folder,
            config=replace(config, auxk_alpha=alpha),
            on_metrics=lambda name, _, row: rows.append(row),
        )
        run.run.weights["b_enc"].data[:20] -= 1.2  # they start out silent
        run.train()
        return rows

    off, on = run("off", 0.0), run("on", 1 / 32)
    assert off[7]["dead"] == on[7]["dead"] > 0.2
    assert all(row["auxk"] == 0 for row in off) and on[7]["auxk"] > 0
    assert off[-1]["dead"] > 0.2
    assert on[-1]["dead"] < 0.1
    assert on[-1]["l0"] == pytest.approx(4, abs=0.6)


def test_metrics_go_to_the_file_and_to_the_callback(tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    progress: list[tuple[int, int]] = []
    run = trainer(
        tmp_path,
        log_every=7,
        on_metrics=lambda name, step, row: seen.append((step, row)),
        on_progress=lambda step, steps: progress.append((step, steps)),
    )
    run.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.pop("step") for row in rows] == [step for step, _ in seen] == [7, 14, 21, 28, 30]
    assert rows == [row for _, row in seen]
    assert rows[-1]["vectors"] == 30 * 64
    assert progress == [(i, 30) for i in range(1, 31)]


# --- faults -------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "stop, architecture", [(10, "topk"), (14, "topk"), (25, "topk"), (14, "batchtopk"), (14, "gated"), (14, "jumprelu")]
)
def test_a_resumed_run_gives_the_same_losses_bit_for_bit(tmp_path: Path, stop: int, architecture: str) -> None:
    whole = trainer(tmp_path / "whole", architecture=architecture).sae

    def interrupt(step: int, _: int) -> None:
        if step == stop:
            raise Interrupted

    with pytest.raises(Interrupted):
        trainer(tmp_path / "cut", on_progress=interrupt, architecture=architecture).train()
    resumed = trainer(tmp_path / "cut", architecture=architecture)
    assert resumed.step == stop // 10 * 10
    sae = resumed.sae
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(sae, name), getattr(whole, name))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    sae = trainer(tmp_path).sae
    stamp = (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns
    again = trainer(tmp_path).sae
    assert torch.equal(sae.W_enc, again.W_enc)
    assert (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns == stamp


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from autointerp.sae import files
sys.path.insert(0, sys.argv[2])
from support.sae_training import trainer

saves, really = [], {"replace": os.replace, "save_file": files.save_file}

def replace(source, target):
    saves.append(target)
    if sys.argv[3] == "before rename" and len(saves) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    really["replace"](source, target)

def save_file(tensors, path, metadata):
    really["save_file"](tensors, path, metadata=metadata)
    if sys.argv[3] == "half written" and len(saves) == 1:
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

os.replace, files.save_file = replace, save_file
trainer(Path(sys.argv[1])).train()
"""


@pytest.mark.parametrize("moment", [pytest.param("half written", marks=pytest.mark.slow), "before rename"])
def test_sigkill_while_saving_leaves_the_last_checkpoint_whole(tmp_path: Path, moment: str) -> None:
    arguments = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path / "cut"), str(Path(__file__).parent), moment]
    killed = subprocess.run(arguments, capture_output=True, cwd=Path(__file__).parents[1], env={**os.environ})
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resumed = trainer(tmp_path / "cut")
    assert resumed.step == 10
    resumed.train()
    trainer(tmp_path / "whole").train()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    with pytest.raises(MismatchError, match="batch_size 64 there, 32 here"):
        trainer(tmp_path, config=replace(CONFIG, batch_size=32))
    with pytest.raises(MismatchError, match="k 4 there, 5 here"):
        trainer(tmp_path, k=5)


def test_a_damaged_checkpoint_is_named_and_kept(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedError, match="checkpoint.safetensors is damaged"):
        trainer(tmp_path)
    assert path.exists()


def test_one_bad_batch_is_left_out_three_in_a_row_end_the_run(tmp_path: Path) -> None:
    class Poisoned(ArraySource):
        bad = range(0)

        def read(self, position: Any) -> Iterator[tuple[Tensor, Any]]:
            for block, after in super().read(position):
                yield (block * float("nan") if after // 64 - 1 in self.bad else block), after

    def run(bad: range, folder: str) -> One:
        source = Poisoned(vectors(64 * 30), block=64)
        source.bad = bad
        config = replace(CONFIG, buffer_vectors=64)  # a block is a batch
        return One(source, config, [(SaeSpec("x", "topk", 64, 4), tmp_path / folder)], log_every=1)

    sae = run(range(12, 14), "two").sae
    assert sae.W_enc.isfinite().all()
    assert [math.isnan(x) for x in losses(tmp_path / "two")].count(True) == 2
    with pytest.raises(AutointerpError, match=r"three|3 steps in a row \(step 15\)"):
        run(range(12, 15), "three").train()
    assert run(range(0), "three").step == 10  # the checkpoint from before is there


def test_impossible_k(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sae.k \(65\)"):
        trainer(tmp_path, k=65)


# --- several together ---------------------------------------------------------------------------------------------


def test_saes_trained_together_are_those_trained_alone_and_one_behind_catches_up(tmp_path: Path) -> None:
    data = vectors(1500)
    specs = [SaeSpec("a", "topk", 64, 4), SaeSpec("b", "jumprelu", 48, 3, seed=5), SaeSpec("c", "topk", 64, 4, seed=7)]

    def job(names: str, root: str) -> list[tuple[SaeSpec, Path]]:
        return [(spec, tmp_path / root / spec.name) for spec in specs if spec.name in names]

    alone = [Trainer(ArraySource(data, 100), CONFIG, job(name, "alone"), log_every=1).train()[0] for name in "abc"]
    together = Trainer(ArraySource(data, 100), CONFIG, job("abc", "together"), log_every=1).train()
    # `b` is done before the others begin
    Trainer(ArraySource(data, 100), CONFIG, job("b", "late"), log_every=1).train()
    late = Trainer(ArraySource(data, 100), CONFIG, job("abc", "late"), log_every=1).train()
    for one, other, third in zip(alone, together, late, strict=True):
        assert torch.equal(one.W_enc, other.W_enc) and torch.equal(one.W_enc, third.W_enc)
    assert losses(tmp_path / "late" / "a") == losses(tmp_path / "alone" / "a")
    assert not torch.equal(alone[0].W_dec, alone[2].W_dec)  # another seed


def test_a_transcoder_reads_some_columns_and_writes_others(tmp_path: Path) -> None:
    """y is a linear map of the directions that x is made of, plus x itself times a matrix: the skip path's part."""
    x = vectors(6000)
    g = torch.Generator().manual_seed(1)
    y = x[:, :12] @ torch.randn(12, 9, generator=g) + 3.0
    data = torch.cat([x, y], dim=1)
    config = replace(CONFIG, tokens=400 * 64, warmup_steps=40, lr=3e-3, dead_after=20_000)
    unexplained = {}
    for skip in (False, True):
        spec = SaeSpec("t", "topk", 64, 4, inputs=(0, 16), outputs=(16, 25), skip=skip)
        folder = tmp_path / str(skip)
        sae = Trainer(ArraySource(data, 100), config, [(spec, folder)], log_every=50).train()[0]
        assert (sae.d_in, sae.d_out) == (16, 9)
        y_hat = sae.reconstruct(x)[0]
        unexplained[skip] = float((y - y_hat).square().sum() / (y - y.mean(0)).square().sum())
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert unexplained[skip] == pytest.approx(last["reconstruction"], rel=0.3)  # the scales are folded back
    assert unexplained[False] < 0.5 and unexplained[True] < 0.05


def test_a_checkpoint_is_written_by_time_too(tmp_path: Path) -> None:
    """Of a slow model's steps a thousand may be hours; the losses are the same."""
    config = replace(CONFIG, checkpoint_every=10_000)

    def interrupt(step: int, _: int) -> None:
        if step == 13:
            raise KeyboardInterrupt

    trainer(tmp_path / "whole", config=config).train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", config=config, checkpoint_every_s=0.0, on_progress=interrupt).train()
    again = trainer(tmp_path / "cut", config=config)
    assert again.step == 13
    again.train()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    quick = trainer(tmp_path / "quick", config=config, on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        quick.train()
    assert not quick.learners[0].checkpoint.exists()


def test_filling_the_buffer_is_told(tmp_path: Path) -> None:
    filled: list[tuple[int, int]] = []
    trainer(tmp_path / "x", on_fill=lambda vectors, of: filled.append((vectors, of))).train()
    blocks = [of for vectors, of in filled if vectors == of]
    assert sum(blocks) == CONFIG.tokens and filled[:2] == [(100, 512), (200, 512)]
