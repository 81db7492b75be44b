"""A label on text as it comes: against every tile of a small corpus, of which all is known."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.evidence_helpers import SMALL, WORDS, Setup, dense_activations
from support.known_words import RAW_MAX, T, contexts, job

from autointerp import stats
from autointerp.ask.scale import scaled
from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.corpus.windows import token_ids
from autointerp.explain.explaining import explain
from autointerp.prevalence import SILENT_GROUPS, is_group
from autointerp.records import SPLITS, Prediction, Window, WorkUnit
from autointerp.rules.patterns import Rule
from autointerp.score.natural import (
    CLAIM,
    NATURAL,
    PRECISION,
    RECALL,
    Prevalence,
    SilentTiles,
    natural_rows,
    precision_result,
)
from autointerp.score.score_rows import Answer, Identity
from autointerp.score.scoring import score
from autointerp.store.scores import check_score
from autointerp.store.store import Store

IDENTITY = Identity(None, 1, "rule", None, "rule", "", 0, feature=(1, 0))
CONFIG = replace(SMALL, negative_pool_windows=500, sampled_contexts=200, top_contexts=8)


@pytest.fixture(scope="module")
def setup(tiny_gpt2: Path) -> Setup:
    """The corpus's documents are random words, so that hardly a text stands in it twice."""
    made, rng = Setup(tiny_gpt2), random.Random(5)
    ids = [token_ids([" ".join(rng.choices(WORDS, k=120))], made.loaded.tokenizer)[0] for _ in range(36)]
    windows = [
        Window(f"d{i}", start, SPLITS[i % 3], [0, *one[start : start + 24]], 1)
        for i, one in enumerate(ids)
        for start in range(0, len(one) - 24, 24)
    ]
    made.units = [WorkUnit(0, windows, len(ids))]
    return made


