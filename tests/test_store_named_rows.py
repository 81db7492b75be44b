"""Records are made from columns by name, whatever the order and number of a table's columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.store_fixtures import add_dictionary, call, copied, explanation, filled, prediction, score

from autointerp.errors import AutointerpError
from autointerp.records import BatchedRequest, BatchRecord
from autointerp.store import Selection, Store
from autointerp.store.contexts import stored_contexts, strongest_contexts
from autointerp.store.named_rows import field_names, select_list


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "x.duckdb"
    filled(path)[0].close()
    return path


@pytest.fixture()
def store(tmp_path: Path, template: Path) -> Iterator[Store]:
    with Store.open(copied(template, tmp_path)) as opened:
        yield opened


@dataclass(frozen=True)
class Small:
    """Fields in another order than the columns below."""

    b: str
    a: int
    facts: dict[str, Any] | None = None


def test_columns_are_matched_by_name(store: Store) -> None:
    query = """SELECT 1 AS a, '{"x": [1]}'::JSON AS facts, 'one' AS b UNION ALL SELECT 2, NULL, 'two' ORDER BY a"""
    assert store.records(Small, query) == [Small("one", 1, {"x": [1]}), Small("two", 2, None)]
    keyed = store.keyed_records("key", Small, f"SELECT 9 AS key, * FROM ({query})")
    assert keyed == [(9, Small("one", 1, {"x": [1]})), (9, Small("two", 2, None))]
    assert store.records(Small, "SELECT 3 AS a, 'c' AS b", without=("facts",)) == [Small("c", 3)]


@pytest.mark.parametrize(
    "columns",
    ["1 AS a, 'b' AS b", "1 AS a, 'b' AS b, NULL AS facts, 4 AS more", "1 AS a, 'b' AS c, NULL AS facts"],
    ids=["missing", "unknown", "renamed"],
)
def test_columns_that_are_not_the_fields_are_refused(store: Store, columns: str) -> None:
    with pytest.raises(AutointerpError, match="Small must give the columns b, a, facts"):
        store.records(Small, f"SELECT {columns}")
    with pytest.raises(AutointerpError, match="only the last fields of Small"):
        store.records(Small, "SELECT 1 AS a, NULL AS facts", without=("b",))


def test_select_lists_are_the_fields() -> None:
    assert select_list(Small) == '"b", "a", "facts"'
    assert select_list(Small, "t", without=("facts",), a="n + 1") == 't."b", n + 1 AS "a"'
    assert field_names(Small, ("a",)) == ["b", "facts"]


def _shuffle_columns(store: Store, table: str) -> None:
    """Makes `table` anew with its columns in reverse order and a new one before them all; it has no index then."""
    names = [row[0] for row in store.rows(f"SELECT column_name FROM (DESCRIBE {table})")]
    listed = ", ".join(f'"{name}"' for name in reversed(names))
    store.con.execute(f"CREATE TABLE shuffled AS SELECT 'new' AS extra, {listed} FROM {table}")
    store.con.execute(f"DROP TABLE {table}")
    store.con.execute(f"ALTER TABLE shuffled RENAME TO {table}")


def _read(store: Store) -> list[Any]:
    """Everything that is read as records."""
    first = store.explanations_of(1, [4])[4][0]
    return [
        store.dictionaries(),
        store.corpus(1),
        store.harvests(1),
        store.explanations_of(1, [0, 4]),
        list(store.explanations_to_score(1, "contexts", "none", None, "m", "t", "report", Selection())),
        store.scores_of([first.explanation_id], 1, "simulation", "numbers", "report", "judge", "t", 0),
        store.find_call(call(1).request_sha256, 0),
        store.spent(),
        store.unfinished_batches("url", "m"),
        store.projected_tokens(1, [4]),
        store.feature_evidence(1, 1, [4], contexts=2),
        stored_contexts(store, 1, 3),
        strongest_contexts(store, 1, [4], 2),
        store.training_curves(1),
        store.activation_histograms(1, 2),
    ]


TABLES = (
    "corpora", "dictionaries", "harvests", "features", "vocab_projection", "explanations", "scores", "predictions",
    "training_metrics", "llm_calls", "batches", "batch_requests",
)  # fmt: skip


def _fill(store: Store) -> None:
    e = explanation(4)
    context = store.contexts_of(1, 1, [4], "report", {"top": 1})[4][0]
    store.insert_group(
        [call(1)],
        [e, explanation(0)],
        [score(e, model="judge", template_sha256="t", seed=0, predictions=[prediction(context.context_id)])],
    )
    store.insert_metrics(1, [{"step": 1, "metric": "loss", "value": 0.5}])
    store.con.execute("INSERT INTO vocab_projection VALUES (1, 4, 1, 0, 7, ' the', 2.5), (1, 4, -1, 0, 8, ' a', -1.5)")
    batch = BatchRecord("key", None, "run", "m", "url", "chat", None, "uploading", 0.0)
    store.begin_batch(batch, [BatchedRequest("r1", "0" * 64, 0, 1, 4, "explain", False, 2)])


def test_reading_survives_a_new_column_and_another_order(store: Store) -> None:
    _fill(store)
    before = _read(store)
    assert all(before)
    for table in TABLES:
        store.con.execute(f"ALTER TABLE {table} ADD COLUMN later VARCHAR DEFAULT 'later'")
    assert _read(store) == before
    for table in TABLES:
        _shuffle_columns(store, table)
    assert _read(store) == before
    assert [t.token for t in store.projected_tokens(1, [4])[4]] == [" the", " a"]


def test_writing_survives_a_new_column_and_another_order(store: Store) -> None:
    tables = [table for table in TABLES if table not in ("explanations", "scores", "llm_calls")]
    for table in tables:  # those three need their keys, for ON CONFLICT
        _shuffle_columns(store, table)
    for table in ("explanations", "scores", "llm_calls"):
        store.con.execute(f"ALTER TABLE {table} ADD COLUMN later VARCHAR DEFAULT 'later'")
    second = add_dictionary(store, "another")
    assert [d.name for d in store.dictionaries()] == ["layer3", "another"]
    corpus = store.add_corpus("source", {"a": 1}, None, 2, 3)
    assert (store.corpus(corpus).source, store.corpus(corpus).n_tokens) == ("source", 3)
    store.add_harvest(second, corpus, 5, {"top": 1})
    assert store.harvests(second)[0].config == {"top": 1}
    e = explanation(4)
    context = store.contexts_of(1, 1, [4], "report", {"top": 1})[4][0]
    made = score(e, predictions=[prediction(context.context_id)])
    store.insert_group([call(1)], [e], [made])
    assert store.explanations_of(1, [4]) == {4: [e]}
    assert store.find_call(call(1).request_sha256, 0) == call(1)
    found = store.scores_of(
        [e.explanation_id], 1, made.scorer, made.method, made.part, made.model, made.template_sha256, made.seed
    )
    assert found == {e.explanation_id: made}
