"""A key that must turn up nowhere: whole runs in a child process, every fault, every log switched on, every file read.

The store is read as bytes and through SQL, since a checkpoint compresses its columns; a killed run leaves the WAL.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest
from support.commands import run
from support.known_words import World
from support.llm_server import BrainReply, Fault, LlmServer

RANDOM = "Zq7x/Rk2+Vw9mTn4Lb8Yd3Gf6Hs1Jc5P"
KEY = f"sk-canary-{RANDOM}"
NEEDLES = [
    *(RANDOM[i : i + 8].encode() for i in range(len(RANDOM) - 7)),
    # base64 of the key wherever it stands in what is encoded; the first and last characters depend on its neighbours
    *(base64.b64encode(b" " * shift + KEY.encode())[4:-4] for shift in range(3)),
]
FAULTS = ("echo_key_500", "echo_key_200", "echo", "500", "html", "reset", "slow_loris", "huge", "400", "short_body",
          "truncated_json", "429")  # fmt: skip

CHILD = """
import logging, sys
sys.modules["torch"] = None  # the store is harvested: this machine only labels
sys.modules["transformers"] = None
if "json" in sys.argv:
    logging.getLogger().setLevel(logging.DEBUG)
else:
    logging.basicConfig(level=logging.DEBUG)
for name in ("openai", "httpx2", "httpcore2", "aiohttp", "aiohttp.client", "asyncio"):
    logging.getLogger(name).setLevel(logging.DEBUG)
from support.llm_helpers import QUICK
from autointerp.llm import client, limits
client.RetryPolicy = lambda: QUICK
waits = limits.PausePolicy(first_s=0.01, longest_s=0.02)
limits.PausePolicy = lambda: waits
{more}
from autointerp.cli.app import main
main()
"""
BROKEN = """
calls = []
def broken(request, payload, raw):
    calls.append(1)
    if len(calls) > 12:
        raise RuntimeError("deep inside a call")
    return read_envelope(request, payload, raw)
