"""Token strings: "".join(tokens) is the text, for byte-level and byte-fallback tokenizers, whatever the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.small_models import END, byte_fallback_tokenizer, byte_level_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from autointerp.corpus.token_text import TokenText, tokenizer_sha256
from autointerp.errors import InputError

BYTE_LEVEL, BYTE_FALLBACK = byte_level_tokenizer(), byte_fallback_tokenizer()
LEVEL_TEXT, FALLBACK_TEXT = TokenText(BYTE_LEVEL), TokenText(BYTE_FALLBACK)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text("aé東🙂👩‍👩‍👧 \n\t�", max_size=20)


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@settings(max_examples=300, deadline=None)
@given(TEXT)
@example("👩‍👩‍👧‍👦 family")
@example("e\u0301 combining")
def test_byte_level_tokens_join_to_the_text(text: str) -> None:
    ids = ids_of(BYTE_LEVEL, text)
    tokens = LEVEL_TEXT.tokens(ids)
    assert len(tokens) == len(ids)
    assert "".join(tokens) == text == BYTE_LEVEL.decode(ids)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_byte_fallback_tokens_join_to_the_text(text: str) -> None:
    """The tokenizer puts one space before the text, which its decode takes off and ours keeps. A metaspace in the text
    itself reads as a space: the tokenizer does not tell them apart."""
    text = text.replace("\u2581", "")
    ids = ids_of(BYTE_FALLBACK, text)
    joined = "".join(FALLBACK_TEXT.tokens(ids))
    assert joined.removeprefix(" ") == text.removeprefix(" ") or joined == " " + text
    assert joined.removeprefix(" ") == BYTE_FALLBACK.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 599), max_size=12))
def test_any_ids_agree_with_decode_but_for_incomplete_bytes(ids: list[int]) -> None:
    tokens = LEVEL_TEXT.tokens(ids)
    assert len(tokens) == len(ids)
    decoded = BYTE_LEVEL.decode(ids)
    if "\ufffd" not in decoded:
        assert "".join(tokens) == decoded
    else:
        assert "\\x" in "".join(tokens)


def test_a_split_character_belongs_to_its_last_token() -> None:
    ids = [BYTE_LEVEL.convert_tokens_to_ids(piece) for piece in ("a", "ð", "Ł", "Ļ", "Ĥ", "b")]
    assert LEVEL_TEXT.tokens(ids) == ["a", "", "", "", "🙂", "b"]
    fallback = [BYTE_FALLBACK.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "é!".encode()]
    assert FALLBACK_TEXT.tokens(fallback) == ["", "é", "!"]


def test_bytes_that_never_complete_a_character_show_in_hex() -> None:
    ids = [BYTE_LEVEL.convert_tokens_to_ids(piece) for piece in ("ð", "Ł", "a", "Ĥ", "Ã", "©", "ð")]
    assert LEVEL_TEXT.tokens(ids) == ["\\xf0", "\\x9f", "a", "\\x82", "", "é", "\\xf0"]
    # The window ends inside a character: nothing waits for what is not there.
    assert LEVEL_TEXT.tokens(ids_of(BYTE_LEVEL, "🙂")[:1]) == ["\\xf0\\x9f"]


def test_pieces_are_the_strings_of_tokens_that_decode_alone() -> None:
    for token_text, tokenizer in ((LEVEL_TEXT, BYTE_LEVEL), (FALLBACK_TEXT, BYTE_FALLBACK)):
        assert len(token_text.pieces) == len(tokenizer)
        for index, piece in enumerate(token_text.pieces):
            assert token_text.tokens([index]) == [piece] or piece is None
    level = LEVEL_TEXT.pieces
    assert level[BYTE_LEVEL.convert_tokens_to_ids("Ġw")] == " w"
    assert level[BYTE_LEVEL.convert_tokens_to_ids("Ċ")] == "\n"
    assert level[BYTE_LEVEL.convert_tokens_to_ids("ð")] is None
    fallback = FALLBACK_TEXT.pieces
    assert fallback[BYTE_FALLBACK.convert_tokens_to_ids("<0x0A>")] == "\n"
    assert fallback[BYTE_FALLBACK.convert_tokens_to_ids("<0xF0>")] is None


def test_special_and_added_tokens_are_their_own_strings() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|é user|>"]})
    tokenizer.add_tokens(["über cool"])
    token_text = TokenText(tokenizer)
    ids = [0, *ids_of(tokenizer, "a<|é user|>über cool")]
    assert token_text.tokens(ids) == [END, "a", "<|é user|>", "über cool"]
    assert token_text.special_ids == {0, 600} and len(token_text.pieces) == 602
    assert FALLBACK_TEXT.special_ids == {0, 1, 2} and FALLBACK_TEXT.tokens([1]) == ["<s>"]


def test_excluded_ids_are_special_ids_and_named_tokens() -> None:
    newline = BYTE_LEVEL.convert_tokens_to_ids("Ċ")
    assert LEVEL_TEXT.excluded_ids(["\n"]) == {0, newline}
    assert LEVEL_TEXT.excluded_ids([]) == {0}
    with pytest.raises(InputError, match="' harbou' is not one token"):
        LEVEL_TEXT.excluded_ids([" harbou"])


def test_an_id_of_another_tokenizer_is_an_error() -> None:
    with pytest.raises(InputError, match="id 600 lies outside"):
        LEVEL_TEXT.tokens([1, 600])


def test_other_tokenizers_are_asked_token_by_token() -> None:
    """WordPiece, whose pieces depend on what stands before them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[UNK]": 0, "token": 1, "##izer": 2, "the": 3, "!": 4}
    wordpiece = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    wordpiece.pre_tokenizer = pre_tokenizers.Whitespace()
    wordpiece.decoder = decoders.WordPiece(cleanup=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece, unk_token="[UNK]")
    assert TokenText(tokenizer).tokens(ids_of(tokenizer, "the tokenizer!")) == [" the", " token", "izer", " !"]


def test_the_hash_survives_saving_and_use_and_tells_tokenizers_apart(tmp_path: Path) -> None:
    hashes = set()
    for tokenizer in (byte_level_tokenizer(), byte_fallback_tokenizer()):
        before = tokenizer_sha256(tokenizer)
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer_sha256(loaded) == before
        loaded("some text", truncation=True, max_length=3)
        assert tokenizer_sha256(loaded) == before
        loaded.add_tokens(["new one"])
        hashes |= {before, tokenizer_sha256(loaded)}
    assert len(hashes) == 4
