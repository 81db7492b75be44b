"""Everything that writes rows to the main file. Every method is one transaction and may be repeated without harm."""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from autointerp.errors import AutointerpError, InputError, MismatchError
from autointerp.records import CallRecord, Explanation, Score
from autointerp.store.connection import StoreConnection
from autointerp.store.safety.faults import translated

_Record = TypeVar("_Record", Explanation, Score)

_CALLS: dict[str, str] = {
    "request_sha256": "VARCHAR", "sample": "INTEGER", "run_id": "VARCHAR", "dictionary_id": "INTEGER",
    "feature": "INTEGER", "stage": "VARCHAR", "model": "VARCHAR", "status": "VARCHAR", "reply": "VARCHAR",
    "input_tokens": "BIGINT", "cached_tokens": "BIGINT", "output_tokens": "BIGINT", "cost_usd": "DOUBLE",
    "latency_s": "DOUBLE", "attempts": "INTEGER", "error": "VARCHAR",
}  # fmt: skip
_EXPLANATIONS: dict[str, str] = {
    "explanation_id": "VARCHAR", "dictionary_id": "INTEGER", "feature": "INTEGER", "harvest_id": "INTEGER",
    "explainer": "VARCHAR", "model": "VARCHAR", "template_sha256": "VARCHAR", "evidence_sha256": "VARCHAR",
    "seed": "BIGINT", "text": "VARCHAR", "status": "VARCHAR", "error": "VARCHAR", "rule": "VARCHAR", "side": "VARCHAR",
    "derived_from": "VARCHAR[]", "input_tokens": "BIGINT", "output_tokens": "BIGINT", "cost_usd": "DOUBLE",
}  # fmt: skip
_SCORES: dict[str, str] = {
    "score_id": "VARCHAR", "dictionary_id": "INTEGER", "feature": "INTEGER", "explanation_id": "VARCHAR",
    "harvest_id": "INTEGER", "scorer": "VARCHAR", "method": "VARCHAR", "control": "VARCHAR", "part": "VARCHAR",
    "model": "VARCHAR", "template_sha256": "VARCHAR", "seed": "BIGINT", "value": "DOUBLE", "ci_low": "DOUBLE",
    "ci_high": "DOUBLE", "n": "BIGINT", "n_failed": "BIGINT", "status": "VARCHAR", "error": "VARCHAR",
}  # fmt: skip
_FEATURES: dict[str, str] = {
    "feature": "INTEGER", "status": "VARCHAR", "density": "DOUBLE", "token_density": "DOUBLE",
    "n_active_tiles": "BIGINT", "n_active_tokens": "BIGINT", "max_activation": "DOUBLE",
    "mean_activation": "DOUBLE", "explain_max_activation": "DOUBLE", "histogram_edges": "FLOAT[]",
    "histogram_counts": "BIGINT[]",
}  # fmt: skip
_FEATURE_STATUSES = ("live", "rare", "dead", "no_heldout")

# Asked again and answered: the row becomes the answer. Any other row stays; its usage grows by what a second, paid
# reply to the same request cost (told apart from the same record written twice by its latency, which all results of one
# batch share, and its status).
_MERGE_CALL = """
    ON CONFLICT (request_sha256, sample) DO UPDATE SET
        status = if(llm_calls.status IN ('gave_up', 'bad_reply'), excluded.status, llm_calls.status),
        reply = if(llm_calls.status IN ('gave_up', 'bad_reply'), excluded.reply, llm_calls.reply),
        error = if(llm_calls.status IN ('gave_up', 'bad_reply'), excluded.error, llm_calls.error),
        latency_s = if(llm_calls.status IN ('gave_up', 'bad_reply'), excluded.latency_s, llm_calls.latency_s),
        input_tokens = llm_calls.input_tokens + excluded.input_tokens,
        cached_tokens = llm_calls.cached_tokens + excluded.cached_tokens,
        output_tokens = llm_calls.output_tokens + excluded.output_tokens,
        cost_usd = llm_calls.cost_usd + excluded.cost_usd,
        attempts = llm_calls.attempts + excluded.attempts
    WHERE llm_calls.latency_s <> excluded.latency_s
       OR (llm_calls.status IN ('gave_up', 'bad_reply') AND llm_calls.status <> excluded.status)
"""


