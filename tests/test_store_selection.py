"""Which features are chosen, and which are still to do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.store_fixtures import copied, explanation, filled, score

from autointerp.errors import InputError, StoppedError
from autointerp.store import Selection, Store
from autointerp.store.selection import check_condition, parse_features

ALIVE = [0, 1, 2, 4, 5]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "x.duckdb"
    filled(path)[0].close()
    return path


@pytest.fixture()
def store(tmp_path: Path, template: Path) -> Iterator[Store]:
    with Store.open(copied(template, tmp_path)) as opened:
        yield opened


def chosen(store: Store, **selection: object) -> list[int]:
    return store.selected_features(1, Selection(**selection))


def test_parse_features() -> None:
    assert parse_features("0-999,1234") == [(0, 999), (1234, 1234)]
    assert parse_features(" 3 , 5 - 7 ") == [(3, 3), (5, 7)]
    for bad in ("", "a", "1,,2", "-3", "3-", "1-2-3", "0x1", "٣", "1.5", "1;2"):
        with pytest.raises(InputError, match="neither a number nor a range"):
            parse_features(bad)
    with pytest.raises(InputError, match="runs backwards"):
        parse_features("9-3")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**6)), min_size=1, max_size=5))
def test_parse_features_takes_what_it_prints(ranges: list[tuple[int, int]]) -> None:
    pairs = [(low, low + span) for low, span in ranges]
    assert parse_features(",".join(f"{low}-{high}" for low, high in pairs)) == pairs


def test_choices_are_combined(store: Store) -> None:
    assert chosen(store) == ALIVE
    assert chosen(store, features="0-1,3,5") == [0, 1, 5]  # 3 is dead
    assert chosen(store, where="density > 0.2 AND status = 'live'") == [4]
    assert chosen(store, features="0-4", where="feature % 2 = 0 -- even", limit=2) == [0, 2]
    drawn = chosen(store, random=3)
    assert len(drawn) == 3 and drawn == sorted(drawn) and drawn == chosen(store, random=3)
    assert {tuple(chosen(store, random=3, seed=s)) for s in range(10)} != {tuple(drawn)}
    assert chosen(store, random=50) == ALIVE
    with pytest.raises(InputError, match="last feature is 5"):
        chosen(store, features="0-6")
    with pytest.raises(InputError, match="--limit must be 1 or more"):
        chosen(store, limit=0)


def test_where_reads_labels_and_other_tables(store: Store) -> None:
    es = [explanation(0), explanation(1, text="cats")]
    store.insert_explanations(es)
    store.insert_scores([score(es[0], value=0.2), score(es[1], value=0.7)])
    assert chosen(store, where="score < 0.5") == [0]
    assert chosen(store, where="label LIKE '%cat%'") == [1]
    assert chosen(store, where="label IS NULL") == [2, 4, 5]
    assert chosen(store, where="feature IN (SELECT feature FROM scores WHERE value > 0.5)") == [1]
    assert chosen(store, where="feature IN (WITH t AS (SELECT feature FROM contexts) SELECT feature FROM t)") == ALIVE


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "density >",
        "1=1) OR (1=1",
        "1=1); DROP TABLE features; SELECT (1=1",
        "1=1; SELECT 2",
        "1=1) LIMIT 1 --",
        "1=1) UNION SELECT 1 FROM runs WHERE (true",
        "feature IN (SELECT 1 FROM read_csv('/etc/passwd'))",
        "feature IN (SELECT 1 FROM '/etc/passwd')",
        "EXISTS (SELECT * FROM glob('/*'))",
        "EXISTS (FROM duckdb_settings())",
        "feature IN (SELECT feature FROM other.main.features)",
        "feature IN (SELECT 1 FROM information_schema.tables)",
        "EXISTS (SELECT 1 FROM store_state)",
        "EXISTS (WITH t AS (SELECT * FROM read_text('/etc/passwd')) SELECT * FROM t)",
        "feature = ?",
        "feature = $1",
    ],
)
def test_conditions_that_are_refused(store: Store, bad: str) -> None:
    with pytest.raises(InputError, match="--where"):
        chosen(store, where=bad)
    assert store.rows("SELECT count(*) FROM features") == [(6,)]


def test_conditions_are_parsed_not_guessed() -> None:
    for good in ("density > 0.1", "label = ') OR (1=1'", "feature = 1 /* ; DROP */", "status IN ('live', 'rare')"):
        check_condition(good)


def test_a_condition_has_a_time_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.store.selection.CONDITION_LIMIT_S", 0.3)
    many = "(SELECT sum(hash(a.text, b.text, c.text, d.text, e.text)) FROM contexts a, contexts b, contexts c, "
    with pytest.raises(StoppedError, match=r"--where .* took longer than 0.3 s"):
        chosen(store, where=f"{many} contexts d, contexts e) > feature")
    assert chosen(store, where="density >= 0") == ALIVE  # the store goes on


def test_a_condition_that_no_interrupt_stops_ends_the_process(tmp_path: Path, template: Path) -> None:
    parts = ["c0 AS NOT MATERIALIZED (SELECT feature AS x FROM features)"]
    parts += [f"c{i} AS NOT MATERIALIZED (SELECT c{i - 1}.x FROM c{i - 1}, c{i - 1} AS d)" for i in range(1, 22)]
    code = f"""
