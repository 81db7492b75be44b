"""compiled:NAME: the labels of the explainer NAME written as rules, so that they can be scored without an LLM.

An LLM is shown the words of a label and no evidence, and writes them in the rule language. The row has the label's own
text and names the label in `derived_from`: its score is that of the label, as far as the rule says the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.ask.explanation_row import blank_row, with_meanings
from autointerp.ask.forecast import CHARACTERS_PER_TOKEN, Estimate
from autointerp.ask.job import Blocks, run_pool
from autointerp.ask.prompts import load_template
from autointerp.ask.question import ask
from autointerp.config import ExplainConfig
from autointerp.errors import InputError
from autointerp.explain.asking import a_few_of, form_taken, paid, seed_notes, status_without, why_without
from autointerp.explain.compile_question import CompilePrompt, CompileQuestion
from autointerp.explain.evidence_sections import Section
from autointerp.explain.explainer import ExplainRun, OpenRun
from autointerp.llm.client import LlmClient
from autointerp.records import Explanation, Side
from autointerp.rules.labels import COMPILED
from autointerp.rules.reference import Reference

_REPLY_TOKENS = 300
"""Tokens of a reply, for forecasts; a model that thinks aloud writes more."""


@dataclass(frozen=True)
class Compiled:
    """The explainer compiled:NAME."""

    of: str
    """The explainer whose labels are compiled."""
    side: Side | None = "input"
    reads: tuple[Section, ...] = ()

    @property
    def name(self) -> str:
        return f"{COMPILED}{self.of}"

    @property
    def is_free(self) -> bool:
        return False

    def made_of(self, config: ExplainConfig) -> tuple[str, ...]:
        return ()  # its labels exist already: nothing is to be gathered or asked for them

    def check(self, run: ExplainRun) -> None:
        if not run.config.model:
            raise InputError("compiling labels asks an LLM; set explain.model (and explain.base_url)")

    def _prompt(self, run: ExplainRun) -> CompilePrompt:
        template = load_template("explain/compile", run.job.prompts)
        return CompilePrompt(template, run.config, Reference(run.job).near, run.config.reply == "json")

    def digest(self, run: ExplainRun) -> str:
        template = load_template("explain/compile", run.job.prompts)
        known = "near words" if Reference(run.job).has_near_words else "no near words"
        return hashlib.sha256(json.dumps([COMPILED, template.sha256, known]).encode()).hexdigest()

    def pending(self, run: ExplainRun) -> list[int]:
        """The chosen features whose latest label has not been compiled yet. Raises InputError where the explainer has
        no labels at all."""
        store, number = run.job.store, run.job.dictionary_id
        chosen = store.selected_features(number, run.job.selection)
        labels = store.latest_label_ids(number, self.of, None if run.job.selection.is_all else chosen)
        if not labels:
            raise InputError(
                f"no chosen feature has a label by {self.of!r} to compile; `autointerp status` lists those there are"
            )
        done = store.labels_made_from(number, self.name, run.config.model, self.digest(run), run.config.seed)
        return [feature for feature in chosen if feature in labels and labels[feature] not in done]

    async def explain(self, work: OpenRun, features: Sequence[int]) -> None:
        run, digest = work.run, self.digest(work.run)
        client = await work.client(run.config)
        is_json, sends_seed = await form_taken(run, run.config, client)
        prompt = dataclasses.replace(self._prompt(run), is_json=is_json, sends_seed=sends_seed)

        async def compile_one(label: Explanation) -> None:
            await work.write(await _compiled(run, prompt, client, label, digest))

        blocks = Blocks(features, lambda block: self._labels(run, block))
        await run_pool(blocks, min(run.job.in_flight, len(features)), compile_one, client.stop)

    def _labels(self, run: ExplainRun, features: Sequence[int]) -> list[Explanation]:
        """The label of each feature."""
        store, number = run.job.store, run.job.dictionary_id
        ids = store.latest_label_ids(number, self.of, features)
        held = store.explanations_of(number, features)
        found = {label.explanation_id: label for labels in held.values() for label in labels}
        return [found[ids[feature]] for feature in features]

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        if not features:
            return []
        prompt, some = self._prompt(run), self._labels(run, a_few_of(features))
        requests = [prompt.request(one) for one in some if _is_asked_about(one)]
        written = _REPLY_TOKENS * CHARACTERS_PER_TOKEN * len(requests)
        return [(run.config.model, Estimate.of(requests, len(features) / len(some), written))]


def _is_asked_about(label: Explanation) -> bool:
    """Whether it says something that can be seen in the text before a token."""
    return label.side != "output"


async def _compiled(
    run: ExplainRun, prompt: CompilePrompt, client: LlmClient, label: Explanation, digest: str
) -> Explanation:
    """The row of one label. What the label says of the output is kept beside the rule, which is not about it."""
    made_of = hashlib.sha256(json.dumps([label.explanation_id]).encode()).hexdigest()
    row = blank_row(run.job, run.config, label.feature, run.config.model, digest, made_of)
    row = dataclasses.replace(row, derived_from=[label.explanation_id])
    if not _is_asked_about(label):
        why = "the label says only what the feature leads to, which cannot be seen in the text before it"
        return dataclasses.replace(row, status="abstained", error=why)
    asked = await ask(client, CompileQuestion(prompt, label))
    row, notes = paid(row, asked.replies), seed_notes(prompt.sends_seed)
    if asked.status != "ok":
        why = why_without(asked, "rule")
        return dataclasses.replace(row, status=status_without(asked), error="; ".join([*notes, why]))
    if asked.value is None:
        why = "the LLM found nothing in the label that can be seen in a text"
        return dataclasses.replace(row, status="abstained", error="; ".join([*notes, why]))
    return dataclasses.replace(with_meanings(row, label, "; ".join(notes) or None), rule=asked.value.to_json())
