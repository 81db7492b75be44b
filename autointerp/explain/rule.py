"""rule: an LLM writes a rule for each feature, which is run on the text, mended by its mistakes and scored for free.

The rule is data in the rule language (rules/language); rule_rounds.py says how it is made. Beside it stand the tables
that `patterns` learns, so that the LLM need not list what a count can tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autointerp.ask.forecast import CHARACTERS_PER_TOKEN, Estimate
from autointerp.ask.job import Blocks, run_pool
from autointerp.ask.prompts import load_template
from autointerp.config import ExplainConfig
from autointerp.errors import InputError
from autointerp.explain.asking import a_few_of, form_taken
from autointerp.explain.evidence_sections import Section
from autointerp.explain.explainer import EVERY_CONTEXT, ExplainRun, OpenRun
from autointerp.explain.rule_mistakes import Mistakes, ReadText, marked_text
from autointerp.explain.rule_question import RulePrompt
from autointerp.explain.rule_rounds import RuleWriter
from autointerp.explain.rule_select import SelectTexts
from autointerp.explain.rule_texts import RuleTexts, StudiedFeature
from autointerp.records import Context, FeatureEvidence, Side
from autointerp.rules.labels import RULE, patterns_sha256
from autointerp.rules.language.conditions import Clause, Strings
from autointerp.rules.reference import Reference

_VERSION = 1
"""Raised when the same replies make another rule or label, so that features are labelled again."""
_REPLY_TOKENS = 350
"""Tokens of a reply, for forecasts; a model that thinks aloud writes more."""


@dataclass(frozen=True)
class WrittenRule:
    """The explainer `rule`."""

    reads: tuple[Section, ...]
    name: str = RULE
    side: Side | None = "input"

    @property
    def is_free(self) -> bool:
        return False

    def made_of(self, config: ExplainConfig) -> tuple[str, ...]:
        return ()

    def prompt(self, config: ExplainConfig, prompts: Path | None = None) -> RulePrompt:
        """How it asks under these settings. Raises InputError where there are no such templates."""
        first, mend = (load_template(f"explain/{name}", prompts) for name in ("rule", "rule_mend"))
        return RulePrompt(self.reads, first, mend, config, config.reply == "json")

    def _prompt(self, run: ExplainRun) -> RulePrompt:
        return self.prompt(run.config, run.job.prompts)

    def check(self, run: ExplainRun) -> None:
        if not run.config.model:
            raise InputError("the explainer 'rule' asks an LLM; set explain.model (and explain.base_url)")

    def digest(self, run: ExplainRun) -> str:
        prompt, rounds = self._prompt(run), run.config.rounds
        templates = [prompt.first.sha256, *([prompt.mend.sha256, rounds, run.config.mistakes] if rounds else [])]
        settings = [RULE, _VERSION, templates, patterns_sha256(Reference(run.job))]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    async def explain(self, work: OpenRun, features: Sequence[int]) -> None:
        run = work.run
        _check_tiles(run)
        client = await work.client(run.config)
        is_json, sends_seed = await form_taken(run, run.config, client)
        prompt = replace(self._prompt(run), is_json=is_json, sends_seed=sends_seed)
        texts = RuleTexts(run.job)
        writer = RuleWriter(run, prompt, client, texts, self.digest(run))

        def load(block: Sequence[int]) -> list[StudiedFeature]:
            return texts.read(run.evidence(block, EVERY_CONTEXT))

        async def label(of: StudiedFeature) -> None:
            await work.write(await writer.row(of))

        await run_pool(Blocks(features, load), min(run.job.in_flight, len(features)), label, client.stop)

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        """The estimate if every round is used."""
        if not features:
            return []
        _check_tiles(run)
        prompt, config = self._prompt(run), run.config
        some = run.evidence(a_few_of(features), EVERY_CONTEXT)
        times, written = len(features) / len(some), _REPLY_TOKENS * CHARACTERS_PER_TOKEN * len(some)
        first = Estimate.of([prompt.first_request(e, config.rule_contexts) for e in some], times, written)
        mending = [
            prompt.mend_request(e, "x" * 80, _stand_in(), _likely_mistakes(e, config.mistakes)) for e in some
        ]  # fmt: skip
        again = Estimate.of(mending, times * config.rounds, written)
        return [(config.model, first), (config.model, again)] if config.rounds else [(config.model, first)]


def _check_tiles(run: ExplainRun) -> None:
    """Raises InputError where the harvest did not count the tiles that a natural correlation is over."""
    if not SelectTexts(run.job).is_counted:
        raise InputError(
            "the explainer 'rule' chooses rules by their natural correlation, and the harvest did not count how many "
            "tiles its text has; harvest again"
        )


# --- forecasts --------------------------------------------------------------------------------------------------------


def _stand_in() -> list[Clause]:
    """A rule of middling length."""
    words = Strings("lemma", tuple(f"word{i}" for i in range(20)))
    return [Clause((words,), 5.0, "x" * 60)] * 3


def _likely_mistakes(evidence: FeatureEvidence, most: int) -> Mistakes:
    """Texts of the length that mistakes have."""

    def shown(contexts: Sequence[Context]) -> list[str]:
        read = [ReadText(c.tokens, np.zeros(len(c.tokens)), np.zeros(len(c.tokens))) for c in contexts if c.tokens]
        return [marked_text(text, len(text.tokens) - 1) for text in read][:most]

    return Mistakes(shown([*evidence.sampled, *evidence.top]), shown(evidence.negatives))
