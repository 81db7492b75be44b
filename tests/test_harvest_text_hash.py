"""Hashes of stretches of text against the definition in big integers."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.evidence_helpers import mix as slow_mix
from support.evidence_helpers import text_hash
from transformers import PreTrainedTokenizerBase

from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import token_ids
from autointerp.harvest.text_hash import TokenHashes, key, mix, name_hash, signed

TOKENS = [b"", b"a", b" the", b"\xe6\x9d", b"\xb1", "東".encode(), b"\n" * 40, b"\x00", b"ab", b"b"]
CPU = torch.device("cpu")


@given(st.integers(0, 2**64 - 1))
def test_mix_is_murmurs_finaliser(x: int) -> None:
    assert int(mix(torch.tensor([signed(x)]))[0]) == signed(slow_mix(x))
    assert 0 <= int(key(torch.tensor([signed(x)]))[0]) == x >> 1


@given(
    st.lists(st.lists(st.integers(0, len(TOKENS) - 1), min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(0, 11), st.integers(0, 12),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_stretch_of_any_window(windows: list[list[int]], start: int, length: int) -> None:
    width = max(map(len, windows))
    ids = torch.tensor([w + [0] * (width - len(w)) for w in windows])
    prefixes = TokenHashes(TOKENS, CPU).prefixes(ids)
    for number, window in enumerate(windows):
        low, high = min(start, len(window)), min(start + length, len(window))
        found = prefixes.hash(*(torch.tensor([v]) for v in (number, low, high)))
        assert int(found[0]) == signed(text_hash(b"".join(TOKENS[i] for i in window[low:high])))


def test_the_same_text_in_other_tokens_has_the_same_hash() -> None:
    ids = torch.tensor([[3, 4, 1, 9], [5, 8, 0, 0]])  # "東ab" twice
    prefixes = TokenHashes(TOKENS, CPU).prefixes(ids)
    a, b = prefixes.hash(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([4, 2])).tolist()
    assert a == b


def test_split_characters_belong_to_their_last_token(tokenizer: PreTrainedTokenizerBase) -> None:
    text = TokenText(tokenizer)
    split = [i for i, piece in enumerate(text.pieces) if piece is None]
    hashes = TokenHashes(text.token_bytes, CPU, split, text.tokens)
    windows = [token_ids([words], tokenizer)[0] for words in ("ab 東京🙂 cd Ł東", "東", "no such thing here")]
    windows.append(windows[0][3:] + [split[0]])  # begins and ends inside a character, perhaps
    width = max(map(len, windows))
    prefixes = hashes.prefixes(torch.tensor([w + [0] * (width - len(w)) for w in windows]))
    checked = 0
    for number, ids in enumerate(windows):
        strings = text.tokens(ids)
        for low in range(len(ids)):
            for high in range(low, len(ids) + 1):
                found = prefixes.hash(*(torch.tensor([v]) for v in (number, low, high)))
                assert int(found[0]) == signed(text_hash("".join(strings[low:high]).encode()))
                checked += strings[low] == ""
    assert checked


def test_names_hash_the_same_everywhere() -> None:
    assert name_hash(0, "a") == name_hash(0, "a") != name_hash(1, "a")
    assert -(2**63) <= name_hash("x") < 2**63
    assert np.int64(name_hash("x")) == name_hash("x")
