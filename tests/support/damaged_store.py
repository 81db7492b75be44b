"""A store with rows in every file, left behind by a killed writer, and a process that opens damaged copies of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autointerp.errors import AutointerpError
from autointerp.records import CallRecord, Explanation, Score
from autointerp.store import Store
from autointerp.store.safety.reading import open_for_reading
from support.store_fixtures import ROOT, STATUSES, call, child, explanation, filled, prediction, score

MAIN, WAL, LEDGER, EVIDENCE = "x.duckdb", "x.duckdb.wal", "x.duckdb.ledger", "x.evidence.duckdb"
ALIVE = [feature for feature, status in enumerate(STATUSES) if status != "dead"]
CALLS = 10
"""Number of calls in one group."""
IN_FILE, IN_WAL = 8, 6
"""Number of groups folded into the main file, and of groups that only its WAL holds."""


def group(k: int) -> tuple[list[CallRecord], list[Explanation], list[Score]]:
    """The k-th group: ten calls, and a label with its score for every feature alive."""
    labels = [explanation(feature, seed=100 + k) for feature in ALIVE]
    scores = [
        score(label, predictions=[prediction(21 * i + 14 + j) for j in range(3)]) for i, label in enumerate(labels)
    ]
    return [call(CALLS * k + i, reply=f"reply {i} " * 5) for i in range(CALLS)], labels, scores


WRITER = f"""
    import os, signal
    from autointerp.store import Store
    from support.damaged_store import group
    store = Store.open(sys.argv[1])
    for k in range({IN_FILE}, {IN_FILE + IN_WAL}):
        store.insert_group(*group(k))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_store(folder: Path) -> Path:
    """A folder with the four files of a store: main, WAL, row ledger, evidence."""
    path = folder / MAIN
    store, _, _ = filled(path)
    with store:
        run_id = store.begin_run("run", {"a": 1}, {"python": "3"})
        for k in range(IN_FILE):
            store.insert_group(*group(k))
        store.insert_metrics(1, [{"step": i, "metric": "loss", "value": 1.0 / (i + 1)} for i in range(40)])
        store.finish_run(run_id, "ok", 0)
    process = child(WRITER, path)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert sorted(f.name for f in folder.iterdir()) == sorted((MAIN, WAL, LEDGER, EVIDENCE))
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def content(store: Store, views: bool = False) -> list[tuple[Any, ...]]:
    """(name, rows, hash over all their values) of every table of both files, and of every view."""
    wanted = "SELECT database_name, table_name FROM duckdb_tables() WHERE NOT temporary"
    if views:
        wanted += " UNION ALL SELECT database_name, view_name FROM duckdb_views() WHERE NOT internal"
    parts = []
    for database, name in sorted(store.rows(wanted)):
        table = f'evidence."{name}"' if database == "evidence" else f'"{name}"'
        parts.append(f"SELECT '{database}.{name}', count(*), sum(hash(t)::HUGEINT), bit_xor(hash(t)) FROM {table} AS t")
    return sorted(store.rows(" UNION ALL ".join(parts)))


# --- the process that opens damaged copies ---------------------------------------------------------------------------


def opened(path: Path, is_writing: bool, views: bool) -> dict[str, Any]:
    """Opens and reads the store. Returns where that ended (opening, reading, whole), the error, and the content."""
    told: dict[str, Any] = {"ended": "opening"}
    try:
        with Store.open(path) if is_writing else open_for_reading(path) as store:
            told["ended"] = "reading"
            told["content"] = content(store, views)
            told["ended"] = "whole"
    except AutointerpError as error:
        told |= {"error": type(error).__name__, "code": error.exit_code, "message": str(error)}
    except BaseException as error:
        told |= {"error": f"raw {type(error).__name__}", "code": None, "message": str(error)}
    return told


def open_cases(template: Path, work: Path) -> None:
    """Reads cases from standard input, one JSON object per line (name, file, cut or bit), and prints the outcome of
    each for a reader and a writer. It prints one line per case, so that a crash shows which case caused it."""
    whole = bytes_of(template)
    for number, line in enumerate(sys.stdin):
        case = json.loads(line)
        damaged = bytearray(whole[case["file"]])
        if "cut" in case:
            del damaged[case["cut"] :]
        else:
            damaged[case["bit"] // 8] ^= 1 << case["bit"] % 8
        files = {**whole, case["file"]: bytes(damaged)}
        for is_writing in (False, True):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            for name, data in files.items():
                (work / name).write_bytes(data)
            told = opened(work / MAIN, is_writing, views=number % 10 == 0)
            changed = sorted(name for name, data in files.items() if bytes_of(work).get(name) != data)
            print(json.dumps({**case, "writing": is_writing, "changed": changed, **told}), flush=True)


def told_of(template: Path, cases: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The outcome of every case, found by a separate process. If that process dies, fails and names the case."""
    listed = list(cases)
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; from support import damaged_store; "
    code += "from pathlib import Path; damaged_store.open_cases(Path(sys.argv[1]), Path(sys.argv[2]))"
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a writer's fsyncs take most of the time elsewhere
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        process = subprocess.run(
            [sys.executable, "-c", code, str(template), f"{folder}/work"], input="\n".join(map(json.dumps, listed)),
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    lines = process.stdout.splitlines()
    assert process.returncode == 0, f"{listed[len(lines) // 2]} ended the process: {process.stderr}"
    assert len(lines) == 2 * len(listed)
    yield from map(json.loads, lines)
