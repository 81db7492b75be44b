"""One function for each stage. This is the only place where the torch side and the LLM side meet.

Every stage is idempotent: it skips what is done, says so, and continues where it was stopped. torch is imported only
when a stage needs it, so explaining, scoring and querying run without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from autointerp.config import BudgetConfig, Config, SaeConfig
from autointerp.dictionary_controls import DICTIONARY_CONTROLS
from autointerp.errors import AutointerpError, InputError, PartialFailure, nearest
from autointerp.evidence.methods import check_methods
from autointerp.export.export_folder import export_folder
from autointerp.export.export_target import Job, Tally, Target
from autointerp.export.whole_folder import check_free
from autointerp.stages import labelling
from autointerp.stages.checks import Check
from autointerp.stages.control_dictionaries import check_names, control_configs, held_controls
from autointerp.stages.evaluate_options import EvaluateOptions, check_options
from autointerp.stages.label_checks import label_checks, require_prices
from autointerp.stages.labelling import Labelling
from autointerp.stages.recorded_run import recorded, told
from autointerp.store.leakage import LeakageReport, check_leakage
from autointerp.store.progress_file import remove_shards_files
from autointerp.store.rows import DictionaryRow
from autointerp.store.safety.new_store import trial_store
from autointerp.store.safety.paths import path_with_folder, refuse_own_file
from autointerp.store.safety.reading import open_for_reading
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.terminal import Terminal

if TYPE_CHECKING:
    from autointerp.stages.session import Session

_GPU_PACKAGES = {"torch", "transformers", "safetensors", "tokenizers", "huggingface_hub"}


def require_torch() -> None:
    """Raise InputError if the packages that run the language model are not installed. After this call, stages that need
    them can be imported."""
    try:
        import autointerp.stages.session  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _GPU_PACKAGES:
            raise
        raise InputError(
            f"this stage runs the language model and needs {error.name}: pip install 'autointerp[gpu]'"
        ) from None


def gpu_session(
    config: Config, terminal: Terminal, more_checks: Sequence[Check] = (), explains: bool = False
) -> Session:
    """A session, which loads the model when it is needed, and whose passes over the text begin with `more_checks`
    besides their own. `explains`: the configured explainer will read what they find. Raises InputError if torch is not
    installed."""
    require_torch()
    from autointerp.stages.session import Session

    methods = {*config.evidence.methods, *labelling.methods_read(config.explain)}
    needed = explains and labelling.needs_promoted_tokens(config.explain)
    return Session(config, terminal, more_checks, methods, needs_promoted_tokens=needed)


def chosen_saes(config: Config, dictionary: str | None) -> tuple[SaeConfig, ...]:
    """The [[sae]] tables to work on: all, or the named one."""
    if not config.sae:
        raise InputError("the configuration has no [[sae]] table; add one with a hookpoint")
    for sae in config.sae:
        if not sae.hookpoint:
            raise InputError("a [[sae]] table lacks its hookpoint, for example hookpoint = 'transformer.h.6'")
    if dictionary is None:
        return config.sae
    found = tuple(s for s in config.sae if s.dictionary == dictionary)
    if not found:
        names = [s.dictionary for s in config.sae]
        raise InputError(
            f"no [[sae]] table is named {dictionary!r}; there is {', '.join(names)}.{nearest(dictionary, names)}"
        )
    return found


@contextmanager
def _labelling(
    config: Config, command: str, selection: Selection, terminal: Terminal, prompts: Path | None, dry_run: bool
) -> Iterator[Labelling]:
    """The Labelling of a run made by `recorded`. A dry run opens the store for reading and leaves no row in `runs`."""
    if dry_run:
        with Store.open(Path(config.store.path), read_only=True) as store:
            yield Labelling(config, store, "dry-run", selection, terminal, prompts)
        return
    with recorded(config, command, terminal, create=False, selection=selection, is_summed_up=True) as (store, run_id):
        yield Labelling(config, store, run_id, selection, terminal, prompts)


def train(config: Config, dictionary: str | None, terminal: Terminal) -> None:
    """Train every chosen SAE whose table names no path."""
    require_torch()
    from autointerp.stages import training

    saes = chosen_saes(config, dictionary)
    for sae in saes:
        if sae.path:
            terminal.say(f"{sae.dictionary}: uses the SAE at {sae.path}, nothing to train")
    with training.parallel_processes() as is_first:
        if not is_first:  # under torchrun one process writes
            training.train(gpu_session(config, terminal.silent()), None, saes)
            return
        with recorded(config, "train", terminal) as (store, _):
            training.train(gpu_session(config, terminal), store, saes)


def harvest(
    config: Config,
    dictionary: str | None,
    terminal: Terminal,
    shard_index: int = 0,
    num_shards: int = 1,
    dry_run: bool = False,
) -> None:
    """Collect evidence. One shard of several never touches the store; a single shard is merged at once."""
    check_methods(config.evidence.methods)
    session = gpu_session(config, terminal)
    from autointerp.stages import harvesting

    saes = chosen_saes(config, dictionary)
    if dry_run:
        harvesting.forecast_harvest(session, saes)
        return
    if num_shards > 1:
        path = path_with_folder(config.store.path)
        part = f"shard-{shard_index}-of-{num_shards}"
        with terminal.working("running harvest"), told(path, "harvest", terminal, part):
            harvesting.harvest_shard(session, saes, shard_index, num_shards)
        terminal.say(f"shard {shard_index} of {num_shards} is done; run `autointerp merge` when all are done")
        return
    with recorded(config, "harvest", terminal) as (store, _):
        harvesting.harvest_and_merge(session, store, saes)
        _gather(session, store, saes, Selection())


def evaluate(
    config: Config, dictionary: str | None, options: EvaluateOptions, terminal: Terminal
) -> list[Mapping[str, Any]]:
    """Measure how good the chosen dictionaries are. Writes the rows to sae_metrics and returns them."""
    require_torch()
    from autointerp.stages import evaluating

    check_options(options)
    if options.report is not None:
        refuse_own_file(Path(config.store.path), options.report)
    with recorded(config, "evaluate", terminal) as (store, _):
        return evaluating.evaluate(gpu_session(config, terminal), store, chosen_saes(config, dictionary), options)


def check_sae(config: Config, sae: SaeConfig, terminal: Terminal) -> tuple[list[dict[str, Any]], str | None]:
    """Check one dictionary that was made elsewhere by itself, without a store: whether it is read as it was trained.
    Returns the readings that were tried, and what to do if it does not fit what it declares."""
    require_torch()
    from autointerp.stages import fit_check

    return fit_check.check_file(gpu_session(config, terminal), sae)


def measure(
    config: Config, dictionary: str | None, selection: Selection, terminal: Terminal, methods: Sequence[str] = ()
) -> int:
    """Run evidence methods (the configured ones, those that its explainer reads, and `methods`) on the chosen features
    on which they have not been run yet. Then answer what scorers have asked of the model. Returns how many tasks were
    measured."""
    check_methods((*config.evidence.methods, *methods))
    require_torch()
    from autointerp.stages import measuring

    with recorded(config, "measure", terminal, create=False) as (store, _):
        session = gpu_session(config, terminal)
        saes = chosen_saes(config, dictionary)
        _gather(session, store, saes, selection, methods)
        return sum(measuring.measure(session, store, sae, selection) for sae in saes)


def _gather(
    session: Session, store: Store, saes: Sequence[SaeConfig], selection: Selection, methods: Sequence[str] = ()
) -> bool:
    """Gather evidence beyond the harvest. Returns whether there was any to gather."""
    from autointerp.stages import gathering

    config: Config = session.config
    wanted = {*config.evidence.methods, *labelling.methods_read(config.explain), *methods}
    found = [gathering.gather(session, store, sae, sorted(wanted), labelling.describe_shape, selection) for sae in saes]
    return any(found)


def merge(config: Config, dictionary: str | None, terminal: Terminal) -> None:
    """Merge finished shards into the store."""
    check_methods(config.evidence.methods)
    require_torch()
    from autointerp.stages import harvesting

    with recorded(config, "merge", terminal) as (store, _):
        session = gpu_session(config, terminal)
        saes = chosen_saes(config, dictionary)
        harvesting.merge(session, store, saes)
        remove_shards_files(Path(config.store.path))
        _gather(session, store, saes, Selection())


def explain(
    config: Config,
    dictionary: str | None,
    selection: Selection,
    terminal: Terminal,
    dry_run: bool = False,
    is_configured: bool = True,
    prompts: Path | None = None,
    command: str = "explain",
) -> None:
    """Labels features of one dictionary, or of all in the store. The view `labels` then shows this explainer, unless it
    was named for this run only (not `is_configured`). `prompts`, here and below, is a folder of templates that replace
    the program's own. `command`: what the run is called."""
    with _labelling(config, command, selection, terminal, prompts, dry_run) as work:
        rows = labelling.dictionaries(work.store, config, dictionary)
        if dry_run:
            labelling.forecast(work, rows, ("explain",))
            return
        failed = 0
        for row in rows:
            if is_configured:
                labelling.show_in_labels(config, work.store, row)
            failed += labelling.explain(work, row)
        _complain(failed)


