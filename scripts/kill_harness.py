"""Kills `autointerp run` with SIGKILL at random moments, runs it again until it ends by itself, and compares the result
with a run that was not killed: how often it was killed in which stage, what was lost, and what was paid for twice.

    python scripts/kill_harness.py --kills 300 --seed 1

The project is the one of tests/test_kills.py: a tiny model and corpus, and a loopback LLM server in a process of its
own, which writes down every request. --rate is the share of its answers that fail.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.fault_server import PASSING, FaultServer
from support.kill_harness import (
    STAGES,
    ForkServer,
    Story,
    make_project,
    random_kills,
    run_killed,
    what_is_wrong,
    write_corpus,
)
from support.small_models import TRAINING_TEXT, VOCAB, save_model

SLOW = ("hang", "slow_loris", "huge", "huge_declared", "408", "502")
"""Faults that take a long time."""


def tiny_model(folder: Path) -> Path:
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=128, n_embd=48, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return save_model(folder, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0)
    args = parser.parse_args()
    begun, wrong, stories = time.monotonic(), [], list[tuple[Story, list[int], list[int]]]()
    kinds = {kind: weight for kind, weight in PASSING.items() if kind not in SLOW}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus, model = write_corpus(folder / "texts", TRAINING_TEXT), tiny_model(folder / "model")
        left = FaultServer(folder / "left.jsonl", brain="support.kill_harness:brain", latency=0.005)
        server = FaultServer(
            folder / "server.jsonl", brain="support.kill_harness:brain", latency=0.005, seed=args.seed, rate=args.rate,
            kinds=kinds, retry_after=0.05,
        )  # fmt: skip
        with left, server, ForkServer() as forks:
            undisturbed = run_killed(forks, make_project(folder / "left", corpus, model, left.url), [])
            ended = undisturbed.steps[0].ended
            kills = random_kills(random.Random(args.seed), ended.ended - ended.begun)
            n_killed = 0
            while n_killed < args.kills:
                project = make_project(folder / f"project-{len(stories)}", corpus, model, server.url)
                story = run_killed(forks, project, islice(kills, args.kills - n_killed))
                n_killed += len(story.kills)
                entries = server.entries()
                wrong += what_is_wrong(story, entries, undisturbed, left.entries(), faults=args.rate > 0)
                asked = [len(requests) for requests in story.requests(entries)]
                stories.append((story, story.unrecorded(entries), asked))
                sys.stderr.write(f"{n_killed} kills, {len(stories)} runs to the end, {len(wrong)} faults found\n")
    print_table(stories)
    requests, again = sum(sum(asked) for _, _, asked in stories), sum(sum(n) for _, n, _ in stories)
    sys.stdout.write(
        f"{n_killed} kills, {len(stories)} runs to the end in {time.monotonic() - begun:.0f} s; {requests:,} requests, "
        f"{again} of them without a record; {sum(len(story.lost_rows()) for story, _, _ in stories)} rows lost\n"
    )
    for line in wrong:
        sys.stdout.write(f"WRONG: {line}\n")
    sys.exit(1 if wrong else 0)


def print_table(stories: list[tuple[Story, list[int], list[int]]]) -> None:
    """Print, by the stage of the kill: kills, requests without a record (which the next run asks again), and the most
    such requests of one kill."""
    rows: dict[str, list[int]] = defaultdict(list)
    for story, unrecorded, _ in stories:
        for step, n in zip(story.steps, unrecorded, strict=True):
            if step.ended.killed:
                rows[step.ended.stage].append(n)
    sys.stdout.write(f"{'stage at the kill':<20}{'kills':>7}{'asked again':>13}{'most':>6}\n")
    stages = ["start", *(name for stage in STAGES for name in (stage, f"after {stage}"))]
    for stage, found in sorted(rows.items(), key=lambda row: stages.index(row[0])):
        sys.stdout.write(f"{stage:<20}{len(found):>7}{sum(found):>13}{max(found):>6}\n")


if __name__ == "__main__":
    main()
