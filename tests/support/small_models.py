"""Small real models with a real tokenizer, made from configs and saved as folders; and the tokenizer's text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

TRAINING_TEXT = """
The harbour lay quiet under a low grey sky, and the boats turned slowly on their ropes as the tide came in. An old
woman sold oranges by the steps; she counted the coins twice and put them into a tin box. "Two for a penny," she said,
"and three for the captain's daughter!" Nobody laughed. In the evening the lamps were lit along the quay, one after
another, and the sailors sat down to their bread, their cheese and their letters from home.

def read_lines(path, encoding="utf-8", errors="strict"):
    with open(path, encoding=encoding, errors=errors) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            yield number, line.rstrip("\\n")

class Counter(dict):
    def __init__(self, iterable=None):
        super().__init__()
        self.total = 0
        if iterable is not None:
            self.update(iterable)

    def most_common(self, n=None):
        return sorted(self.items(), key=lambda item: item[1], reverse=True)[:n]

In 1969 the first message went from one machine to another: it was meant to be "login", and only "lo" arrived. Since
then numbers such as 3.14159, 2,718 and 1,000,000 have been sent everywhere, with names like Zoë, Łukasz, 東京 and 🙂.
Water boils at 100 °C at sea level; on a mountain of 3,000 metres it boils at about 90 °C, and the soup takes longer.
The committee met on Monday, on Tuesday and again on Thursday; the chairman thanked the members for their patience.
"""
"""Prose, code and a few characters outside ASCII: enough for a byte-level BPE of VOCAB pieces."""

VOCAB = 600

END = "<|endoftext|>"


def byte_level_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE like GPT-2's: `END` (id 0) is BOS, EOS and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [TRAINING_TEXT],
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=[END],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, model_max_length=128
    )


def byte_fallback_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer like Llama 2's: words begin with a metaspace, unknown characters become <0xNN> byte tokens, and
    decoding removes the first space."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>"]
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizer
    ascii_text = TRAINING_TEXT.encode("ascii", "ignore").decode().replace("\n", " ")
    learned.train_from_iterator(
        ascii_text.split("  "), trainers.BpeTrainer(vocab_size=200, show_progress=False, special_tokens=specials)
    )
    from json import loads

    model = loads(learned.to_str())["model"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [piece for piece in sorted(model["vocab"], key=model["vocab"].get) if piece not in specials]
    bpe = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    bpe.normalizer = normalizer
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def save_model(folder: Path, config: PretrainedConfig, seed: int = 0) -> Path:
    """A randomly initialised model of `config` and the byte-level tokenizer, saved to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder
