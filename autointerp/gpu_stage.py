"""The stages that run the language model: training, harvesting, merging, verifying. The torch side of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from autointerp.config import Config, SaeConfig
from autointerp.corpus.report import CorpusReport
from autointerp.corpus.sources import corpus_fingerprint
from autointerp.corpus.splits import require_all_splits
from autointerp.corpus.token_text import TokenText
from autointerp.errors import AutointerpError, InputError, MismatchError, OutOfMemoryError
from autointerp.evidence import harvest as evidence
from autointerp.evidence import memory
from autointerp.evidence.merge import CorpusFacts
from autointerp.evidence.merge import merge as merge_harvest
from autointerp.evidence.shards import HarvestFolder, may_hold, remove_folder
from autointerp.evidence.verify import recompute
from autointerp.evidence.vocab_projection import vocab_projection
from autointerp.gpu_session import (
    TRAINED,
    Session,
    corpus_key,
    d_sae_of,
    dictionary_id_of,
    digest,
    loaded_sae,
    matching_sae,
    model_key,
    placeless,
    warn_of_misfit,
)
from autointerp.model.batches import is_out_of_memory
from autointerp.model.hooks import Hookpoint, hidden_size_at
from autointerp.model.load import LoadedModel
from autointerp.records import SPLITS, WorkUnit
from autointerp.sae import files, parallel
from autointerp.sae.formats import load_sae, sae_sha256, save_saelens, save_sparsify
from autointerp.sae.formats.hooknames import to_hook_name
from autointerp.sae.model_source import ModelSource
from autointerp.sae.run import SaeSpec
from autointerp.sae.sae import Sae
from autointerp.sae.train import Trainer
from autointerp.store.evidence_file import bounds_of, remove_leftovers, stored_contexts
from autointerp.store.store import Store


def _training_key(config: Config, sae: SaeConfig) -> str:
    """Changes when a trained SAE would: model, text, hookpoint, sizes, recipe."""
    return digest(
        {
            "model": model_key(config),
            "corpus": corpus_key(config),
            "sae": {k: v for k, v in asdict(sae).items() if k not in ("name", "path", "format")},
            "train": {k: v for k, v in asdict(config.train).items() if k != "checkpoint_every"},
        }
    )


@contextmanager
def parallel_processes() -> Iterator[bool]:
    """Joins the processes that torchrun started, if it did; whether this is the one that writes."""
    parallel.start()
    try:
        yield parallel.is_first()
    finally:
        parallel.stop()


# --- training --------------------------------------------------------------------------------------------------------


def train(session: Session, store: Store | None, saes: Sequence[SaeConfig]) -> bool:
    """Train those of `saes` that name no path and are not there yet, together from one stream of activations; whether
    anything was done. Metrics go to the store and to metrics.jsonl. Under torchrun only the first process has a store,
    and only it writes.
    """
    config, terminal = session.config, session.terminal
    keys = {sae.dictionary: _training_key(config, sae) for sae in saes if not sae.path}
    todo = [sae for sae in saes if not sae.path and not _is_trained(session, sae, keys[sae.dictionary])]
    if not todo:
        return False
    session.check_corpus()
    loaded = session.model()
    points = {sae.dictionary: session.points(sae) for sae in todo}
    wanted = [point for pair in points.values() for point in pair if point is not None]
    source = ModelSource(loaded, wanted, config.corpus, config.model.batch_tokens)
    specs = [_spec(config, sae, points[sae.dictionary], source) for sae in todo]
    last: dict[str, Mapping[str, float]] = {}
    steps = max(1, config.train.tokens // config.train.batch_size)
    n_features = ", ".join(f"{spec.d_sae:,}" for spec in specs)
    names = ", ".join(spec.name for spec in specs)
    with terminal.progress(f"{names}: training {n_features} features", steps, "steps") as update:

        def on_progress(step: int, _: int) -> None:
            notes = (f"loss {m['loss']:.3f}, L0 {m['l0']:.0f}, dead {m['dead']:.1%}" for m in last.values())
            update(step, note="; ".join(notes))
            if step < steps and parallel.world_size() == 1 and session.deadline.left_s <= 0:
                trainer.save_checkpoints()
                session.deadline.check()

        try:
            trainer = Trainer(
                source,
                config.train,
                [(spec, session.sae_folder(sae) / "training") for spec, sae in zip(specs, todo, strict=True)],
                device=loaded.device,
                on_metrics=lambda name, step, metrics: last.update({name: metrics}),
                on_progress=on_progress,
            )
            trained = trainer.train()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory while training {names} ({str(error).splitlines()[0]}). Free some and run again, which "
                "goes on from the last checkpoint; or lower train.batch_size, train.buffer_vectors or the number of "
                "features, and delete the SAE's folder"
            ) from None
    if store is not None:
        for sae, weights in zip(todo, trained, strict=True):
            _keep_trained(session, store, sae, weights, keys[sae.dictionary])
    return True


def _is_trained(session: Session, sae: SaeConfig, key: str) -> bool:
    """Raises MismatchError where an SAE stands in the folder that was trained in another way."""
    folder = session.sae_folder(sae)
    if not (folder / TRAINED).exists():
        return False
    if json.loads((folder / TRAINED).read_text(encoding="utf-8")).get("key") != key:
        raise MismatchError(
            f"{folder} holds an SAE trained with other settings or other text; give this [[sae]] a new name, or delete "
            "the folder to train again"
        )
    session.terminal.say(f"{sae.dictionary}: trained already ({folder})")
    return True


def _spec(config: Config, sae: SaeConfig, points: tuple[Hookpoint, Hookpoint | None], source: ModelSource) -> SaeSpec:
    (begin, end), output = source.columns[points[0]], points[1]
    settings: dict[str, Any] = {"decoder_norm_penalty": sae.decoder_norm_penalty, "p_end": sae.p_end}
    return SaeSpec(
        name=sae.dictionary,
        architecture=sae.architecture,
        d_sae=d_sae_of(sae, end - begin),
        k=sae.k,
        inputs=(begin, end),
        outputs=None if output is None else source.columns[output],
        skip=sae.skip,
        penalty=sae.penalty,
        seed=config.train.seed if sae.seed is None else sae.seed,
        settings=settings | {"prefixes": list(sae.prefixes), "bandwidth": sae.bandwidth},
    )


def _keep_trained(session: Session, store: Store, sae: SaeConfig, weights: Sae, key: str) -> None:
    folder = session.sae_folder(sae)
    # SAELens has no class for a transcoder that chooses by k
    save = save_sparsify if sae.output_hookpoint is not None and weights.k is not None else save_saelens
    save(weights, folder, _metadata(session, sae, session.model()))
    sha256, saved = sae_sha256(folder, sae.format), load_sae(folder)
    dictionary_id = dictionary_id_of(session, store, sae, saved, sha256)
    metrics = _all_metrics(folder / "training" / "metrics.jsonl")
    store.insert_metrics(dictionary_id, metrics)
    mark = json.dumps({"key": key, "sae_sha256": sha256}) + "\n"
    files.write_atomically(folder / TRAINED, lambda temporary: temporary.write_text(mark, encoding="utf-8"))
    last = {row["metric"]: row["value"] for row in metrics}  # a run killed at its very end has no step left to tell of
    session.terminal.say(
        f"{sae.dictionary}: trained {weights.d_sae:,} features ({sae.architecture}), unexplained variance "
        f"{last['reconstruction']:.3f} at L0 {last['l0']:.1f} -> {folder}"
    )


def _all_metrics(path: Path) -> list[Mapping[str, Any]]:
    """Every logged step, those before a resume included."""
    rows: list[Mapping[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        logged = json.loads(line)
        step = logged.pop("step")
        rows.extend({"step": step, "metric": name, "value": value} for name, value in logged.items())
    return rows


def _metadata(session: Session, sae: SaeConfig, loaded: LoadedModel) -> dict[str, Any]:
    corpus = session.config.corpus
    return {
        "model_name": loaded.name,
        "model_revision": loaded.revision,
        "hook_name": to_hook_name(str(session.point(sae.hookpoint)), loaded.model) or sae.hookpoint,
        "module_path": sae.hookpoint,
        "context_size": corpus.context_length,
        "prepend_bos": corpus.prepend_bos != "never" and loaded.tokenizer.bos_token_id is not None,
        "dataset": corpus.source,
    }


# --- harvesting ------------------------------------------------------------------------------------------------------


class _Plan:
    """One dictionary's harvest: what it reads, where its units wait, and the key by which a finished one is known."""

    def __init__(self, session: Session, sae: SaeConfig) -> None:
        config = session.config
        self.session, self.sae = session, sae
        self.fingerprint = corpus_fingerprint(config.corpus)
        folder = session.sae_folder(sae)
        if not folder.exists():
            raise InputError(
                f"there is no SAE at {folder}; `autointerp train` makes it, or set path in its [[sae]] table"
            )
        self.sae_sha256 = sae_sha256(folder, sae.format)
        self.key = digest(
            {
                "model": [*model_key(config), config.model.batch_tokens],
                "sae": [sae.hookpoint, self.sae_sha256],
                "corpus": corpus_key(config),
                "harvest": asdict(config.harvest),
            }
        )

    def is_merged(self, store: Store) -> bool:
        held = [row for row in store.dictionaries() if row.name == self.sae.dictionary]
        if not held:
            return False
        current = store.current_harvest(held[0].dictionary_id)
        harvests = store.harvests(held[0].dictionary_id)
        return any(h.harvest_id == current and h.config.get("key") == self.key for h in harvests)

    def remove_work(self) -> None:
        """What a merge that was killed has left in the work folder. Units of a harvest with other settings stay: they
        wait for the rest of it."""
        config, folder = self.session.config, self.session.work_folder(self.sae)
        facts = evidence.identity_without_model(
            self.sae_sha256, placeless(config.corpus), self.fingerprint, config.harvest, config.model.batch_tokens
        )
        if may_hold(folder, facts):
            remove_folder(folder)

    def folder(self, sha256: str) -> HarvestFolder:
        config, loaded = self.session.config, self.session.model()
        identity = evidence.identity(
            loaded,
            self.session.point(self.sae.hookpoint),
            sha256,
            placeless(config.corpus),
            self.fingerprint,
            config.harvest,
            config.model.batch_tokens,
        )
        return HarvestFolder(self.session.work_folder(self.sae), identity, bounds_of(config.harvest))


