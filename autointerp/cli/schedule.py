"""Writes the text that makes a machine call `autointerp run` by itself: a systemd service with its timer, or a line for
crontab. A person puts it in place; nothing is installed, and no key is read or printed."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from autointerp.errors import InputError

PRESETS = {"hourly": "0 * * * *", "daily": "0 0 * * *", "weekly": "0 0 * * 0"}
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("day of the week", 0, 7))
_NUMBER = re.compile(r"\d{1,6}", re.ASCII)
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """One scheduled `autointerp run`."""

    config: Path
    every: str
    """hourly, daily, weekly, or the five fields of a crontab line."""
    key_names: tuple[str, ...]
    """Names of the variables that hold keys."""
    deadline: str | None = None
    """The text for --deadline; None: without one."""

    @property
    def folder(self) -> Path:
        return self.config.absolute().parent

    @property
    def environment_file(self) -> Path:
        return self.folder / "autointerp.env"

    @property
    def command(self) -> list[str]:
        # The link is not resolved: the interpreter finds its virtual environment by the link's place.
        words = [str(Path(sys.executable).absolute()), "-m", "autointerp", "run", "-c", str(self.config.absolute())]
        return words if self.deadline is None else [*words, "--deadline", self.deadline]

    def check(self) -> None:
        """Raise InputError when the configuration does not exist, `every` is not valid, or a path cannot stand in a
        unit or crontab."""
        if not self.config.is_file():
            raise InputError(f"no configuration at {self.config}; -c names another")
        parse_cron(self.every)
        for word in self.command:
            if not word.isprintable():
                raise InputError(f"{word!r} holds a character that neither systemd nor cron can take")


def parse_cron(every: str) -> list[tuple[int, ...]]:
    """The values of each of the five fields, sorted; Sunday is 0. Raises InputError, which names the wrong field."""
    fields = PRESETS.get(every, every).split()
    if len(fields) != len(_FIELDS):
        raise InputError(
            f"--every {every!r}: write {', '.join(PRESETS)}, or five fields such as '30 2 * * 1-5' "
            "(minute, hour, day of the month, month, day of the week)"
        )
    values = [_values(every, text, *bounds) for text, bounds in zip(fields, _FIELDS, strict=True)]
    values[4] = {day % 7 for day in values[4]}
    return [tuple(sorted(chosen)) for chosen in values]


def _values(every: str, text: str, name: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        numbers = (step if slash else "1", first if span != "*" else "0", last if dash else "0")
        if not all(_NUMBER.fullmatch(n) for n in numbers):
            raise InputError(
                f"--every {every!r}: {part!r} is no {name}; write numbers, *, lists, ranges or steps (*/15)"
            )
        begin = low if span == "*" else int(first)
        end = high if span == "*" or (slash and not dash) else int(last) if dash else begin
        if not (low <= begin <= end <= high) or int(numbers[0]) < 1:
            raise InputError(f"--every {every!r}: {part!r} is no {name}, which lies in {low}-{high}")
        found |= set(range(begin, end + 1, int(numbers[0])))
    return found


def calendar_lines(every: str) -> list[str]:
    """`every` as systemd's OnCalendar= values, any of which fires. A crontab line with days of the month and days of
    the week fires on either, which takes two values."""
    minutes, hours, days, months, weekdays = parse_cron(every)
    fields = PRESETS.get(every, every).split()
    time = f"{_listed(hours, 24)}:{_listed(minutes, 60)}:00"
    names = "" if len(weekdays) == 7 else ",".join(_DAYS[day] for day in weekdays) + " "
    by_day = f"*-{_listed(months, 12)}-{_listed(days, 31)} {time}"
    if fields[2].startswith("*") or fields[4].startswith("*"):
        return [names + by_day]
    return list(dict.fromkeys([by_day, f"{names}*-{_listed(months, 12)}-* {time}"]))


def _listed(values: tuple[int, ...], n: int) -> str:
    return "*" if len(values) == n else ",".join(f"{value:02d}" for value in values)


def systemd_units(run: ScheduledRun) -> str:
    """A service and a timer, each under the path where a user's systemd looks for it."""
    run.check()
    calendar = "\n".join(f"OnCalendar={line}" for line in calendar_lines(run.every))
    return f"""\
# ~/.config/systemd/user/autointerp.service
[Unit]
Description=autointerp: label and score what is new

[Service]
Type=oneshot
WorkingDirectory={_escaped(str(run.folder))}
# {_keys(run)}; readable by you alone (chmod 600)
EnvironmentFile=-{_escaped(str(run.environment_file))}
ExecStart={" ".join(_quoted(word) for word in run.command)}
# 4: a budget or deadline was reached, 6: some rows failed, 75: another process has the store, 130: stopped by hand.
# All go on with the next run.
SuccessExitStatus=4 6 75 130
KillSignal=SIGINT

# ~/.config/systemd/user/autointerp.timer
[Unit]
Description=autointerp, {_escaped(run.every)}

[Timer]
{calendar}
Persistent=true

[Install]
WantedBy=timers.target

# then: systemctl --user daemon-reload && systemctl --user enable --now autointerp.timer
# without a login: loginctl enable-linger; the log: journalctl --user -u autointerp
"""


def crontab_line(run: ScheduledRun) -> str:
    """A comment and one line for `crontab -e`. Two runs at once need no lock: the later one ends with exit code 75."""
    run.check()
    environment = shlex.quote(str(run.environment_file))
    log = shlex.quote(str(run.folder / "autointerp.log"))
    command = (
        f"cd {shlex.quote(str(run.folder))} && {{ [ ! -r {environment} ] || {{ set -a; . {environment}; set +a; }}; }} "
        f"&& {shlex.join(run.command)} >> {log} 2>&1"
    )
    # cron reads a bare % as a line break
    when = PRESETS.get(run.every, " ".join(run.every.split()))
    escaped = command.replace("%", "\\%")
    return f"# {_keys(run)} in {run.environment_file}; readable by you alone (chmod 600)\n{when} {escaped}\n"


def _keys(run: ScheduledRun) -> str:
    return "a line " + " and one ".join(f"{name}=..." for name in dict.fromkeys(run.key_names))


def _escaped(text: str) -> str:
    """`text` for a unit file, where % begins a specifier."""
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """`word` as it must stand in ExecStart=."""
    inner = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    plain = all(c.isalnum() or c in "/._-=:+,@%" for c in inner)
    return inner if plain and inner else f'"{inner}"'
