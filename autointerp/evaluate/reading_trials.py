"""Is a dictionary read as it was trained? Its L0 and FVU on the first tokens, under each plausible reading of its file.

One pass of the model collects the vectors; every reading is then measured on the same ones. L0 fits what the files
declare within FACTOR. FVU fits up to FACTOR times what they declare, or a margin above it, since text of another kind
raises it; and up to .8 where they declare none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from autointerp.errors import InputError
from autointerp.evaluate.pieces import pieces
from autointerp.evaluate.reconstruction import Reconstruction
from autointerp.evaluate.structural import EARLY_TOKENS, SUSPICIOUS_FVU, check_read, finite_rows
from autointerp.model.hooks import Hookpoint, activations_at_all
from autointerp.model.load import LoadedModel
from autointerp.model.norm_gain import Gain
from autointerp.model.token_batches import Batch, Halving, eligible, make_batches
from autointerp.records import WorkUnit
from autointerp.sae.formats.declared import Declared
from autointerp.sae.long_vectors import is_ordinary
from autointerp.sae.readings import Lengths, plausible, with_reading
from autointerp.sae.sae import Sae
from autointerp.sae_reading import Reading

FACTOR = 1.5
"""Measured and declared L0 may differ by it, and measured FVU may be so many times the declared one;"""
FVU_MARGIN = 0.1
"""or larger than it by this."""
CLEAR_FVU = 0.5
"""Where no FVU is declared, a reading with a higher one does not end the search for a better one."""
MOST_CHANGES = 3
_STRIDE = 5
"""Readings that change several things are first measured on every fifth vector."""
_PER_CHANGE = 0.1
"""What a change must gain, in log L0 and FVU, to be named rather than a reading without it."""
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """Vectors [n, d_in] of tokens that count, and what the dictionary reconstructs there [n, d_out]."""

    x: Tensor
    y: Tensor

    @property
    def lengths(self) -> Lengths:
        read, written = (float(part.double().square().sum(1).mean().sqrt()) for part in (self.x, self.y))
        return Lengths(read, written)

    def part(self) -> Sample:
        return Sample(self.x[::_STRIDE], self.y[::_STRIDE])


@dataclass(frozen=True, slots=True)
class Figures:
    """What a dictionary does on a sample."""

    l0: float
    fvu: float
    """nan or infinity where the reconstruction is none."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One reading, measured."""

    reading: Reading
    text: str
    """How the text is read differently: a setting, such as `corpus.prepend_bos = "never"`; "" where it is not."""
    figures: Figures
    fits: bool

    @property
    def name(self) -> str:
        names = [str(self.reading)] if self.reading.n_changes or not self.text else []
        return ", ".join([*names, *([self.text] if self.text else [])])

    @property
    def n_changes(self) -> int:
        return self.reading.n_changes + bool(self.text)


def l0_fits(declared: Declared, l0: float) -> bool:
    return declared.l0 is None or declared.l0 / FACTOR <= l0 <= declared.l0 * FACTOR


def fvu_fits(declared: Declared, fvu: float) -> bool:
    if declared.fvu is None:
        return fvu <= SUSPICIOUS_FVU
    return fvu <= max(FACTOR * declared.fvu, declared.fvu + FVU_MARGIN)


def fits(declared: Declared, figures: Figures) -> bool:
    """Whether figures are those of the dictionary that the files declare."""
    return l0_fits(declared, figures.l0) and fvu_fits(declared, figures.fvu)


def is_alarming(declared: Declared, figures: Figures) -> bool:
    """Whether figures are so far off that nobody should go on: a wrong L0, or hardly anything explained."""
    hardly = not figures.fvu <= SUSPICIOUS_FVU and (declared.fvu is None or not fvu_fits(declared, figures.fvu))
    return not l0_fits(declared, figures.l0) or hardly


