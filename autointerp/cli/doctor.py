"""`autointerp doctor`: checks what will work and what will not, before a long run finds out. Each check is a line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from autointerp.config import Config
from autointerp.errors import AutointerpError
from autointerp.stages.checked_endpoint import DEFAULT_KEY_ENV, CheckedEndpoint
from autointerp.stages.checks import Check, Lack
from autointerp.stages.doctor_checks import doctor_checks
from autointerp.stages.endpoint_checks import endpoint_checks
from autointerp.terminal import Terminal


def run_doctor(config: Config, terminal: Terminal, prompts: Path | None = None, with_calls: bool = True) -> None:
    """Look at everything that a run with this configuration would refuse."""
    with doctor_checks(config, terminal, prompts, with_calls) as checks:
        look_at(checks, terminal)


def check_endpoint(
    base_url: str, model: str | None, embedding_model: str | None, api_key_env: str | None, batch: bool,
    terminal: Terminal,
) -> None:  # fmt: skip
    """Look at what one endpoint honours, and take a tiny store through the stages that ask it."""
    key = DEFAULT_KEY_ENV if api_key_env is None else api_key_env
    with endpoint_checks(CheckedEndpoint(base_url, model, embedding_model, key, batch), terminal) as checks:
        look_at(checks, terminal)


def look_at(checks: Iterable[Check], terminal: Terminal) -> None:
    """Print a line for every check, and before one that costs something, what it costs. After all have run, raise the
    first failure's error, and so use its exit code."""
    failures: list[AutointerpError] = []
    failed: set[str] = set()
    for check in checks:
        terminal.detail(f"{check.name}: unless it is looked at, {check.why}")
        missing = [name for name in check.after if name in failed]
        skipped = f"it needs the {' and the '.join(missing)}" if missing else check.skipped
        if skipped:
            terminal.result(f"skip  {check.name}: {skipped}")
            continue
        if check.pays:
            terminal.result(f"note  {check.name}: {check.pays}")
        try:
            said = check.look()
            terminal.result(f"{'none' if isinstance(said, Lack) else 'ok  '}  {check.name}: {said}")
        except AutointerpError as error:
            failures.append(error)
            failed.add(check.name)
            terminal.result(f"FAIL  {check.name}: {error}")
    if failures:
        raise failures[0]
