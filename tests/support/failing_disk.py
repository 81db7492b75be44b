"""Runs the whole life of a store in forked processes whose N-th write or sync fails, and checks what is left.

It is started with failing_disk.c preloaded. All imports happen once; each case is a fork, which is cheap.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autointerp.cli import app
from autointerp.store import Store
from autointerp.store.group_writer import GroupWriter
from autointerp.store.safety.faults import translated
from autointerp.store.safety.snapshot import SnapshotPublisher
from support.damaged_store import ALIVE, CALLS, group

GROUPS = 8
NEW_EVIDENCE = "new-evidence.duckdb"
SECONDS = 60
"""A case that takes longer counts as hanging."""


def life(path: Path, acknowledged: Callable[[int], None]) -> None:
    """Writes groups, a checkpoint, more groups, a snapshot and new evidence, then closes the store."""

    async def write(store: Store, first: int, last: int) -> None:
        async with GroupWriter(store, max_wait_s=0.001) as writer:
            for k in range(first, last):
                calls, labels, scores = group(k)
                records = [*map(writer.call, calls), *map(writer.explanation, labels), *map(writer.score, scores)]
                await asyncio.gather(*records)
                acknowledged(k)

    with Store.open(path) as store:
        asyncio.run(write(store, 0, GROUPS // 2))
        with translated(path):
            store.con.execute("CHECKPOINT")
        asyncio.run(write(store, GROUPS // 2, GROUPS))
        SnapshotPublisher(store, 60.0).publish()
        store.replace_evidence(path.with_name(NEW_EVIDENCE))
        store.set_label_choice(1, "contexts", None)


def problems_after(path: Path, acknowledged: list[int]) -> list[str]:
    """The problems of the store that a case has left, which is opened first for reading, then for writing."""
    found = []
    for read_only in (True, False):
        with Store.open(path, read_only=read_only) as store:
            for k in range(GROUPS):
                calls, labels, _ = group(k)
                keys = [c.request_sha256 for c in calls]
                n = store.rows("SELECT count(*) FROM llm_calls WHERE list_contains(?, request_sha256)", [keys])[0][0]
                ids = [label.explanation_id for label in labels]
                n_labels, n_scores = store.rows(
                    "SELECT (SELECT count(*) FROM explanations WHERE list_contains($1, explanation_id)), "
                    "(SELECT count(*) FROM scores WHERE list_contains($1, explanation_id))",
                    [ids],
                )[0]
                counted = (n, n_labels, n_scores)
                if counted != (CALLS, len(ALIVE), len(ALIVE)) and (k in acknowledged or counted != (0, 0, 0)):
                    found.append(f"group {k} has (calls, labels, scores) {counted}")
            if store.rows("SELECT count(*) FROM evidence.context_rows")[0][0] != 105:
                found.append("evidence is not whole")
            if store.rows("SELECT count(DISTINCT (score_id, context_id)) - count(*) FROM predictions") != [(0,)]:
                found.append("predictions stand twice")
            found += [f"check: {line}" for line in store.check() if "snippets" not in line and "documents" not in line]
    return found


def forked(work: Callable[[], int], output: Path) -> int | str:
    """Runs `work` in a forked process whose output goes to a file. Returns its exit code, or how it died."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.alarm(SECONDS)
        code = 99
        try:
            code = work()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main(template: Path, work: Path) -> None:
    """Reads cases from standard input as JSON (n, error, stays), and prints the outcome of each."""
    disk = ctypes.CDLL(None)
    disk.failing_disk.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    disk.failing_disk_operations.restype = ctypes.c_long
    output, folder = work / "output", work / "store"
    work.mkdir(exist_ok=True)

    def live(case: dict[str, Any]) -> int:
        disk.failing_disk(str(folder).encode(), case["n"], case["error"], case["stays"])
        code = app.guarded(lambda: life(folder / template.name, lambda k: print(f"acknowledged {k}", flush=True)), True)
        print(f"operations {disk.failing_disk_operations()}")
        return code

    def look(acknowledged: list[int]) -> int:
        for problem in problems_after(folder / template.name, acknowledged):
            print(problem)
        return 0

    for line in sys.stdin:
        case = json.loads(line)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template.parent, folder)
        code = forked(lambda case=case: live(case), output)
        said = output.read_text(errors="replace")
        acknowledged = [int(words.split()[1]) for words in said.splitlines() if words.startswith("acknowledged ")]
        checked = forked(lambda acknowledged=acknowledged: look(acknowledged), output)
        problems = output.read_text(errors="replace")
        told = {"code": code, "said": said, "acknowledged": acknowledged, "checked": checked, "problems": problems}
        print(json.dumps({**case, **told}), flush=True)
