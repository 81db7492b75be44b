"""Does a bulk run as a user would: a real dictionary, an endpoint that misbehaves, a kill in the middle, a budget.

    python scripts/bulk_run.py --out DIR [--features 5000] [--rate 0.05] [--max-usd 2] [--seed 1]

It trains an SAE with that many features on the demo model and harvests it (both are kept in DIR for the next time).
Then it labels and scores every feature through a loopback endpoint in a process of its own
(tests/support/fault_server.py), which spoils a share of its answers by a seed, and keeps fsynced books of what it was
asked and what the bill would be. Instead of a language model, a plain reader of the prompts answers
(tests/support/reading_brain.py). The steps are: a forecast; a run that is watched from outside and killed (SIGKILL)
after a third; the same command again, which its budget stops; again, to the end; once more, with nothing left to do.
The last lines compare the books with the store."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fault_server import Entry, FaultServer

from autointerp.resources import data_folder

CONFIG = """\
[model]
name = {model}

[corpus]
source = "stdlib"
max_tokens = {tokens}

[[sae]]
name = "bulk"
hookpoint = "model.layers.2"
architecture = "topk"
d_sae = {features}
k = 16

[train]
tokens = {tokens}
lr = 3e-3

[explain]
explainer = "contexts"
model = "reader"
base_url = "{url}"

[score]
scorers = ["detection"]
examples_per_call = 10
model = "reader"
base_url = "{url}"

[llm]
requests_per_minute = 60000
timeout = 5

[llm.prices."reader"]
input = 0.15
cached_input = 0.075
output = 0.60

[budget]
max_usd = {max_usd}

[store]
path = "bulk.duckdb"
snapshot_seconds = 10
"""
PORT = 18_431
"""Fixed, so that the endpoint's address in the configuration is the same every time."""


class Project:
    def __init__(self, out: Path, args: argparse.Namespace) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.folder = out
        model = json.dumps(str(data_folder() / "demo_model"))
        text = CONFIG.format(model=model, tokens=args.tokens, features=args.features, max_usd=args.max_usd,
                             url=f"http://127.0.0.1:{PORT}/v1")  # fmt: skip
        (out / "autointerp.toml").write_text(text, encoding="utf-8")

    def command(self, *words: str) -> subprocess.Popen[str]:
        say(f"\n$ autointerp {' '.join(words)}")
        return subprocess.Popen(
            [sys.executable, "-m", "autointerp", *words], cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *words: str, shown: int = 12) -> int:
        """Run a command to its end and print the last lines of its output."""
        began = time.monotonic()
        process = self.command(*words)
        output, _ = process.communicate()
        lines = output.splitlines()
        for line in (["  ..."] if len(lines) > shown else []) + lines[-shown:]:
            say(line)
        say(f"[exit code {process.returncode}, {time.monotonic() - began:.0f} s]")
        return process.returncode

    def value(self, sql: str) -> list[dict[str, object]]:
        done = subprocess.run(
            [sys.executable, "-m", "autointerp", "query", sql, "--format", "json"],
            cwd=self.folder, text=True, capture_output=True, check=True,
        )  # fmt: skip
        rows: list[dict[str, object]] = json.loads(done.stdout)
        return rows


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def killed_run(project: Project, server: FaultServer, calls: int) -> tuple[float, int]:
    """Run `autointerp run`, watch it from outside, and kill it once the endpoint has seen that many requests. Returns
    when that was (time.time()) and the exit code."""
    began = time.monotonic()
    process = project.command("run")
    lines: list[str] = []
    assert process.stdout is not None
    reading = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reading.start()
    looked = False
    while (seen := _lines(server.ledger)) < 2 * calls:
        if process.poll() is not None:
            raise SystemExit("".join(lines) + f"\nthe run ended by itself (exit code {process.returncode})")
        if not looked and seen > 1.5 * calls:
            looked = True
            project.run("status")
            project.run("query", "SELECT status, count(*) AS features, avg(score) AS mean_score FROM labels GROUP BY 1")
        time.sleep(0.2)
    at = time.time()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reading.join()
    for line in lines[-5:]:
        say(line.rstrip())
    say(f"[killed after {time.monotonic() - began:.0f} s]")
    return at, process.returncode


