"""A disk that is full, or fails, at any moment: a clean error, and nothing that was acknowledged is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.failing_disk import GROUPS, NEW_EVIDENCE
from support.known_words import WORDS, World
from support.llm_server import LlmServer
from support.store_fixtures import ROOT, child, filled, write_evidence

from autointerp.cli import app
from autointerp.config import CorpusConfig, HarvestConfig
from autointerp.harvest.memory import disk_needed
from autointerp.sae.formats import save_saelens
from autointerp.sae.sae import Sae
from autointerp.store import Store

EVERY = 1 if os.environ.get("AUTOINTERP_DISK_FULL") == "all" else 60
"""One moment in so many is tried; AUTOINTERP_DISK_FULL=all tries every one."""
SOURCE = Path(__file__).parent / "support" / "failing_disk.c"
FAULTS = {"full": (errno.ENOSPC, True), "full_once": (errno.ENOSPC, False), "io": (errno.EIO, False)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "x.duckdb"
    store, dictionary_id, harvest_id = filled(path)
    with store:
        write_evidence(path.with_name(NEW_EVIDENCE), store.store_id, dictionary_id, harvest_id)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("failing writes are made by a preloaded library: needs Linux and a C compiler")
    built = tmp_path_factory.mktemp("library") / "failing_disk.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", built, SOURCE, "-ldl"], check=True, capture_output=True)
    return built


def lives(template: Path, library: Path, cases: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What became of the store's life in every case."""
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; from support import failing_disk; "
    code += "from pathlib import Path; failing_disk.main(Path(sys.argv[1]), Path(sys.argv[2]))"
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # real syncs take most of the time elsewhere
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        process = subprocess.run(
            [sys.executable, "-c", code, str(template), folder], input="\n".join(map(json.dumps, cases)), text=True,
            capture_output=True, timeout=900, env={**os.environ, "LD_PRELOAD": str(library)}, check=False,
        )  # fmt: skip
    assert process.returncode == 0, process.stderr
    told = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(told) == len(cases)
    yield from told


@pytest.fixture(scope="module")
def operations(template: Path, library: Path) -> int:
    """Writes and syncs of a life without faults."""
    (told,) = lives(template, library, [{"n": 0, "error": 0, "stays": False}])
    assert (told["code"], told["problems"]) == (0, ""), told
    assert told["acknowledged"] == list(range(GROUPS))
    n = int(told["said"].split("operations ")[1])
    assert n > 50
    return n


@pytest.mark.parametrize(
    "fault", ["full", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("full_once", "io"))]
)
def test_a_disk_that_fails_at_any_write(template: Path, library: Path, operations: int, fault: str) -> None:
    error, stays = FAULTS[fault]
    first = 1 + list(FAULTS).index(fault) % EVERY
    cases = [{"n": n, "error": error, "stays": stays} for n in range(first, operations + 1, EVERY)]
    ended = set()
    for told in lives(template, library, cases):
        case = json.dumps(told, indent=1)
        allowed = {0, 5} if error == errno.ENOSPC else {0, 1, 5, 7}
        assert told["code"] in allowed, case
        assert "unexpected" not in told["said"], case
        assert (told["checked"], told["problems"]) == (0, ""), case
        if told["code"]:
            assert "error: " in told["said"], case
        else:  # a sync while closing, or of what a later one makes good: all was acknowledged all the same
            assert told["acknowledged"] == list(range(GROUPS)), case
        ended.add(told["code"])
    assert ended - {0}


def test_a_run_whose_disk_fills_up_stops_asking(bare_world: Path, tmp_path: Path, short_waits: None) -> None:
    """A limit on the size of files stands in for the full disk; a real run, a real server."""
    path, in_flight = tmp_path / "x.duckdb", 1
    for file in bare_world.parent.iterdir():
        shutil.copy(file, tmp_path / file.name.replace(bare_world.stem, "x"))
    code = f"""
        import asyncio, os, resource, signal
        os.environ["OPENAI_API_KEY"] = "sk-test"
        from autointerp.cli import app
        from autointerp.config import ExplainConfig
        from autointerp.explain.explaining import explain
        from autointerp.store import Store
        from support.known_words import job
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = Store.open(sys.argv[1])
        config = ExplainConfig(explainer="combined", model="test-model", base_url=sys.argv[2], reply="text")
        if sys.argv[3] != "0":
            limit = int(sys.argv[3])
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        work = job(store, max_connections={in_flight})
        os._exit(app.guarded(lambda: asyncio.run(explain(work, config)), False))
    """
    with LlmServer(World(), latency=0.01) as server:
        process = child(code, path, server.url, 4_000)
        _, said = process.communicate()
        assert process.returncode == 5 and "the disk is full" in said, said
        sent = len(server.requests)
        with Store.open(path) as store:
            kept = store.row_counts()
        assert 0 < kept["explanations"] < len(WORDS)
        assert sent - kept["llm_calls"] <= in_flight + 1, "asked on after the store had failed"  # and a probe
        process = child(code, path, server.url, 0)
        _, said = process.communicate()
        assert process.returncode == 0, said
        assert len(server.requests) - sent <= len(WORDS) - kept["explanations"] + 1
    with Store.open(path) as store:
        assert store.row_counts()["explanations"] == len(WORDS)


def test_a_harvest_that_would_not_fit_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("words " * 50)
    sae = Sae(torch.ones(4, 5000), torch.zeros(5000), torch.ones(5000, 4), torch.zeros(4), k=2)
    save_saelens(sae, tmp_path / "sae", {"hook_name": "h"})
    config = tmp_path / "autointerp.toml"
    config.write_text(
        f"""
        model.name = "{tmp_path}/no-such-model"
        corpus.source = "{tmp_path}/text.txt"
        store.path = "{tmp_path}/x.duckdb"
        sae = [{{ name = "s", hookpoint = "h", path = "{tmp_path}/sae" }}]
        """
    )
    usage = shutil.disk_usage(tmp_path)

    def harvest(free: int, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
        arguments = ["harvest", "-c", str(config), *options]
        code = app.guarded(lambda: app.app(arguments, standalone_mode=False), False)
        return code, capsys.readouterr().err

    needed = int(disk_needed(sae, HarvestConfig(), CorpusConfig()))
    assert needed > 1.5 * 5000 * 3 * 40 * 48
    for options in ((), ("--num-shards", "2")):
        code, said = harvest(needed - 1, *options)
        assert code == 5 and f"{needed / 2**20:,.0f} MiB" in said, said
        code, said = harvest(needed, *options)
        assert code != 5 and "no-such-model" in said, said
    # A harvest that goes on does not need room for what it has on the disk already.
    unit = tmp_path / "x.work" / "s" / "units" / "u00000000"
    unit.mkdir(parents=True)
    (unit / "a.parquet").write_bytes(bytes(needed // 4))
    assert harvest(needed - needed // 4)[0] != 5 and harvest(needed * 2 // 3 - 1)[0] == 5
    short = CorpusConfig(max_tokens=1000)
    assert disk_needed(sae, HarvestConfig(), short) < needed
