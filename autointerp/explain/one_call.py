"""Explainers that ask an LLM once about each feature. They differ only in what they show it:

    contexts            the strongest contexts with their activations (MaxAct; Bills et al. 2023)
    pruned              the least text that keeps each peak, and what each token is worth (Foote et al. 2023)
    vocab_projection    next tokens that its decoder row promotes and suppresses
    mutual_information  words tied to the feature, by its direction and by where it fires (Wu et al. 2025)
    token_change        tokens that the model says more and less when it is clamped (Gur-Arieh et al. 2025)
    contrastive         the strongest contexts, against silent contexts that look alike (hard negatives)
    combined            all of that but the silent contexts, contexts drawn at random, and what came after the peaks
                        (the "raw ensemble" of Gur-Arieh et al. 2025)

A further one is an entry here and a template prompts/explain/NAME.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autointerp.ask.forecast import Estimate
from autointerp.ask.prompts import load_template
from autointerp.config import ExplainConfig
from autointerp.errors import InputError
from autointerp.explain.asking import ask_labels, estimate_labels, in_reply_form
from autointerp.explain.evidence_sections import (
    AFTER_PEAKS,
    DRAWN,
    EXCERPTS,
    INPUT_WORDS,
    IS_OUTPUT,
    LOWERED,
    PROMOTED,
    PRUNED,
    RAISED,
    RELATED_WORDS,
    SILENT,
    SUPPRESSED,
    Section,
)
from autointerp.explain.explainer import ExplainRun, OpenRun
from autointerp.explain.label_question import LabelPrompt
from autointerp.records import Side


@dataclass(frozen=True)
class OneCall:
    """An explainer that shows an LLM sections of evidence by a template of its name."""

    name: str
    reads: tuple[Section, ...]
    side: Side | None = None
    """What its labels describe; None: the LLM is asked for it."""
    listed: int = 25
    """Tokens or words shown of one kind."""
    prompts: Path | None = None
    """The folder with its template explain/NAME.md; None: the program's own (or the one named for the run)."""

    @property
    def is_free(self) -> bool:
        return False

    def made_of(self, config: ExplainConfig) -> tuple[str, ...]:
        return ()

    def prompt(self, config: ExplainConfig, prompts: Path | None = None) -> LabelPrompt:
        """How it asks under these settings. Raises InputError where there is no such template."""
        template = load_template(f"explain/{self.name}", self.prompts or prompts)
        return LabelPrompt(self.name, self.reads, self.side, self.listed, template, config, config.reply == "json")

    def _prompt(self, run: ExplainRun) -> LabelPrompt:
        return self.prompt(run.config, run.job.prompts)

    def check(self, run: ExplainRun) -> None:
        if not run.config.model:
            raise InputError(f"the explainer {self.name!r} asks an LLM; set explain.model (and explain.base_url)")

    def digest(self, run: ExplainRun) -> str:
        return self._prompt(run).template.sha256

    async def explain(self, work: OpenRun, features: Sequence[int]) -> None:
        client = await work.client(work.run.config)
        prompt = await in_reply_form(self._prompt(work.run), client)
        await ask_labels(work.run, prompt, client, features, work.write)

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        return [(run.config.model, estimate_labels(run, self._prompt(run), features))]


ONE_CALL = (
    OneCall("contexts", (EXCERPTS,), "input"),
    OneCall("pruned", (PRUNED,), "input"),
    OneCall("vocab_projection", (PROMOTED, SUPPRESSED), "output"),
    OneCall("mutual_information", (RELATED_WORDS, INPUT_WORDS), "input"),
    OneCall("token_change", (RAISED, LOWERED), "output"),
    OneCall("contrastive", (EXCERPTS, SILENT), "input"),
    OneCall(
        "combined",
        (
            EXCERPTS, DRAWN, PRUNED, AFTER_PEAKS, PROMOTED, SUPPRESSED, RAISED, LOWERED, RELATED_WORDS, INPUT_WORDS,
            IS_OUTPUT,
        ),
        listed=15,
    ),
)  # fmt: skip