def harvest_shard(session: Session, sae: SaeConfig, shard_index: int, num_shards: int) -> None:
    """Harvest one shard's work units into the work folder. The store is not touched."""
    session.check_corpus()
    plan = _Plan(session, sae)
    _check_room(session, sae)
    weights, sha256 = loaded_sae(session, sae)
    _harvest_units(session, sae, weights, plan.folder(sha256), evidence.Shard(shard_index, num_shards))


def harvest_and_merge(session: Session, store: Store, sae: SaeConfig) -> bool:
    """Harvest and merge unless the store holds this very harvest; whether anything was done."""
    plan = _Plan(session, sae)
    if plan.is_merged(store):
        session.terminal.say(f"{sae.dictionary}: harvested already")
        remove_leftovers(store)
        plan.remove_work()
        return False
    session.check_corpus()
    _check_room(session, sae)
    weights, sha256 = loaded_sae(session, sae)
    if sae.path:
        warn_of_misfit(session, sae, weights)
    dictionary_id_of(session, store, sae, weights, sha256)  # a taken name is refused before the work, not after it
    folder = plan.folder(sha256)
    folder.remove_leftovers()
    _harvest_units(session, sae, weights, folder, evidence.Shard())
    _merge(session, store, plan, weights, sha256, folder)
    return True


