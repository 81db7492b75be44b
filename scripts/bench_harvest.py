"""The harvest beside the peers: tokens to a merged store, CPU and wall time, peak memory, disk.

    scripts/bench_harvest.py --workload WORK --peers-bench DIR --peers-python PY --tokens 1048576 --threads 1

WORK is what the peers' make_workload.py made, DIR the folder with their harvest.py, PY an interpreter with the peers
installed. Sides, one after the other, each in a process of its own: `forward_encode` (their script: the model up to
the SAE's block, then its encoder, nothing kept), `delphi` (their script: the same and everything kept), `limit` (our
forward pass and encoder, nothing kept) and `ours` (everything: lists, samples, histograms, pool, units on disk,
merge into a store with contexts and negatives). The ratio that counts is ours / forward_encode from one run.

    --corpus short            documents of 24 tokens (peers only know whole windows; compare with `limit`)
    --features 131072         a random SAE of so many features in the place of the workload's
    --dictionaries 3          needs no WORK: harvest of so many dictionaries in one pass over that of one, on a model of
                              GPT-2's size with random weights; the ratio of CPU seconds
    --flat                    ours on --tokens and on ten times as many (the corpus again, as new documents): memory
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

UNIT_TOKENS = 600_000  # about corpus.unit_characters of source text
SHORT = 24
OWN_SIDES = ("ours", "limit", "shared")
HOOK = "transformer.h.2"
DEMO_MODEL = Path(__file__).parents[1] / "data" / "demo_model"


def documents(tokens: Any, n_windows: int, corpus: str) -> Iterator[tuple[int, list[int], int, bool]]:
    """(document, token ids, start, whether it begins a document) of each window; the file is read again where it is
    shorter than wanted. Whole windows; a document is what lies between two end tokens (id 0), to the nearest window."""
    document, start = -1, 0
    for number in range(n_windows):
        row = tokens[number % len(tokens)].tolist()
        if corpus == "short":
            for low in range(0, len(row), SHORT):
                document += 1
                yield document, row[low : low + SHORT], 0, True
            continue
        fresh = number % len(tokens) == 0 or 0 in tokens[number % len(tokens) - 1].tolist()
        document, start = (document + 1, 0) if fresh else (document, start + len(row))
        yield document, row, start, fresh


def work_units(tokens: Any, n_tokens: int, corpus: str) -> Callable[[Callable[[int], bool]], Iterator[Any]]:
    from autointerp.records import SPLITS, Window, WorkUnit

    def units(wanted: Callable[[int], bool]) -> Iterator[WorkUnit]:
        index, size, windows, names = 0, 0, [], set()
        for document, ids, start, fresh in documents(tokens, n_tokens // tokens.shape[1], corpus):
            if fresh and size >= UNIT_TOKENS:
                if wanted(index):
                    yield WorkUnit(index, windows, len(names))
                index, size, windows, names = index + 1, 0, [], set()
            split = SPLITS[(0, 0, 1, 2)[document * 2654435761 % (1 << 32) >> 30]]
            windows.append(Window(f"doc{document}", start, split, ids, 0))
            names.add(document)
            size += len(ids)
        if windows and wanted(index):
            yield WorkUnit(index, windows, len(names))

    return units


def load(workload: Path, features: int | None) -> tuple[Any, Any, Any]:
    """The workload's model, its SAE (sparsify's format) or a random one, and the tokenizer's strings."""
    import torch
    from safetensors.torch import load_file

    from autointerp.config import ModelConfig
    from autointerp.corpus.token_text import TokenText
    from autointerp.model.load import load_model
    from autointerp.sae.sae import Sae

    loaded = load_model(ModelConfig(name=str(workload / "model"), device="cpu", dtype="float32"))
    if features:
        rows = torch.randn(features, 256, generator=torch.Generator().manual_seed(0))
        rows = torch.nn.functional.normalize(rows, dim=1)
        sae = Sae(rows.T.contiguous(), torch.zeros(features), rows, torch.zeros(256), k=32)
    else:
        folder = workload / "sae" / "h.2"
        weights = load_file(folder / "sae.safetensors")
        k = json.loads((folder / "cfg.json").read_text())["k"]
        sae = Sae(
            weights["encoder.weight"].T.contiguous(), weights["encoder.bias"], weights["W_dec"], weights["b_dec"], k=k
        )
    return loaded, sae, TokenText(loaded.tokenizer)