def compile_labels(
    config: Config,
    dictionary: str | None,
    explainer: str | None,
    selection: Selection,
    terminal: Terminal,
    dry_run: bool = False,
    prompts: Path | None = None,
) -> None:
    """Writes labels by `explainer` as rules. None: by the only one that has labels without a rule."""
    if explainer is None:
        with open_for_reading(Path(config.store.path), terminal.say) as store:
            explainer = labelling.explainer_to_compile(store, config, dictionary)
    compiled = replace(config, explain=replace(config.explain, explainer=labelling.compiled_name(explainer)))
    explain(compiled, dictionary, selection, terminal, dry_run, False, prompts, "compile")


def score(
    config: Config,
    dictionary: str | None,
    selection: Selection,
    terminal: Terminal,
    dry_run: bool = False,
    control: str | None = None,
    prompts: Path | None = None,
) -> None:
    """Scores labels of one dictionary, or of all in the store; under a `control`, the texts that replace them, or the
    labels of that control of the dictionary."""
    labelling.check_control(control)
    with _labelling(config, "score", selection, terminal, prompts, dry_run) as work:
        rows = labelling.dictionaries(work.store, config, dictionary)
        if control in DICTIONARY_CONTROLS:
            rows, control = held_controls(work.store, rows, control), None
        failed = 0
        if not dry_run:
            require_prices(config, work.store, prompts, explains=False)
        for row in rows:
            if dry_run:
                labelling.forecast(work, [row], ("score",), [control])
            else:
                failed += labelling.score(work, row, control)
        _complain(failed)