@pytest.fixture(scope="module")
def store(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    root = tmp_path_factory.mktemp("natural")
    folder = setup.folder(root / "work", CONFIG)
    setup.harvest(folder, CONFIG)
    with Store.open(root / "x.duckdb", create=True) as opened:
        setup.merge(opened, folder, CONFIG)
        work = job(opened)
        asyncio.run(explain(work, ExplainConfig(explainer="patterns")))
        asyncio.run(score(work, "patterns", ScoreConfig(contexts=4)))
        yield opened


def where_it_holds(
    row: dict[str, Any], acts: list[np.ndarray], claimed: np.ndarray, pairs: dict[str, list[tuple[float, float]]]
) -> None:
    """Adds what the view `labels` says of the activation from which on the label holds, beside the truth over all
    tiles."""
    assert row["from_status"] is not None and (row["label_from"] is None) == (row["from_status"] != "ok")
    if row["label_from"] is None:
        return
    feature = row["feature"]
    peaks = np.array([tile[:, feature].max() for tile in acts])
    mass = np.array([tile[:, feature].sum() for tile in acts])
    reach = (peaks > 0) & (peaks >= row["label_from"])
    pairs["from_share"].append((row["from_share"], reach.sum() / (peaks > 0).sum()))
    pairs["from_mass"].append((row["from_mass"], mass[reach].sum() / mass.sum()))
    pairs["from_recall"].append((row["from_recall"], claimed[reach].mean()))
    if row["from_precision"] is not None:
        pairs["from_precision"].append((row["from_precision"], reach[claimed].mean()))
        assert row["from_precision_low"] is None or row["from_precision_low"] <= row["from_precision"]


def test_it_is_the_correlation_over_all_tiles_of_the_report_split(setup: Setup, store: Store) -> None:
    acts: list[np.ndarray] = []
    tokens: list[list[str]] = []
    for unit in setup.units:
        for index, dense in dense_activations(setup, unit).items():
            window = unit.windows[index]
            if window.split == "report":
                text = setup.text.tokens(window.token_ids)
                for start in range(window.n_prefix, len(text), CONFIG.context_tokens):
                    end = start + CONFIG.context_tokens
                    tokens.append(text[start:end])
                    acts.append(dense[start:end])
    found = {
        (feature, scorer): (value, status)
        for feature, scorer, value, status in store.rows(
            "SELECT feature, scorer, value, status FROM scores WHERE part = 'report' AND control IS NULL"
        )
    }
    rules = dict(store.rows("SELECT feature, rule FROM explanations WHERE status = 'ok'"))
    tops = dict(store.rows("SELECT feature, explain_max_activation FROM features"))
    labels = {row["feature"]: row for row in store.dicts("SELECT * FROM labels")}
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for feature, text in rules.items():
        rule = Rule.from_json(text)
        predicted = [rule.predict(tile) for tile in tokens]
        firing = np.array([tile[:, feature].max() > 0 for tile in acts])
        claimed = np.array([max(p) >= CLAIM for p in predicted])
        scaled_truth = [scaled(tile[:, feature].tolist(), tops[feature]) for tile in acts]
        right = stats.pearson(np.concatenate(scaled_truth), np.concatenate(predicted))
        value, status = found[feature, "simulation_natural"]
        if value is None or right is None:
            assert status in ("no_contexts", "constant_prediction"), (status, right)
            continue
        pairs["natural"].append((value, right))
        pairs["recall"].append((found[feature, "simulation_recall"][0], claimed[firing].mean()))
        precision, status = found[feature, "simulation_precision"]
        if precision is not None:
            pairs["precision"].append((precision, firing[claimed].mean()))
        else:
            assert status == "no_false_alarm" and not (claimed & ~firing).sum() > 3
        where_it_holds(labels[feature], acts, claimed, pairs)
    bias, worst = {}, {}
    for name, some in pairs.items():
        values, truth = np.array(some).T
        bias[name], worst[name] = abs((values - truth).mean()), np.abs(values - truth).max()
        assert len(some) > 10
    assert bias["natural"] < 0.01 and bias["recall"] < 0.03 and bias["precision"] < 0.06, bias
    assert worst["natural"] < 0.05 and worst["recall"] < 0.1 and worst["precision"] < 0.15, worst
    assert bias["from_precision"] < 0.06 and bias["from_recall"] < 0.05 and bias["from_share"] < 0.05, bias
    assert bias["from_mass"] < 0.05, bias
    mixture = [value for (_, scorer), (value, _) in found.items() if scorer == "simulation" and value is not None]
    assert np.mean(mixture) > np.mean([value for value, _ in pairs["natural"]])


def test_a_label_that_claims_nothing_has_no_precision_and_its_row_can_be_stored() -> None:
    result = precision_result(stats.wilson(0, 20), stats.wilson(0, 30), 0.1)
    assert (result.status, result.estimate.value) == ("no_claim", None)
    check_score(IDENTITY.row(PRECISION, "report", [], result, keep=False))


def predicted(kinds: str, numbers: list[float] | None, status: str = "ok") -> list[Answer]:
    """The same prediction of contexts of one kind or tier."""
    some = [c for c in contexts(0, "report") if kinds in (c.kind, c.tier)]
    return [
        Answer(c, Prediction(c.context_id, scaled(c.activations, RAW_MAX), numbers, status), None if numbers else "no")
        for c in some
    ]


def test_every_row_counts_the_failed_ones_of_its_own_tiles() -> None:
    active, failed = predicted("sampled", [1.0] * T), predicted("random", None, "truncated")
    rows = {row.scorer: row for row in natural_rows(IDENTITY, active, SilentTiles.of(failed), Prevalence(10, 90))}
    assert (rows[NATURAL].n, rows[NATURAL].n_failed) == (len(active) + len(failed), len(failed))
    assert rows[NATURAL].status == rows[PRECISION].status == "no_contexts"
    assert (rows[RECALL].n, rows[RECALL].n_failed, rows[RECALL].value) == (len(active), 0, 1.0)


def test_a_constant_prediction_is_worth_nothing_and_a_constant_truth_has_no_value() -> None:
    active, silent = predicted("sampled", [3.3] * T), SilentTiles.of(predicted("random", [3.3] * T))
    row = natural_rows(IDENTITY, active, silent, Prevalence(10, 90))[0]
    assert (row.status, row.value, set(row.influences or [])) == ("constant_prediction", 0.0, {0.0})
    steady = [replace(a, prediction=replace(a.prediction, truth=[5.0] * T)) for a in active]
    row = natural_rows(IDENTITY, steady, SilentTiles(), Prevalence(10, 0))[0]
    assert (row.status, row.value) == ("constant_truth", None)


def test_what_it_was_counted_over(store: Store) -> None:
    rows = store.rows(
        "SELECT feature, scorer, n, n_documents, n_by_kind FROM scores WHERE control IS NULL "
        "AND scorer IN ('simulation_natural', 'simulation_precision', 'simulation_recall')"
    )
    assert len(rows) > 30
    for feature, scorer, n, n_documents, kinds in rows:
        n_by_kind = json.loads(kinds)
        sampled = store.contexts_of(1, 1, [feature], "report", {"sampled": None})[feature]
        assert n_by_kind["sampled"] == len(sampled) and n_documents == len({c.source for c in sampled})
        assert sum(n_by_kind.values()) == n and (scorer == RECALL) == ("random" not in n_by_kind)


def test_it_is_known_how_documents_move_it(store: Store) -> None:
    rows = store.rows(
        "SELECT documents, influences FROM scores WHERE scorer = 'simulation_natural' AND status = 'ok' "
        "AND control IS NULL AND influences IS NOT NULL"
    )
    assert len(rows) > 10
    for documents, influences in rows:
        assert len(documents) == len(influences) == len(set(documents))
        groups = [document for document in documents if is_group(document)]
        assert len(groups) <= SILENT_GROUPS < 36 and len(groups) < len(documents)
    board = store.rows(
        "SELECT se_features, se_both, n_documents FROM explainer_leaderboard "
        "WHERE scorer = 'simulation_natural' AND control IS NULL"
    )
    assert len(board) == 1 and 0 < board[0][0] <= board[0][1] and board[0][2] > 10
