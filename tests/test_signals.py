"""A run that is told to stop ends in order: what has arrived is written, and its row says how it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.known_words import World, copy_of
from support.llm_server import LlmServer

from autointerp.store import Store


def configured(folder: Path, bare_world: Path, url: str) -> Path:
    copy_of(bare_world, folder / "x.duckdb").close()
    config = folder / "autointerp.toml"
    config.write_text(
        f'[explain]\nexplainer = "combined"\nmodel = "m"\nbase_url = "{url}"\n'
        f'[llm]\nmax_connections = 2\n[store]\npath = "{folder / "x.duckdb"}"\n'
    )
    return config


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_a_run_in_order(
    number: signal.Signals, bare_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    with LlmServer(World(), latency=0.5) as server:
        config = configured(tmp_path, bare_world, server.url)
        command = [sys.executable, "-m", "autointerp", "explain", "-c", str(config)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            until = time.monotonic() + 60
            while len(server.requests) < 4 and time.monotonic() < until:
                time.sleep(0.02)
            process.send_signal(number)
            assert process.stderr is not None
            said = process.stderr.read()
            assert process.wait(60) == 130, said
    assert "explain: " in said and "labelled" in said and "Traceback" not in said
    with Store.open(tmp_path / "x.duckdb", read_only=True) as store:
        assert store.rows("SELECT status, exit_code FROM runs") == [("interrupted", 130)]
        (answered,) = store.rows("SELECT count(*) FROM llm_calls WHERE status = 'ok'")[0]
        assert 1 <= answered <= len(server.requests)
