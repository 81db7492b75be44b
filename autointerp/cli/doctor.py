"""`autointerp doctor`: checks what will work and what will not, before a long run finds out. Each check is a line."""

from __future__ import annotations

from pathlib import Path

from autointerp.config import Config
from autointerp.errors import AutointerpError
from autointerp.stages.doctor_checks import doctor_checks
from autointerp.terminal import Terminal


def run_doctor(config: Config, terminal: Terminal, prompts: Path | None = None, with_calls: bool = True) -> None:
    """Print a line for every check, and before one that costs something, what it costs. After all have run, raise the
    first failure's error, and so use its exit code."""
    failures: list[AutointerpError] = []
    failed: set[str] = set()
    with doctor_checks(config, terminal, prompts, with_calls) as checks:
        for check in checks:
            terminal.detail(f"{check.name}: unless it is looked at, {check.why}")
            missing = [name for name in check.after if name in failed]
            skipped = f"it needs the {' and the '.join(missing)}" if missing else check.skipped
            if skipped:
                terminal.result(f"skip  {check.name}: {skipped}")
                continue
            if check.pays:
                terminal.result(f"note  {check.name}: {check.pays} (--no-calls leaves this out)")
            try:
                terminal.result(f"ok    {check.name}: {check.look()}")
            except AutointerpError as error:
                failures.append(error)
                failed.add(check.name)
                terminal.result(f"FAIL  {check.name}: {error}")
    if failures:
        raise failures[0]