def ours(args: argparse.Namespace) -> dict[str, float]:
    """Harvest and merge in this process."""
    import numpy as np
    import torch

    from autointerp.config import HarvestConfig
    from autointerp.harvest.merge import CorpusFacts, bounds_of, merge
    from autointerp.harvest.shards import HarvestFolder
    from autointerp.harvest.target import Target
    from autointerp.harvest.text_pass import harvest, unit_settings
    from autointerp.model.hooks import Hookpoint, activations_at
    from autointerp.store.store import Store

    loaded, sae, text = load(args.workload, args.features)
    tokens = np.load(args.workload / "tokens.npy", mmap_mode="r")
    config, point = HarvestConfig(), Hookpoint.parse(args.hook)
    activations_at(loaded, point, torch.zeros(4, 128, dtype=torch.int64))
    before, clock = peak_mb(), Clock()
    with tempfile.TemporaryDirectory(dir=args.out) as temporary:
        root = Path(temporary)
        folder = HarvestFolder(root / "work", {"bench": 1}, bounds_of(config))
        units = work_units(tokens, args.tokens, args.corpus)
        settings = unit_settings(loaded, text, config, args.batch_tokens, ())
        harvest(loaded, [Target(point, sae, folder)], units, settings)
        harvested = clock.read("harvest_")
        work = disk_bytes(root / "work")
        with Store.open(root / "x.duckdb", create=True) as store:
            dictionary_id = store.add_dictionary(
                name="bench", model="m", revision="r", hookpoint=HOOK, architecture="topk", d_in=sae.d_in,
                d_out=sae.d_out, d_sae=sae.d_sae, sae_sha256="s", tokenizer_sha256="t", config={},
            )  # fmt: skip
            facts = CorpusFacts("bench", {}, "t")
            counts = merge(store, dictionary_id, folder, sae, text, config, facts, threads=args.threads)
        both = clock.read("")
        disk = disk_bytes(root) - work
    return {**both, **harvested, "rss_before_mb": before, "disk_bytes": disk, "work_bytes": work, **counts}


