"""`autointerp doctor`: checks what will work and what will not, before a long run finds out. Each check is a line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from autointerp.config import Config
from autointerp.errors import AutointerpError
from autointerp.stages import labelling, pipeline
from autointerp.store.safety.reading import open_for_reading
from autointerp.terminal import Terminal


def run_doctor(config: Config, terminal: Terminal) -> None:
    """Print a line for every check. After all have run, raise the first failure's error, and so use its exit code."""
    failures: list[AutointerpError] = []

    def check(what: str, work: Callable[[], str]) -> None:
        try:
            terminal.result(f"ok    {what}: {work()}")
        except AutointerpError as error:
            failures.append(error)
            terminal.result(f"FAIL  {what}: {error}")

    try:
        session = pipeline.gpu_session(config, terminal)
    except AutointerpError as error:
        terminal.result(f"skip  model, corpus and SAE: {error}")
    else:
        check("model", session.describe_model)
        check("corpus", session.describe_corpus)
        for sae in config.sae:
            check(f"SAE {sae.dictionary}", lambda sae=sae: session.describe_sae(sae))  # type: ignore[misc]
    check("evidence methods", lambda: pipeline.describe_methods(config))
    if (short := labelling.short_of_contexts(config)) is not None:
        terminal.result(f"warn  contexts: {short}")
    path = Path(config.store.path)
    check("store", lambda: _store(path, terminal.say))
    for stage, endpoint in (("explain", config.explain), ("score", config.score)):
        if endpoint.model:
            check(f"{stage} endpoint", lambda e=endpoint: asyncio.run(labelling.describe_endpoint(config, e)))  # type: ignore[misc]
        else:
            terminal.result(f"skip  {stage} endpoint: no model is set")
    if failures:
        raise failures[0]


def _store(path: Path, say: Callable[[str], None]) -> str:
    if not path.exists():
        return f"{path} does not exist yet; the first run makes it"
    with open_for_reading(path, say) as store:
        names = ", ".join(row.name for row in store.dictionaries())
    return f"{path} opens; dictionaries: {names or 'none yet'}"
