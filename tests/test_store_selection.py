"""Which features are chosen, and which are still to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.store_fixtures import copied, explanation, filled, score

from autointerp.errors import InputError, StoppedError
from autointerp.store import Selection, Store
from autointerp.store.condition import check_condition, needed_tables
from autointerp.store.selection import parse_features

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
    for bad in ("", "a", "1,,2", "-3", "3-", "1-2-3", "0x1", "٣", "1.5", "1;2", "9" * 5000, "1-" + "9" * 5000):
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
    assert chosen(store, features="4,0-2,1-4,1," * 3000 + "0") == [0, 1, 2, 4]
    with pytest.raises(InputError, match="last feature is 5"):
        chosen(store, features="0-6")
    with pytest.raises(InputError, match="--limit must be 1 or more"):
        chosen(store, limit=0)


def test_where_names_every_column_of_features_and_labels(store: Store) -> None:
    found = store.rows("SELECT column_name FROM duckdb_columns() WHERE table_name IN ('features', 'labels')")
    assert len(found) > 50
    condition = " OR ".join(f"{name} IS NOT NULL" for name in sorted({name for (name,) in found}))
    assert chosen(store, where=condition) == ALIVE


def test_where_reads_labels_and_other_tables(store: Store) -> None:
    es = [explanation(0), explanation(1, text="cats")]
    store.insert_explanations(es)
    store.insert_scores([score(es[0], value=0.2), score(es[1], value=0.7)])
    assert chosen(store, where="score < 0.5") == [0]
    condition = "label LIKE '%cat%' OR feature IN (SELECT feature - 1 FROM scores WHERE value > 0.5)"
    assert chosen(store, where=condition) == [0, 1]
    assert chosen(
        store, where="label IS NULL AND feature IN (WITH t AS (SELECT feature FROM contexts) SELECT feature FROM t)"
    ) == [2, 4, 5]


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
        "EXISTS (SELECT 1 FROM (DESCRIBE '/etc/passwd'))",
        "EXISTS (FROM (SUMMARIZE features))",
        "EXISTS (SELECT 1 FROM (SHOW ALL TABLES))",
        "EXISTS (WITH d AS (DELETE FROM features RETURNING 1) SELECT 1 FROM d)",
        "EXISTS (WITH d AS (COPY (SELECT 1) TO '/tmp/x') SELECT 1 FROM d)",
        "feature = ?",
        "feature = $1",
    ],
)
def test_conditions_that_are_refused(bad: str) -> None:
    with duckdb.connect() as con, pytest.raises(InputError, match="--where"):
        check_condition(con, bad)


def test_a_refused_condition_changes_nothing(store: Store) -> None:
    with pytest.raises(InputError, match="is not an SQL condition: syntax error"):
        chosen(store, where="1=1); DROP TABLE features; SELECT (1=1")
    with pytest.raises(InputError, match="not valid Unicode"):
        chosen(store, where="label = '\ud800'")
    assert store.rows("SELECT count(*) FROM features") == [(6,)]


def test_conditions_are_parsed_not_guessed() -> None:
    with duckdb.connect() as con:
        for good in ("density > 0.1", "label = ') OR (1=1'", "feature = 1 /* ; DROP */", "status IN ('live', 'rare')"):
            check_condition(con, good)


def test_a_condition_sees_what_was_just_written(store: Store) -> None:
    store.insert_explanations([explanation(0)])
    with store.transaction() as con:
        con.execute("INSERT INTO settings VALUES (1, 'a', 'b')")
    condition = "label IS NOT NULL AND EXISTS (FROM label_changes) = false AND EXISTS (FROM evidence.windows)"
    assert chosen(store, where=condition) == [0]
    store.insert_explanations([explanation(1)])
    assert chosen(store, where=condition) == [0, 1]
    path = store.path
    store.close()
    with Store.open(path, read_only=True) as reader:  # which needs no copy
        assert chosen(reader, where=condition) == [0, 1]


def test_what_a_condition_needs_is_found_through_views() -> None:
    assert needed_tables("density > 0.1") >= {"features", "explanations", "scores", "settings", "dictionaries"}
    assert not needed_tables("density > 0.1") & {"llm_calls", "predictions", "pruned_contexts"}
    assert "llm_calls" in needed_tables("EXISTS (FROM Spend_By_Stage)")
    assert "pruned_contexts" in needed_tables('feature IN (SELECT feature FROM "context_need")')
    assert needed_tables("EXISTS (FROM explainer_leaderboard)") >= {"explainer_leaderboard_strata", "scores"}


DOUBLED = ["c0 AS NOT MATERIALIZED (SELECT feature AS x FROM features)"]
DOUBLED += [f"c{i} AS NOT MATERIALIZED (SELECT c{i - 1}.x FROM c{i - 1}, c{i - 1} AS d)" for i in range(1, 22)]


@pytest.mark.parametrize(
    "condition",
    [
        "(SELECT sum(hash(a.text, b.text, c.text, d.text, e.text)) FROM contexts a, contexts b, contexts c, "
        "contexts d, contexts e) > feature",
        f"feature IN (WITH {', '.join(DOUBLED)} SELECT x FROM c21)",  # the planner heeds no interrupt
    ],
)
def test_a_condition_has_a_time_limit(store: Store, monkeypatch: pytest.MonkeyPatch, condition: str) -> None:
    monkeypatch.setattr("autointerp.store.condition.LIMIT_S", 0.3)
    with pytest.raises(StoppedError, match=r"--where .* took longer than 0.3 s and was stopped; narrow it down$"):
        chosen(store, where=condition)
    assert chosen(store) == ALIVE  # the store goes on


def test_a_condition_has_a_memory_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.store.condition.MEMORY", "100MB")
    with pytest.raises(InputError, match=r"--where .* needs more memory than 100MB"):
        chosen(store, where="(SELECT len(list(repeat('x', 1000000))) FROM contexts a, contexts b) > feature")
    with pytest.raises(InputError, match=r"--where .* (crashed DuckDB|is not an SQL condition)"):
        chosen(store, where="(" * 100_000 + "true" + ")" * 100_000)
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
