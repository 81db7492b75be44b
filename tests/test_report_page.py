"""The page of a feature as records, and that `show --json` gives what the store holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.store_fixtures import explanation, filled, score

from autointerp.errors import AutointerpError, InputError
from autointerp.records import PromotedToken
from autointerp.report.page import load_page
from autointerp.report.page_findings import MethodRunRow, Shape, record
from autointerp.report.score_groups import ScoreRow, score_groups
from autointerp.report.show import score_lines
from autointerp.report.show_json import as_json_text, page_rows
from autointerp.scorer_names import headline_of
from autointerp.store import Store
from autointerp.store.findings import MethodRun

FEATURE = 4


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened, dictionary, harvest = filled(tmp_path / "s.duckdb")
    columns: dict[str, list[Any]] = {
        "feature": [FEATURE], "kind": ["other"], "unigram": [" cat"], "unigram_purity": [0.375],
        "position_dependence": [0.02], "is_dense": [False], "is_rare": [True], "text": [None], "rule": [None],
    }  # fmt: skip
    opened.replace_findings("shape", dictionary, harvest, "s", [MethodRun(FEATURE)], columns)
    pruned: dict[str, list[Any]] = {
        "feature": [FEATURE], "rank": [0], "context_id": [1], "mode": ["delete"], "status": ["ok"],
        "tokens": [[" the", " cat"]], "importance": [[0.75, 1.0]], "activation": [4.5], "full_activation": [5.0],
        "counterfactuals": [[{"position": 0, "substitute": " a", "activation": 0.0, "kept": False}]],
    }  # fmt: skip
    opened.replace_findings("pruning", dictionary, harvest, "s", [MethodRun(FEATURE)], pruned)
    near: dict[str, list[Any]] = {
        "feature": [FEATURE] * 2, "relation": ["decoder"] * 2, "rank": [0, 1], "neighbour": [0, 2], "value": [0.9, 0.8],
    }  # fmt: skip
    opened.replace_findings("neighbours", dictionary, harvest, "s", [MethodRun(FEATURE)], near)
    with opened:
        yield opened


def test_a_page_is_records(store: Store) -> None:
    part = explanation(FEATURE, explainer="contexts")
    whole = explanation(FEATURE, explainer="concat", side="both", derived_from=[part.explanation_id, "gone"])
    store.insert_explanations([explanation(0, text="the cat"), part])
    store.insert_explanations([whole])
    store.insert_scores([score(whole), score(part)])
    page = load_page(store, 1, FEATURE, contexts=2)
    assert page.name == f"layer3:{FEATURE}" and page.dictionary == store.dictionary("layer3")
    assert page.facts.histogram is not None and page.facts.histogram.counts == [3, 1]
    assert page.shown_explanation is not None and page.shown_explanation.explanation_id == whole.explanation_id
    assert page.made_of == ["contexts", "gone"] and page.label.side == "both"
    assert [group.score.explanation_id for group in page.label_scores] == [whole.explanation_id]
    assert len(page.scores) == 2 and len(page.explanations) == 2
    assert len(page.contexts_of("report", "top")) == 2 and len(page.contexts) == 18
    assert page.findings.shape is not None and page.findings.shape.is_rare
    assert [near.label for near in page.findings.neighbours] == ["the cat", None]
    assert page.findings.pruned[0].counterfactuals[0].substitute == " a"
    assert [run.method for run in page.method_runs] == ["neighbours", "pruning", "shape"]
    assert page.findings.changed == [] and page.findings.output_statistic is None and page.findings.others == {}


def test_a_feature_without_label_and_activations_has_a_page(store: Store) -> None:
    for feature in range(6):
        page = load_page(store, 1, feature, contexts=0)
        assert page.contexts == [] and page.label.label is None and page.made_of == [] and page.label_scores == []
    with pytest.raises(InputError, match="features 0 to 5"):
        load_page(store, 1, 99)


def test_json_is_what_the_store_holds(store: Store) -> None:
    e = explanation(FEATURE)
    store.insert_explanations([e])
    store.insert_scores([score(e)])
    held = store.feature_page(1, FEATURE, 3)
    shown = json.loads(as_json_text(page_rows(load_page(store, 1, FEATURE, 3))))
    assert shown == json.loads(json.dumps(held, default=_by_hand))


def _by_hand(value: Any) -> Any:
    return {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else str(value)


def test_findings_of_another_packages_method_are_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"rank": 0, "word": "cat", "weight": 0.5}, {"rank": 1, "word": "dog", "weight": 0.25}]
    held = {**store.feature_page(1, FEATURE), "toy": rows, "toy_single": None}
    monkeypatch.setattr(Store, "feature_page", lambda *_: held)
    page = load_page(store, 1, FEATURE)
    assert page.findings.others == {"toy": rows, "toy_single": None}
    assert json.loads(as_json_text(page_rows(page)))["toy"] == rows


def test_a_row_of_other_columns_is_refused() -> None:
    with pytest.raises(AutointerpError, match="a Shape has the fields"):
        record(Shape, {"kind": "token"})
    with pytest.raises(AutointerpError, match="the store gives"):
        record(MethodRunRow, {name.name: None for name in fields(MethodRunRow)} | {"more": 1})
    assert record(PromotedToken, {"sign": 1, "rank": 0, "logit": 2.0, "token": "x"}) == PromotedToken("x", 2.0, 0, 1)


# --- scores -----------------------------------------------------------------------------------------------------------


def row(scorer: str, value: float | None = 0.5, later: int = 0, **more: Any) -> ScoreRow:
    values: dict[str, Any] = {
        "score_id": f"{scorer}{later}", "dictionary_id": 1, "feature": 0, "explanation_id": "e", "harvest_id": 1,
        "scorer": scorer, "method": "m", "control": None, "part": "report", "model": "gpt", "template_sha256": "t",
        "seed": later, "value": value, "ci_low": None, "ci_high": None, "n": 3, "n_failed": 0,
        "status": "failed" if value is None else "ok", "error": None,
        "created_at": datetime(2026, 1, 1) - timedelta(seconds=later), "sequence": later,
        "n_documents": None, "n_by_kind": None,
    }  # fmt: skip
    return ScoreRow(**values | more)


def test_a_scorer_that_the_package_does_not_know_is_shown_with_its_parts() -> None:
    rows = [
        row("toy_hits_decile_3", 0.1), row("toy_hits", 0.2), row("toy", 0.3), row("toy", 0.4, control="shuffled"),
        row("aaa"), row("detection", 0.9),
    ]  # fmt: skip
    detection, first, toy = score_groups(rows)
    assert [group.score.scorer for group in (detection, first, toy)] == ["detection", "aaa", "toy"]
    assert [part.name for part in toy.parts] == ["hits"] and [p.name for p in toy.parts[0].parts] == ["decile_3"]
    assert score_lines(rows)[2:] == [
        "score  0.30  toy, m, on report; n 3, 0 failed; shuffled 0.40",
        "       hits 0.20 (deciles 3: 0.10)",
    ]
    assert headline_of("toy_hits_decile_3", ["toy_hits_decile_3", "toy_hits", "toy"]) == "toy"


def test_a_part_without_its_headline_is_shown() -> None:
    assert score_lines([row("detection_extra", 0.25)]) == ["score  0.25  detection_extra, m, on report; n 3, 0 failed"]
    # A part by another method belongs to no score here.
    assert len(score_groups([row("detection"), row("detection_sensitivity", method="other")])) == 2


def test_of_several_seeds_the_latest_counts() -> None:
    (group,) = score_groups([row("fuzzing", 0.9, later=2), row("fuzzing", 0.1, later=1), row("fuzzing", None)])
    assert group.score.value == 0.9
    assert score_lines([row("fuzzing", None, later=3)]) == ["score  failed  fuzzing, m, on report; n 3, 0 failed"]
