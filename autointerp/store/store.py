"""The store: one object with everything that the other steps may ask of it. Each group of tables is a class of its own
over the connection; they stand side by side here, and what takes several of them stands in this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autointerp.errors import InputError
from autointerp.records import SPLITS, CallRecord, Context, Explanation, FeatureEvidence, Score
from autointerp.scorer_names import scorer_place
from autointerp.store.calls import StoreCalls
from autointerp.store.contexts import StoreContexts
from autointerp.store.dictionaries import StoreDictionaries
from autointerp.store.evidence_file import StoreEvidence
from autointerp.store.explanations import StoreExplanations
from autointerp.store.features import StoreFeatures
from autointerp.store.findings import StoreFindings
from autointerp.store.head_shares import StoreHeadShares
from autointerp.store.judge_repeats import StoreJudgeRepeats
from autointerp.store.known_tiles import StoreKnownTiles
from autointerp.store.label_controls import StoreLabelControls
from autointerp.store.llm_batches import StoreBatches
from autointerp.store.near_words import StoreNearWords
from autointerp.store.opening import StoreOpening
from autointerp.store.recurring_tokens import recurring_tokens
from autointerp.store.rule_labels import StoreRuleLabels
from autointerp.store.runs import StoreRuns
from autointerp.store.safety.keeping import StoreKeeping
from autointerp.store.same_labels import flagged_labels
from autointerp.store.scores import StoreScores
from autointerp.store.selection import StoreSelections
from autointerp.store.stand_in_labels import StoreStandInLabels

_KINDS = ("top", "sampled", "negative")


class Store(
    StoreOpening, StoreKeeping, StoreEvidence, StoreDictionaries, StoreFeatures, StoreContexts, StoreFindings,
    StoreExplanations, StoreScores, StoreCalls, StoreBatches, StoreRuns, StoreSelections, StoreKnownTiles,
    StoreJudgeRepeats, StoreLabelControls, StoreNearWords, StoreHeadShares, StoreStandInLabels, StoreRuleLabels,
):  # fmt: skip
    """`with Store.open(path) as store: ...`; `open` tells the errors."""

    def insert_group(
        self, calls: Sequence[CallRecord] = (), explanations: Sequence[Explanation] = (), scores: Sequence[Score] = ()
    ) -> None:
        """Calls, explanations and scores in one transaction."""
        with self.transaction():
            self.insert_calls(calls)
            self.insert_explanations(explanations)
            self.insert_scores(scores)

    def feature_evidence(
        self, dictionary_id: int, harvest_id: int, features: Sequence[int], contexts: int | Mapping[str, int | None]
    ) -> dict[int, FeatureEvidence]:
        """What explainers may see of the features: the explain split, up to `contexts` contexts of each kind, or of
        each kind as many as it maps it to (None: all).

        Raises InputError where one of the features has no row.
        """
        wanted = [int(f) for f in features]
        found = self.dicts(
            "SELECT feature, status, density, explain_max_activation AS max_activation FROM features "
            "WHERE dictionary_id = ? AND feature IN (SELECT unnest(?::INTEGER[]))",
            [dictionary_id, wanted],
        )
        facts = {row["feature"]: row for row in found}
        absent = [f for f in wanted if f not in facts]
        if absent:
            raise InputError(f"dictionary {dictionary_id} has no feature {absent[0]} in {self.path}")
        limits = contexts if isinstance(contexts, Mapping) else dict.fromkeys(_KINDS, contexts)
        by_feature = self.contexts_of(dictionary_id, harvest_id, wanted, "explain", limits)
        tokens = self.projected_tokens(dictionary_id, wanted)
        findings = self.findings_of(dictionary_id, wanted)
        recurring = recurring_tokens(self, dictionary_id)
        result = {}
        for feature in wanted:
            of_kind: dict[str, list[Context]] = {kind: [] for kind in _KINDS}
            for context in by_feature[feature]:
                of_kind[context.kind].append(context)
            changed, lens = (findings[feature].get(name, ()) for name in ("changed", "lens"))
            lists = {
                "promoted": [t.token for t in tokens[feature] if t.sign == 1],
                "suppressed": [t.token for t in tokens[feature] if t.sign == -1],
                "lens_promoted": [t.token for t in lens if t.sign == 1],
                "lens_suppressed": [t.token for t in lens if t.sign == -1],
                "raised": [t.token for t in changed if t.sign == 1],
                "lowered": [t.token for t in changed if t.sign == -1],
            }
            recur = {name: sorted(recurring.get(name, frozenset()) & set(listed)) for name, listed in lists.items()}
            result[feature] = FeatureEvidence(
                dictionary_id=dictionary_id,
                **facts[feature],
                top=of_kind["top"],
                sampled=of_kind["sampled"],
                negatives=of_kind["negative"],
                promoted=[t for t in tokens[feature] if t.sign == 1],
                suppressed=[t for t in tokens[feature] if t.sign == -1],
                recurring={name: found for name, found in recur.items() if found},
                **findings[feature],
            )
        return result

    def feature_page(self, dictionary_id: int, feature: int, contexts: int = 5) -> dict[str, Any]:
        """One feature for a reader: keys feature, label, explanations, scores (dicts by column), label_controls
        (LabelControl), promoted and suppressed (PromotedToken), no_projection (why there are none, or None), heads
        (HeadShare), contexts (of all splits; Context), and those of `findings_page`. Raises InputError where there is
        no such feature.
        """
        row = self.dicts("SELECT * FROM features WHERE dictionary_id = ? AND feature = ?", [dictionary_id, feature])
        if not row:
            span = self.rows("SELECT count(*), max(feature) FROM features WHERE dictionary_id = ?", [dictionary_id])[0]
            held = f"it has features 0 to {span[1]}" if span[0] else "it was not harvested yet"
            raise InputError(f"dictionary {dictionary_id} has no feature {feature}; {held}")
        key = [dictionary_id, feature]
        tokens = self.projected_tokens(dictionary_id, [feature])[feature]
        kinds = dict.fromkeys(_KINDS, contexts)
        harvest_id = row[0]["harvest_id"]
        return {
            "feature": row[0],
            "label": self.dicts("SELECT * FROM labels WHERE dictionary_id = ? AND feature = ?", key)[0],
            "explanations": self.dicts(
                "SELECT * FROM explanations WHERE dictionary_id = ? AND feature = ? ORDER BY sequence DESC", key
            ),
            "scores": self.dicts(
                "SELECT * EXCLUDE (documents, influences) REPLACE (n_by_kind::MAP(VARCHAR, INTEGER) AS n_by_kind) "
                "FROM scores WHERE dictionary_id = ? AND feature = ? ORDER BY sequence DESC",
                key,
            ),
            "label_controls": self.label_controls_of(dictionary_id, feature),
            "promoted": [t for t in tokens if t.sign == 1],
            "suppressed": [t for t in tokens if t.sign == -1],
            "no_projection": self.why_nothing("vocab_projection", dictionary_id),
            "heads": self.head_shares(dictionary_id, feature),
            "contexts": [
                c
                for split in SPLITS
                for c in self.contexts_of(dictionary_id, harvest_id, [feature], split, kinds)[feature]
            ],
            **self.findings_page(dictionary_id, feature),
        }

    def status(self) -> dict[str, Any]:
        """What is done, failed and spent: plain values, fit for JSON (times as text)."""
        dictionaries = []
        for d in self.dictionaries():
            key = [d.dictionary_id]
            dictionaries.append(
                {
                    "dictionary_id": d.dictionary_id, "name": d.name, "model": d.model, "hookpoint": d.hookpoint,
                    "d_sae": d.d_sae, "harvest_id": self.current_harvest(d.dictionary_id),
                    "features": dict(self.rows(
                        "SELECT status, count(*) FROM features WHERE dictionary_id = ? GROUP BY status ORDER BY status",
                        key,
                    )),
                    "explanations": self.dicts(
                        "SELECT explainer, model, status, count(*) AS n FROM explanations WHERE dictionary_id = ? "
                        "GROUP BY ALL ORDER BY ALL", key,
                    ),
                    "scores": sorted(self.dicts(
                        "SELECT scorer, method, model, control, part, status, count(*) AS n, avg(value) AS mean "
                        "FROM scores WHERE dictionary_id = ? GROUP BY ALL", key,
                    ), key=_score_order),
                    "methods": self.method_counts(d.dictionary_id),
                    "to_measure": self.waiting_tasks(d.dictionary_id),
                    "without_label": self.rows(
                        "SELECT count(*) FROM labels WHERE dictionary_id = ? AND label IS NULL AND status <> 'dead'",
                        key,
                    )[0][0],
                    "flagged": flagged_labels(self, d.dictionary_id),
                }
            )  # fmt: skip
        spent = self.spent()
        return {
            "store": str(self.path),
            "store_id": self.store_id,
            "snapshot_age_s": self.snapshot_age_s,
            "dictionaries": dictionaries,
            "rows": self.row_counts(),
            "spent": {
                "requests": spent.requests, "input_tokens": spent.input_tokens,
                "cached_tokens": spent.cached_tokens, "output_tokens": spent.output_tokens, "usd": spent.usd,
            },
            "spend_by_stage": self.dicts("SELECT * FROM spend_by_stage"),
            "runs": [{**row, "status": self.run_status(row["status"])} for row in self.dicts(
                "SELECT run_id, command, started_at::VARCHAR AS started_at, finished_at::VARCHAR AS finished_at, "
                "status, exit_code FROM runs ORDER BY sequence DESC LIMIT 10"
            )],
        }  # fmt: skip


def _score_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The headline scorer first, and the labels' own scores before those of controls."""
    control = row["control"]
    return (
        *scorer_place(row["scorer"]),
        row["method"],
        row["model"],
        control is not None,
        control or "",
        row["part"],
        row["status"],
    )
