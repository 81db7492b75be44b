"""`doctor --endpoint` and a labelling run against a real server: `transformers serve` with the shipped demo model.

The server needs more packages than the tests do (`pip install "transformers[serving]"`), so it runs in the interpreter
that AUTOINTERP_SERVING_PYTHON names.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autointerp.errors import AutointerpError
from autointerp.llm.capabilities import probe
from autointerp.resources import data_folder
from autointerp.stages.checked_endpoint import CheckedEndpoint
from autointerp.stages.checks import Lack
from autointerp.stages.endpoint_checks import endpoint_checks
from autointerp.terminal import Terminal

SERVING_PYTHON = os.environ.get("AUTOINTERP_SERVING_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not SERVING_PYTHON,
    reason='AUTOINTERP_SERVING_PYTHON does not name an interpreter with "transformers[serving]" installed',
)
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""The demo model has no chat template of its own, and the server cannot chat without one."""
SERVE = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "demo_model"
    shutil.copytree(data_folder() / "demo_model", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def served(model: Path, port: int) -> Iterator[str]:
    """The address of a server that has loaded the model."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(model.parent / "home"), "OMP_NUM_THREADS": "1"}
    log = model.parent / f"server-{time.monotonic_ns()}.log"
    command = [SERVING_PYTHON, "-c", SERVE, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen([*command, "--device", "cpu"], env=environment, stdout=output, stderr=output)
        try:
            for _ in range(600):
                assert server.poll() is None, log.read_text()
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()
            server.wait()


def test_what_it_honours_and_a_label_asked_of_it(model: Path) -> None:
    """The scorers are left out, since the demo model writes code at length and follows no instruction."""
    states: dict[str, str] = {}
    with (
        served(model, free_port()) as url,
        endpoint_checks(CheckedEndpoint(url, model=str(model)), Terminal()) as checks,
    ):
        for check in checks:
            states[check.name] = "none" if isinstance(check.look(), Lack) else "ok"
            if check.name == "explain":
                break
    for name in ("chat", "finish reason", "usage", "unknown model", "tiny store"):
        assert states[name] == "ok", states
    for name in ("JSON schemas", "prompt logprobs", "written logprobs", "seed", "embeddings", "batch API"):
        assert states[name] == "none", states
    assert "explain" in states


def test_a_server_that_goes_away_is_named(model: Path) -> None:
    checked = CheckedEndpoint("http://127.0.0.1:9/v1", model=str(model))
    with served(model, free_port()) as url:
        gone = CheckedEndpoint(url, model=str(model))
        assert gone.capabilities.chat
    for one in (checked, gone):
        with pytest.raises(AutointerpError, match="cannot reach"):
            one.asked(lambda client, _: probe(client))
