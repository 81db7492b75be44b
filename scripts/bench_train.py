"""Compares SAE training with the peers: CPU time and quality, on vectors made of known directions.

    scripts/bench_train.py --workload WORK --peers-bench DIR --peers-python PY --steps 2000 --out OUT
    scripts/bench_train.py --workload WORK --peers-python PY --families all --steps 1000 --out OUT

The second form takes every family but TopK: first the peer's own trainer (bench_families_peer.py), then ours, asked for
the L0 that the peer reached, so that FVUs are compared at the same sparsity.

WORK is the output of the peers' make_workload.py, DIR the folder with their sae_train.py, PY an interpreter with the
peers installed. The sides run one after the other, each in a process of its own, with the same number of threads and
batches; CPU seconds are those of the process. The first table's ratios are to `limit`, a hand-written sparse loop. Ours
does all that it does in the product: shuffling, projection, dead counting, AuxK, metrics, checkpoints. A further row,
`ours, AuxK active`, is a short run in which a tenth of the features count as dead in every step. It shows what a step
costs while features are being revived; only its time means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH, D_SAE, K = 2048, 2048, 32  # the peers' scripts fix these
PEERS = ("limit", "sparsify", "dictionary_learning", "saelens")
COLUMNS = ("fvu", "dead", "max_cosine", "recovered")
PEER_PENALTY = {"relu": 1.0, "gated": 1.0, "p_anneal": 1.0}
"""The peers' penalty weights, chosen so that they end near K active features. The other families are told K."""
FAMILIES = ("relu", "gated", "jumprelu", "batchtopk", "matryoshka", "p_anneal")


