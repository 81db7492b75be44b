"""Comparisons with known numbers: a real store of a few labels and scores, read back through the command line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run
from support.store_fixtures import add_features, explanation, filled, score

from autointerp.records import Explanation
from autointerp.report.compare import label_words, word_f1
from autointerp.report.show import score_lines
from autointerp.scorer_names import headline_of
from autointerp.store import Store

N = 8


def label(feature: int, explainer: str = "contexts", **changed: Any) -> Explanation:
    values = {"explainer": explainer, "model": "gpt", "template_sha256": f"t-{explainer}", "evidence_sha256": explainer,
              **changed}  # fmt: skip
    return explanation(feature, **values)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.duckdb"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened, dictionary, harvest = filled(path)
    add_features(opened, dictionary, harvest, ["live"] * N)
    with opened:
        yield opened


def compared(capsys: pytest.CaptureFixture[str], path: Path, *more: str) -> list[dict[str, Any]]:
    code, out, err = run(capsys, "compare", "--store", str(path), "--format", "json", *more)
    assert code == 0, err
    found: list[dict[str, Any]] = json.loads(out)
    return found


def two_explainers(store: Store) -> None:
    """`contexts` beats `pruned` by .1 on features 0-3, ties on 4, loses by .2 on 5; 6 and 7 are not common."""
    contexts = [label(f) for f in range(7)]
    pruned = [label(f, "pruned") for f in (0, 1, 2, 3, 4, 5, 7)]
    store.insert_explanations([*contexts, *pruned])
    base = 0.5
    of_pruned = {0: base, 1: base, 2: base, 3: base, 4: base, 5: base + 0.2, 7: 0.9}
    store.insert_scores([score(e, value=base + (0.1 if e.feature < 4 else 0.0)) for e in contexts])
    store.insert_scores([score(e, value=of_pruned[e.feature]) for e in pruned])


def test_explainers_are_paired_over_the_same_features(
    store: Store, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_explainers(store)
    # None of these may count: another method, a control, the select part, a part of a score, a failure.
    first, second = label(6), label(6, "pruned")
    store.insert_explanations([second])
    store.insert_scores([score(second, status="gave_up"), score(second, value=0.0, part="select")])
    store.insert_scores([score(second, value=0.0, method="rule"), score(first, value=1.0, method="other")])
    store.close()
    rows = compared(capsys, path)
    assert len(rows) == 1
    (row,) = rows
    assert (row["a"], row["b"], row["scorer"], row["method"]) == ("contexts", "pruned", "simulation", "numbers")
    assert (row["n"], row["n_unpaired"]) == (6, 2)
    assert row["difference"] == pytest.approx((4 * 0.1 - 0.2) / 6) == pytest.approx(row["mean_a"] - row["mean_b"])
    assert row["ci_low"] < row["difference"] < row["ci_high"] and row["ci_low"] < 0
    assert (row["higher"], row["lower"]) == (pytest.approx(4 / 6), pytest.approx(1 / 6))


def test_several_labels_of_a_feature_count_once(store: Store, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_explainers(store)
    extra = label(0, seed=1)
    store.insert_explanations([extra])
    store.insert_scores([score(extra, value=0.0)])
    store.close()
    (row,) = compared(capsys, path)
    assert row["n"] == 6 and row["difference"] == pytest.approx((0.3 - 0.5 + 3 * 0.1 - 0.2) / 6)


def test_against_one_explainer_and_models_told_apart(
    store: Store, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_explainers(store)
    other = [label(f, model="llama") for f in range(3)]
    store.insert_explanations(other)
    store.insert_scores([score(e, value=0.7) for e in other])
    store.close()
    names = {"contexts (gpt)", "contexts (llama)", "pruned"}
    assert {(r["a"], r["b"]) for r in compared(capsys, path)} == {
        ("contexts (gpt)", "contexts (llama)"), ("contexts (gpt)", "pruned"), ("contexts (llama)", "pruned"),
    }  # fmt: skip
    assert {r["a"] for r in compared(capsys, path, "--against", "pruned")} == names - {"pruned"}
    assert {(r["a"], r["b"]) for r in compared(capsys, path, "--against", "contexts (llama)")} == {
        ("contexts (gpt)", "contexts (llama)"), ("pruned", "contexts (llama)"),
    }  # fmt: skip
    code, _, err = run(capsys, "compare", "--store", str(path), "--against", "prunned")
    assert code == 2 and "Did you mean pruned" in err


def test_lift_over_controls_is_of_the_same_label(store: Store, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    es = [label(f) for f in range(4)]
    store.insert_explanations(es)
    for e, real, floor in zip(es, (0.9, 0.8, 0.7, 0.6), (0.5, 0.5, 0.5, 0.7), strict=True):
        store.insert_scores([score(e, scorer="detection", value=real)])
        store.insert_scores([score(e, scorer="detection", control="shuffled", value=floor)])
        store.insert_scores([score(e, scorer="detection", method="other", control="shuffled", value=0.0)])
        store.insert_scores([score(e, scorer="detection_sensitivity", value=1.0)])
    store.insert_scores([score(es[0], scorer="detection_sensitivity", control="shuffled", value=0.25)])
    store.insert_scores([score(es[0], scorer="detection", control="empty", status="no_answer")])
    store.close()
    shuffled, empty = sorted(compared(capsys, path), key=lambda r: -r["n"])
    assert (shuffled["a"], shuffled["b"], shuffled["n"]) == ("contexts", "control: shuffled", 4)
    assert shuffled["difference"] == pytest.approx(0.2) and shuffled["higher"] == 0.75 and shuffled["lower"] == 0.25
    assert (empty["b"], empty["n"], empty["n_unpaired"], empty["difference"]) == ("control: empty", 0, 1, None)
    parts = [r for r in compared(capsys, path, "--strata") if r["scorer"] == "detection_sensitivity"]
    assert [(r["n"], r["difference"], r["ci_low"]) for r in parts] == [(1, 0.75, None)]


def test_csv_and_table(store: Store, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_explainers(store)
    store.close()
    code, out, _ = run(capsys, "compare", "--store", str(path), "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(out))
    assert code == 0 and row["n"] == "6" and float(row["difference"]) == pytest.approx(0.2 / 6)
    code, out, _ = run(capsys, "compare", "--store", str(path))
    assert code == 0 and out.splitlines()[0].split()[:5] == ["scorer", "method", "scorer_model", "a", "b"]
    assert "0.033" in out


def test_nothing_to_compare_says_why(store: Store, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    e = label(0)
    store.insert_explanations([e])
    store.close()
    assert compared(capsys, path) == [] and compared(capsys, path, "--agreement") == []
    code, out, err = run(capsys, "compare", "--store", str(path))
    assert (code, out) == (0, "") and "no label was scored yet" in err
    with Store.open(path) as opened:
        opened.insert_scores([score(e)])
    assert "only one explainer" in run(capsys, "compare", "--store", str(path))[2]


# --- agreement -------------------------------------------------------------------------------------------------------


def test_label_stability_by_what_varies(store: Store, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seeds, another template, another model, another explainer; each pair that differs in one thing counts."""
    made = [
        label(0, text="names of cats"),
        label(0, text="cats", seed=1),  # seed: F1 of {names, cats} and {cats} = 2/3
        label(0, text="cats and names", template_sha256="other", explanation_id="t" * 32),  # template: 1
        label(0, text="dogs", model="llama"),  # model: 0
        label(0, "pruned", text="the names"),  # explainer, same seed and model: 2/3 with the first
        label(0, "patterns", model="patterns", text="`Names`"),  # a rule, whatever the model: with all of seed 0
        label(1, text="a thing"),
        label(1, text="things", seed=2),  # seed: 0
        label(2, text="alone"),
        label(2, seed=1, status="refused"),
        label(3, text="one", seed=1),
        label(3, text="one", seed=2, evidence_sha256="newer", explanation_id="n" * 32),  # two things differ
    ]
    store.insert_explanations(made)
    store.insert_scores([score(made[0], value=0.9), score(made[1], value=0.5), score(made[6], value=0.2)])
    store.insert_scores([score(made[0], scorer="detection", value=0.9)])
    store.close()
    rows = compared(capsys, path, "--agreement")
    similar = {(r["among"], r["explainer"]): (r["n"], r["value"]) for r in rows if r["measure"] == "label_similarity"}
    assert similar == {
        ("seed", "contexts (gpt)"): (2, pytest.approx((2 / 3 + 0) / 2)),
        ("template", "contexts (gpt)"): (1, 1.0),
        ("model", "contexts (gpt ~ llama)"): (1, 0.0),
        # with the label of seed 0 and with the other template's, which has the same words; both have other templates
        ("explainer", "contexts ~ pruned"): (1, pytest.approx(2 / 3)),
        ("explainer", "contexts ~ patterns"): (1, pytest.approx((2 / 3 + 2 / 3 + 0) / 3)),
        ("explainer", "patterns ~ pruned"): (1, 1.0),
    }
    spread = [r for r in rows if r["measure"] == "score_sd"]
    assert [(r["among"], r["scorer"], r["n"]) for r in spread] == [("seed", "simulation (numbers, gpt)", 1)]
    assert spread[0]["value"] == pytest.approx(0.4 / 2**0.5)  # the sample's standard deviation of .9 and .5


