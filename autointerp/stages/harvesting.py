"""The stage that harvests evidence and merges it into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch

from autointerp.config import SaeConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.splits import require_all_splits
from autointerp.errors import InputError, NoProjection
from autointerp.harvest import memory, text_pass
from autointerp.harvest.embedding_neighbours import embedding_neighbours
from autointerp.harvest.heads import head_parts
from autointerp.harvest.merge import CorpusFacts
from autointerp.harvest.merge import merge as merge_harvest
from autointerp.harvest.shards import HarvestFolder, may_hold, remove_folder
from autointerp.harvest.target import Target
from autointerp.harvest.vocab_projection import no_projection, vocab_projection
from autointerp.model.hooks import hidden_size_at
from autointerp.model.logit_path import LogitPath
from autointerp.records import SPLITS, WorkUnit
from autointerp.sae.formats import load_sae
from autointerp.sae.formats.hooknames import may_hold_heads
from autointerp.sae.sae import Sae
from autointerp.stages.checks import require
from autointerp.stages.model_checks import model_checks
from autointerp.stages.session import (
    Session,
    corpus_key,
    d_sae_of,
    dictionary_id_of,
    digest,
    harvest_fingerprint,
    loaded_sae,
    logit_path,
    model_key,
    placeless,
    sae_digest,
    sha256_without_limit,
)
from autointerp.store.merge_units import bounds_of, remove_leftovers
from autointerp.store.rows import DictionaryRow
from autointerp.store.store import Store


@dataclass(frozen=True, slots=True)
class _Facts:
    """The hashes that all dictionaries' harvests share. Hashing a large corpus or model is slow, so it is done once."""

    fingerprint: str
    corpus_key: list[Any]
    model_key: list[Any]

    @classmethod
    def of(cls, session: Session) -> _Facts:
        with session.terminal.working("reading the corpus and the model for their hashes"):
            fingerprint = harvest_fingerprint(session.config)
            return cls(fingerprint, [fingerprint, *corpus_key(session.config)[1:]], model_key(session.config))


class _Plan:
    """One dictionary's harvest: what it reads, where its units wait, and the key that identifies a finished harvest."""

    def __init__(self, session: Session, sae: SaeConfig, facts: _Facts) -> None:
        config = session.config
        self.session, self.sae = session, sae
        self.fingerprint = facts.fingerprint
        folder = session.sae_folder(sae)
        if not folder.exists():
            raise InputError(
                f"there is no SAE at {folder}; `autointerp train` makes it, or set path in its [[sae]] table"
            )
        with session.terminal.working(f"{sae.dictionary}: hashing the SAE"):
            sha256 = sae_digest(session, sae, session.terminal.counting(sae.dictionary))
            self._hashes = (sha256, sha256_without_limit(session, sae))
        self._keys = [
            digest(
                {
                    "model": [*facts.model_key, config.model.batch_tokens],
                    "sae": [sae.hookpoint, one],
                    "corpus": facts.corpus_key,
                    "harvest": {k: v for k, v in asdict(config.harvest).items() if k != "known_tiles"},
                }
            )
            for one in self._hashes
        ]
        self.key = self._keys[0]

    def is_merged(self, store: Store) -> bool:
        held = [row for row in store.dictionaries() if row.name == self.sae.dictionary]
        if not held:
            return False
        current = store.current_harvest(held[0].dictionary_id)
        harvests = store.harvests(held[0].dictionary_id)
        return any(h.harvest_id == current and h.config.get("key") in self._keys for h in harvests)

    def remove_work(self) -> None:
        """Remove what a killed merge has left in the work folder. Units of a harvest with other settings are kept for
        the rest of that harvest."""
        folder = self.session.work_folder(self.sae)
        if any(may_hold(folder, self._facts(one)) for one in self._hashes):
            remove_folder(folder)

    def _facts(self, sha256: str) -> dict[str, Any]:
        config = self.session.config
        return text_pass.identity_without_model(
            sha256, placeless(config.corpus), self.fingerprint, config.harvest, config.model.batch_tokens
        )

    def folder(self, sha256: str) -> HarvestFolder:
        """Units that were begun when the limit of length was no part of the SAE's hash are gone on with."""
        config, loaded, root = self.session.config, self.session.model(), self.session.work_folder(self.sae)
        sha256 = next((one for one in (sha256, *self._hashes) if may_hold(root, self._facts(one))), sha256)
        identity = text_pass.identity(
            loaded,
            self.session.point(self.sae.hookpoint),
            sha256,
            placeless(config.corpus),
            self.fingerprint,
            config.harvest,
            config.model.batch_tokens,
        )
        return HarvestFolder(root, identity, bounds_of(config.harvest))


