"""Many texts as one long list of tokens, with what conditions ask about: read once, for all rules.

Nothing here is read across the border of two texts, and nothing of a token depends on what follows it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import chain
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.records import Begins
from autointerp.rules.language.classes import in_class
from autointerp.rules.language.column import Column
from autointerp.rules.language.nesting import BRACKETS, inside_bracket, quotes_and_comments
from autointerp.rules.token_facts import lex

LONGEST_WORD = 256
"""Characters of a word that is read from several tokens; of a longer one, its beginning."""


class Stretch(Protocol):
    """A context or a tile: tokens, and what the first of them begins."""

    @property
    def tokens(self) -> Sequence[str]: ...

    @property
    def begins(self) -> Begins | None: ...


class Texts:
    """Texts as lists of tokens. `begins` says of each what its first token begins, if that is known."""

    def __init__(self, texts: Sequence[Sequence[str]], begins: Sequence[Begins | None] | None = None) -> None:
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        """[texts + 1]: where each text's tokens begin in the long list of all."""
        self.begins: Sequence[Begins | None] = [None] * len(texts) if begins is None else begins
        if len(self.begins) != len(texts):
            raise ValueError(f"{len(texts)} texts, and what {len(self.begins)} of them begin")
        self.texts = texts
        self._classes: dict[str, NDArray[np.bool_]] = {}
        self._is_start: dict[str, NDArray[np.bool_]] = {}
        self._inside: dict[str, NDArray[np.bool_]] = {}

    @classmethod
    def of(cls, stretches: Collection[Stretch]) -> Self:
        return cls([one.tokens for one in stretches], [one.begins for one in stretches])

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def tokens(self) -> Column:
        codes, index = stats.numbered(chain.from_iterable(self.texts))
        return Column(codes.astype(np.int32), list(index))

    @cached_property
    def text_of(self) -> NDArray[np.int32]:
        """[tokens]: which text each is in."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.starts))

    @cached_property
    def place(self) -> NDArray[np.int64]:
        """[tokens]: how many tokens of its text stand before each."""
        return np.arange(self.n_tokens) - self.starts[self.text_of]

    @cached_property
    def is_blank(self) -> NDArray[np.bool_]:
        """[strings of `tokens`]"""
        return np.array([not token.strip() for token in self.tokens.strings], dtype=np.bool_)

    @cached_property
    def has_signs(self) -> NDArray[np.bool_]:
        """[strings of `tokens`]: whether there is more in it than one word, and a word."""
        read = ((token.strip(), lex(token).words) for token in self.tokens.strings)
        return np.array([bool(words) and words != (core,) for core, words in read], dtype=np.bool_)

    def of_class(self, name: str) -> NDArray[np.bool_]:
        """[strings of `tokens`]: whether each is of the class, as far as it can be told from the token alone."""
        if name not in self._classes:
            test = in_class(name)
            self._classes[name] = np.array([test(token) for token in self.tokens.strings], dtype=np.bool_)
        return self._classes[name]

    @cached_property
    def continues(self) -> NDArray[np.bool_]:
        """[tokens]: whether each continues the word of the token before it."""
        read = [lex(token) for token in self.tokens.strings]
        joins = np.array([one.inside_word or one.ends_word for one in read], dtype=np.bool_)
        is_open = np.array([bool(one.tail) for one in read], dtype=np.bool_)
        codes = self.tokens.codes
        found = np.zeros(len(codes), dtype=np.bool_)
        found[1:] = joins[codes[1:]] & is_open[codes[:-1]]
        found[self.starts[:-1][np.diff(self.starts) > 0]] = False
        return found

    @cached_property
    def words(self) -> Column:
        """The word up to each token (Facts.word), with its case."""
        index: dict[str, int] = {}
        own = np.array(
            [index.setdefault(_own_word(token), len(index)) for token in self.tokens.strings], dtype=np.int32
        )
        strings, codes = list(index), own[self.tokens.codes]
        places = np.flatnonzero(self.continues)
        tokens, n_tokens = self.tokens.strings, len(self.tokens.strings)
        joined: dict[int, int] = {}
        """The word of a word and the token that continues it, as one number: word * n_tokens + token."""
        pairs = zip(places.tolist(), codes[places - 1].tolist(), self.tokens.codes[places].tolist(), strict=True)
        joint, last_place, found = 0, -1, []
        for place, before, token in pairs:
            word = joint if place == last_place + 1 else before
            known = joined.get(word * n_tokens + token)
            if known is None:
                text = (strings[word] + tokens[token].rstrip())[:LONGEST_WORD]
                known = index.setdefault(text, len(index))
                if known == len(strings):
                    strings.append(text)
                joined[word * n_tokens + token] = known
            joint, last_place = known, place
            found.append(known)
        codes[places] = found
        return Column(codes, strings)

    @cached_property
    def word_differs(self) -> NDArray[np.bool_]:
        """[tokens]: whether the word up to the token is another text than the token, white space apart."""
        own = [_own_word(token).strip() != token.strip() for token in self.tokens.strings]
        return self.continues | np.array(own, dtype=np.bool_)[self.tokens.codes]

    @cached_property
    def ends_word(self) -> NDArray[np.bool_]:
        """[tokens]: whether the token after it does not continue its word."""
        return np.append(~self.continues[1:], [True]) if self.n_tokens else np.zeros(0, dtype=np.bool_)

    def is_start_of(self, what: str) -> NDArray[np.bool_]:
        """[tokens]: which are the first ones, white space apart, of a line, a document or a window."""
        if what not in self._is_start:
            found = np.zeros(self.n_tokens, dtype=np.bool_)
            found[self._starts_of_lines() if what == "line" else self._firsts[self._begin(what)]] = True
            self._is_start[what] = found
        return self._is_start[what]

    def _begin(self, what: str) -> NDArray[np.bool_]:
        """Whether each of `_firsts` stands in a text that begins a document, or a window at least."""
        counted = ("document",) if what == "document" else ("document", "window")
        known = np.array([begins in counted for begins in self.begins], dtype=np.bool_)
        return known[self.text_of[self._firsts]] if len(self._firsts) else np.zeros(0, dtype=np.bool_)

    @cached_property
    def _filled(self) -> NDArray[np.intp]:
        """The tokens that are more than white space, ascending."""
        return np.flatnonzero(~self.is_blank[self.tokens.codes])

    @cached_property
    def _firsts(self) -> NDArray[np.intp]:
        """The first of each text that is more than white space."""
        of = self.text_of[self._filled]
        return self._filled[np.flatnonzero(np.diff(of, prepend=-1))]

    def _starts_of_lines(self) -> NDArray[np.intp]:
        strings, codes, filled = self.tokens.strings, self.tokens.codes, self._filled
        within = np.array(["\n" in one and bool(one[one.index("\n") :].strip()) for one in strings], dtype=np.bool_)
        breaks = np.array(["\n" in one for one in strings], dtype=np.bool_)
        ends_line = np.array(["\n" in one and not one[one.rindex("\n") :].strip() for one in strings], dtype=np.bool_)
        n_breaks = np.concatenate([[0], np.cumsum((breaks & self.is_blank)[codes])])
        before = np.concatenate([[-1], filled[:-1]])[: len(filled)]
        same_text = np.zeros(len(filled), dtype=np.bool_)
        same_text[1:] = self.text_of[filled[1:]] == self.text_of[filled[:-1]]
        after_break = n_breaks[filled] > n_breaks[np.where(same_text, before + 1, self.starts[self.text_of[filled]])]
        after_line = same_text & ends_line[codes[before]]
        return filled[within[codes[filled]] | after_break | after_line | self.is_start_of("document")[filled]]

    def inside(self, what: str) -> NDArray[np.bool_]:
        """[tokens]: whether what was opened to the left in the text is open before the token and all through it."""
        if what not in self._inside:
            if what in BRACKETS:
                self._inside[what] = inside_bracket(self.tokens, self.starts, what)
            else:
                found = quotes_and_comments(self.tokens, self.starts)
                self._inside |= dict(zip(("quote", "comment"), found, strict=True))
        return self._inside[what]


def _own_word(token: str) -> str:
    """The word up to a token that continues none."""
    read = lex(token)
    return token if read.inside_word else token.rstrip() if read.ends_word else read.tail or token
