"""Explaining and scoring beside Delphi: seconds, calls and tokens per feature at a fixed latency.

    scripts/bench_label_calls.py --workload WORK --peers-bench DIR --peers-python PY [--features 20] [--latency-ms 200]

WORK is what the peers' make_workload.py made, DIR the folder with their harvest.py and label_calls.py, PY an
interpreter with the peers installed. Both sides explain the same number of features by one call each and score them by
detection and fuzzing on 50 activating and 50 silent contexts, so their intervals are equally wide; the server is the
same (this file with --serve, in the place of the peers' fake_llm.py), answers every call after the same time, and
counts calls, characters and calls in flight. Harvests are made before the clock starts.

Without the peers' options only our own rows are measured.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONTEXTS = 25
"""score.contexts: detection and fuzzing take twice as many activating and as many silent contexts."""
COUNTED = re.compile(r"number of excerpts: (\d+)")


# --- the server ------------------------------------------------------------------------------------------------------


def answer(body: str) -> str:
    """What an explainer or a judge would say; a judge's answers are a hash of the question."""
    if "[EXPLANATION]" in body:
        return "[EXPLANATION]: common words"
    asked = COUNTED.findall(body)
    if asked or "You study one feature" not in body:
        bits = int(hashlib.sha256(body.encode()).hexdigest(), 16)
        return json.dumps([bits >> i & 1 for i in range(int(asked[-1]) if asked else 5)])
    return "LABEL: common words"


