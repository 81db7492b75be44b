"""Makes the dictionary that another reading of a file describes (sae_reading.py), from the one that its reader made.

All is exact algebra on the form of sae.py: raw-input units, unit decoder rows. With n_i the length of a decoder row in
the file, and t_i the threshold here:

    gate_with_norm        pre_i n_i > (the file's threshold), so t_i / n_i; of a choice of k, pre_i n_i is ranked
    threshold_scale=F     F t_i
    b_dec_subtracted      b_pre = b_dec
    input_scale=s         act(s x W + b) d / s = act(x W + b / s) d: all biases and thresholds are divided by s
                          (of a transcoder with output scale r: W_enc s / r, b_enc / r, t / r, b_dec / r, b_pre / s)
    before_gain           with x = g z + o, a dictionary of z reads (x - o) / g, and an SAE writes g z_hat + o

They are applied in this order, whatever the order of their names.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from autointerp.errors import InputError
from autointerp.model.norm_gain import Gain
from autointerp.sae.formats.internal import is_transcoder, same_pre_bias
from autointerp.sae.sae import GATED_BY_NORM, INPUT_SCALE, Sae
from autointerp.sae_reading import Reading, rounded

_SAME_SCALE = 0.02
"""Two scales this close are the same one, measured on different text."""
_TINY = torch.finfo(torch.float32).tiny


def with_reading(sae: Sae, reading: Reading, gain: Gain | None = None) -> Sae:
    """`sae` read in that way; it shares all tensors that stay the same. `gain`: that of the norm at its hookpoint.
    Raises InputError where the reading has no meaning for this dictionary."""
    if sae.pursuit is not None and reading.n_changes:
        raise InputError(f"reading {reading}: a dictionary of matching pursuit is read as its format has it only")
    if reading.gate is not None:
        sae = _gated(sae, reading.gate == "with_norm")
    if reading.threshold_scale is not None:
        if sae.threshold is None:
            raise InputError(f"reading {reading}: this dictionary chooses its {sae.k} features without thresholds")
        sae = _changed(sae, threshold=sae.threshold * reading.threshold_scale)
    if reading.b_dec_subtracted is not None:
        if is_transcoder(sae):
            raise InputError(f"reading {reading}: a transcoder's b_dec is not in the space of its input")
        sae = _changed(sae, b_pre=sae.b_dec if reading.b_dec_subtracted else torch.zeros_like(sae.b_dec))
    if reading.input_norm is not None:
        if is_transcoder(sae):
            raise InputError(f"reading {reading}: what scales each vector of an input says nothing of the output")
        sae = _changed(sae, normalize=reading.input_norm)
    if reading.input_scale is not None or reading.output_scale is not None:
        sae = _scaled(sae, reading)
    if reading.before_gain:
        if gain is None:
            raise InputError(f"reading {reading}: the hookpoint holds no norm's output, so there is no gain")
        sae = before_gain(sae, gain)
    return sae


def identity(sha256: str, reading: Reading | None) -> str:
    """The sha256 of a file that is read in that way. A reading that changes nothing leaves it as it is."""
    if reading is None or not reading.n_changes:
        return sha256
    return hashlib.sha256(f"{sha256} read with {reading}".encode()).hexdigest()


def before_gain(sae: Sae, gain: Gain) -> Sae:
    """The dictionary of what a norm returns that computes what `sae` computes of the same before the norm's gain."""
    if sae.normalize != "none":
        raise InputError("reading before_gain: the dictionary scales each vector by its own numbers, before any gain")
    factor, offset = (part.to(sae.W_enc) for part in (gain.factor, gain.offset))
    W_enc, b_pre = sae.W_enc / factor[:, None], sae.b_pre * factor + offset
    W_glu = None if sae.W_glu is None else sae.W_glu / factor[:, None]
    if is_transcoder(sae):
        if sae.W_skip is None:
            return _changed(sae, W_enc=W_enc, b_pre=b_pre, W_glu=W_glu)
        W_skip = sae.W_skip / factor[:, None]
        return _changed(sae, W_enc=W_enc, b_pre=b_pre, W_skip=W_skip, b_dec=sae.b_dec - offset @ W_skip, W_glu=W_glu)
    W_dec = sae.W_dec * factor
    lengths = W_dec.norm(dim=1).clamp_min(_TINY)
    changed: dict[str, Any] = {"W_dec": W_dec / lengths[:, None], "b_dec": sae.b_dec * factor + offset, "b_pre": b_pre}
    changed["W_glu"] = W_glu
    if sae.threshold is None:
        norms = lengths if sae.row_norms is None else sae.row_norms * lengths
        return _changed(sae, W_enc=W_enc, row_norms=norms, **changed)
    return _changed(sae, W_enc=W_enc * lengths, b_enc=sae.b_enc * lengths, threshold=sae.threshold * lengths, **changed)


def _gated(sae: Sae, with_norm: bool) -> Sae:
    if with_norm == is_gated_by_norm(sae):
        return sae
    if sae.file_norms is None:
        raise InputError("the lengths of the decoder rows in this file are not known, so gate_* has no meaning for it")
    factor = sae.file_norms.clamp_min(_TINY) if with_norm else 1 / sae.file_norms.clamp_min(_TINY)
    metadata = sae.metadata | {GATED_BY_NORM: with_norm}
    if sae.threshold is not None:
        return _changed(sae, threshold=sae.threshold / factor, metadata=metadata)
    norms = (torch.ones_like(factor) if sae.row_norms is None else sae.row_norms) / factor
    return _changed(sae, W_enc=sae.W_enc * factor, b_enc=sae.b_enc * factor, row_norms=norms, metadata=metadata)


