"""Everything that reads from the store for the other steps: bulk queries, one for many features."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from autointerp.errors import InputError, nearest
from autointerp.records import (
    CallRecord,
    Context,
    Explanation,
    FeatureEvidence,
    Prediction,
    PromotedToken,
    Score,
    Split,
)
from autointerp.store.connection import APPEND_ONLY
from autointerp.store.findings import StoreFindings
from autointerp.store.rows import CorpusRow, DictionaryRow, HarvestRow, Spent

_DICTIONARY = (
    "dictionary_id, name, model, revision, hookpoint, output_hookpoint, architecture, d_in, d_out, d_sae, sae_sha256, "
    "tokenizer_sha256, config, created_at"
)
_CALL = (
    "request_sha256, sample, run_id, dictionary_id, feature, stage, model, status, reply, input_tokens, "
    "cached_tokens, output_tokens, cost_usd, latency_s, attempts, error"
)
EXPLANATION = (
    "explanation_id, dictionary_id, feature, harvest_id, explainer, model, template_sha256, evidence_sha256, seed, "
    "text, status, error, rule, side, derived_from, input_tokens, output_tokens, cost_usd"
)
_CONTEXTS = """
    WITH chosen AS (
        SELECT context_id, feature, split, kind, tier, decile, rank, position, positions, "values", window_id, "offset",
               length
        FROM evidence.context_rows
        WHERE dictionary_id = ? AND harvest_id = ? AND split = ? AND feature BETWEEN ? AND ?
          AND feature IN (SELECT unnest(?::INTEGER[])) AND kind IN (SELECT unnest(?::VARCHAR[]))
        QUALIFY row_number() OVER (PARTITION BY feature, kind ORDER BY rank, tier, context_id)
             <= list_extract(?::BIGINT[], list_position(?::VARCHAR[], kind))
    )
    SELECT c.context_id, c.feature, c.split, c.kind, c.tier, c.decile, c.rank, w.document, c.position,
           w.tokens[c."offset" + 1 : c."offset" + c.length], c.positions, c."values"
    FROM chosen AS c JOIN evidence.windows AS w USING (window_id)
    ORDER BY c.feature, c.kind, c.rank, c.tier, c.context_id
