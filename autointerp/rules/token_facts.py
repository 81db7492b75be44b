"""Facts about a token that the text up to and including it decides: the vocabulary of the `patterns` rule.

A causal model's activation on a token cannot depend on what follows, so these facts do not either. They are lexical and
hold for any text: in prose there are no comments, strings or indentation, and the facts about them cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

START = "^"
"""Stands for whatever lies before the context's first token."""


class Facts(NamedTuple):
    """The facts about one token. Every field is a string, so that a rule can be stored and looked up as JSON."""

    token: str
    folded: str
    """The token without surrounding white space and case: ` Self`, `self` and `SELF` are one."""
    kind: str
    """Its shape (see `kind_of`)."""
    before: str
    """The token before it."""
    before2: str
    """The token before that."""
    before_kind: str
    before2_kind: str
    word: str
    """The word up to and including this token (`import` for `ort` after `imp`); the token itself outside of words."""
    last_word: str
    """The last word that ended before this token or the word it belongs to."""
    line: str
    """The first word (or mark) of the line; '' where the line has none yet."""
    indent: str
    """Columns of white space at the start of the line; '?' on a line that began before the context."""
    quoted: str
    """'#' in a comment, a quote character in a string, '' elsewhere, as far as the context shows."""
    bracket: str
    """Innermost bracket opened in the context and not yet closed, with the word before it: `print(`."""
    mark: str
    """The last token before this one that is neither a word nor white space."""


@lru_cache(maxsize=65_536)
def kind_of(token: str) -> str:
    """The shape of a token: 'newline', 'space', 'number', 'word', 'Word', 'WORD' (with a leading space, so the start
    of a word, or the trailing one with which a `</w>` tokenizer ends it), 'piece', 'Piece', 'PIECE' (without one),
    'mark:X' by the first mark, 'bytes' for what is no character.
    """
    core = token.strip()
    if not core:
        return "newline" if "\n" in token else "space" if token else "bytes"
    if core.isdigit():
        return "number"
    if core.replace("_", "").isalnum() and not core[0].isdigit():
        shape = "word" if token[0].isspace() or token[-1] == " " else "piece"
        if core.isupper() and len(core) > 1:
            return shape.upper()
        return shape.capitalize() if core[0].isupper() else shape
    return "mark:_" if not core.strip("_") else f"mark:{core[0]}" if not core[0].isalnum() else "mixed"


_WORDS = re.compile(r"\w+")
_ENDED = re.compile(r"\w+ ")
_TAIL = re.compile(r"\w+\Z")
_FIRST = re.compile(r"\w+|[^\w\s]")


def folded(token: str) -> str:
    """The token without surrounding white space and case; white space stays as it is."""
    return token.strip().lower() or token


class Lexed(NamedTuple):
    folded: str
    kind: str
    inside_word: bool
    """It has word characters only, so it may continue the word before it."""
    ends_word: bool
    """It has word characters and a space behind them, which `</w>` tokenizers write."""
    tail: str
    """The word characters it ends with."""
    words: tuple[str, ...]
    marks: tuple[str, ...]
    """Its characters that open or close brackets, strings or comments, and its line breaks, in order."""
    is_mark: bool


@lru_cache(maxsize=65_536)
def lex(token: str) -> Lexed:
    core = token.strip()
    tail = _TAIL.search(token)
    return Lexed(
        folded=folded(token),
        kind=kind_of(token),
        inside_word=bool(_WORDS.fullmatch(token)),
        ends_word=bool(_ENDED.fullmatch(token)),
        tail=tail.group() if tail else "",
        words=tuple(_WORDS.findall(token)),
        marks=tuple(c for c in token if c in "#\"'()[]{}\n"),
        is_mark=bool(core) and not (core[0].isalnum() or core[0] == "_"),
    )


class _Reader:
    """Reads a context token by token, and remembers what the facts depend on."""

    def __init__(self) -> None:
        self.word = ""
        self.last_word = ""
        self.first = "?"
        """First word or mark of the line; '?' on a line that began before the context."""
        self.indent = "?"
        self._line = ""
        """The line so far; kept until its first word has ended."""
        self._beginning = False
        self.quoted = ""
        self.brackets: list[str] = []

    def read(self, token: str, lexed: Lexed) -> None:
        if lexed.inside_word:
            self.word += token
        else:
            if lexed.words:
                continues = token[0].isalnum() or token[0] == "_"
                if self.word and not continues:
                    self.last_word = self.word
                ended = lexed.words[:-1] if lexed.tail else lexed.words
                if ended:  # the first of them is the end of the word that the token continues
                    self.last_word = ended[-1] if len(ended) > 1 or not continues else self.word + ended[0]
            elif self.word:
                self.last_word = self.word
            self.word = lexed.tail
        if "\n" in token:
            self._line, self._beginning = "", True
            self._begin_line(token.rsplit("\n", 1)[-1])
        elif self._beginning:
            self._begin_line(token)
        for mark in lexed.marks:
            self._nest(mark)

    def _nest(self, mark: str) -> None:
        if mark == "\n":
            if self.quoted == "#":
                self.quoted = ""
        elif self.quoted:
            if mark == self.quoted:
                self.quoted = ""
        elif mark == "#":
            self.quoted = "#"
        elif mark in "\"'":
            self.quoted = mark
        elif mark in "([{":
            self.brackets.append((self.word or self.last_word) + mark)
        elif self.brackets:
            self.brackets.pop()

    def _begin_line(self, text: str) -> None:
        self._line += text
        found = _FIRST.search(self._line)
        self.first = found.group() if found else ""
        self.indent = str(found.start() if found else len(self._line))
        self._beginning = found is None or found.end() == len(self._line)


def facts_of(tokens: Sequence[str]) -> list[Facts]:
    """The facts of each token of one context."""
    reader = _Reader()
    out: list[Facts] = []
    before, before2, before_kind, before2_kind, mark = START, START, START, START, START
    for token in tokens:
        lexed, last_word = lex(token), reader.last_word
        reader.read(token, lexed)
        word = reader.word
        if lexed.ends_word:
            word = reader.last_word
        else:
            last_word = reader.last_word
        bracket = reader.brackets[-1] if reader.brackets else ""
        # In the order of the fields: by name it takes twice as long, and millions of tokens are read.
        out.append(
            Facts(
                token, lexed.folded, lexed.kind, before, before2, before_kind, before2_kind, word or token,
                last_word or START, reader.first, reader.indent, reader.quoted, bracket, mark,
            )
        )  # fmt: skip
        before2, before2_kind, before, before_kind = before, before_kind, token, lexed.kind
        if lexed.is_mark:
            mark = token.strip()
    return out
