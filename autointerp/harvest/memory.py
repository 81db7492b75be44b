"""What a harvest needs in memory, on disk and in passes over the model: for --dry-run and for feature blocks.

Nothing here grows with the number of tokens; the bounds are per feature, per unit and per batch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from autointerp.config import CorpusConfig, HarvestConfig
from autointerp.errors import DiskFullError
from autointerp.harvest.accumulators import TILE_BITS, TOKEN_BITS, n_bins
from autointerp.harvest.shards import PARTIAL
from autointerp.harvest.split_pass import TABLE_BYTES_CPU, TABLE_BYTES_DEVICE, Block
from autointerp.harvest.unit import POOL_WINDOWS_PER_UNIT
from autointerp.sae.sae import Sae

CHARACTERS_PER_TOKEN = 3.5
PEAK_BYTES, SAMPLE_BYTES, ACTIVATION_BYTES = 17, 32, 12
"""One row of the lists and of the activation log."""
WORKING_COPIES = 3
"""A list is cut by sorting itself and as many new rows again: copies of it that exist at once."""
ACTIVE_TOKENS = 8
"""Tokens on which a feature is active in one kept context, on average; measured 2 to 6 on small TopK SAEs."""
BYTES_PER_CONTEXT = 48 + 6 * ACTIVE_TOKENS
USUAL_L0 = 64
"""Features active at once in an SAE that chooses by thresholds: it does not say."""
SHARE_OF_FREE = 0.5
DISK_MARGIN = 1.5
"""Of the evidence file: the harvested units that wait for the merge, and what the merge spills."""
FALLBACK_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes, as upper bounds for typical SAEs."""

    per_feature: int
    """State of one feature on the device."""
    fixed: int
    """Tables and encoder output of one batch on the device."""
    n_features: int
    evidence_file: int
    """The store's evidence for this dictionary, once all lists are full."""
    n_passes: int
    """Passes of the model over each unit: one for each block of features."""

    @property
    def device(self) -> int:
        """With the blocks chosen."""
        return self.fixed + self.per_feature * -(-self.n_features // self.n_passes)


def bytes_per_feature(config: HarvestConfig) -> int:
    """Device bytes of one feature's counts, lists and activation log, for one split of one unit."""
    counts = 4 * (n_bins(TOKEN_BITS) + n_bins(TILE_BITS)) + 5 * 8
    peaks, samples = 4 * config.top_contexts, 2 * config.sampled_contexts  # documents' and texts' lists; sample
    lists = WORKING_COPIES * (peaks * PEAK_BYTES + samples * SAMPLE_BYTES)
    log = 2 * (peaks + samples) * min(config.context_tokens, ACTIVE_TOKENS) * ACTIVATION_BYTES
    pool = min(config.negative_pool_windows, POOL_WINDOWS_PER_UNIT) // 2
    return counts + lists + log + pool


def fixed_bytes(sae: Sae, batch_tokens: int, device: torch.device) -> int:
    """Device bytes of the encoder's output for one batch and of the table it is reduced in."""
    table = TABLE_BYTES_CPU if device.type == "cpu" else TABLE_BYTES_DEVICE
    per_batch = batch_tokens * (4 * sae.d_in + 64 * (sae.k or USUAL_L0))
    return table + per_batch


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu":
        try:
            with open("/proc/meminfo", encoding="ascii") as lines:
                found = dict(line.split(":", 1) for line in lines)
            return int(found["MemAvailable"].split()[0]) * 1024
        except (OSError, KeyError, ValueError):
            return FALLBACK_BYTES
    return FALLBACK_BYTES


def feature_blocks(sae: Sae, config: HarvestConfig, batch_tokens: int) -> tuple[Block, ...]:
    """All features in one block, or in equal ones: of `feature_block`, else as few as fit into half the free memory.
    The evidence is the same either way; each block costs a forward pass of its own."""
    device = sae.W_enc.device
    if config.feature_block is not None:
        n_blocks = -(-sae.d_sae // config.feature_block)
    else:
        room = SHARE_OF_FREE * free_bytes(device) - fixed_bytes(sae, batch_tokens, device)
        n_blocks = -(-sae.d_sae * bytes_per_feature(config) // max(1, int(room)))
    size = -(-sae.d_sae // max(1, min(n_blocks, sae.d_sae)))
    return tuple(Block(low, min(low + size, sae.d_sae)) for low in range(0, sae.d_sae, size))


def weight_bytes(sae: Sae) -> int:
    """Device bytes of the dictionary itself."""
    return 4 * sae.d_sae * (sae.d_in + sae.d_out)


def share_a_pass(
    saes: Sequence[Sae], config: HarvestConfig, batch_tokens: int, device: torch.device
) -> list[list[int]]:
    """The dictionaries (by index, in order) in groups that fit into half the free memory together, weights included.
    Each group is one pass over the text. One that does not fit alone is a group of its own, harvested in blocks."""
    room = SHARE_OF_FREE * free_bytes(device)
    groups: list[list[int]] = []
    used = 0
    for i, sae in enumerate(saes):
        n_features = min(config.feature_block or sae.d_sae, sae.d_sae)
        state = fixed_bytes(sae, batch_tokens, device) + n_features * bytes_per_feature(config)
        needed = weight_bytes(sae) + state
        if groups and used + needed <= room:
            groups[-1].append(i)
            used += needed
        else:
            groups.append([i])
            used = needed
    return groups


def evidence_bytes(n_features: int, config: HarvestConfig, corpus: CorpusConfig) -> int:
    """Bytes of a dictionary's evidence once all lists are full."""
    contexts = 3 * (config.top_contexts + config.sampled_contexts + 3 * config.negatives)
    windows = 3 * config.negative_pool_windows * corpus.context_length * 8
    return n_features * contexts * BYTES_PER_CONTEXT + windows


def disk_needed(sae: Sae, config: HarvestConfig, corpus: CorpusConfig) -> int:
    """Bytes that must be free for a harvest and its merge: full lists, or less where the text is too short for them."""
    needed = evidence_bytes(sae.d_sae, config, corpus)
    if corpus.max_tokens is not None:
        firings = corpus.max_tokens * (sae.k or USUAL_L0)
        contexts = 2 * firings + 9 * config.negatives * min(sae.d_sae, firings)
        needed = min(needed, contexts * BYTES_PER_CONTEXT + corpus.max_tokens * 8)
    return int(DISK_MARGIN * needed)


def still_needed(needed: int, work: Path) -> int:
    """Of disk_needed's bytes those still to be written: units in the folder `work` are there already where a harvest
    goes on, the new evidence file is not."""
    held = 0
    for path in (path for path in work.rglob("*") if PARTIAL not in path.parts):
        with suppress(OSError):  # another shard's process has just folded it
            held += path.stat().st_size
    return max(int(needed / DISK_MARGIN), needed - held)


def check_disk(folder: Path, needed: int, name: str) -> None:
    """DiskFullError where the file system on which `folder` lies, or will, has not so many bytes free."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{name}: the harvest may need {needed / 2**20:,.0f} MiB on disk, and {free / 2**20:,.0f} MiB are free "
            f"beside {folder}. Free some space, put the store elsewhere ([store] path), or keep less: top_contexts, "
            "sampled_contexts and negatives under [harvest], max_tokens under [corpus]"
        )


def estimate(sae: Sae, config: HarvestConfig, corpus: CorpusConfig, batch_tokens: int) -> MemoryEstimate:
    """What `harvest` will need for this dictionary."""
    return MemoryEstimate(
        per_feature=bytes_per_feature(config),
        fixed=fixed_bytes(sae, batch_tokens, sae.W_enc.device),
        n_features=sae.d_sae,
        evidence_file=evidence_bytes(sae.d_sae, config, corpus),
        n_passes=len(feature_blocks(sae, config, batch_tokens)),
    )
