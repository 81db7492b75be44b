"""What all scorers that ask the model share: how a task is named, how its answer is read, how a count becomes a row.

Kinds of tasks, payload -> result, all JSON (texts and numbers, no tensors):

    activations  {"texts": [str]}                        -> {"max": [float or null], "n_tokens": [int]}
                 largest activation of the task's feature on the counted tokens of each text; null where it has none
    surprisal    {"prefixes": [str, str], "texts": [str], "language_model": str}
                                                         -> {"nll": [[float per text] per prefix]}
                 mean nats per token of the text's own tokens after the prefix; language_model "" is the subject model
    similarity   {"query": str, "texts": [str], "model": folder}
                                                         -> {"cosine": [float]}
    steering     {"prompts": [str], "kl": float, "n_tokens": int, "n_random": int, "temperature": float, "seed": int}
                 -> {"strength": float, "kl": float, "clean": [str], "steered": [str],
                     "random": [{"feature": int, "strength": float, "kl": float, "texts": [str]}]}
                 one continuation per prompt, without the prompt; status 'kl_not_reached' where steering cannot reach it
    label_gain   {"steering": payload of steering, "template": str, "label": str, "language_model": str}
                 -> {"clean": [float], "steered": [float], "random": [[float]]}
                 mean log-probability per token of the label in the template, after each continuation of `steering`
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autointerp.errors import AutointerpError
from autointerp.records import Explanation, MeasureTask, Score, stable_id
from autointerp.score.score_rows import Identity, Result


def measure_task(label: Explanation, kind: str, payload: dict[str, Any], shared: bool = False) -> MeasureTask:
    """The task for one label; the same question about the same feature is one task. `shared`: it does not depend on
    the label at all."""
    return MeasureTask(
        task_id=stable_id(kind, label.dictionary_id, label.feature, payload),
        dictionary_id=label.dictionary_id,
        feature=label.feature,
        explanation_id=None if shared else label.explanation_id,
        kind=kind,
        payload=payload,
    )


def listed(result: dict[str, Any], key: str, n: int) -> list[Any]:
    """The list of `n` values under `key` of a measurement. AutointerpError where it is none: the two sides disagree."""
    values = result.get(key)
    if not isinstance(values, list) or len(values) != n:
        raise AutointerpError(f"a measurement's {key!r} should be a list of {n} values, not {str(values)[:80]}")
    return values


def number(value: Any) -> float | None:
    """`value` where it is a finite number, else None: what could not be measured."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def counted_row(
    identity: Identity, scorer: str, result: Result, n: int, n_failed: int = 0, error: str | None = None
) -> Score:
    """A row whose `n` counts something else than contexts, so that there are no predictions to keep."""
    return replace(identity.row(scorer, "report", [], result, keep=False), n=n, n_failed=n_failed, error=error)


def obstacle_of(statuses: Sequence[str]) -> str | None:
    """The status of a score over answers of these statuses that cannot be taken, or None: one that an endpoint gave up
    on (asked again by the next run), or the commonest failure where more than half failed."""
    failed = Counter(status for status in statuses if status != "ok")
    if failed["gave_up"]:
        return "gave_up"
    return failed.most_common(1)[0][0] if 2 * failed.total() > len(statuses) else None
