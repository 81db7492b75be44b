"""Explainers that ask an LLM once about each feature. They differ only in what they show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autointerp.ask.forecast import Estimate
from autointerp.ask.prompts import load_template
from autointerp.config import ExplainConfig
from autointerp.errors import InputError
from autointerp.explain.asking import as_taken, ask_labels, estimate_labels
from autointerp.explain.evidence_sections import Section
from autointerp.explain.explainer import ExplainRun, OpenRun
from autointerp.explain.label_question import Answers, LabelPrompt
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
    answers: Answers = "label"
    """One phrase, or (`meanings`) both sides apart with a second meaning; then `side` is None."""
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
        return LabelPrompt(
            self.name, self.reads, self.side, self.listed, template, config, self.answers, config.reply == "json"
        )

    def _prompt(self, run: ExplainRun) -> LabelPrompt:
        return self.prompt(run.config, run.job.prompts)

    def check(self, run: ExplainRun) -> None:
        if not run.config.model:
            raise InputError(f"the explainer {self.name!r} asks an LLM; set explain.model (and explain.base_url)")

    def digest(self, run: ExplainRun) -> str:
        return self._prompt(run).template.sha256

    async def explain(self, work: OpenRun, features: Sequence[int]) -> None:
        client = await work.client(work.run.config)
        prompt = await as_taken(work.run, self._prompt(work.run), client)
        await ask_labels(work.run, prompt, client, features, work.write)

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        return [(run.config.model, estimate_labels(run, self._prompt(run), features))]
