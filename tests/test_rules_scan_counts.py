"""Counts and examples of a scan against counting everything at once."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.records import source_of
from autointerp.rules.language.conditions import Clause, Strings
from autointerp.rules.language.forms import Forms
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule, Table
from autointerp.rules.scan_counts import ScanCounts, TileBlock

RULES = [
    Rule(0.0, [Table(("token",), {(" a",): 4.0, (" b",): 0.5})]),
    Rule(0.0, clauses=[Clause((Strings("token", ("a", "c")),), 7.0)]),
    Rule(0.0),
    Rule(0.5, clauses=[Clause((Strings("token", ("b",)),), 0.6), Clause((Strings("token", ("b", "é")),), 0.25)]),
    Rule(2.0, clauses=[Clause((Strings("token", ("c",)),), 1.0)]),
]
Tile = tuple[str, int, list[str]]

TOKENS = st.lists(st.sampled_from([" a", " b", " c", "\n", "é", "\ud800", "<<"]), min_size=1, max_size=5)
DOCUMENTS = st.lists(st.tuples(st.sampled_from("xyz"), st.lists(TOKENS, min_size=1, max_size=5)), max_size=6)


def tiles_of(documents: list[tuple[str, list[list[str]]]]) -> list[Tile]:
    """Documents of one name that follow one another are blocks of one document."""
    found: list[Tile] = []
    for number, (name, parts) in enumerate(documents):
        starts = np.cumsum([0, *map(len, parts)])
        found += [(f"{name}#{number}", int(at), part) for at, part in zip(starts, parts, strict=False)]
    return found


def scanned(tiles: list[Tile], cuts: list[int], n_examples: int = 3) -> ScanCounts:
    counts, forms = ScanCounts.none(RULES, 1.0, n_examples), Forms()
    ends = [0, *sorted(min(cut, len(tiles)) for cut in cuts), len(tiles)]
    for low, high in zip(ends, ends[1:], strict=False):
        names, starts, tokens = [list(column) for column in zip(*tiles[low:high], strict=True)] or [[], [], []]
        counts = counts.plus(TileBlock(names, starts, ManyTexts(tokens, [None] * len(tokens), forms)))
    return counts


@given(DOCUMENTS, st.lists(st.integers(0, 30), max_size=4))
def test_counts_are_those_of_every_tile_however_the_stream_is_cut(
    documents: list[tuple[str, list[list[str]]]], cuts: list[int]
) -> None:
    tiles = tiles_of(documents)
    counts = scanned(tiles, cuts)
    assert (counts.n_tiles, counts.n_tokens) == (len(tiles), sum(len(tokens) for _, _, tokens in tiles))
    assert counts.of_rule == scanned(tiles, []).of_rule
    for rule, found in zip(RULES, counts.of_rule, strict=True):
        predicted = [rule.predict(tokens) for _, _, tokens in tiles]
        claimed = [max(values) >= 1.0 for values in predicted]
        assert found.n_claimed == sum(claimed)
        assert found.n_tokens == sum(value >= 1.0 for values in predicted for value in values)
        runs = groupby(zip(tiles, claimed, strict=True), key=lambda pair: source_of(pair[0][0]))
        assert found.n_documents == sum(any(is_claimed for _, is_claimed in run) for _, run in runs)
        strengths = sorted((max(values) for values, is_claimed in zip(predicted, claimed, strict=True) if is_claimed))
        examples = found.examples
        assert len(examples) == min(3, sum(claimed))
        assert all(one.strength >= 1.0 and "<<" in one.marked and one.text in "".join(one.marked) + one.text
                   for one in examples)  # fmt: skip
        sources = [source_of(one.document) for one in examples]
        of_each = min(3, len({source_of(name) for (name, _, _), is_claimed in zip(tiles, claimed, strict=True)
                              if is_claimed}))  # fmt: skip
        assert len(set(sources[:of_each])) == of_each  # one of each document first
        if strengths:
            assert max(one.strength for one in examples) == pytest.approx(strengths[-1])


def test_an_example_says_where_and_marks_what_is_predicted() -> None:
    counts = scanned([("d", 30, [" b", " a", "\n", " a"])], [])
    (example,) = counts.of_rule[0].examples
    assert (example.document, example.position, example.strength) == ("d", 31, 4.0)
    assert example.text == " b a\n a" and example.marked == " b<< a>>\n<< a>>"


def test_equally_strong_examples_come_from_all_over_the_text() -> None:
    tiles: list[Tile] = [(f"d{i}", 0, [" a"]) for i in range(400)]
    examples = scanned(tiles, [100, 101, 250], n_examples=20).of_rule[1].examples
    places = sorted(int(one.document[1:]) for one in examples)
    assert len(places) == 20 and places[0] < 150 and places[-1] > 250
    assert scanned(tiles, [], n_examples=20).of_rule[1].examples == examples
    assert scanned(tiles, [], n_examples=0).of_rule[1].examples == ()
