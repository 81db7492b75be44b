"""Means over features that were scored on the same documents: the standard errors of `compare` and of the leaderboard,
against plain loops over what was stored."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import run
from support.store_fixtures import add_features, explanation, filled, score

from autointerp.means import t_point
from autointerp.store import Store

FEATURES, DOCUMENTS, OF_FEATURE = 12, 16, 10
RNG = np.random.default_rng(4)
SHARED = RNG.normal(0.0, 0.3, DOCUMENTS)
"""What each document adds to every score."""


def values_and_influences(shift: float, of_documents: float) -> list[tuple[float, dict[str, float]]]:
    """For each feature a mean over its documents, and by how much each of those moves it."""
    found = []
    for f in range(FEATURES):
        documents = [(3 * f + i) % DOCUMENTS for i in range(OF_FEATURE)]
        x = shift + of_documents * SHARED[documents] + RNG.normal(0.0, 0.1, OF_FEATURE)
        left_out = (x.sum() - x) / (OF_FEATURE - 1)
        moved = math.sqrt((OF_FEATURE - 1) / OF_FEATURE) * (left_out.mean() - left_out)
        found.append((float(x.mean()), {f"doc{d}": float(m) for d, m in zip(documents, moved, strict=True)}))
    return found


REAL, OTHER, FLOOR = values_and_influences(0.6, 1.0), values_and_influences(0.5, 0.2), values_and_influences(0.1, 0.0)


def by_hand(values: list[float], influences: list[dict[str, float]]) -> dict[str, float]:
    """The standard errors, and half of the interval, of the mean of `values`."""
    n = len(values)
    by_features = float(np.var(values, ddof=1)) / n
    documents = sorted({d for one in influences for d in one})
    totals = [sum(one.get(d, 0.0) for one in influences) for d in documents]
    own = sum(v * v for one in influences for v in one.values())
    squares, fourths = sum(t**2 for t in totals), sum(t**4 for t in totals)
    between = max(0.0, squares - own) / n**2
    of_documents = min(len(documents) - 1.0, 2 * len(documents) / (len(documents) * fourths / squares**2 - 1))
    both = by_features + between
    freedom = both**2 / (by_features**2 / (n - 1) + between**2 / of_documents)
    return {
        "se_features": math.sqrt(by_features), "se_both": math.sqrt(both), "n_documents": len(documents),
        "freedom": freedom, "mean": float(np.mean(values)),
    }  # fmt: skip


def minus(a: list[tuple[float, dict[str, float]]], b: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    moved = [{d: x[d] - y[d] for d in x} for (_, x), (_, y) in zip(a, b, strict=True)]
    return by_hand([x - y for (x, _), (y, _) in zip(a, b, strict=True)], moved)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two explainers, and a control of the first; one score of the second was written before documents were noted."""
    path = tmp_path_factory.mktemp("shared") / "x.duckdb"
    store, dictionary, harvest = filled(path)
    with store:
        add_features(store, dictionary, harvest, ["live"] * FEATURES)
        for explainer, control, rows in (
            ("contexts", None, REAL),
            ("contexts", "shuffled", FLOOR),
            ("pruned", None, OTHER),
        ):
            for f, (value, moved) in enumerate(rows):
                label = explanation(f, explainer=explainer, model="gpt", template_sha256=explainer)
                store.insert_explanations([label])
                noted: dict[str, Any] = {
                    "n_documents": len(moved),
                    "documents": list(moved),
                    "influences": [*moved.values()],
                }
                store.insert_scores([score(label, control=control, value=value, ci_low=None, ci_high=None, **noted)])
        alone = explanation(0, explainer="older", model="gpt", template_sha256="older")
        store.insert_explanations([alone])
        store.insert_scores([score(alone, value=0.5)])
    return path


def test_compare_gives_the_standard_error_by_both(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "compare", "--store", str(path), "--format", "json")
    assert code == 0, err
    rows = {(row["a"], row["b"]): row for row in json.loads(out)}
    for key, wanted in (
        (("contexts", "pruned"), minus(REAL, OTHER)),
        (("contexts", "control: shuffled"), minus(REAL, FLOOR)),
    ):
        row = rows[key]
        assert row["n"] == FEATURES and row["difference"] == pytest.approx(wanted["mean"])
        for name in ("se_features", "se_both", "n_documents"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-5), (key, name)
        half = t_point(wanted["freedom"]) * wanted["se_both"]
        assert row["ci_high"] - row["difference"] == pytest.approx(half, rel=1e-5)
        assert row["se_both"] > 1.2 * row["se_features"]
    older = rows["contexts", "older"]
    assert (older["n"], older["ci_low"], older["se_both"], older["n_documents"]) == (1, None, None, None)


def test_the_leaderboard_gives_the_standard_error_by_both(path: Path) -> None:
    with Store.open(path, read_only=True) as store:
        found = store.dicts("SELECT * FROM explainer_leaderboard")
    rows = {(row["explainer"], row["control"]): row for row in found}
    for key, stored in ((("contexts", None), REAL), (("contexts", "shuffled"), FLOOR), (("pruned", None), OTHER)):
        wanted, row = by_hand([v for v, _ in stored], [moved for _, moved in stored]), rows[key]
        assert row["mean_score"] == pytest.approx(wanted["mean"])
        for name in ("se_features", "se_both", "n_documents"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-5), (key, name)
        half = t_point(math.floor(wanted["freedom"])) * wanted["se_both"]
        assert row["ci_high"] - row["mean_score"] == pytest.approx(half, rel=1e-5), key
    older = rows["older", None]
    assert (older["n"], older["ci_low"], older["se_features"], older["se_both"]) == (1, None, None, None)


def test_several_scores_of_a_feature_share_its_weight(tmp_path: Path) -> None:
    """A second score by another seed with the same influences moves the mean no more than the one did."""
    store, dictionary, harvest = filled(tmp_path / "x.duckdb")
    with store:
        add_features(store, dictionary, harvest, ["live"] * FEATURES)
        for f, (value, moved) in enumerate(REAL):
            label = explanation(f, model="gpt")
            store.insert_explanations([label])
            noted: dict[str, Any] = {
                "n_documents": len(moved),
                "documents": list(moved),
                "influences": [*moved.values()],
            }
            seeds = (0, 1) if f == 3 else (0,)
            store.insert_scores([score(label, seed=seed, value=value, **noted) for seed in seeds])
        (row,) = store.dicts("SELECT * FROM explainer_leaderboard")
    once = by_hand([v for v, _ in REAL], [moved for _, moved in REAL])
    # The two scores' own share is counted as if they were of two features: half of what is subtracted for feature 3.
    extra = sum(m * m for m in REAL[3][1].values()) / 2 / FEATURES**2
    assert row["n"] == FEATURES and row["se_both"] == pytest.approx(math.sqrt(once["se_both"] ** 2 + extra), rel=1e-5)
