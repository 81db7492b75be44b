"""The lift over controls of the whole dictionary, with features that have no label told as what they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from support.commands import run
from support.store_fixtures import add_dictionary, add_features, explanation, filled, score

from autointerp.cli.options import named_controls
from autointerp.dictionary_controls import DICTIONARY_CONTROLS, control_name, is_control
from autointerp.means import mean_difference
from autointerp.report.control_lifts import control_lifts, lift_line
from autointerp.store import Store

NAME = "layer3"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.duckdb"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened, dictionary, harvest = filled(path)
    add_features(opened, dictionary, harvest, ["live"] * 6)
    with opened:
        yield opened


def add_control(store: Store, control: str, statuses: Sequence[str]) -> int:
    dictionary = add_dictionary(store, control_name(NAME, control), sae_sha256=control)
    harvest = store.add_harvest(dictionary, 1, 42, {"context_tokens": 4})
    add_features(store, dictionary, harvest, list(statuses))
    return dictionary


def label(store: Store, dictionary: int, values: Sequence[float | str | None], **changed: Any) -> None:
    """A number is the score of a feature's label, None a label without a score, a text why there is no label."""
    for feature, value in enumerate(values):
        status = value if isinstance(value, str) else "ok"
        made = explanation(feature, dictionary_id=dictionary, harvest_id=dictionary, status=status, **changed)
        store.insert_explanations([made])
        if not isinstance(value, str):
            store.insert_scores([score(made, status="constant_truth") if value is None else score(made, value=value)])


def test_both_means_say_what_they_are_over(store: Store) -> None:
    label(store, 1, [0.9, 0.8, 0.7, 0.6, None, "abstained"])
    other = add_control(store, "frozen_decoder", ["live"] * 5 + ["dead"])
    label(store, other, [0.5, 0.3, "abstained", "unparseable", "gave_up"])
    (lift,) = control_lifts(store)
    assert (lift.dictionary, lift.control) == (NAME, "frozen_decoder")
    assert (lift.explainer, lift.scorer, lift.note) == ("contexts", "simulation", "")
    own = (lift.n_scored, lift.n_labelled, lift.n_unlabelled, lift.n_pending, lift.n_dead)
    theirs = (
        lift.control_n_scored, lift.control_n_labelled, lift.control_n_unlabelled, lift.control_n_pending,
        lift.control_n_dead,
    )  # fmt: skip
    assert own == (4, 5, 1, 0, 0) and theirs == (2, 2, 2, 1, 1)
    assert (lift.mean, lift.control_mean) == pytest.approx((0.75, 0.4))
    assert (lift.mean_0, lift.control_mean_0) == pytest.approx((3.0 / 5, 0.8 / 4))
    over = mean_difference([0.9, 0.8, 0.7, 0.6], [0.5, 0.3])
    assert (lift.difference, lift.ci_low, lift.ci_high) == pytest.approx((over.value, over.low, over.high))
    over = mean_difference([0.9, 0.8, 0.7, 0.6, 0.0], [0.5, 0.3, 0.0, 0.0])
    assert (lift.difference_0, lift.ci_low_0, lift.ci_high_0) == pytest.approx((over.value, over.low, over.high))
    assert lift_line(lift) == (
        "layer3 over frozen_decoder, simulation of labels by contexts: 0.750, 5 of 6 features labelled (83%), 1 labels "
        "without a score against 0.400, 2 of 4 features labelled (50%), 1 features not labelled yet, 1 dead: "
        f"+0.350 [{lift.ci_low:+.3f}, {lift.ci_high:+.3f}]; with 0 for features without a label 0.600 against 0.200: "
        f"+0.400 [{lift.ci_low_0:+.3f}, {lift.ci_high_0:+.3f}]"
    )


def test_one_line_for_each_control_and_none_for_a_control_of_its_own(
    store: Store, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label(store, 1, [0.9, 0.8, 0.7])
    for control in reversed(DICTIONARY_CONTROLS):
        label(store, add_control(store, control, ["live"] * 3), [0.1, 0.2, 0.3])
    harvests = [(row.dictionary_id, store.current_harvest(row.dictionary_id)) for row in store.dictionaries()[1:]]
    store_id = store.store_id
    store.close()
    with duckdb.connect(str(path.with_name("x.evidence.duckdb"))) as evidence:
        for dictionary, harvest in harvests:
            values = [harvest, dictionary, 1, store_id]
            evidence.execute("INSERT INTO harvest_info VALUES (?, ?, ?, ?, 'sae', 0, NULL)", values)
    code, out, err = run(capsys, "compare", "--store", str(path), "--controls", "--format", "json")
    assert code == 0, err
    assert [row["control"] for row in json.loads(out)] == list(DICTIONARY_CONTROLS)
    code, out, _ = run(capsys, "status", "--store", str(path))
    lines = [line for line in out.splitlines() if line.startswith("lift: ")]
    assert code == 0 and [line.split(",")[0] for line in lines] == [
        f"lift: {NAME} over {control}" for control in DICTIONARY_CONTROLS
    ]
    code, out, err = run(capsys, "compare", "--store", str(path), "--controls", "--dictionary", "layer4")
    assert code == 2 and "no dictionary 'layer4'" in err
    code, _, err = run(capsys, "compare", "--store", str(path), "--controls", "--agreement")
    assert code == 2 and "--controls compares dictionaries" in err


def test_a_control_that_is_not_scored_yet_and_one_that_was_scored_otherwise(store: Store) -> None:
    label(store, 1, [0.9, 0.8, 0.7])
    add_control(store, "soft_frozen", ["live"] * 3)
    label(store, add_control(store, "random_model", ["live"] * 3), [0.1, 0.2, 0.3], model="llama")
    by_other, waiting = control_lifts(store)
    assert by_other.note == "labelled by gpt and the control by llama" and "(labelled by gpt" in lift_line(by_other)
    assert waiting.difference is None and waiting.control_mean is None
    assert lift_line(waiting).endswith("against nothing labelled (3 features wait, 0 are dead)")
    assert control_lifts(store, "layer3 (soft_frozen)") == []


def test_a_store_without_controls(store: Store, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label(store, 1, [0.9, 0.8])
    store.close()
    code, out, err = run(capsys, "compare", "--store", str(path), "--controls")
    assert code == 0 and not out and "autointerp run --control NAME" in err.replace("\n", " ")
    code, out, _ = run(capsys, "status", "--store", str(path))
    assert code == 0 and "lift" not in out


def test_names_of_controls() -> None:
    assert named_controls(None) == () and named_controls(["a, b", "b", "c"]) == ("a", "b", "c")
    assert all(is_control(control_name("h6", control)) for control in DICTIONARY_CONTROLS)
    assert not is_control("h6") and not is_control("h6 (mine)")
    assert np.unique(DICTIONARY_CONTROLS).size == len(DICTIONARY_CONTROLS)
