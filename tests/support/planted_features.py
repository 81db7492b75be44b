"""The words of a small invented language, and planted features whose truth is known in words. Needs no torch.

Every feature has an exact law, `Planted.fires`, stated on words and places alone, and three labels, each with a `Rule`
that says what a reader who believes the label expects of any text:

    truth      what the feature does
    near_miss  something close to it: too broad, too narrow, or blind to what stands before
    wrong      something else

The kinds:

    single     one word
    context    a word, but only right after one other word
    position   the first words of a model input, whatever they are
    output     eight unrelated words, which have in common that one of four certain words is likely to follow: the
               decoder row promotes those
    polysemantic  two unrelated words, one of them less strongly
    dense      more than 30 % of all words, weakly
    dead       nothing
    duplicate  two features on one word, with decoder rows of cosine .99; the second one's threshold is higher
    filler     one word each, so that there are neighbours and negatives; they carry no near misses
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Literal

END = "<|endoftext|>"
"""The BOS, EOS and padding token, which comes before the first word of a model input."""
OTHER = "<other>"
"""Stands for every token that is no word of the language (bytes of unknown words)."""
N_POSITIONS = 128


def _words(text: str) -> list[str]:
    return text.split()


DETERMINERS = _words("the a one every this")
PREPOSITIONS = _words("of in near under over behind beside with from to")
FUNCTION = frozenset(DETERMINERS + PREPOSITIONS)
CONNECTIVES = _words("and but while because")
ADJECTIVES = _words(
    "old small stone grey night quiet wild bright cold narrow wooden broken green tall heavy gentle hidden empty "
    "round pale"
)
VERBS = _words(
    "watched carried followed found painted counted crossed repaired praised noticed sold forgot guarded described "
    "borrowed measured cleaned lifted answered ignored"
)
ADVERBS = _words("slowly often again quietly twice early gladly rarely")
TREES = _words("maple oak willow cedar birch")
ANIMALS = _words("heron otter badger falcon weasel")
TOOLS = _words("lantern hammer shovel needle bucket")
PLACES = _words("harbour river village market valley")
PEOPLE = _words("baker captain teacher widow farmer")
METALS = _words("copper silver tin zinc")
INSTRUMENTS = _words("violin cello flute trumpet")
FRUITS = _words("lemon cherry plum quince")
OTHERS = _words(
    "bridge train garlic kettle meadow violet anchor thunder pencil mirror basket orchard saddle letter window "
    "clock ribbon engine garden pebble candle wagon island carpet feather"
)
NOUNS = [
    noun
    for group in zip(OTHERS[0:5], TREES, ANIMALS, TOOLS, PLACES, PEOPLE, OTHERS[5:10], strict=True)
    for noun in group
] + OTHERS[10:] + METALS + INSTRUMENTS + FRUITS  # fmt: skip
"""The words from the commonest to the rarest."""
PUNCTUATION = [".", ","]
WORDS = [*DETERMINERS, *PREPOSITIONS, *CONNECTIVES, *ADJECTIVES, *VERBS, *ADVERBS, *NOUNS]
VOCABULARY = frozenset(WORDS)
CLASSES = [END, OTHER, *PUNCTUATION, *WORDS]
"""The word classes that the model can tell apart. Each has its own code."""

Kind = Literal[
    "single", "context", "position", "output", "polysemantic", "dense", "dead", "duplicate", "filler"
]  # fmt: skip
Quality = Literal["truth", "near_miss", "wrong"]
QUALITIES: tuple[Quality, ...] = ("truth", "near_miss", "wrong")


@cache
def word_of(token: str) -> str:
    """The class of a token as the tokenizer shows it. " maple" is the word maple; "maple" is bytes without a space."""
    if token == END or token in PUNCTUATION:
        return token
    return token[1:] if token[:1] == " " and token[1:] in VOCABULARY else OTHER


GRADES = {name: 0.0 if name == "the" else 0.1 * (1 + zlib.crc32(name.encode()) % 3) for name in CLASSES}
"""How much a word adds to an activation beside it: 0 (only `the`), .1, .2 or .3."""


# --- rules: what a label leads one to expect --------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A label as a predicate on words. All given conditions must hold."""

    words: Mapping[str, float] | None = None
    """Strength 0..1 by word; None means any word, at full strength."""
    after: frozenset[str] | None = None
    """The word before must be one of these. END stands for the text's beginning."""
    not_after: frozenset[str] = frozenset()
    first: int | None = None
    """If given, the rule holds only for this many words at the text's beginning."""

    def strengths(self, words: Sequence[str]) -> list[float]:
        """0 (silent) .. 1 for each word of a text. Its first word counts as a beginning."""
        out = []
        for i, (before, word) in enumerate(zip([END, *words], words, strict=False)):
            strength = 1.0 if self.words is None else self.words.get(word, 0.0)
            fits = (self.after is None or before in self.after) and before not in self.not_after
            out.append(strength if fits and (self.first is None or i < self.first) else 0.0)
        return out


