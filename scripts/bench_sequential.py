"""What stopping early saves: simulated judges, the same answers once to the end and once until the rule says enough.

    python scripts/bench_sequential.py [--labels 4000] [--contexts 10] [--per-call 5] [--store X.duckdb]

Every label has a true sensitivity and specificity, drawn from a population; the judge's answers are independent. For
every rule: mean requests per label and their ratio to the fixed number; how often the score stands on the wrong side of
the threshold, and how often the label was called clear on the wrong side; mean absolute error; how many intervals hold
the truth. `fixed` rows ask a fixed number of every label. `equal error`: requests of the fixed number that is as often
on the wrong side, between the two nearest, and what the rule saves of them.

With --store the answers are not simulated: those that a store holds of detection or fuzzing (by method
'answers_ordinary', on report) are taken in the order in which a rule would have asked for them. The truth is then the
score over all of them.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.config import ScoreConfig
from autointerp.records import Context
from autointerp.score.detection_questions import Example, batches
from autointerp.score.stopping import ROUND, Look, in_balance, interval_z, is_enough, side
from autointerp.store import Store

Flags = NDArray[np.bool_]


@dataclass
class Label:
    """One label's answers in the order of asking."""

    active: Flags
    right: Flags
    truth: float

    def look(self, n: int) -> Look:
        active, right = self.active[:n], self.right[:n]
        return Look(int((active & right).sum()), int(active.sum()), int((~active & right).sum()), int((~active).sum()))


@dataclass
class Asked:
    """What came of one label."""

    requests: int
    value: float | None
    low: float | None
    high: float | None
    side: int


POPULATIONS: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "spread: sensitivity .2-1, specificity .5-1": lambda rng, n: np.stack(
        [rng.uniform(0.2, 1.0, n), rng.uniform(0.5, 1.0, n)], axis=1
    ),
    "mostly good: mean .83 and .91": lambda rng, n: np.stack([rng.beta(5, 1, n), rng.beta(10, 1, n)], axis=1),
    "half good, half chance": lambda rng, n: np.where(
        rng.random(n)[:, None] < 0.5,
        np.stack([rng.beta(12, 1, n), rng.beta(20, 1, n)], axis=1),
        np.stack([p := rng.uniform(0.1, 0.9, n), 1.0 - p], axis=1),
    ),
}


def simulated(shares: NDArray[np.float64], per_class: int, rng: np.random.Generator) -> list[Label]:
    active = np.tile([True, False], per_class)
    return [Label(active, rng.random(2 * per_class) < np.where(active, p, q), float(p + q) / 2) for p, q in shares]


def ends(n: int, size: int, early: bool) -> list[int]:
    """Contexts asked at the end of every round."""
    sizes = [len(b) for b in batches([None] * n, size)]  # type: ignore[list-item]
    step = ROUND if early else len(sizes)
    return [sum(sizes[: i + step]) for i in range(0, len(sizes), step)]


def ask(label: Label, size: int, config: ScoreConfig) -> Asked:
    """The label's score under the rules of `config`."""
    at = ends(len(label.active), size, early=True)
    looks: list[Look] = []
    for n in at:
        looks.append(label.look(n))
        if is_enough(looks, len(at), config.stop_width, config.stop_threshold):
            break
    n = at[len(looks) - 1]
    e = interval(looks[-1], interval_z(config, len(at)))
    threshold = config.stop_threshold
    verdict = 0 if threshold is None else side(looks, len(at), threshold)
    return Asked(min(ROUND * len(looks), requests(len(label.active), size)), e.value, e.low, e.high, verdict)


def fixed(label: Label, size: int, contexts: int) -> Asked:
    e = interval(label.look(contexts), stats.Z95)
    return Asked(requests(contexts, size), e.value, e.low, e.high, 0)


