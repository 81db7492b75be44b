"""What is known of features and of the SAE as a whole, without any context: statistics, promoted tokens, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autointerp.errors import AutointerpError
from autointerp.records import FeatureHistogram, HeadlineScore, Holding, PromotedToken
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import field_names, select_list
from autointerp.store.recurring_tokens import count_recurring_tokens
from autointerp.store.rows import TrainingPoint
from autointerp.store.values import check_finite, clean

FEATURE_COLUMNS = (
    "feature", "status", "density", "token_density", "n_active_tiles", "n_active_tokens", "max_activation",
    "mean_activation", "explain_max_activation", "histogram_edges", "histogram_counts",
)  # fmt: skip
_STATUSES = ("live", "rare", "dead", "no_heldout")
_MEASURED = ("density", "token_density", "max_activation", "mean_activation", "explain_max_activation")


class StoreFeatures(StoreConnection):
    """Tables features, vocab_projection, sae_metrics and training_metrics."""

    def replace_features(self, dictionary_id: int, harvest_id: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Sets the dictionary's feature rows. `columns`: FEATURE_COLUMNS, each with one value for every feature (a list
        of values for the histogram)."""
        missing = [name for name in FEATURE_COLUMNS if name not in columns]
        if missing or len(columns) != len(FEATURE_COLUMNS):
            raise AutointerpError(f"features need the columns {', '.join(FEATURE_COLUMNS)}; missing: {missing}")
        data = {name: _listed(columns[name]) for name in FEATURE_COLUMNS}
        for name in _MEASURED:
            if not np.isfinite(np.asarray(data[name], dtype=np.float64)).all():
                raise AutointerpError(f"features of dictionary {dictionary_id}: {name} is not finite everywhere")
        unknown = set(data["status"]) - set(_STATUSES)
        if unknown:
            raise AutointerpError(f"feature status must be one of {', '.join(_STATUSES)}, not {unknown}")
        with self.transaction() as con:
            con.execute("DELETE FROM features WHERE dictionary_id = ?", [dictionary_id])
            n = len(data["feature"])
            ids = {"dictionary_id": [dictionary_id] * n, "harvest_id": [harvest_id] * n}
            self.insert_columns("features", {**ids, **data})

    def insert_vocab_projection(
        self, dictionary_id: int, *, feature: np.ndarray, sign: np.ndarray, rank: np.ndarray, token_id: np.ndarray,
        token: Sequence[str], logit: np.ndarray,
    ) -> None:  # fmt: skip
        """Sets the dictionary's promoted (sign 1) and suppressed (-1) tokens, and counts which of them recur; all
        arrays [n], rank 0 the strongest."""
        if not np.isfinite(logit).all():
            raise AutointerpError(f"vocab projection of dictionary {dictionary_id}: a logit is not finite")
        view = {
            "feature": np.ascontiguousarray(feature, dtype=np.int32),
            "sign": np.ascontiguousarray(sign, dtype=np.int8),
            "rank": np.ascontiguousarray(rank, dtype=np.int32),
            "token_id": np.ascontiguousarray(token_id, dtype=np.int32),
            "token": np.array([clean(t) for t in token], dtype=object),
            "logit": np.ascontiguousarray(logit, dtype=np.float32),
        }
        with self.transaction() as con:
            con.execute("DELETE FROM vocab_projection WHERE dictionary_id = ?", [dictionary_id])
            con.register("new_projection", view)
            try:
                con.execute(
                    "INSERT INTO vocab_projection BY NAME SELECT ? AS dictionary_id, * FROM new_projection "
                    "ORDER BY feature, sign DESC, rank",
                    [dictionary_id],
                )
            finally:
                con.unregister("new_projection")
            count_recurring_tokens(self, dictionary_id, "vocab_projection")

    def insert_metrics(self, dictionary_id: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds metrics of an SAE; a row written before under the same key is replaced.

        A row with `step` is a training metric (step, metric, value), where a value that is not finite becomes NULL.
        Any other goes to sae_metrics (metric, value and, where known, corpus_id, split, ci_low, ci_high, n_tokens).
        """
        training = [r for r in rows if "step" in r]
        structural = [r for r in rows if "step" not in r]
        with self.transaction() as con:
            if training:
                steps, metrics = [r["step"] for r in training], [r["metric"] for r in training]
                con.execute(
                    "DELETE FROM training_metrics WHERE dictionary_id = ? "
                    "AND (step, metric) IN (SELECT (unnest(?::BIGINT[]), unnest(?::VARCHAR[])))",
                    [dictionary_id, steps, metrics],
                )
                values = [v if (v := r["value"]) is not None and math.isfinite(v) else None for r in training]
                own = {"dictionary_id": [dictionary_id] * len(training)}
                columns = {**own, "step": steps, "metric": metrics, "value": values}
                self.insert_columns("training_metrics", columns)
            for r in structural:
                check_finite(f"metric {r['metric']}", value=r.get("value"), low=r.get("ci_low"), high=r.get("ci_high"))
                key = {
                    "dictionary_id": dictionary_id, "corpus_id": r.get("corpus_id"), "split": r.get("split"),
                    "metric": r["metric"],
                }  # fmt: skip
                con.execute(
                    "DELETE FROM sae_metrics WHERE dictionary_id = ? AND corpus_id IS NOT DISTINCT FROM ? "
                    "AND split IS NOT DISTINCT FROM ? AND metric = ?",
                    list(key.values()),
                )
                numbers = {name: r.get(name) for name in ("value", "ci_low", "ci_high", "n_tokens")}
                self.insert_row("sae_metrics", {**key, **numbers})

    def max_activations(self, dictionary_id: int) -> dict[int, float]:
        """Largest activation of every feature that is not dead, raw units."""
        found = self.rows(
            "SELECT feature, max_activation FROM features WHERE dictionary_id = ? AND status <> 'dead' "
            "ORDER BY feature",
            [dictionary_id],
        )
        return {int(feature): float(value) for feature, value in found}

    def mean_active(self, dictionary_id: int) -> float | None:
        """How many features are active on a token, on average (L0); None before the first merge."""
        return self.rows("SELECT sum(token_density) FROM features WHERE dictionary_id = ?", [dictionary_id])[0][0]

    def projected_tokens(self, dictionary_id: int, features: Sequence[int]) -> dict[int, list[PromotedToken]]:
        """Promoted, then suppressed tokens of every feature asked for, strongest first."""
        wanted = [int(f) for f in features]
        result: dict[int, list[PromotedToken]] = {f: [] for f in wanted}
        if not wanted:
            return result
        found = self.keyed_records(
            "feature",
            PromotedToken,
            f"SELECT feature, {select_list(PromotedToken)} FROM vocab_projection "
            "WHERE dictionary_id = ? AND feature BETWEEN ? AND ? AND feature IN (SELECT unnest(?::INTEGER[])) "
            "ORDER BY feature, sign DESC, rank",
            [dictionary_id, min(wanted), max(wanted), wanted],
        )
        for feature, token in found:
            result[feature].append(token)
        return result

    def training_curves(self, dictionary_id: int) -> list[TrainingPoint]:
        """The metrics of the SAE's training, in order of steps, except those whose value was not finite."""
        found = self.dicts(
            "SELECT step, metric, value FROM training_metrics WHERE dictionary_id = ? AND value IS NOT NULL "
            "ORDER BY step, metric",
            [dictionary_id],
        )
        return [TrainingPoint(**row) for row in found]

    def activation_histograms(self, dictionary_id: int, n: int) -> list[FeatureHistogram]:
        """The histograms of the `n` best-scored features. Features without a score come last, by number."""
        found = self.dicts(
            "SELECT f.feature, l.label, l.second_label, f.histogram_edges AS edges, f.histogram_counts AS counts, "
            f"{select_list(Holding, 'l')}, {select_list(HeadlineScore, 'l')} FROM features AS f "
            "LEFT JOIN labels AS l USING (dictionary_id, feature) "
            "WHERE f.dictionary_id = ? AND f.status <> 'dead' ORDER BY l.score DESC NULLS LAST, f.feature LIMIT ?",
            [dictionary_id, n],
        )
        return [
            FeatureHistogram(
                **{name: row[name] for name in ("feature", "label", "second_label", "edges", "counts")},
                holding=Holding(**{name: row[name] for name in field_names(Holding)}),
                headline=HeadlineScore(**{name: row[name] for name in field_names(HeadlineScore)}),
            )
            for row in found
            if row["edges"]
        ]


def _listed(column: Sequence[Any]) -> list[Any]:
    if isinstance(column, np.ndarray):
        return list(column.tolist())
    return [v.tolist() if isinstance(v, np.ndarray) else v for v in column]
