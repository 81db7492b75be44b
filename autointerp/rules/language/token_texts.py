"""Many texts as one long list of tokens, with what conditions ask about: read once, for all rules.

Nothing here is read across the border of two texts, and nothing of a token depends on what follows it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from functools import cached_property
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from autointerp.records import Begins
from autointerp.rules.language.conditions import MAX_WITHIN
from autointerp.rules.language.forms import Forms
from autointerp.rules.language.groups import Codes, Flags, Groups, Places, flagged
from autointerp.rules.language.nesting import BRACKETS, inside_bracket, quotes_and_comments

WHERE_KEPT = 16
_MANY = 8
"""One in so many tokens is enough to look at all of them."""


class Stretch(Protocol):
    """A context or a tile: tokens, and what the first of them begins."""

    @property
    def tokens(self) -> Sequence[str]: ...

    @property
    def begins(self) -> Begins | None: ...


class Texts:
    """Texts as lists of tokens."""

    def __init__(
        self, texts: Sequence[Sequence[str]], begins: Sequence[Begins | None] | None = None, forms: Forms | None = None
    ) -> None:
        """`begins` says of each text what its first token begins, if that is known. `forms`: the forms of tokens that
        other texts were read with, so that what is known of them is not looked for again."""
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        """[texts + 1]: where each text's tokens begin in the long list of all."""
        self.begins: Sequence[Begins | None] = [None] * len(texts) if begins is None else begins
        if len(self.begins) != len(texts):
            raise ValueError(f"{len(texts)} texts, and what {len(self.begins)} of them begin")
        self.texts = texts
        self._given = forms
        self._by_form: Groups | None = None
        self._kept: dict[Hashable, Flags] = {}
        """The name that was asked for last comes last."""
        self._is_start: dict[str, Flags] = {}
        self._starts: dict[str, Places] = {}
        self._inside: dict[str, Flags] = {}

    @classmethod
    def of(cls, stretches: Collection[Stretch]) -> Self:
        return cls([one.tokens for one in stretches], [one.begins for one in stretches])

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])

    @property
    def forms(self) -> Forms:
        return self._read[0]

    @property
    def form_of(self) -> Codes:
        """[tokens]"""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[Forms, Codes]:
        forms = Forms() if self._given is None else self._given
        return forms, forms.read(self.texts, self.starts)

    @cached_property
    def token_of(self) -> Codes:
        """[tokens]: the number of each one's string."""
        return self.forms.token_of[self.form_of]

    @property
    def by_form(self) -> Groups:
        """The tokens of each form."""
        if self._by_form is None or self._by_form.n < len(self.forms):  # other texts may have brought more forms
            self._by_form = Groups(self.form_of, len(self.forms))
        return self._by_form

    @cached_property
    def text_of(self) -> Codes:
        """[tokens]: which text each is in."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def reach(self) -> NDArray[np.uint8]:
        """[tokens]: how many tokens of its text stand before each, as far as a condition looks."""
        sizes = np.diff(self.starts)
        place = np.arange(self.n_tokens) - np.repeat(self.starts[:-1], sizes)
        return np.minimum(place, MAX_WITHIN).astype(np.uint8)

    @cached_property
    def ends_word(self) -> Flags:
        """[tokens]: whether the token after it does not continue its word."""
        return np.append(~self.forms.continues[self.form_of[1:]], [True])[: self.n_tokens]

    def where(self, forms: Codes, name: Hashable = None) -> Flags:
        """[tokens]: which are of one of some forms. Of the last few forms that had a name, it is kept."""
        if name is None:
            return self._where(forms)
        found = self._kept.pop(name, None)
        self._kept[name] = self._where(forms) if found is None else found
        if len(self._kept) > WHERE_KEPT:
            del self._kept[next(iter(self._kept))]
        return self._kept[name]

    def _where(self, forms: Codes) -> Flags:
        if int(self.by_form.counts(forms).sum()) * _MANY < self.n_tokens:
            found = np.zeros(self.n_tokens, dtype=np.bool_)
            found[self.by_form.places(forms)] = True
            return found
        is_one = np.zeros(len(self.forms), dtype=np.bool_)
        is_one[forms] = True
        return is_one[self.form_of]

    def is_start_of(self, what: str) -> Flags:
        """[tokens]: which are the first ones, white space apart, of a line, a document or a window."""
        if what not in self._is_start:
            found = np.zeros(self.n_tokens, dtype=np.bool_)
            found[self.starts_of(what)] = True
            self._is_start[what] = found
        return self._is_start[what]

    def starts_of(self, what: str) -> Places:
        """The tokens of `is_start_of`, ascending."""
        if what not in self._starts:
            self._starts[what] = self._starts_of_lines() if what == "line" else self._firsts[self._begin(what)]
        return self._starts[what]

    def _begin(self, what: str) -> Flags:
        """Whether each of `_firsts` stands in a text that begins a document, or a window at least."""
        counted = ("document",) if what == "document" else ("document", "window")
        known = np.array([begins in counted for begins in self.begins], dtype=np.bool_)
        return known[self.text_of[self._firsts]] if len(self._firsts) else np.zeros(0, dtype=np.bool_)

    @cached_property
    def _firsts(self) -> Places:
        """The first token of each text that is more than white space."""
        filled = flagged(~self.forms.is_blank[self.token_of])
        return filled[np.flatnonzero(np.diff(self.text_of[filled], prepend=-1))]

    def _starts_of_lines(self) -> Places:
        tokens = self.forms.tokens
        within = tokens.flags("begins a line", lambda one: "\n" in one and bool(one[one.index("\n") :].strip()))
        ends = tokens.flags("ends a line", lambda one: "\n" in one and not one[one.rindex("\n") :].strip())
        is_blank = self.forms.is_blank
        found, is_end = within[self.token_of], ends[self.token_of]
        # White space within a line stands between its beginning and its first token.
        counted = flagged((ends | ~is_blank)[self.token_of])
        is_after = flagged(is_end[counted[:-1]])
        last, first = counted[is_after], counted[is_after + 1]
        is_first = ~is_blank[self.token_of[first]] & (self.text_of[last] == self.text_of[first])
        found[first[is_first]] = True
        found[self.starts_of("document")] = True
        return flagged(found)

    def inside(self, what: str) -> Flags:
        """[tokens]: whether what was opened to the left in the text is open before the token and all through it."""
        if what not in self._inside:
            if what in BRACKETS:
                self._inside[what] = inside_bracket(self.forms.tokens.strings, self.token_of, self.starts, what)
            else:
                found = quotes_and_comments(self.forms.tokens.strings, self.token_of, self.starts)
                self._inside |= dict(zip(("quote", "comment"), found, strict=True))
        return self._inside[what]