read_envelope, client.read_envelope = client.read_envelope, broken
"""


class Leaky(World):
    """A good reader behind a bad proxy: every kind of fault in turn, between good answers."""

    def __init__(self, at_last: str | None = None) -> None:
        super().__init__()
        self.at_last = at_last
        self._lock = threading.Lock()
        self._n = 0
        self.given: Counter[str] = Counter()

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        with self._lock:
            self._n += 1
            n = self._n
        if self.at_last is not None and n > 30:
            return Fault(self.at_last)
        if n < 6 or n % 2 or attempt:
            return super().__call__(kind, body, attempt)
        fault = FAULTS[n // 2 % len(FAULTS)]
        self.given[fault] += 1
        if fault == "echo":  # the model repeats what it was sent
            return BrainReply(f"LABEL: the key is Bearer {KEY}")
        return Fault(fault, size=300_000)


@pytest.fixture
def project(bare_world: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    for file in bare_world.parent.glob(f"{bare_world.stem}.*"):
        shutil.copy(file, folder)
    return folder


def configure(project: Path, url: str, more: str = "") -> Path:
    path = project / "autointerp.toml"
    endpoint = f'model = "m"\nbase_url = "{url}"\n'
    path.write_text(
        f'[[sae]]\nname = "planted"\nhookpoint = "h"\n[explain]\nexplainer = "combined"\n{endpoint}'
        f'[score]\nscorers = ["simulation", "detection"]\ncontexts = 3\n{endpoint}'
        "[llm]\nrequests_per_minute = 600000\ntimeout = 0.4\nattempts = 3\nmax_connections = 6\n"
        'max_reply_bytes = 200000\n[llm.prices."m"]\ninput = 1.0\noutput = 2.0\n'
        f'[store]\npath = "planted.duckdb"\nsnapshot_seconds = 0.2\n{more}'
    )
    return path


def start(config: Path, form: str, more: str = "", key: str = KEY) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ, "OPENAI_API_KEY": key, "OPENAI_LOG": "debug", "PYTHONFAULTHANDLER": "1",
        "PYTHONASYNCIODEBUG": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }  # fmt: skip
    argv = ["run", "-v", "-c", str(config), "--log-format", form, "--limit", "4"]
    out = config.parent
    with open(out / "stdout.txt", "wb") as stdout, open(out / "stderr.txt", "wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", CHILD.format(more=more), *argv],
            env=environment, stdout=stdout, stderr=stderr, cwd=out,
        )  # fmt: skip


def records(project: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project / "stderr.txt").read_text().splitlines()]


def search(project: Path) -> int:
    """Looks for the key in all that a run has left; the bytes that were read."""
    store, size = project / "planted.duckdb", 0
    with duckdb.connect(str(store), read_only=True) as con:
        con.execute(f"ATTACH '{project}/planted.evidence.duckdb' AS evidence (READ_ONLY)")
        tables = con.execute("SELECT database_name, table_name FROM duckdb_tables() WHERE NOT internal").fetchall()
        assert ("planted", "llm_calls") in tables
        for database, table in tables:
            rows = repr(con.execute(f"SELECT * FROM {database}.main.{table}").fetchall()).encode()
            assert not [needle for needle in NEEDLES if needle in rows], table
            size += len(rows)
    for file in project.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not [needle for needle in NEEDLES if needle in data], file
            size += len(data)
    return size


@pytest.mark.parametrize("form", [pytest.param("text", marks=pytest.mark.slow), "json"])
def test_a_run_through_every_fault(form: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brain = Leaky()
    with LlmServer(brain) as server:
        code = start(configure(project, server.url), form, key=f" {KEY}\n").wait(120)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    err = (project / "stderr.txt").read_text()
    assert code == 6, err[-3000:]
    assert set(brain.given) == set(FAULTS)
    assert "HTTP" in err, "the libraries' own logs are on"
    for form_of_file in ("csv", "json", "parquet"):
        output = str(project / f"calls.{form_of_file}")
        asked = ("query", "SELECT * FROM llm_calls", "--store", str(project / "planted.duckdb"))
        assert run(capsys, *asked, "--format", form_of_file, "-o", output)[0] == 0
    assert "[api key]" in (project / "calls.csv").read_text(), "it was there to be found"
    assert search(project) > 100_000
    if form == "json":
        told = records(project)
        assert {"message", "library", "summary", "error"} <= {r["event"] for r in told}
        summary = next(r for r in told if r["event"] == "summary")
        assert summary["labelled"] >= 1 and summary["scored"] >= 1 and summary["failed"] >= 1
        assert summary["requests"] > 30 and summary["cost_usd"] > 0 and summary["input_tokens"] > 0
        last = next(r for r in told if r["event"] == "error")
        assert (last["exit_code"], last["level"]) == (6, "warning") and "traceback" in last
        assert f"{summary['failed']} rows failed" in last["message"]
        assert told.index(summary) < told.index(last)
    else:
        assert "labelled" in err and "Traceback" in err and "\x1b" not in err


@pytest.mark.parametrize(
    ("more", "at_last", "code", "form"),
    [
        pytest.param("", "echo_key_401", 3, "json", marks=pytest.mark.slow),
        (BROKEN, None, 1, "text"),
        pytest.param(BROKEN, None, 1, "json", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_run_that_breaks_off(more: str, at_last: str | None, code: int, form: str, project: Path) -> None:
    with LlmServer(Leaky(at_last)) as server:
        assert start(configure(project, server.url), form, more).wait(120) == code
    err = (project / "stderr.txt").read_text()
    search(project)
    assert "Traceback" in err
    if form == "json":
        told = records(project)
        assert [r["exit_code"] for r in told if r["event"] == "error"] == [code]
        assert [r["requests"] for r in told if r["event"] == "summary"]
    if more:
        assert "RuntimeError" in err and "deep inside a call" in err


@pytest.mark.slow
def test_what_a_killed_run_leaves(project: Path) -> None:
    with LlmServer(Leaky(), latency=0.02) as server:
        child = start(configure(project, server.url), "text")
        end = time.monotonic() + 60
        snapshot = project / "planted.snapshot.duckdb"
        while len(server.requests) < 60 or not snapshot.exists():
            assert time.monotonic() < end and child.poll() is None, (project / "stderr.txt").read_text()[-3000:]
            time.sleep(0.01)
        child.kill()
        child.wait()
    assert b"the word" in (project / "planted.duckdb.wal").read_bytes(), "replies stand in the WAL as they came"
    assert snapshot.exists()
    copy = project.with_name("copy")
    shutil.copytree(project, copy)
    search(copy)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("old", "new", "secret"),
    [
        ("http://", "http://user:hunter2secret@", "hunter2secret"),
        ("/v1", "/v1?key=hunter2secret", "hunter2secret"),
        ("/v1", "/v1#hunter2secret", "hunter2secret"),
        ("http://", "ftp://user:hunter2secret@", "hunter2secret"),
        ("[explain]", f'[explain]\napi_key = "{KEY}"', RANDOM),
        ("[explain]", f'[explain]\napi_key_env = "{KEY}"', RANDOM),
        ("[explain]", f"[explain]\napi_key = {KEY}", RANDOM),
    ],
)
def test_a_secret_in_the_configuration_is_refused_and_not_repeated(
    old: str, new: str, secret: str, form: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(project, "http://127.0.0.1:1/v1")
    config.write_text(config.read_text().replace(old, new))
    for command in ("run", "doctor", "schedule"):
        code, out, err = run(capsys, command, "-v", "-c", str(config), "--log-format", form)
        assert code == 2 and err, err
        assert secret not in out + err
