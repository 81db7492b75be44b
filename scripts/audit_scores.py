"""Prints how often 95 % intervals hold a truth that is known by construction, the old way and the new one.

    python scripts/audit_scores.py [--times 2000]

Six tables: the correlation and R squared of a simulation by the number of documents (a percentile bootstrap over
documents, and the jackknife of autointerp/jackknife.py), AUROC (the same bootstrap, and documents counted), the mean
of a few differences (a bootstrap, and Student's t), means over features that share documents (by features alone, and by
both), the correlation on ordinary text by the density of a feature (beside that over a mixture of contexts), and
precision beside balanced accuracy. No model, store or network is needed. A share of 2,000 draws is known to .005.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.simulated_truth import LABELS, Corpus, Population, crossed  # noqa: E402

from autointerp import jackknife, stats  # noqa: E402
from autointerp.means import feature_mean, mean_interval  # noqa: E402
from autointerp.prevalence import natural_precision  # noqa: E402

Floats = NDArray[np.float64]
DOCUMENTS = (2, 3, 5, 10, 15, 20, 30, 60)
Ends = tuple[float | None, float | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=2000, help="draws behind each number (default 2000)")
    times = parser.parse_args().times
    simulation_table(times)
    auroc_table(times)
    mean_table(times)
    shared_table(times)
    natural_table(times)
    precision_table()


def shares(once: Callable[[], tuple[float, Sequence[Ends]]], times: int) -> list[tuple[float, float]]:
    """For each way of making an interval: (share of draws that have one, share of those that hold the truth)."""
    published: list[int] = []
    held: list[int] = []
    for _ in range(times):
        true, ways = once()
        published = published or [0] * len(ways)
        held = held or [0] * len(ways)
        for i, (low, high) in enumerate(ways):
            if low is not None and high is not None:
                published[i] += 1
                held[i] += low <= true <= high
    return [(p / times, h / p if p else math.nan) for p, h in zip(published, held, strict=True)]


def shown(share: float, coverage: float) -> str:
    if share < 0.01:
        return "none"
    return f"{coverage:.3f}" + (f" ({share:.0%})" if share < 0.995 else "")


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(title: str, *columns: str) -> None:
    print(f"\n{title}\n")
    row(*columns)
    row(*["---"] * len(columns))


def resamples(rng: np.random.Generator, n: int, times: int = 300) -> Floats:
    """How often each of n documents is drawn, [times, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), size=times).astype(float)


def simulation_table(times: int) -> None:
    head(
        "Simulation: one context per document, two thirds of them active. In brackets: the share of draws that have an "
        "interval, where not all have one.",
        "documents", "label", "r, bootstrap", "r, jackknife", "R2, bootstrap", "R2, jackknife",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for n in DOCUMENTS:
        for name, label in LABELS.items():
            population = Population(label)
            r, r_squared = population.correlation, population.r_squared
            draws = [population.draw(n) for _ in range(times)]
            of_r, of_squared = iter(draws), iter(draws)

            def correlation(of_r=of_r, r=r, n=n) -> tuple[float, Sequence[Ends]]:  # type: ignore[no-untyped-def]
                x, y, documents = next(of_r)
                found = jackknife.pooled_correlation(x, y, documents)
                return r, [_bootstrapped_correlation(x, y, resamples(rng, n)), (found.low, found.high)]

            def squared(of_squared=of_squared, r_squared=r_squared, n=n) -> tuple[float, Sequence[Ends]]:  # type: ignore[no-untyped-def]
                x, y, documents = next(of_squared)
                found = jackknife.pooled_r_squared(x, y, documents)
                return r_squared, [_bootstrapped_r_squared(x, y, resamples(rng, n)), (found.low, found.high)]

            row(n, name, *(shown(*way) for way in (*shares(correlation, times), *shares(squared, times))))


def _bootstrapped_correlation(x: Floats, y: Floats, drawn: Floats) -> Ends:
    sums = np.stack([np.full(len(x), float(x.shape[1])), *(c.sum(axis=1) for c in (x, y, x * x, y * y, x * y))], axis=1)
    return stats.percentile_interval(stats.correlation_of(drawn @ sums))


def _bootstrapped_r_squared(x: Floats, y: Floats, drawn: Floats) -> Ends:
    n, sx, sxx, error = (
        drawn @ c
        for c in (np.full(len(x), float(x.shape[1])), x.sum(axis=1), (x * x).sum(axis=1), ((x - y) ** 2).sum(1))
    )
    variance = sxx - sx * sx / n
    with np.errstate(divide="ignore", invalid="ignore"):
        return stats.percentile_interval(np.where(variance > 1e-9, 1 - error / variance, np.nan))


def auroc_table(times: int) -> None:
    head("AUROC of contexts that have a document each", "active, silent", "true", "bootstrap", "documents counted")
    rng = np.random.default_rng(0)
    for positives, negatives in ((20, 20), (20, 5), (10, 10), (6, 6)):
        for shift in (0.0, 1.0, 2.0):
            true = 0.5 * (1 + math.erf(shift / 2))

            def once(positives=positives, negatives=negatives, shift=shift, true=true):  # type: ignore[no-untyped-def]
                p, q = rng.normal(shift, 1.0, positives), rng.normal(0.0, 1.0, negatives)
                drawn = resamples(rng, positives + negatives)
                a, b = drawn[:, :positives], drawn[:, positives:]
                pairs = a.sum(axis=1) * b.sum(axis=1)
                won = np.einsum("bp,bp->b", a, b @ (p[:, None] > q[None, :]).astype(float).T)
                found = jackknife.pooled_auroc(p, q, range(positives), range(positives, positives + negatives))
                old = stats.percentile_interval(np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan))
                return true, [old, (found.low, found.high)]

            row(f"{positives}, {negatives}", f"{true:.2f}", *(shown(*way) for way in shares(once, times)))


