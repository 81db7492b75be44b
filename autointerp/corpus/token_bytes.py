"""The bytes that each token of a tokenizer adds to a text, as the tokenizer's own decoder writes them.

Where tokens hold single bytes, their bytes are read from the vocabulary, by the alphabet that the decoder understands:

    GPT-2's      every character of a token is a byte     byte-level BPE (GPT-2, Llama 3, Qwen)
    <0xNN>       a token is a byte                        metaspace with byte fallback (Llama 2, Gemma, Mistral)
    chr(byte)    a token is a byte                        ByT5, Perceiver
    nn           a token is a byte, in hexadecimal        MyT5

Everything else, added tokens included, is what the decoder writes for the token between two others (`Amid`): many
decoders treat the first token of a text differently (metaspace, WordPiece), or the last one (`</w>`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FALLBACK_BYTE, HEX_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>"), re.compile(r"([0-9a-f]{2})")
REPLACEMENT = "\ufffd"
_PROBE = "é東🙂"
"""Two, three and four bytes, which no alphabet writes as they are."""
METASPACE = "\u2581"
_GUESSED = 256
"""Tokens about which the decoder is asked at once."""
_ANCHORS, _SAMPLE = 4, 400
"""How many tokens are tried as neighbours, and on how many others."""

Alphabet = Callable[[str], bytes | None]
"""The bytes of a token's spelling in the vocabulary; None where the token is not spelled in bytes."""


class VocabularyBytes(NamedTuple):
    """What `vocabulary_bytes` finds."""

    by_id: dict[int, bytes]
    """Each token's bytes."""
    spelled: frozenset[int]
    """Ids whose bytes were read from the vocabulary, since the decoder takes their spelling for bytes."""
    misread: frozenset[int]
    """Added tokens that the decoder misreads (a byte-level one takes café for bytes): their content stands for them."""
    amid: Amid


def vocabulary_bytes(tokenizer: PreTrainedTokenizerBase) -> VocabularyBytes:
    """The bytes of every token. Reads the whole vocabulary."""
    vocabulary = {index: token for token, index in sorted(tokenizer.get_vocab().items(), key=itemgetter(1))}
    added = tokenizer.added_tokens_decoder
    raw: dict[int, bytes] = {}
    alphabet = byte_alphabet(tokenizer)
    if alphabet is not None:
        read = ((index, alphabet(token)) for index, token in vocabulary.items() if index not in added)
        raw = {index: found for index, found in read if found is not None}
    spelled_ids = frozenset(raw)
    others = sorted((vocabulary.keys() | added.keys()) - raw.keys())
    amid = Amid(tokenizer, _anchors(vocabulary, frozenset(added), raw), list(vocabulary))
    misread = set()
    for index, text in zip(others, _texts(amid, vocabulary, others), strict=True):
        if index in added and (text is None or REPLACEMENT in text):
            misread.add(index)
            text = added[index].content
        elif text is None:
            text = decoded(tokenizer, [[index]])[0]
        raw[index] = text.encode("utf-8", "replace")
    return VocabularyBytes(raw, spelled_ids, frozenset(misread), amid)


def _texts(amid: Amid, vocabulary: dict[int, str], ids: Sequence[int]) -> list[str | None]:
    """What each token adds to a text.

    Most decoders only write spaces for metaspaces. So that is guessed and the decoder asked about many tokens at once,
    which takes a tenth of the time; where the guess is wrong it is asked token by token.
    """
    texts: list[str | None] = []
    parts = [ids[start : start + _GUESSED] for start in range(0, len(ids), _GUESSED)]
    for part, whole in zip(parts, amid.texts(parts), strict=True):
        guesses = [vocabulary.get(index, "").replace(METASPACE, " ") for index in part]
        texts += guesses if "".join(guesses) == whole else amid.texts([[index] for index in part])
    return texts


def decoded(tokenizer: PreTrainedTokenizerBase, lists: Sequence[Sequence[int]]) -> list[str]:
    """What the tokenizer decodes for each list of ids, special tokens included."""
    # A list of lists, since transformers 5 returns one string for a flat list.
    texts = tokenizer.batch_decode([list(ids) for ids in lists], clean_up_tokenization_spaces=False)
    return [str(text) for text in texts]


