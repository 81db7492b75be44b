"""Runs `autointerp run` many times against an endpoint that misbehaves, with kills, restarts, budgets and deadlines.
After every run the store is compared with the endpoint's books; the exit code is 1 if they disagree.

    python scripts/soak.py [--minutes 10] [--seed 0] [--rate 0.05,0.3] [--kill-every 8] [--keep DIR]

A round is one seed's labels and scores on a store of planted features. Commands are started, stopped and started again
under faults until one ends by itself; then one runs without faults. `--kill-every` is the mean number of seconds
between SIGKILLs of a command, 0 for none. Waits between attempts are shortened unless --real-waits is given.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from support.fault_server import PASSING, WORDS, FaultServer  # noqa: E402
from support.known_words import WORDS as FEATURES  # noqa: E402
from support.known_words import planted_store  # noqa: E402
from support.ledger_invariants import (  # noqa: E402
    LABELS,
    SCORES,
    Row,
    billed,
    booked,
    lost,
    paid_again,
    rows,
    twice,
    underbooked,
    unrecorded,
    zeros_for_failures,
)

CHILD = """
import sys
sys.modules["torch"] = None  # a machine that only labels
if {quick}:
    from autointerp.llm import client, limits, retry
    waits, pauses = retry.RetryPolicy(0.05, 0.1, 0.5), limits.PausePolicy(first_s=0.1, longest_s=1.0)
    client.RetryPolicy, limits.PausePolicy = lambda: waits, lambda: pauses
from autointerp.cli.app import main
main(sys.argv[1:])
"""
CONFIG = """
[store]
path = "soak.duckdb"
snapshot_seconds = 5
[[sae]]
name = "planted"
hookpoint = "h"
[explain]
explainer = "combined"
model = "test-model"
base_url = "{url}"
seed = {seed}
[score]
scorers = ["simulation", "detection", "fuzzing"]
model = "test-model"
base_url = "{url}"
contexts = 6
seed = {seed}
[llm]
requests_per_minute = 600000
max_connections = {connections}
timeout = 5.0
attempts = 6
[budget]
{budget}
"""
COMMIT_S = 10.0
"""Longest time from an answer to its commit, on a loaded machine."""
WIRE_S = 2.0
"""Longest time from the line in the server's ledger to the client."""
LONGEST_S = 240.0
"""A command that takes longer is taken to hang."""


@dataclass
class Round:
    number: int
    rate: float
    commands: int = 0
    kills: int = 0
    restarts: int = 0
    ends: Counter[int] = field(default_factory=Counter)
    requests: int = 0
    faults: int = 0
    unwritten: int = 0
    """Answers that no command had written down when it ended."""
    seconds: float = 0.0


