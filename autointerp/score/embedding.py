"""The embedding scorer (Paulo et al. 2024): does the label lie nearer to the contexts where its feature is active?

Label and contexts are embedded, and a context's score is the cosine of the two vectors. No judge is asked, so this is
cheap, and a first look at many labels. The contexts are those that detection asks about (choices.choose_examples).

No I/O here: requests are built, vectors compared and scored; embedding_run.py asks. The method is 'cosine'; the rows
are those of auroc_rows.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autointerp.ask.chat import ReplyError
from autointerp.ask.prompts import PromptTemplate, load_template
from autointerp.config import EndpointConfig, ScoreConfig
from autointerp.errors import InputError
from autointerp.llm.requests import Reply, Request
from autointerp.score.choices import Example

EMBEDDING = "embedding"
COSINE = "cosine"
LOCAL = "local:"
INPUTS_PER_CALL = 8
"""A vector is up to 100 kB of JSON (4,096 numbers), and a reply is to stay well below llm.max_reply_bytes."""


def is_local(config: ScoreConfig) -> bool:
    """Whether the configured model is a folder on this machine, which `measure` reads, and not an endpoint's."""
    return config.embedding_model.startswith(LOCAL)


def check_model(config: ScoreConfig) -> None:
    """InputError where no model is named."""
    if not config.embedding_model.removeprefix(LOCAL):
        raise InputError(
            "scorer 'embedding' compares embeddings; set score.embedding_model to a model that score.base_url offers "
            'under /embeddings, or to "local:FOLDER" of a sentence-transformers model'
        )


# --- requests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedder:
    """Builds requests for one model.

    What is embedded is plain text, without the fences of other prompts: a model that embeds obeys nothing, and quoting
    would be part of what it reads.
    """

    template: PromptTemplate
    endpoint: EndpointConfig
    """Whose `model` is the embedding model."""

    @classmethod
    def of(cls, endpoint: EndpointConfig, prompts: Path | None = None) -> Embedder:
        return cls(template_of(prompts), endpoint)

    def query(self, label: str) -> str:
        return self.template.block("query", label=" ".join(label.split()))

    def text(self, example: Example) -> str:
        """Never empty, which endpoints refuse."""
        return self.template.block("text", text=example.context.text) or " "

    def label_question(self, label: str, dictionary_id: int, feature: int) -> Texts:
        return self._texts([self.query(label)], dictionary_id, feature)

    def context_question(self, examples: Sequence[Example], dictionary_id: int) -> Texts:
        """Says nothing of the label, so all labels of a feature share the request, and the ledger its reply."""
        return self._texts([self.text(e) for e in examples], dictionary_id, examples[0].context.feature)

    def _texts(self, texts: list[str], dictionary_id: int, feature: int) -> Texts:
        body = {"model": self.endpoint.model, "input": texts, "encoding_format": "float"}
        return Texts(Request("embeddings", body, EMBEDDING, dictionary_id=dictionary_id, feature=feature))


@dataclass(frozen=True)
class Texts:
    """A few texts to embed, as a question (see asking.py); its answer is a vector for each."""

    request: Request

    def read(self, reply: Reply) -> list[list[float]]:
        if reply.vectors is None:
            raise ReplyError("no_vectors", "the reply holds no embeddings")
        return reply.vectors

    def again(self, reply: str, problem: str) -> Request | None:
        return None  # the same texts have the same vectors


def template_of(prompts: Path | None = None) -> PromptTemplate:
    return load_template(f"score/{EMBEDDING}", prompts)


def in_batches(examples: Sequence[Example]) -> list[list[Example]]:
    """Each context once and in an order of its own, whatever order the examples were drawn in: the same contexts are
    the same requests."""
    ordered = sorted(examples, key=lambda e: e.context.context_id)
    return [ordered[i : i + INPUTS_PER_CALL] for i in range(0, len(ordered), INPUTS_PER_CALL)]


# --- scores ----------------------------------------------------------------------------------------------------------


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """-1..1. Raises ReplyError where the vectors are of different lengths, or one has no direction."""
    if len(one) != len(other):
        raise ReplyError("vector_length", f"vectors of {len(one)} and of {len(other)} numbers cannot be compared")
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    # Scaled first: the squares of very small or large numbers leave the range of a float.
    tops = float(np.abs(a).max(initial=0.0)), float(np.abs(b).max(initial=0.0))
    if 0.0 in tops:
        raise ReplyError("zero_vector", "an embedding is all zeros")
    a, b = a / tops[0], b / tops[1]
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))
