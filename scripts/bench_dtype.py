"""bfloat16 beside float32 on this CPU: how far the activations are apart, and what a harvest costs in either.

    OMP_NUM_THREADS=1 python scripts/bench_dtype.py --config autointerp-real/autointerp.toml --tokens 20000

The configuration's first dictionary must have been trained. Both sides read the same windows, in batches of the same
shape. Deviations are relative: the length of the difference over the length of the float32 side, in all, of centred
activations (without their mean over tokens) where a few dimensions are much larger than the others. Each side's harvest
runs on as much text in a folder of its own, and its CPU seconds are those of this process while it harvests; the
model is loaded before.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from autointerp.config import Config
from autointerp.config_file import load
from autointerp.model.hooks import activations_at
from autointerp.model.token_batches import eligible, make_batches
from autointerp.sae.sae import Sae
from autointerp.stages import harvesting
from autointerp.stages.session import Session, loaded_sae
from autointerp.terminal import Terminal

DTYPES = ("float32", "bfloat16")


def session_of(config: Config, dtype: str) -> Session:
    return Session(replace(config, model=replace(config.model, dtype=dtype, device="cpu")), Terminal().silent())


def activations(session: Session, n_tokens: int) -> Tensor:
    """The activations [n, d], in float32, at the first dictionary's hookpoint on the corpus's first tokens."""
    loaded, found, n = session.model(), [], 0
    point = session.point(session.config.sae[0].hookpoint)
    none = torch.empty(0, dtype=torch.int64)
    for unit in session.units():
        for batch in make_batches(unit.windows, session.config.model.batch_tokens, loaded.pad_id):
            part = batch.to(loaded.device)
            counted = eligible(part, none)
            found.append(activations_at(loaded, point, part.ids, part.lengths)[counted].float())
            n += len(found[-1])
            if n >= n_tokens:
                return torch.cat(found)[:n_tokens]
    return torch.cat(found)


def apart(reference: Tensor, other: Tensor) -> float:
    return float((other - reference).norm() / reference.norm())


def compare_activations(x: Tensor, y: Tensor, sae: Sae) -> None:
    """Print how far y (bfloat16) is from x (float32), for activations and for features."""
    mean = x.mean(0)
    of_tokens = (y - x).norm(dim=1) / x.norm(dim=1)
    print(
        f"activations, {len(x):,} tokens: {apart(x, y):.4f}; centred {apart(x - mean, y - mean):.4f}; "
        f"of single tokens, median {float(of_tokens.median()):.4f}, "
        f"99th percentile {float(of_tokens.quantile(0.99)):.4f}"
    )
    f, g = dense(sae, x), dense(sae, y)
    both, either = ((f > 0) & (g > 0)).sum(), ((f > 0) | (g > 0)).sum()
    strong = f >= 0.5 * f.max(0).values.clamp_min(1e-9)
    print(f"feature activations: {apart(f, g):.4f}; where both are active {apart(f * (g > 0), g * (f > 0)):.4f}")
    print(
        f"active pairs of token and feature: {float(both / either):.3f} of those of either side are of both; of those "
        f"at half the feature's maximum and above {float((g[strong] > 0).float().mean()):.4f} are active on both"
    )
    for name, vectors, features in (("float32", x, f), ("bfloat16", y, g)):
        rest = vectors - (features @ sae.W_dec + sae.b_dec)
        share = float(rest.square().sum() / (vectors - vectors.mean(0)).square().sum())
        print(f"unexplained variance in {name}: {share:.4f}")


def dense(sae: Sae, x: Tensor) -> Tensor:
    """[n, d_sae]: the feature activations."""
    return torch.cat([sae.encode(part).to_dense() for part in x.split(2048)])


def harvest_cpu_seconds(config: Config, dtype: str, n_tokens: int, sae_folder: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        sae = replace(config.sae[0], path=str(sae_folder))
        corpus = replace(config.corpus, max_tokens=n_tokens)
        store = replace(config.store, path=str(Path(folder) / "x.duckdb"))
        session = session_of(replace(config, sae=(sae,), corpus=corpus, store=store), dtype)
        session.model(), session.token_text()
        begun = time.process_time()
        harvesting.harvest_shard(session, (sae,), 0, 1)
        return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--harvest-tokens", type=int, default=100_000)
    given = parser.parse_args()
    config = load(given.config)
    sessions = {dtype: session_of(config, dtype) for dtype in DTYPES}
    first = sessions["float32"]
    sae, _ = loaded_sae(first, config.sae[0])
    folder = first.sae_folder(config.sae[0])
    x, y = (activations(sessions[dtype], given.tokens) for dtype in DTYPES)
    compare_activations(x, y, sae)
    seconds = {dtype: harvest_cpu_seconds(config, dtype, given.harvest_tokens, folder) for dtype in DTYPES}
    print(f"harvest of {given.harvest_tokens:,} tokens:")
    for dtype, spent in seconds.items():
        print(f"    in {dtype} {given.harvest_tokens / spent:,.0f} tokens per CPU second")
    print(f"bfloat16 over float32: {seconds['float32'] / seconds['bfloat16']:.2f}")


if __name__ == "__main__":
    main()
