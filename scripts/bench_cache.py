"""Vectors per CPU second: filling an activation cache, training from it, and training while the model runs.

    scripts/bench_cache.py --model FOLDER --corpus FILE --hookpoint model.layers.14 --dtype bfloat16 --d-sae 4096,8192

Everything runs in this process on `--threads` threads, and other work on the machine slows the clock but hardly CPU
seconds. The cache is made in a temporary folder. Each SAE also learns in both precisions of the encoder's product, and
its unexplained variance on vectors that it has not seen is printed beside the speed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from autointerp.config import Config, CorpusConfig, ModelConfig, SaeConfig, StoreConfig, TrainConfig
from autointerp.sae.buffer import ActivationSource
from autointerp.sae.model_source import ModelSource
from autointerp.sae.sae import Sae
from autointerp.sae.trainer import Trainer
from autointerp.sae.training_run import SaeSpec
from autointerp.stages.session import Session
from autointerp.stages.training_cache import cached_source
from autointerp.terminal import Terminal

HELD_OUT = 8192


def learn(source: ActivationSource, train: TrainConfig, d_sae: int, k: int) -> tuple[Sae, float]:
    """The SAE, and the vectors that it learnt from per CPU second."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        (sae,) = Trainer(source, train, [(SaeSpec("bench", "topk", d_sae, k), Path(folder))]).train()
        taken = time.process_time() - began
    return sae, train.tokens // train.batch_size * train.batch_size / taken


def unexplained(sae: Sae, vectors: Tensor) -> float:
    """The unexplained variance without the vectors of ten times the median length: a thousandth of all tokens, which
    have most of the variance in many models, would make it the error of a handful of vectors."""
    lengths = vectors.norm(dim=1)
    vectors = vectors[lengths <= 10 * lengths.median()]
    residual = (vectors - sae(vectors)).square().sum()
    return float(residual / (vectors - vectors.mean(0)).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--hookpoint", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--d-sae", default="4096")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        train = TrainConfig(tokens=args.tokens, cache=folder, cache_vectors=args.tokens + HELD_OUT)
        sae = SaeConfig(hookpoint=args.hookpoint, name="bench")
        config = Config(
            model=ModelConfig(name=args.model, dtype=args.dtype), corpus=CorpusConfig(source=args.corpus), sae=(sae,),
            train=train, store=StoreConfig(path=str(Path(folder) / "x.duckdb")),
        )  # fmt: skip
        session = Session(config, Terminal())
        session.model()
        began = time.process_time()
        source = cached_source(session, [sae])
        taken = time.process_time() - began
        print(f"filling the cache: {source.n_vectors / taken:,.0f} vectors per CPU second", flush=True)
        (shards,) = source.held.values()
        pieces = range(args.tokens // 1024, source.n_vectors // 1024)
        unseen = torch.cat([shards.piece(index) for index in pieces]).float()
        source.n_vectors = args.tokens
        for d_sae in map(int, args.d_sae.split(",")):
            for precision in ("float32", "bfloat16"):
                made, speed = learn(source, replace(train, precision=precision), d_sae, args.k)
                print(
                    f"{d_sae:,} features from the cache, encoder in {precision}: {speed:,.0f} vectors per CPU second, "
                    f"unexplained variance {unexplained(made, unseen):.4f}",
                    flush=True,
                )
            live = ModelSource(
                session.model(), [session.point(args.hookpoint)], config.corpus, config.model.batch_tokens
            )
            _, speed = learn(live, train, d_sae, args.k)
            print(f"{d_sae:,} features while the model runs: {speed:,.0f} vectors per CPU second", flush=True)


if __name__ == "__main__":
    main()
