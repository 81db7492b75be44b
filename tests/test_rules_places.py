"""The places that labels say of words: they hold for every word of which they are said."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rule_samples import ORDINARY, label, sample

from autointerp.rules.occurrences import active_of
from autointerp.rules.places import _inside
from autointerp.rules.subjects import Subject, with_places
from autointerp.rules.token_facts import facts_of


def texts(*words: tuple[str, ...], of: int = 24) -> list[tuple[str, ...]]:
    """Each time one of some runs of tokens, amid words that vary."""
    return [(f" w{i}", *words[i % len(words)], f" v{i}", ".") for i in range(of)]


def test_a_place_is_said_of_words_that_all_stand_there() -> None:
    found = label(texts(("\n", "oath"), ("\n", "rise")), ("oath", "rise"))
    assert found == "the words `oath` and `rise` at the start of a line"


def test_a_place_of_one_word_is_not_said_of_the_others() -> None:
    """Three in four active places are at the start of a line, and all of them are those of ` oath`."""
    found = label(texts(("\n", "oath"), ("\n", "oath"), ("\n", "oath"), (" rise",)), ("oath", " rise"))
    assert found == "the word `rise`, and `oath` at the start of a line"


def test_each_word_has_what_stands_before_it() -> None:
    """` with` never follows ` None`, and ` if` never ` object`."""
    found = label(texts((" object", " with"), (" None", " if")), (" with", " if"))
    assert found == "the word `if` after `None`, and `with` after `object`"


def test_what_stands_before_a_pair_is_not_read_of_the_other_words() -> None:
    """` h` tells after `</` alone; it is silent all over ordinary text."""
    found = label(texts((" health",), ("</", "h")), (" health", "h"), [*ORDINARY, [" a", "h", " the", "h"] * 10] * 2)
    assert found == "the word `health`, and `h` after `</`"


def test_a_token_that_opens_a_bracket_is_not_inside_it() -> None:
    assert label([(f" w{i}", "['", f"x{i}", "']") for i in range(24)], ("['",)) == "the sign `['`"
    assert label(texts((" f", "(", " zeta")), (" zeta",), [[" a", " zeta", " of"]] * 9) == "the word `zeta` after `(`"
    inside = label(texts((" f", "(", " u", " zeta"), (" g", "(", " x", " zeta")), (" zeta",), [[" a", " zeta"]] * 9)
    assert inside is not None and "inside brackets" in inside, inside


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["(", ")", "['", "']", " a", "f(", "#", "\n", '"', "()", ")("]), max_size=12))
def test_the_bracket_around_a_token_was_open_before_it(tokens: list[str]) -> None:
    facts = facts_of(tokens)
    before = ["", *(fact.bracket for fact in facts[:-1])]
    assert all(_inside(fact) in ("", held) for fact, held in zip(facts, before, strict=False))


@pytest.mark.parametrize("ordinary", [ORDINARY, [*ORDINARY, *[["\n", "import", " a"]] * 2]])
def test_a_word_that_fires_wherever_it_stands_is_named_with_its_place(ordinary: list[list[str]]) -> None:
    """Its few silent occurrences stand at the same place, and are no reason to leave it out."""
    assert label(texts(("\n", "import"), of=48), ("import",), ordinary) == "the word `import` at the start of a line"


def test_lines_that_begin_with_either_of_two_words() -> None:
    lines = [("\n", ("if", "elif")[i % 2], f" x{i}", f" y{i}", " zeta", ".") for i in range(24)]
    found = label(lines, (" zeta",), [[" a", " zeta"]] * 9)
    assert str(found).startswith("the word `zeta` on lines that begin with `elif` or `if`"), found


def test_the_word_that_begins_the_line_is_not_said_twice() -> None:
    """Neither where `:` tells by itself nor where it tells after `try` alone."""
    lines = texts(("\n", "try", ":"))
    assert label(lines, (":",), [[" a", ":"]] * 9) == label(lines, (":",), [[" a", ":"]] * 99) == "`:` after `try`"


def test_the_first_token_of_a_text_follows_nothing() -> None:
    """Whatever it is; the mark that stands for what lies before it is no operator."""
    found = label(
        [(f" {chr(97 + i)}b", " of", f" v{i}", ".") for i in range(24)], {f" {chr(97 + i)}b" for i in range(24)}
    )
    assert found is not None and "operators" not in found, found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([" oath", " rise"]), st.sampled_from([" pax", " qua", " rum"])), min_size=4))
def test_a_shared_place_holds_for_each(pairs: list[tuple[str, str]]) -> None:
    found = sample([(before, word, ".") for word, before in pairs], (" oath", " rise"), ORDINARY[:2])
    active, silent = active_of(found), active_of(found).where(lambda i: False)
    words = ("oath", "rise")
    subjects = [Subject(f"`{word}`", lambda fact, word=word: fact.folded == word, is_word=True) for word in words]  # type: ignore[misc]
    said = re.fullmatch(r"the words `oath` and `rise` after (.*)", with_places(subjects, active, silent))
    named = set(re.findall(r"`(\w+)`", said.group(1))) if said else set()
    for word in words if said else ():
        befores = [before.strip() for own, before in pairs if own.strip() == word]
        assert sum(before in named for before in befores) >= len(befores) / 2
        assert named <= set(befores)