"""
EVERY = 2**31 - 1
"""A limit that limits nothing."""


class StoreReads(StoreFindings):
    # --- what is worked on -----------------------------------------------------------------------------------------

    def dictionaries(self) -> list[DictionaryRow]:
        found = self.rows(f"SELECT {_DICTIONARY} FROM dictionaries ORDER BY dictionary_id")
        return [DictionaryRow(*[*row[:12], _parsed(row[12]), row[13]]) for row in found]

    def dictionary(self, name: str | None = None) -> DictionaryRow:
        """The dictionary of that name; without a name the only one there is, else InputError listing the names."""
        every = self.dictionaries()
        names = [d.name for d in every]
        if not every:
            raise InputError(f"{self.path} holds no dictionary yet; `autointerp harvest` adds one")
        if name is None:
            if len(every) > 1:
                raise InputError(
                    f"{self.path} holds {len(every)} dictionaries: {', '.join(names)}; choose one with --dictionary"
                )
            return every[0]
        for row in every:
            if row.name == name:
                return row
        raise InputError(f"no dictionary {name!r} in {self.path}; it holds {', '.join(names)}.{nearest(name, names)}")

    def corpus(self, corpus_id: int) -> CorpusRow:
        found = self.rows(
            "SELECT corpus_id, source, config, tokenizer_sha256, n_documents, n_tokens, created_at FROM corpora "
            "WHERE corpus_id = ?",
            [corpus_id],
        )
        if not found:
            raise InputError(f"no corpus {corpus_id} in {self.path}")
        source = found[0]
        return CorpusRow(source[0], source[1], _parsed(source[2]), *source[3:])

    def harvests(self, dictionary_id: int) -> list[HarvestRow]:
        """Every harvest of a dictionary, oldest first."""
        found = self.rows(
            "SELECT harvest_id, dictionary_id, corpus_id, n_tokens, config, report, created_at FROM harvests "
            "WHERE dictionary_id = ? ORDER BY harvest_id",
            [dictionary_id],
        )
        return [
            HarvestRow(harvest_id, dictionary, corpus_id, n_tokens, _parsed(config), _parsed(report), created_at)
            for harvest_id, dictionary, corpus_id, n_tokens, config, report, created_at in found
        ]

    def current_harvest(self, dictionary_id: int) -> int | None:
        """The harvest that the dictionary's feature rows come from; None before the first merge."""
        found = self.rows("SELECT max(harvest_id) FROM features WHERE dictionary_id = ?", [dictionary_id])
        return None if found[0][0] is None else int(found[0][0])

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

    # --- evidence --------------------------------------------------------------------------------------------------

    def contexts_of(
        self, dictionary_id: int, harvest_id: int, features: Sequence[int], split: Split,
        kinds: Mapping[str, int | None],
    ) -> dict[int, list[Context]]:  # fmt: skip
        """Contexts of many features in one query, dense. An entry for every feature asked for, if only an empty list.

        `kinds` maps top, sampled, negative to how many of each at most (None: all); in rank order within a kind, the
        tiers of the negatives taken in turn.
        """
        result: dict[int, list[Context]] = {int(f): [] for f in features}
        if not result or not kinds:
            return result
        limits = [EVERY if n is None else n for n in kinds.values()]
        names = list(kinds)
        wanted = list(result)
        found = self.rows(
            _CONTEXTS,
            [dictionary_id, harvest_id, split, min(wanted), max(wanted), wanted, names, limits, names],
        )
        for row in found:
            tokens, positions, values = row[9:]
            dense = [0.0] * len(tokens)
            for position, value in zip(positions, values, strict=True):
                dense[position] = value
            context = Context(*[*row[:9], tokens, dense])
            result[context.feature].append(context)
        return result

    def feature_evidence(
        self, dictionary_id: int, harvest_id: int, features: Sequence[int], contexts: int
    ) -> dict[int, FeatureEvidence]:
        """What explainers may see of the features: the explain split, up to `contexts` contexts of each kind.

        Raises InputError where one of the features has no row.
        """
        wanted = [int(f) for f in features]
        found = self.rows(
            "SELECT feature, status, density, explain_max_activation FROM features "
            "WHERE dictionary_id = ? AND feature IN (SELECT unnest(?::INTEGER[]))",
            [dictionary_id, wanted],
        )
        facts = {row[0]: row for row in found}
        absent = [f for f in wanted if f not in facts]
        if absent:
            raise InputError(f"dictionary {dictionary_id} has no feature {absent[0]} in {self.path}")
        by_feature = self.contexts_of(
            dictionary_id, harvest_id, wanted, "explain", dict.fromkeys(("top", "sampled", "negative"), contexts)
        )
        tokens = self.projected_tokens(dictionary_id, wanted)
        findings = self.findings_of(dictionary_id, wanted)
        result = {}
        for feature in wanted:
            _, status, density, largest = facts[feature]
            of_kind: dict[str, list[Context]] = {"top": [], "sampled": [], "negative": []}
            for context in by_feature[feature]:
                of_kind[context.kind].append(context)
            result[feature] = FeatureEvidence(
                dictionary_id, feature, status, density, largest,
                top=of_kind["top"], sampled=of_kind["sampled"], negatives=of_kind["negative"],
                promoted=[t for t in tokens[feature] if t.sign == 1],
                suppressed=[t for t in tokens[feature] if t.sign == -1],
                **findings[feature],
            )  # fmt: skip
        return result

    def projected_tokens(self, dictionary_id: int, features: Sequence[int]) -> dict[int, list[PromotedToken]]:
        """Promoted, then suppressed tokens of every feature asked for, strongest first."""
        wanted = [int(f) for f in features]
        result: dict[int, list[PromotedToken]] = {f: [] for f in wanted}
        if not wanted:
            return result
        found = self.rows(
            "SELECT feature, token, logit, rank, sign FROM vocab_projection "
            "WHERE dictionary_id = ? AND feature BETWEEN ? AND ? AND feature IN (SELECT unnest(?::INTEGER[])) "
            "ORDER BY feature, sign DESC, rank",
            [dictionary_id, min(wanted), max(wanted), wanted],
        )
        for feature, token, logit, rank, sign in found:
            result[feature].append(PromotedToken(token, logit, rank, sign))
        return result

    # --- calls and labels ------------------------------------------------------------------------------------------

    def find_call(self, request_sha256: str, sample: int) -> CallRecord | None:
        """The recorded outcome of a request, or None where it has to be sent (never sent, or given up before)."""
        if not self.may_hold_call(request_sha256):
            return None
        found = self.rows(
            f"SELECT {_CALL} FROM llm_calls WHERE request_sha256 = ? AND sample = ? AND status <> 'gave_up'",
            [request_sha256, sample],
        )
        return CallRecord(*found[0]) if found else None

    def spent(self, run_id: str | None = None) -> Spent:
        """What calls cost: of one run, or of all."""
        found = self.rows(
            "SELECT coalesce(sum(attempts), 0), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), "
            "coalesce(sum(cost_usd), 0), coalesce(sum(cached_tokens), 0) FROM llm_calls "
            "WHERE ?::VARCHAR IS NULL OR run_id = ?",
            [run_id, run_id],
        )[0]
        return Spent(int(found[0]), int(found[1]), int(found[2]), float(found[3]), int(found[4]))

    def explanations_of(self, dictionary_id: int, features: Sequence[int]) -> dict[int, list[Explanation]]:
        """Every explanation of the features, oldest first."""
        result: dict[int, list[Explanation]] = {int(f): [] for f in features}
        found = self.rows(
            f"SELECT {EXPLANATION} FROM explanations WHERE dictionary_id = ? "
            "AND feature IN (SELECT unnest(?::INTEGER[])) ORDER BY feature, created_at",
            [dictionary_id, list(result)],
        )
        for row in found:
            explanation = Explanation(*row)
            result[explanation.feature].append(explanation)
        return result

    def scores_of(
        self, explanation_ids: Sequence[str], harvest_id: int, scorer: str, part: str, model: str,
        template_sha256: str, seed: int,
    ) -> dict[str, Score]:  # fmt: skip
        """By explanation, its latest real score with all predictions; what an endpoint gave up on is left out."""
        keys = (
            "score_id, dictionary_id, feature, explanation_id, harvest_id, scorer, method, control, part, model, "
            "template_sha256, seed, value, ci_low, ci_high, n, n_failed, status, error"
        )
        found = self.rows(
            f"SELECT {keys} FROM scores WHERE explanation_id IN (SELECT unnest(?::VARCHAR[])) AND harvest_id = ? "
            "AND scorer = ? AND part = ? AND model = ? AND template_sha256 = ? AND seed = ? AND control IS NULL "
            "AND status <> 'gave_up' ORDER BY created_at",
            [list(explanation_ids), harvest_id, scorer, part, model, template_sha256, seed],
        )
        latest = {row[3]: Score(*row) for row in found}
        predictions: dict[str, list[Prediction]] = {score.score_id: score.predictions for score in latest.values()}
        rows = self.rows(
            "SELECT score_id, context_id, truth, predicted, status FROM predictions "
            "WHERE score_id IN (SELECT unnest(?::VARCHAR[])) ORDER BY score_id, context_id",
            [list(predictions)],
        )
        for score_id, *values in rows:
            predictions[score_id].append(Prediction(*values))
        return latest

    def search_labels(self, text: str, dictionary_id: int | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """Rows of `labels` whose label holds words of `text`: most words first, then the better score."""
        words = list(dict.fromkeys(text.lower().split()))[:16]
        if not words:
            raise InputError("nothing to search for: the text is empty")
        return self.dicts(
            """
            SELECT * EXCLUDE (n_words) FROM (
                SELECT *, len(list_filter(?::VARCHAR[], lambda w: contains(lower(label), w))) AS n_words
                FROM labels
                WHERE label IS NOT NULL AND (?::INTEGER IS NULL OR dictionary_id = ?)
            )
            WHERE n_words > 0
            ORDER BY n_words DESC, score DESC NULLS LAST, dictionary_id, feature
            LIMIT ?
            """,
            [words, dictionary_id, dictionary_id, limit],
        )

    # --- what a person wants to see --------------------------------------------------------------------------------

    def feature_page(self, dictionary_id: int, feature: int, contexts: int = 5) -> dict[str, Any]:
        """One feature for a reader: keys feature, label, explanations, scores (dicts by column), promoted and
        suppressed (PromotedToken), contexts (all splits; Context), and those of `findings_page`. Raises InputError
        where there is no such feature.
        """
        row = self.dicts("SELECT * FROM features WHERE dictionary_id = ? AND feature = ?", [dictionary_id, feature])
        if not row:
            span = self.rows("SELECT count(*), max(feature) FROM features WHERE dictionary_id = ?", [dictionary_id])[0]
            held = f"it has features 0 to {span[1]}" if span[0] else "it was not harvested yet"
            raise InputError(f"dictionary {dictionary_id} has no feature {feature}; {held}")
        key = [dictionary_id, feature]
        tokens = self.projected_tokens(dictionary_id, [feature])[feature]
        kinds = dict.fromkeys(("top", "sampled", "negative"), contexts)
        splits: tuple[Split, ...] = ("explain", "select", "report")
        harvest_id = row[0]["harvest_id"]
        return {
            "feature": row[0],
            "label": self.dicts("SELECT * FROM labels WHERE dictionary_id = ? AND feature = ?", key)[0],
            "explanations": self.dicts(
                "SELECT * FROM explanations WHERE dictionary_id = ? AND feature = ? ORDER BY created_at DESC", key
            ),
            "scores": self.dicts(
                "SELECT * FROM scores WHERE dictionary_id = ? AND feature = ? ORDER BY created_at DESC", key
            ),
            "promoted": [t for t in tokens if t.sign == 1],
            "suppressed": [t for t in tokens if t.sign == -1],
            "contexts": [
                c
                for split in splits
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
                    "scores": self.dicts(
                        "SELECT scorer, method, model, control, part, status, count(*) AS n, avg(value) AS mean "
                        "FROM scores WHERE dictionary_id = ? GROUP BY ALL ORDER BY ALL", key,
                    ),
                    "methods": self.method_counts(d.dictionary_id),
                    "to_measure": self.waiting_tasks(d.dictionary_id),
                    "without_label": self.rows(
                        "SELECT count(*) FROM labels WHERE dictionary_id = ? AND label IS NULL AND status <> 'dead'",
                        key,
                    )[0][0],
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
                "status, exit_code FROM runs ORDER BY runs.started_at DESC LIMIT 10"
            )],
        }  # fmt: skip

    def run_status(self, written: str) -> str:
        """The status of a run whose row says `written`: where we could open the store itself to read, nobody writes to
        it, and a run that is "running" by its row was killed."""
        is_alone = self.read_only and self.snapshot_age_s is None
        return "killed" if is_alone and written == "running" else written

    def row_counts(self) -> dict[str, int]:
        """Rows of each append-only table."""
        return {table: self.rows(f"SELECT count(*) FROM {table}")[0][0] for table in APPEND_ONLY}

    def label_summary(self, dictionary_id: int) -> dict[str, Any]:
        """features: count by status; labelled, scored: counts; scores: rows of explainer_leaderboard for the explainer
        that `labels` shows, without controls."""
        key = [dictionary_id]
        counts = self.rows(
            "SELECT status, count(*) FROM features WHERE dictionary_id = ? GROUP BY status ORDER BY count(*) DESC", key
        )
        labelled, scored = self.rows("SELECT count(label), count(score) FROM labels WHERE dictionary_id = ?", key)[0]
        scores = self.dicts(
            "SELECT * FROM explainer_leaderboard WHERE dictionary_id = ? AND control IS NULL AND explainer IN "
            "(SELECT explainer FROM labels WHERE dictionary_id = ?) ORDER BY scorer, method",
            [dictionary_id, dictionary_id],
        )
        return {"features": dict(counts), "labelled": labelled, "scored": scored, "scores": scores}

    def best_labels(self, dictionary_id: int, limit: int) -> list[dict[str, Any]]:
        """Rows of `labels`, the best score first."""
        return self.dicts(
            "SELECT * FROM labels WHERE dictionary_id = ? AND score IS NOT NULL ORDER BY score DESC, feature LIMIT ?",
            [dictionary_id, limit],
        )

    def training_curves(self, dictionary_id: int) -> list[tuple[int, str, float]]:
        """(step, metric, value) of the SAE's training, in order of steps, without those whose value was no number."""
        return [
            (int(step), metric, float(value))
            for step, metric, value in self.rows(
                "SELECT step, metric, value FROM training_metrics WHERE dictionary_id = ? AND value IS NOT NULL "
                "ORDER BY step, metric",
                [dictionary_id],
            )
        ]

    def activation_histograms(self, dictionary_id: int, n: int) -> list[tuple[int, str | None, list[float], list[int]]]:
        """(feature, its label or None, n + 1 edges, n counts) of the best-scored features, or of any where none are."""
        rows = self.rows(
            "SELECT f.feature, l.label, f.histogram_edges, f.histogram_counts FROM features AS f "
            "LEFT JOIN labels AS l USING (dictionary_id, feature) "
            "WHERE f.dictionary_id = ? AND f.status <> 'dead' ORDER BY l.score DESC NULLS LAST, f.feature LIMIT ?",
            [dictionary_id, n],
        )
        return [(int(feature), label, list(edges), list(counts)) for feature, label, edges, counts in rows if edges]

    def check(self) -> list[str]:
        """What does not hold in the store, one line each; empty where all is well. For `autointerp verify`."""
        checks = {
            "documents that lie in more than one split": """
                SELECT count(*) FROM (SELECT 1 FROM evidence.windows GROUP BY corpus_id, document
                                      HAVING count(DISTINCT split) > 1)""",
            "contexts whose window is missing or of another split": """
                SELECT count(*) FROM evidence.context_rows AS c LEFT JOIN evidence.windows AS w USING (window_id)
                WHERE w.split IS DISTINCT FROM c.split""",
            "snippets that stand in more than one split of a feature": """
                SELECT count(*) FROM (SELECT 1 FROM evidence.context_rows WHERE text_hash IS NOT NULL
                                      GROUP BY dictionary_id, harvest_id, feature, text_hash
                                      HAVING count(DISTINCT split) > 1)""",
            "features of no dictionary": """
                SELECT count(*) FROM features ANTI JOIN dictionaries USING (dictionary_id)""",
            "feature rows that stand twice": """
                SELECT count(*) FROM (SELECT 1 FROM features GROUP BY dictionary_id, feature HAVING count(*) > 1)""",
            "explanations of no feature": """
                SELECT count(*) FROM explanations ANTI JOIN features USING (dictionary_id, feature)""",
            "scores of no explanation": """
                SELECT count(*) FROM scores ANTI JOIN explanations USING (explanation_id)
                WHERE explanation_id IS NOT NULL""",
            "predictions of no score": "SELECT count(*) FROM predictions ANTI JOIN scores USING (score_id)",
        }
        return [f"{n:,} {what}" for what, sql in checks.items() if (n := self.rows(sql)[0][0])]


def _parsed(text: str | None) -> dict[str, Any]:
    return dict(json.loads(text)) if text else {}
