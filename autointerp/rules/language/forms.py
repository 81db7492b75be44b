"""The different forms in which tokens stand in texts: a token, and the word up to it (Facts.word).

All that a condition asks of a token by itself, it asks of its form. There are far fewer forms than tokens. More come
with every text that is read, and what is known of a form stays known, so one Forms may serve many texts in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from autointerp.rules.language.classes import in_class
from autointerp.rules.language.conditions import fold
from autointerp.rules.language.groups import Codes, Flags, Groups
from autointerp.rules.language.linear_regex import sets_of
from autointerp.rules.language.string_table import StringTable
from autointerp.rules.token_facts import lex

LONGEST_WORD = 256
"""Characters of a word that is read from several tokens; of a longer one, its beginning."""
FOUND_KEPT = 16
TESTS_KEPT = 256
"""Tests of which it is kept on which forms they hold."""
_TOKENS = 32
"""Bits of the number of a token, where the numbers of a word and of a token are one number."""
_TOKEN = (1 << _TOKENS) - 1


class Forms:
    def __init__(self, patterns: Iterable[str] = ()) -> None:
        """`patterns`: regular expressions that are going to be asked about. They are matched together, which takes far
        less time than one by one; others may be asked about too."""
        self.tokens, self.words = StringTable(), StringTable()
        self.token_of: Codes = np.zeros(0, dtype=np.intp)
        """[forms]"""
        self.word_of: Codes = np.zeros(0, dtype=np.intp)
        """[forms]: the word up to the token, with its case."""
        self.continues: Flags = np.zeros(0, dtype=np.bool_)
        """[forms]: whether the token continues the word of the token before it."""
        self._alone: Codes = np.zeros(0, dtype=np.intp)
        """[tokens]: the form of each where it continues no word."""
        self._joined: dict[int, int] = {}
        """The form of a token that continues a word. Its key is word * 2**32 + token."""
        self._signs: dict[str, list[int]] = {}
        self._n_signs_read = 0
        self._kept: dict[Hashable, Flags] = {}
        """The test that was asked last comes last."""
        self._found: dict[Hashable, tuple[int, Codes]] = {}
        """(how many forms there were, what was found among them). The name that was asked for last comes last."""
        sets = sets_of(patterns)
        self._expected = {pattern for one in sets for pattern in one.patterns}
        self.tokens.matches.expect(sets)
        self.words.matches.expect(sets)

    def __len__(self) -> int:
        return len(self.token_of)

    def read(self, texts: Sequence[Sequence[str]], starts: NDArray[np.int64]) -> Codes:
        """[tokens of all texts]: the form of each token. `starts` [texts + 1]: where the texts begin."""
        tokens = self.tokens.numbered(chain.from_iterable(texts), int(starts[-1]))
        self._know(np.arange(len(self._alone), len(self.tokens)))
        continues = np.zeros(len(tokens), dtype=np.bool_)
        continues[1:] = self._joins[tokens[1:]] & self._is_open[tokens[:-1]]
        continues[starts[:-1][np.diff(starts) > 0]] = False
        form_of = self._alone[tokens]
        places = np.flatnonzero(continues)
        here = places[~continues[places - 1]]
        for _ in range(LONGEST_WORD):
            if not len(here):
                return form_of
            form_of[here] = self._joint(self.word_of[form_of[here - 1]], tokens[here])
            here = here[here + 1 < len(tokens)] + 1
            here = here[continues[here]]
        if len(here):  # their words have their full length, and stay as they are
            of_run = np.maximum.accumulate(np.where(continues, 0, np.arange(len(tokens)))) + LONGEST_WORD
            left = places[places > of_run[places]]
            form_of[left] = self._joint(self.word_of[form_of[of_run[left]]], tokens[left])
        return form_of

    def _know(self, new: Codes) -> None:
        """Takes in the tokens of new numbers."""
        read = [_own_word(self.tokens.strings[token]) for token in new.tolist()]
        self._alone = np.append(self._alone, self._more(new, self.words.numbered(read, len(read)), continues=False))

    def _joint(self, words: Codes, tokens: Codes) -> Codes:
        """The forms of tokens that continue words."""
        keys, of = np.unique(words << _TOKENS | tokens, return_inverse=True)
        found = np.array([self._joined.get(key, -1) for key in keys.tolist()], dtype=np.intp)
        is_new = found < 0
        pairs = zip((keys[is_new] >> _TOKENS).tolist(), (keys[is_new] & _TOKEN).tolist(), strict=True)
        strings, pieces = self.words.strings, self.tokens.strings
        read = [(strings[word] + pieces[token].rstrip())[:LONGEST_WORD] for word, token in pairs]
        new = self._more(keys[is_new] & _TOKEN, self.words.numbered(read, len(read)), continues=True)
        self._joined.update(zip(keys[is_new].tolist(), new.tolist(), strict=True))
        found[is_new] = new
        return found[of]

    def _more(self, tokens: Codes, words: Codes, continues: bool) -> Codes:
        """Adds forms and returns their numbers."""
        n = len(self)
        self.token_of = np.append(self.token_of, tokens)
        self.word_of = np.append(self.word_of, words)
        self.continues = np.append(self.continues, np.full(len(tokens), continues))
        self.__dict__.pop("by_token", None)
        self.__dict__.pop("by_word", None)
        return np.arange(n, len(self))

    @cached_property
    def by_token(self) -> Groups:
        return Groups(self.token_of, len(self.tokens))

    @cached_property
    def by_word(self) -> Groups:
        return Groups(self.word_of, len(self.words))

    @property
    def _joins(self) -> Flags:
        return self.tokens.flags("joins", lambda token: lex(token).inside_word or lex(token).ends_word)

    @property
    def _is_open(self) -> Flags:
        return self.tokens.flags("is open", lambda token: bool(lex(token).tail))

    @property
    def signs(self) -> dict[str, list[int]]:
        """The tokens in which there is more than one word, and a word, such as `'s`: by what they are when folded."""
        if self._n_signs_read < len(self.tokens):
            found = [token for token, is_one in enumerate(self._has_signs.tolist()) if is_one]
            self._signs = {}
            for token in found:
                self._signs.setdefault(fold(self.tokens.strings[token]), []).append(token)
            self._n_signs_read = len(self.tokens)
        return self._signs

    @property
    def _has_signs(self) -> Flags:
        return self.tokens.flags("has signs", lambda token: lex(token).words not in ((), (token.strip(),)))

    @property
    def is_blank(self) -> Flags:
        """[strings of `tokens`]"""
        return self.tokens.flags("is blank", lambda token: not token.strip())

    def of_class(self, name: str) -> Flags:
        """[strings of `tokens`]: whether each is of the class, as far as it can be told from the token alone."""
        return self.tokens.flags(f"class {name}", in_class(name))

    def kept(self, test: Hashable, ask: Callable[[Codes], Flags]) -> Flags:
        """[forms]: whether a test holds on each; `ask` tells it of some forms."""
        known = self._kept.pop(test, np.zeros(0, dtype=np.bool_))
        if len(known) < len(self):
            known = np.append(known, ask(np.arange(len(known), len(self))))
        self._kept[test] = known
        while len(self._kept) > TESTS_KEPT:
            del self._kept[next(iter(self._kept))]
        return known

    def found(self, name: Hashable, find: Callable[[], Codes]) -> Codes:
        """What `find` finds among the forms, kept under a name until there are more of them."""
        n, codes = self._found.pop(name, (-1, self._alone))
        self._found[name] = found = (n, codes) if n == len(self) else (len(self), find())
        while len(self._found) > FOUND_KEPT:
            del self._found[next(iter(self._found))]
        return found[1]

    def expects(self, pattern: str) -> bool:
        """Whether all forms are asked about the pattern at once."""
        return pattern in self._expected

    def word_differs(self, forms: Codes) -> Flags:
        """Whether the word up to the token is another text than the token, white space apart."""
        own = self.tokens.flags("differs", lambda token: _own_word(token).strip() != token.strip())
        return self.continues[forms] | own[self.token_of[forms]]


def _own_word(token: str) -> str:
    """The word up to a token that continues none."""
    read = lex(token)
    return token if read.inside_word else token.rstrip() if read.ends_word else read.tail or token