def _scaled(sae: Sae, reading: Reading) -> Sae:
    into = reading.input_scale or 1.0
    if is_transcoder(sae):
        out = reading.output_scale or 1.0
    elif reading.output_scale is not None:
        raise InputError(f"reading {reading}: output_scale is for transcoders; an SAE writes what it reads")
    else:
        out = into
    changed: dict[str, Any] = {"b_enc": sae.b_enc / out, "b_dec": sae.b_dec / out, "b_pre": sae.b_pre / into}
    if into != out:
        changed["W_enc"] = sae.W_enc * (into / out)
        changed["W_skip"] = None if sae.W_skip is None else sae.W_skip * (into / out)
    if sae.W_glu is not None:
        changed["W_glu"] = sae.W_glu * into
    if sae.threshold is not None:
        changed["threshold"] = sae.threshold / out
    return _changed(sae, metadata=sae.metadata | {INPUT_SCALE: scale_of(sae) * into}, **changed)


def _changed(sae: Sae, metadata: dict[str, Any] | None = None, **changes: Any) -> Sae:
    values: dict[str, Any] = {
        "W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec, "k": sae.k,
        "threshold": sae.threshold, "architecture": sae.architecture, "row_norms": sae.row_norms, "b_pre": sae.b_pre,
        "W_skip": sae.W_skip, "normalize": sae.normalize, "relu": sae.relu, "W_glu": sae.W_glu, "b_glu": sae.b_glu,
    }  # fmt: skip
    made = Sae(**values | changes)
    made.metadata, made.file_norms = sae.metadata if metadata is None else metadata, sae.file_norms
    return made


def is_gated_by_norm(sae: Sae) -> bool:
    return bool(sae.metadata.get(GATED_BY_NORM, False))


def scale_of(sae: Sae) -> float:
    """The number by which the file's dictionary multiplies what it reads."""
    return float(sae.metadata.get(INPUT_SCALE, 1.0))


# --- which readings are plausible -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lengths:
    """Root mean squares of the lengths of the vectors that a dictionary reads and writes."""

    read: float
    written: float


def plausible(sae: Sae, lengths: Lengths, has_gain: bool, n_changed: int) -> Iterator[Reading]:
    """The readings of `sae` that people's files have been found to mean and that change `n_changed` things."""
    if sae.pursuit is not None:
        return
    ways = [way for way in (_gates(sae), _biases(sae), _inputs(sae, lengths)) if way]
    if has_gain and sae.normalize == "none":  # a gain in front of a norm has no place
        ways.append([Reading(before_gain=True)])
    for chosen in itertools.combinations(ways, n_changed):
        for parts in itertools.product(*chosen):
            together = Reading()
            for part in parts:
                together = together | part
            if not (together.before_gain and together.input_norm in ("layer_norm", "constant_norm")):
                yield together


def _has_thresholds(sae: Sae) -> bool:
    return sae.threshold is not None and bool(sae.threshold.any())


def _gates(sae: Sae) -> list[Reading]:
    norms = sae.file_norms
    if norms is None or not (_has_thresholds(sae) or sae.k is not None):
        return []
    if float(norms.amax() - norms.amin()) <= 1e-3 * float(norms.amax()):
        return []
    return [Reading(gate="without_norm" if is_gated_by_norm(sae) else "with_norm")]


def _biases(sae: Sae) -> list[Reading]:
    if is_transcoder(sae) or not bool(sae.b_dec.any()):
        return []
    subtracted = same_pre_bias(sae)
    return [Reading(b_dec_subtracted=not subtracted)] if subtracted or not bool(sae.b_pre.any()) else []


def _inputs(sae: Sae, lengths: Lengths) -> list[Reading]:
    """Readings of the scale of inputs, and of thresholds that a scale was or was not applied to."""
    if not (0 < lengths.read < math.inf and 0 < lengths.written < math.inf):
        return []
    held, found = scale_of(sae), []
    plain = Reading() if sae.normalize == "none" else Reading(input_norm="none")
    unscaled = plain if held == 1 else plain | Reading(input_scale=rounded(1 / held))
    if unscaled.n_changes:
        found.append(unscaled)
    if is_transcoder(sae):
        return [*found, *_transcoder_scales(sae, lengths)]
    undone = None if held == 1 else rounded(1 / held)
    for norm in ("layer_norm", "constant_norm"):
        if norm != sae.normalize:
            found.append(Reading(input_norm=norm, input_scale=undone))
    usual = math.sqrt(sae.d_in) / lengths.read
    for scale in (usual, 1 / lengths.read):
        factor = rounded(scale / held)
        if abs(factor - 1) > _SAME_SCALE:
            found.append(plain | Reading(input_scale=factor))
            if _has_thresholds(sae):
                found.append(plain | Reading(input_scale=factor, threshold_scale=factor))
    if _has_thresholds(sae):
        scale = rounded(usual if held == 1 else held)
        found += [Reading(threshold_scale=factor) for factor in (scale, rounded(1 / scale))]
    return found


def _transcoder_scales(sae: Sae, lengths: Lengths) -> list[Reading]:
    into, out = math.sqrt(sae.d_in) / lengths.read / scale_of(sae), math.sqrt(sae.d_out) / lengths.written
    scaled = Reading(input_scale=rounded(into), output_scale=rounded(out))
    if not _has_thresholds(sae):
        return [scaled]
    return [scaled, scaled | Reading(threshold_scale=rounded(out))]
