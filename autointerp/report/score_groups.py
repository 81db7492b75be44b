"""The scores of one label as a reader wants them: one group for each scorer, with its controls and its parts.

`scores.scorer` names both: "detection" is a scorer, "detection_sensitivity" and "detection_sensitivity_decile_9" are
parts of its score. A scorer of another package is told from its parts in the same way, by the names that are there.
Precision and recall of a simulation are of text as it comes, so they stand with its correlation on such text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from autointerp.records import Holding
from autointerp.scorer_names import NATURAL, headline_of, scorer_place


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow(Holding):
    """One row of the table `scores`."""

    score_id: str
    dictionary_id: int
    feature: int
    explanation_id: str | None
    """The scored label; None if the scorer needs no label."""
    harvest_id: int
    scorer: str
    method: str
    """The scoring method: how the scorer asked."""
    control: str | None
    """What stood in for the label; None for a real score."""
    part: str
    """select or report."""
    model: str
    template_sha256: str
    seed: int
    value: float | None
    """The score; None unless `status` is one of VALUED_STATUSES."""
    ci_low: float | None
    ci_high: float | None
    n: int
    n_failed: int
    status: str
    error: str | None
    created_at: datetime
    """UTC."""
    sequence: int
    """Its place in the order in which rows were written to the store."""
    n_documents: int | None
    """Different documents among its contexts; None where that is not known."""
    n_by_kind: dict[str, int] | None
    """Contexts by kind and tier; None as for n_documents."""


@dataclass(frozen=True, slots=True)
class ScorePart:
    """One part of a score, with the parts that it is divided into itself."""

    name: str
    """What the scorer's name, or that of the part above, goes on with: "sensitivity", "decile_9", "same_token"."""
    score: ScoreRow
    parts: tuple[ScorePart, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreGroup:
    """One scorer's score of a label: by one scoring method and model, on `select` or on `report`."""

    score: ScoreRow
    controls: tuple[ScoreRow, ...]
    """The controls scored by the same scorer, method, model and part of the documents."""
    parts: tuple[ScorePart, ...]
    """The parts in order of their names."""


def score_groups(scores: Sequence[ScoreRow]) -> list[ScoreGroup]:
    """Groups the rows of one label, given in any order: report before select, then in the package's order of scorers,
    those of other packages last. Of several rows that differ only in their seed the latest counts."""
    latest: dict[tuple[str, ...], ScoreRow] = {}
    for score in sorted(scores, key=lambda s: s.sequence):
        latest[score.scorer, *_origin(score), score.control or ""] = score
    groups = []
    for origin in dict.fromkeys(_origin(score) for score in latest.values()):
        same = [score for score in latest.values() if _origin(score) == origin]
        real = {score.scorer: score for score in same if score.control is None}
        headlines = {name: _headline_among(name, real) for name in real}
        for name, score in real.items():
            if headlines[name] == name:
                parts = {
                    other.removeprefix(_NATURAL_PARTS.get(other, name) + "_"): row
                    for other, row in real.items()
                    if other != name and headlines[other] == name
                }
                controls = tuple(s for s in same if s.control is not None and s.scorer == name)
                groups.append(ScoreGroup(score, controls, _parts(parts)))
    return sorted(groups, key=lambda g: (g.score.part, scorer_place(g.score.scorer), *_origin(g.score)))


_NATURAL_PARTS = {"simulation_precision": "simulation", "simulation_recall": "simulation"}
"""Parts of the score on text as it comes, and how far their names are not their own."""


def _headline_among(scorer: str, present: Collection[str]) -> str:
    """The scorer's headline, or the scorer itself if there is no row of that headline."""
    headline = NATURAL if scorer in _NATURAL_PARTS else headline_of(scorer, present)
    return headline if headline in present else scorer


def _parts(rows: dict[str, ScoreRow]) -> tuple[ScorePart, ...]:
    """Parts by name. A part whose name goes on from another's stands below that one."""
    names = sorted(rows)
    roots = [name for name in names if not any(name.startswith(f"{other}_") for other in names)]
    return tuple(
        ScorePart(
            root,
            rows[root],
            tuple(
                ScorePart(name.removeprefix(f"{root}_"), rows[name]) for name in names if name.startswith(f"{root}_")
            ),
        )
        for root in roots
    )


def _origin(score: ScoreRow) -> tuple[str, str, str]:
    return score.part, score.method, score.model
