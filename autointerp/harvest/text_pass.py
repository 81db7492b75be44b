"""The streaming pass, which turns work units into folders of evidence. It resumes by skipping finished units."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from autointerp.config import CorpusConfig, HarvestConfig
from autointerp.corpus.token_text import TokenText
from autointerp.errors import InputError
from autointerp.harvest.checkpoint import KEEP_EVERY_S, Checkpoints
from autointerp.harvest.memory import feature_blocks
from autointerp.harvest.target import Target
from autointerp.harvest.text_hash import TokenHashes
from autointerp.harvest.unit import UnitSettings, UnitWatch, evidence_device, harvest_unit
from autointerp.harvest.unit_evidence import UnitEvidence
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import Halving
from autointerp.records import SPLITS, WorkUnit
from autointerp.store.unit_tables import working_memory

FORMAT = 1
"""To be incremented when the meaning of a unit's tables changes, so that older folders are refused."""

CPU_BATCH_TOKENS = 2048
"""Larger batches do not fit the CPU's cache: with 8,192 tokens a 4 x 256 GPT-2 took 1.2 times as long as with 2,048."""

Units = Callable[[Callable[[int], bool]], Iterator[WorkUnit]]
"""Yields the corpus's units (corpus.windows.work_units). Its argument tells whether a unit, by index, is wanted."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard takes every `count`-th unit, beginning with number `index`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(f"--shard-index must lie in 0..{self.count - 1} for --num-shards {self.count}")


@dataclass(frozen=True, slots=True)
class HarvestReport:
    """The counts of one call of `harvest`."""

    n_units: int
    """Units harvested by this call, without those that were done already."""
    n_tokens: int
    n_nonfinite: int
    """Tokens left out for NaN or infinite activations, summed over all dictionaries."""
    halvings: int
    """How often memory ran out and batches were halved."""


def identity(
    loaded: LoadedModel,
    hookpoint: Hookpoint,
    sae_sha256: str,
    corpus: CorpusConfig,
    corpus_fingerprint: str,
    config: HarvestConfig,
    batch_tokens: int,
) -> dict[str, Any]:
    """Everything that a harvest's units depend on. A folder with another identity is refused."""
    return {
        "format": FORMAT,
        "model": loaded.name,
        "revision": loaded.revision,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "tokenizer_sha256": loaded.tokenizer_sha256,
        "hookpoint": str(hookpoint),
        **_second_model(loaded, hookpoint),
        **identity_without_model(sae_sha256, corpus, corpus_fingerprint, config, batch_tokens),
    }


def _second_model(loaded: LoadedModel, hookpoint: Hookpoint) -> dict[str, str]:
    if loaded.other is None or not any(part.of_other for part in hookpoint.parts):
        return {}
    return {"other_model": loaded.other.name, "other_revision": loaded.other.revision}


def identity_without_model(
    sae_sha256: str, corpus: CorpusConfig, corpus_fingerprint: str, config: HarvestConfig, batch_tokens: int
) -> dict[str, Any]:
    """The part of `identity` that is known before the model is loaded."""
    kept = dataclasses.asdict(config)
    # These settings are used by the merge alone, or change no result.
    for name in ("negatives", "neighbours", "vocab_tokens", "rare_below", "feature_block", "known_tiles"):
        del kept[name]
    return {
        "sae_sha256": sae_sha256,
        "corpus": dataclasses.asdict(corpus),
        "corpus_fingerprint": corpus_fingerprint,
        "harvest": kept,
        "batch_tokens": batch_tokens,
    }


@dataclass(frozen=True, slots=True)
class PassWatch:
    """The callbacks of a running pass, and how often the state of a unit is saved."""

    on_tokens: Callable[[int, int], None] = lambda unit, tokens: None
    """Called after each batch with the unit and the number of tokens that this call has read or skipped."""
    on_skipped: Callable[[int], None] = lambda tokens: None
    """Called before `on_tokens` with the tokens of a batch that an earlier run had done, where a unit is continued."""
    on_unit: Callable[[int], None] = lambda unit: None
    """Called with each unit once it is complete and on the disk."""
    on_kept: Callable[[], None] = lambda: None
    """Called when the state of a long unit has just been written, which is a good moment to stop."""
    say: Callable[[str], None] = lambda message: None
    keep_every_s: float = KEEP_EVERY_S
    clock: Callable[[], float] = time.monotonic