def test_scorers_rank_correlation(store: Store, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`contexts`: the same order twice. `pruned`: the reverse. Together: in between."""
    values = [0.1, 0.3, 0.35, 0.6, 0.62, 0.7, 0.8, 0.9]
    for explainer, sign in (("contexts", 1.0), ("pruned", -1.0)):
        es = [label(f, explainer) for f in range(N)]
        store.insert_explanations(es)
        for e, v in zip(es, values, strict=True):
            store.insert_scores([score(e, value=v), score(e, scorer="detection", value=0.5 + sign * v**3 / 2)])
            store.insert_scores([score(e, scorer="detection", value=0.5, control="shuffled")])
    store.close()
    rows = {r["explainer"]: r for r in compared(capsys, path, "--agreement") if r["measure"] == "rank_correlation"}
    assert (rows["contexts"]["value"], rows["contexts"]["n"]) == (pytest.approx(1.0), N)
    assert rows["pruned"]["value"] == pytest.approx(-1.0)
    # A feature's two labels are drawn together: they cancel in every resample.
    assert rows["all"]["n"] == 2 * N
    assert [rows["all"][k] for k in ("value", "ci_low", "ci_high")] == pytest.approx([0.0] * 3, abs=1e-9)
    assert rows["all"]["scorer"] == "simulation (numbers, gpt) ~ detection (numbers, gpt)"


@given(st.text(max_size=40), st.text(max_size=40))
def test_similarity_is_symmetric_and_one_for_the_same(a: str, b: str) -> None:
    words = label_words(a), label_words(b)
    f1 = word_f1(*words)
    assert 0.0 <= f1 <= 1.0 and f1 == word_f1(*reversed(words)) and word_f1(words[0], words[0]) == 1.0


def test_words_of_a_label() -> None:
    assert label_words("The word `import` at the START of a line") == {"import", "start", "line"}
    assert label_words("`/` (also `.`)") == {"/", "also", "."}
    assert label_words("the `a`") == {"the", "a"}  # nothing else is there


# --- what `show` prints ----------------------------------------------------------------------------------------------


def test_a_score_and_its_parts_and_controls_on_two_lines(
    store: Store, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    e = label(3)
    store.insert_explanations([e])
    detection = {
        "detection_sensitivity": 0.92, "detection_sensitivity_decile_0": 0.8, "detection_sensitivity_decile_9": 1.0,
        "detection_specificity": 0.97, "detection_specificity_random": 1.0, "detection_specificity_same_token": 0.9,
        "detection": 0.945,
    }  # fmt: skip
    for name, value in detection.items():
        store.insert_scores([score(e, scorer=name, method="answers", value=value, ci_low=0.8, ci_high=0.99, n=40)])
        store.insert_scores([score(e, scorer=name, method="answers", control="shuffled", value=0.5)])
    store.insert_scores([score(e, scorer="detection", method="answers", control="empty", status="no_answer")])
    store.insert_scores([score(e, value=0.3, seed=0), score(e, value=0.4, seed=1)])
    store.insert_scores([score(e, scorer="simulation_random", value=0.2, n_failed=2), score(e, part="select")])
    store.close()
    code, out, err = run(capsys, "show", "3", "--store", str(path))
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith(("score", "ranks", "       s"))] == [
        "ranks  0.40 [0.25, 0.75]  simulation, numbers, on report; n 30, 0 failed",
        "ranks  0.20 [0.25, 0.75]  simulation_random, numbers, on report; n 30, 2 failed",
        "score  0.94 [0.80, 0.99]  detection, answers, on report; n 40, 0 failed; empty no_answer, shuffled 0.50",
        "       sensitivity 0.92 [0.80, 0.99] (deciles 0: 0.80, 9: 1.00), "
        "specificity 0.97 [0.80, 0.99] (random 1.00, same token 0.90)",
        "ranks  0.50 [0.25, 0.75]  simulation, numbers, on select; n 30, 0 failed",
    ]


def test_parts_of_scorers() -> None:
    assert headline_of("simulation_random") == "simulation_random"
    assert headline_of("detection_specificity_same_token") == "detection"
    assert headline_of("simulation_random_tail") == "simulation_random"
    assert headline_of("somebody_elses") == "somebody_elses"
    assert score_lines([]) == []
