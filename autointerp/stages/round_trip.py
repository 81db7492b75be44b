"""A round trip through an endpoint: a tiny store of the shipped demo model is made in a temporary folder, and a few of
its features are labelled and scored, by the stages' own functions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from autointerp.ask.explanation_row import blank_row, with_meanings
from autointerp.ask.job import Job, Outcome
from autointerp.config import (
    Config,
    CorpusConfig,
    EvidenceConfig,
    ExplainConfig,
    HarvestConfig,
    LlmConfig,
    ModelConfig,
    SaeConfig,
    ScoreConfig,
    StoreConfig,
    TrainConfig,
)
from autointerp.errors import AutointerpError, StoppedError
from autointerp.explain import explaining
from autointerp.records import VALUED_STATUSES
from autointerp.resources import data_folder
from autointerp.score import scoring
from autointerp.stages import pipeline
from autointerp.stages.checks import Lack
from autointerp.stages.labelling import Labelling
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.terminal import Terminal

FEATURES = 2
CONTEXTS = 1
TOKENS = 8
"""Tokens of a context. They are few, so that a small server on a CPU is through within minutes."""
SHOWN, LABEL_TOKENS = 4, 100
"""Contexts that the explainer sees, and the most tokens of its reply."""
EXPLAINER = "contexts"
_JUDGED = "combined"
"""The name under which the labels of rules are judged. Under their own name simulation would follow the rule and ask
nobody; and labels by the endpoint may not be there, or may say nothing."""
_OF_THE_ENDPOINT = frozenset({"gave_up", "bad_reply", "ctx_too_long"})
"""Statuses by which an endpoint, and not what its model wrote, left a row without a value."""


@dataclass(frozen=True)
class TinyStore:
    """A dictionary with a few labels, to be labelled and scored by an endpoint."""

    config: Config
    store: Store
    terminal: Terminal

    def explained(self, explain: ExplainConfig, llm: LlmConfig) -> str:
        """What the explainer made of the features, with a label as an example."""
        config = replace(explain, explainer=EXPLAINER, contexts=SHOWN, shape_labels=False, max_tokens=LABEL_TOKENS)
        job = self._job(llm)
        outcome = asyncio.run(explaining.explain(job, config, self.config.score))
        told = _told("label", outcome)
        rows = self.store.explanations_of(job.dictionary_id, self._features(job))
        labels = [e.text for of in rows.values() for e in of if e.explainer == EXPLAINER and e.text]
        return f"{told}, such as {labels[-1]!r}" if labels and not isinstance(told, Lack) else told

    def scored(self, scorer: str, score: ScoreConfig, llm: LlmConfig) -> str:
        """What became of the scores of the labels."""
        config = replace(
            score, scorers=(scorer,), controls=(), contexts=CONTEXTS, repeat_share=0.0, max_tokens=LABEL_TOKENS
        )
        return _told("score", asyncio.run(scoring.score(self._job(llm), _JUDGED, config)))

    def _job(self, llm: LlmConfig) -> Job:
        chosen = Selection(where="status = 'live' AND density BETWEEN 0.02 AND 0.3", limit=FEATURES)
        config = replace(self.config, llm=llm)
        work = Labelling(config, self.store, "check", chosen, self.terminal)
        (row,) = self.store.dictionaries()
        return work.job(row)

    def _features(self, job: Job) -> list[int]:
        return self.store.selected_features(job.dictionary_id, job.selection)

    def label_by_rules(self) -> None:
        """Give the features labels that need no endpoint."""
        job, rules = self._job(LlmConfig()), ExplainConfig(explainer="patterns", shape_labels=False)
        asyncio.run(explaining.explain(job, rules, self.config.score))
        for rows in self.store.explanations_of(job.dictionary_id, self._features(job)).values():
            for row in [row for row in rows if row.text]:
                judged = replace(rules, explainer=_JUDGED)
                blank = blank_row(job, judged, row.feature, row.model, row.template_sha256, row.evidence_sha256)
                self.store.insert_explanations([with_meanings(blank, row)])


@contextmanager
def tiny_store(terminal: Terminal) -> Iterator[TinyStore]:
    """Train and harvest a tiny dictionary, which takes a few seconds, in a folder that is removed afterwards. Raises
    InputError where torch is not installed."""
    with TemporaryDirectory(prefix="autointerp-endpoint-") as folder:
        config = Config(
            model=ModelConfig(name=str(data_folder() / "demo_model"), device="cpu", dtype="float32"),
            corpus=CorpusConfig(source="stdlib", context_length=64, max_tokens=60_000, unit_characters=60_000),
            sae=(SaeConfig(name="tiny", hookpoint="model.layers.2", d_sae=64, k=4),),
            train=TrainConfig(tokens=20_000, batch_size=512, lr=3e-3, warmup_steps=5, buffer_vectors=8192),
            harvest=HarvestConfig(
                context_tokens=TOKENS, top_contexts=4, sampled_contexts=8, negatives=4,
                negative_pool_windows=256, known_tiles=64,
            ),
            evidence=EvidenceConfig(methods=()),
            explain=ExplainConfig(explainer="patterns"),
            store=StoreConfig(path=str(Path(folder) / "tiny.duckdb"), snapshot_seconds=0.0),
        )  # fmt: skip
        quiet = terminal.silent()
        pipeline.train(config, None, quiet)
        pipeline.harvest(config, None, quiet)
        with Store.open(Path(config.store.path)) as store:
            tiny = TinyStore(config, store, quiet)
            tiny.label_by_rules()
            yield tiny


def _told(what: str, outcome: Outcome) -> str:
    """The rows of a stage. A Lack where no row has a value because of what the model wrote; AutointerpError where it is
    because of the endpoint."""
    counts = ", ".join(f"{n} {status}" for status, n in sorted(outcome.statuses.items())) or "nothing to do"
    told = f"{outcome.done} {what} rows: {counts}"
    if any(outcome.statuses[status] for status in (*VALUED_STATUSES, "abstained")):
        return told
    if outcome.waiting or not outcome.done:
        raise StoppedError(f"{told}; the endpoint has not answered yet")
    if all(status in _OF_THE_ENDPOINT for status in outcome.statuses):
        raise AutointerpError(f"{told}; the endpoint gave no usable reply")
    return Lack(f"{told}; the endpoint answers, but what this model writes cannot be read. A larger one may do")
