"""What reaches standard error, in each form: one line a message, nothing that a terminal obeys, JSON that parses."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli_app import run

from autointerp import terminal
from autointerp.cli import app
from autointerp.errors import AutointerpError, InputError, PartialFailure, StoppedError
from autointerp.log import ENVIRONMENT, Capture, Log, LogFormat
from autointerp.terminal import Terminal

EVIL = 'two\nlines\r\x1b[2J\x1b]0;title\x07 \u202e "quoted" \ud800 \u2028 ünï'


def lines_of(err: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in err.splitlines()]
    for record in found:
        then = datetime.fromisoformat(str(record["time"]))
        assert str(record["time"]).endswith("Z") and then.utcoffset() == timedelta(0)
        assert record["level"] in ("debug", "info", "warning", "error")
        assert str(record["message"]).isprintable()
    return found


@given(st.text(), st.text(st.characters(categories=["Cc", "Cf", "Zl", "Zp", "Cs"])))
def test_any_message_is_one_line_in_every_form(text: str, evil: str) -> None:
    message = text + evil + text
    for form in ("text", "json", "journald"):
        done: list[str] = []
        log = Log(LogFormat.json if form == "json" else LogFormat.text)
        log.is_journald = form == "journald"
        log._put = done.append  # type: ignore[method-assign]
        log.write(message, note=message)
        (line,) = done
        assert line.splitlines() == [line] and line.isprintable()
        if form == "json":
            assert json.loads(line)["note"] == json.loads(line)["message"]


def test_json_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_LOG_EVERY_S", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes everything for a terminal
    told = Terminal(True, LogFormat.json)
    told.say(EVIL)
    told.detail("a detail")
    told.warn("it does not fit")
    told.say("done", event="summary", labelled=3, time="kept out")
    with told.progress(f"explaining {EVIL}", None, "features") as update:
        update(0)
        update(1, 4)
        update(4, 4, EVIL)
    out, err = capsys.readouterr()
    assert out == ""
    found = lines_of(err)
    assert [(r["event"], r["level"]) for r in found] == [
        ("message", "info"), ("message", "debug"), ("message", "warning"), ("summary", "info"),
        *[("progress", "info")] * 3,
    ]  # fmt: skip
    assert found[3]["labelled"] == 3 and found[3]["time"] != "kept out"
    assert [(r["done"], r.get("total"), r["unit"]) for r in found[4:]] == [
        (0, None, "features"), (1, 4, "features"), (4, 4, "features"),
    ]  # fmt: skip
    assert "\\x1b" in str(found[6]["note"]) and found[6]["seconds"] >= 0  # type: ignore[operator]


def test_what_others_write_does_not_break_the_stream(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers)
    sendable = EVIL.encode("utf-8", "ignore").decode()  # pytest keeps what is logged, and sends it between processes
    told = Terminal(log_format=LogFormat.json)
    capture = Capture(told.log)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(f"old {sendable}", stacklevel=1)
        logging.getLogger("httpx2").error("refused %s", sendable)
        logging.getLogger("httpx2").info("not asked for")
        try:
            raise RuntimeError(sendable)
        except RuntimeError:
            logging.getLogger("asyncio").exception("a task")
        unfit = logging.LogRecord("broken", logging.WARNING, __file__, 1, "%d of them", ("many",), None)
        for handler in logging.getLogger().handlers:
            if handler not in before:
                handler.handle(unfit)
        sys.stderr.write("\r 10% |#\r 20% |##")
        print("\nfrom a library", file=sys.stderr)
        told.say("between")
        sys.stderr.write("no end of line")
    finally:
        capture.end()
    out, err = capsys.readouterr()
    found = lines_of(err)
    events = [str(r["event"]) for r in found]
    assert events[:3] == ["library"] * 3 and events[-2:] == ["message", "stderr"]
    assert found[0]["logger"] == "py.warnings" and found[0]["level"] == "warning"
    assert found[1]["message"].startswith("httpx2: refused two") and found[1]["level"] == "error"  # type: ignore[attr-defined]
    assert "RuntimeError" in str(found[2]["traceback"]) and "\x1b" not in str(found[2]["traceback"])
    texts = [str(r["message"]) for r in found]
    assert " 10% |#" in texts and "from a library" in texts and texts[-1] == "no end of line"
    assert any("many" in text for text in texts), "a record that cannot be formatted is told, not lost"
    assert logging.getLogger().handlers == before and not isinstance(sys.stderr, terminal.Log)
    assert not out


@pytest.mark.parametrize(
    ("error", "code", "level", "word"),
    [
        (InputError(f"bad {EVIL}"), 2, "error", "error: "),
        (StoppedError("out of money"), 4, "warning", "error: "),
        (PartialFailure("3 rows failed"), 6, "warning", "note: "),
        (AutointerpError("no"), 1, "error", "error: "),
        (ZeroDivisionError(EVIL), 1, "error", "error: "),
        (KeyboardInterrupt(), 130, "warning", ""),
    ],
)
def test_the_last_line_says_why(
    error: BaseException, code: int, level: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    for form in LogFormat:
        assert app.guarded(fails, True, Log(form)) == code
        err = capsys.readouterr().err
        assert "\x1b" not in err
        if form is LogFormat.json:
            (record,) = lines_of(err)
            assert (record["event"], record["level"], record["exit_code"]) == ("error", level, code)
            assert ("traceback" in record) == (code != 130)
            assert not str(record["message"]).startswith("error")
        else:
            last = err.splitlines()[-1]
            assert last.startswith(word) and ("Traceback" in err) == (code != 130)


def test_errors_of_usage_are_json_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(tmp_path / "none.toml")
    for argv in (
        ["run", "--log-format", "json", "-c", config],
        ["run", "-c", config, "--log-format=json"],
        ["status", "--log-format", "json", "--nonsense"],
        ["--log-format", "json", "nonsense"],
    ):
        code, out, err = run(capsys, *argv)
        (record,) = lines_of(err)
        assert (code, record["exit_code"], record["event"]) == (2, 2, "error"), argv
    monkeypatch.setenv(ENVIRONMENT, "json")
    code, _, err = run(capsys, "run", "-c", config)
    assert code == 2 and "none.toml" in str(lines_of(err)[0]["message"])
    code, _, err = run(capsys, "run", "-c", config, "--log-format", "text")
    assert code == 2 and err.startswith("error: ")
    monkeypatch.setenv(ENVIRONMENT, "xml")
    code, _, err = run(capsys, "run", "-c", config)
    assert code == 2 and "xml" in err


JOB = """
import sys, warnings
from autointerp.terminal import Terminal
from autointerp.log import Capture
told = Terminal(True)
if told.log.is_for_programs:
    Capture(told.log)
