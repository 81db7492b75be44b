"""What `show` and `status` tell of evidence methods, on a real store whose findings are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import run
from support.store_fixtures import explanation, filled

from autointerp.records import Measurement, MeasureTask
from autointerp.store import Store
from autointerp.store.findings import MethodRun
from autointerp.store.selection import Selection

FEATURE, EMPTY = 4, 1
FINDINGS: dict[str, dict[str, list[Any]]] = {
    "shape": {
        "feature": [FEATURE], "kind": ["other"], "unigram": ["\n "], "unigram_purity": [0.375],
        "position_dependence": [0.02], "is_dense": [True], "is_rare": [False], "text": [None], "rule": [None],
    },
    "output_statistic": {
        "feature": [FEATURE], "kurtosis": [41.25], "skew": [3.7], "threshold": [1.3], "is_output": [True],
    },
    "neighbours": {
        "feature": [FEATURE] * 5, "relation": ["decoder"] * 4 + ["anticorrelated"], "rank": [0, 1, 2, 3, 0],
        "neighbour": [0, 2, 5, 1, 0], "value": [0.9, 0.8, 0.7, 0.6, -0.25],
    },
    "mutual_information": {
        "feature": [FEATURE] * 10, "mode": ["pmi"] * 10, "rank": list(range(10)), "word": [f"w{i}" for i in range(10)],
        "score": [1.0] * 10,
    },
    "words": {
        "feature": [FEATURE], "rank": [0], "word": ["evil\x1b[31m"], "pmi": [2.5], "g": [9.0], "p_value": [0.01],
        "n_with_word": [3],
    },
    "pruning": {
        "feature": [FEATURE] * 3, "rank": [0, 1, 2], "context_id": [1, 2, 3], "mode": ["delete"] * 3,
        "status": ["ok", "ok", "not_kept"],
        "tokens": [[" the", " cat"], [f" word{i}" for i in range(29)] + [" cat"], [" x"] * 32],
        "importance": [[0.75, 1.0], [0.0] * 29 + [1.0], [0.0] * 32], "activation": [4.5, 5.0, 0.0],
        "full_activation": [5.0, 5.0, 5.0],
        "counterfactuals": [[{"position": 0, "substitute": " a", "activation": 0.0, "kept": False},
                             {"position": 1, "substitute": " dog", "activation": 4.0, "kept": True}], [], []],
    },
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "s.duckdb"
    store, dictionary, harvest = filled(file)
    for method, columns in FINDINGS.items():
        store.replace_findings(method, dictionary, harvest, "s", [MethodRun(FEATURE), MethodRun(EMPTY)], columns)
    store.replace_findings(
        "jacobian_lens", dictionary, harvest, "s", [MethodRun(FEATURE), MethodRun(EMPTY)],
        {
            "feature": [FEATURE] * 2, "sign": [-1, 1], "rank": [0, 0], "token_id": [9, 7], "token": ["\n", " purr"],
            "logit": [-1.5, 2.25],
        },
    )  # fmt: skip
    store.replace_findings(
        "token_change", dictionary, harvest, "s", [MethodRun(FEATURE), MethodRun(EMPTY, "kl_not_reached", "no")],
        {
            "feature": [FEATURE] * 2, "sign": [1, -1], "rank": [0, 0], "token_id": [7, 8], "token": [" purr", " bark"],
            "delta": [9.125, -3.0], "z": [4.0, -4.0], "strength": [12.0, 12.0], "kl": [0.5, 0.5],
        },
    )  # fmt: skip
    part = explanation(FEATURE, explainer="contexts")
    whole = explanation(FEATURE, explainer="concat", side="both", derived_from=[part.explanation_id, "gone"])
    store.insert_explanations([explanation(0, text="x" * 100), part])
    store.insert_explanations([whole])
    tasks = [MeasureTask(f"t{i}", dictionary, FEATURE, None, kind, {}) for i, kind in enumerate(["steering"] * 2)]
    tasks.append(MeasureTask("done", dictionary, FEATURE, None, "surprisal", {}))
    store.insert_tasks(tasks)
    store.insert_measurements([Measurement("done", "ok", {})])
    store.close()
    yield file


def test_a_page_tells_what_each_method_found(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "show", str(FEATURE), "--store", str(path), "--contexts", "0")
    assert code == 0, err
    lines = out.splitlines()
    assert "       by concat (gpt); says both sides; made of 2 labels: 1 by contexts, 1 by gone" in lines
    begin = next(i for i, line in enumerate(lines) if line.startswith("shape"))
    assert lines[begin:] == [
        "shape  other; dense; 38 % of its active tokens are `\\n `; position dependence 0.02",
        "output  its promoted tokens stand out clearly: kurtosis 41.2 (1 in 100 random directions exceeds 1.3), "
        "skew +3.7",
        "lens promotes   purr +2.25",
        "lens suppresses  \\n -1.50",
        "says more   purr +9.12  (by z; clamped to 12, KL 0.5)",
        "says less   bark -3.00",
        "words of its direction  " + ", ".join(f"w{i} 1" for i in range(8)),
        "words where it fires  evil\\x1b[31m 2.5",
        f"neighbours  by direction    0 (0.90) {'x' * 47}…; 2 (0.80); 5 (0.70)",
        f"            anticorrelated  0 (-0.25) {'x' * 47}…",
        "needs  16 tokens (median of 2 contexts, 1 not kept)",
        "  [[ the 0.75]][[ cat 1.00]]  keeps 90 %; lost with ` a` for ` the`",
        "  … word23 word24 word25 word26 word27 word28[[ cat 1.00]]  keeps 100 %",
    ]


def test_nothing_is_said_of_what_was_not_found(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for feature, more in ((EMPTY, ["nothing found by  token_change (kl_not_reached)"]), (0, [])):
        code, out, err = run(capsys, "show", str(feature), "--store", str(path), "--contexts", "0")
        assert code == 0, err
        lines = out.splitlines()
        assert lines[next(i for i, line in enumerate(lines) if line.startswith("activations")) + 1 :] == more


def test_json_carries_all_of_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "show", str(FEATURE), "--store", str(path), "--json")
    assert code == 0, err
    page = json.loads(out)
    assert page["shape"]["unigram"] == "\n " and page["output_statistic"]["is_output"] is True
    assert [len(page[k]) for k in ("neighbours", "related_words", "input_words", "pruned", "lens", "changed")] == [
        5,
        10,
        1,
        3,
        2,
        2,
    ]
    assert page["neighbours"][0]["label"] == "x" * 100
    assert page["pruned"][0]["counterfactuals"][0]["substitute"] == " a"
    assert len(page["method_runs"]) == 8 and page["explanations"][0]["side"] == "both"


def test_status_counts_methods_and_waiting_tasks(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "status", "--store", str(path))
    assert code == 0, err
    assert "  to measure: 2 steering; `autointerp measure` answers them" in out
    (line,) = (line for line in out.splitlines() if line.startswith("  evidence: "))
    assert "pruning 2, " in line and line.endswith("token_change 1 (and 1 kl_not_reached), words 2")
    code, out, err = run(capsys, "status", "--store", str(path), "--json")
    held = json.loads(out)["dictionaries"][0]
    assert held["to_measure"] == {"steering": 2}
    assert {"method": "token_change", "status": "kl_not_reached", "n": 1} in held["methods"]


def test_need_of_context_in_sql_and_in_conditions(path: Path) -> None:
    with Store.open(path, read_only=True) as store:
        assert store.rows("SELECT * FROM context_need") == [(1, FEATURE, 16.0, 2)]
        where = "feature IN (SELECT feature FROM context_need WHERE median_tokens > 8)"
        assert store.selected_features(1, Selection(where=where)) == [FEATURE]
