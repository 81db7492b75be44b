"""Real tokenizers of every kind that language models have, each trained on a little text or made from a few pieces."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PerceiverTokenizer, PreTrainedTokenizerFast

from support.small_models import TRAINING_TEXT, byte_fallback_tokenizer, byte_level_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = "the cat's naïve 東京 🙂 token_izer"


@dataclass(frozen=True)
class Kind:
    make: Callable[[Path], PreTrainedTokenizerBase]
    lossless: bool = False
    """Whether the tokens of a text join to the text itself."""


def _fast(backend: Tokenizer, **special: str) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _trained(backend: Tokenizer, trainer: Any) -> Tokenizer:
    backend.train_from_iterator([TRAINING_TEXT, WORDS], trainer)
    return backend


def byte_level_with_prefix_space(_: Path) -> PreTrainedTokenizerBase:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def byte_level_with_added_tokens(_: Path) -> PreTrainedTokenizerBase:
    """Words, white space, and words that a byte-level decoder takes for bytes."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["<think>", "        ", "café", "日本"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|é user|>"]})
    return tokenizer


def byte_level_with_stripping_tokens(_: Path) -> PreTrainedTokenizerBase:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, special=True)], special_tokens=True)
    return tokenizer


def metaspace_with_added_runs(_: Path) -> PreTrainedTokenizerBase:
    """Like Gemma's: byte fallback, and runs of metaspaces and line breaks as added tokens."""
    tokenizer = byte_fallback_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    runs = ["▁" * n for n in range(2, 9)] + ["\n", "\n\n"]
    backend.add_tokens([AddedToken(run, normalized=True) for run in runs])
    return tokenizer


def unigram(scheme: str) -> Callable[[Path], PreTrainedTokenizerBase]:
    """Like T5's, ALBERT's and XLNet's."""

    def make(_: Path) -> PreTrainedTokenizerBase:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>", "<s>"], unk_token="<unk>",
                                          show_progress=False)  # fmt: skip
        return _fast(_trained(backend, trainer), unk_token="<unk>", bos_token="<s>")

    return make


def other_metaspace(_: Path) -> PreTrainedTokenizerBase:
    """Words that begin with a character of its own choice."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="_", prepend_scheme="never")
    backend.decoder = decoders.Metaspace(replacement="_", prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    return _fast(_trained(backend, trainer), unk_token="<unk>")


def wordpiece(*, cleanup: bool) -> Callable[[Path], PreTrainedTokenizerBase]:
    def make(_: Path) -> PreTrainedTokenizerBase:
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(cleanup=cleanup)
        trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
        return _fast(_trained(backend, trainer), unk_token="[UNK]", bos_token="[CLS]")

    return make


def word_level(_: Path) -> PreTrainedTokenizerBase:
    """Whole words and no decoder, which joins tokens by spaces."""
    backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    return _fast(_trained(backend, trainer), unk_token="[UNK]")


def end_of_word(_: Path) -> PreTrainedTokenizerBase:
    """Like GPT-1's and CLIP's: the last token of a word ends in </w>."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], end_of_word_suffix="</w>",
                                  show_progress=False)  # fmt: skip
    return _fast(_trained(backend, trainer), unk_token="<unk>")


def characters(decoder: Any) -> Callable[[Path], PreTrainedTokenizerBase]:
    def make(_: Path) -> PreTrainedTokenizerBase:
        backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["?", *sorted(set(TRAINING_TEXT + WORDS))])},
                                             unk_token="?"))  # fmt: skip
        backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        if decoder is not None:
            backend.decoder = decoder
        return _fast(backend, unk_token="?")

    return make


def ctrl(folder: Path) -> PreTrainedTokenizerBase:
    """Written in Python; a token that goes on ends in @@."""
    from transformers import CTRLTokenizer

    pieces = ["<unk>", "the", "t@@", "h@@", "e", "ca@@", "c@@", "a@@", "t", "naïve", "token@@", "izer", "s", "o@@", ","]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\nc a\n", encoding="utf-8")
    tokenizer: PreTrainedTokenizerBase = CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return tokenizer


def morphological_bytes(folder: Path) -> PreTrainedTokenizerBase:
    """MyT5's: its decoder rewrites a sequence of bytes, so that a byte's text depends on its neighbours."""
    from transformers import MyT5Tokenizer

    (folder / "maps.json").write_text(
        json.dumps({"decompose_map": {"41": "e1 61"}, "merge_map": {"74 68 65": "e2 80"}}), encoding="utf-8"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it does not close its file
        tokenizer: PreTrainedTokenizerBase = MyT5Tokenizer(str(folder / "maps.json"))
    return tokenizer


KINDS = {
    "byte level": Kind(lambda _: byte_level_tokenizer(), lossless=True),
    "byte level, prefix space": Kind(byte_level_with_prefix_space),
    "byte level, added tokens": Kind(byte_level_with_added_tokens, lossless=True),
    "byte level, stripping tokens": Kind(byte_level_with_stripping_tokens),
    "metaspace, byte fallback": Kind(lambda _: byte_fallback_tokenizer()),
    "metaspace, byte fallback, added runs": Kind(metaspace_with_added_runs, lossless=True),
    "metaspace unigram, always": Kind(unigram("always")),
    "metaspace unigram, first": Kind(unigram("first")),
    "metaspace of another character": Kind(other_metaspace),
    "WordPiece": Kind(wordpiece(cleanup=False)),
    "WordPiece, cleaned": Kind(wordpiece(cleanup=True)),
    "word level, no decoder": Kind(word_level),
    "</w>": Kind(end_of_word),
    "characters, fused": Kind(characters(decoders.Fuse())),
    "characters, no decoder": Kind(characters(None)),
    "ByT5": Kind(lambda _: ByT5Tokenizer(), lossless=True),
    "Perceiver": Kind(lambda _: PerceiverTokenizer(), lossless=True),
    "CTRL": Kind(ctrl),
}