told.say("one\\ntwo")
told.detail("more")
told.warn("look")
warnings.warn("old")
told.log.end("error: ", "three\\nfour", 1, trace="Traceback\\n  line")
"""


@pytest.mark.parametrize("is_named", [True, False])
def test_journald_gets_priorities_and_no_time(is_named: bool) -> None:
    read, write = os.pipe()
    status = os.fstat(write)
    named = f"{status.st_dev}:{status.st_ino if is_named else status.st_ino + 1}"
    environment = {**os.environ, "JOURNAL_STREAM": named, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", JOB], stderr=write, check=True, env=environment, timeout=60)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    if not is_named:  # inherited from a terminal or a service that has nothing to do with this stderr
        assert lines[0][2] == ":" and not any(re.match(r"<\d>", line) for line in lines)
        return
    assert lines[:3] == ["<6>one\u21b5two", "<7>more", "<4>look"]
    assert lines[3].startswith("<4>py.warnings: ") and "old" in lines[3]
    assert lines[4:] == ["<7>Traceback", "<7>  line", "<3>error: three\u21b5four"]


def test_a_log_that_nobody_reads_does_not_stop_the_work() -> None:
    said = (
        "from autointerp.terminal import Terminal; [Terminal(True).say('into the void') for _ in range(3)]; print('on')"
    )
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", said], stderr=write, stdout=subprocess.PIPE, env=environment, timeout=60
    )
    os.close(write)
    assert done.stdout == b"on\n"
