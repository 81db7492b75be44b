"""Commands that keep a store and its runs going: schedule, recover."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from autointerp.cli.options import (
    DEFAULT_CONFIG,
    ConfigFile,
    Deadline,
    LogForm,
    StorePath,
    Verbose,
    read_config,
    store_path,
)
from autointerp.cli.schedule import ScheduledRun, crontab_line, systemd_units
from autointerp.errors import PartialFailure
from autointerp.log import LogFormat
from autointerp.terminal import Terminal

commands = typer.Typer()


class ScheduleForm(StrEnum):
    systemd = "systemd"
    cron = "cron"


@commands.command()
def schedule(
    config: ConfigFile = DEFAULT_CONFIG,
    form: Annotated[ScheduleForm, typer.Option("--print", help="What to print.")] = ScheduleForm.systemd,
    every: Annotated[
        str, typer.Option("--every", help="hourly, daily, weekly, or five fields as in a crontab: '30 2 * * 1-5'.")
    ] = "daily",
    deadline: Deadline = None,
    verbose: Verbose = False,
    log_format: LogForm = LogFormat.text,
) -> None:
    """Print what makes systemd or cron call `autointerp run`; installs nothing."""
    settings = read_config(config, None, deadline)
    names = (settings.explain.api_key_env, settings.score.api_key_env)
    run = ScheduledRun(config, every.strip(), names, deadline)
    text = systemd_units(run) if form is ScheduleForm.systemd else crontab_line(run)
    Terminal(verbose, log_format).out.file.write(text)


@commands.command()
def recover(
    config: ConfigFile = DEFAULT_CONFIG,
    store: StorePath = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is wrong and what would be done.")] = False,
    verbose: Verbose = False,
) -> None:
    """Repair a store that refuses to open, and say what is lost. Deletes nothing."""
    from autointerp.store.safety.recover import recover as recover_store

    recovery, terminal = recover_store(store_path(config, store), dry_run=dry_run), Terminal(verbose)
    for line in recovery.lines:
        terminal.result(line)
    if recovery.recovered is not None:
        raise PartialFailure(f"what could be read was copied into {recovery.recovered}; see above for the rest")