class Amid:
    """The decoder of ids that stand amid a text: between two ordinary tokens, whose own text is taken off."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, anchors: Sequence[int], ids: Sequence[int]) -> None:
        """`anchors`: ids to choose the neighbour from; `ids`: those whose text it must leave apart from its own."""
        self._tokenizer = tokenizer
        sample = ids[:: max(1, len(ids) // _SAMPLE)]
        best = -1
        self._anchor, self._before, self._after = -1, "", ""
        for anchor in anchors:
            (pair,) = decoded(tokenizer, [[anchor, anchor]])
            texts = decoded(tokenizer, [[anchor, index, anchor] for index in sample])
            # Where the first neighbour's text ends, the tokens tell: a space may belong to either side.
            for cut in range(len(pair) + 1):
                n_apart = sum(_between(text, pair[:cut], pair[cut:]) is not None for text in texts)
                if n_apart > best:
                    best, self._anchor, self._before, self._after = n_apart, anchor, pair[:cut], pair[cut:]
            if best == len(sample):
                break

    def texts(self, lists: Sequence[Sequence[int]]) -> list[str | None]:
        """What each list of ids adds to a text; None where the decoder writes the neighbours differently beside it."""
        if self._anchor < 0:
            return [None] * len(lists)
        texts = decoded(self._tokenizer, [[self._anchor, *ids, self._anchor] for ids in lists])
        return [_between(text, self._before, self._after) for text in texts]


def _between(text: str, before: str, after: str) -> str | None:
    if len(text) < len(before) + len(after) or not (text.startswith(before) and text.endswith(after)):
        return None
    return text[len(before) : len(text) - len(after)]


def _anchors(vocabulary: dict[int, str], added: frozenset[int], raw: dict[int, bytes]) -> list[int]:
    """A few ordinary tokens, those spelled in letters first."""
    ordinary = [index for index in vocabulary if index not in added]
    letters = (index for index in ordinary if vocabulary[index].isascii() and vocabulary[index].isalpha())
    whole = (index for index in ordinary if raw.get(index, b"a").isascii())
    choices = (list(islice(ids, _ANCHORS)) for ids in (letters, whole, ordinary, sorted(added)))
    return next((choice for choice in choices if choice), [])


def byte_alphabet(tokenizer: PreTrainedTokenizerBase) -> Alphabet | None:
    """The alphabet in which the tokenizer's decoder reads bytes; None if it reads none."""
    table = _byte_of_character()
    spell = {byte: character for character, byte in table.items()}
    if _writes(tokenizer, [spell[byte] for byte in _PROBE.encode()]):
        return lambda token: _byte_level(token, table)
    for form, spelling in (("<0x{:02X}>", FALLBACK_BYTE), ("{:02x}", HEX_BYTE)):
        if _writes(tokenizer, [form.format(byte) for byte in _PROBE.encode()]):
            return partial(_hexadecimal, spelling=spelling)
    if _writes(tokenizer, [chr(byte) for byte in _PROBE.encode()]):
        return lambda token: bytes([ord(token)]) if len(token) == 1 and ord(token) < 256 else None
    return None


def _writes(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> bool:
    """Whether the decoder makes `_PROBE` of these tokens."""
    try:
        return str(tokenizer.convert_tokens_to_string(tokens)).strip() == _PROBE
    except (ValueError, KeyError, TypeError, OverflowError):  # a decoder written in Python, of another alphabet
        return False


def _byte_of_character() -> dict[str, int]:
    """The byte that each of GPT-2's printable characters stands for: `bytes_to_unicode` of Radford et al. 2019,
    inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_level(token: str, table: dict[str, int]) -> bytes | None:
    try:
        return bytes([table[character] for character in token])
    except KeyError:  # outside the byte alphabet: the decoder takes such a token literally
        return None


def _hexadecimal(token: str, spelling: re.Pattern[str]) -> bytes | None:
    byte = spelling.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else None