def shared(args: argparse.Namespace) -> dict[str, float]:
    """Harvest, without the merge, of `--dictionaries` dictionaries of 4,096 features in one pass. The first reads the
    last layer, so that the model's share is the same for any number."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from autointerp.config import HarvestConfig, ModelConfig
    from autointerp.corpus.token_text import TokenText, tokenizer_sha256
    from autointerp.harvest.merge import bounds_of
    from autointerp.harvest.shards import HarvestFolder
    from autointerp.harvest.target import Target
    from autointerp.harvest.text_pass import harvest, unit_settings
    from autointerp.model.hooks import Hookpoint, activations_at
    from autointerp.model.load import LoadedModel, load_tokenizer
    from autointerp.sae.sae import Sae

    torch.manual_seed(0)
    tokenizer = load_tokenizer(ModelConfig(name=str(DEMO_MODEL)))
    sizes = GPT2Config(vocab_size=len(tokenizer), n_layer=12, n_embd=768, n_head=12, n_positions=256)
    model = GPT2LMHeadModel(sizes).eval().requires_grad_(False)
    loaded = LoadedModel(
        model, tokenizer, torch.device("cpu"), torch.float32, "bench", "random:0", tokenizer_sha256(tokenizer)
    )
    tokens = np.random.default_rng(0).zipf(1.3, (args.tokens // 128, 128)) % len(tokenizer)
    config, points = HarvestConfig(), [f"transformer.h.{layer}" for layer in (11, 7, 11, 3)]

    def sae(seed: int) -> Sae:
        rows = torch.randn(4096, 768, generator=torch.Generator().manual_seed(seed))
        rows = torch.nn.functional.normalize(rows, dim=1)
        return Sae(rows.T.contiguous(), torch.zeros(4096), rows, torch.zeros(768), k=32)

    activations_at(loaded, Hookpoint.parse(points[0]), torch.zeros(4, 128, dtype=torch.int64))
    with tempfile.TemporaryDirectory(dir=args.out) as temporary:
        targets = [
            Target(
                Hookpoint.parse(points[i % len(points)]), sae(i),
                HarvestFolder(Path(temporary) / str(i), {"bench": i}, bounds_of(config)),
            )
            for i in range(args.dictionaries)
        ]  # fmt: skip
        settings = unit_settings(loaded, TokenText(tokenizer), config, args.batch_tokens, ())
        before, clock = peak_mb(), Clock()
        harvest(loaded, targets, work_units(tokens, args.tokens, "windows"), settings)
        return {**clock.read(""), "rss_before_mb": before, "disk_bytes": disk_bytes(Path(temporary))}


def limit(args: argparse.Namespace) -> dict[str, float]:
    """The forward pass to the hookpoint and the encoder, in the batches of `ours`; nothing is kept."""
    import numpy as np

    from autointerp.model.hooks import Hookpoint
    from autointerp.model.token_batches import activation_batches

    loaded, sae, _ = load(args.workload, args.features)
    tokens = np.load(args.workload / "tokens.npy", mmap_mode="r")
    units, clock, before = list(work_units(tokens, args.tokens, args.corpus)(lambda index: True)), Clock(), peak_mb()
    for unit in units:
        for _, x in activation_batches(loaded, Hookpoint.parse(args.hook), unit.windows, args.batch_tokens):
            sae.encode_sparse(x.flatten(0, 1))
    return {**clock.read(""), "rss_before_mb": before, "disk_bytes": 0}


class Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, prefix: str) -> dict[str, float]:
        return {f"{prefix}cpu_s": time.process_time() - self._cpu, f"{prefix}wall_s": time.perf_counter() - self._wall}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run_side(args: argparse.Namespace, side: str, tokens: int, dictionaries: int = 1) -> dict[str, Any]:
    """One side in a process of its own."""
    common = ["--out", str(args.out), "--tokens", str(tokens), "--threads", str(args.threads)]
    if args.workload:
        common += ["--workload", str(args.workload)]
    if side in OWN_SIDES:
        command = [sys.executable, __file__, "--only", side, "--corpus", args.corpus, *common]
        command += ["--dictionaries", str(dictionaries)]
        command += ["--features", str(args.features), "--batch-tokens", str(args.batch_tokens), "--hook", args.hook]
    else:
        command = [args.peers_python, "-B", "harvest.py", side, *common]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    cwd = None if side in OWN_SIDES else args.peers_bench
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{side} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def table(rows: dict[str, dict[str, Any]], base: str) -> str:
    lines = ["side              CPU s   CPU ratio   wall ratio   peak MB   disk MB"]
    for side, row in rows.items():
        lines.append(
            f"{side:16s}{row['cpu_s']:8.1f}{row['cpu_s'] / rows[base]['cpu_s']:12.3f}"
            f"{row['wall_s'] / rows[base]['wall_s']:13.3f}{row['peak_rss_mb']:10.0f}{row['disk_bytes'] / 1e6:10.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path)
    parser.add_argument("--peers-bench", type=Path)
    parser.add_argument("--peers-python")
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens in a batch of ours and limit")
    parser.add_argument("--hook", default=HOOK, help="transformer.drop reads the embeddings: little but our own work")
    parser.add_argument("--corpus", choices=("windows", "short"), default="windows")
    parser.add_argument("--features", type=int, default=0, help="of a random SAE; 0: the workload's SAE")
    parser.add_argument("--dictionaries", type=int, help="in one pass, over one of them")
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--without", nargs="*", default=[], help="sides to leave out")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", choices=OWN_SIDES, help="run one side in this process")
    args = parser.parse_args()
    if not args.workload and not args.dictionaries:
        parser.error("name a --workload, or --dictionaries")
    args.workload, args.out = args.workload and args.workload.resolve(), args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only:
        import torch

        torch.set_num_threads(args.threads)
        result = {"ours": ours, "limit": limit, "shared": shared}[args.only](args)
        print("RESULT " + json.dumps({**result, "peak_rss_mb": peak_mb(), "tokens": args.tokens}))
        return
    if args.dictionaries:
        counts = (1, args.dictionaries)
        rows = {f"{n} in one pass": run_side(args, "shared", args.tokens, n) for n in counts}
        base = next(iter(rows))
    elif args.flat:
        rows = {f"{n:,} tokens": run_side(args, "ours", n) for n in (args.tokens, 10 * args.tokens)}
        base = next(iter(rows))
    else:
        sides = ["limit", "ours"]
        if args.peers_python and args.corpus == "windows" and not args.features:
            sides = ["forward_encode", "delphi", *sides]
        rows = {side: run_side(args, side, args.tokens) for side in sides if side not in args.without}
        base = next(iter(rows))
    print(table(rows, base))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
