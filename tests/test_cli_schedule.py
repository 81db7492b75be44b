"""What `schedule` prints: times that mean what the crontab says, commands that a shell runs, and no keys."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import run

from autointerp.cli.schedule import ScheduledRun, calendar_lines, crontab_line, parse_cron, systemd_units
from autointerp.errors import InputError

DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    pair = st.tuples(number, number).map(sorted)
    part = st.one_of(
        number.map(str), pair.map(lambda p: f"{p[0]}-{p[1]}"),
        st.tuples(pair, st.integers(1, 9)).map(lambda t: f"{t[0][0]}-{t[0][1]}/{t[1]}"),
    )  # fmt: skip
    star = st.one_of(st.just("*"), st.just("*"), st.integers(2, 9).map(lambda n: f"*/{n}"))
    return st.one_of(star, st.lists(part, min_size=1, max_size=3).map(",".join))


def fires_by_cron(fields: list[str], at: datetime) -> bool:
    def holds(text: str, value: int, low: int) -> bool:
        for part in text.split(","):
            span, _, step = part.partition("/")
            first, _, last = span.partition("-")
            begin = low if span == "*" else int(first)
            end = 99 if span == "*" else int(last or first)
            if begin <= value <= end and (value - begin) % int(step or 1) == 0:
                return True
        return False

    weekday = any(holds(fields[4], day, 0) for day in {at.isoweekday() % 7, at.isoweekday()})
    if fields[4].startswith("*/"):
        weekday = holds(fields[4], at.isoweekday() % 7, 0) or (at.isoweekday() == 7 and holds(fields[4], 7, 0))
    day = holds(fields[2], at.day, 1)
    either = not fields[2].startswith("*") and not fields[4].startswith("*")
    return (
        holds(fields[0], at.minute, 0) and holds(fields[1], at.hour, 0) and holds(fields[3], at.month, 1)
        and ((day or weekday) if either else (day and weekday))
    )  # fmt: skip


def fires_by_calendar(line: str, at: datetime) -> bool:
    *names, date, clock = line.split()
    if names and DAYS[at.weekday()] not in names[0].split(","):
        return False
    values = [*date.split("-")[1:], *clock.split(":")[:2]]
    return all(
        v == "*" or x in map(int, v.split(","))
        for v, x in zip(values, (at.month, at.day, at.hour, at.minute), strict=True)
    )


@settings(max_examples=150, deadline=None)
@given(st.tuples(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 7)), st.integers(0, 400 * 1440))
def test_a_timer_fires_when_cron_would(fields: tuple[str, ...], start: int) -> None:
    lines = calendar_lines(" ".join(fields))
    begin = datetime(2026, 1, 1) + timedelta(minutes=start)
    for step in range(0, 500_000, 1009):  # a prime, so that every minute and hour comes up
        at = begin + timedelta(minutes=step)
        assert any(fires_by_calendar(line, at) for line in lines) == fires_by_cron(list(fields), at), (lines, at)


def test_names_for_common_times() -> None:
    assert calendar_lines("daily") == ["*-*-* 00:00:00"]
    assert calendar_lines("hourly") == ["*-*-* *:00:00"]
    assert calendar_lines("weekly") == ["Sun *-*-* 00:00:00"]
    assert calendar_lines("30 2 * * 1-5") == ["Mon,Tue,Wed,Thu,Fri *-*-* 02:30:00"]
    assert calendar_lines("0 4 1 * 7") == ["*-*-01 04:00:00", "Sun *-*-* 04:00:00"]


@pytest.mark.parametrize(
    "every", ["", "often", "* * * *", "60 * * * *", "* 5-3 * * *", "*/0 * * * *", "x * * * *", "1- * * * *",
              "* * 0 * *", "* * * * 8", "* * * * *\n* * * * *", "-1 * * * *", "1,,2 * * * *", "٣ * * * *"],
)  # fmt: skip
def test_anything_else_is_refused(every: str) -> None:
    with pytest.raises(InputError, match="--every"):
        parse_cron(every)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / 'it\'s 100% $HOME "x"'
    folder.mkdir()
    (folder / "a b.toml").write_text('[explain]\napi_key_env = "KEY_A"\n[score]\napi_key_env = "KEY_B"\n')
    return folder


def test_the_crontab_line_runs_in_a_shell_with_the_keys(project: Path, tmp_path: Path) -> None:
    (project / "autointerp.env").write_text("AUTOINTERP_STORE__PATH=seen.duckdb\nAUTOINTERP_BUDGET__DEADLINE=never\n")
    comment, line = crontab_line(ScheduledRun(project / "a b.toml", "5 4 * * *", ("KEY_A", "KEY_B"))).splitlines()
    assert "KEY_A=..." in comment and "KEY_B=..." in comment
    assert re.search(r"(?<!\\)%", line) is None
    command = line.removeprefix("5 4 * * * ").replace("\\%", "%")
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")
    assert "deadline 'never'" in (project / "autointerp.log").read_text(), "the variables of the file have arrived"


def test_the_units_name_absolute_paths_and_survive_a_folder_with_odd_characters(project: Path) -> None:
    text = systemd_units(ScheduledRun(project / "a b.toml", "0 4 1 * 7", ("KEY_A",), "6h"))
    service, timer = text.split("# ~/.config/systemd/user/autointerp.timer\n")
    units = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
    units.optionxform = str  # type: ignore[assignment, method-assign]
    units.read_string(service)
    assert units["Service"]["Type"] == "oneshot"
    assert {"4", "6", "75"} <= set(units["Service"]["SuccessExitStatus"].split())
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', units["Service"]["ExecStart"])
    read = [re.sub(r"\\(.)", r"\1", quoted).replace("$$", "$").replace("%%", "%") or bare for quoted, bare in words]
    assert read == [sys.executable, "-m", "autointerp", "run", "-c", str(project / "a b.toml"), "--deadline", "6h"]
    assert units["Service"]["WorkingDirectory"].replace("%%", "%") == str(project)
    assert units["Service"]["EnvironmentFile"].replace("%%", "%") == f"-{project / 'autointerp.env'}"
    assert timer.count("OnCalendar=") == 2 and "Persistent=true" in timer and "WantedBy=timers.target" in timer


@pytest.mark.parametrize("form", ["systemd", "cron"])
def test_no_key_is_printed(
    form: str, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "sk-canary-0123456789"
    monkeypatch.setenv("KEY_A", canary)
    (project / "autointerp.env").write_text(f"KEY_B={canary}\n")
    code, out, err = run(capsys, "schedule", "-c", str(project / "a b.toml"), "--print", form, "--every", "hourly")
    assert code == 0, err
    assert "KEY_A" in out and canary not in out + err
    code, _, err = run(capsys, "schedule", "-c", str(project / "none.toml"), "--print", form)
    assert code == 2 and "none.toml" in err
    code, _, err = run(capsys, "schedule", "-c", str(project / "a b.toml"), "--deadline", "soon")
    assert code == 2 and "deadline" in err
