"""Readings of a dictionary's file: each is what a plain encoder of that convention computes, and has an inverse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.sae_format_helpers import tensors
from torch import Tensor

from autointerp.errors import InputError
from autointerp.model.norm_gain import Gain
from autointerp.sae.formats.internal import build
from autointerp.sae.readings import Lengths, before_gain, identity, is_gated_by_norm, plausible, scale_of, with_reading
from autointerp.sae.sae import INPUT_SCALE, Sae
from autointerp.sae_reading import Reading

D, F = 10, 40
X = torch.randn(64, D, generator=torch.Generator().manual_seed(3)) * 2 + 0.5


def gain(seed: int = 5) -> Gain:
    g = torch.Generator().manual_seed(seed)
    return Gain(torch.rand(D, generator=g) + 0.5, torch.randn(D, generator=g) * 0.1)


def loaded(choice: str, seed: int = 0, subtracts: bool = True, transcoder: bool = False, scale: float = 1.0) -> Sae:
    """A dictionary as a reader makes it of a file with rows of many lengths, whose inputs are multiplied by `scale`."""
    t = tensors(unit=False, seed=seed)
    t["W_dec"] = t["W_dec"] * torch.linspace(0.3, 2, F)[:, None]
    g = torch.Generator().manual_seed(seed + 1)
    return build(
        t["W_enc"] * scale, t["b_enc"], t["W_dec"] / scale, t["b_dec"] / scale,
        k=6 if choice == "topk" else None,
        threshold=None if choice == "topk" else torch.rand(F, generator=g) + 0.2,
        b_pre=None if subtracts and not transcoder else torch.zeros(D),
        architecture="transcoder" if transcoder else choice,
        W_skip=torch.randn(D, D, generator=g) if transcoder else None,
        metadata={} if scale == 1 else {INPUT_SCALE: scale},
    )  # fmt: skip


def same(a: Sae, b: Sae) -> None:
    """Every tensor the same, so that the file is there again."""
    for name, tensor in a.named_buffers():
        other = getattr(b, name)
        other = torch.ones_like(tensor) if other is None and name == "row_norms" else other
        torch.testing.assert_close(other, tensor, rtol=2e-5, atol=2e-5)
    assert (a.k, a.normalize, is_gated_by_norm(a)) == (b.k, b.normalize, is_gated_by_norm(b))
    assert scale_of(a) == pytest.approx(scale_of(b), rel=1e-5)


def inverse(sae: Sae, reading: Reading) -> Reading:
    """The reading that undoes `reading` of `sae`."""
    scales = {name: getattr(reading, name) for name in ("threshold_scale", "input_scale", "output_scale")}
    return Reading(
        gate=reading.gate and ("with_norm" if is_gated_by_norm(sae) else "without_norm"),
        b_dec_subtracted=None if reading.b_dec_subtracted is None else bool(sae.b_pre.any()),
        input_norm=reading.input_norm and sae.normalize,
        **{name: None if value is None else 1 / value for name, value in scales.items()},
    )


FACTORS = st.none() | st.floats(0.05, 20)
READINGS = st.builds(
    Reading,
    gate=st.sampled_from([None, "with_norm", "without_norm"]),
    threshold_scale=FACTORS,
    b_dec_subtracted=st.sampled_from([None, True, False]),
    input_scale=FACTORS,
    output_scale=FACTORS,
    input_norm=st.sampled_from([None, "layer_norm", "constant_norm", "none"]),
    before_gain=st.booleans(),
)


@given(READINGS, st.sampled_from(["topk", "jumprelu"]), st.booleans(), st.booleans(), st.integers(0, 20))
def test_the_inverse_of_a_reading_gives_the_file_back(
    reading: Reading, choice: str, subtracts: bool, transcoder: bool, seed: int
) -> None:
    sae = loaded(choice, seed, subtracts, transcoder)
    if choice == "topk":
        reading = replace(reading, threshold_scale=None)
    if transcoder:
        reading = replace(reading, b_dec_subtracted=None, input_norm=None)
    else:
        reading = replace(reading, output_scale=None)
    if reading.input_norm not in (None, "none"):
        reading = replace(reading, before_gain=False)
    there = with_reading(sae, replace(reading, before_gain=False), None)
    back = with_reading(there, inverse(sae, reading))
    same(sae, back)
    if reading.before_gain:  # which comes last, so it is undone first
        whole = with_reading(sae, reading, gain())
        same(there, before_gain(whole, gain().inverse))


def plain(
    t: dict[str, Tensor], x: Tensor, threshold: Tensor, *, scale: float = 1.0, subtract: bool = False,
    by_norm: bool = False,
) -> Tensor:  # fmt: skip
    """The reconstruction of a file with these tensors, by its own conventions and without any folding."""
    u = scale * x
    pre = ((u - t["b_dec"]) if subtract else u) @ t["W_enc"] + t["b_enc"]
    judged = pre * t["W_dec"].norm(dim=1) if by_norm else pre
    f = pre * (judged > threshold) * (pre > 0)
    return (f @ t["W_dec"] + t["b_dec"]) / scale


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_reading_is_what_its_convention_computes(subtract: bool, by_norm: bool, scale: float) -> None:
    """The file is read by one convention, and is of another."""
    t = tensors(unit=False)
    threshold = torch.rand(F, generator=torch.Generator().manual_seed(1)) + 0.2
    sae = build(**t, threshold=threshold, b_pre=torch.zeros(D), architecture="jumprelu", metadata={})
    reading = Reading(
        gate="with_norm" if by_norm else None,
        b_dec_subtracted=True if subtract else None,
        input_scale=None if scale == 1 else scale,
    )
    expected = plain(t, X, threshold, scale=scale, subtract=subtract, by_norm=by_norm)
    torch.testing.assert_close(with_reading(sae, reading)(X), expected, rtol=1e-4, atol=1e-4)


def test_the_lengths_of_rows_are_the_file_s_whatever_its_scale() -> None:
    """Gated by norm, in a file whose input scale the reader has folded."""
    t, s = tensors(unit=False), 0.25
    threshold = torch.full((F,), 0.5)
    sae = build(
        t["W_enc"] * s, t["b_enc"], t["W_dec"] / s, t["b_dec"] / s, threshold=threshold, b_pre=torch.zeros(D),
        architecture="jumprelu", metadata={INPUT_SCALE: s},
    )  # fmt: skip
    torch.testing.assert_close(sae(X), plain(t, X, threshold, scale=s), rtol=1e-4, atol=1e-4)
    read = with_reading(sae, Reading(gate="with_norm"))
    torch.testing.assert_close(read(X), plain(t, X, threshold, scale=s, by_norm=True), rtol=1e-4, atol=1e-4)
    unscaled = with_reading(sae, Reading(input_scale=1 / s))
    torch.testing.assert_close(unscaled(X), plain(t, X, threshold), rtol=1e-4, atol=1e-4)
    raw = with_reading(sae, Reading(threshold_scale=s))
    torch.testing.assert_close(raw(X), plain(t, X, threshold * s, scale=s), rtol=1e-4, atol=1e-4)


def test_the_k_are_chosen_by_the_length_of_their_rows_too() -> None:
    t = tensors(unit=False)
    sae = build(**t, k=4, b_pre=torch.zeros(D), architecture="topk", metadata={})
    ranked = (X @ t["W_enc"] + t["b_enc"]) * t["W_dec"].norm(dim=1)
    value, index = ranked.topk(4, dim=-1)
    f = torch.zeros(len(X), F).scatter(-1, index, value.relu())
    torch.testing.assert_close(with_reading(sae, Reading(gate="with_norm")).encode(X), f, rtol=1e-4, atol=1e-4)


def test_a_dictionary_of_what_was_before_a_gain() -> None:
    sae, transcoder = loaded("jumprelu", subtracts=True), loaded("jumprelu", transcoder=True)
    g = gain()
    z = (X - g.offset) / g.factor
    torch.testing.assert_close(before_gain(sae, g)(X), sae(z) * g.factor + g.offset, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(before_gain(transcoder, g)(X), transcoder(z), rtol=1e-4, atol=1e-4)
    rows = before_gain(sae, g).W_dec
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(F))
    with pytest.raises(InputError, match="before any gain"):
        before_gain(with_reading(sae, Reading(input_norm="layer_norm")), g)


def test_a_reading_that_has_no_meaning_is_refused() -> None:
    topk, transcoder = loaded("topk"), loaded("topk", transcoder=True)
    for sae, reading, told in (
        (topk, Reading(threshold_scale=2), "chooses its 6 features without thresholds"),
        (topk, Reading(output_scale=2), "output_scale is for transcoders"),
        (topk, Reading(before_gain=True), "holds no norm's output"),
        (transcoder, Reading(b_dec_subtracted=True), "not in the space of its input"),
        (transcoder, Reading(input_norm="layer_norm"), "says nothing of the output"),
        (Sae(**tensors(), k=4), Reading(gate="with_norm"), "are not known"),
    ):
        with pytest.raises(InputError, match=told):
            with_reading(sae, reading)


def test_a_reading_is_part_of_the_identity_unless_it_changes_nothing() -> None:
    held = {identity("ab", reading) for reading in (None, Reading(), Reading(input_scale=2), Reading(input_scale=3))}
    assert len(held) == 3 and "ab" in held


def test_every_plausible_reading_can_be_made_and_none_stands_twice() -> None:
    lengths = Lengths(float(X.square().sum(1).mean().sqrt()), 4.0)
    for sae in (
        loaded("topk"), loaded("jumprelu"), loaded("jumprelu", scale=0.3), loaded("topk", transcoder=True),
        loaded("jumprelu", transcoder=True), with_reading(loaded("topk"), Reading(input_norm="layer_norm")),
    ):  # fmt: skip
        found = [reading for n in (1, 2, 3) for reading in plausible(sae, lengths, True, n)]
        assert len(set(found)) == len(found) > 5 and Reading() not in found
        for reading in found:
            assert bool(torch.isfinite(with_reading(sae, reading, gain())(X)).all())
    usual = math.sqrt(D) / lengths.read
    scales = {r.input_scale for r in plausible(loaded("topk"), lengths, False, 1)}
    assert any(scale is not None and abs(scale / usual - 1) < 1e-4 for scale in scales)