@dataclass(frozen=True, slots=True)
class _Ready:
    """One dictionary whose SAE is loaded and whose folder is open."""

    plan: _Plan
    weights: Sae
    sha256: str
    folder: HarvestFolder
    path: LogitPath | NoProjection
    """How what the SAE writes reaches the logits, or why it does not. Found before the text is read, not after it."""

    @classmethod
    def of(cls, plan: _Plan) -> _Ready:
        weights, sha256 = loaded_sae(plan.session, plan.sae)
        return cls(plan, weights, sha256, plan.folder(sha256), logit_path(plan.session, plan.sae))

    @property
    def target(self) -> Target:
        return Target(self.plan.session.point(self.plan.sae.hookpoint), self.weights, self.folder, self.name)

    @property
    def name(self) -> str:
        return self.plan.sae.dictionary


def harvest_shard(session: Session, saes: Sequence[SaeConfig], shard_index: int, num_shards: int) -> None:
    """Harvest one shard's work units into the work folders, without the store."""
    session.check_corpus()
    facts = _Facts.of(session)
    groups = _groups(session, [_Plan(session, sae, facts) for sae in saes], merges=False)
    require(model_checks(session, saes))
    session.say_how_text_is_read()
    for group in groups:
        _harvest_units(session, [_Ready.of(plan) for plan in group], text_pass.Shard(shard_index, num_shards))


def harvest_and_merge(session: Session, store: Store, saes: Sequence[SaeConfig]) -> bool:
    """Harvest and merge the dictionaries whose harvest with these settings the store does not hold. They share the
    model's pass over the text as far as memory allows. Returns whether anything was done."""
    facts, todo = _Facts.of(session), []
    for sae in saes:
        plan = _Plan(session, sae, facts)
        if plan.is_merged(store):
            session.terminal.say(f"{sae.dictionary}: harvested already")
            held = store.dictionary(sae.dictionary).dictionary_id
            if not store.has_near_words(held):  # it was harvested before there were any
                _find_near_words(session, store, sae.dictionary, held)
            if may_hold_heads(sae.hookpoint) and not store.has_head_shares(held):  # nor were their shares kept
                _find_heads(session, store, sae, loaded_sae(session, sae)[0], held)
            remove_leftovers(store)
            plan.remove_work()
        else:
            todo.append(plan)
    if not todo:
        return False
    session.check_corpus()
    groups = _groups(session, todo)
    require(model_checks(session, [plan.sae for plan in todo], store))
    session.say_how_text_is_read()
    for group in groups:
        _harvest_group(session, store, group)
    return True


def _harvest_group(session: Session, store: Store, group: Sequence[_Plan]) -> None:
    """Harvests one group. It is a separate function so that its weights are freed before the next group is loaded."""
    ready = [_prepared(store, plan) for plan in group]
    _harvest_units(session, ready, text_pass.Shard())
    for one in ready:
        _merge(session, store, one)


def _prepared(store: Store, plan: _Plan) -> _Ready:
    session, sae = plan.session, plan.sae
    weights, sha256 = loaded_sae(session, sae)
    dictionary_id_of(session, store, sae, weights, sha256)  # refuses a taken name before the work, not after it
    folder = plan.folder(sha256)
    folder.remove_leftovers()
    return _Ready(plan, weights, sha256, folder, logit_path(session, sae))


def _groups(session: Session, plans: Sequence[_Plan], merges: bool = True) -> list[list[_Plan]]:
    """The groups of dictionaries that are harvested in one pass. Raises DiskFullError if the disk is too small for
    them, before the text is read instead of hours later; where no grouping would fit, before the model is loaded.
    `merges`: each group is merged, which frees its work folders, before the next one is harvested."""
    sizes = [_sizes(session, plan.sae) for plan in plans]
    needs = [_Need.of(session, plan.sae, size) for plan, size in zip(plans, sizes, strict=True)]
    alone = [[i] for i in range(len(plans))]
    _check_room(session, needs, alone if merges else [list(range(len(plans)))])
    groups = _share_a_pass(session, sizes)
    if merges and groups != alone:
        _check_room(session, needs, groups)
    if len(groups) > 1:
        listed = "; ".join(", ".join(plans[i].sae.dictionary for i in group) for group in groups)
        session.terminal.say(
            f"the dictionaries do not fit into memory together: {len(groups)} passes over the text ({listed})"
        )
    return [[plans[i] for i in group] for group in groups]


def _share_a_pass(session: Session, sizes: Sequence[Sae]) -> list[list[int]]:
    if len(sizes) == 1:
        return [[0]]
    config = session.config
    return memory.share_a_pass(sizes, config.harvest, config.model.batch_tokens, session.model().device)


