"""Estimates what a harvest needs: memory, disk and passes of the model. --dry-run and feature blocks use it.

Memory does not grow with the number of tokens; it is bounded per feature, per unit and per batch.
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
"""Bytes of one row of the peak lists, of the sample lists and of the activation log."""
WORKING_COPIES = 3
"""Copies of a list that exist at once: cutting it sorts the list together with as many new rows."""
ACTIVE_TOKENS = 8
"""Mean number of tokens on which a feature is active in a kept context; 2 to 6 were measured on small TopK SAEs."""
BYTES_PER_CONTEXT = 48 + 6 * ACTIVE_TOKENS
USUAL_L0 = 64
"""Active features per token assumed for an SAE with thresholds, whose file does not say."""
SHARE_OF_FREE = 0.5
DISK_MARGIN = 1.5
"""Factor on the evidence file's size, for harvested units that wait for the merge and for what the merge spills."""
FALLBACK_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What one harvest needs, in bytes: upper bounds for typical SAEs."""

    per_feature: int
    """Device bytes of one feature's state."""
    fixed: int
    """Device bytes of one batch's tables and encoder output."""
    n_features: int
    evidence_file: int
    """Bytes of this dictionary's evidence in the store when all lists are full."""
    n_passes: int
    """Forward passes over each unit, one for each block of features."""

    @property
    def device(self) -> int:
        """Device bytes with the chosen blocks."""
        return self.fixed + self.per_feature * -(-self.n_features // self.n_passes)


def bytes_per_feature(config: HarvestConfig) -> int:
    """Device bytes that one feature's counts, lists and activation log take, for one split of one unit."""
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
    """Free memory on the device, in bytes. On CUDA it includes what torch's allocator holds and does not use."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if device.type == "cpu":
        try:
            with open("/proc/meminfo", encoding="ascii") as lines:
                found = dict(line.split(":", 1) for line in lines)
            return int(found["MemAvailable"].split()[0]) * 1024
        except (OSError, KeyError, ValueError):
            return FALLBACK_BYTES
    return FALLBACK_BYTES


def feature_blocks(sae: Sae, config: HarvestConfig, batch_tokens: int) -> tuple[Block, ...]:
    """Splits the features into equal blocks of at most `feature_block`, or else into the fewest that fit into half the
    free memory. The evidence does not depend on the blocks; each one costs its own forward pass."""
    device = sae.W_enc.device
    if config.feature_block is not None:
        n_blocks = -(-sae.d_sae // config.feature_block)
    else:
        room = SHARE_OF_FREE * free_bytes(device) - fixed_bytes(sae, batch_tokens, device)
        n_blocks = -(-sae.d_sae * bytes_per_feature(config) // max(1, int(room)))
    size = -(-sae.d_sae // max(1, min(n_blocks, sae.d_sae)))
    return tuple(Block(low, min(low + size, sae.d_sae)) for low in range(0, sae.d_sae, size))


def weight_bytes(sae: Sae) -> int:
    """Device bytes of the dictionary's weights."""
    return 4 * sae.d_sae * (sae.d_in + sae.d_out)


def share_a_pass(
    saes: Sequence[Sae], config: HarvestConfig, batch_tokens: int, device: torch.device
) -> list[list[int]]:
    """Groups the dictionaries (by index, in order) so that each group fits into half the free memory, weights included.
    A group shares one pass over the text. A dictionary too large for that gets its own group, harvested in blocks."""
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
    """Bytes of a dictionary's evidence when all lists are full."""
    contexts = 3 * (config.top_contexts + config.sampled_contexts + 3 * config.negatives)
    windows = 3 * config.negative_pool_windows * corpus.context_length * 8
    firings = 3 * config.known_tiles * config.context_tokens * USUAL_L0 * 8
    return n_features * contexts * BYTES_PER_CONTEXT + windows + firings


def disk_needed(sae: Sae, config: HarvestConfig, corpus: CorpusConfig) -> int:
    """Bytes that a harvest and its merge need free: full lists, or less if the text is too short to fill them."""
    needed = evidence_bytes(sae.d_sae, config, corpus)
    if corpus.max_tokens is not None:
        firings = corpus.max_tokens * (sae.k or USUAL_L0)
        contexts = 2 * firings + 9 * config.negatives * min(sae.d_sae, firings)
        needed = min(needed, contexts * BYTES_PER_CONTEXT + corpus.max_tokens * 8)
    return int(DISK_MARGIN * needed)


def still_needed(needed: int, work: Path) -> int:
    """How many of disk_needed's bytes are still to be written. A resumed harvest already has units in the folder
    `work`, but not the new evidence file."""
    held = 0
    for path in (path for path in work.rglob("*") if PARTIAL not in path.parts):
        with suppress(OSError):  # another shard's process has just folded it
            held += path.stat().st_size
    return max(int(needed / DISK_MARGIN), needed - held)


def disk_space(folder: Path) -> tuple[Path, int]:
    """The folder that exists, which is `folder` or the nearest one above it, and the bytes that are free there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder, shutil.disk_usage(folder).free


def check_disk(folder: Path, needed: int, name: str) -> None:
    """Raise DiskFullError if fewer than `needed` bytes are free on the file system of `folder`, which may not exist
    yet."""
    folder, free = disk_space(folder)
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
