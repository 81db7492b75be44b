"""Two processes under torch's own launcher give the SAE that one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.sae_training import SPECS, TOGETHER, train_from_cache, train_on_long_vectors, train_together, vectors

from autointerp.sae import files, parallel
from autointerp.sae.training_run import SaeRun

WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from autointerp.sae import parallel
from support import sae_training
parallel.start()
getattr(sae_training, sys.argv[3])(Path(sys.argv[1]))
parallel.stop()
"""


def torchrun(folder: Path, work: Callable[[Path], None], n: int = 2) -> subprocess.CompletedProcess[str]:
    script = folder.parent / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run(
        [*command, str(folder), str(Path(__file__).parent), work.__name__],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    done = torchrun(tmp_path / "two", train_together)
    assert done.returncode == 0, done.stderr[-3000:]
    train_together(tmp_path / "one")
    for spec in SPECS:
        one, two = (files.read_tensors(tmp_path / n / spec.name / "checkpoint.safetensors") for n in ("one", "two"))
        for name in ("encoder", "b_enc", "decoder", "b_dec"):
            torch.testing.assert_close(two[name], one[name], rtol=2e-2, atol=2e-3, msg=f"{spec.name}.{name}")
        assert torch.equal(one["since_fired"], two["since_fired"])
        losses = [
            [json.loads(line)["loss"] for line in (tmp_path / n / spec.name / "metrics.jsonl").read_text().splitlines()]
            for n in ("one", "two")
        ]
        assert len(losses[0]) == len(losses[1]) == 60  # one process writes
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
@pytest.mark.slow
def test_two_processes_fill_and_read_one_cache(tmp_path: Path) -> None:
    done = torchrun(tmp_path / "two", train_from_cache)
    assert done.returncode == 0, done.stderr[-3000:]
    train_from_cache(tmp_path / "one")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n / "cache").iterdir()} for n in ("one", "two"))
    assert one == two and len(one) == 2  # the manifest and a shard
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "topk" / "metrics.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    assert len(losses[1]) == 60 and losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
@pytest.mark.slow
def test_processes_that_leave_out_unequal_numbers_of_vectors_stay_together(tmp_path: Path) -> None:
    done = torchrun(tmp_path / "two", train_on_long_vectors)
    assert done.returncode == 0, done.stderr[-3000:]
    for spec in SPECS:
        one, two = (files.read_tensors(tmp_path / "two" / spec.name / f"held-{rank}.safetensors") for rank in (0, 1))
        assert one.keys() == two.keys() and "since_fired" in one
        for name, tensor in one.items():
            assert torch.equal(tensor, two[name]), f"{spec.name}.{name}"


def test_a_feature_is_silent_on_the_vectors_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the slow test sees in two processes, of a process whose neighbour has seven vectors more."""
    run = SaeRun(SPECS[0], TOGETHER, 16, 60, torch.device("cpu"))
    run.begin(vectors(512))
    run.weights["b_enc"].data[0] = -100.0
    monkeypatch.setattr(parallel, "total_rows", lambda rows, device: 2 * rows + 7)
    run.step(vectors(32))
    assert run.since_fired[0] == 71