def on(*words: str, **conditions: frozenset[str]) -> Rule:
    return Rule(dict.fromkeys(words, 1.0), **conditions)  # type: ignore[arg-type]


NEVER = Rule({})


# --- features ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """The exact computation of a feature. Its activation on a word is

        word[w] + before[w'] + place[p] - lack    where that is above `threshold`, else 0

    w' is the word before (END at the beginning), p the place in the model input (BOS has 0). Words and places that are
    not named add nothing, except for the slight grading by `graded`: the word before, the word itself, or the place.
    """

    word: Mapping[str, float] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    place: Mapping[int, float] = field(default_factory=dict)
    lack: float = 0.0
    threshold: float = 0.5
    graded: Literal["before", "word", "place"] = "before"
    grading: float = 1.0
    """The factor on the grading."""

    @cached_property
    def of_word(self) -> dict[str, float]:
        """What each word adds at its own place."""
        factor = self.grading if self.graded == "word" else 0.0
        return {name: self.word.get(name, 0.0) + factor * GRADES[name] for name in CLASSES}

    @cached_property
    def of_before(self) -> dict[str, float]:
        """What each word adds at the place after it."""
        factor = self.grading if self.graded == "before" else 0.0
        return {name: self.before.get(name, 0.0) + factor * GRADES[name] for name in CLASSES}

    @cached_property
    def of_place(self) -> list[float]:
        factor = self.grading if self.graded == "place" else 0.0
        return [self.place.get(place, 0.0) + factor * 0.3 * place / (N_POSITIONS - 1) for place in range(N_POSITIONS)]

    def activation(self, word: str, before: str, place: int) -> float:
        value = self.of_word[word] + self.of_before[before] + self.of_place[place] - self.lack
        return value if value > self.threshold else 0.0


@dataclass(frozen=True)
class Planted:
    feature: int
    kind: Kind
    law: Law
    labels: Mapping[Quality, str]
    """The labels by quality. Fillers have no near miss, and a dead feature has only a truth."""
    rules: Mapping[Quality, Rule]
    promoted: tuple[str, ...] = ()
    """For output features: the words that the decoder row promotes."""
    output_labels: Mapping[Quality, str] = field(default_factory=dict)
    """For output features: labels for what they make the model say. The near miss names two of the four words, the
    wrong label none."""
    twin: int | None = None
    """For duplicates: the number of the other feature of the pair."""

    @property
    def truth_label(self) -> str:
        return self.labels["truth"]

    @property
    def output_label(self) -> str | None:
        return self.output_labels.get("truth")

    @property
    def near_miss_label(self) -> str | None:
        return self.labels.get("near_miss")

    @property
    def wrong_label(self) -> str | None:
        return self.labels.get("wrong")

    def fires(self, tokens: Sequence[str], positions: Sequence[int] | None = None) -> list[float]:
        """Raw activations on the tokens of one model input, with or without its BOS (which never counts: 0).
        `positions` are places in the model input, where BOS has 0. If None, tokens[0] is BOS or comes right after
        it."""
        if positions is None:
            start = 0 if tokens and tokens[0] == END else 1
            positions = range(start, start + len(tokens))
        words = [word_of(token) for token in tokens]
        return [
            0.0 if word == END else self.law.activation(word, before, place)
            for before, word, place in zip([END, *words], words, positions, strict=False)
        ]


@dataclass
class _Plan:
    """Collects features in the order of their numbers."""

    features: list[Planted] = field(default_factory=list)

    def add(self, kind: Kind, law: Law, truth: tuple[str, Rule], near: tuple[str, Rule] | None = None,
            wrong: tuple[str, Rule] | None = None, **more: object) -> None:  # fmt: skip
        given = {"truth": truth, "near_miss": near, "wrong": wrong}
        labels = {quality: pair[0] for quality, pair in given.items() if pair is not None}
        rules = {quality: pair[1] for quality, pair in given.items() if pair is not None}
        self.features.append(Planted(len(self.features), kind, law, labels, rules, **more))  # type: ignore[arg-type]


def planted_features(seed: int = 0) -> list[Planted]:
    """All features, in order; `seed` draws the eight words of the output features."""
    plan = _Plan()
    # Words common enough to stand in most features' contexts somewhere.
    wrong = iter([(f"the word `{w}`", on(w)) for w in ("old", "small", "watched", "carried", "followed", "slowly")] * 9)
    for words, group in ((TREES, "trees"), (ANIMALS, "animals"), (TOOLS, "tools")):
        near = (f"names of {group}: {_listed(words)}", on(*words))
        plan.add("single", Law({words[0]: 1.0}), (f"the word `{words[0]}`", on(words[0])), near, next(wrong))
    for first, second in CONTEXT_PAIRS:
        plan.add(
            "context", Law({second: 1.0}, {first: 1.0}, lack=1.0, graded="place"),
            (f"the word `{second}` right after `{first}`", on(second, after=frozenset({first}))),
            (f"the word `{second}`, wherever it stands", on(second)), next(wrong),
        )  # fmt: skip
    for n in (1, 2, 4):
        places = {p: 1.0 + 0.25 * (n - p) for p in range(1, n + 1)}
        plan.add(
            "position", Law(place=places, graded="word"),
            ("the very first word of the text" if n == 1 else f"the first {n} words of the text", Rule(first=n)),
            ("the word that begins a sentence", Rule(after=frozenset({END, "."}))), next(wrong),
        )  # fmt: skip
    sets = output_words(seed)
    for words, promoted, group in zip(sets, OUTPUT_SETS, ("metals", "instruments", "fruits"), strict=True):
        near = [*words[:4], "carpet", "feather"]
        other = [w for w in ("island", "wagon", "candle", "pebble") if w not in words]
        plan.add(
            "output", Law(dict.fromkeys(words, 1.0)),
            (f"one of the words {_listed(words)}", on(*words)), (f"one of the words {_listed(near)}", on(*near)),
            (f"one of the words {_listed(other)}", on(*other)),
            promoted=tuple(promoted), output_labels=_output_labels(group, promoted),
        )  # fmt: skip
    for strong, weak in (("kettle", "meadow"), ("violet", "anchor"), ("thunder", "pencil")):
        plan.add(
            "polysemantic", Law({strong: 1.4, weak: 1.0}),
            (f"the words `{strong}` and, less strongly, `{weak}`", Rule({strong: 1.0, weak: 0.75})),
            (f"the word `{strong}` alone", on(strong)), next(wrong),
        )  # fmt: skip
    little = Law(dict.fromkeys(FUNCTION, 0.2), threshold=0.1, grading=0.25)
    plan.add(
        "dense", little, ("determiners and prepositions", on(*FUNCTION)),
        ("determiners", on(*DETERMINERS)), next(wrong),
    )  # fmt: skip
    following = Law(before=dict.fromkeys(FUNCTION, 0.2), threshold=0.1, graded="word", grading=0.25)
    plan.add(
        "dense", following, ("whatever follows a determiner or preposition", Rule(after=FUNCTION)),
        ("whatever follows a determiner", Rule(after=frozenset(DETERMINERS))), next(wrong),
    )  # fmt: skip
    for word in DEAD_WORDS:
        plan.add("dead", Law({word: 1.0}, lack=9.0), ("nothing at all", NEVER))
    for words, group in ((PLACES, "places"), (PEOPLE, "people")):
        word, near = words[0], (f"names of {group}: {_listed(words)}", on(*words))
        twins = len(plan.features), len(plan.features) + 1
        plan.add("duplicate", Law({word: 1.0}), (f"the word `{word}`", on(word)), near, next(wrong), twin=twins[1])
        plan.add(
            "duplicate", Law({word: 1.0}, threshold=1.05),
            (f"the word `{word}`, but not right after `the`", on(word, not_after=frozenset({"the"}))), near,
            next(wrong), twin=twins[0],
        )  # fmt: skip
    for word in FILLER_WORDS:
        plan.add("filler", Law({word: 1.0}), (f"the word `{word}`", on(word)))
    return plan.features


CONTEXT_PAIRS = (("stone", "bridge"), ("night", "train"), ("wild", "garlic"))
OUTPUT_SETS = (METALS, INSTRUMENTS, FRUITS)
DEAD_WORDS = ("clock", "ribbon", "engine")
FILLER_WORDS = _words(
    "oak willow otter badger hammer shovel river village captain teacher mirror basket orchard saddle letter window "
    "garden watched carried slowly"
)
_TAKEN = frozenset(
    [*FILLER_WORDS, *DEAD_WORDS, *FUNCTION, *CONNECTIVES, *METALS, *INSTRUMENTS, *FRUITS, "carpet", "feather"]
    + [*TREES, *ANIMALS, *TOOLS, *PLACES, *PEOPLE, "kettle", "meadow", "violet", "anchor", "thunder", "pencil"]
    + [word for pair in CONTEXT_PAIRS for word in pair]
)


def output_words(seed: int) -> list[list[str]]:
    """Eight words for each output feature, drawn from all word classes. No word is in two sets."""
    free = [word for word in WORDS if word not in _TAKEN]
    drawn = random.Random(f"output words {seed}").sample(free, 8 * len(OUTPUT_SETS))
    return [sorted(drawn[8 * i : 8 * i + 8]) for i in range(len(OUTPUT_SETS))]


UNSAID = {"metals": TREES, "instruments": ANIMALS, "fruits": TOOLS}
"""The words that the wrong output labels name."""


def _output_labels(group: str, promoted: Sequence[str]) -> dict[Quality, str]:
    words = UNSAID[group]
    named: dict[Quality, Sequence[str]] = {
        "truth": promoted, "near_miss": [*promoted[:2], *words[:2]], "wrong": words[:4],
    }  # fmt: skip
    return {quality: f"what comes next is {_listed(listed)}" for quality, listed in named.items()}


def said_by(features: Sequence[Planted]) -> dict[str, tuple[str, ...]]:
    """Every output label with the words that it names."""
    labels = [label for f in features for label in f.output_labels.values()]
    return {label: tuple(w for w in re.findall(r"\w+", label) if w in VOCABULARY) for label in labels}


def labels_of(features: Sequence[Planted]) -> dict[str, Rule]:
    """Every label with its rule, the truths first."""
    return {
        f.labels[quality]: f.rules[quality] for quality in QUALITIES for f in features if quality in f.labels
    }  # fmt: skip


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + f" or {words[-1]}"
