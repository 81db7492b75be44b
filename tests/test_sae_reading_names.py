"""The names of a reading: what is written is what is read, and what makes no sense is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.config import SaeConfig
from autointerp.errors import InputError
from autointerp.sae_reading import AS_READ, Reading, meaning, parse_reading, rounded

SCALES = st.none() | st.floats(1e-8, 1e8).map(rounded)
READINGS = st.builds(
    Reading,
    gate=st.sampled_from([None, "with_norm", "without_norm"]),
    threshold_scale=SCALES,
    b_dec_subtracted=st.sampled_from([None, True, False]),
    input_scale=SCALES,
    output_scale=SCALES,
    input_norm=st.sampled_from([None, "layer_norm", "constant_norm", "none"]),
    before_gain=st.booleans(),
)


@given(READINGS)
def test_a_reading_is_read_back_from_its_names(reading: Reading) -> None:
    names = str(reading)
    assert parse_reading(names) == reading
    assert parse_reading(", ".join(reversed(names.split(", ")))) == reading  # in any order
    assert (names == AS_READ) == (reading.n_changes == 0) == (meaning(reading) == "")
    assert reading.n_changes in (0, names.count(",") + 1)


@given(READINGS, READINGS)
def test_of_two_readings_together_the_second_holds(first: Reading, second: Reading) -> None:
    both = first | second
    assert both | second == both and Reading() | both == both == both | Reading()
    assert max(first.n_changes, second.n_changes) <= both.n_changes <= first.n_changes + second.n_changes


def test_nothing_is_no_reading() -> None:
    assert parse_reading("") is None and parse_reading("  ") is None
    assert parse_reading(AS_READ) == Reading()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gate_with_norms", "'gate_with_norms' is not a reading. Did you mean gate_with_norm"),
        ("b_dec_subtracted, b_dec_not_subtracted", "'b_dec_not_subtracted' says again, or contradicts"),
        ("input_scale=2, input_scale=3", "says again"),
        ("before_gain, before_gain", "says again"),
        ("input_scale", "'input_scale' is not a reading"),
        ("input_scale=", "input_scale needs a number, not ''"),
        ("input_scale=nan", "input_scale must lie in 1e-09..1e"),
        ("input_scale=-1", "input_scale must lie in"),
        ("threshold_scale=1e99", "threshold_scale must lie in"),
        ("as read, before_gain", "'as read' is not a reading"),
        (",", "is not a reading"),
    ],
)
def test_what_is_no_reading_is_refused(text: str, told: str) -> None:
    with pytest.raises(InputError, match="sae.reading") as refused:
        SaeConfig("h", path="somewhere", reading=text)
    assert told in str(refused.value)


def test_only_a_dictionary_from_elsewhere_is_read_in_another_way() -> None:
    assert SaeConfig("h", path="somewhere", reading="before_gain").reading == "before_gain"
    with pytest.raises(InputError, match="set sae.path too"):
        SaeConfig("h", reading="before_gain")