from autointerp.store import Selection, Store, selection, time_limit
selection.CONDITION_LIMIT_S, time_limit.GRACE_S = 0.3, 0.3
with Store.open({str(copied(template, tmp_path))!r}) as store:
    store.selected_features(1, Selection(where="feature IN (WITH {", ".join(parts)} SELECT x FROM c21)"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (StoppedError.exit_code, ""), done.stderr
    assert "took longer than 0.3 s" in done.stderr
    with Store.open(tmp_path / template.name) as store:
        assert chosen(store) == ALIVE


def test_condition_over_an_unknown_column(store: Store) -> None:
    with pytest.raises(InputError, match="densety"):
        chosen(store, where="densety > 0.1")
    with pytest.raises(InputError, match="does not fit"):
        chosen(store, where="status > 1 + 'x'::INTEGER")


def test_features_to_explain(store: Store) -> None:
    def pending(**changed: object) -> list[int]:
        key = {"explainer": "contexts", "model": "gpt", "template_sha256": "t", "seed": 0, **changed}
        return store.features_to_explain(1, selection=Selection(features="0-4"), **key)

    assert pending() == [0, 1, 2, 4]
    store.insert_explanations([explanation(0), explanation(1, status="refused"), explanation(2, status="gave_up")])
    assert pending() == [2, 4]
    for other in ({"explainer": "combined"}, {"model": "other"}, {"template_sha256": "x"}, {"seed": 1}):
        assert pending(**other) == [0, 1, 2, 4]
    assert pending(harvest_id=1) == [2, 4]
    assert pending(harvest_id=2) == [0, 1, 2, 4]


def test_limit_does_not_move_on(store: Store) -> None:
    """Running a command twice does its work once, so a limit counts what is chosen, not what is pending."""
    args = (1, "contexts", "gpt", "t", 0, Selection(limit=2))
    assert store.features_to_explain(*args) == [0, 1]
    store.insert_explanations([explanation(0), explanation(1)])
    assert store.features_to_explain(*args) == []


def test_explanations_to_score(store: Store) -> None:
    def pending(**changed: object) -> list[str]:
        key = {"explainer": "contexts", "scorer": "simulation", "method": None, "model": "gpt", "template_sha256": "s",
               "part": "report", "selection": Selection(), **changed}  # fmt: skip
        return [e.text for e in store.explanations_to_score(1, **key)]

    first = explanation(0)
    newer = explanation(0, seed=1, text="newer")
    other_llm = explanation(0, model="llama", text="by another")
    one = explanation(1)
    store.insert_explanations([first, newer, other_llm, one, explanation(2, status="refused")])
    store.insert_explanations([explanation(4, explainer="patterns", model="patterns")])
    assert pending() == ["newer", "by another", "words about 1"]
    found = store.explanations_to_score(1, "contexts", "simulation", None, "gpt", "s", "report", Selection(limit=1))
    assert list(found) == [newer, other_llm]
    store.insert_scores([score(newer), score(one, status="gave_up"), score(other_llm, status="constant")])
    assert pending() == ["words about 1"]
    for changed in ({"part": "select"}, {"model": "other"}, {"template_sha256": "x"}, {"scorer": "fuzz"},
                    {"control": "shuffled"}, {"method": "prompt_logprobs"}, {"seed": 5}):  # fmt: skip
        assert len(pending(**changed)) == 3
    assert pending(method="numbers", seed=0) == ["words about 1"]
    assert pending(selection=Selection(features="0")) == []
    store.insert_scores([dataclasses.replace(score(one))])
    assert pending() == []


def test_features_to_score(store: Store) -> None:
    def pending(**changed: object) -> list[int]:
        key = {"scorer": "simulation", "method": "numbers", "model": "gpt", "template_sha256": "s", "part": "report",
               "selection": Selection(features="0-4"), "seed": 0, **changed}  # fmt: skip
        return store.features_to_score(1, **key)

    assert pending() == [0, 1, 2, 4]
    made = [explanation(f) for f in (0, 1, 2)]
    store.insert_explanations(made)
    labelled = [score(made[0]), score(made[1]), score(made[2], status="gave_up")]
    store.insert_scores(labelled[:1])
    assert pending() == [0, 1, 2, 4]  # the score of a label is not the feature's
    free = [dataclasses.replace(s, explanation_id=None, score_id=f"free {s.feature}") for s in labelled]
    store.insert_scores(free)
    assert pending() == [2, 4]
    assert pending(selection=Selection(features="0-1")) == []
    for other in ({"scorer": "x"}, {"method": "x"}, {"model": "x"}, {"template_sha256": "x"}, {"part": "select"},
                  {"seed": 1}):  # fmt: skip
        assert pending(**other) == [0, 1, 2, 4]
    store.insert_scores([dataclasses.replace(free[2], status="ok", value=0.5)])
    assert pending() == [4]
