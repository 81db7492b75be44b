"""The Jacobian lens and the vocabulary projection, each beside what steering shows.

    OMP_NUM_THREADS=1 python scripts/bench_jacobian_lens.py --config autointerp-real/autointerp.toml --random 50

The configuration's dictionary must have been harvested; --dictionary names it where there are several. Runs the
evidence methods jacobian_lens (for the dictionary) and token_change (for features drawn at random) where they have not
been run yet, with the settings of [evidence]. Of the first --top tokens that a feature promotes, it counts those that
are among the first that the model says more when the feature is clamped. The difference is paired by feature; intervals
are Student's, 95 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autointerp.config_file import load
from autointerp.means import t_point
from autointerp.stages.gathering import gather
from autointerp.stages.session import Session
from autointerp.store import Selection, Store
from autointerp.terminal import Terminal

PROJECTED, LENS, STEERED = "vocab_projection", "lens_tokens", "token_changes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--dictionary", help="its name; the first one without it")
    parser.add_argument("--random", type=int, default=50, help="features, drawn from those that fire")
    parser.add_argument("--top", type=int, default=10, help="tokens of each list")
    given = parser.parse_args()

    config = load(given.config)
    sae = next(one for one in config.sae if given.dictionary in (None, one.dictionary))
    session = Session(config, Terminal())
    with Store.open(config.store.path) as store:
        number = store.dictionary(sae.dictionary).dictionary_id
        drawn = store.selected_features(number, Selection(random=given.random))
        chosen = Selection(features=",".join(map(str, drawn)))
        gather(session, store, sae, ["jacobian_lens", "token_change"], lambda facts: (None, None), chosen)
        print(compared(store, number, drawn, given.top))


def compared(store: Store, number: int, features: Sequence[int], top: int) -> str:
    """The comparison as lines of text."""
    first = {table: first_tokens(store, number, table, features, top) for table in (PROJECTED, LENS, STEERED)}
    kept = [feature for feature in features if feature in first[STEERED]]
    shared = {
        table: np.array([len(first[table].get(f, set()) & first[STEERED][f]) for f in kept], dtype=float)
        for table in (PROJECTED, LENS)
    }
    lines = [
        f"{len(kept)} of {len(features)} features; of the first {top} tokens, how many are said more when clamped:"
    ]
    for name, table in (("vocabulary projection", PROJECTED), ("Jacobian lens", LENS)):
        without = int((shared[table] == 0).sum())
        lines.append(f"{name:22} {mean_and_interval(shared[table])}; none in {without}")
    difference = shared[LENS] - shared[PROJECTED]
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    lines.append(f"{'difference':22} {mean_and_interval(difference)}; more in {better}, fewer in {worse}")
    both = np.array([len(first[LENS].get(f, set()) & first[PROJECTED].get(f, set())) for f in kept], dtype=float)
    lines.append(f"{'one of the other':22} {mean_and_interval(both)}")
    return "\n".join(lines)


def first_tokens(store: Store, number: int, table: str, features: Sequence[int], top: int) -> dict[int, set[int]]:
    rows = store.rows(
        f"SELECT feature, token_id FROM {table} WHERE dictionary_id = ? AND sign = 1 AND rank < ? "
        "AND feature IN (SELECT unnest(?::INTEGER[]))",
        [number, top, list(features)],
    )
    found: dict[int, set[int]] = {}
    for feature, token in rows:
        found.setdefault(feature, set()).add(token)
    return found


def mean_and_interval(values: np.ndarray) -> str:
    half = t_point(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.2f} [{values.mean() - half:.2f}, {values.mean() + half:.2f}]"


if __name__ == "__main__":
    main()
