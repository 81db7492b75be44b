"""concat: the label by `contexts` and the one by `vocab_projection` side by side: what the feature responds to, and
what it leads to. It makes no call of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autointerp.ask.explanation_row import with_meanings
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
from autointerp.records import Explanation, Side


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
    """`row` with both texts, the input side as its label; or with the only text as its label."""
    usable = [e for e in (input_label, output_label) if e.text is not None]
    failed = [e for e in (input_label, output_label) if e.status not in ("ok", "abstained")]
    if any(e.status == "gave_up" for e in failed) or (failed and not usable):
        worst = max(failed, key=lambda e: e.status == "gave_up")
        return replace(row, status=worst.status, error=f"{worst.explainer}: {worst.error or worst.status}")
    if not usable:
        return replace(row, status="abstained", error=input_label.error or output_label.error)
    note = "; ".join(f"{e.explainer}: {e.status}" for e in failed) or None
    if len(usable) == 1:
        only = usable[0]
        return with_meanings(row, replace(only, output_text=only.text if only.side == "output" else None), note)
    return replace(row, text=input_label.text, status="ok", side="input", output_text=output_label.text)
