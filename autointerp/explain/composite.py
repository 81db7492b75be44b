"""The code that explainers share if they build a label from other labels.

Each part is an ordinary explanation row under its own explainer's name, and is reused if it exists. The label built
from them is a separate row that names them in `derived_from`. A run that was stopped continues where it was, and pays
for nothing twice. Candidates' scores are rows of part 'select' (see validation.py); `score` later adds one on report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from autointerp.ask.explanation_row import blank_row
from autointerp.ask.forecast import Estimate
from autointerp.ask.question import side_by_side
from autointerp.config import ExplainConfig
from autointerp.errors import InputError
from autointerp.explain.asking import as_taken, ask_labels, estimate_labels
from autointerp.explain.explainer import ExplainRun, OpenRun, named
from autointerp.explain.label_question import LabelPrompt
from autointerp.explain.one_call import OneCall
from autointerp.explain.validation import Validator
from autointerp.records import Explanation
from autointerp.store import Selection

VERSION = 2
"""Another way to make the same composite is another number here."""
_BLOCK = 512
"""Features that are taken through all steps together; more where a batch holds more."""
_LABEL_CHARACTERS = 80
"""Characters of a label that is not written yet, for forecasts."""


def part(run: ExplainRun, config: ExplainConfig) -> LabelPrompt:
    """How the label that `config` describes is asked for. Raises InputError where it asks for none in one call."""
    explainer = named(run.explainers, config.explainer)
    if not isinstance(explainer, OneCall):
        raise InputError(f"no label can be made of one by {explainer.name!r}, which does not ask an LLM in one call")
    explainer.check(run.of(config))
    return explainer.prompt(config, run.job.prompts)


def check_base(run: ExplainRun) -> None:
    """Raises InputError where the labels of [explain] base cannot be judged on text."""
    config = run.config
    fitting = [one.name for one in run.explainers if isinstance(one, OneCall) and one.side != "output"]
    if config.base not in fitting:
        raise InputError(
            f"explain.base is {config.base!r}, but {config.explainer} judges labels by where they say that the feature "
            f"is active; choose one of {', '.join(fitting)}"
        )


def validator_of(run: ExplainRun) -> Validator:
    """What scores candidates on the select part. Raises InputError where no model is named to ask."""
    return Validator.of(run.job, run.config.validator, run.score_config)


def recipe_sha256(
    run: ExplainRun, parts: Sequence[LabelPrompt], correction: list[object] | None, validator: Validator | None
) -> str:
    """The digest of all that a composite depends on; it stands for the template."""
    settings = [
        VERSION, run.config.explainer,
        [[p.name, p.template.sha256, p.config.seed, p.config.temperature] for p in parts],
        correction,
        validator.settings() if validator else None,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def composite_row(
    run: ExplainRun, digest: str, parts: Sequence[Explanation], seen: Sequence[object] = ()
) -> Explanation:
    """The row of a composite of these parts, without a text so far. `seen`: what else it is made from."""
    ids = [part.explanation_id for part in parts]
    evidence = hashlib.sha256(json.dumps([ids, list(seen)]).encode()).hexdigest()
    row = blank_row(run.job, run.config, parts[0].feature, run.config.model, digest, evidence)
    return replace(row, derived_from=ids)


async def labels_of(work: OpenRun, prompt: LabelPrompt, features: Sequence[int]) -> dict[int, Explanation]:
    """An ordinary row for every feature: the one there is, or a new one."""
    job, config = work.run.job, prompt.config
    held = job.store.explanations_of(job.dictionary_id, features)
    found = {
        row.feature: row
        for rows in held.values()
        for row in rows
        if (row.explainer, row.model, row.template_sha256, row.seed)
        == (config.explainer, config.model, prompt.template.sha256, config.seed)
        and row.status != "gave_up"
    }
    missing = [feature for feature in features if feature not in found]
    if missing:
        client = await work.client(work.run.config)

        async def write(row: Explanation) -> None:
            await work.writer.explanation(row)
            found[row.feature] = row

        await ask_labels(work.run, await as_taken(work.run, prompt, client), client, missing, write)
    return found


async def make_in_blocks(
    work: OpenRun, features: Sequence[int], make: Callable[[Sequence[int]], Awaitable[list[Explanation]]]
) -> None:
    """Makes the composite rows of the features, block by block, and hands them to `work`."""
    size = max(_BLOCK, work.run.job.in_flight)
    for start in range(0, len(features), size):
        rows = await make(features[start : start + size])
        await side_by_side(work.write(row) for row in rows)


# --- forecasts ------------------------------------------------------------------------------------------------------


def estimate_parts(
    run: ExplainRun, parts: Sequence[LabelPrompt], features: Sequence[int]
) -> list[tuple[str, Estimate]]:
    """What asking for the parts that are not there yet comes to."""
    chosen = set(features)
    everywhere = replace(run, job=replace(run.job, selection=Selection()))
    out = []
    for prompt in parts:
        pending = everywhere.of(prompt.config).pending(prompt.template.sha256)
        asked = [f for f in pending if f in chosen]
        out.append((run.config.model, estimate_labels(run, prompt, asked)))
    return out


def estimate_validation(
    run: ExplainRun, validator: Validator, parts: Sequence[LabelPrompt], features: Sequence[int]
) -> tuple[str, Estimate]:
    """What scoring all candidates comes to."""
    labels = [label for p in parts for label in expected_labels(run.of(p.config), p.template.sha256, features)]
    return validator.config.model, validator.forecast(labels)


def expected_labels(run: ExplainRun, digest: str, features: Sequence[int]) -> list[Explanation]:
    """Stand-ins for labels that are not made yet, of which only the length is guessed."""
    rows = [blank_row(run.job, run.config, feature, run.config.model, digest, "") for feature in features]
    return [replace(row, text="x" * _LABEL_CHARACTERS, status="ok") for row in rows]