def harvest(
    loaded: LoadedModel,
    targets: Sequence[Target],
    units: Units,
    settings: UnitSettings,
    shard: Shard | None = None,
    watch: PassWatch | None = None,
) -> HarvestReport:
    """Harvest this shard's units of the corpus into the targets' folders, all targets in one pass over the text.

    A target skips the units that its folder holds, and continues inside a unit that an earlier run left unfinished.
    Targets without `blocks` get those that memory allows. Raises AutointerpError (too many NaN activations),
    DiskFullError, errors.OutOfMemoryError, and whatever reading the corpus raises; finished units are kept.
    """
    shard, watch = shard or Shard(), watch or PassWatch()
    targets = [
        target if target.blocks
        else replace(target, blocks=feature_blocks(target.sae, settings.config, settings.batch_tokens))
        for target in targets
    ]  # fmt: skip
    for target in targets:
        target.folder.remove_finished_states()
    halving, checkpoints = Halving(), Checkpoints(watch.keep_every_s, watch.say, watch.clock)
    n_seen, n_done, n_tokens, n_nonfinite, n_read = 0, 0, 0, 0, 0

    def lacking(unit: int) -> list[Target]:
        return [target for target in targets if not target.folder.is_done(unit)]

    def wanted(unit: int) -> bool:
        nonlocal n_seen
        n_seen = max(n_seen, unit + 1)
        return unit % shard.count == shard.index and bool(lacking(unit))

    def take(unit: WorkUnit) -> None:
        """Harvests one unit. It is a separate function so that the unit's evidence is freed before the next begins."""
        nonlocal n_done, n_tokens, n_nonfinite
        todo = lacking(unit.index)
        checkpoints.begin()
        unit_watch = UnitWatch(
            checkpoints,
            on_tokens=lambda tokens: watch.on_tokens(unit.index, n_read + tokens),
            on_skipped=watch.on_skipped,
            on_kept=watch.on_kept,
        )
        results = harvest_unit(loaded, todo, unit, settings, halving, unit_watch)
        for target, evidence in zip(todo, results, strict=True):
            evidence.totals["halvings"] = halving.halvings
            target.folder.write(evidence)
            checkpoints.remove(target, unit.index)
        n_done += 1
        n_tokens += tokens_of(results[0])
        n_nonfinite += sum(evidence.totals["n_nonfinite"] for evidence in results)

    for unit in units(wanted):
        index = unit.index
        take(unit)
        n_read += sum(len(window.token_ids) - window.n_prefix for window in unit.windows)
        del unit
        for target in targets:
            target.folder.fold(shard.index, shard.count, memory_limit=working_memory(target.sae.d_sae, threads=1))
        watch.on_unit(index)
    for target in targets:
        target.folder.set_n_units(n_seen)
    return HarvestReport(n_done, n_tokens, n_nonfinite, halving.halvings)


def tokens_of(evidence: UnitEvidence) -> int:
    return sum(evidence.totals[f"n_tokens_{split}"] for split in SPLITS)


def unit_settings(
    loaded: LoadedModel, text: TokenText, config: HarvestConfig, batch_tokens: int, exclude_tokens: Iterable[str]
) -> UnitSettings:
    """The settings, with tensors on the model's device. Raises InputError if an entry of exclude_tokens is no token."""
    excluded = sorted(text.excluded_ids(exclude_tokens))
    return UnitSettings(
        config,
        min(batch_tokens, CPU_BATCH_TOKENS) if loaded.device.type == "cpu" else batch_tokens,
        torch.tensor(excluded, dtype=torch.int64, device=loaded.device),
        TokenHashes(
            text.token_bytes,
            evidence_device(loaded.device),
            (i for i, piece in enumerate(text.pieces) if piece is None),
            text.tokens,
        ),
    )
