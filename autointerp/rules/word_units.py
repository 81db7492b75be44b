"""The words that a feature fires on, as its label names them.

A word tells when the feature fires only if it does fire where the word stands: `of` may be active in a tenth of all
contexts of a feature and still say nothing. So what is named is words with a high mean activation in ordinary text; a
common word is named with the one before it (`as well`) where the pair has such a mean. Parts of words are shown as
their words, and forms of one word together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from autointerp.rules.near import NearWords
from autointerp.rules.occurrences import Occurrences, is_blank, is_part, with_words
from autointerp.rules.patterns import Key, Rule
from autointerp.rules.token_facts import START, Facts, folded
from autointerp.rules.token_names import is_word, listed, quoted
from autointerp.rules.word_forms import are_forms, families

RATE = 2.0
"""Mean activation, 0..10, from which on a word tells when the feature fires."""
LEAST_SHARE = 0.015
PAIR_SHARE = 0.03
WORDS_SHOWN = 6
"""Words of a label, forms of one word counted once."""
MAIN_SHARE = 0.12
"""Forms of one word that hold this share of the named weight are a subject of the label."""
LESSER_SHARE = 0.03
LOOSE_COVER = 0.4
"""Where the named words hold less than this share of the active weight, the label says that there are various."""
FORMS_SHOWN = 4
PART_FROM = 0.7
"""A token that is part of a longer word in this share of its places is shown with some of those words."""
RELATED_SHOWN = 3
RELATED_WEIGHT = 0.35
"""A word near to the named ones is a related word if the rule gives it this share of the largest weight."""


@dataclass(frozen=True)
class Unit:
    """A word, a part of words, or a pair of words on which the feature fires."""

    name: str
    share: float
    shown: str
    """The name in backticks, a part of words with some of its words."""


@dataclass(frozen=True)
class Named:
    """What the words of a feature are called."""

    text: str
    """The main ones."""
    members: Callable[[Facts], bool]
    """Whether a token with these facts is one of the main ones."""
    others: str
    """The lesser ones and related words; '' where there are none."""
    share: float
    """The share of the active weight that all of them hold."""
    largest: float
    """The largest share that forms of one word hold."""
    words: list[str]
    """Their names."""
    says_before: bool
    """Whether most are named with the word before them."""


def named_words(active: Occurrences, rule: Rule, near: NearWords) -> Named | None:
    """None where no word tells when the feature fires."""
    singles, pairs = _telling(active)
    if not singles and not pairs:
        return None
    here = active.where(lambda i: _is_one(active.fact(i), singles, pairs))
    whole = sum(active.weights) or 1.0
    units = _units(here, singles)
    covered = sum(here.weights) / whole
    groups = _families(units)
    main, lesser = _main(groups)
    shown = {unit.name.lower() for family in main for unit in family}
    name = _namer(here, singles)
    keys = {key for i in here.at if name(i).lower() in shown for key in _keys(here.fact(i), singles)}
    ends = {key[-1] for key in keys}
    names = [unit.name for unit in units]
    paired = here.share_of(lambda i: here.fact(i).folded not in singles)
    return Named(
        _text(main, covered),
        lambda fact: fact.folded in ends and not keys.isdisjoint(_keys(fact, singles)),
        _others(lesser, _related(rule, near, [*singles, *names])),
        covered,
        covered * max(map(_share, groups)),
        names,
        paired >= 0.5,
    )


def _keys(fact: Facts, singles: Collection[str]) -> tuple[Key]:
    """What a token counts as: itself, or itself with the one before it."""
    return ((fact.folded,) if fact.folded in singles else (folded(fact.before), fact.folded),)


def _is_one(fact: Facts, singles: Collection[str], pairs: Collection[tuple[str, str]]) -> bool:
    return fact.folded in singles or (folded(fact.before), fact.folded) in pairs


def _telling(active: Occurrences) -> tuple[set[str], set[tuple[str, str]]]:
    """The words, and the pairs of a word and the one before it, that tell when the feature fires."""
    facts, y, weights = active.sample.facts, active.sample.activations.tolist(), active.sample.weights.tolist()
    common = active.shares(lambda i: facts[i].folded)[:60]
    known = {s.value for s in common if s.share >= LEAST_SHARE and not is_blank(s.value)}
    by_word: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    by_pair: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for fact, value, weight in zip(facts, y, weights, strict=True):
        if fact.folded in known:
            for sums in (by_word[fact.folded], by_pair[folded(fact.before), fact.folded]):
                sums[0] += weight * value
                sums[1] += weight
    singles = {word for word, (total, n) in by_word.items() if total / (n + 1.0) >= RATE}
    left = active.where(lambda i: facts[i].folded in known - singles)
    whole = sum(active.weights) or 1.0
    mass: dict[tuple[str, str], float] = defaultdict(float)
    for i, weight in zip(left.at, left.weights, strict=True):
        mass[folded(facts[i].before), facts[i].folded] += weight / whole
    pairs = {
        pair
        for pair, share in mass.items()
        if share >= PAIR_SHARE and pair[0] != START and not is_blank(pair[0])
        and by_pair[pair][0] / (by_pair[pair][1] + 1.0) >= RATE
    }  # fmt: skip
    return singles, pairs


def _namer(here: Occurrences, singles: Collection[str]) -> Callable[[int], str]:
    """How the token at a place is named: the word that it is part of, itself, or with the one before it."""
    wholes = _wholes(here)

    def name(i: int) -> str:
        fact = here.fact(i)
        if fact.folded in singles:
            return wholes.get(fact.folded, fact.token.strip())
        if is_part(here, i) and is_word(fact.before) and not fact.token[0].isspace():
            return _segment(here.sample.words[i], fact.token.strip())
        gap = "" if fact.token[:1].strip() and fact.before[-1:].strip() else " "
        return f"{fact.before.strip()}{gap}{fact.token.strip()}"

    return name


def _units(here: Occurrences, singles: Collection[str]) -> list[Unit]:
    """What the active tokens are named by, heaviest first."""
    wholes = {word.lower() for word in _wholes(here).values()}
    found = []
    for share in here.shares(_namer(here, singles), str.lower)[:30]:
        is_piece = share.value in singles and share.value not in wholes and _is_mostly_part(here, share.value)
        found.append(Unit(share.shown, share.share, with_words(share, here, 3) if is_piece else quoted(share.shown)))
    return found


def _is_mostly_part(here: Occurrences, token: str) -> bool:
    own = here.where(lambda i: here.fact(i).folded == token)
    return own.share_of(lambda i: is_part(own, i)) >= PART_FROM


def _wholes(here: Occurrences) -> dict[str, str]:
    """For tokens that are parts of one and the same word in most places, that word."""
    words = here.sample.words
    parts = here.where(lambda i: is_part(here, i))
    by_token: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for i, weight in zip(parts.at, parts.weights, strict=True):
        token = here.fact(i).token.strip()
        by_token[here.fact(i).folded][_segment(words[i], token)] += weight
    found: dict[str, str] = {}
    for token, of in by_token.items():
        word, weight = max(of.items(), key=lambda item: (item[1], item[0]))
        whole = sum(w for i, w in zip(here.at, here.weights, strict=True) if here.fact(i).folded == token)
        if weight >= PART_FROM * whole:
            found[token] = word
    return found


def _segment(word: str, token: str) -> str:
    """The piece between underscores in which the token stands: `FER` in `ENTITY_REFERENCE_NODE` is part of
    `REFERENCE`."""
    return next((segment for segment in word.split("_") if token in segment), word)


def _families(units: Sequence[Unit]) -> list[list[Unit]]:
    """The units in groups of forms of one word, the heaviest group first."""
    by_name = {unit.name: unit for unit in units}
    groups = [[by_name[name] for name in family] for family in families(list(by_name))]
    return sorted(groups, key=_share, reverse=True)


def _share(family: Sequence[Unit]) -> float:
    return sum(unit.share for unit in family)


def _main(groups: list[list[Unit]]) -> tuple[list[list[Unit]], list[list[Unit]]]:
    """The heaviest groups, which are the subject of the label, and the lesser ones that are shown."""
    n = sum(_share(family) >= MAIN_SHARE for family in groups[:WORDS_SHOWN]) or min(3, len(groups))
    lesser = [family for family in groups[n:WORDS_SHOWN] if _share(family) >= LESSER_SHARE]
    return groups[:n], lesser


def _text(main: Sequence[list[Unit]], covered: float) -> str:
    are_words = all(is_plain(family[0]) for family in main)
    names = [_family(family) for family in main]
    if covered < LOOSE_COVER:
        return f"various {'words' if are_words else 'tokens'}, such as {listed(names)}"
    noun = "" if not are_words else "the word " if len(names) == 1 else "the words "
    return f"{noun}{listed(names)}"


def _others(lesser: Sequence[list[Unit]], related: Sequence[str]) -> str:
    parts = [", ".join(_family(family) for family in lesser)] if lesser else []
    if related:
        parts.append(f"related words ({', '.join(quoted(word) for word in related)})")
    return f"also {' and '.join(parts)}" if parts else ""


def is_plain(unit: Unit) -> bool:
    """Whether it is a word, and neither part of one nor a pair."""
    return unit.name.isalpha() and len(unit.name) > 1 and unit.shown == quoted(unit.name)


def _family(family: list[Unit]) -> str:
    if len(family) == 1:
        return family[0].shown
    names = [quoted(unit.name) for unit in family[:FORMS_SHOWN]]
    return f"{names[0]} ({', '.join(names[1:])})"


def _related(rule: Rule, near: NearWords, named: list[str]) -> list[str]:
    """Words to which the rule gives a high weight and that are near to a named one, but neither named nor a form of
    one."""
    tables = [table.weights for table in rule.tables if table.of == ("folded",)]
    weights = {word: weight for table in tables for (word,), weight in table.items()}
    least = RELATED_WEIGHT * max(weights.values(), default=0.0)
    close = {other for word in named for other, _ in near.of(word.lower())}
    found: list[str] = []
    for word, weight in sorted(weights.items(), key=lambda item: -item[1]):
        fits = weight >= least and word in close and word.isalpha() and len(word) > 2
        if fits and not any(are_forms(word, held.lower()) for held in [*named, *found]):
            found.append(word)
    return found[:RELATED_SHOWN]
