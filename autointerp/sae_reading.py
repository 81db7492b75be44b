"""The reading of a dictionary's file: what its numbers mean where the file does not say, or is not to be believed.

A reading is written as names, separated by commas. Each says one thing; what is not named stays as the format's reader
has it. Without torch, so that the configuration can be checked where it is not installed; sae/readings.py makes the
dictionary that a reading describes.

    gate_with_norm          features are chosen by the pre-activation times the length of their decoder row
    gate_without_norm       ... by the pre-activation alone
    threshold_scale=F       thresholds are the file's, times F
    b_dec_subtracted        b_dec is subtracted from the input before it is encoded
    b_dec_not_subtracted
    input_scale=F           the dictionary reads (and an SAE writes) vectors that were multiplied by F
    output_scale=F          a transcoder writes vectors that were multiplied by F
    input_layer_norm        it reads each vector less its mean, divided by its standard deviation
    input_constant_norm     it reads each vector scaled to length sqrt(d)
    input_not_normalized    it reads vectors as they are
    before_gain             it reads (and an SAE writes) a norm's output before it is multiplied by the norm's gain
    as read                 the file is read as its format has it, and that is not questioned
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

from autointerp.errors import InputError, nearest, shown
from autointerp.number_ranges import Range

AS_READ = "as read"
_SCALES = Range(1e-9, 1e9)

Gate = Literal["with_norm", "without_norm"]
InputNorm = Literal["layer_norm", "constant_norm", "none"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read in another way than the format's reader does it. None: as it does."""

    gate: Gate | None = None
    threshold_scale: float | None = None
    b_dec_subtracted: bool | None = None
    input_scale: float | None = None
    output_scale: float | None = None
    input_norm: InputNorm | None = None
    before_gain: bool = False

    def __str__(self) -> str:
        """The names, in a fixed order; "as read" where nothing is read differently."""
        names = [
            *([f"gate_{self.gate}"] if self.gate else []),
            *([f"threshold_scale={self.threshold_scale:.6g}"] if self.threshold_scale is not None else []),
            *([_B_DEC[self.b_dec_subtracted]] if self.b_dec_subtracted is not None else []),
            *([_NORM_NAMES[self.input_norm]] if self.input_norm else []),
            *([f"input_scale={self.input_scale:.6g}"] if self.input_scale is not None else []),
            *([f"output_scale={self.output_scale:.6g}"] if self.output_scale is not None else []),
            *(["before_gain"] if self.before_gain else []),
        ]
        return ", ".join(names) or AS_READ

    @property
    def n_changes(self) -> int:
        """How many things it reads differently."""
        return sum(self.says(field.name) for field in fields(self))

    def says(self, name: str) -> bool:
        """Whether it says something of the field `name`."""
        value = getattr(self, name)
        return bool(value) if name == "before_gain" else value is not None

    def __or__(self, other: Reading) -> Reading:
        """Both together; `other` holds where they differ."""
        return replace(self, **{f.name: getattr(other, f.name) for f in fields(other) if other.says(f.name)})


_B_DEC = {True: "b_dec_subtracted", False: "b_dec_not_subtracted"}
_NORM_NAMES: dict[InputNorm, str] = {
    "layer_norm": "input_layer_norm",
    "constant_norm": "input_constant_norm",
    "none": "input_not_normalized",
}
_ONE: dict[str, Reading] = {
    "gate_with_norm": Reading(gate="with_norm"),
    "gate_without_norm": Reading(gate="without_norm"),
    **{name: Reading(b_dec_subtracted=value) for value, name in _B_DEC.items()},
    **{name: Reading(input_norm=value) for value, name in _NORM_NAMES.items()},
    "before_gain": Reading(before_gain=True),
}
_SCALED = ("threshold_scale", "input_scale", "output_scale")
NAMES = (*_ONE, *(f"{name}=F" for name in _SCALED), AS_READ)


def parse_reading(text: str, key: str = "sae.reading") -> Reading | None:
    """The reading that `text` names; None for "" (the file is read as its format has it, and checked). "as read" is a
    reading that changes nothing. Raises InputError, with the setting's `key`, where a name is unknown, stands twice or
    against another, or a number is out of its range."""
    if not text.strip():
        return None
    names = [" ".join(name.split()) for name in text.split(",")]
    if names == [AS_READ]:
        return Reading()
    found = Reading()
    for name in names:
        one = _one(name, key)
        if any(one.says(field.name) and found.says(field.name) for field in fields(Reading)):
            raise InputError(f"{key}: {name!r} says again, or contradicts, what another name in {shown(text)} says")
        found = found | one
    return found


def _one(name: str, key: str) -> Reading:
    if name in _ONE:
        return _ONE[name]
    left, equals, number = (part.strip() for part in name.partition("="))
    if equals and left in _SCALED:
        try:
            value = float(number)
        except ValueError:
            raise InputError(f"{key}: {left} needs a number, not {shown(number)}") from None
        _SCALES.check(value, f"{key}: {left}")
        return Reading(**{left: rounded(value)})  # type: ignore[arg-type]
    raise InputError(f"{key}: {shown(name)} is not a reading.{nearest(name, _known())} Known: {', '.join(NAMES)}")


def meaning(reading: Reading) -> str:
    """What the reading says, in words."""
    said = [
        *([_GATES[reading.gate]] if reading.gate else []),
        *([f"thresholds are the file's, times {reading.threshold_scale:.6g}"] if reading.threshold_scale else []),
        *(["b_dec is subtracted from the input before it is encoded"] if reading.b_dec_subtracted else []),
        *(["b_dec is not subtracted from the input"] if reading.b_dec_subtracted is False else []),
        *([_NORMS[reading.input_norm]] if reading.input_norm else []),
        *([f"inputs are multiplied by {reading.input_scale:.6g}"] if reading.input_scale else []),
        *([f"outputs are multiplied by {reading.output_scale:.6g}"] if reading.output_scale else []),
        *(["it was trained on the norm's output before its gain"] if reading.before_gain else []),
    ]
    return "; ".join(said)


_GATES: dict[Gate, str] = {
    "with_norm": "features are chosen by the pre-activation times the length of their decoder row",
    "without_norm": "features are chosen by the pre-activation alone, without the length of their decoder row",
}
_NORMS: dict[InputNorm, str] = {
    "layer_norm": "each vector is read less its mean, divided by its standard deviation",
    "constant_norm": "each vector is read scaled to length sqrt(d)",
    "none": "vectors are read as they are",
}


def rounded(factor: float) -> float:
    """A factor as its name writes it: what is pasted from a message is what was measured."""
    return float(f"{factor:.6g}")


def _known() -> Iterable[str]:
    return (*_ONE, *_SCALED, AS_READ)
