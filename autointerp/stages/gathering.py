"""The stage that runs evidence methods, which study features beyond the harvest.

Every method is run once for each harvest and settings. Its findings are rows in a table of the store, for explainers
and for SQL. The table method_runs says on which features it was run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from autointerp.config import EvidenceConfig, SaeConfig
from autointerp.errors import AutointerpError, InputError
from autointerp.evidence.method import Columns, Describe, Found, Method, Study
from autointerp.evidence.methods import check_methods
from autointerp.records import WorkUnit
from autointerp.stages.session import Session, check_splits, digest, matching_sae
from autointerp.store.findings import MethodRun
from autointerp.store.recurring_tokens import LISTS, count_recurring_tokens
from autointerp.store.selection import Selection
from autointerp.store.store import Store

BLOCK = 64
"""The most features that one call of a method of scope "feature" gets. Their findings are written together, so a kill
loses no more."""
FIRST_BLOCK = 16
"""Features of the first block, which shows how fast the model is."""
BLOCK_SECONDS = 120.0
"""About how long a block may take, so that a kill costs no more however slow the model is."""
VERSION = 1
"""To be incremented when a built-in method's findings change under equal settings."""

EVERYTHING = Selection()


def gather(
    session: Session,
    store: Store,
    sae: SaeConfig,
    methods: Sequence[str],
    describe: Describe,
    selection: Selection = EVERYTHING,
) -> bool:
    """Run `methods` on the features on which they have not been run yet. Returns whether there were any.

    A method of scope "dictionary" ignores the selection. `describe` puts a shape into words. Raises InputError for an
    unknown method, or if nothing was harvested.
    """
    chosen = check_methods(methods)
    study = _study(session, store, sae, describe)
    row = study.dictionary
    worked = False
    for method in chosen:
        settings = settings_sha256(method, session.config.evidence)
        wanted = store.selected_features(row.dictionary_id, selection if method.scope == "feature" else EVERYTHING)
        studied = store.features_studied(method.name, row.dictionary_id, study.harvest_id, settings)
        pending = [feature for feature in wanted if feature not in studied]
        try:
            if not pending:
                continue
            store.add_finding_table(method.table)
            if method.scope == "feature":
                _in_blocks(session, study, method, settings, pending)
            else:
                _at_once(session, study, method, settings)
        finally:  # of what an earlier run found too, which may have been killed before it counted
            if method.table.name in LISTS:
                count_recurring_tokens(store, row.dictionary_id, method.table.name)
        worked = True
    return worked


def settings_sha256(method: Method, config: EvidenceConfig) -> str:
    """Identifies everything that the findings depend on besides the harvest."""
    return digest([VERSION, method.name, dict(method.settings(config))])


def _study(session: Session, store: Store, sae: SaeConfig, describe: Describe) -> Study:
    row = store.dictionary(sae.dictionary)
    harvest_id = store.current_harvest(row.dictionary_id)
    if harvest_id is None:
        raise InputError(f"{row.name} was not harvested yet; run `autointerp harvest` first")
    harvested = next(h.config for h in store.harvests(row.dictionary_id) if h.harvest_id == harvest_id)

    def units() -> Iterator[WorkUnit]:
        check_splits(session.config, row, harvested)
        return session.units()

    return Study(
        store=store,
        dictionary=row,
        harvest_id=harvest_id,
        config=session.config,
        model=session.model,
        weights=cache(lambda: matching_sae(session, store, sae)[1]),
        points=lambda: session.points(sae),
        units=units,
        describe_shape=describe,
        counting=session.terminal.counting(row.name),
    )


def _at_once(session: Session, study: Study, method: Method, settings: str) -> None:
    features = study.living()
    with session.terminal.working(f"{study.dictionary.name}: {method.name}"):
        found = method.find(study, features)
    columns = _of_features(found.columns, set(features))
    _write(study, method, settings, _runs(found, features), columns)
    n = len(next(iter(columns.values()), ()))
    session.terminal.say(f"{study.dictionary.name}: {method.name} of {len(features):,} features: {n:,} rows")


def _in_blocks(session: Session, study: Study, method: Method, settings: str, pending: Sequence[int]) -> None:
    name, done, size = f"{study.dictionary.name}: {method.name}", 0, FIRST_BLOCK
    with session.terminal.progress(name, len(pending), "features") as update:
        while done < len(pending):
            block, begun = pending[done : done + size], time.monotonic()
            found = method.find(study, block)
            _write(study, method, settings, _runs(found, block), found.columns)
            done += len(block)
            update(done)
            if done < len(pending):
                session.deadline.check()
            size = next_block(len(block), time.monotonic() - begun)


def next_block(n: int, seconds: float) -> int:
    """Features of the next block, after `n` features took `seconds`: at most BLOCK, and about BLOCK_SECONDS of work."""
    return min(BLOCK, max(1, int(n * BLOCK_SECONDS / max(seconds, 1e-9))))


def _runs(found: Found, features: Sequence[int]) -> Sequence[MethodRun]:
    """One run for each feature. If the method returned no runs, the first feature's run carries the cost of all."""
    if found.runs:
        silent = set(features) - {run.feature for run in found.runs}
        if silent:
            raise AutointerpError(
                f"an evidence method returned no run for feature {min(silent)}, which it was asked about"
            )
        return found.runs
    return [
        MethodRun(f, n_forwards=0 if i else found.n_forwards, n_tokens=0 if i else found.n_tokens)
        for i, f in enumerate(features)
    ]


def _write(study: Study, method: Method, settings: str, runs: Sequence[MethodRun], columns: Columns) -> None:
    plain = {name: _plain(values) for name, values in columns.items()}
    if plain and "feature" not in plain:
        raise AutointerpError(f"the evidence method {method.name!r} returned columns without `feature`")
    study.store.replace_findings(method.name, study.dictionary_id, study.harvest_id, settings, runs, plain)


def _of_features(columns: Columns, features: set[int]) -> Columns:
    """The rows of these features. Dead features are not among them, so they get no findings."""
    kept = [i for i, feature in enumerate(columns.get("feature", ())) if int(feature) in features]
    return {name: [values[i] for i in kept] for name, values in ((n, _plain(v)) for n, v in columns.items())}


def _plain(values: Sequence[object]) -> Sequence[object]:
    return values.tolist() if isinstance(values, np.ndarray) else values
