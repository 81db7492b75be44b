"""Turns token ids into strings, and identifies a tokenizer by a hash.

The law: "".join(tokens) is what the tokenizer decodes for these ids where they stand amid a text. So the space that
metaspace and WordPiece decoders take off the beginning of a text is kept, and so is the one that a `</w>` decoder takes
off its end, since most windows neither begin nor end a document. A character whose bytes are spread over several tokens
belongs to the last of them. Bytes that never complete a character are shown as \\xNN.

A token's string is looked up by its id, which obeys the law for every decoder that writes a token in one way wherever
it stands amid a text. `corpus/token_text_check.py` finds the others on the corpus itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from autointerp.corpus.token_bytes import decoded, vocabulary_bytes
from autointerp.errors import InputError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _backend_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """The parsed tokenizer.json, or None for a tokenizer written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
    if backend is None:
        return None
    settings: dict[str, Any] = json.loads(backend.to_str())
    return settings


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256, in hex, of all that decides token ids: the serialised tokenizer and its special tokens.

    It is the same before and after saving, and does not depend on padding or truncation that a call left switched on.
    """
    settings = _backend_settings(tokenizer)
    if settings is None:
        settings = {"vocab": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    settings = {key: value for key, value in settings.items() if key not in ("padding", "truncation")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    canonical = json.dumps([settings, special], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


class TokenText:
    """The strings of one tokenizer's tokens. Keep it: building it reads the whole vocabulary.

    A token has one string wherever it stands, unless it is a part of a character:

    | where | what a token's string is |
    | --- | --- |
    | contexts, pruned contexts, what the simulators are shown | `tokens` of the whole window, BOS included |
    | promoted tokens, counterfactuals, shifted logits | `tokens` of the one id: parts of characters as \\xNN |
    | exclude_tokens | the same string as among the promoted tokens |
    | absorption, pruning's other words | `pieces`: parts of characters are no words |
    | words of mutual information, texts written under steering | `tokens` of the stretch, joined |
    | the rules' words | the context's strings: a word begins after a space, or ends before one (`</w>`) |
    """

    pieces: list[str | None]
    """Each token's string, by id; None if its bytes are only a part of a character, and for ids without a token."""
    token_bytes: list[bytes]
    """Each token's bytes, by id; empty for ids without a token."""
    special_ids: frozenset[int]
    """BOS, EOS, padding and every other token marked special."""
    spelled_ids: frozenset[int]
    """Ids whose tokens the decoder takes for bytes."""
    misread_ids: frozenset[int]
    """Added tokens whose string is their content, since the decoder misreads them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = frozenset(special | set(tokenizer.all_special_ids))
        self._tokenizer = tokenizer
        self._bytes, self.spelled_ids, self.misread_ids, self._amid = vocabulary_bytes(tokenizer)
        self.pieces = [None] * (max(self._bytes, default=-1) + 1)
        for index, raw in self._bytes.items():
            self.pieces[index] = _whole_characters(raw)
        self.token_bytes = [self._bytes.get(index, b"") for index in range(len(self.pieces))]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """One string per id, decoded jointly. Raises InputError for an id outside the vocabulary."""
        try:
            strings = [self.pieces[i] for i in ids]
        except IndexError:
            raise InputError(
                f"token id {max(ids)} lies outside the tokenizer's {len(self.pieces)} tokens; the ids come from "
                "another tokenizer"
            ) from None
        n, start = len(strings), 0
        whole = [string or "" for string in strings]
        if None not in strings:
            return whole
        # A token with a string of its own begins and ends between characters, so split characters lie in runs of None.
        while start < n:
            if strings[start] is not None:
                start += 1
                continue
            end = start
            while end < n and strings[end] is None:
                end += 1
            whole[start:end] = _joint([self._bytes.get(int(i), b"") for i in ids[start:end]])
            start = end
        return whole

    def decoded(self, ids: Sequence[int]) -> tuple[str, ...]:
        """What the tokenizer itself decodes for these ids: alone, and amid a text."""
        (amid,) = self._amid.texts([ids])
        return tuple(text for text in (*decoded(self._tokenizer, [ids]), amid) if text is not None)

    def excluded_ids(self, exclude_tokens: Iterable[str]) -> frozenset[int]:
        """The special ids and the ids of `exclude_tokens`, each the string of one token as contexts and promoted tokens
        show it, with its leading space. Raises InputError for a string that is not a token."""
        wanted = set(exclude_tokens)
        if not wanted:
            return self.special_ids
        ids: dict[str, list[int]] = {}
        for index in self._bytes:
            piece = self.pieces[index]
            ids.setdefault(self.tokens([index])[0] if piece is None else piece, []).append(index)
        excluded = set(self.special_ids)
        for token in sorted(wanted):
            if token not in ids:
                raise InputError(
                    f"corpus.exclude_tokens: {token!r} is not one token of the tokenizer.{nearest(token, ids)}"
                )
            excluded.update(ids[token])
        return frozenset(excluded)


def _whole_characters(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _joint(parts: Sequence[bytes]) -> list[str]:
    """One string per byte string. Each character belongs to the byte string that holds its last byte."""
    data = b"".join(parts)
    owner = [index for index, part in enumerate(parts) for _ in part]
    strings = [""] * len(parts)
    position = 0
    while position < len(data):
        for length in (1, 2, 3, 4):
            character = _whole_characters(data[position : position + length])
            if character:
                break
        else:
            character, length = f"\\x{data[position]:02x}", 1
        strings[owner[position + length - 1]] += character
        position += length
    return strings
