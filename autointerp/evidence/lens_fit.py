"""Computes a Jacobian lens over prompts of the explain split, and keeps it in the store's work folder.

What is computed so far is written every KEEP_EVERY_S seconds, with its checksum and with all that it depends on. So a
run that was killed goes on where it was, and ends with the same numbers; and a second dictionary at the same hookpoint,
or another run, finds the lens there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autointerp.deadline import Deadline
from autointerp.errors import DamagedError, InputError, NoProjection
from autointerp.model.hooks import Hookpoint, hidden_size_at
from autointerp.model.load import LoadedModel
from autointerp.model.mean_jacobian import SHORTEST_PROMPT, Effects, mean_jacobian
from autointerp.model.token_batches import Batch, Halving, make_batches
from autointerp.progress import Adding, Counting
from autointerp.records import Window
from autointerp.sae.files import read_state, read_tensors, write_tensors

VERSION = 1
"""To be counted up when a lens of the same identity would have other numbers."""
KEEP_EVERY_S = 60.0
LOOKED_THROUGH = 20
"""Windows of the explain split that are looked at, for each prompt wanted."""
BATCH_SHARE = 16
"""The share of model.batch_tokens that runs at once: all that the model computes after the hookpoint is kept for the
backward passes."""


@dataclass(frozen=True)
class LensFit:
    """What to compute: the mean Jacobian from one hookpoint to another over some prompts."""

    loaded: LoadedModel
    earlier: Hookpoint
    later: Hookpoint
    prompts: Sequence[Window]
    """One or more, all of the same length."""
    effects: Effects
    seed: int
    """Of the signs, which only "same" draws."""
    every: int
    """Each batch of prompts gives one row of the Jacobian in so many, in turn: the same work takes in more prompts."""
    batch_tokens: int
    identity: Mapping[str, Any]
    """What else the numbers depend on: the model."""

    def _identity(self) -> dict[str, Any]:
        text = np.array([window.token_ids for window in self.prompts], dtype=np.int64)
        return {
            "version": VERSION, **self.identity, "from": str(self.earlier), "to": str(self.later),
            "effects": self.effects, "every": self.every, "seed": self.seed if self.effects == "same" else None,
            "prompts": list(text.shape), "text_sha256": hashlib.sha256(text.tobytes()).hexdigest(),
            "batch_tokens": self.batch_tokens, "dtype": str(self.loaded.dtype), "device": self.loaded.device.type,
        }  # fmt: skip

    def run(self, folder: Path, counting: Counting, deadline: Deadline) -> tuple[Tensor, int]:
        """(float32 [width, width] on CPU, how many prompts were read now). Raises what `mean_jacobian` raises,
        StoppedError once the deadline has passed (what is computed is kept), and DamagedError where what was kept is no
        longer what was written."""
        identity = self._identity()
        digest = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()
        path = folder / f"{digest[:16]}.safetensors"
        widths = [hidden_size_at(self.loaded, point) for point in (self.later, self.earlier)]
        done, total = _kept(path, identity) if path.exists() else (0, torch.zeros(*widths, dtype=torch.float64))
        batches = make_batches(self.prompts, max(1, self.batch_tokens // BATCH_SHARE), 0, shortest_share=1)
        every = min(self.every, len(batches))
        turns = [range(i % every, widths[0], every) for i in range(len(batches))]
        n_prompts = torch.zeros(widths[0], 1, dtype=torch.float64)
        for batch, rows in zip(batches, turns, strict=True):
            n_prompts[_at(rows)] += len(batch.indices)
        left = [(batch, rows) for batch, rows in zip(batches, turns, strict=True) if min(batch.indices) >= done]
        halving, begun = Halving(), time.monotonic()
        with counting(
            "Jacobian lens", sum(len(b.indices) * len(rows) for b, rows in left), "backward passes"
        ) as update:
            adding = Adding(update)
            for batch, rows in left:
                work = partial(self._of, rows, adding)
                for part, found in halving.run(batch.to(self.loaded.device), work):
                    total[_at(rows)] += found.double() * len(part.indices)
                done += len(batch.indices)
                is_last = done == len(self.prompts)
                if is_last or time.monotonic() - begun >= KEEP_EVERY_S or deadline.left_s <= 0:
                    _keep(path, identity, done, total)
                    begun = time.monotonic()
                if not is_last:
                    deadline.check()
        mean = (total / n_prompts).float()
        if not torch.isfinite(mean).all():
            raise NoProjection(
                f"the Jacobian from {self.earlier} to {self.later} of {self.loaded.name} holds NaN or infinity in "
                f"{str(self.loaded.dtype).removeprefix('torch.')}; choose another model.dtype"
            )
        return mean, sum(len(batch.indices) for batch, _ in left)

    def _of(self, rows: range, adding: Adding, part: Batch) -> Tensor:
        # The signs of a part do not depend on where a run began.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + min(part.indices))
        n = len(part.indices)
        return mean_jacobian(
            self.loaded, self.earlier, self.later, part.ids, rows, self.effects, generator, lambda: adding(n)
        )


def _at(rows: range) -> slice:
    return slice(rows.start, rows.stop, rows.step)


def prompts_of(windows: Iterable[Sequence[Window]], n: int, length: int) -> list[Window]:
    """The beginnings of up to `n` windows that have `length` tokens, each of a document of its own as long as there are
    such; in the order of the corpus. Raises InputError where there is none."""
    if length < SHORTEST_PROMPT:
        raise InputError(
            f"a Jacobian lens takes prompts of {SHORTEST_PROMPT} tokens at least, and evidence.lens_tokens or "
            f"corpus.context_length is {length}"
        )
    first: list[Window] = []
    more: list[Window] = []
    documents: set[str] = set()
    for n_seen, window in enumerate((window for unit in windows for window in unit), start=1):
        if len(window.token_ids) >= length:
            (more if window.document in documents else first).append(window)
            documents.add(window.document)
        if len(first) == n or n_seen >= LOOKED_THROUGH * n:
            break
    chosen = [*first, *more][:n]
    if not chosen:
        raise InputError(
            f"no window of the explain split has {length} tokens for a Jacobian lens; lower evidence.lens_tokens"
        )
    return [Window(w.document, w.start, w.split, w.token_ids[:length], w.n_prefix) for w in chosen]


def _keep(path: Path, identity: Mapping[str, Any], done: int, total: Tensor) -> None:
    state = {"identity": dict(identity), "done": done, "sha256": _sha256(total)}
    write_tensors(path, {"total": total}, state)


def _kept(path: Path, identity: Mapping[str, Any]) -> tuple[int, Tensor]:
    """(prompts that are done, the sum of their Jacobians)."""
    damaged = DamagedError(f"{path} is damaged; delete it to have the Jacobian lens computed again")
    try:
        state, total = read_state(path), read_tensors(path)["total"]
    except (DamagedError, KeyError) as error:
        raise damaged from error
    if not isinstance(state, dict) or state.get("identity") != identity or state.get("sha256") != _sha256(total):
        raise damaged
    done = state.get("done")
    if type(done) is not int or total.ndim != 2 or total.dtype != torch.float64:
        raise damaged
    return done, total


def _sha256(total: Tensor) -> str:
    return hashlib.sha256(total.contiguous().numpy().tobytes()).hexdigest()
