"""Finds what a person would not expect of how a model reads the configured corpus, from its first documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from autointerp.config import CorpusConfig
from autointerp.corpus.chat_template import chat_renderer
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import read_documents
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.token_text_check import text_misfit
from autointerp.corpus.windows import bos_prefix, stand_in_for_bos, work_units
from autointerp.errors import InputError
from autointerp.model.input_limits import check_context_length, unreadable_tokens
from autointerp.model.load import LoadedModel
from autointerp.records import Window

CHECKED_DOCUMENTS, CHECKED_CHARACTERS = 20, 8000
"""The text on which token text is checked: so many documents, and so much of each."""


def check_windows(loaded: LoadedModel, corpus: CorpusConfig) -> None:
    """Raise InputError if the model cannot read the windows that this configuration makes: they are too long, or begin
    with a token that it has no embedding for."""
    check_context_length(loaded.model, loaded.name, corpus.context_length)
    unreadable = unreadable_tokens(loaded.model, loaded.tokenizer)
    for index in bos_prefix(loaded.tokenizer, corpus):
        if index in unreadable:
            raise InputError(
                f"every window would begin with {unreadable[index]!r}, which model {loaded.name} has no embedding for; "
                'set corpus.prepend_bos = "never"'
            )


def reading_notes(loaded: LoadedModel, text: TokenText, corpus: CorpusConfig) -> Iterator[str]:
    """In words: another token stands in for a BOS, the model has no embedding for tokens, token text is not what the
    tokenizer decodes."""
    tokenizer, unreadable = loaded.tokenizer, unreadable_tokens(loaded.model, loaded.tokenizer)
    if bos_prefix(tokenizer, corpus) and tokenizer.bos_token_id is None:
        _, stand_in = stand_in_for_bos(tokenizer) or (0, "")
        yield f"the tokenizer has no BOS: every window begins with {stand_in!r}, as in TransformerLens"
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
