"""concat: the label by `contexts` and the one by `vocab_projection` in one sentence: what the feature responds to, then
what it leads to. It makes no call of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autointerp.ask.explanation_row import MAX_LABEL
from autointerp.ask.forecast import Estimate
from autointerp.config import ExplainConfig
from autointerp.explain.composite import (
    composite_row,
    estimate_parts,
    labels_of,
    make_in_blocks,
    part,
    recipe_sha256,
)
from autointerp.explain.evidence_sections import Section
from autointerp.explain.explainer import ExplainRun, OpenRun
from autointerp.explain.label_question import LabelPrompt
from autointerp.explain.label_replies import clean_label, shortened
from autointerp.records import Explanation, Side

JOINT = "; then leads to "


class Concat:
    name = "concat"
    reads: tuple[Section, ...] = ()
    side: Side | None = None
    is_free = False

    def made_of(self, config: ExplainConfig) -> tuple[str, ...]:
        return "contexts", "vocab_projection"

    def _parts(self, run: ExplainRun) -> list[LabelPrompt]:
        return [part(run, replace(run.config, explainer=name)) for name in self.made_of(run.config)]

    def check(self, run: ExplainRun) -> None:
        self._parts(run)

    def digest(self, run: ExplainRun) -> str:
        return recipe_sha256(run, self._parts(run), None, None)

    async def explain(self, work: OpenRun, features: Sequence[int]) -> None:
        run, parts, digest = work.run, self._parts(work.run), self.digest(work.run)

        async def make(block: Sequence[int]) -> list[Explanation]:
            inputs, outputs = [await labels_of(work, prompt, block) for prompt in parts]
            return [joined(composite_row(run, digest, [inputs[f], outputs[f]]), inputs[f], outputs[f]) for f in block]

        await make_in_blocks(work, features, make)

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        return estimate_parts(run, self._parts(run), features)


def joined(row: Explanation, input_label: Explanation, output_label: Explanation) -> Explanation:
    """`row` with both texts in one sentence, or with the only text."""
    usable = [e for e in (input_label, output_label) if e.text is not None]
    failed = [e for e in (input_label, output_label) if e.status not in ("ok", "abstained")]
    if any(e.status == "gave_up" for e in failed) or (failed and not usable):
        worst = max(failed, key=lambda e: e.status == "gave_up")
        return replace(row, status=worst.status, error=f"{worst.explainer}: {worst.error or worst.status}")
    if not usable:
        return replace(row, status="abstained", error=input_label.error or output_label.error)
    note = "; ".join(f"{e.explainer}: {e.status}" for e in failed) or None
    if len(usable) == 1:
        return replace(row, text=usable[0].text, status="ok", side=usable[0].side, error=note)
    text = clean_label(join_texts(input_label.text or "", output_label.text or ""))
    return replace(row, text=text, status="ok", side="both")


def join_texts(first: str, second: str) -> str:
    """Both texts with JOINT between them, at most MAX_LABEL characters: the longer one gives way."""
    room = MAX_LABEL - len(JOINT)
    first, second = first.rstrip(". "), second.rstrip(". ")
    half = room // 2
    first = shortened(first, max(half, room - len(second)))
    return f"{first}{JOINT}{shortened(second, room - len(first))}"