async def serve(latency_s: float) -> None:
    """Prints its port, counts, and ends with its standard input. GET any path: the counts."""
    counts = {"calls": 0, "in_flight": 0, "peak_in_flight": 0, "characters": 0}

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while first := await reader.readline():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int((head.partition("content-length:")[2] or "0").split()[0])
                body = (await reader.readexactly(length)).decode()
                data = json.dumps(counts if first.startswith(b"GET") else await complete(body)).encode()
                start = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                writer.write(start % len(data) + data)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        writer.close()

    async def complete(body: str) -> dict[str, Any]:
        text = "".join(message["content"] for message in json.loads(body)["messages"])
        counts["calls"] += 1
        counts["characters"] += len(text)
        counts["in_flight"] += 1
        counts["peak_in_flight"] = max(counts["peak_in_flight"], counts["in_flight"])
        await asyncio.sleep(latency_s)
        counts["in_flight"] -= 1
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer(text)}}
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": 8, "total_tokens": len(text) // 4 + 8}
        fixed = {"id": "0", "object": "chat.completion", "created": 0, "model": "fake"}
        return {**fixed, "choices": [choice], "usage": usage}

    server = await asyncio.start_server(one, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    if "BENCH_COUNTS" in os.environ:
        Path(os.environ["BENCH_COUNTS"]).write_text(json.dumps(counts))
    os._exit(0)  # at once, whatever connections are open


@contextmanager
def server(latency_ms: float) -> Iterator[str]:
    command = [sys.executable, __file__, "--serve", str(latency_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"


# --- ours ------------------------------------------------------------------------------------------------------------


def make_store(workload: Path, path: Path, tokens: int) -> None:
    """Harvest of the workload's tokens with contexts enough for 50 + 50 of every split."""
    import numpy as np
    from bench_harvest import HOOK, load, work_units

    from autointerp.config import HarvestConfig
    from autointerp.harvest.merge import CorpusFacts, bounds_of, merge
    from autointerp.harvest.shards import HarvestFolder
    from autointerp.harvest.target import Target
    from autointerp.harvest.text_pass import harvest, unit_settings
    from autointerp.model.hooks import Hookpoint
    from autointerp.store.store import Store

    loaded, sae, text = load(workload, None)
    ids = np.load(workload / "tokens.npy", mmap_mode="r")
    config = HarvestConfig(top_contexts=30, sampled_contexts=60, negatives=20)
    folder = HarvestFolder(path.parent / "work", {"bench": 1}, bounds_of(config))
    units = work_units(ids, tokens, "windows")
    settings = unit_settings(loaded, text, config, 2048, ())
    harvest(loaded, [Target(Hookpoint.parse(HOOK), sae, folder)], units, settings)
    with Store.open(path, create=True) as store:
        dictionary_id = store.add_dictionary(
            name="bench", model="m", revision="r", hookpoint=HOOK, architecture="topk", d_in=sae.d_in,
            d_out=sae.d_out, d_sae=sae.d_sae, sae_sha256="s", tokenizer_sha256="t", config={},
        )  # fmt: skip
        merge(store, dictionary_id, folder, sae, text, config, CorpusFacts("bench", {}, "t"))


def busy_features(path: Path, n: int) -> str:
    """The first features with 50 activating and 50 silent contexts on the report split, as a selection."""
    from autointerp.store.store import Store

    with Store.open(path, read_only=True) as store:
        rows = store.rows(
            "SELECT feature FROM evidence.context_rows WHERE split = 'report' GROUP BY feature "
            "HAVING count(*) FILTER (kind = 'sampled') >= 50 AND count(*) FILTER (kind = 'negative') >= 50 "
            "ORDER BY feature LIMIT ?",
            [n],
        )
    if len(rows) < n:
        sys.exit(f"only {len(rows)} features have contexts enough: harvest more tokens, or ask for fewer features")
    return ",".join(str(feature) for (feature,) in rows)


def ours(store_path: Path, features: str, latency_ms: float, in_flight: int, per_call: int) -> dict[str, float]:
    from autointerp.ask.job import Job
    from autointerp.config import BudgetConfig, ExplainConfig, LlmConfig, ScoreConfig
    from autointerp.explain import explaining
    from autointerp.llm.budget import Budget
    from autointerp.score import scoring
    from autointerp.store import Selection, Store

    os.environ["OPENAI_API_KEY"] = "none"
    n = features.count(",") + 1
    with tempfile.TemporaryDirectory() as temporary, server(latency_ms) as url:
        copy = Path(temporary) / "x.duckdb"
        for path in store_path.parent.glob("x.*duckdb*"):
            shutil.copy(path, copy.parent / path.name)
        endpoint = {"model": "fake", "base_url": url}
        llm = LlmConfig(requests_per_minute=1e6, max_connections=in_flight)
        with Store.open(copy) as store:
            job = Job(store, 1, 1, store.begin_run("bench", {}, {}), Selection(features=features), llm,
                      Budget(BudgetConfig()))  # fmt: skip
            explain = ExplainConfig(explainer="contexts", reply="text", **endpoint)
            score = ScoreConfig(
                scorers=("detection", "fuzzing"), contexts=CONTEXTS, examples_per_call=per_call, **endpoint
            )
            wall, cpu = time.perf_counter(), time.process_time()
            asyncio.run(explaining.explain(job, explain))
            asyncio.run(scoring.score(job, "contexts", score))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            widths = store.rows("SELECT avg(ci_high - ci_low), avg(n) FROM scores WHERE scorer = 'detection'")[0]
        counts = json.load(urllib.request.urlopen(url))
    return {
        "s_per_feature": wall / n, "cpu_s_per_feature": cpu / n, "calls_per_feature": counts["calls"] / n,
        "input_tokens_per_feature": counts["characters"] / 4 / n, "peak_in_flight": counts["peak_in_flight"],
        "contexts": widths[1], "mean_width": widths[0],
    }  # fmt: skip


# --- theirs ----------------------------------------------------------------------------------------------------------


def delphi(args: argparse.Namespace, bench: Path, out: Path, concurrency: int) -> dict[str, float]:
    figures = bench / "counts.json"
    figures.unlink(missing_ok=True)
    done = subprocess.run(
        [args.peers_python, "-B", "label_calls.py", "delphi", "--workload", str(args.workload), "--out", str(out),
         "--latents", str(args.features), "--latency-ms", str(args.latency_ms), "--concurrency", str(concurrency)],
        capture_output=True, text=True, cwd=bench,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "BENCH_COUNTS": str(figures)},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"delphi failed:\n{done.stderr[-2000:]}")
    result = json.loads(lines[-1].removeprefix("RESULT "))
    characters = json.loads(figures.read_text())["characters"]
    return {
        "s_per_feature": result["s_per_latent"], "cpu_s_per_feature": result["cpu_s_per_latent"],
        "calls_per_feature": result["calls_per_latent"],
        "input_tokens_per_feature": characters / 4 / result["latents"], "peak_in_flight": result["peak_in_flight"],
    }  # fmt: skip


def prepared_bench(args: argparse.Namespace, folder: Path) -> Path:
    """The peers' scripts with our server in the place of theirs."""
    bench = folder / "bench"
    shutil.copytree(args.peers_bench, bench)
    command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
    (bench / "fake_llm.py").write_text(f"import os, sys\nos.execv({sys.executable!r}, {command!r} + [sys.argv[1]])\n")
    return bench


def table(rows: dict[str, dict[str, float]]) -> str:
    names = ("s_per_feature", "cpu_s_per_feature", "calls_per_feature", "input_tokens_per_feature", "peak_in_flight")
    heads = ("s", "CPU s", "calls", "input tokens", "in flight")
    lines = [f"{'per feature':44s}" + "".join(f"{head:>14s}" for head in heads) + f"{'s / first':>12s}"]
    first = next(iter(rows.values()))["s_per_feature"]
    for side, row in rows.items():
        figures = "".join(f"{row[name]:14.3f}" if row[name] < 10 else f"{row[name]:14,.0f}" for name in names)
        lines.append(f"{side:44s}{figures}{row['s_per_feature'] / first:12.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path)
    parser.add_argument("--peers-bench", type=Path)
    parser.add_argument("--peers-python")
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--latency-ms", type=float, default=200.0)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        asyncio.run(serve(args.serve / 1000))
        return
    if args.workload is None:
        parser.error("--workload is missing")
    args.workload = args.workload.resolve()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.peers_python:
            bench = prepared_bench(args, folder)
            subprocess.run(
                [args.peers_python, "-B", "harvest.py", "delphi", "--workload", str(args.workload), "--out",
                 str(folder / "out"), "--tokens", str(args.tokens)],
                cwd=bench, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            for concurrency in (1, 10):
                name = f"delphi, {concurrency} latents at once"
                rows[name] = delphi(args, bench, folder / "out", concurrency)
        store = folder / "x.duckdb"
        make_store(args.workload, store, args.tokens)
        features = busy_features(store, args.features)
        for in_flight, per_call in ((20, 5), (64, 5), (64, 10)):
            name = f"autointerp, {in_flight} in flight, {per_call} contexts a call"
            rows[name] = ours(store, features, args.latency_ms, in_flight, per_call)
    print(table(rows))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
