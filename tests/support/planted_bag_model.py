"""A language model with hand-set weights that expects the words it has read before. `surprisal` and `intervention` need
such a reader; the planted world's own model sees only one word back.

    logit of a word = log of its share of the corpus + GAIN n / (BEGINNING + all)

n is how often the word was read so far, and `all` is how many words were read. Words of FUNCTION, punctuation and
everything that is no word of the language do not count, so a label's `the` and the length of the English around a label
have no effect. One attention head does this: it attends equally to every word that counts, to the BOS as to BEGINNING
words, and to nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from support.planted_features import CLASSES, END, FUNCTION, OTHER, PUNCTUATION, WORDS

GAIN, BEGINNING = 20.0, 20.0
"""The gain is small, since whatever makes one word likelier makes all others less likely, in every place of a text."""
NOT_SEEN = -40.0
"""Attention score of tokens that do not count."""
POSITIONS = 512


@torch.no_grad()
def save_bag_model(folder: Path, texts: Sequence[Sequence[str]]) -> Path:
    """Saves the model and its tokenizer in `folder`, which is created. `texts` give the words' shares of the corpus."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    number = {name: i for i, name in enumerate(CLASSES)}
    tokenizer = Tokenizer(models.WordLevel(vocab=number, unk_token=OTHER))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=OTHER, bos_token=END, eos_token=END, pad_token=END,
        model_max_length=POSITIONS,
    ).save_pretrained(folder)  # fmt: skip
    K = len(CLASSES)
    token, seen, bias, width = slice(0, K), slice(K, 2 * K), 2 * K, 2 * K + 1
    config = GPT2Config(
        vocab_size=K, n_positions=POSITIONS, n_embd=width, n_layer=1, n_head=1, n_inner=4, bos_token_id=0,
        eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.zero_()
    code = torch.eye(K) - 1.0 / K  # sums to 0 and has one length, so that a LayerNorm multiplies by a constant
    model.transformer.wte.weight[:, token] = code
    deviation = ((1 - 1 / K) / width + config.layer_norm_epsilon) ** 0.5
    block = model.transformer.h[0]
    block.ln_1.weight.fill_(deviation)
    counts_here = torch.tensor([float(name in WORDS and name not in FUNCTION) for name in CLASSES])
    scores = (1 - counts_here) * NOT_SEEN
    scores[number[END]] = math.log(BEGINNING)
    query, key, value = (slice(i * width, (i + 1) * width) for i in range(3))
    block.attn.c_attn.bias[query][0] = width**0.5  # scores are divided by it
    block.attn.c_attn.weight[token, key][:, 0] = scores  # less their mean, which is nothing to a softmax
    block.attn.c_attn.weight[token, value][:, seen] = torch.diag(counts_here)
    block.attn.c_attn.bias[value][seen] = counts_here / K
    block.attn.c_proj.weight[seen, seen] = torch.eye(K)
    # What was read adds little to the length, so the last norm is nearly a constant too.
    model.transformer.ln_f.weight.fill_(deviation)
    model.transformer.ln_f.bias[bias] = 1.0
    counts = Counter(word for words in texts for word in words)
    shares = torch.tensor([float(counts[name] + (name in PUNCTUATION or name in WORDS)) for name in CLASSES])
    model.lm_head.weight[:, seen] = GAIN * torch.eye(K)
    model.lm_head.weight[:, bias] = (shares.clamp_min(1e-2) / shares.sum()).log()
    model.save_pretrained(folder)
    return folder
