"""Turns token ids into strings such that "".join(tokens) is the text, and identifies a tokenizer by a hash.

A character whose bytes are spread over several tokens belongs to the last of them. Bytes that never complete a
character are shown as \\xNN. The bytes of byte-level BPE (GPT-2, Llama 3, Qwen) and of metaspace with byte fallback
(Llama 2, Gemma, Mistral) are read from the vocabulary; any other tokenizer decodes each of its tokens once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from autointerp.errors import InputError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METASPACE = "\u2581"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_character() -> dict[str, int]:
    """The byte that each of GPT-2's printable characters stands for: `bytes_to_unicode` of Radford et al. 2019,
    inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def _parts_named(tree: Any, names: frozenset[str]) -> bool:
    """Whether a (nested) section of tokenizer.json holds a component of one of these types."""
    if isinstance(tree, dict):
        return tree.get("type") in names or any(_parts_named(v, names) for v in tree.values())
    return isinstance(tree, list) and any(_parts_named(v, names) for v in tree)


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
    """The strings of one tokenizer's tokens. Keep it: building it reads the whole vocabulary."""

    pieces: list[str | None]
    """Each token's string, by id; None if its bytes are only a part of a character, and for ids without a token."""
    token_bytes: list[bytes]
    """Each token's bytes, by id; empty for ids without a token."""
    special_ids: frozenset[int]
    """BOS, EOS, padding and every other token marked special."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder
        special = {index for index, token in added.items() if token.special}
        self.special_ids = frozenset(special | set(tokenizer.all_special_ids))
        vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
        self._bytes = _vocabulary_bytes(tokenizer, vocabulary)
        for index, token in added.items():
            self._bytes[index] = token.content.encode("utf-8", "replace")
        self.pieces = [None] * (max(self._bytes, default=-1) + 1)
        for index, raw in self._bytes.items():
            self.pieces[index] = _whole_characters(raw)
        self.token_bytes = [self._bytes.get(index, b"") for index in range(len(self.pieces))]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """One string per id, decoded jointly. The leading space of a metaspace tokenizer is kept, since most stretches
        of text do not begin a document. Raises InputError for an id outside the vocabulary."""
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

    def excluded_ids(self, exclude_tokens: Iterable[str]) -> frozenset[int]:
        """The special ids and the ids of `exclude_tokens`, each the text of one token with its leading space. Raises
        InputError for a string that is not a token."""
        ids: dict[str, list[int]] = {}
        for index, piece in enumerate(self.pieces):
            if piece is not None:
                ids.setdefault(piece, []).append(index)
        excluded = set(self.special_ids)
        for token in exclude_tokens:
            if token not in ids:
                raise InputError(
                    f"corpus.exclude_tokens: {token!r} is not one token of the tokenizer.{nearest(token, ids)}"
                )
            excluded.update(ids[token])
        return frozenset(excluded)


def _vocabulary_bytes(tokenizer: PreTrainedTokenizerBase, vocabulary: dict[int, str]) -> dict[int, bytes]:
    settings = _backend_settings(tokenizer) or {}
    decoder = settings.get("decoder")
    if _parts_named(decoder, frozenset({"ByteLevel"})):
        table = _byte_of_character()
        return {i: _byte_level(token, table) for i, token in vocabulary.items()}
    metaspace = _parts_named(decoder, frozenset({"Metaspace", "ByteFallback"}))
    if metaspace or any(token.startswith(METASPACE) for token in vocabulary.values()):
        return {i: _metaspace(token) for i, token in vocabulary.items()}
    return _decoded_one_by_one(tokenizer, sorted(vocabulary))


def _byte_level(token: str, table: dict[str, int]) -> bytes:
    try:
        return bytes([table[character] for character in token])
    except KeyError:  # outside the byte alphabet: the decoder takes such a token literally
        return token.encode("utf-8", "replace")


def _metaspace(token: str) -> bytes:
    byte = BYTE_TOKEN.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    return token.replace(METASPACE, " ").encode("utf-8", "replace")


def _decoded_one_by_one(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> dict[int, bytes]:
    """What each token adds to the text when it follows another token; many decoders treat the first token specially."""
    if not ids:
        return {}
    anchor = ids[0]
    alone = str(tokenizer.decode([anchor], clean_up_tokenization_spaces=False))
    # A list of lists, since transformers 5 returns one string for a flat list.
    pairs = tokenizer.batch_decode([[anchor, i] for i in ids], clean_up_tokenization_spaces=False)
    return {i: text.removeprefix(alone).encode("utf-8", "replace") for i, text in zip(ids, pairs, strict=True)}


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
