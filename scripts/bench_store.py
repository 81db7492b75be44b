"""Measures a store of a million features: seconds and memory for opening it, for queries, and for resuming a run.

    python scripts/bench_store.py [FOLDER] [--features 1000000] [--contexts 20] [--step NAME ...]

The store is made once in FOLDER with plain SQL (minutes, and about 6 GB for a million features), in the physical layout
that a merge gives: the store's own schema, sorted by feature, with 20 contexts per feature over three splits. Windows
are text of the Python standard library, each shared by about 20 contexts. All but one in a thousand features have an
LLM explainer's label, with its call in the ledger, and two scores; a tenth of them have 30 predictions each.

Then every step runs in a process of its own, with a warm page cache, and prints seconds and peak memory. Steps that
resume a run work on a copy of the main file without the labels or scores of the last thousand features. An endpoint on
the loopback device notes when the run's first request came.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from autointerp.store import Store
from autointerp.store.connection import connect, sql_file
from autointerp.store.safety.paths import evidence_path_of

MODEL = "bench-model"
WINDOW, CONTEXT = 64, 32
"""Tokens in a window and in a context."""
LAST = 1000
"""How many features a resumed run still has to do."""
WINDOWS_PER_FEATURE = 1.0
_PIECE = re.compile(r"\s?\w{1,8}|\s+|[^\w\s]")

_WINDOWS = """
    INSERT INTO building.windows
    SELECT (1::BIGINT << 40) + i, 1, 'document ' || (i // 16), (i % 16) * 64, 0,
        ['explain', 'explain', 'select', 'report'][(i // 16) % 4 + 1],
        token_ids[s + 1 : s + 64], tokens[s + 1 : s + 64]
    FROM (
        SELECT r.i, (hash(r.i) % 64)::INTEGER AS s, list_concat(a.ids, b.ids) AS token_ids,
            list_concat(a.tokens, b.tokens) AS tokens
        FROM range($low, $high) AS r(i)
        JOIN text AS a ON a.block = r.i % $blocks
        JOIN text AS b ON b.block = (r.i + 1) % $blocks
    )
    ORDER BY i
"""
# Of each feature: explain 4 top, 3 sampled, 3 negative; select and report 1, 2 and 2.
_CONTEXTS = """
    INSERT INTO building.context_rows BY NAME
    WITH slots AS (
        SELECT unnest([
            ['explain', 'negative', 'neighbour', '0'], ['explain', 'negative', 'random', '0'],
            ['explain', 'negative', 'same_token', '0'], ['explain', 'sampled', NULL, '0'],
            ['explain', 'sampled', NULL, '1'], ['explain', 'sampled', NULL, '2'], ['explain', 'top', NULL, '0'],
            ['explain', 'top', NULL, '1'], ['explain', 'top', NULL, '2'], ['explain', 'top', NULL, '3'],
            ['report', 'negative', 'random', '0'], ['report', 'negative', 'same_token', '0'],
            ['report', 'sampled', NULL, '0'], ['report', 'sampled', NULL, '1'], ['report', 'top', NULL, '0'],
            ['select', 'negative', 'random', '0'], ['select', 'negative', 'same_token', '0'],
            ['select', 'sampled', NULL, '0'], ['select', 'sampled', NULL, '1'], ['select', 'top', NULL, '0']
        ]) AS s, unnest(range(20)) AS slot
    ),
    drawn AS (
        SELECT f.f AS feature, s.slot, s.s[1] AS split, s.s[2] AS kind, s.s[3] AS tier, s.s[4]::INTEGER AS rank,
            hash(f.f, s.slot) AS h
        FROM range($low, $high) AS f(f), slots AS s
        WHERE f.f % 1000 <> 999
    ),
    placed AS (
        SELECT *,
            (h % $groups)::BIGINT * 64 + if(split = 'explain', 0, if(split = 'select', 32, 48))
                + (h >> 24) % if(split = 'explain', 32, 16) AS number,
            ((h >> 32) & 1)::INTEGER * 32 AS "offset",
            if(kind = 'negative', [], list_sort(list_distinct(list_transform(
                range((1 + (h >> 40) % 4)::BIGINT), lambda k: (hash(h, k) % 32)::USMALLINT))))::USMALLINT[] AS positions
        FROM drawn
    ),
    valued AS (
        SELECT *, list_transform(positions, lambda p: (0.1 + (hash(h, p) % 100000) / 20000)::FLOAT)::FLOAT[] AS "values"
        FROM placed
    )
    SELECT (1::BIGINT << 40) + feature::BIGINT * 20 + slot AS context_id, 1 AS dictionary_id, 1 AS harvest_id, feature,
        split, kind, tier, if(kind = 'negative', NULL, (h % 10)::TINYINT) AS decile,
        if(kind = 'negative', NULL, 0.01) AS sampling_probability, rank, (1::BIGINT << 40) + number AS window_id,
        "offset", 32 AS length,
        ((number % 16) * 64 + "offset" + coalesce(positions[1], 0))::INTEGER AS position, positions, "values",
        coalesce(list_max("values"), 0)::FLOAT AS max_activation, hash(h, 7) AS text_hash
    FROM valued
    ORDER BY context_id
"""
_FEATURES = """
    INSERT INTO features SELECT 1, i, 1, if(i % 1000 = 999, 'dead', if(i % 50 = 7, 'rare', 'live')),
        (1 + hash(i) % 1000) / 1e5, (1 + hash(i, 1) % 1000) / 1e6, 100 + hash(i) % 1000, 120 + hash(i) % 1000,
        5.0 + (hash(i) % 100) / 10, 1.0, 5.0, list_transform(range(33), lambda b: (b / 32 * 5)::FLOAT),
        list_transform(range(32), lambda b: (b * 7 + i) % 90)
    FROM range(?) AS r(i)
"""
_PROJECTION = """
    INSERT INTO vocab_projection
    SELECT 1, f.f, s.s, k.k, (hash(f.f, s.s, k.k) % 50000)::INTEGER,
        word(hash(f.f, s.s, k.k)), (s.s * (10 - k.k / 2))::FLOAT
    FROM range(?, ?) AS f(f), (VALUES (1), (-1)) AS s(s), range(10) AS k(k)
    ORDER BY f.f, s.s DESC, k.k
"""
_LABELS = """
    INSERT INTO explanations BY NAME SELECT md5('e' || i) AS explanation_id, 1 AS dictionary_id, i AS feature,
        1 AS harvest_id, 'contexts' AS explainer, $model AS model, $template AS template_sha256,
        sha256('e' || i) AS evidence_sha256, 0 AS seed,
        array_to_string(list_transform(range((9 + hash(i) % 6)::BIGINT),
            lambda k: trim(word(hash(i, k)))), ' ') AS text,
        'ok' AS status, 'input' AS side, 900 AS input_tokens, 20 AS output_tokens, 0.001 AS cost_usd,
        TIMESTAMP '2026-01-01' + to_microseconds(1000 * i) AS created_at
    FROM range($n) AS r(i) WHERE i % 1000 <> 999
"""
_SCORES = """
    INSERT INTO scores BY NAME SELECT md5(s.s || i) AS score_id, 1 AS dictionary_id, i AS feature,
        md5('e' || i) AS explanation_id, 1 AS harvest_id, s.s AS scorer, 'numbers' AS method,
        'report' AS part, $model AS model, $template AS template_sha256, 0 AS seed,
        (hash(i, s.s) % 100000) / 1e5 AS value, 0.1 AS ci_low, 0.9 AS ci_high, 20 AS n, 0 AS n_failed, 'ok' AS status,
        TIMESTAMP '2026-01-02' + to_microseconds(1000 * i + if(s.s = 'simulation', 1, 0)) AS created_at
    FROM range($n) AS r(i), (VALUES ('simulation_random'), ('simulation')) AS s(s) WHERE i % 1000 <> 999
"""
_CALLS = """
    INSERT INTO llm_calls BY NAME SELECT sha256('c' || i) AS request_sha256, 0 AS sample, 'run' AS run_id,
        1 AS dictionary_id, i AS feature, 'explain' AS stage, $model AS model, 'ok' AS status,
        array_to_string(list_transform(range(45),
            lambda k: trim(word(hash(i, k, 1)))), ' ') AS reply,
        900 AS input_tokens, 0 AS cached_tokens, 20 AS output_tokens, 0.001 AS cost_usd, 0.5 AS latency_s,
        1 AS attempts, TIMESTAMP '2026-01-01' + to_microseconds(1000 * i) AS created_at
    FROM range($n) AS r(i) WHERE i % 1000 <> 999
"""
_PREDICTIONS = """
    INSERT INTO predictions SELECT md5('simulation' || i), (1::BIGINT << 40) + i::BIGINT * 20 + k % 20,
        list_transform(range(32), lambda t: if(hash(i, k, t) % 12 = 0, (hash(i, t) % 1000) / 100, 0)::FLOAT),
        list_transform(range(32), lambda t: if(hash(i, k, t, 1) % 12 = 0, hash(i, t, 1) % 11, 0)::FLOAT), 'ok'
    FROM range(0, $n, 10) AS r(i), range(30) AS k(k) WHERE i % 1000 <> 999
"""


# --- making the store ------------------------------------------------------------------------------------------------


def standard_library(limit: int = 4_000_000) -> list[str]:
    """The standard library's text as tokens: words of at most 8 letters, each with the space before it."""
    pieces: list[str] = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in file.parts and "test" not in file.parts:
            pieces += _PIECE.findall(file.read_text(encoding="utf-8", errors="ignore"))
        if len(pieces) >= limit:
            break
    return pieces[:limit]


def make(path: Path, n: int) -> None:
    """Make the whole store at `path`."""
    from autointerp.ask.prompts import load_template
    from autointerp.config import ScoreConfig
    from autointerp.score.simulation import template_of

    begun = time.monotonic()

    def told(what: str) -> None:
        print(f"  {time.monotonic() - begun:6.0f} s  {what}", flush=True)

    with Store.open(path, create=True) as store:
        store.add_corpus("the standard library", {}, "tok", 1, 1)
        store.add_dictionary(
            name="big", model="demo", revision="abc", hookpoint="h.3", architecture="topk", d_in=64, d_out=64, d_sae=n,
            sae_sha256="sae", tokenizer_sha256="tok", config={},
        )  # fmt: skip
        store.add_harvest(1, 1, 10**9, {})
        pieces = standard_library()
        words = sorted(set(pieces))
        told(f"{len(pieces):,} tokens of text, {len(words):,} different ones")
        new = evidence_path_of(path).with_name("new.duckdb")
        make_evidence(new, pieces, words, n, store.store_id, told)
        store.replace_evidence(new)
        with store.transaction() as con:
            con.execute(_FEATURES, [n])
        con = store.con
        spoken = [w for w in words if w.strip().isalpha() and len(w.strip()) > 2]
        con.execute("SET VARIABLE words = ?::VARCHAR[]", [spoken[:: max(1, len(spoken) // 10_000)]])
        con.execute(
            "CREATE TEMP MACRO word(h) AS getvariable('words')[(1 + h % len(getvariable('words'))::UBIGINT)::BIGINT]"
        )
        for low in range(0, n, 100_000):
            with store.transaction():
                con.execute(_PROJECTION, [low, min(n, low + 100_000)])
        told("vocab_projection")
        templates = {
            "explanations": load_template("explain/contexts").sha256,
            "scores": template_of("numbers", None).sha256,
        }
        for table, sql in {"explanations": _LABELS, "scores": _SCORES, "llm_calls": _CALLS}.items():
            values = {"n": n, "model": MODEL}
            if table in templates:
                values["template"] = templates[table]
            with store.transaction():
                con.execute(sql, values)
            told(table)
        with store.transaction():
            con.execute(_PREDICTIONS, {"n": n})
        told("predictions")
        assert ScoreConfig().seed == 0
        store.set_label_choice(1, "contexts", "simulation")
        store.finish_run(store.begin_run("run", {}, {}), "ok", 0)
        con.execute("CHECKPOINT")
    told("done")


def make_evidence(
    new: Path, pieces: list[str], words: list[str], n: int, store_id: str, told: Callable[[str], None]
) -> None:
    number = {word: i for i, word in enumerate(words)}
    blocks = len(pieces) // WINDOW
    n_windows = int(n * WINDOWS_PER_FEATURE) // 64 * 64
    new.unlink(missing_ok=True)
    with connect() as con:
        con.execute(f"ATTACH '{new}' AS building")
        con.execute("USE building")
        con.execute(sql_file("evidence_schema.sql"))
        con.execute("USE memory")
        con.execute("CREATE TABLE text (block INTEGER, ids INTEGER[], tokens VARCHAR[])")
        for low in range(0, blocks, 2048):
            chosen = [pieces[b * WINDOW : (b + 1) * WINDOW] for b in range(low, min(blocks, low + 2048))]
            con.execute(
                "INSERT INTO text SELECT unnest(?::INTEGER[]), unnest(?::INTEGER[][]), unnest(?::VARCHAR[][])",
                [list(range(low, low + len(chosen))), [[number[p] for p in c] for c in chosen], chosen],
            )
        for low in range(0, n_windows, 2**16):
            con.execute(_WINDOWS, {"low": low, "high": min(n_windows, low + 2**16), "blocks": blocks})
        told(f"{n_windows:,} windows")
        step = 25_000
        for low in range(0, n, step):
            con.execute(_CONTEXTS, {"low": low, "high": min(n, low + step), "groups": n_windows // 64})
        told("contexts")
        con.execute(
            "INSERT INTO building.harvest_info SELECT 1, 1, 1, ?, 'sae', count(*), now()::TIMESTAMP "
            "FROM building.context_rows",
            [store_id],
        )
        con.execute("CHECKPOINT building")
        con.execute("DETACH building")


# --- copies to go on with --------------------------------------------------------------------------------------------


@contextmanager
def without(path: Path, table: str, n: int, name: str = "resumed") -> Iterator[Path]:
    """A copy of the store without the last rows of `table` and all that depends on them; deleted afterwards."""
    copy = path.with_name(f"{name}.duckdb")
    remove(copy)
    shutil.copyfile(path, copy)
    os.link(evidence_path_of(path), evidence_path_of(copy))
    try:
        with connect(copy) as con:
            for victim in ("predictions", "scores", "explanations", "llm_calls"):
                if victim == "predictions" or (table == "scores" and victim != "scores"):
                    continue
                if table:
                    con.execute(f"DELETE FROM {victim} WHERE feature >= {n - LAST}")
            con.execute("CHECKPOINT")
        yield copy
    finally:
        remove(copy)


def remove(path: Path) -> None:
    for ending in ("", ".wal", ".ledger"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    evidence_path_of(path).unlink(missing_ok=True)
    for snapshot in path.parent.glob(f"{path.stem}.snapshot.duckdb*"):  # of a command that was stopped
        snapshot.unlink()


# --- measuring -------------------------------------------------------------------------------------------------------


class Endpoint(ThreadingHTTPServer):
    """Gives every request the same answer, and notes when the first request came that is not a probe."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.first: float | None = None
        self.came = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: a command that was stopped does not wait for its answers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Answer(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/chat/completions"):  # an endpoint for chat alone
            self.send_error(404)
            return
        if len(body) > 1500:
            if not self.server.came.is_set():
                self.server.first = time.monotonic()
            self.server.came.set()
            time.sleep(1)
        message = {"role": "assistant", "content": "nothing to be said"}
        reply = {
            "id": "x", "object": "chat.completion", "created": 0, "model": MODEL,
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }  # fmt: skip
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


CPU = [0.0]
"""CPU seconds of the process that ended last."""


def finished(process: subprocess.Popen[str]) -> float:
    """Wait for the process to end; return its peak memory in MiB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    CPU[0] = usage.ru_utime + usage.ru_stime
    return usage.ru_maxrss / 1024


def row(what: str, seconds: float | None, memory: float | None, note: str = "") -> None:
    s = "        " if seconds is None else f"{seconds:8.3f}"
    m = "       " if memory is None else f"{memory:7.0f}"
    cpu = "       " if memory is None else f"{CPU[0]:7.2f}"
    print(f"| {what:58} | {s} | {cpu} | {m} | {note.strip()[:90]}", flush=True)


def command(what: str, arguments: list[str], folder: Path) -> None:
    """Measure the seconds of a whole `autointerp` command, from the start of Python to its end."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "autointerp", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=folder, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    out = process.stdout.read()
    memory = finished(process)
    seconds = time.monotonic() - begun
    lines = [line for line in out.splitlines() if line.strip()]
    row(what, seconds, memory, (lines[-1] if lines else "") if process.returncode in (0, None) else out[-300:])


def until_request(what: str, arguments: list[str], folder: Path, endpoint: Endpoint) -> None:
    """Measure the seconds from the start of Python to the first request; the command is then stopped."""
    endpoint.first = None
    endpoint.came.clear()
    begun = time.monotonic()
    with open(folder / "command.log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "autointerp", *arguments], stdout=log, stderr=log, cwd=folder, env=environment(),
            text=True,
        )  # fmt: skip
        while not endpoint.came.wait(0.05) and process.poll() is None and time.monotonic() - begun < 300:
            pass
        time.sleep(2)
        running = process.poll() is None
        if running:
            process.kill()
            memory = finished(process)
        else:
            memory = None
        log.seek(0)
        note = "" if endpoint.first else log.read()[-300:]
    row(what, None if endpoint.first is None else endpoint.first - begun, memory, note)


def environment() -> dict[str, str]:
    return {**os.environ, "AUTOINTERP_STORE": "", "BENCH_KEY": "key"}


def config_file(folder: Path, url: str) -> Path:
    file = folder / "bench.toml"
    file.write_text(
        f"""
[model]
name = "demo"
[explain]
explainer = "contexts"
model = "{MODEL}"
base_url = "{url}"
reply = "text"
api_key_env = "BENCH_KEY"
[score]
method = "numbers"
model = "{MODEL}"
base_url = "{url}"
api_key_env = "BENCH_KEY"
"""
    )
    return file


QUERIES = {
    "labels of one feature": "SELECT * FROM labels WHERE dictionary_id = 1 AND feature = {f}",
    "labels of one feature, by number alone": "SELECT * FROM labels WHERE feature = {f}",
    "contexts of one feature": "SELECT * FROM contexts WHERE dictionary_id = 1 AND feature = {f}",
    "top contexts of one feature": "SELECT text, max_activation FROM contexts WHERE feature = {f} AND kind = 'top' "
    "AND split = 'explain' ORDER BY rank",
    "explanations of one feature": "SELECT * FROM explanations WHERE feature = {f}",
    "scores of one feature": "SELECT * FROM scores WHERE feature = {f}",
    "predictions of one score": "SELECT p.* FROM predictions AS p JOIN scores AS s USING (score_id) "
    "WHERE s.feature = {f0} AND s.scorer = 'simulation'",
    "promoted tokens of one feature": "SELECT * FROM vocab_projection WHERE feature = {f}",
    "label_changes of one feature": "SELECT * FROM label_changes WHERE feature = {f}",
    "scan: label ILIKE '%word%'": "SELECT feature, label FROM labels WHERE label ILIKE '%iterator%'",
    "scan: best 20 labels": "SELECT feature, label, score FROM labels ORDER BY score DESC NULLS LAST LIMIT 20",
    "scan: mean score by status": "SELECT status, count(*), avg(score) FROM labels GROUP BY status",
    "scan: label_changes": "SELECT * FROM label_changes LIMIT 20",
    "scan: explainer_leaderboard": "SELECT * FROM explainer_leaderboard",
    "scan: spend_by_stage": "SELECT * FROM spend_by_stage",
    "scan: contexts that hold a word (all 20M)": "SELECT count(*) FROM windows WHERE list_contains(tokens, ' iterato')",
}


def step_queries(path: Path) -> None:
    """Run every query on one open connection, locked down as `autointerp query` does it."""
    from autointerp.store import query as q
    from autointerp.store.safety.reading import connect_for_reading

    con = connect_for_reading(path)
    q._lock_down(con, path, False, "2GB", None)
    for what, sql in QUERIES.items():
        took = []
        for feature in (123_456, 777_777, 31_415):
            begun = time.monotonic()
            con.execute(sql.format(f=feature, f0=feature // 10 * 10)).fetchall()
            took.append(time.monotonic() - begun)
        row(what, statistics.median(took), None, f"slowest {max(took):.3f}")


def step_reads(path: Path) -> None:
    """Run the reads that the program itself makes."""
    from autointerp.store.run_progress import run_progress
    from autointerp.store.selection import Selection

    with Store.open(path, read_only=True) as store:

        def timed(what: str, call: Callable[[], Any]) -> None:
            begun = time.monotonic()
            result = call()
            size = f"{len(result):,}" if hasattr(result, "__len__") else ""
            row(what, time.monotonic() - begun, None, size)

        timed("feature_page", lambda: store.feature_page(1, 123_456))
        block = list(range(500_000, 500_064))
        timed("feature_evidence of 64 features", lambda: store.feature_evidence(1, 1, block, 10))
        timed("feature_evidence of 64 features, again", lambda: store.feature_evidence(1, 1, block, 10))
        scattered = list(range(5, 1_000_000, 15_625))
        timed("feature_evidence of 64 scattered features", lambda: store.feature_evidence(1, 1, scattered, 10))
        timed("explanations_of 64 features", lambda: store.explanations_of(1, block))
        timed("search_labels", lambda: store.search_labels("iterator encoding"))
        timed("best_labels", lambda: store.best_labels(1, 20))
        timed("label_summary", lambda: store.label_summary(1))
        timed("activation_histograms", lambda: store.activation_histograms(1, 12))
        timed("status", store.status)
        timed("run_progress", lambda: run_progress(store))
        timed("find_call, the first", lambda: store.find_call("0" * 64, 0))
        timed("find_call, a miss", lambda: store.find_call("1" * 64, 0))
        for name, chosen in {
            "all": Selection(), "--where score < 0.1": Selection(where="score < 0.1"),
            "--where on density": Selection(where="density > 0.005"),
            "--order density": Selection(order="density"), "--order score": Selection(order="score"),
            "--order random": Selection(order="random"), "--limit 100": Selection(limit=100),
            "--features 0-99": Selection(features="0-99"),
            "--features 0-99 --where score < 0.5": Selection(features="0-99", where="score < 0.5"),
        }.items():  # fmt: skip
            timed(f"selected_features {name}", lambda chosen=chosen: store.selected_features(1, chosen))


def step_open(path: Path, read_only: bool) -> None:
    begun = time.monotonic()
    store = Store.open(path, read_only=read_only)
    opened = time.monotonic() - begun
    begun = time.monotonic()
    store.close()
    row("  open alone" + (" (read-only)" if read_only else ""), opened, None, f"close {time.monotonic() - begun:.3f}")


def step_commits(path: Path) -> None:
    """Commit groups of 50 calls and 50 labels to a copy, as a run writes them."""
    sys.path.insert(0, str(Path(__file__).parent))
    from bench_snapshot import group

    with Store.open(path) as store:
        took, lines = [], []
        for start in range(10_000_000, 10_000_000 + 50 * 60, 50):
            calls, labels = group(start)
            begun = time.monotonic()
            store.insert_group(calls, labels, [])
            took.append(time.monotonic() - begun)
        if hasattr(store, "_ledger_line"):
            for _ in range(10):
                begun = time.monotonic()
                store._ledger_line()
                lines.append(time.monotonic() - begun)
        row(
            "commit of 50 calls and 50 labels",
            statistics.median(took),
            None,
            f"slowest {max(took):.3f}, first {took[0]:.3f}",
        )
        if lines:
            row("  of it: counting rows anew", statistics.median(lines), None)


STEPS: dict[str, Callable[[Path], None]] = {
    "open": lambda p: step_open(p, False),
    "open-ro": lambda p: step_open(p, True),
    "queries": step_queries,
    "reads": step_reads,
    "commits": step_commits,
}


def in_process(name: str, path: Path) -> None:
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, str(path.parent), "--inside", name, "--store", str(path)],
                               env=environment(), text=True)  # fmt: skip
    memory = finished(process)
    row(f"{name}: the whole process", time.monotonic() - begun, memory)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=Path("bench-store"))
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--step", nargs="*", default=[], help="only these")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside == "make":  # apart, as a child's peak memory counts from its parent's
        make(given.store, given.features)
        return
    if given.inside:
        STEPS[given.inside](given.store)
        return
    folder, n = given.folder.resolve(), given.features
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bench{n}.duckdb"
    if not path.exists():
        print(f"making {path}")
        unfinished = folder / "unfinished.duckdb"
        remove(unfinished)
        making = [sys.executable, __file__, "--inside", "make", "--store", str(unfinished), "--features", str(n)]
        subprocess.run(making, check=True)
        os.rename(evidence_path_of(unfinished), evidence_path_of(path))
        unfinished.with_name(unfinished.name + ".ledger").rename(path.with_name(path.name + ".ledger"))
        os.rename(unfinished, path)
    sizes = ", ".join(f"{f.name} {f.stat().st_size / 2**30:.2f} GiB" for f in (path, evidence_path_of(path)))
    print(f"{sizes}\n")
    endpoint = Endpoint()
    config = ["-c", str(config_file(folder, endpoint.url))]
    steps: dict[str, Callable[[], None]] = {}

    def step(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
        def kept(call: Callable[[], None]) -> Callable[[], None]:
            steps[name] = call
            return call

        return kept

    @step("open")
    def _() -> None:
        command("python, and the import of the command line: --help", ["--help"], folder)
        in_process("open", path)
        in_process("open-ro", path)

    @step("read")
    def _() -> None:
        store = ["--store", str(path)]
        command("autointerp show 123456", ["show", "123456", *store], folder)
        command(
            "autointerp query, a keyed one", ["query", "SELECT label FROM labels WHERE feature = 5", *store], folder
        )
        command("autointerp search iterator", ["search", "iterator", *store], folder)
        command("autointerp status", ["status", *store], folder)

    @step("queries")
    def _() -> None:
        in_process("queries", path)

    @step("reads")
    def _() -> None:
        in_process("reads", path)

    @step("commits")
    def _() -> None:
        with without(path, "", n) as copy:
            in_process("commits", copy)

    @step("done")
    def _() -> None:
        with without(path, "", n) as copy:
            command("autointerp explain, all is done", ["explain", "--store", str(copy), *config], folder)
            command("autointerp score, all is done", ["score", "--store", str(copy), *config], folder)

    @step("explain")
    def _() -> None:
        with without(path, "explanations", n) as copy:
            until_request(f"autointerp explain, {LAST:,} left: until the first request",
                          ["explain", "--store", str(copy), *config], folder, endpoint)  # fmt: skip

    @step("score")
    def _() -> None:
        with without(path, "scores", n) as copy:
            until_request(f"autointerp score, {LAST:,} left: until the first request",
                          ["score", "--store", str(copy), *config], folder, endpoint)  # fmt: skip

    @step("fresh")
    def _() -> None:
        other = ["--explainer", "combined"]
        with without(path, "", n) as copy:
            until_request("autointerp explain, all to do: until the first request",
                          ["explain", "--store", str(copy), *config, *other], folder, endpoint)  # fmt: skip

    @step("fresh-score")
    def _() -> None:
        with without(path, "", n) as copy:
            with connect(copy) as con:
                con.execute("UPDATE scores SET model = 'another'")
            until_request("autointerp score, all to do: until the first request",
                          ["score", "--store", str(copy), *config], folder, endpoint)  # fmt: skip

    @step("patterns")
    def _() -> None:
        some = ["--explainer", "patterns", "--features", f"{n - LAST}-{n - 1}"]
        with without(path, "", n) as copy:
            command(
                f"explain with patterns, {LAST:,} features", ["explain", "--store", str(copy), *config, *some], folder
            )
            file = config_file(folder, endpoint.url)
            file.write_text(file.read_text().replace('method = "numbers"', ""))
            command("score them by their rules", ["score", "--store", str(copy), *config, *some], folder)
            config_file(folder, endpoint.url)

    print(f"| {'step':58} |  seconds | CPU s   | MiB max |\n|{'-' * 60}|----------|---------|---------|")
    for name, call in steps.items():
        if not given.step or name in given.step:
            call()


if __name__ == "__main__":
    main()
