"""Which features to work on, and which of them still lack a label or a score."""

from __future__ import annotations

import random
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Any

from autointerp.errors import InputError, nearest, shown
from autointerp.store.condition import features_where
from autointerp.store.connection import StoreConnection
from autointerp.store.finding_tables import tables_in
from autointerp.store.labels_left import LabelsLeft

_RANGE = re.compile(r"(\d{1,18})(?:\s*-\s*(\d{1,18}))?", re.ASCII)
ORDERS = ("density", "random", "score")
"""density: the features that fire most often come first. random: drawn with the selection's seed, so that the results
hold for all features whenever the work ends. score: the worst label comes first, and features without a score before
all; the score is the latest one on the report part by the scorer that `labels` shows, whatever explainer made the
label."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Features chosen on the command line. All that is given must hold; it is applied in the order of the fields.

    `limit` counts chosen features, not pending ones: the same command twice works on the same features.
    """

    features: str | None = None
    """Numbers and inclusive ranges: "0-999,1234"."""
    where: str | None = None
    """An SQL condition over the columns of `features` and `labels`; subqueries may read the store's tables only."""
    random: int | None = None
    """The number of features drawn at random, with `seed`."""
    limit: int | None = None
    """The number of features kept: the first ones, by number or in `order`."""
    seed: int = 0
    order: str | None = None
    """One of ORDERS, which decides which features come first in case a budget ends the work early. None: by number."""

    @property
    def is_all(self) -> bool:
        """Whether every feature is chosen, in whatever order."""
        return self.features is None and self.where is None and self.random is None and self.limit is None


def is_chosen(dictionary_id: int, wanted: list[int] | None) -> tuple[str, list[Any]]:
    """The SQL condition, with its parameters, that a column `feature` is in `wanted`. None stands for all features of
    the dictionary that are not dead, so that a million features need not be listed."""
    if wanted is None:
        return "feature IN (SELECT feature FROM features WHERE dictionary_id = ? AND status <> 'dead')", [dictionary_id]
    bounds = [min(wanted, default=0), max(wanted, default=0)]
    return "feature BETWEEN ? AND ? AND feature IN (SELECT unnest(?::INTEGER[]))", [*bounds, wanted]


def latest_labels(condition: str = "true") -> str:
    """SQL with the parameters dictionary_id and explainer: column row_id of the latest explanation, in table
    explanations, of each feature by each explaining model; those that best_of_n only chose among are left out."""
    return f"""
        SELECT arg_max(rowid, sequence) AS row_id FROM explanations
        WHERE dictionary_id = ? AND explainer = ? AND status <> 'gave_up' AND {condition}
          AND explanation_id NOT IN (SELECT unnest(derived_from[2:]) FROM explanations WHERE explainer = 'best_of_n')
        GROUP BY feature, model
    """


def parse_features(text: str) -> list[tuple[int, int]]:
    """The inclusive ranges of "0-999,1234". Raises InputError, which names the part that does not parse."""
    ranges = []
    for part in (piece.strip() for piece in text.split(",")):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise InputError(f"--features {shown(text)}: {shown(part)} is neither a number nor a range like 0-999")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise InputError(f"--features {shown(text)}: the range {part!r} runs backwards")
        ranges.append((first, last))
    return ranges


def _within(features: list[int], ranges: list[tuple[int, int]]) -> list[int]:
    """Those of `features`, which are sorted, that lie in one of the inclusive `ranges`."""
    chosen: list[int] = []
    for first, last in sorted(ranges):
        above = bisect_left(features, max(first, chosen[-1] + 1 if chosen else first))
        chosen += features[above : bisect_right(features, last)]
    return chosen


