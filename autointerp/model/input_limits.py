"""What a model can read: the longest input, and the token ids that its embedding has rows for.

Both are known from the model before it reads anything. Beyond them a lookup fails in the middle of a pass, on a GPU
in a way that ends the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from autointerp.errors import InputError, MismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MOST_OFFSET = 8
"""A table of positions has at most this many rows more than the configuration has positions."""


def n_positions(model: PreTrainedModel) -> int | None:
    """The most tokens that the model reads at once, by its configuration; None where it sets no limit (state space
    models, ALiBi, relative positions). RoBERTa's and its kin's first positions are never used, so they do not count."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    usable = [limit]
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if not isinstance(module, nn.Embedding) or not ("pos" in name or name == "wpe"):
            continue
        if limit <= module.num_embeddings <= limit + _MOST_OFFSET:  # not that of a vision tower
            usable.append(module.num_embeddings - _offset(module))
    return min(usable)


def _offset(table: nn.Embedding) -> int:
    """The row of the first position."""
    offset: Any = getattr(table, "offset", None)
    if isinstance(offset, int):
        return offset
    return 0 if table.padding_idx is None else table.padding_idx + 1


def check_context_length(model: PreTrainedModel, name: str, context_length: int) -> None:
    """Raise InputError if windows of this length are longer than the model can read."""
    limit = n_positions(model)
    if limit is not None and context_length > limit:
        raise InputError(
            f"corpus.context_length = {context_length}, but model {name} reads at most {limit} tokens at once; set "
            f"corpus.context_length to {limit} or less"
        )


def n_embeddings(model: PreTrainedModel) -> int:
    """Rows of the input embedding: ids 0 .. n-1 can be read."""
    table: Any = model.get_input_embeddings()
    return int(getattr(table, "num_embeddings", None) or table.weight.shape[0])


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise MismatchError if the tokenizer's own vocabulary, added tokens left aside, goes beyond the embedding."""
    n, added = n_embeddings(model), tokenizer.added_tokens_decoder
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= n and index not in added}
    if beyond:
        last = max(beyond)
        raise MismatchError(
            f"the tokenizer of model {name} goes up to id {last} ({beyond[last]!r}), but the model's embedding has "
            f"{n} rows: they do not belong together; put the model's own tokenizer beside its weights"
        )


def unreadable_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Added tokens, by id, that the model's embedding has no row for. A tokenizer may name tokens that only another
    model of the family has (Gemma 3 1B: `<image_soft_token>`)."""
    n = n_embeddings(model)
    return {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if index >= n}


def spelled_unreadable(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[int]]
) -> dict[int, str]:
    """For the texts, by index, whose ids the model cannot all read: why, in words."""
    unreadable = unreadable_tokens(model, tokenizer)
    if not unreadable:
        return {}
    found = {i: next((index for index in ids if index in unreadable), None) for i, ids in enumerate(texts)}
    return {
        i: f"spells {unreadable[index]!r}, which the model has no embedding for"
        for i, index in found.items()
        if index is not None
    }