def _sizes(session: Session, sae: SaeConfig) -> Sae:
    """The SAE's shapes, without its weights."""
    with session.terminal.working(f"{sae.dictionary}: loading the SAE"):
        return load_sae(session.sae_folder(sae), sae.format).to("meta")


@dataclass(frozen=True, slots=True)
class _Need:
    """Bytes that one dictionary's harvest still needs on the disk."""

    name: str
    whole: int
    """While it is harvested and merged: units, what the merge spills, and the evidence."""
    evidence: int
    """What stays when it is merged."""

    @classmethod
    def of(cls, session: Session, sae: SaeConfig, size: Sae) -> _Need:
        config, work = session.config, session.work_folder(sae)
        whole = memory.disk_needed(size, config.harvest, config.corpus)
        return cls(sae.dictionary, memory.still_needed(whole, work), int(whole / memory.DISK_MARGIN))


def _check_room(session: Session, needs: Sequence[_Need], groups: Sequence[Sequence[int]]) -> None:
    """Raise DiskFullError if the disk is too small for these harvests. A group works beside the evidence of those
    before it, whose work folders are gone."""
    merged = needed = 0
    for group in groups:
        needed = max(needed, merged + sum(needs[i].whole for i in group))
        merged += sum(needs[i].evidence for i in group)
    memory.check_disk(Path(session.config.store.path).parent, needed, ", ".join(need.name for need in needs))


def merge(session: Session, store: Store, saes: Sequence[SaeConfig]) -> bool:
    """Merge the shards' units into the store. Returns whether anything was done."""
    facts, worked = _Facts.of(session), False
    for sae in saes:
        plan = _Plan(session, sae, facts)
        if plan.is_merged(store):
            session.terminal.say(f"{sae.dictionary}: merged already")
            remove_leftovers(store)
            continue
        _check_room(session, [_Need.of(session, sae, _sizes(session, sae))], [[0]])
        _merge(session, store, _Ready.of(plan))
        worked = True
    return worked