def mean_table(times: int) -> None:
    head("Mean of n normal differences", "n", "bootstrap", "as published")
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 10, 20, 39, 40, 100):

        def once(n=n) -> tuple[float, Sequence[Ends]]:  # type: ignore[no-untyped-def]
            values = rng.normal(0.5, 1.0, n)
            found = mean_interval(values, n_boot=500)
            return 0.5, [stats.percentile_interval(resamples(rng, n, 500) @ values / n), (found.low, found.high)]

        row(n, *(shown(*way) for way in shares(once, times)))


def shared_table(times: int) -> None:
    head(
        "Mean over 60 features of 15 documents each, of which others are scored on some too",
        "documents", "standard deviation of documents", "by features", "by both",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for documents in (15, 20, 60, 200):
        for of_documents in (0.0, 0.3, 1.0):

            def once(documents=documents, of_documents=of_documents):  # type: ignore[no-untyped-def]
                values, sums = crossed(rng, 60, documents, of_documents)
                ways = feature_mean(values), feature_mean(values, sums)
                return 0.0, [(way.estimate.low, way.estimate.high) for way in ways]

            row(documents, of_documents, *(shown(*way) for way in shares(once, times)))


def natural_table(times: int) -> None:
    head(
        "A label with false alarms on 3 % of silent tiles: the correlation over all tiles, over a mixture of 20 active "
        "and 10 silent ones, and as estimated from 60 active tiles and 2,000 silent ones",
        "density", "over all tiles", "mixture", "estimated", "its interval holds the first",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for density in (0.2, 0.05, 0.01):
        corpus = Corpus(rng, density, 8000)
        true = corpus.correlation
        mixture = float(np.mean([corpus.mixture(rng, 20, 10) for _ in range(times)]))
        found = [corpus.estimate(rng, 60, 2000) for _ in range(times)]
        drawn = iter(found)

        def once(drawn=drawn, true=true):  # type: ignore[no-untyped-def]
            one = next(drawn)
            return true, [(one.low, one.high)]

        mean = float(np.mean([one.value for one in found if one.value is not None]))
        row(density, f"{true:.3f}", f"{mixture:.3f}", f"{mean:.3f}", *(shown(*way) for way in shares(once, times)))


def precision_table() -> None:
    head(
        "A judge who is right on 90 of 100 active tiles and wrong on 5 of 1,000 silent ones",
        "density", "balanced accuracy", "precision", "95 % interval",
    )  # fmt: skip
    for density in (0.1, 0.01, 0.001):
        found = natural_precision(stats.wilson(90, 100), stats.wilson(5, 1000), density)
        row(density, f"{(0.9 + 0.995) / 2:.3f}", f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}")


if __name__ == "__main__":
    main()
