"""Cuts documents into token windows, and groups them into work units that depend on the corpus alone.

A window is one model input: an optional BOS and consecutive tokens of one document. A work unit is a run of whole
documents. What it holds does not depend on which other units are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.errors import InputError
from autointerp.records import Document, Window, WorkUnit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZE_CHARACTERS = 500_000
"""Characters tokenised in one call: enough to keep the tokenizer's threads busy, few enough to hold twice."""
_DEFAULT_EOS = "<|endoftext|>"
NAME_A_BOS = "name the token as bos_token in the tokenizer_config.json of a copy of the model's folder"
"""What to do where nothing says which token stands before a text."""
SHORTEST_WINDOW = 2
"""Corpus tokens. In a window of one token, the token would have no context."""


def bos_prefix(tokenizer: PreTrainedTokenizerBase, config: CorpusConfig) -> list[int]:
    """The ids put before every window: [bos] or [].

    For `always`, the token of `stand_in_for_bos` stands before windows when the tokenizer has no BOS. Raises InputError
    when it has no such token either.
    """
    if config.prepend_bos == "never":
        return []
    if tokenizer.bos_token_id is not None:
        return [int(tokenizer.bos_token_id)]
    if config.prepend_bos == "auto":
        return []
    found = stand_in_for_bos(tokenizer)
    if found is None:
        raise InputError(
            f'corpus.prepend_bos = "always", but the tokenizer has neither a BOS nor an EOS token; {NAME_A_BOS}, or '
            'use "auto" or "never" for windows without one'
        )
    return [found[0]]


def stand_in_for_bos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, str] | None:
    """(id, text) of the token that TransformerLens, and with it SAELens, puts before a text for a tokenizer without
    BOS, such as Qwen's: the EOS, or <|endoftext|>. None if the tokenizer has neither."""
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id), str(tokenizer.eos_token)
    index = tokenizer.get_vocab().get(_DEFAULT_EOS)
    return None if index is None else (int(index), _DEFAULT_EOS)


def work_units(
    documents: Iterator[Document],
    tokenizer: PreTrainedTokenizerBase,
    config: CorpusConfig,
    *,
    wanted: Callable[[int], bool] = lambda index: True,
    report: CorpusReport | None = None,
    unreadable: Collection[int] = (),
) -> Iterator[WorkUnit]:
    """The units whose index is `wanted`, in order. Index i is always the i-th unit of the whole corpus.

    A unit ends with the document that brings it to `unit_characters`. Unwanted units are not tokenised, unless
    `max_tokens` is set. It counts the corpus tokens of all units (those in windows, without BOS) and ends the corpus
    after the document that reaches it. Documents of one token are counted in `report` as one_token. Windows that hold
    an `unreadable` id, one that the model has no embedding for, are left out, and their documents are counted as
    unreadable_token.
    """
    prefix = bos_prefix(tokenizer, config)
    if len(prefix) + SHORTEST_WINDOW > config.context_length:
        raise InputError(f"corpus.context_length = {config.context_length} leaves no room for text")
    left, unread = config.max_tokens, frozenset(unreadable)
    for index, unit in enumerate(_grouped(documents, config.unit_characters)):
        if not wanted(index) and left is None:
            continue
        windows: list[Window] = []
        n_documents = 0
        for document, ids in _tokenized(unit, tokenizer):
            n_documents += 1
            cut = _windows(document, ids, prefix, config.context_length)
            if not cut and ids and report is not None:
                report.skip("one_token", document.name)
            readable = [w for w in cut if unread.isdisjoint(w.token_ids)] if unread else cut
            if len(readable) < len(cut) and report is not None:
                report.skip("unreadable_token", document.name)
            windows += readable
            if left is not None:
                left -= sum(len(window.token_ids) - window.n_prefix for window in readable)
                if left <= 0:
                    break
        if wanted(index):
            yield WorkUnit(index, windows, n_documents)
        if left is not None and left <= 0:
            return


def _grouped(documents: Iterator[Document], unit_characters: int) -> Iterator[list[Document]]:
    unit: list[Document] = []
    n_characters = 0
    for document in documents:
        unit.append(document)
        n_characters += len(document.text)
        if n_characters >= unit_characters:
            yield unit
            unit, n_characters = [], 0
    if unit:
        yield unit


def _tokenized(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Document, list[int]]]:
    batch: list[Document] = []
    n_characters = 0
    for position, document in enumerate(documents):
        batch.append(document)
        n_characters += len(document.text)
        if n_characters >= TOKENIZE_CHARACTERS or position == len(documents) - 1:
            yield from zip(batch, token_ids([d.text for d in batch], tokenizer), strict=True)
            batch, n_characters = [], 0


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of each text, of any length, without special tokens.

    The Rust tokenizer is called directly if there is one. It gives the same ids in two thirds of the time, since it
    makes no offsets.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
    if backend is None:
        encoded = tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, truncation=False, verbose=False
        )
        return [list(ids) for ids in encoded["input_ids"]]
    # A tokenizer.json may have truncation or padding switched on.
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _windows(document: Document, ids: list[int], prefix: list[int], context_length: int) -> list[Window]:
    body = context_length - len(prefix)
    return [
        Window(document.name, start, document.split, [*prefix, *ids[start : start + body]], len(prefix))
        for start in range(0, len(ids) - SHORTEST_WINDOW + 1, body)
    ]
