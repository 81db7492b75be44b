"""The streaming pass: work units in, folders of evidence out. Resumes by skipping units that are done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autointerp.config import CorpusConfig, HarvestConfig
from autointerp.corpus.token_text import TokenText
from autointerp.errors import InputError
from autointerp.harvest.memory import feature_blocks
from autointerp.harvest.shards import HarvestFolder
from autointerp.harvest.text_hash import TokenHashes
from autointerp.harvest.unit import Target, UnitEvidence, UnitSettings, evidence_device, harvest_unit
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import Halving
from autointerp.records import SPLITS, WorkUnit
from autointerp.sae.sae import Sae
from autointerp.store.unit_tables import working_memory

FORMAT = 1
"""Raised when the meaning of a unit's tables changes, so that older folders are refused."""

CPU_BATCH_TOKENS = 2048
"""On CPU larger batches only leave the cache: 8,192 tokens of a 4 x 256 GPT-2 took 1.2 times as long as 2,048."""

Units = Callable[[Callable[[int], bool]], Iterator[WorkUnit]]
"""Gives the corpus's units; called with a function that says which indices are wanted (corpus.windows.work_units)."""


@dataclass(frozen=True, slots=True)
class Job:
    """One dictionary to harvest."""

    hookpoint: Hookpoint
    sae: Sae
    folder: HarvestFolder


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th unit, beginning with number `index`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(f"--shard-index must lie in 0..{self.count - 1} for --num-shards {self.count}")


@dataclass(frozen=True, slots=True)
class HarvestReport:
    """What one call of `harvest` did."""

    n_units: int
    """Units harvested now (not those found done)."""
    n_tokens: int
    n_nonfinite: int
    """Tokens left out for NaN or infinite activations, over all dictionaries."""
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
    """Everything that the units of a harvest depend on; a folder with another identity is refused."""
    return {
        "format": FORMAT,
        "model": loaded.name,
        "revision": loaded.revision,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "tokenizer_sha256": loaded.tokenizer_sha256,
        "hookpoint": str(hookpoint),
        **identity_without_model(sae_sha256, corpus, corpus_fingerprint, config, batch_tokens),
    }


def identity_without_model(
    sae_sha256: str, corpus: CorpusConfig, corpus_fingerprint: str, config: HarvestConfig, batch_tokens: int
) -> dict[str, Any]:
    """The part of it that is known before the model is loaded."""
    kept = dataclasses.asdict(config)
    # What only the merge uses, or what changes nothing.
    for name in ("negatives", "neighbours", "vocab_tokens", "rare_below", "feature_block"):
        del kept[name]
    return {
        "sae_sha256": sae_sha256,
        "corpus": dataclasses.asdict(corpus),
        "corpus_fingerprint": corpus_fingerprint,
        "harvest": kept,
        "batch_tokens": batch_tokens,
    }


def harvest(
    loaded: LoadedModel,
    jobs: Sequence[Job],
    units: Units,
    text: TokenText,
    config: HarvestConfig,
    *,
    batch_tokens: int,
    exclude_tokens: Iterable[str] = (),
    shard: Shard | None = None,
    on_unit: Callable[[int, Mapping[str, int]], None] = lambda unit, totals: None,
) -> HarvestReport:
    """Harvest this shard's units of the corpus into the jobs' folders; units that are there already are skipped.

    Several jobs (dictionaries on one model) share each forward pass. `on_unit` is called after each unit with its
    totals (n_tokens_explain, ...; those of the first job that lacked it). Raises AutointerpError (too many NaN
    activations), DiskFullError, errors.OutOfMemoryError, and whatever reading the corpus raises; finished units stay.
    """
    shard = shard or Shard()
    settings = unit_settings(loaded, text, config, batch_tokens, exclude_tokens)
    blocks = {id(job): feature_blocks(job.sae, config, batch_tokens) for job in jobs}
    halving = Halving()
    n_seen, n_done, n_tokens, n_nonfinite = 0, 0, 0, 0

    def lacking(unit: int) -> list[Job]:
        return [job for job in jobs if not job.folder.is_done(unit)]

    def wanted(unit: int) -> bool:
        nonlocal n_seen
        n_seen = max(n_seen, unit + 1)
        return unit % shard.count == shard.index and bool(lacking(unit))

    def take(unit: WorkUnit) -> Mapping[str, int]:
        """A function of its own so that one unit's evidence is gone before the next unit begins."""
        nonlocal n_done, n_tokens, n_nonfinite
        todo = lacking(unit.index)
        targets = [Target(job.hookpoint, job.sae, blocks[id(job)]) for job in todo]
        results = harvest_unit(loaded, targets, unit, settings, halving)
        for job, evidence in zip(todo, results, strict=True):
            evidence.totals["halvings"] = halving.halvings
            job.folder.write(evidence)
        n_done += 1
        n_tokens += tokens_of(results[0])
        n_nonfinite += sum(evidence.totals["n_nonfinite"] for evidence in results)
        return results[0].totals

    for unit in units(wanted):
        index, totals = unit.index, take(unit)
        del unit
        for job in jobs:
            job.folder.fold(shard.index, shard.count, memory_limit=working_memory(job.sae.d_sae, threads=1))
        on_unit(index, totals)
    for job in jobs:
        job.folder.set_n_units(n_seen)
    return HarvestReport(n_done, n_tokens, n_nonfinite, halving.halvings)


def tokens_of(evidence: UnitEvidence) -> int:
    return sum(evidence.totals[f"n_tokens_{split}"] for split in SPLITS)


def unit_settings(
    loaded: LoadedModel, text: TokenText, config: HarvestConfig, batch_tokens: int, exclude_tokens: Iterable[str]
) -> UnitSettings:
    """With tensors on the model's device. Raises InputError for an entry of exclude_tokens that is no token."""
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