def take_sample(
    loaded: LoadedModel,
    hookpoint: Hookpoint,
    output_hookpoint: Hookpoint | None,
    units: Iterable[WorkUnit],
    excluded_ids: Iterable[int],
    batch_tokens: int,
    n_tokens: int = EARLY_TOKENS,
) -> Sample:
    """The vectors of the first `n_tokens` tokens that count. Raises InputError where none counts, AutointerpError where
    many are not finite, and errors.OutOfMemoryError when halving the batches no longer helps."""
    excluded = torch.tensor(sorted(excluded_ids), dtype=torch.int64, device=loaded.device)
    points = [hookpoint]
    if output_hookpoint is not None and output_hookpoint != hookpoint:
        points.append(output_hookpoint)
    halving, n_nonfinite = Halving(), 0
    read: list[Tensor] = []
    written: list[Tensor] = []

    def forward(part: Batch) -> list[Tensor]:
        return activations_at_all(loaded, points, part.ids, part.lengths)

    for piece in pieces(units, excluded, n_tokens):
        for batch in make_batches(piece.windows, batch_tokens, loaded.pad_id):
            for part, activations in halving.run(batch.to(loaded.device), forward):
                mask = eligible(part, excluded)
                ends = activations[0], activations[-1]  # on the devices of their layers
                x, y = (held[mask.to(held.device)].to(loaded.device) for held in ends)
                good = finite_rows(x) & finite_rows(y)
                n_nonfinite += int((~good).sum())
                read.append(x[good])
                written.append(y[good] if len(points) > 1 else read[-1])
    check_read(sum(map(len, read)), n_nonfinite)
    x = torch.cat(read)
    return Sample(x, x if len(points) == 1 else torch.cat(written))


def measure(sae: Sae, sample: Sample) -> Figures:
    """L0 and FVU of `sae`, which is on the sample's device. Raises InputError where all vectors are the same."""
    x, y = sample.x, sample.y
    if sae.longest is not None:
        ordinary = is_ordinary(x, sae.longest)
        x, y = x[ordinary], y[ordinary]
    sums = Reconstruction(sae.d_sae)
    for start in range(0, len(x), _BLOCK):
        here = slice(start, start + _BLOCK)
        y_hat, active = sae.reconstruct(x[here])
        if not bool(finite_rows(y_hat).all()):
            return Figures(math.nan, math.inf)
        window = torch.zeros(len(y_hat), dtype=torch.int64, device=y_hat.device)
        sums.add("explain", [""], window, y[here].to(y_hat.device), y_hat, active)
    fvu = sums.fvu()
    if fvu is None:
        raise InputError(f"the activations of all {len(x)} tokens are the same, so the dictionary cannot be checked")
    return Figures(float(sums.counts().sum()) / len(x), fvu)


def tried(sae: Sae, declared: Declared, samples: Mapping[str, Sample], gain: Gain | None) -> Iterator[Trial]:
    """The plausible readings of `sae`, the file as its format's reader has it. `samples`: by the setting with which the
    text was read, the configured one first, under "". All that change one thing; then, where none of them fits well,
    those that change more and fit."""
    found = [_trial(sae, declared, Reading(), text, sample, gain) for text, sample in samples.items()]
    for text, sample in list(samples.items())[:1]:
        for reading in plausible(sae, sample.lengths, gain is not None, 1):
            found.append(_trial(sae, declared, reading, text, sample, gain))
    yield from found
    n_changes = 2
    while n_changes <= MOST_CHANGES and not any(_settles(declared, one) for one in found):
        for text, sample in samples.items():
            part = sample.part()
            for reading in plausible(sae, sample.lengths, gain is not None, n_changes - bool(text)):
                if _trial(sae, declared, reading, text, part, gain).fits:
                    one = _trial(sae, declared, reading, text, sample, gain)
                    if one.fits:
                        found.append(one)
                        yield one
        n_changes += 1


def best(declared: Declared, trials: Iterable[Trial]) -> Trial | None:
    """The trial that fits what is declared best, with few changes; None where none fits."""

    def off(one: Trial) -> float:
        return _off(declared, one.figures) + _PER_CHANGE * one.n_changes

    return min((one for one in trials if one.fits), key=off, default=None)


def _off(declared: Declared, figures: Figures) -> float:
    l0 = 0.0 if declared.l0 is None else abs(math.log(figures.l0 / declared.l0))
    return l0 + (figures.fvu if declared.fvu is None else abs(figures.fvu - declared.fvu))


def _settles(declared: Declared, one: Trial) -> bool:
    return one.fits and (declared.fvu is not None or one.figures.fvu <= CLEAR_FVU)


def _trial(sae: Sae, declared: Declared, reading: Reading, text: str, sample: Sample, gain: Gain | None) -> Trial:
    figures = measure(with_reading(sae, reading, gain), sample)
    return Trial(reading, text, figures, fits(declared, figures))