def _check_room(session: Session, sae: SaeConfig) -> None:
    """DiskFullError where the disk cannot take the harvest: said before the model is loaded, not hours later."""
    config = session.config
    needed = memory.disk_needed(load_sae(session.sae_folder(sae), sae.format), config.harvest, config.corpus)
    needed = memory.still_needed(needed, session.work_folder(sae))
    memory.check_disk(Path(config.store.path).parent, needed, sae.dictionary)


def merge(session: Session, store: Store, sae: SaeConfig) -> bool:
    """Merge the shards' units into the store; whether anything was done."""
    plan = _Plan(session, sae)
    if plan.is_merged(store):
        session.terminal.say(f"{sae.dictionary}: merged already")
        remove_leftovers(store)
        return False
    _check_room(session, sae)
    weights, sha256 = loaded_sae(session, sae)
    _merge(session, store, plan, weights, sha256, plan.folder(sha256))
    return True


def _harvest_units(
    session: Session, sae: SaeConfig, weights: Sae, folder: HarvestFolder, shard: evidence.Shard
) -> None:
    config, terminal, loaded = session.config, session.terminal, session.model()
    report = CorpusReport()

    def units(wanted: Callable[[int], bool]) -> Iterator[WorkUnit]:
        return session.units(report=report, wanted=wanted)

    seen = 0
    with terminal.progress(f"{sae.dictionary}: harvesting", config.corpus.max_tokens, "tokens") as update:

        def on_unit(unit: int, totals: Mapping[str, int]) -> None:
            nonlocal seen
            seen += sum(totals[f"n_tokens_{split}"] for split in SPLITS)
            update(seen, note=f"unit {unit}")
            session.deadline.check()  # the unit is kept, and the next run begins after it

        done = evidence.harvest(
            loaded,
            [evidence.Job(session.point(sae.hookpoint), weights, folder)],
            units,
            TokenText(loaded.tokenizer),
            config.harvest,
            batch_tokens=config.model.batch_tokens,
            exclude_tokens=config.corpus.exclude_tokens,
            shard=shard,
            on_unit=on_unit,
        )
    require_all_splits(report)
    terminal.say(
        f"{sae.dictionary}: harvested {done.n_tokens:,} tokens in {done.n_units} work units, from "
        f"{report.n_documents:,} documents"
    )
    if report.n_skipped:
        terminal.say(f"{sae.dictionary}: skipped {report.skipped_summary()}")
    if done.n_nonfinite:
        terminal.say(f"{sae.dictionary}: {done.n_nonfinite:,} tokens left out for NaN or infinite activations")
    if done.halvings:
        terminal.say(f"{sae.dictionary}: memory ran out, batches were halved {done.halvings} times")


