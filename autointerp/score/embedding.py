"""`embedding` (Paulo et al. 2024): does the label lie nearer to the contexts where its feature is active?

Label and contexts are embedded, and a context's number is the cosine of the two vectors; see auroc.py for the rows. No
judge is asked, so this is cheap, and a first look at many labels. The contexts are those that detection asks about. The
model is an endpoint's, or a sentence-transformers model on this machine, which `autointerp measure` runs. The scoring
method is 'cosine_ordinary' for both ('cosine' where all silent contexts counted in the headline).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autointerp.ask.chat import ReplyError
from autointerp.ask.forecast import Estimate
from autointerp.ask.job import BLOCK
from autointerp.ask.prompts import PromptTemplate, load_template
from autointerp.ask.question import Asked, Asker
from autointerp.config import EndpointConfig, ScoreConfig
from autointerp.errors import InputError
from autointerp.llm.requests import Reply, Request
from autointerp.records import Explanation, Score
from autointerp.score.auroc import auroc_rows, number_answer
from autointerp.score.detection_fuzzing import ExampleLoader, Questioned
from autointerp.score.detection_questions import Example
from autointerp.score.measurements import ContextTasks, Measured, answers_of
from autointerp.score.score_rows import Answer
from autointerp.score.scorer import MadeBy, Needs, Run, Work, a_few
from autointerp.tasks import Similarity, SimilarityAnswer

EMBEDDING = "embedding"
COSINE = "cosine_ordinary"
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
    """The endpoint, whose `model` is the embedding model."""

    @classmethod
    def of(cls, endpoint: EndpointConfig, prompts: Path | None = None) -> Embedder:
        return cls(template_of(prompts), endpoint)

    def query(self, label: str) -> str:
        return self.template.block("query", label=" ".join(label.split()))

    def text(self, example: Example) -> str:
        """Never empty, which endpoints refuse."""
        return self.template.block("text", text=example.context.text) or " "

    def label_question(self, label: str, dictionary_id: int, feature: int) -> Texts:
        return Texts(self.request([self.query(label)], dictionary_id, feature))

    def context_question(self, examples: Sequence[Example], dictionary_id: int) -> ContextTexts:
        """Says nothing of the label, so all labels of a feature share the request, and the ledger its reply."""
        return ContextTexts(self, examples, dictionary_id)

    def request(self, texts: list[str], dictionary_id: int, feature: int) -> Request:
        body = {"model": self.endpoint.model, "input": texts, "encoding_format": "float"}
        return Request("embeddings", body, EMBEDDING, dictionary_id=dictionary_id, feature=feature)


@dataclass(frozen=True)
class Texts:
    """What are the vectors of these texts?"""

    request: Request

    def read(self, reply: Reply) -> list[list[float]]:
        if reply.vectors is None:
            raise ReplyError("no_vectors", "the reply holds no embeddings")
        return reply.vectors

    def again(self, reply: str, problem: str) -> Request | None:
        return None  # the same texts have the same vectors


@dataclass(frozen=True)
class ContextTexts:
    """What are the vectors of these contexts?"""

    embedder: Embedder
    examples: Sequence[Example]
    dictionary_id: int

    @property
    def request(self) -> Request:
        texts = [self.embedder.text(e) for e in self.examples]
        return self.embedder.request(texts, self.dictionary_id, self.examples[0].context.feature)

    def read(self, reply: Reply) -> list[list[float]]:
        return Texts(self.request).read(reply)

    def again(self, reply: str, problem: str) -> Request | None:
        return None

    def halves(self) -> tuple[ContextTexts, ContextTexts] | None:
        half = len(self.examples) // 2
        if half == 0:
            return None
        return replace(self, examples=self.examples[:half]), replace(self, examples=self.examples[half:])


def template_of(prompts: Path | None = None) -> PromptTemplate:
    return load_template(f"score/{EMBEDDING}", prompts)


def in_batches(examples: Sequence[Example]) -> list[list[Example]]:
    """Each context once, in an order that does not depend on the order in which the examples were drawn, so that equal
    contexts give equal requests."""
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


def similarity_asked(
    label: str, examples: Sequence[Example], template: PromptTemplate, embedding_model: str
) -> Similarity:
    """The contexts beside the label."""
    return Similarity(
        query=template.block("plain_query", label=label),
        texts=[e.context.text for e in examples],
        model=embedding_model,
    )


def similarity_answers(examples: Sequence[Example], result: dict[str, Any]) -> list[Answer]:
    """The cosine of every context with the label."""
    cosines = SimilarityAnswer.parse_result(result, len(examples)).cosine
    return [_similarity_answer(*one) for one in zip(examples, cosines, strict=True)]


def _similarity_answer(example: Example, cosine: float | None) -> Answer:
    if cosine is None:
        return number_answer(example, None, "no_tokens", "the embedding is not a number")
    return number_answer(example, cosine)


# --- the scorer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbeddingScorer:
    name: str = EMBEDDING
    reads_label: bool = True

    def needs(self, run: Run) -> Needs:
        check_model(run.config)
        return Needs(measured=True) if is_local(run.config) else Needs(_endpoint(run.config))

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        return (MadeBy(COSINE, run.config.embedding_model, template_of(run.job.prompts).sha256),)

    async def start(self, run: Run, targets: Sequence[Explanation], asker: Asker | None) -> Work[Any]:
        return self._local(run, targets) if asker is None else self._asking(run, targets, asker)

    def _asking(self, run: Run, targets: Sequence[Explanation], asker: Asker) -> Work[Questioned]:
        (by,) = self.made_by(run)
        embedder = Embedder.of(_endpoint(run.config), run.job.prompts)

        async def score(item: Questioned) -> list[Score]:
            answers = await _answers(run, embedder, asker, item) if item.examples else []
            return auroc_rows(run.identity(item.told.explanation, by), self.name, answers)

        return Work(by, ExampleLoader(run, targets), score, calls=6)

    def _local(self, run: Run, targets: Sequence[Explanation]) -> Work[Measured[Sequence[Example]]]:
        (by,) = self.made_by(run)
        template = template_of(run.job.prompts)

        def ask(label: str, examples: Sequence[Example]) -> Similarity:
            return similarity_asked(label, examples, template, run.config.embedding_model)

        async def score(item: Measured[Sequence[Example]]) -> list[Score] | None:
            answers = answers_of(item, similarity_answers)
            identity = run.identity(item.told.explanation, by)
            return None if answers is None else auroc_rows(identity, self.name, answers)

        return Work(by, ContextTasks(run, targets, ask), score, block=BLOCK)

    def estimate(self, run: Run, targets: Sequence[Explanation]) -> Estimate:
        """The contexts of a feature are counted once for all its labels."""
        if is_local(run.config):
            return Estimate()
        embedder = Embedder.of(_endpoint(run.config), run.job.prompts)
        drawn = ExampleLoader(run, targets)(a_few(targets))
        some = [item for item in drawn if item.examples]
        labels, features = (n / len(drawn) for n in (len(targets), len({e.feature for e in targets})))
        calls = labels * len(some) + features * sum(len(in_batches(item.examples)) for item in some)
        read = labels * sum(len(embedder.query(item.told.label)) for item in some)
        read += features * sum(len(embedder.text(e)) for item in some for e in item.examples)
        return Estimate(calls, read)


EMBEDDING_SCORER = EmbeddingScorer()


def _endpoint(config: ScoreConfig) -> EndpointConfig:
    """The endpoint for embeddings, which is the scorers' endpoint with another model."""
    return replace(config, model=config.embedding_model)


async def _answers(run: Run, embedder: Embedder, asker: Asker, item: Questioned) -> list[Answer]:
    dictionary_id, feature = run.job.dictionary_id, item.told.explanation.feature
    label = await asker.ask(embedder.label_question(item.told.label, dictionary_id, feature))
    if label.value is None:  # without it, its contexts' vectors are of no use
        return [number_answer(e, None, label.status, label.error) for e in item.examples]
    batches = [embedder.context_question(some, dictionary_id) for some in in_batches(item.examples)]
    return [
        _compared(label.value[0], example, asked, i)
        for batch, asked in await asker.ask_divided(batches)
        for i, example in enumerate(batch.examples)
    ]


def _compared(label: list[float], example: Example, asked: Asked[list[list[float]]], place: int) -> Answer:
    if asked.value is None:
        return number_answer(example, None, asked.status, asked.error)
    try:
        return number_answer(example, cosine(label, asked.value[place]))
    except ReplyError as problem:
        return number_answer(example, None, problem.status, str(problem))