def ours(
    workload: Path, steps: int, threads: int, lr: float | None, auxk_active: bool, family: str = "topk", k: int = K
) -> dict[str, float]:
    """Train in this process. Returns CPU milliseconds per step and the quality of the result."""
    import numpy as np
    import torch

    from autointerp.config import TrainConfig
    from autointerp.sae.buffer import ArraySource
    from autointerp.sae.trainer import Trainer
    from autointerp.sae.training_run import SaeSpec

    torch.set_num_threads(threads)
    source = ArraySource(np.load(workload / "synthetic" / "train.npy", mmap_mode="r"))
    config = TrainConfig(tokens=steps * BATCH, batch_size=BATCH, lr=lr)
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        trainer = Trainer(source, config, [(SaeSpec(family, family, D_SAE, k), Path(folder))])
        if auxk_active:
            _keep_dead(trainer, D_SAE // 10)
        (sae,) = trainer.train()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    figures = quality(workload / "synthetic", sae)
    return {"ms_cpu_per_step": 1000 * cpu / steps, "cpu_s": cpu, "wall_s": wall, **figures}


def _keep_dead(trainer: Any, n: int) -> None:
    """Make the first `n` features count as dead before every step, whatever they do."""
    since_fired = trainer.learners[0].run.since_fired
    trainer.on_progress = lambda step, steps: since_fired[:n].fill_(trainer.config.dead_after)
    trainer.on_progress(0, trainer.steps)


def quality(folder: Path, sae: Any) -> dict[str, float]:
    """Quality on held-out vectors. fvu: sum |x - x_hat|^2 / sum |x - mean|^2. dead: share of features that never fire.
    max_cosine: mean over true directions of the best cosine with a decoder row. recovered: share of those cosines above
    0.9."""
    import numpy as np
    import torch

    x = torch.from_numpy(np.load(folder / "eval.npy"))
    true = torch.from_numpy(np.load(folder / "dict.npy"))
    fired, residual, n_active = torch.zeros(sae.d_sae, dtype=torch.bool), 0.0, 0
    for part in x.split(8192):
        codes = sae.encode_sparse(part)
        fired[codes.features] = True
        n_active += len(codes.rows)
        residual += float((part - sae.decode_sparse(codes)).double().square().sum())
    rows = torch.nn.functional.normalize(sae.W_dec, dim=1)
    best = (true @ rows.T).amax(1)
    return {
        "fvu": residual / float((x - x.mean(0)).double().square().sum()),
        "l0": n_active / len(x),
        "dead": 1 - float(fired.float().mean()),
        "max_cosine": float(best.mean()),
        "recovered": float((best > 0.9).float().mean()),
    }


def peer(name: str, args: argparse.Namespace) -> dict[str, float]:
    """The RESULT line of one run of the peers' own script."""
    with tempfile.TemporaryDirectory() as folder:
        command = [args.peers_python, "-B", "sae_train.py", name, "--workload", args.workload.resolve()]
        command += ["--out", folder, "--steps", args.steps, "--threads", args.threads]
        return _result(command, args.peers_bench, args.threads)


def family_rows(family: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The results of the peer's trainer of a family, and of ours at the L0 that the peer reached."""
    script = Path(__file__).with_name("bench_families_peer.py")
    command: list[Any] = [args.peers_python, "-B", script, "dictionary_learning", family]
    command += ["--workload", args.workload.resolve(), "--steps", args.steps, "--threads", args.threads]
    command += ["--penalty", PEER_PENALTY.get(family, 0.0)]
    theirs = _result(command, Path.cwd(), args.threads)
    k = max(1, round(theirs["l0"]))
    return {f"{family}, dictionary_learning": theirs, f"{family}, ours": own(args, args.steps, False, family, k)}


def own(args: argparse.Namespace, steps: int, auxk_active: bool, family: str = "topk", k: int = K) -> dict[str, float]:
    command: list[Any] = [sys.executable, __file__, "--workload", args.workload.resolve(), "--steps", steps]
    command += ["--threads", args.threads, "--only-ours"] + (["--auxk-active"] if auxk_active else [])
    command += [] if args.lr is None else ["--lr", args.lr]
    command += ["--family", family, "--k", k]
    return _result(command, None, args.threads)


def _result(command: list[Any], folder: Path | None, threads: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    root = str(Path(__file__).resolve().parents[1])
    if folder is None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run([str(c) for c in command], cwd=folder, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def table(rows: dict[str, dict[str, float]]) -> str:
    base = rows.get("limit", rows["ours"])["ms_cpu_per_step"]
    head = ["", "CPU / limit" if "limit" in rows else "CPU / ours", "ms CPU per step", *COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        cells = [f"{row['ms_cpu_per_step'] / base:.2f}", f"{row['ms_cpu_per_step']:.1f}"]
        cells += ["" if "AuxK" in name else f"{row[column]:.4f}" for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def family_table(rows: dict[str, dict[str, float]]) -> str:
    head = [
        "family",
        "CPU, ours / theirs",
        "ms CPU per step: theirs",
        "ours",
        "L0: theirs",
        "ours",
        "FVU: theirs",
        "ours",
    ]
    head += ["dead: theirs", "ours", "max cosine: theirs", "ours"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, theirs in rows.items():
        if not name.endswith(", dictionary_learning"):
            continue
        family = name.split(",")[0]
        mine = rows[f"{family}, ours"]
        cells = [family, f"{mine['ms_cpu_per_step'] / theirs['ms_cpu_per_step']:.2f}"]
        formats = {"ms_cpu_per_step": ".1f", "l0": ".1f", "fvu": ".4f", "dead": ".4f", "max_cosine": ".4f"}
        cells += [f"{side[key]:{form}}" for key, form in formats.items() for side in (theirs, mine)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path, required=True, help="folder made by the peers' make_workload.py")
    parser.add_argument("--peers-bench", type=Path, help="folder with the peers' sae_train.py")
    parser.add_argument("--peers-python", help="interpreter with the peers installed")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"which of {','.join(PEERS)}")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of 2048 vectors")
    parser.add_argument("--auxk-steps", type=int, default=100, help="steps of the run with AuxK active; 0: none")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, for every side")
    parser.add_argument("--lr", type=float, help="ours; default: the product's default")
    parser.add_argument("--out", type=Path, default=Path("bench_train.json"), help="where the figures go as JSON")
    parser.add_argument("--families", help=f"families instead of TopK: all, or some of {','.join(FAMILIES)}")
    parser.add_argument("--family", default="topk", help="with --only-ours")
    parser.add_argument("--k", type=int, default=K, help="with --only-ours: active features")
    parser.add_argument("--only-ours", action="store_true", help="run our side in this process and print its RESULT")
    parser.add_argument("--auxk-active", action="store_true", help="with --only-ours: a tenth of the features dead")
    args = parser.parse_args()
    if args.only_ours:
        figures = ours(args.workload, args.steps, args.threads, args.lr, args.auxk_active, args.family, args.k)
        sys.stdout.write("RESULT " + json.dumps(figures) + "\n")
        return
    if args.families:
        if not args.peers_python:
            parser.error("--families needs --peers-python")
        chosen = FAMILIES if args.families == "all" else args.families.split(",")
        found: dict[str, dict[str, float]] = {}
        for family in chosen:
            found |= family_rows(family, args)
            args.out.write_text(json.dumps({"steps": args.steps, "threads": args.threads, "rows": found}, indent=2))
        sys.stdout.write(family_table(found) + f"\n\nwritten to {args.out}\n")
        return
    names = [name for name in args.peers.split(",") if name] if args.peers_bench else []
    if names and not args.peers_python:
        parser.error("--peers-bench needs --peers-python")
    rows = {"ours": own(args, args.steps, False)}
    rows |= {name: peer(name, args) for name in names}
    if args.auxk_steps:
        rows["ours, AuxK active"] = own(args, args.auxk_steps, True)
    args.out.write_text(json.dumps({"steps": args.steps, "threads": args.threads, "rows": rows}, indent=2) + "\n")
    sys.stdout.write(table(rows) + f"\n\nwritten to {args.out}\n")


if __name__ == "__main__":
    main()