def run(
    config: Config,
    dictionary: str | None,
    selection: Selection,
    terminal: Terminal,
    dry_run: bool = False,
    controls: Sequence[str] = (),
    prompts: Path | None = None,
) -> None:
    """Runs all stages in order; each skips what is done. Controls that stand in for labels affect only the scores. For
    a control of the whole dictionary all stages run anew, and make a dictionary of its own; what they read is made by
    an earlier run. All of it is under one budget. Where rows failed, the others go on, and the error comes last."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("torchrun starts several processes, and only `autointerp train` shares its work among them")
    for control in controls:
        labelling.check_control(control)
    check_methods(config.evidence.methods)
    saes = chosen_saes(config, dictionary)
    stand_ins = [control for control in controls if control not in DICTIONARY_CONTROLS]
    whole = [control for control in controls if control in DICTIONARY_CONTROLS]
    if whole:
        check_names([sae.dictionary for sae in saes])
    failure: PartialFailure | None = None
    budget = config.budget
    if stand_ins or not whole:
        failure, budget = _run_stages(config, saes, selection, terminal, dry_run, stand_ins, prompts)
    for made in control_configs(config, saes, whole, terminal) if whole else ():
        made = replace(made, budget=budget)
        later, budget = _run_stages(made, made.sae, selection, terminal, dry_run, (), prompts)
        failure = later or failure
    if failure is not None:
        raise failure


def _run_stages(
    config: Config, saes: tuple[SaeConfig, ...], selection: Selection, terminal: Terminal, dry_run: bool,
    stand_ins: Sequence[str], prompts: Path | None,
) -> tuple[PartialFailure | None, BudgetConfig]:  # fmt: skip
    """Runs all stages for `saes`, recorded as one run. Returns the error that it ends with if rows failed, and what it
    leaves of its budget."""
    if dry_run:
        _forecast_run(config, saes, selection, terminal, stand_ins, prompts)
        return None, config.budget
    try:
        with recorded(config, "run", terminal, selection=selection, is_summed_up=True) as (store, run_id):
            work = Labelling(config, store, run_id, selection, terminal, prompts)
            checks = label_checks(config, store, prompts)
            require_prices(config, store, prompts)
            worked = _gpu_stages(config, saes, store, selection, terminal, checks)
            failed = 0
            for sae in saes:
                row = store.dictionary(sae.dictionary)
                before = store.row_counts()
                labelling.show_in_labels(config, store, row)
                failed += labelling.explain(work, row)
                for told in (None, *dict.fromkeys(stand_ins)):
                    failed += _score_and_measure(work, row, sae, told)
                worked = worked or store.row_counts() != before
            if not worked:
                terminal.say("everything was done already; nothing to do")
            _complain(failed)
    except PartialFailure as failure:
        return failure, work.budget.rest()
    return None, work.budget.rest()


def _score_and_measure(work: Labelling, row: DictionaryRow, sae: SaeConfig, control: str | None) -> int:
    """Scores. If scorers ask something of the model, measures it and lets them judge. Returns how many rows failed."""
    failed = labelling.score(work, row, control)
    store, terminal = work.store, work.terminal
    asked = store.tasks_to_measure(row.dictionary_id, store.selected_features(row.dictionary_id, work.selection))
    if not asked:
        return failed
    try:
        require_torch()
    except InputError as error:
        terminal.say(f"{len(asked):,} questions wait for a machine with the model ({error}): `autointerp measure`")
        return failed
    from autointerp.stages import measuring

    measuring.measure(gpu_session(work.config, terminal), store, sae, work.selection)
    return failed + labelling.score(work, row, control)


def _gpu_stages(
    config: Config,
    saes: tuple[SaeConfig, ...],
    store: Store,
    selection: Selection,
    terminal: Terminal,
    checks: Sequence[Check],
) -> bool:
    """Train, harvest and merge what is missing, and gather evidence. Returns whether anything was done. Without torch
    it only says that labelling continues with what the store holds, or raises InputError if a dictionary is missing.
    `checks` are looked at before the first pass over the text, if there is one."""
    try:
        require_torch()
    except InputError as error:
        held = {row.name for row in store.dictionaries()}
        if not all(sae.dictionary in held for sae in saes):
            raise
        terminal.say(f"not harvesting here ({error}); labelling what the store holds")
        return False
    from autointerp.stages import harvesting, training

    session = gpu_session(config, terminal, checks, explains=True)
    worked = training.train(session, store, saes)
    worked = harvesting.harvest_and_merge(session, store, saes) or worked
    return _gather(session, store, saes, selection) or worked


def _forecast_run(
    config: Config, saes: tuple[SaeConfig, ...], selection: Selection, terminal: Terminal, stand_ins: Sequence[str],
    prompts: Path | None,
) -> None:  # fmt: skip
    session = gpu_session(config, terminal)
    from autointerp.stages import harvesting

    harvesting.forecast_harvest(session, saes)
    not_yet = "labels: calls and cost are known once the harvest has filled the store"
    if not Path(config.store.path).exists():
        terminal.result(not_yet)
        with trial_store(Path(gettempdir()) / "empty.duckdb") as empty:
            require_prices(config, empty, prompts)
        return
    names = {sae.dictionary for sae in saes}
    with Store.open(Path(config.store.path), read_only=True) as store:
        rows = [row for row in store.dictionaries() if row.name in names]
        harvested = [row for row in rows if store.current_harvest(row.dictionary_id) is not None]
        if len(harvested) < len(names):
            terminal.result(not_yet)
            require_prices(config, store, prompts)
        if harvested:
            work = Labelling(config, store, "dry-run", selection, terminal, prompts)
            labelling.forecast(work, harvested, controls=(None, *stand_ins))


def verify(config: Config, dictionary: str | None, sample: int, terminal: Terminal, as_json: bool = False) -> None:
    """Look for leakage, recompute stored activations, and check the splits and the row ledger (the ledger is checked as
    the store opens). With `as_json` the only printed result is the leakage reports as JSON."""
    require_torch()
    from autointerp.stages import verifying

    with terminal.working("verifying"), Store.open(Path(config.store.path), read_only=True) as store:
        saes = chosen_saes(config, dictionary)
        reports = [check_leakage(store, store.dictionary(sae.dictionary)) for sae in saes]
        _print_leakage(reports, terminal, as_json)
        session = gpu_session(config, terminal.without_results(as_json))
        for sae, report in zip(saes, reports, strict=True):
            verifying.verify(session, store, sae, sample, report.broken())


def verify_leakage(path: Path, dictionary: str | None, terminal: Terminal, as_json: bool = False) -> None:
    """Look for leakage in one dictionary of the store at `path`, or in all. This needs neither model nor SAE.

    Raises InputError if there is nothing to check, and AutointerpError (exit 1) if explain and held-out text, or
    selection and reporting, are not separate.
    """
    with open_for_reading(path, terminal.say) as store:
        rows = [store.dictionary(dictionary)] if dictionary else store.dictionaries() or [store.dictionary()]
        reports = [check_leakage(store, row) for row in rows]
    _print_leakage(reports, terminal, as_json)
    broken = [f"{report.dictionary}: {line}" for report in reports for line in report.broken()]
    if broken:
        raise AutointerpError(f"{path}: {'; '.join(broken)}")


def export(
    config: Config | None, job: Job, target: Target, out: Path, terminal: Terminal, force: bool = False
) -> Tally:  # fmt: skip
    """Write the folder `out` for another tool, whole or not at all, and return what it holds. `config` is needed where
    the target reads the dictionaries' files. Raises InputError for what the other tool has no form for."""
    check_free(out, force)  # before a model is loaded
    if target.needs_weights:
        assert config is not None
        saes = [sae for name in job.dictionaries or (None,) for sae in chosen_saes(config, name)]
        session = gpu_session(config, terminal)
        from autointerp.stages.held_weights import sources_of

        job = replace(job, sources=lambda: sources_of(session, saes))
    return export_folder(target, job, out, force)


def _print_leakage(reports: Sequence[LeakageReport], terminal: Terminal, as_json: bool) -> None:
    if as_json:
        terminal.result(json.dumps([report.as_dict() for report in reports], indent=1))
        return
    for report in reports:
        for line in report.lines():
            terminal.result(line)


def _complain(failed: int) -> None:
    if failed:
        raise PartialFailure(
            f"finished, but {failed} rows failed; `autointerp status` counts them by kind, and running again retries "
            "those an endpoint gave up on"
        )