class Soak:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.options, self.folder = options, folder
        self.rng = random.Random(options.seed)
        self.store = folder / "soak.duckdb"
        planted_store(self.store).close()
        self.ledger = folder / "server.jsonl"
        self.violations: list[str] = []
        self.before: list[Row] = []
        self.lost_numbers: set[int] = set()
        """Requests whose client was killed before it could record them."""
        self.explained: set[tuple[str, int]] = set()
        """(request, number of the end) of answers that a command's end left unwritten; the next command may ask for
        them again."""
        self.rounds: list[Round] = []
        self.server = FaultServer(self.ledger, latency=0.01)

    def run(self) -> None:
        until = time.monotonic() + 60 * self.options.minutes
        with self.server:
            while time.monotonic() < until and not self.violations:
                self.round()
                print(self.line(self.rounds[-1]), flush=True)

    def round(self) -> None:
        low, high = self.options.rate
        now = Round(len(self.rounds), self.rng.uniform(low, high))
        self.rounds.append(now)
        begun, known = time.monotonic(), len(self.server.entries())
        lasting = self.rng.choice([0.0, 0.0, 0.03])
        plan = {
            "seed": self.options.seed * 1000 + now.number, "rate": now.rate, "lasting": lasting,
            "kinds": {**PASSING, **WORDS}, "retry_after": 0.2,
        }  # fmt: skip
        self.server.renew(self.ledger, 0.01, **plan)
        for attempt in range(30):
            code = self.command(now, disturbed=True, generous=attempt > 6)
            if code in (0, 6) or self.violations:
                break
        self.server.renew(self.ledger, 0.0)
        if not self.violations:
            code = self.command(now, disturbed=False, generous=True)
            self.finished(now, code)
        entries = self.server.entries()[known:]
        now.requests, now.faults = len(entries), sum(e.fault is not None for e in entries)
        now.seconds = time.monotonic() - begun

    def command(self, now: Round, disturbed: bool, generous: bool) -> int:
        """Run `autointerp run` once and return its exit code. It may be killed, and its server may be restarted."""
        stop = self.rng.choice(["none", "none", "budget", "deadline"]) if not generous else "none"
        budget = f"max_requests = {self.rng.randint(20, 150)}" if stop == "budget" else ""
        budget += f"deadline = {self.rng.uniform(1.0, 5.0):.1f}" if stop == "deadline" else ""
        text = CONFIG.format(
            url=self.server.url, seed=now.number, budget=budget, connections=self.rng.choice([2, 8, 32])
        )
        (self.folder / "autointerp.toml").write_text(text)
        kill = self.options.kill_every > 0 and disturbed and not generous
        kill_at = self.rng.expovariate(1 / self.options.kill_every) if kill else float("inf")
        restart_at = self.rng.uniform(1, 20) if disturbed and self.rng.random() < 0.3 else float("inf")
        code = [sys.executable, "-c", CHILD.format(quick=not self.options.real_waits)]
        now.commands += 1
        begun = time.monotonic()
        with open(self.folder / "client.log", "ab") as log:
            child = subprocess.Popen(
                [*code, "run", "-c", "autointerp.toml"], cwd=self.folder, stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-soak-0123456789"},
            )  # fmt: skip
        killed = restarted = False
        while child.poll() is None:
            passed = time.monotonic() - begun
            if passed > restart_at:
                restart_at, restarted = float("inf"), True
                self.restart(now)
            if passed > kill_at or passed > LONGEST_S:
                killed = True
                child.send_signal(signal.SIGKILL)
                child.wait()
                if passed > LONGEST_S:
                    self.violations.append(f"round {now.number}: a command took more than {LONGEST_S:.0f} s")
            time.sleep(0.02)
        ended = time.time()
        now.kills += killed
        now.ends[child.returncode] += 1
        allowed = {0, 6, *([4] if stop != "none" else []), *([-signal.SIGKILL] if killed else [])}
        if restarted:  # just when the command began: an endpoint that has never answered is not waited for
            allowed.add(1)
        if child.returncode not in allowed:
            self.violations.append(f"round {now.number}: exit code {child.returncode}, see client.log")
        time.sleep(0.2)  # the server notices that its callers are gone
        self.check(now, killed, ended)
        return child.returncode

    def restart(self, now: Round) -> None:
        """Restart the server as after a power cut. Answers in its ledger that were not sent yet are asked for again."""
        self.server.kill()
        at = time.time()
        now.restarts += 1
        for entry in self.server.entries():
            if entry.answered and at - entry.left < WIRE_S:
                self.explained.add((entry.request, -entry.number))
        self.server.__enter__()
        # A server that is started anew forgets what it was told over HTTP.
        self.server.renew(
            self.ledger, 0.01, seed=self.options.seed * 1000 + now.number, rate=now.rate,
            kinds={**PASSING, **WORDS}, retry_after=0.2,
        )  # fmt: skip

    def check(self, now: Round, killed: bool, ended: float) -> None:
        entries = self.server.entries()
        if killed:
            # Booked is what was written; what the killed command was about to write is gone.
            self.lost_numbers |= {e.number for e in entries if max(e.arrived, e.left) > ended - COMMIT_S - 5.0}
        missing = unrecorded(self.store, entries)
        new = missing - {request for request, _ in self.explained}
        now.unwritten += len(new)
        late = [e for e in entries if e.request in new and e.left < ended - COMMIT_S]
        if killed and late:
            self.violations.append(f"{len(late)} answers were not written {COMMIT_S:.0f} s after they came")
        if not killed:
            known = {key for (key,) in rows(self.store, "SELECT request_sha256 FROM llm_calls")}
            if new - known:
                self.violations.append(f"{len(new - known)} answers of a command that ended by itself are lost")
        self.explained |= {(request, now.commands + 1000 * now.number) for request in missing}
        after = [*rows(self.store, LABELS), *rows(self.store, SCORES)]
        self.violations += [
            *lost(self.before, after),
            *twice(self.store),
            *zeros_for_failures(self.store),
            *underbooked(self.store, entries, self.lost_numbers),
            *paid_again(self.store, entries, len(self.explained)),
        ]
        self.before = after

    def finished(self, now: Round, code: int) -> None:
        """Check that after a command without faults every feature has its label and scores, and that they are right."""
        labels = rows(
            self.store, f"SELECT feature, status, text FROM explanations WHERE seed = {now.number} ORDER BY feature"
        )
        scores = rows(
            self.store,
            f"SELECT feature, scorer, status, value, n_failed FROM scores WHERE seed = {now.number} "
            "AND scorer IN ('simulation', 'detection', 'fuzzing') AND part = 'report' ORDER BY ALL",
        )
        labelled = [row[0] for row in labels if row[1] == "ok"]
        problems = []
        if [row[0] for row in labels] != list(range(len(FEATURES))):
            problems.append(f"features with a label row: {[row[0] for row in labels]}")
        if {status for _, status, _ in labels} & {"gave_up"} or {row[2] for row in scores} & {"gave_up"}:
            problems.append("something is given up although nothing was wrong")
        problems += [f"label of {f}: {text}" for f, s, text in labels if s == "ok" and FEATURES[f].strip() not in text]
        if Counter(row[0] for row in scores) != Counter(dict.fromkeys(labelled, 3)):
            problems.append("a label has not its three scores")
        problems += [f"score {row}" for row in scores if row[2] == "ok" and row[4] == 0 and not row[3] > 0.97]
        if code not in (0, 6):
            problems.append(f"exit code {code} without faults")
        self.violations += [f"round {now.number}: {problem}" for problem in problems]

    def line(self, r: Round) -> str:
        ends = " ".join(f"{code}:{n}" for code, n in sorted(r.ends.items()))
        return (
            f"{r.number:>5} {r.rate:>5.2f} {r.commands:>8} {r.kills:>5} {r.restarts:>8} {r.requests:>8} "
            f"{r.faults:>6} {r.unwritten:>9} {r.seconds:>7.0f}  {ends}"
        )

    def summary(self) -> None:
        total = Round(len(self.rounds), sum(r.rate for r in self.rounds) / max(1, len(self.rounds)))
        for r in self.rounds:
            total.ends += r.ends
            for name in ("commands", "kills", "restarts", "requests", "faults", "unwritten", "seconds"):
                setattr(total, name, getattr(total, name) + getattr(r, name))
        print("  all" + self.line(total)[5:])
        entries = self.server.entries()
        kinds = Counter(e.fault for e in entries if e.fault)
        answers = [e for e in entries if e.answered and (e.fault is None or e.fault in WORDS)]
        again = len(answers) - len({e.request for e in answers})
        print("faults: " + ", ".join(f"{kind} {n}" for kind, n in kinds.most_common()))
        print(f"tokens billed (in, out): {billed(entries)}, booked: {booked(self.store)}")
        statuses = rows(self.store, "SELECT status, count(*) FROM explanations GROUP BY 1 ORDER BY 2 DESC")
        scored = rows(self.store, "SELECT status, count(*) FROM scores GROUP BY 1 ORDER BY 2 DESC")
        print(f"labels: {json.dumps(dict(statuses))}; scores: {json.dumps(dict(scored))}")
        print(f"answers asked for twice, probes included: {again}")
        for violation in self.violations:
            print(f"VIOLATED: {violation}")
        print("no invariant violated" if not self.violations else f"{len(self.violations)} violations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rate", default=(0.05, 0.3), help="LOW,HIGH: share of faults, drawn anew for every round",
        type=lambda text: tuple(float(part) for part in (text.split(",") * 2)[:2]),
    )  # fmt: skip
    parser.add_argument("--kill-every", type=float, default=8.0)
    parser.add_argument("--real-waits", action="store_true")
    parser.add_argument("--keep", type=Path, default=None, help="Folder for the store and the logs.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        soak = Soak(folder, options)
        print("round  rate commands kills restarts requests faults unwritten seconds  exit codes", flush=True)
        soak.run()
        soak.summary()
    sys.exit(1 if soak.violations else 0)


if __name__ == "__main__":
    main()
