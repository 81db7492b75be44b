"""A tiny BERT in the folder layout of sentence-transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from support.small_models import TRAINING_TEXT

MODULES = ["Transformer", "Pooling", "Normalize"]


def write_folder(folder: Path, pooling: str = "mean", modules: list[str] | None = None, lower: bool = False) -> Path:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    # Not trained: among pieces that are equally frequent a trainer chooses by chance, and with them the vectors change.
    found = sorted(set(re.findall(r"[^\W_]+|[^\w\s]", TRAINING_TEXT)))
    characters = sorted(set("".join(found)))
    pieces = dict.fromkeys([*special, *characters, *(f"##{c}" for c in characters), *found])
    words = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    words.normalizer = normalizers.NFC()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    words.enable_padding(length=20)  # as many published folders have it; it must not count
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=40, initializer_range=0.5)  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    listed = [
        {
            "idx": i,
            "name": str(i),
            "path": "" if i == 0 else f"{i}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(modules or MODULES)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": lower}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
    return folder
