"""Deadlines: what they may look like, and that a run ends at one with everything paid for kept."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run, write_config, write_corpus
from support.llm_helpers import MemoryLedger, chat, client_for
from support.llm_server import BrainReply, Fault, LlmServer

from autointerp.config import BudgetConfig
from autointerp.config_file import from_table, load
from autointerp.deadline import Deadline, parse_deadline
from autointerp.errors import InputError, StoppedError
from autointerp.llm.pool import run_pool
from autointerp.sae import files, model_source
from autointerp.stages import pipeline
from autointerp.terminal import Terminal

NOW = datetime(2026, 11, 22, 23, 0, tzinfo=UTC)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield  # type: ignore[misc]
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(5400, 5400), (0.5, 0.5), ("5400", 5400), ("3h", 10800), ("1h30m", 5400), ("1h 30min", 5400), ("2d", 172800),
     ("90s", 90), ("1.5h", 5400)],
)  # fmt: skip
def test_spans_count_from_now(value: float | str, seconds: float) -> None:
    assert parse_deadline(value, NOW) == NOW + timedelta(seconds=seconds)


@given(st.integers(0, 200), st.integers(0, 59), st.integers(0, 59))
def test_a_written_span_is_the_number_of_its_seconds(hours: int, minutes: int, seconds: int) -> None:
    total = 3600 * hours + 60 * minutes + seconds
    if total:
        assert parse_deadline(f"{hours}h{minutes}m{seconds}s", NOW) == parse_deadline(total, NOW)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "3x",
        "-5",
        0,
        -1.0,
        "0s",
        math.nan,
        math.inf,
        "inf",
        "25:00",
        "7:60",
        "3h later",
        "2026-13-01",
        "1e9",
        "0001-01-01",
        "0001-01-01T00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "9" * 5000,
        "1" * 400 + "d",
        "23:59:60",
    ],
)
def test_anything_else_is_refused_and_named(value: float | str) -> None:
    with pytest.raises(InputError, match="deadline"):
        parse_deadline(value, NOW)
    with pytest.raises(InputError, match="deadline"):
        BudgetConfig(deadline=value)


@pytest.mark.usefixtures("berlin")
def test_times_of_day_are_the_next_on_the_local_clock() -> None:
    """It is midnight between Sunday and Monday in Berlin."""
    assert parse_deadline("07:30", NOW) == datetime(2026, 11, 23, 6, 30, tzinfo=UTC)
    assert parse_deadline("7:30", NOW) == parse_deadline("07:30:00", NOW) == parse_deadline("07:30", NOW)
    assert parse_deadline("00:00", NOW) == datetime(2026, 11, 23, 23, 0, tzinfo=UTC), "now is not in the future"
    before_summer = datetime(2026, 3, 28, 20, 0, tzinfo=UTC)  # 21:00, summer time begins in the night
    assert parse_deadline("07:30", before_summer) == datetime(2026, 3, 29, 5, 30, tzinfo=UTC)
    assert parse_deadline("2026-07-01T08:00", NOW) == datetime(2026, 7, 1, 6, 0, tzinfo=UTC)
    assert parse_deadline("2026-11-23 08:00+00:00", NOW) == datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def test_the_configuration_takes_all_forms_and_loading_fixes_the_moment(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    for written in ("5400", '"90m"', "90.5", "2099-01-01T08:00:00", '"2099-01-01"', "07:30:00"):
        file.write_text(f"[budget]\ndeadline = {written}\n")
        fixed = load(file).budget.deadline
        assert isinstance(fixed, str)
        assert datetime.fromisoformat(fixed).tzinfo is not None, "every stage sees the same moment"
        assert Deadline.of(fixed).left_s > 0
    assert load(file, {"budget.deadline": "1h"}).budget.deadline
    assert 3590 < Deadline.of(load(file, {"budget.deadline": 3600}).budget.deadline).left_s <= 3600
    assert Deadline.of(None).left_s == math.inf
    with pytest.raises(InputError, match="deadline"):
        from_table({"budget": {"deadline": True}})


def test_reaching_it_stops_sending_and_keeps_what_is_in_flight() -> None:
    ledger = MemoryLedger()
    with LlmServer(lambda *_: BrainReply("x", input_tokens=1, output_tokens=1), latency=0.3) as server:

        async def work(deadline: float | str) -> None:
            async with client_for(server, ledger, budget=BudgetConfig(deadline=deadline)) as client:
                await run_pool(range(100_000), lambda i: _ask(client, i), 4)

        with pytest.raises(StoppedError, match="deadline"):
            asyncio.run(work(1.0))
        assert 4 <= len(server.requests) == len(ledger.rows)
        assert {row.status for row in ledger.rows.values()} == {"ok"}
        sent = len(server.requests)
        with pytest.raises(StoppedError, match="deadline"):  # one that has passed: nothing more is sent
            asyncio.run(work("2020-01-01T00:00"))
        assert len(server.requests) == sent


def test_a_pause_does_not_hold_a_run_past_it() -> None:
    with LlmServer(lambda *_: Fault("429", retry_after=3000)) as server:
        client = client_for(server, budget=BudgetConfig(deadline=1.0))

        async def work() -> None:
            async with client:
                await asyncio.wait_for(run_pool(range(10), lambda i: _ask(client, i), 2), 30)

        with pytest.raises(StoppedError, match="deadline"):
            asyncio.run(work())
        assert len(server.requests) <= 2


def test_a_deadline_holds_while_the_shuffle_buffer_fills(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer takes eight batches of the model; what was trained before a later fill is kept."""
    write_corpus(tmp_path / "texts")
    project = write_config(tmp_path, tiny_gpt2)
    text = project.read_text().replace("[corpus]", "batch_tokens = 256\n[corpus]")
    project.write_text(text.replace("tokens = 8192", "tokens = 4096\ncheckpoint_every = 1000"))
    config, n_read, last = load(project), 0, 0
    forward = model_source.activations_at_all

    def counted(*arguments: object) -> object:
        nonlocal n_read
        n_read += 1
        return forward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(model_source, "activations_at_all", counted)
    monkeypatch.setattr(Deadline, "left_s", property(lambda self: 1.0 if n_read < last else -1.0))
    with pytest.raises(StoppedError, match="deadline"):
        pipeline.train(config, None, Terminal(every_s=0))
    assert n_read == 1 and not list(tmp_path.rglob("checkpoint.safetensors"))
    last, n_read = 12, 0  # inside the second of two fills, after eight steps
    with pytest.raises(StoppedError, match="deadline"):
        pipeline.train(config, None, Terminal(every_s=0))
    (kept,) = tmp_path.rglob("checkpoint.safetensors")
    assert n_read == 12 and files.read_state(kept)["step"] == 8  # type: ignore[index]
    last = 10**9
    pipeline.train(config, None, Terminal(every_s=0))
    assert list(tmp_path.rglob("trained.json"))


async def _ask(client: object, i: int) -> None:
    await client.ask(chat(f"feature {i}"))  # type: ignore[attr-defined]


def test_training_and_harvest_stop_resumably(
    tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "texts")
    config = str(write_config(tmp_path, tiny_gpt2))
    past = "2020-01-01T00:00"
    code, _, err = run(capsys, "train", "-c", config, "--deadline", past)
    assert (code, "deadline" in err) == (4, True), err
    assert list(tmp_path.rglob("checkpoint.safetensors"))
    code, _, err = run(capsys, "train", "-c", config)
    assert code == 0, err
    code, _, err = run(capsys, "harvest", "-c", config, "--deadline", past)
    assert (code, "deadline" in err) == (4, True), err
    code, _, err = run(capsys, "harvest", "-c", config)
    assert code == 0, err
    code, out, _ = run(capsys, "query", "SELECT status, exit_code FROM runs ORDER BY started_at", "-c", config,
                       "--format", "csv")  # fmt: skip
    assert out.split()[1:] == ["stopped,4", "ok,0", "stopped,4", "ok,0"]