def _harvest_units(session: Session, ready: Sequence[_Ready], shard: text_pass.Shard) -> None:
    """Makes one pass over this shard's units for all of `ready`."""
    config, terminal, loaded = session.config, session.terminal, session.model()
    report = CorpusReport()
    names = ", ".join(one.name for one in ready)
    total = None if config.corpus.max_tokens is None else -(-config.corpus.max_tokens // shard.count)
    held = min(_tokens_held(one.folder, shard) for one in ready)

    def units(wanted: Callable[[int], bool]) -> Iterator[WorkUnit]:
        return session.units(report=report, wanted=wanted)

    with terminal.progress(f"{names}: harvesting", total, "tokens", done=held) as update:
        earlier = held

        def on_skipped(tokens: int) -> None:
            nonlocal earlier
            earlier += tokens
            update.begin_at(earlier)

        watch = text_pass.PassWatch(
            on_tokens=lambda unit, tokens: update(held + tokens, note=f"unit {unit}"),
            on_skipped=on_skipped,
            on_unit=lambda unit: session.deadline.check(),  # the unit is kept, and the next run begins after it
            on_kept=session.deadline.check,
            say=terminal.say,
        )
        settings = text_pass.unit_settings(
            loaded, session.token_text(), config.harvest, config.model.batch_tokens, config.corpus.exclude_tokens
        )
        done = text_pass.harvest(loaded, [one.target for one in ready], units, settings, shard, watch)
    require_all_splits(report)
    terminal.say(
        f"{names}: harvested {done.n_tokens:,} tokens in {done.n_units} work units, from "
        f"{report.n_documents:,} documents"
    )
    for remark in report.remarks():
        terminal.say(f"{names}: {remark}")
    if done.n_nonfinite:
        terminal.say(f"{names}: {done.n_nonfinite:,} tokens left out for NaN or infinite activations")
    if done.halvings:
        terminal.say(f"{names}: memory ran out, batches were halved {done.halvings} times")


def _tokens_held(folder: HarvestFolder, shard: text_pass.Shard) -> int:
    """The number of tokens in this shard's units that are already harvested."""
    own = (piece for piece in folder.pieces() if all(unit % shard.count == shard.index for unit in piece.units))
    return sum(piece.totals.get(f"n_tokens_{split}", 0) for piece in own for split in SPLITS)


def _find_near_words(session: Session, store: Store, name: str, dictionary_id: int) -> None:
    """Dictionaries of one model have the same near words."""
    rows = {row.dictionary_id: row for row in store.dictionaries()}
    model = _model_of(rows[dictionary_id])
    held = [i for i, row in rows.items() if _model_of(row) == model and store.has_near_words(i)]
    if held:
        store.replace_near_words(dictionary_id, store.near_words(held[0]))
        return
    with session.terminal.working(f"{name}: finding near words in the input embedding"):
        embedding = cast(torch.Tensor, session.model().model.get_input_embeddings().weight)
        store.replace_near_words(dictionary_id, embedding_neighbours(embedding, session.token_text()))


def _find_heads(session: Session, store: Store, sae: SaeConfig, weights: Sae, dictionary_id: int) -> None:
    """The shares of attention heads in the features of a dictionary of their outputs."""
    read, written = session.points(sae)
    found = head_parts(session.model(), written or read, weights.W_dec)
    if found is not None:
        store.replace_head_shares(dictionary_id, found.decoder, found.output)


def _model_of(row: DictionaryRow) -> tuple[str, str | None, str]:
    return row.model, row.revision, row.tokenizer_sha256


def _merge(session: Session, store: Store, ready: _Ready) -> None:
    config, terminal, loaded = session.config, session.terminal, session.model()
    plan, weights, name = ready.plan, ready.weights, ready.name
    dictionary_id = dictionary_id_of(session, store, plan.sae, weights, ready.sha256)
    text = session.token_text()
    # The projection comes first, because the features' rows, written last, mark a harvest as merged.
    with terminal.working(f"{name}: projecting the features onto the vocabulary"):
        refused = str(ready.path) if isinstance(ready.path, NoProjection) else None
        projection = no_projection()
        if not isinstance(ready.path, NoProjection):
            projection = vocab_projection(
                ready.path, weights, text, config.harvest.vocab_tokens, terminal.counting(name)
            )
        columns = {f.name: getattr(projection, f.name) for f in fields(projection)}
        store.insert_vocab_projection(dictionary_id, **columns)
    _find_near_words(session, store, name, dictionary_id)
    _find_heads(session, store, plan.sae, weights, dictionary_id)
    corpus = CorpusFacts(
        config.corpus.source, {**asdict(config.corpus), "fingerprint": plan.fingerprint}, loaded.tokenizer_sha256
    )
    with terminal.working(f"{name}: merging"):
        counts = merge_harvest(
            store, dictionary_id, ready.folder, weights, text, config.harvest, corpus, key=plan.key,
            counting=terminal.counting(name), no_projection=refused,
        )  # fmt: skip
    listed = ", ".join(f"{n:,} {counted}" for counted, n in counts.items())
    terminal.say(f"{name}: merged into {store.path.name}: {listed}")
    remove_folder(session.work_folder(plan.sae))


def forecast_harvest(session: Session, saes: Sequence[SaeConfig]) -> None:
    """Print how much memory and disk a harvest would need, and which dictionaries would share a pass over the text."""
    estimates, sizes = [], []
    for sae in saes:
        needed, size = _forecast_one(session, sae)
        session.terminal.result(
            f"{sae.dictionary}: harvest of {needed.n_features:,} features needs about {_megabytes(needed.device)} of "
            f"memory beside the model, {needed.n_passes} pass(es) over the text, and at most "
            f"{_megabytes(needed.evidence_file)} on disk"
        )
        estimates.append(needed)
        sizes.append(size)
    if len(saes) == 1:
        return
    for group in _share_a_pass(session, sizes):
        names = ", ".join(saes[i].dictionary for i in group)
        together = sum(estimates[i].device + memory.weight_bytes(sizes[i]) for i in group)
        session.terminal.result(
            f"one pass over the text for {names}: about {_megabytes(together)} of memory beside the model, the "
            "dictionaries' weights included"
        )


def _forecast_one(session: Session, sae: SaeConfig) -> tuple[memory.MemoryEstimate, Sae]:
    """What one dictionary needs, and its shapes. Its weights are freed, since they would lower the free memory from
    which the groups and the next estimates are made."""
    config, weights = session.config, _known_sizes(session, sae)
    needed = memory.estimate(weights, config.harvest, config.corpus, config.model.batch_tokens)
    return needed, weights.to("meta")


def _known_sizes(session: Session, sae: SaeConfig) -> Sae:
    """The SAE, or before training one with the sizes that it will have."""
    if (session.sae_folder(sae) / "cfg.json").exists():
        return loaded_sae(session, sae)[0]
    width = hidden_size_at(session.model(), session.point(sae.hookpoint))
    return _untrained(width, d_sae_of(sae, width), sae.k)


def _untrained(d_in: int, d_sae: int, k: int) -> Sae:
    """An SAE with these sizes that takes no memory."""
    wide, narrow = torch.empty(d_in, d_sae, device="meta"), torch.empty(d_in, device="meta")
    return Sae(wide, torch.empty(d_sae, device="meta"), wide.T, narrow, k=k)


def _megabytes(n: int) -> str:
    return f"{n / 2**20:,.0f} MiB"
