"""`surprisal`: does a language model that was told the label find the activating contexts less surprising (Paulo et
al. 2024)?

A context's number is the mean nats per token that the label saves: those of its tokens after a beginning without the
label, less those after a beginning with it. The score is how well this number tells activating from silent contexts
(AUROC; see auroc_rows.py for the rows). The contexts are those that detection asks about. The method is
'language_model'; no LLM endpoint is asked. No I/O here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autointerp.ask.prompts import PromptTemplate
from autointerp.score.auroc import number_answer
from autointerp.score.choices import Example
from autointerp.score.measured_tasks import listed, number
from autointerp.score.score_rows import Answer

SURPRISAL = "surprisal"
LANGUAGE_MODEL = "language_model"
SUBJECT_MODEL = "subject model"
"""Stands in `scores.model` where score.language_model is not set."""


def surprisal_payload(
    label: str, examples: Sequence[Example], template: PromptTemplate, language_model: str
) -> dict[str, Any]:
    """Of a task of kind `surprisal`: the beginning with the label, then the one without."""
    # On one line, as in the other beginning; what the language model reads is no order to it.
    described = template.block("described", label=" ".join(label.split()))
    return {
        "prefixes": [described, template.block("undescribed")],
        "texts": [e.context.text for e in examples],
        "language_model": language_model,
    }


def surprisal_answers(examples: Sequence[Example], result: dict[str, Any]) -> list[Answer]:
    """Nats per token that the label saves, for every context."""
    with_label, without = (listed({"nll": one}, "nll", len(examples)) for one in listed(result, "nll", 2))
    return [_answer(*one) for one in zip(examples, with_label, without, strict=True)]


def _answer(example: Example, with_label: Any, without: Any) -> Answer:
    told, untold = number(with_label), number(without)
    if told is None or untold is None:
        return number_answer(example, None, "no_tokens", "the language model reads no token in it")
    return number_answer(example, untold - told)