def _replace_given_up(table: str, key: str, columns: Iterable[str]) -> str:
    """ON CONFLICT clause: a 'gave_up' row is replaced by what came of asking again; every other row stays."""
    sets = ", ".join(f"{c} = excluded.{c}" for c in (*columns, "created_at") if c != key)
    return f"ON CONFLICT ({key}) DO UPDATE SET {sets} WHERE {table}.status = 'gave_up'"


def clean(text: Any) -> Any:
    """A string without lone surrogates (DuckDB refuses them; a model's JSON may hold them); anything else as it is."""
    if isinstance(text, str) and not text.isascii():
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


def as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=True)


def check_finite(what: str, **numbers: float | None) -> None:
    """AutointerpError where a number that goes into the store is NaN or infinite."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise AutointerpError(f"{what}: {name} is {number}; a failure is stored as a status, never as a number")


def check_explanation(e: Explanation) -> None:
    """AutointerpError where the record may not be stored: text without 'ok' or the reverse, numbers not finite."""
    what = f"explanation of feature {e.feature} by {e.explainer}"
    check_finite(what, cost_usd=e.cost_usd)
    if (e.status == "ok") != (e.text is not None):
        raise AutointerpError(f"{what}: status is {e.status!r} but text is {e.text!r}; only 'ok' rows have a text")


def check_score(s: Score) -> None:
    """AutointerpError where the record may not be stored: a value without 'ok' or the reverse, numbers not finite."""
    what = f"score {s.scorer} of feature {s.feature}"
    check_finite(what, value=s.value, ci_low=s.ci_low, ci_high=s.ci_high)
    if (s.status == "ok") != (s.value is not None):
        raise AutointerpError(f"{what}: status is {s.status!r} but value is {s.value!r}; only 'ok' rows have a value")
    for p in s.predictions:
        if (p.status == "ok") != (p.predicted is not None):
            raise AutointerpError(f"{what}: context {p.context_id} has status {p.status!r} and predicted {p.predicted}")
        for name, numbers in (("truth", p.truth), ("predicted", p.predicted or [])):
            if not all(map(math.isfinite, numbers)):
                raise AutointerpError(f"{what}: context {p.context_id} has a {name} that is not finite")


def check_call(c: CallRecord) -> None:
    check_finite(f"call {c.request_sha256[:12]}", cost_usd=c.cost_usd, latency_s=c.latency_s)


KEYS_APART = 16_384
"""Keys of calls that are kept in a set, 70 bytes each, before they join the sorted array, 8 bytes each."""


class StoreWrites(StoreConnection):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._call_keys: np.ndarray | None = None
        self._new_call_keys: set[int] = set()
        self._keys_lock = threading.Lock()
        """Of both: one thread asks for calls while another commits."""

    def _insert(
        self, table: str, types: Mapping[str, str], columns: Mapping[str, Sequence[Any]], conflict: str = ""
    ) -> None:
        """One INSERT of whole columns; rows come in their order."""
        names = ", ".join(f'"{name}"' for name in columns)
        values = ", ".join(f"unnest(?::{types[name]}[])" for name in columns)
        self.con.execute(f"INSERT INTO {table} ({names}) SELECT {values} {conflict}", list(columns.values()))

    # --- what is worked on -----------------------------------------------------------------------------------------

    def add_corpus(
        self, source: str, config: Mapping[str, Any], tokenizer_sha256: str | None, n_documents: int, n_tokens: int
    ) -> int:
        """The corpus_id of this corpus, made where no equal one is recorded yet."""
        with self.transaction() as con:
            values = [clean(source), as_json(config), tokenizer_sha256, n_documents, n_tokens]
            found = con.execute(
                "SELECT corpus_id FROM corpora WHERE source = ? AND config = ?::JSON "
                "AND tokenizer_sha256 IS NOT DISTINCT FROM ? AND n_documents = ? AND n_tokens = ?",
                values,
            ).fetchall()
            if found:
                return int(found[0][0])
            corpus_id = self._next_id("corpora", "corpus_id")
            con.execute("INSERT INTO corpora VALUES (?, ?, ?, ?, ?, ?, ?)", [corpus_id, *values, self.now()])
            return corpus_id

    def add_dictionary(
        self, *, name: str, model: str, revision: str | None, hookpoint: str, output_hookpoint: str | None = None,
        architecture: str, d_in: int, d_out: int, d_sae: int, sae_sha256: str, tokenizer_sha256: str,
        config: Mapping[str, Any],
    ) -> int:  # fmt: skip
        """The dictionary_id of this SAE, made where the name is new.

        Raises MismatchError where the name is taken by another SAE, model, revision, hookpoint or tokenizer.
        """
        values: dict[str, Any] = {
            "model": model, "revision": revision, "hookpoint": hookpoint, "output_hookpoint": output_hookpoint,
            "architecture": architecture, "d_in": d_in, "d_out": d_out, "d_sae": d_sae, "sae_sha256": sae_sha256,
            "tokenizer_sha256": tokenizer_sha256,
        }  # fmt: skip
        with self.transaction() as con:
            found = con.execute(
                f"SELECT dictionary_id, {', '.join(values)} FROM dictionaries WHERE name = ?", [name]
            ).fetchone()
            if found:
                for column, old in zip(values, found[1:], strict=True):
                    # A model in a folder is known by its content (model/load.py), and may have been moved.
                    moved = column == "model" and str(revision).startswith("local:")
                    if old != values[column] and not moved:
                        raise MismatchError(
                            f"the store {self.path} already has a dictionary {name!r} with {column} {old!r}, now it is "
                            f"{values[column]!r}. Give the new one another `name` under [[sae]], or use another store"
                        )
                return int(found[0])
            dictionary_id = self._next_id("dictionaries", "dictionary_id")
            columns = {"dictionary_id": dictionary_id, "name": name, **values, "config": as_json(config)}
            con.execute(
                f"INSERT INTO dictionaries ({', '.join(columns)}, created_at) "
                f"VALUES ({', '.join('?' * (len(columns) + 1))})",
                [*columns.values(), self.now()],
            )
            return dictionary_id

    def add_harvest(
        self, dictionary_id: int, corpus_id: int, n_tokens: int, config: Mapping[str, Any],
        report: Mapping[str, Any] | None = None,
    ) -> int:  # fmt: skip
        """The harvest_id of this pass over a corpus, made where no equal one is recorded yet."""
        with self.transaction() as con:
            key = [dictionary_id, corpus_id, n_tokens, as_json(config)]
            found = con.execute(
                "SELECT harvest_id FROM harvests WHERE dictionary_id = ? AND corpus_id = ? AND n_tokens = ? "
                "AND config = ?::JSON",
                key,
            ).fetchall()
            if found:
                return int(found[0][0])
            harvest_id = self._next_id("harvests", "harvest_id")
            con.execute(
                "INSERT INTO harvests VALUES (?, ?, ?, ?, ?, ?, ?)",
                [harvest_id, *key, as_json(report or {}), self.now()],
            )
            return harvest_id

    def _next_id(self, table: str, column: str) -> int:
        row = self.con.execute(f"SELECT coalesce(max({column}), 0) + 1 FROM {table}").fetchone()
        assert row is not None
        return int(row[0])

    # --- features and what is known of them ------------------------------------------------------------------------

    def replace_features(self, dictionary_id: int, harvest_id: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Sets the dictionary's feature rows: one value, or list for the histogram, per feature in every column.

        Columns: feature, status, density, token_density, n_active_tiles, n_active_tokens, max_activation,
        mean_activation, explain_max_activation, histogram_edges, histogram_counts.
        """
        missing = [name for name in _FEATURES if name not in columns]
        if missing or len(columns) != len(_FEATURES):
            raise AutointerpError(f"features need the columns {', '.join(_FEATURES)}; missing: {missing}")
        data = {name: _listed(columns[name]) for name in _FEATURES}
        for name in ("density", "token_density", "max_activation", "mean_activation", "explain_max_activation"):
            if not np.isfinite(np.asarray(data[name], dtype=np.float64)).all():
                raise AutointerpError(f"features of dictionary {dictionary_id}: {name} is not finite everywhere")
        unknown = set(data["status"]) - set(_FEATURE_STATUSES)
        if unknown:
            raise AutointerpError(f"feature status must be one of {', '.join(_FEATURE_STATUSES)}, not {unknown}")
        with self.transaction() as con:
            con.execute("DELETE FROM features WHERE dictionary_id = ?", [dictionary_id])
            n = len(data["feature"])
            types = {"dictionary_id": "INTEGER", "harvest_id": "INTEGER", **_FEATURES}
            ids = {"dictionary_id": [dictionary_id] * n, "harvest_id": [harvest_id] * n}
            self._insert("features", types, {**ids, **data})

    def insert_vocab_projection(
        self, dictionary_id: int, *, feature: np.ndarray, sign: np.ndarray, rank: np.ndarray, token_id: np.ndarray,
        token: Sequence[str], logit: np.ndarray,
    ) -> None:  # fmt: skip
        """Sets the dictionary's promoted (sign 1) and suppressed (-1) tokens; all arrays [n], rank 0 the strongest."""
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
                    "INSERT INTO vocab_projection SELECT ?, feature, sign, rank, token_id, token, logit "
                    "FROM new_projection ORDER BY feature, sign DESC, rank",
                    [dictionary_id],
                )
            finally:
                con.unregister("new_projection")

    def insert_metrics(self, dictionary_id: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds metrics of an SAE; a row written before under the same key is replaced.

        A row with `step` is a training metric (step, metric, value), where a value that is not finite becomes NULL;
        any other goes to sae_metrics (metric, value and, where known, corpus_id, split, ci_low, ci_high, n_tokens).
        """
        training = [r for r in rows if "step" in r]
        structural = [r for r in rows if "step" not in r]
        with self.transaction() as con:
            if training:
                con.execute(
                    "DELETE FROM training_metrics WHERE dictionary_id = ? "
                    "AND (step, metric) IN (SELECT (unnest(?::BIGINT[]), unnest(?::VARCHAR[])))",
                    [dictionary_id, [r["step"] for r in training], [r["metric"] for r in training]],
                )
                values = [v if (v := r["value"]) is not None and math.isfinite(v) else None for r in training]
                self._insert(
                    "training_metrics",
                    {"dictionary_id": "INTEGER", "step": "BIGINT", "metric": "VARCHAR", "value": "DOUBLE"},
                    {
                        "dictionary_id": [dictionary_id] * len(training),
                        "step": [r["step"] for r in training],
                        "metric": [r["metric"] for r in training],
                        "value": values,
                    },
                )
            for r in structural:
                check_finite(f"metric {r['metric']}", value=r.get("value"), low=r.get("ci_low"), high=r.get("ci_high"))
                key = [dictionary_id, r.get("corpus_id"), r.get("split"), r["metric"]]
                con.execute(
                    "DELETE FROM sae_metrics WHERE dictionary_id = ? AND corpus_id IS NOT DISTINCT FROM ? "
                    "AND split IS NOT DISTINCT FROM ? AND metric = ?",
                    key,
                )
                con.execute(
                    "INSERT INTO sae_metrics VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [*key, r.get("value"), r.get("ci_low"), r.get("ci_high"), r.get("n_tokens")],
                )

    def set_label_choice(self, dictionary_id: int, explainer: str | None, scorer: str | None) -> None:
        """Which explainer and scorer the `labels` view shows for a dictionary; None: whatever came last."""
        with self.transaction() as con:
            for name, value in (("label_explainer", explainer), ("label_scorer", scorer)):
                con.execute("DELETE FROM settings WHERE dictionary_id = ? AND name = ?", [dictionary_id, name])
                if value is not None:
                    con.execute("INSERT INTO settings VALUES (?, ?, ?)", [dictionary_id, name, value])

    # --- calls, labels, scores -------------------------------------------------------------------------------------

    def insert_calls(self, calls: Sequence[CallRecord]) -> None:
        """Adds paid calls. A call recorded before stays, unless it had given up; what a second reply cost is added."""
        self.insert_group(calls=calls)

    def insert_explanations(self, explanations: Sequence[Explanation]) -> None:
        """Adds explanations. One recorded before stays as it is, unless it had given up."""
        self.insert_group(explanations=explanations)

    def insert_scores(self, scores: Sequence[Score]) -> None:
        """Adds scores with their predictions. One recorded before stays as it is, unless it had given up.

        Raises AutointerpError where a prediction's context is not of the score's part and feature (law 3).
        """
        self.insert_group(scores=scores)

    def insert_group(
        self, calls: Sequence[CallRecord] = (), explanations: Sequence[Explanation] = (), scores: Sequence[Score] = ()
    ) -> None:
        """Calls, explanations and scores in one transaction."""
        for call in calls:
            check_call(call)
        for explanation in explanations:
            check_explanation(explanation)
        for score in scores:
            check_score(score)
        with self.transaction():
            if calls:
                self._insert_calls(calls)
            if explanations:
                # Of one id twice in a group the first counts, as it would in two groups.
                unique = _first_unless_given_up(explanations, "explanation_id")
                given_up = _replace_given_up("explanations", "explanation_id", _EXPLANATIONS)
                self._insert_records("explanations", _EXPLANATIONS, unique, given_up)
            if scores:
                self._insert_scores(_first_unless_given_up(scores, "score_id"))

    def _insert_records(self, table: str, types: dict[str, str], records: Sequence[Any], conflict: str) -> None:
        columns: dict[str, list[Any]] = {name: [clean(getattr(r, name)) for r in records] for name in types}
        columns["created_at"] = [self.now() for _ in records]
        self._insert(table, {**types, "created_at": "TIMESTAMP"}, columns, conflict)

    def _insert_calls(self, calls: Sequence[CallRecord]) -> None:
        merged: dict[tuple[str, int], CallRecord] = {}
        for call in calls:
            key = (call.request_sha256, call.sample)
            merged[key] = _merged(merged[key], call) if key in merged else call
        old = [c for c in merged.values() if self.may_hold_call(c.request_sha256)]
        new = [c for c in merged.values() if not self.may_hold_call(c.request_sha256)]
        # ON CONFLICT costs four times as much as the rest of a commit, the more the larger the table is.
        for calls_alike, conflict in ((new, ""), (old, _MERGE_CALL)):
            if calls_alike:
                self._insert_records("llm_calls", _CALLS, calls_alike, conflict)
        self._add_call_keys(new)

    def may_hold_call(self, request_sha256: str) -> bool:
        """Whether a look into the table is worth while. A sorted array and a set instead of an index: a miss, the usual
        case, costs microseconds instead of a scan."""
        with self._keys_lock:
            if self._call_keys is None:
                self._call_keys = self._recorded_call_keys()
            key = call_key(request_sha256)
            at = int(np.searchsorted(self._call_keys, np.uint64(key)))
            return key in self._new_call_keys or (at < len(self._call_keys) and int(self._call_keys[at]) == key)

    def _recorded_call_keys(self) -> np.ndarray:
        """call_key of every recorded call, ascending; as DuckDB gives it, without a Python object for each."""
        with translated(self.path):
            cursor = self.con.cursor()
            try:
                cursor.execute(
                    "SELECT ('0x' || substr(request_sha256, 1, 16))::UBIGINT AS call_key FROM llm_calls ORDER BY ALL"
                )
                return np.asarray(cursor.fetchnumpy()["call_key"], dtype=np.uint64)
            finally:
                cursor.close()

    def _add_call_keys(self, calls: Sequence[CallRecord]) -> None:
        """Before the commit is certain: a key too many costs a look, one too few a paid call."""
        with self._keys_lock:
            self._new_call_keys.update(call_key(call.request_sha256) for call in calls)
            if self._call_keys is not None and len(self._new_call_keys) >= KEYS_APART:
                new = np.fromiter(self._new_call_keys, dtype=np.uint64, count=len(self._new_call_keys))
                self._call_keys = np.union1d(self._call_keys, new)
                self._new_call_keys = set()

    def _insert_scores(self, scores: Sequence[Score]) -> None:
        self._check_parts(scores)
        ids = [s.score_id for s in scores]
        done = {
            row[0]
            for row in self.con.execute(
                "SELECT score_id FROM scores WHERE status <> 'gave_up' AND score_id IN (SELECT unnest(?::VARCHAR[]))",
                [ids],
            ).fetchall()
        }
        self._insert_records("scores", _SCORES, scores, _replace_given_up("scores", "score_id", _SCORES))
        # A score that gave up is no answer and may be replaced, so it leaves no predictions: those are append-only.
        fresh = [s for s in scores if s.score_id not in done and s.status != "gave_up"]
        new = [(s.score_id, p) for s in fresh for p in s.predictions]
        if new:
            self._insert(
                "predictions",
                {"score_id": "VARCHAR", "context_id": "BIGINT", "truth": "FLOAT[]", "predicted": "FLOAT[]",
                 "status": "VARCHAR"},
                {
                    "score_id": [score_id for score_id, _ in new],
                    "context_id": [p.context_id for _, p in new],
                    "truth": [p.truth for _, p in new],
                    "predicted": [p.predicted for _, p in new],
                    "status": [p.status for _, p in new],
                },
            )  # fmt: skip

    def _check_parts(self, scores: Sequence[Score]) -> None:
        """Law 3: what a score was computed on lies in its own part of the corpus, and belongs to its feature."""
        flat = [(s.dictionary_id, s.feature, s.part, p.context_id) for s in scores for p in s.predictions]
        if not flat:
            return
        wrong = self.con.execute(
            """
            WITH p AS (
                SELECT unnest(?::INTEGER[]) AS dictionary_id, unnest(?::INTEGER[]) AS feature,
                       unnest(?::VARCHAR[]) AS part, unnest(?::BIGINT[]) AS context_id
            )
            SELECT p.feature, p.part, p.context_id, c.split
            FROM p LEFT JOIN (
                SELECT dictionary_id, feature, context_id, split FROM evidence.context_rows
                WHERE feature IN (SELECT feature FROM p)
            ) AS c USING (dictionary_id, feature, context_id)
            WHERE c.split IS DISTINCT FROM p.part LIMIT 1
            """,
            [list(column) for column in zip(*flat, strict=True)],
        ).fetchone()
        if wrong:
            feature, part, context_id, split = wrong
            where = f"lies in split {split!r}" if split else "is not among the feature's contexts"
            raise AutointerpError(
                f"score of feature {feature} on part {part!r}: context {context_id} {where}; a score may only use "
                "contexts of its own part"
            )

    # --- runs ------------------------------------------------------------------------------------------------------

    def begin_run(self, command: str, config: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
        """Records that a command starts; the run_id that its calls carry. One process writes at a time, so a row that
        still says "running" is of one that was killed."""
        run_id = uuid.uuid4().hex
        with self.transaction() as con:
            con.execute("UPDATE runs SET status = 'killed' WHERE status = 'running'")
            con.execute(
                "INSERT INTO runs (run_id, command, started_at, status, config, versions) "
                "VALUES (?, ?, ?, 'running', ?, ?)",
                [run_id, clean(command), self.now(), as_json(config), as_json(versions)],
            )
        return run_id

    def finish_run(self, run_id: str, status: str, exit_code: int) -> None:
        with self.transaction() as con:
            found = con.execute(
                "UPDATE runs SET finished_at = ?, status = ?, exit_code = ? WHERE run_id = ?",
                [self.now(), status, exit_code, run_id],
            ).fetchone()
            if not found or not found[0]:
                raise InputError(f"no run {run_id!r} in {self.path}")


def call_key(request_sha256: str) -> int:
    """The first 64 bits of a request's hash."""
    return int(request_sha256[:16], 16)


def _merged(first: CallRecord, second: CallRecord) -> CallRecord:
    """What _MERGE_CALL does, for two records of one key in the same group."""
    is_open = first.status in ("gave_up", "bad_reply")
    if first.latency_s == second.latency_s and not (is_open and first.status != second.status):
        return first
    told = second if is_open else first
    return replace(
        first,
        status=told.status,
        reply=told.reply,
        error=told.error,
        latency_s=told.latency_s,
        input_tokens=first.input_tokens + second.input_tokens,
        cached_tokens=first.cached_tokens + second.cached_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        cost_usd=first.cost_usd + second.cost_usd,
        attempts=first.attempts + second.attempts,
    )


def _first_unless_given_up(records: Sequence[_Record], key: str) -> list[_Record]:
    kept: dict[str, _Record] = {}
    for record in records:
        old = kept.get(getattr(record, key))
        if old is None or old.status == "gave_up":
            kept[getattr(record, key)] = record
    return list(kept.values())


def _listed(column: Sequence[Any]) -> list[Any]:
    if isinstance(column, np.ndarray):
        return list(column.tolist())
    return [v.tolist() if isinstance(v, np.ndarray) else v for v in column]
