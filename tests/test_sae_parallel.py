"""Two processes under torch's own launcher give the SAE that one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_sae_trainer import CONFIG, vectors

from autointerp.sae import files
from autointerp.sae.buffer import ArraySource
from autointerp.sae.trainer import Trainer
from autointerp.sae.training_run import SaeSpec

TOGETHER = replace(CONFIG, tokens=60 * 64, dead_after=300)
SPECS = [SaeSpec(name, name, 64, 4) for name in ("topk", "batchtopk", "relu", "jumprelu")]

WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from autointerp.sae import parallel
from test_sae_parallel import run
parallel.start()
run(Path(sys.argv[1]))
parallel.stop()
"""


def run(folder: Path) -> None:
    jobs = [(spec, folder / spec.name) for spec in SPECS]
    trainer = Trainer(ArraySource(vectors(1500), block=100), TOGETHER, jobs, log_every=1)
    for learner in trainer.learners:
        learner.run.weights["b_enc"].data[:6] -= 3.0  # some are silent at first: AuxK and waking are shared too
    trainer.train()


def torchrun(folder: Path, script: Path, n: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run(
        [*command, str(folder), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    done = torchrun(tmp_path / "two", script)
    assert done.returncode == 0, done.stderr[-3000:]
    run(tmp_path / "one")
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
