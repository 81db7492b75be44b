"""All checks of one configuration, for `autointerp doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir

from autointerp.config import Config
from autointerp.errors import AutointerpError, InputError
from autointerp.evidence.methods import check_methods
from autointerp.stages.checks import Check
from autointerp.stages.label_checks import label_checks
from autointerp.stages.pipeline import gpu_session
from autointerp.store.safety.new_store import trial_store
from autointerp.store.safety.paths import real_path
from autointerp.store.safety.reading import open_for_reading
from autointerp.store.store import Store
from autointerp.terminal import Terminal


@contextmanager
def doctor_checks(
    config: Config, terminal: Terminal, prompts: Path | None = None, with_calls: bool = True
) -> Iterator[list[Check]]:
    """Every check there is: those of the configuration and of the store, of labelling with the templates in `prompts`,
    of model, text and SAEs where torch is installed, and last, `with_calls`, those that ask an endpoint."""
    path, failure = Path(config.store.path), None
    with ExitStack() as stack:
        try:
            exists = real_path(path).exists()
            store = stack.enter_context(open_for_reading(path, terminal.say) if exists else trial_store(path))
        except AutointerpError as error:
            failure = error
            store = stack.enter_context(trial_store(Path(gettempdir()) / "empty.duckdb"))
        labelling = label_checks(config, store, prompts, asks=True)
        yield [
            Check("evidence methods", "an unknown one ends a run after its harvest", lambda: _methods(config)),
            Check("store", "one that cannot be made or opened ends a run", lambda: _described(path, store, failure)),
            *(check for check in labelling if not check.pays),
            *_model_checks(config, terminal, store),
            *(_unasked(check) if not with_calls else check for check in labelling if check.pays),
        ]


def _unasked(check: Check) -> Check:
    return Check(check.name, check.why, skipped="it is not asked (--no-calls)")


def _model_checks(config: Config, terminal: Terminal, store: Store) -> list[Check]:
    name = "model, corpus and SAE"
    try:
        session = gpu_session(config, terminal, explains=True)
    except InputError as error:
        return [Check(name, "a harvest needs it", skipped=str(error))]
    from autointerp.stages.model_checks import dtype_check, model_checks

    return [*model_checks(session, config.sae, store), dtype_check(session)]


def _methods(config: Config) -> str:
    return ", ".join(method.name for method in check_methods(config.evidence.methods)) or "none"


def _described(path: Path, store: Store, failure: AutointerpError | None) -> str:
    if failure is not None:
        raise failure
    if not path.exists():
        return f"{path} does not exist yet; the first run makes it"
    return f"{path} opens; dictionaries: {', '.join(row.name for row in store.dictionaries()) or 'none yet'}"
