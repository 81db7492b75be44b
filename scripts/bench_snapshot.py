"""Measures what it costs to publish a store for readers: how long a copy takes, how much commits slow down, and how old
the rows are that readers see.

    python scripts/bench_snapshot.py [--features 1000000] [--scores 2] [--predictions 0] [--seconds 5]

It makes a store in a temporary folder with plain SQL (a label and `scores` scores for every feature). Then it commits
groups of 50 calls and labels, for a while without publishing and for a while with it, and a reader asks from time to
time how old the rows are.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

from autointerp.records import CallRecord, Explanation
from autointerp.store import Store
from autointerp.store.safety.paths import snapshot_path_of
from autointerp.store.safety.reading import open_for_reading
from autointerp.store.safety.snapshot import SnapshotPublisher

_FEATURES = """
    INSERT INTO features SELECT 1, i, 1, 'live', 0.01, 0.001, 100, 120, 5.0, 1.0, 5.0,
        list_transform(range(33), lambda b: (b / 32 * 5)::FLOAT), list_transform(range(32), lambda b: (b * 7 + i) % 90)
    FROM range(?) AS r(i)
"""
_LABELS = """
    INSERT INTO explanations BY NAME SELECT sha256(i::VARCHAR) AS explanation_id, 1 AS dictionary_id, i AS feature,
        1 AS harvest_id, 'contexts' AS explainer, 'gpt' AS model, 't' AS template_sha256, sha256('e' || i) AS
        evidence_sha256, 0 AS seed, 'the word ' || hash(i) || ' at the start of a sentence about it' AS text,
        'ok' AS status, 900 AS input_tokens, 20 AS output_tokens, 0.001 AS cost_usd,
        TIMESTAMP '2026-01-01' + to_microseconds(i) AS created_at
    FROM range(?) AS r(i)
"""
_SCORES = """
    INSERT INTO scores BY NAME SELECT sha256(s || '-' || i) AS score_id, 1 AS dictionary_id, i AS feature,
        sha256(i::VARCHAR) AS explanation_id, 1 AS harvest_id, 'scorer' || s AS scorer, 'numbers' AS method,
        'report' AS part, 'gpt' AS model, 't' AS template_sha256, 0 AS seed, (hash(i) % 1000) / 1000 AS value,
        0.1 AS ci_low, 0.9 AS ci_high, 20 AS n, 0 AS n_failed, 'ok' AS status,
        TIMESTAMP '2026-01-02' + to_microseconds(i) AS created_at
    FROM range(?) AS r(i), range(?) AS t(s)
"""
_CALLS = """
    INSERT INTO llm_calls BY NAME SELECT sha256('c' || i) AS request_sha256, 0 AS sample, 'run' AS run_id,
        1 AS dictionary_id, i AS feature, 'explain' AS stage, 'gpt' AS model, 'ok' AS status,
        repeat('some words of a reply ', 20) || i AS reply, 900 AS input_tokens, 0 AS cached_tokens,
        20 AS output_tokens, 0.001 AS cost_usd, 0.5 AS latency_s, 1 AS attempts,
        TIMESTAMP '2026-01-01' + to_microseconds(i) AS created_at
    FROM range(?) AS r(i)
"""
_PREDICTIONS = """
    INSERT INTO predictions SELECT sha256('0-' || (i // 20)), i, list_transform(range(32), lambda k: (i + k)::FLOAT),
        list_transform(range(32), lambda k: (i * k % 11)::FLOAT), 'ok'
    FROM range(?) AS r(i)
"""


def group(start: int) -> tuple[list[CallRecord], list[Explanation]]:
    calls, labels = [], []
    for i in range(start, start + 50):
        calls.append(
            CallRecord(
                request_sha256=f"{i:064x}", sample=0, run_id="run", dictionary_id=1, feature=i, stage="explain",
                model="gpt", status="ok", reply="a reply of some words " * 20, input_tokens=900, cached_tokens=0,
                output_tokens=20, cost_usd=0.001, latency_s=0.5,
            )
        )  # fmt: skip
        labels.append(
            Explanation(
                explanation_id=f"new{i}", dictionary_id=1, feature=i, harvest_id=1, explainer="other", model="gpt",
                template_sha256="t", evidence_sha256="e", seed=0, text="some words", status="ok",
            )
        )  # fmt: skip
    return calls, labels


def commit_for(store: Store, seconds: float, start: int) -> tuple[list[float], int]:
    """(seconds of every commit, the number of the next one)."""
    took, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        calls, labels = group(start)
        begun = time.monotonic()
        store.insert_group(calls, labels, [])
        took.append(time.monotonic() - begun)
        start += 50
        time.sleep(0.05)
    return took, start


def told(name: str, took: list[float]) -> None:
    ms = sorted(1000 * t for t in took)
    print(
        f"{name:34} {len(ms):4} commits of 100 rows: median {statistics.median(ms):6.1f} ms, "
        f"95 % {ms[int(0.95 * len(ms))]:6.1f} ms, slowest {ms[-1]:6.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--scores", type=int, default=2, help="for each feature")
    parser.add_argument("--predictions", type=int, default=0, help="rows, of 2 x 32 numbers")
    parser.add_argument("--seconds", type=float, default=5.0, help="[store] snapshot_seconds")
    parser.add_argument("--duration", type=float, default=20.0, help="seconds of commits, with and without")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.duckdb"
        with Store.open(path, create=True) as store, store.transaction() as con:
            con.execute(_LABELS, [given.features])
            con.execute(_SCORES, [given.features, given.scores])
            con.execute(_CALLS, [given.features])
            con.execute(_PREDICTIONS, [given.predictions])
        with Store.open(path) as store:
            with store.transaction() as con:
                # After opening: a store with features asks for their evidence, which is no matter here.
                con.execute(_FEATURES, [given.features])
            store.con.execute("CHECKPOINT")
            print(f"store {path.stat().st_size / 2**20:.0f} MiB; {store.row_counts()}")
            publisher = SnapshotPublisher(store, given.seconds, print)
            for _ in range(3):
                publisher.publish()
                size = snapshot_path_of(path).stat().st_size / 2**20
                print(f"published in {publisher.took_s:.2f} s, {size:.0f} MiB")
            took, at = commit_for(store, given.duration, 0)
            told("without publishing", took)
            ages: list[float] = []
            over = threading.Event()

            def look() -> None:
                while not over.wait(0.1):
                    ages.append(time.time() - snapshot_path_of(path).stat().st_mtime)

            publisher.remove()
            with SnapshotPublisher(store, given.seconds, print):
                while not snapshot_path_of(path).exists():
                    time.sleep(0.05)
                looking = threading.Thread(target=look)
                looking.start()
                took, at = commit_for(store, given.duration, at)
                over.set()
                looking.join()
            told(f"publishing every {given.seconds:g} s", took)
            print(f"age of what readers saw: at most {max(ages):.2f} s, {statistics.mean(ages):.2f} s on average")
            con = store.con.cursor()
            con.execute("DELETE FROM features")  # so that the snapshot's like can be opened without evidence
            con.close()
            publisher.publish()
            begun = time.monotonic()
            with open_for_reading(path) as seen:
                print(f"a reader opened it in {time.monotonic() - begun:.2f} s, {seen.row_counts()['scores']:,} scores")


if __name__ == "__main__":
    main()