def _lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def compare(project: Project, entries: Sequence[Entry], killed_at: float) -> bool:
    """Print what the books say beside what the store says. Returns whether they agree."""
    usable = (None, "garbage", "empty", "cut", "refusal")
    answered: dict[str, float] = {}
    again: dict[str, float] = {}
    """For each request that was asked again although it had its answer: when that first happened."""
    for entry in entries:
        if entry.sha256 in answered:
            again.setdefault(entry.sha256, entry.arrived)
        elif entry.answered and entry.fault in usable:
            answered[entry.sha256] = entry.arrived
    in_flight = [sha for sha, asked in again.items() if answered[sha] < killed_at < asked]
    faults = Counter(e.fault for e in entries if e.fault)
    billed = [sum(e.input_tokens for e in entries), sum(e.output_tokens for e in entries)]
    (booked,) = project.value(
        "SELECT count(*) AS calls, sum(attempts) AS attempts, sum(input_tokens) AS input, "
        "sum(output_tokens) AS output, sum(cost_usd) AS usd FROM llm_calls"
    )
    (features,) = project.value(
        "SELECT count(*) AS features, count(*) FILTER (label IS NOT NULL) AS labelled, "
        "count(*) FILTER (score IS NOT NULL) AS scored, avg(score) AS mean FROM labels"
    )
    twice = project.value(
        "SELECT count(*) AS n FROM (SELECT feature, explainer, model FROM explanations WHERE status = 'ok' "
        "GROUP BY ALL HAVING count(*) > 1)"
    )[0]["n"]
    unique = len({e.sha256 for e in entries})
    say(f"\nthe endpoint's books: {len(entries):,} requests, {unique:,} different, {sum(faults.values()):,} spoiled")
    say("  " + ", ".join(f"{n} {kind}" for kind, n in faults.most_common()))
    say(f"  on the bill: {billed[0]:,} + {billed[1]:,} tokens")
    say(f"the store: {booked['calls']:,} calls, {booked['attempts']:,} attempts, {booked['input']:,} + "
        f"{booked['output']:,} tokens booked, ${booked['usd']:.4f}")  # fmt: skip
    say(f"  {features['features']:,} features, {features['labelled']:,} labelled, {features['scored']:,} scored, mean "
        f"{features['mean']:.3f}; labels made twice: {twice}")  # fmt: skip
    say(f"asked again though answered: {len(again)}, of these in flight at the kill: {len(in_flight)}")
    return len(again) == len(in_flight) <= 64 and twice == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--max-usd", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    project = Project(args.out, args)
    if not (args.out / "bulk.duckdb").exists():
        project.run("train")
        project.run("harvest")
    ledger = args.out / "endpoint.jsonl"
    ledger.unlink(missing_ok=True)
    server = FaultServer(
        ledger, brain="support.reading_brain:reader", seed=args.seed, rate=args.rate, latency=args.latency, port=PORT
    )
    with server:
        ledger.touch()
        project.run("run", "--dry-run")
        killed_at, _ = killed_run(project, server, calls=args.features * 5 // 3)
        codes = []
        while len(codes) < 20 and (not codes or codes[-1] == 4):  # its budget stops it; the next night's is new
            codes.append(project.run("run"))
        project.run("status")
        before = len(server.entries())
        codes.append(project.run("run"))
        idle = len(server.entries()) - before
        agree = compare(project, server.entries(), killed_at)
    say(f"exit codes {codes}; requests of the last run, which had nothing to do: {idle}")
    project.run(
        "query", "SELECT feature, label, score FROM labels WHERE score IS NOT NULL ORDER BY hash(feature) LIMIT 12"
    )
    if not agree or idle:
        raise SystemExit("books and store do not agree")


if __name__ == "__main__":
    main()
