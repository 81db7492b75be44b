"""The stage that harvests evidence and merges it into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch

from autointerp.config import SaeConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import corpus_fingerprint
from autointerp.corpus.splits import require_all_splits
from autointerp.corpus.token_text import TokenText
from autointerp.errors import InputError
from autointerp.harvest import memory
from autointerp.harvest import text_pass as evidence
from autointerp.harvest.merge import CorpusFacts
from autointerp.harvest.merge import merge as merge_harvest
from autointerp.harvest.shards import HarvestFolder, may_hold, remove_folder
from autointerp.harvest.vocab_projection import vocab_projection
from autointerp.model.hooks import hidden_size_at
from autointerp.records import SPLITS, WorkUnit
from autointerp.sae.formats import load_sae, sae_sha256
from autointerp.sae.sae import Sae
from autointerp.stages.session import (
    Session,
    corpus_key,
    d_sae_of,
    dictionary_id_of,
    digest,
    loaded_sae,
    model_key,
    placeless,
    warn_of_misfit,
)
from autointerp.store.merge_units import bounds_of, remove_leftovers
from autointerp.store.store import Store


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