def requests(contexts: int, size: int) -> int:
    return -(-contexts // size)


def interval(look: Look, z: float) -> stats.Estimate:
    return stats.balanced_accuracy_interval(look.found, look.active, look.spared, look.silent, z)


@dataclass
class Row:
    name: str
    requests: float
    wrong: float
    """Share of labels whose score and truth stand on different sides of the threshold; exactly on it counts half."""
    called_wrong: float
    error: float
    covered: float


def row(name: str, labels: list[Label], asked: list[Asked], threshold: float) -> Row:
    wrong, called, errors, covered = [], [], [], []
    for label, a in zip(labels, asked, strict=True):
        if a.value is None or a.low is None or a.high is None:
            continue
        wrong.append(0.5 if a.value == threshold else float((a.value > threshold) != (label.truth > threshold)))
        called.append(a.side != 0 and (a.side > 0) != (label.truth > threshold))
        errors.append(abs(a.value - label.truth))
        covered.append(a.low <= label.truth <= a.high)
    means = [float(np.mean(x)) for x in (wrong, called, errors, covered)]
    return Row(name, float(np.mean([a.requests for a in asked])), *means)


def at_equal_error(error: float, rows: list[Row]) -> float | None:
    """Requests of a fixed number that is wrong as often, between the two nearest; None beyond the ends."""
    ordered = sorted(rows, key=lambda r: r.requests)
    for low, high in zip(ordered, ordered[1:], strict=False):
        if high.wrong <= error <= low.wrong and low.wrong > high.wrong:
            return low.requests + (high.requests - low.requests) * (low.wrong - error) / (low.wrong - high.wrong)
    return None


def table(title: str, labels: list[Label], size: int, thresholds: list[float], widths: list[float]) -> None:
    whole = len(labels[0].active)
    print(f"\n{title}, {len(labels):,} labels, {requests(whole, size)} requests of {size} contexts at most")
    print(f"{'rule':34} {'requests':>8} {'ratio':>6} {'wrong':>7} {'called':>7} {'error':>6} {'held':>6}  equal error")
    for threshold in thresholds:
        sizes = sorted({round(whole * k / 8) for k in range(1, 9)})
        plain = [row(f"fixed, {n} contexts", labels, [fixed(x, size, n) for x in labels], threshold) for n in sizes]
        shown = [r for r in plain if r.requests in (plain[-1].requests, plain[-1].requests // 2)]
        rules = [(f"threshold {threshold}", ScoreConfig(stop_threshold=threshold))]
        rules += [(f"width {w}", ScoreConfig(stop_width=w)) for w in widths]
        rules.append(
            (f"threshold {threshold}, width {widths[-1]}", ScoreConfig(stop_threshold=threshold, stop_width=widths[-1]))
        )
        early = [row(name, labels, [ask(x, size, config) for x in labels], threshold) for name, config in rules]
        print(f"  decision: above or below {threshold}")
        for r in [*shown, *early]:
            same = at_equal_error(r.wrong, plain) if r in early else None
            tail = "" if same is None else f"  {same:.2f}, saved {1 - r.requests / same:.0%}"
            print(
                f"  {r.name:32} {r.requests:8.2f} {r.requests / plain[-1].requests:6.2f} {r.wrong:7.4f} "
                f"{r.called_wrong:7.4f} {r.error:6.3f} {r.covered:6.3f}{tail}"
            )


def stored(path: Path) -> dict[str, list[Label]]:
    """The answers that a store holds, by scorer; labels of the commonest number of contexts."""
    with Store.open(path, read_only=True) as store:
        rows = store.rows(
            "SELECT s.scorer, s.score_id, c.context_id, c.feature, c.kind, c.tier, c.decile, p.truth[1], "
            "p.predicted[1] FROM scores s JOIN predictions p USING (score_id) JOIN contexts c USING (context_id) "
            "WHERE s.scorer IN ('detection', 'fuzzing') AND s.method = 'answers_ordinary' "
            "AND s.part = 'report' AND (c.kind <> 'negative' OR c.tier = 'random') "
            "AND s.control IS NULL AND s.status = 'ok' AND p.predicted IS NOT NULL ORDER BY s.score_id, c.context_id"
        )
    found: dict[tuple[str, str], list[tuple[Example, bool]]] = {}
    for scorer, score_id, context_id, feature, kind, tier, decile, truth, said in rows:
        context = Context(context_id, feature, "report", kind, tier, decile, 0, "", 0, [], [])
        found.setdefault((scorer, score_id), []).append((Example(context), (truth > 0.5) == (said > 0.5)))
    result: dict[str, list[Label]] = {}
    for (scorer, score_id), answers in found.items():
        right = {example.context.context_id: ok for example, ok in answers}
        ordered = in_balance([example for example, _ in answers], random.Random(score_id))
        label = Label(
            np.array([e.active for e in ordered]), np.array([right[e.context.context_id] for e in ordered]), 0.0
        )
        label.truth = interval(label.look(len(ordered)), stats.Z95).value or 0.0
        result.setdefault(scorer, []).append(label)
    for scorer, labels in result.items():
        sizes = [len(x.active) for x in labels]
        common = max(set(sizes), key=sizes.count)
        result[scorer] = [x for x in labels if len(x.active) == common]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=4000)
    parser.add_argument("--contexts", type=int, default=10, help="score.contexts: twice as many of each class")
    parser.add_argument("--per-call", type=int, default=5)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.6, 0.7, 0.8])
    parser.add_argument("--widths", type=float, nargs="+", default=[0.2, 0.3, 0.4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="take the answers that it holds instead")
    given = parser.parse_args()
    if given.store:
        for scorer, labels in stored(given.store).items():
            table(f"{scorer} of {given.store}", labels, given.per_call, given.thresholds, given.widths)
        return
    for title, draw in POPULATIONS.items():
        rng = np.random.default_rng(given.seed)
        labels = simulated(draw(rng, given.labels), 2 * given.contexts, rng)
        table(title, labels, given.per_call, given.thresholds, given.widths)


if __name__ == "__main__":
    main()
