"""The law of token text, for every kind of tokenizer: the tokens of a window join to what the tokenizer decodes for it
amid a text."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tokenizer_kinds import KINDS, morphological_bytes
from transformers import PreTrainedTokenizerBase

from autointerp.corpus.token_text import TokenText
from autointerp.corpus.token_text_check import joins, text_misfit
from autointerp.corpus.windows import token_ids
from autointerp.errors import InputError
from autointerp.records import Window

PARTS = [
    "the ", "cat", "'s", " do not", " ,", ".", "token", "izer", "    ", "        ", " x", "\n", "\n\n", "\t", "A", "İ",
    "café", "é", "東京", "日本", "🙂", "👩‍👩‍👧", "<left>", " <mask> ", "<right>  ", "<think>", "<|é user|>", "##ing",
    "▁", "_", "</w>", "<unk>", "<s>", "[CLS]", "</s>",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), max_size=14).map("".join) | st.text(max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@cache
def made(name: str, folder: Path) -> tuple[PreTrainedTokenizerBase, TokenText, int]:
    """The tokenizer, its token text, and the id of an ordinary token that is at home amid any text."""
    tokenizer = KINDS[name].make(folder)
    text = TokenText(tokenizer)
    within = next(i for i, piece in enumerate(text.pieces) if i not in text.special_ids and (piece or "").isalpha()
                  or piece is not None and piece.strip().isascii() and piece.strip().isalpha() and i > 4)  # fmt: skip
    return tokenizer, text, within


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def readable(string: str) -> str:
    """Without what stands for bytes that form no character: U+FFFD here, \\xNN there, nothing in ByT5."""
    return re.sub(r"(\\x[0-9a-f]{2})|\ufffd", "", string)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25, deadline=None)
@given(text=TEXTS, low=st.integers(0, 8), length=st.integers(0, 12))
@example(text="def f(x):\n    if x:\n        return  東京 café 🙂", low=0, length=99)
@example(text="the cat's token , izer do not the", low=0, length=99)
def test_the_tokens_of_a_window_join_to_what_is_decoded(
    name: str, folder: Path, text: str, low: int, length: int
) -> None:
    tokenizer, token_text, within = made(name, folder)
    text = text.replace("\\", "").replace("\ufffd", "")
    whole = token_ids([text], tokenizer)[0]
    # The tokenizers in Python strip the text around their special tokens.
    if KINDS[name].lossless and (tokenizer.is_fast or not any(token in text for token in tokenizer.all_special_tokens)):
        assert "".join(token_text.tokens(whole)) == text.replace("▁", " " if "metaspace" in name else "▁")
    ids = whole[low : low + length]
    tokens = token_text.tokens(ids)
    assert len(tokens) == len(ids)
    if name == "byte level, added tokens" and "café" in tokens:
        return  # the decoder writes caf\ufffd; the text itself was compared above
    joined, alone = "".join(tokens), decoded(tokenizer, ids)
    amid, pair = decoded(tokenizer, [within, *ids, within]), decoded(tokenizer, [within, within])
    if "\ufffd" in amid and "<0x" in str(tokenizer.convert_ids_to_tokens(ids)):
        return  # byte fallback gives up a whole run of bytes for one that is missing
    assert readable(joined) in readable(amid)
    assert len(readable(amid)) == len(pair) + len(readable(joined))
    if ids == whole:
        assert readable(joined).strip(" ") == readable(alone).strip(" ")
    assert joins(token_text, ids)


@pytest.mark.parametrize("name", KINDS)
def test_every_piece_is_one_token_shown_and_excluded_by_its_text(name: str, folder: Path) -> None:
    _, token_text, _ = made(name, folder)
    ids = range(0, len(token_text.pieces), max(1, len(token_text.pieces) // 50))
    shown = {i: token_text.tokens([i])[0] for i in ids if token_text.token_bytes[i]}
    assert shown.keys() <= token_text.excluded_ids(shown.values())
    assert all("\u2581" not in string or name == "ByT5" for string in shown.values())


def test_added_runs_of_spaces_are_spaces_and_can_be_excluded(folder: Path) -> None:
    """Gemma's: promoted tokens, contexts and exclude_tokens have one spelling of them."""
    tokenizer, token_text, _ = made("metaspace, byte fallback, added runs", folder)
    run = tokenizer.convert_tokens_to_ids("▁▁▁▁")
    ids = token_ids(["if x:\n    return"], tokenizer)[0]
    assert run in ids and token_text.pieces[run] == "    " == token_text.tokens(ids)[ids.index(run)]
    assert token_text.excluded_ids(["    "]) == token_text.special_ids | {run}
    with pytest.raises(InputError, match="is not one token"):
        token_text.excluded_ids(["▁▁▁▁"])


def test_bytes_of_byt5_are_joined_to_characters(folder: Path) -> None:
    _, token_text, _ = made("ByT5", folder)
    assert token_text.tokens([byte + 3 for byte in "né東".encode()]) == ["n", "", "é", "", "", "東"]
    assert token_text.tokens([0xE9 + 3]) == ["\\xe9"] and token_text.token_bytes[0xE9 + 3] == b"\xe9"
    assert 0xE9 + 3 in token_text.excluded_ids(["\\xe9"])


def test_the_space_after_a_word_belongs_to_its_last_token(folder: Path) -> None:
    tokenizer, token_text, _ = made("</w>", folder)
    ids = token_ids(["the boats, the tide"], tokenizer)[0]
    assert "".join(token_text.tokens(ids)) == "the boats , the tide "
    assert token_text.pieces[tokenizer.convert_tokens_to_ids("the</w>")] == "the "


def test_a_decoder_that_rewrites_its_neighbours_is_found(tmp_path: Path, folder: Path) -> None:
    tokenizer = morphological_bytes(tmp_path)
    text = TokenText(tokenizer)

    def windows(*texts: str) -> list[Window]:
        return [Window(f"d{i}", 0, "explain", ids) for i, ids in enumerate(token_ids(texts, tokenizer))]

    assert text_misfit(text, windows("cat né 東", "dogs")) is None
    found = text_misfit(text, windows("dogs", "An old woman", "on the quay"))
    assert found is not None
    assert "2 of 3 windows" in found and "first: d1" in found and "'\\\\xe1an old" in found and "'An old" in found
    for name in KINDS:
        tokenizer, text, _ = made(name, folder)
        assert text_misfit(text, windows("the cat's token , izer\n    do not 東京 café 🙂")) is None, name