class StoreSelections(StoreConnection):
    """Which features and labels a stage still has to work on."""

    def selected_features(self, dictionary_id: int, selection: Selection) -> list[int]:
        """The chosen features, without the dead ones, in ascending order unless the selection names another order.

        Raises InputError for a number past the dictionary's last feature, an invalid condition, or an unknown order.
        """
        if selection.order is not None and selection.order not in ORDERS:
            raise InputError(
                f"--order {selection.order!r} is none of {', '.join(ORDERS)}.{nearest(selection.order, ORDERS)}"
            )
        found = [
            row[0]
            for row in self.rows(
                "SELECT feature FROM features WHERE dictionary_id = ? AND status <> 'dead' ORDER BY feature",
                [dictionary_id],
            )
        ]
        if selection.features is not None:
            ranges = parse_features(selection.features)
            last = self.rows("SELECT max(feature) FROM features WHERE dictionary_id = ?", [dictionary_id])[0][0]
            if last is not None and max(high for _, high in ranges) > last:
                raise InputError(f"--features {shown(selection.features)}: the dictionary's last feature is {last}")
            found = _within(found, ranges)
        for name in ("random", "limit"):
            count = getattr(selection, name)
            if count is not None and count < 1:
                raise InputError(f"--{name} must be 1 or more, not {count}")
        if selection.where is not None:
            fitting = features_where(self, dictionary_id, selection.where, {table.name for table in tables_in(self)})
            found = [feature for feature in found if feature in fitting]
        if selection.random is not None and selection.random < len(found):
            found = sorted(random.Random(selection.seed).sample(found, selection.random))
        if selection.order == "random":
            random.Random(selection.seed).shuffle(found)
        elif selection.order is not None:
            place = self._places(dictionary_id, selection.order)
            found.sort(key=place.__getitem__)  # of equal ones, the lower number comes first
        return found if selection.limit is None else found[: selection.limit]

    def _places(self, dictionary_id: int, order: str) -> dict[int, float]:
        """The number that decides each feature's place; the smallest comes first."""
        if order == "density":
            return dict(self.rows("SELECT feature, -density FROM features WHERE dictionary_id = ?", [dictionary_id]))
        found = self.rows(
            """
            WITH shown AS (
                SELECT max(value) AS scorer FROM settings WHERE dictionary_id = ? AND name = 'label_scorer'
            ),
            latest AS (
                SELECT feature, arg_max(value, scores.sequence) AS value
                FROM scores CROSS JOIN shown
                WHERE dictionary_id = ? AND control IS NULL AND part = 'report' AND explanation_id IS NOT NULL
                  AND value IS NOT NULL AND scores.scorer = coalesce(shown.scorer, 'simulation')
                GROUP BY feature
            )
            SELECT f.feature, coalesce(l.value, '-infinity'::DOUBLE)
            FROM features AS f LEFT JOIN latest AS l USING (feature) WHERE f.dictionary_id = ?
            """,
            [dictionary_id, dictionary_id, dictionary_id],
        )
        return dict(found)

    def features_to_explain(
        self, dictionary_id: int, explainer: str, model: str, template_sha256: str, seed: int, selection: Selection,
        *, harvest_id: int | None = None,
    ) -> list[int]:  # fmt: skip
        """The chosen features without an explanation by this explainer, model, template and seed (and harvest, where
        one is given). A failure that is an answer (refused, unparseable) counts as done; 'gave_up' does not."""
        done = {
            row[0]
            for row in self.rows(
                "SELECT DISTINCT feature FROM explanations WHERE dictionary_id = ? AND explainer = ? AND model = ? "
                "AND template_sha256 = ? AND seed = ? AND status <> 'gave_up' "
                "AND (?::INTEGER IS NULL OR harvest_id = ?)",
                [dictionary_id, explainer, model, template_sha256, seed, harvest_id, harvest_id],
            )
        }
        return [f for f in self.selected_features(dictionary_id, selection) if f not in done]

    def explanations_to_score(
        self, dictionary_id: int, explainer: str, scorer: str, method: str | None, model: str, template_sha256: str,
        part: str, selection: Selection, *, control: str | None = None, seed: int | None = None,
    ) -> LabelsLeft:  # fmt: skip
        """The labels by `explainer` of the chosen features that this scorer has not scored yet on `part`.

        Only the latest 'ok' label of each explaining model counts, not the labels that best_of_n only chose among.
        Where `method`, the scoring method, is None, a score by any method counts as done; the same holds for `seed`. A
        'gave_up' score is asked for again.
        """
        wanted: list[int] = []
        if selection.order is not None or not selection.is_all:
            wanted = self.selected_features(dictionary_id, selection)
        chosen, parameters = is_chosen(dictionary_id, None if selection.is_all else wanted)
        found = self.rows(
            f"""
            WITH latest AS ({latest_labels(chosen)}),
            done AS (
                SELECT explanation_id FROM scores
                WHERE dictionary_id = ? AND scorer = ? AND model = ? AND template_sha256 = ? AND part = ?
                  AND control IS NOT DISTINCT FROM ?::VARCHAR AND status <> 'gave_up'
                  AND (?::VARCHAR IS NULL OR method = ?) AND (?::BIGINT IS NULL OR seed = ?)
            )
            SELECT explanation_id, feature FROM explanations
            WHERE rowid IN (SELECT row_id FROM latest) AND status = 'ok'
              AND explanation_id NOT IN (SELECT explanation_id FROM done WHERE explanation_id IS NOT NULL)
            ORDER BY feature, model
            """,
            [
                dictionary_id, explainer, *parameters, dictionary_id, scorer, model, template_sha256, part, control,
                method, method, seed, seed,
            ],
        )  # fmt: skip
        if selection.order is not None:
            place = {feature: i for i, feature in enumerate(wanted)}
            found.sort(key=lambda key: place[key[1]])
        return LabelsLeft(self, dictionary_id, found)

    def features_to_score(
        self, dictionary_id: int, scorer: str, method: str, model: str, template_sha256: str, part: str,
        selection: Selection, seed: int,
    ) -> list[int]:  # fmt: skip
        """The chosen features that a scorer without labels has not scored yet on `part`. A 'gave_up' score is asked for
        again; any other status counts as done."""
        done = {
            row[0]
            for row in self.rows(
                "SELECT DISTINCT feature FROM scores WHERE dictionary_id = ? AND explanation_id IS NULL "
                "AND control IS NULL AND scorer = ? AND method = ? AND model = ? AND template_sha256 = ? "
                "AND part = ? AND seed = ? AND status <> 'gave_up'",
                [dictionary_id, scorer, method, model, template_sha256, part, seed],
            )
        }
        return [f for f in self.selected_features(dictionary_id, selection) if f not in done]