def _merge(session: Session, store: Store, plan: _Plan, weights: Sae, sha256: str, folder: HarvestFolder) -> None:
    config, terminal, loaded, sae = session.config, session.terminal, session.model(), plan.sae
    dictionary_id = dictionary_id_of(session, store, sae, weights, sha256)
    text = TokenText(loaded.tokenizer)
    # The projection first: the features' rows, written last, are what marks a harvest as merged.
    projection = vocab_projection(loaded, weights, text, config.harvest.vocab_tokens)
    if projection is not None:
        store.insert_vocab_projection(
            dictionary_id, **{f.name: getattr(projection, f.name) for f in fields(projection)}
        )
    corpus = CorpusFacts(
        config.corpus.source, {**asdict(config.corpus), "fingerprint": plan.fingerprint}, loaded.tokenizer_sha256
    )
    counts = merge_harvest(store, dictionary_id, folder, weights, text, config.harvest, corpus, key=plan.key)
    listed = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    terminal.say(f"{sae.dictionary}: merged into {store.path.name}: {listed}")
    remove_folder(session.work_folder(sae))


def forecast_harvest(session: Session, sae: SaeConfig) -> None:
    """Print what a harvest would need in memory and on disk."""
    config, folder = session.config, session.sae_folder(sae)
    if (folder / "cfg.json").exists():
        weights, _ = loaded_sae(session, sae)
    else:
        width = hidden_size_at(session.model(), session.point(sae.hookpoint))
        weights = _untrained(width, d_sae_of(sae, width), sae.k)
    needed = memory.estimate(weights, config.harvest, config.corpus, config.model.batch_tokens)
    session.terminal.result(
        f"{sae.dictionary}: harvest of {needed.n_features:,} features needs about {_megabytes(needed.device)} of "
        f"memory beside the model, {needed.n_passes} pass(es) over the text, and at most "
        f"{_megabytes(needed.evidence_file)} on disk"
    )


def _untrained(d_in: int, d_sae: int, k: int) -> Sae:
    """An SAE of these sizes that takes no memory."""
    wide, narrow = torch.empty(d_in, d_sae, device="meta"), torch.empty(d_in, device="meta")
    return Sae(wide, torch.empty(d_sae, device="meta"), wide.T, narrow, k=k)


def _megabytes(n: int) -> str:
    return f"{n / 2**20:,.0f} MiB"


# --- verifying -------------------------------------------------------------------------------------------------------


def verify(session: Session, store: Store, sae: SaeConfig, sample: int, leaks: Sequence[str] = ()) -> None:
    """Check the store against model and SAE. MismatchError (exit 8) where they do not belong together; AutointerpError
    (exit 1) where a recomputed activation differs beyond the tolerance, or a law of the store does not hold. `leaks`:
    what the leakage check found broken, reported with the rest."""
    terminal, (row, weights), loaded = session.terminal, matching_sae(session, store, sae), session.model()
    broken = [*store.check(), *leaks]
    excluded = TokenText(loaded.tokenizer).excluded_ids(session.config.corpus.exclude_tokens)
    contexts = stored_contexts(store, row.dictionary_id, sample)
    if not contexts:
        raise InputError(f"{row.name} has no stored contexts to verify; run `autointerp harvest` first")
    deviation = recompute(
        loaded, session.point(sae.hookpoint), weights, contexts, session.config.model.batch_tokens, excluded
    )
    terminal.result(
        f"{row.name}: recomputed {deviation.n_contexts} contexts ({deviation.n_activations:,} tokens): largest "
        f"deviation {deviation.absolute:.2g}, {deviation.relative:.2g} of the peak (tolerance {deviation.tolerance:g})"
    )
    if not deviation.is_ok:
        raise AutointerpError(
            f"{row.name}: stored activations differ from the model's by {deviation.relative:.2g} of the peak, beyond "
            f"{deviation.tolerance:g}; the worst is context {deviation.worst_context}. The store was changed, or "
            "model and SAE are not those it was made with"
        )
    if broken:
        raise AutointerpError(f"{store.path}: {'; '.join(broken)}")
    terminal.result(f"{row.name}: splits are disjoint, rows agree with the ledger")
