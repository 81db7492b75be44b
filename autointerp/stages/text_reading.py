"""Finds what a person would not expect of how a model reads the configured corpus, from its first documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import read_documents
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.token_text_check import text_misfit
from autointerp.corpus.windows import bos_prefix, chat_renderer, stand_in_for_bos, work_units
from autointerp.errors import InputError
from autointerp.model.input_limits import unreadable_tokens
from autointerp.model.load import LoadedModel
from autointerp.records import Window

CHECKED_DOCUMENTS, CHECKED_CHARACTERS = 20, 8000
"""The text on which token text is checked: so many documents, and so much of each."""


def reading_notes(loaded: LoadedModel, text: TokenText, corpus: CorpusConfig) -> Iterator[str]:
    """In words: another token stands in for a BOS, the model has no embedding for tokens, token text is not what the
    tokenizer decodes. Raises InputError where every window would begin with a token that the model cannot read."""
    tokenizer, unreadable = loaded.tokenizer, unreadable_tokens(loaded.model, loaded.tokenizer)
    prefix, stand_in = bos_prefix(tokenizer, corpus), stand_in_for_bos(tokenizer)
    if unreadable.keys() & set(prefix):
        raise InputError(
            f"every window would begin with {unreadable[prefix[0]]!r}, which the model has no embedding for; set "
            'corpus.prepend_bos = "never"'
        )
    if prefix and tokenizer.bos_token_id is None and stand_in is not None:
        yield f"the tokenizer has no BOS: every window begins with {stand_in[1]!r}, as in TransformerLens"
    if unreadable:
        listed = ", ".join(repr(token) for token in list(unreadable.values())[:3])
        yield (
            f"the model has no embedding for {len(unreadable)} of the tokenizer's added tokens ({listed}): windows of "
            "text that spells them are left out"
        )
    misfit = text_misfit(text, first_windows(loaded, corpus))
    if misfit is not None:
        yield misfit


def first_windows(loaded: LoadedModel, corpus: CorpusConfig) -> Iterator[Window]:
    """The windows at the beginning of the corpus's first documents."""
    tokenizer = loaded.tokenizer
    documents = read_documents(corpus, CorpusReport(), chat_renderer(tokenizer))
    for document in islice(documents, CHECKED_DOCUMENTS):
        short = replace(document, text=document.text[:CHECKED_CHARACTERS])
        for unit in work_units(iter([short]), tokenizer, replace(corpus, max_tokens=None)):
            yield from unit.windows
