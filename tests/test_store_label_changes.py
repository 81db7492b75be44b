"""The history of labels: against one computed row by row."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.store_fixtures import add_dictionary, explanation, filled

from autointerp.store import Store
from autointerp.store.query import run_query

COLUMNS = "dictionary_id, feature, explainer, previous_text, text, previous_model, model, template_sha256"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_changes_are_those_between_neighbours_in_time(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "x.duckdb"
    store, _, _ = filled(path)
    add_dictionary(store, "other", sae_sha256="other")
    rows = []
    for i in range(120):
        rows.append(
            explanation(
                rng.randrange(3), dictionary_id=rng.choice([1, 2]), explainer=rng.choice(["contexts", "combined"]),
                model=rng.choice("ab"), template_sha256=f"t{i}", seed=i,
                status=rng.choice(["ok"] * 5 + ["abstained", "gave_up"]), text=rng.choice(["cats", "dogs"]),
            )
        )  # fmt: skip
        store.insert_explanations(rows[-1:])
    store.close()
    wanted, last = [], {}
    for row in rows:
        key = (row.dictionary_id, row.feature, row.explainer)
        if row.status == "gave_up":
            continue
        if key in last and last[key].text != row.text:
            wanted.append((*key, last[key].text, row.text, last[key].model, row.model, row.template_sha256))
        last[key] = row
    assert len(wanted) > 20 and any(row[4] is None for row in wanted)
    _, found = run_query(path, f"SELECT {COLUMNS} FROM label_changes")
    assert [tuple(row) for row in found] == wanted[::-1]
    with Store.open(path, read_only=True) as opened:
        late = opened.rows(
            "SELECT bool_and(changed_at > previous_at), any_value(name) FROM label_changes GROUP BY name"
        )
    assert sorted(late) == [(True, "layer3"), (True, "other")]
