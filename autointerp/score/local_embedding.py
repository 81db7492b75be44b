"""`embedding` with a model on this machine: is the label nearer to activating contexts than to silent ones?

A context's number is its cosine with the label, both embedded by a sentence-transformers model; see auroc_rows.py for
the rows. The contexts are those that detection asks about. No I/O here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autointerp.ask.prompts import PromptTemplate
from autointerp.score.auroc import number_answer
from autointerp.score.choices import Example
from autointerp.score.measured_tasks import listed, number
from autointerp.score.score_rows import Answer


def similarity_payload(
    label: str, examples: Sequence[Example], template: PromptTemplate, embedding_model: str
) -> dict[str, Any]:
    """Of a task of kind `similarity`."""
    return {
        "query": template.block("plain_query", label=label),
        "texts": [e.context.text for e in examples],
        "model": embedding_model,
    }


def similarity_answers(examples: Sequence[Example], result: dict[str, Any]) -> list[Answer]:
    """The cosine of every context with the label."""
    values = listed(result, "cosine", len(examples))
    return [_answer(example, number(value)) for example, value in zip(examples, values, strict=True)]


def _answer(example: Example, cosine: float | None) -> Answer:
    if cosine is None:
        return number_answer(example, None, "no_tokens", "the embedding is not a number")
    return number_answer(example, cosine)
