"""Every number of the configuration has a range, and a value outside it is refused with its key."""

from __future__ import annotations

import math
import re
import typing
from dataclasses import is_dataclass
from typing import Any

import pytest

from autointerp.config import Config, PriceConfig, SaeConfig
from autointerp.config_file import from_table
from autointerp.errors import InputError
from autointerp.llm.limits import TokenBucket, request_throttler
from autointerp.number_ranges import ranges

ODD = (0, -1, 1, 0.0, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 10**30, -(10**30), 10**400, 10**5000)

SECTIONS: dict[str, type] = {
    **{name: kind for name, kind in typing.get_type_hints(Config).items() if is_dataclass(kind)},
    "sae": SaeConfig, "price": PriceConfig,
}  # fmt: skip


def numbers(kind: type) -> list[str]:
    """The fields of a config dataclass that take a number."""
    hints = typing.get_type_hints(kind)
    return [n for n, hint in hints.items() if {int, float} & {hint, *typing.get_args(hint)} and n != "deadline"]


NUMBERS = [(section, name) for section, kind in SECTIONS.items() for name in numbers(kind) if name != "prefixes"]


def table(section: str, name: str, value: Any) -> tuple[dict[str, Any], str]:
    """A configuration that sets one value, and the value's key in messages."""
    if section == "sae":
        return {"sae": [{"hookpoint": "h", name: value}]}, f"sae[0].{name}"
    if section == "price":
        return {"llm": {"prices": {"m": {name: value}}}}, f'llm.prices."m".{name}'
    return {section: {name: value}}, f"{section}.{name}"


def set_value(config: Config, section: str, name: str) -> Any:
    part = config.sae[0] if section == "sae" else config.llm.prices["m"] if section == "price" else None
    return getattr(part or getattr(config, section), name)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_number_has_a_range(section: str) -> None:
    assert set(ranges(SECTIONS[section])) == set(numbers(SECTIONS[section])) - {"prefixes"}


@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_an_odd_number_is_in_range_or_refused_by_its_key(section: str, name: str) -> None:
    allowed = ranges(SECTIONS[section])[name]
    for value in ODD:
        wanted, key = table(section, name, value)
        try:
            found = set_value(from_table(wanted), section, name)
        except InputError as error:
            assert name in str(error)
            if not allowed.low <= value <= allowed.high and not (
                isinstance(value, float) and "must be int" in str(error)
            ):
                assert re.match(rf"{re.escape(key)} must lie in \S+\.\.\S+, not .+", str(error))
        else:
            assert allowed.low <= found <= allowed.high and math.isfinite(found)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"llm": {"tokens_per_minute": 0}}, r"llm\.tokens_per_minute must lie in 1\.\.1000000000000, not 0\.0"),
        ({"llm": {"tokens_per_minute": math.nan}}, r"llm\.tokens_per_minute must lie in .*, not nan"),
        ({"llm": {"requests_per_minute": 1e-300}}, r"llm\.requests_per_minute must lie in 0\.001\.\..*, not 1e-300"),
        ({"harvest": {"feature_block": 0}}, r"harvest\.feature_block must lie in 1\.\.1000000000, not 0"),
        ({"harvest": {"vocab_tokens": -3}}, r"harvest\.vocab_tokens must lie in 0\.\.10000, not -3"),
        ({"harvest": {"seed": 2**23}}, r"harvest\.seed must lie in 0\.\.8388607, not 8388608"),
        ({"train": {"checkpoint_every": 0}}, r"train\.checkpoint_every must lie in 1\.\.1000000000, not 0"),
        ({"sae": [{"hookpoint": "h", "k": 0}]}, r"sae\[0\]\.k must lie in 1\.\.1000000000, not 0"),
        ({"sae": [{"hookpoint": "h", "prefixes": [0.5, math.nan, 1.0]}]}, r"sae\.prefixes must ascend"),
        ({"explain": {"seed": 10**5000}}, r"explain\.seed must lie in 0\.\.4294967295, not a value too large to show"),
        ({"budget": {"max_usd": math.inf}}, r"budget\.max_usd must lie in 0\.\.1000000000000, not inf"),
    ],
)
def test_a_number_out_of_range_is_told_with_its_range(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_table(wanted)


def test_the_slowest_and_fastest_rates_make_limits_that_move() -> None:
    allowed = ranges(type(Config().llm))
    for rate in (allowed["requests_per_minute"].low, allowed["requests_per_minute"].high):
        throttler = request_throttler(rate)
        assert throttler.rate_limit >= 1 and math.isfinite(throttler.period) and throttler.period > 0
    for rate in (allowed["tokens_per_minute"].low, allowed["tokens_per_minute"].high):
        assert TokenBucket(rate).capacity > 0
