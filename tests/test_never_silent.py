"""Work that lasts says so: while a buffer fills, inside a work unit, where nothing can be counted, and to `status`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.commands import run, write_config, write_corpus

from autointerp.config_file import load
from autointerp.harvest import unit as unit_module
from autointerp.log import LogFormat
from autointerp.progress import Standing
from autointerp.sae import model_source
from autointerp.stages import pipeline
from autointerp.store.progress_file import ProgressFile, read_progress
from autointerp.terminal import Terminal


def records(err: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in err.splitlines()]
    return [record for record in found if record["event"] == "progress"]


def slow(monkeypatch: pytest.MonkeyPatch, module: object, seconds: float) -> None:
    """The model takes so long for each batch."""
    forward: Callable[..., object] = module.activations_at_all  # type: ignore[attr-defined]

    def slower(*arguments: object) -> object:
        time.sleep(seconds)
        return forward(*arguments)

    monkeypatch.setattr(module, "activations_at_all", slower)


@pytest.fixture
def project(tiny_gpt2: Path, tmp_path: Path) -> Path:
    write_corpus(tmp_path / "texts")
    config = write_config(tmp_path, tiny_gpt2)
    config.write_text(config.read_text() + '[evidence]\nmethods = ["shape"]\n')
    return config


def test_training_speaks_while_its_buffer_fills(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow(monkeypatch, model_source, 0.06)
    text = (
        project.read_text()
        .replace("[corpus]", "batch_tokens = 256\n[corpus]")
        .replace("tokens = 8192", "tokens = 4096")
    )
    project.write_text(text)
    pipeline.train(load(project), None, Terminal(log_format=LogFormat.json, every_s=0.1))
    said = [r for r in records(capsys.readouterr().err) if r["what"] == "tiny: filling the shuffle buffer"]
    assert len(said) >= 4
    assert all(r["unit"] == "vectors" and r["total"] == 2048 and 0 < int(str(r["done"])) < 2048 for r in said)
    # A busy machine may do nothing between two words; there is a rate once something was done.
    further = [r for before, r in itertools.pairwise(said) if int(str(r["done"])) > int(str(before["done"]))]
    assert further and all("rate" in r and "expected_end" in r for r in further)
    assert "a second, end about" in str(further[-1]["message"])


def test_harvest_speaks_inside_a_unit(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = project.read_text().replace("[corpus]", "batch_tokens = 256\n[corpus]").replace(
        "unit_characters = 20000", "unit_characters = 1000000\nmax_tokens = 5000"
    )  # fmt: skip
    project.write_text(text)
    config = load(project)
    pipeline.train(config, None, Terminal(every_s=0))
    capsys.readouterr()
    slow(monkeypatch, unit_module, 0.06)
    pipeline.harvest(config, None, Terminal(every_s=0.05))
    lines = [line for line in capsys.readouterr().err.splitlines() if "tiny: harvesting" in line]
    done = [
        int(found[1].replace(",", "")) for line in lines if (found := re.search(r"harvesting: ([\d,]+) of 5,000", line))
    ]
    assert len(set(done)) >= 4 and done == sorted(done), lines
    inside = [line for line in lines if line.endswith("unit 0")]
    assert len(inside) >= 4, lines
    told = [re.search(r"tokens in \d+ s, [\d,.]+ a second, end about \d\d:\d\d unit 0", line) for line in inside]
    assert sum(map(bool, told)) >= 3, inside


def test_what_cannot_be_counted_speaks_too(capsys: pytest.CaptureFixture[str]) -> None:
    told = Terminal(every_s=0.1)
    with told.working("running harvest"), told.working("a: merging"):
        time.sleep(0.35)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 3 and all(line.endswith("a: still merging, 0 s") for line in lines), lines
    with told.working("running harvest"):
        told.say("something")
    with told.progress("a: training", 10, "steps") as update:
        update(3)
        time.sleep(0.35)  # no update comes, and lines do
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3 and "a: training: 3 of 10 (30%) steps" in lines[-1]
    time.sleep(0.2)
    assert not capsys.readouterr().err, "nothing more once the work is over"


def test_a_short_counted_step_is_not_told_and_a_long_one_is(capsys: pytest.CaptureFixture[str]) -> None:
    counting = Terminal(every_s=0.1).counting("a")
    with counting("probing", 2, "letters") as update:
        update(1)
        update(2)
    assert not capsys.readouterr().err
    with counting("probing", 2, "letters") as update:
        update(1)
        time.sleep(0.25)
        update(2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and "a: probing: 1 of 2 (50%) letters" in lines[0] and "2 of 2 (100%)" in lines[-1]


def test_short_inner_steps_do_not_silence_the_outer_one(capsys: pytest.CaptureFixture[str]) -> None:
    told = Terminal(every_s=0.25)
    with told.progress("a: harvesting", 100, "tokens") as outer:
        for i in range(6):
            with told.progress("a: filling", 100, "vectors") as inner:
                inner(1)
                time.sleep(0.1)
            outer(i + 1)
            time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 5, lines  # 1.2 s, a line every 0.25 s
    assert all(re.search(r"a: (harvesting|filling): \d of 100", line) for line in lines), lines


def test_lines_that_say_something_new_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    told = Terminal(every_s=0.3)
    with told.working("running x"):
        for _ in range(12):
            told.say("news")
            time.sleep(0.05)
    assert "still" not in capsys.readouterr().err


def test_a_terminal_shows_a_bar_and_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    told = Terminal(every_s=0.1)
    assert told.is_live
    with told.working("a: merging"):
        time.sleep(0.25)
    assert "a: still merging" in capsys.readouterr().err
    with told.progress("a: training", 10, "steps") as update, told.progress("a: filling", 100, "vectors") as fill:
        time.sleep(0.05)
        update(5, note="loss 1")
        fill(30)
        time.sleep(0.25)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "5/10 steps" in shown and "a second" in shown and "loss 1" in shown
    assert "a: filling: 30 of 100" in shown


def test_rate_and_end() -> None:
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    standing = Standing("a: harvesting", 600, 1200, "tokens", 60.0, 300, "unit 2")
    assert (standing.dictionary, standing.stage, standing.rate, standing.seconds_left) == ("a", "harvesting", 5, 120)
    assert standing.line(now) == (
        "a: harvesting: 600 of 1,200 (50%) tokens in 60 s, 5.0 a second, end about 12:02 unit 2"
    )
    for change in ({"total": None}, {"done": 300}, {"done": 1300}):
        assert dataclasses.replace(standing, **change).expected_end(now) is None  # type: ignore[arg-type]
    late = dataclasses.replace(standing, total=10**6)
    assert "end about 2026-01-03 19:31" in late.line(now)


# --- status ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def harvesting(project: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[subprocess.Popen[str]]:
    """A process whose harvest of a trained dictionary takes long."""
    assert run(capsys, "train", "-c", str(project))[0] == 0
    script = (
        "import time; from autointerp.harvest import unit; from autointerp.store import progress_file\n"
        "from autointerp.cli.app import main\n"
        "forward = unit.activations_at_all\n"
        "unit.activations_at_all = lambda *a: (time.sleep(0.15), forward(*a))[1]\n"
        "progress_file.ProgressFile.__init__.__defaults__ = ('', 0.05)\n"
        f"main(['harvest', '-c', {str(project)!r}])\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def wait_for(path: Path, stage: str) -> dict[str, object]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for one in read_progress(path):
            if one.facts["stage"] == stage and one.facts["rate"]:
                return one.as_dict()
        time.sleep(0.02)
    raise AssertionError(f"nothing is told of {stage}")


@pytest.mark.slow
def test_status_of_a_running_and_of_a_killed_harvest(
    project: Path, harvesting: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    store = project.parent / "tiny.duckdb"
    told = wait_for(store, "harvesting")
    assert (told["state"], told["command"], told["dictionary"], told["unit"]) == (
        "running",
        "harvest",
        "tiny",
        "tokens",
    )
    code, out, _ = run(capsys, "status", "-c", str(project), "--json")
    (seen,) = json.loads(out)["working"]
    assert code == 0 and seen["pid"] == harvesting.pid and seen["done"] > 0 and seen["note"].startswith("unit")
    code, out, _ = run(capsys, "status", "-c", str(project))
    assert f"harvest: process {harvesting.pid} is at tiny: harvesting, " in out and "tokens" in out
    harvesting.send_signal(signal.SIGKILL)
    harvesting.wait(30)
    code, out, _ = run(capsys, "status", "-c", str(project))
    assert code == 0 and f"harvest: process {harvesting.pid} was killed at 20" in out
    assert run(capsys, "harvest", "-c", str(project))[0] == 0
    code, out, _ = run(capsys, "status", "-c", str(project), "--json")
    assert json.loads(out)["working"] == [] and not list(project.parent.glob("*.progress*"))


def test_status_without_a_store_and_with_a_locked_one(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "none.duckdb"
    assert run(capsys, "status", "--store", str(store))[0] == 2
    with ProgressFile(store, "harvest", "shard-1-of-4", every_s=0) as told:
        told(Standing("a, b: harvesting", 500, 2000, "tokens", 10.0, note="unit 5"))
        code, out, _ = run(capsys, "status", "--store", str(store))
        assert code == 0
        assert f"harvest (shard-1-of-4): process {os.getpid()} is at a, b: harvesting, 500 of 2,000 (25%) tokens" in out
        assert "50 a second, end about" in out
        code, out, _ = run(capsys, "status", "--store", str(store), "--json")
        (seen,) = json.loads(out)["working"]
        assert code == 0 and (seen["total"], seen["rate"], seen["dictionary"]) == (2000, 50, "a, b")
    assert run(capsys, "status", "--store", str(store))[0] == 2
    lock = f"import duckdb, sys; c = duckdb.connect({str(store)!r}); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        assert run(capsys, "status", "--store", str(store))[0] == 75
        with ProgressFile(store, "train", every_s=0) as told:
            told(Standing("a: training", 5, 20, "steps", 10.0))
            code, out, err = run(capsys, "status", "--store", str(store))
        assert code == 0 and "train: process" in out and "in use" in err
        other.stdin.close()  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_merge_removes_what_killed_shards_have_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project.write_text(project.read_text().replace("tokens = 8192", "tokens = 512"))
    assert run(capsys, "train", "-c", str(project))[0] == 0
    store = project.parent / "tiny.duckdb"
    killed = ProgressFile(store, "harvest", "shard-2-of-3", every_s=0)
    killed(Standing("tiny: harvesting", 5, 20, "tokens", 10.0))
    killed.path.write_text(json.dumps(json.loads(killed.path.read_text()) | {"process_started": "another boot"}))
    shards = [("harvest", "-c", str(project), "--num-shards", "2", "--shard-index", str(i)) for i in range(2)]
    with ProgressFile(store, "harvest", "shard-1-of-3", every_s=0) as running:
        running(Standing("tiny: harvesting", 5, 20, "tokens", 10.0))
        assert run(capsys, *shards[0])[0] == 0
        assert run(capsys, "merge", "-c", str(project))[0] == 2, "a shard is missing"
        assert killed.path.exists()
        assert run(capsys, *shards[1])[0] == 0
        assert run(capsys, "merge", "-c", str(project))[0] == 0
        assert running.path.exists() and not killed.path.exists()
        code, out, _ = run(capsys, "status", "-c", str(project), "--json")
        assert code == 0 and [(one["state"], one["part"]) for one in json.loads(out)["working"]] == [
            ("running", "shard-1-of-3")
        ]


def test_the_process_that_left_a_file_is_recognised(tmp_path: Path) -> None:
    store = tmp_path / "x.duckdb"
    told = ProgressFile(store, "train", every_s=0)
    told(Standing("a: training", 5, 20, "steps", 10.0))
    (one,) = read_progress(store)
    assert one.state == "running"
    facts = json.loads(told.path.read_text())
    for change, state in (
        ({"process_started": facts["process_started"] + "1"}, "killed"),  # the PID was given to another process
        ({"process_started": "another boot"}, "killed"),
        ({"host": "elsewhere"}, "running"),
        ({"host": "elsewhere", "updated_at": "2026-01-01T00:00:00+00:00"}, "silent"),
    ):
        told.path.write_text(json.dumps(facts | change))
        assert [one.state for one in read_progress(store)] == [state]
    for damaged in ("", "{", "[]", "{}", json.dumps({**facts, "format": 99})):
        told.path.write_text(damaged)
        assert read_progress(store) == []


def test_a_file_that_cannot_be_written_does_not_stop_the_work(tmp_path: Path) -> None:
    with ProgressFile(tmp_path / "not there" / "x.duckdb", "train", every_s=0) as told:
        told(Standing("a: training", 5, 20, "steps", 10.0))
    assert list(itertools.chain(tmp_path.iterdir())) == []
