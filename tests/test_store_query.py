"""Queries from outside reach the store and nothing else."""

from __future__ import annotations

import json
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from support.store_fixtures import explanation, filled

from autointerp.errors import AutointerpError, DamagedError, InputError, StoppedError, StoreBusyError
from autointerp.store import Store
from autointerp.store.query import run_query
from autointerp.store.safety.paths import evidence_path_of
from autointerp.store.safety.reading import open_for_reading


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("query") / "x.duckdb"
    store, _, _ = filled(path)
    store.insert_explanations([explanation(0)])
    store.close()
    return path


def test_rows_and_columns(path: Path) -> None:
    assert run_query(path, "SELECT feature, label FROM labels WHERE feature < 2 ORDER BY 1;") == (
        ["feature", "label"],
        [(0, "words about 0"), (1, None)],
    )
    assert run_query(path, "FROM contexts SELECT count(*)")[1] == [(105,)]
    assert run_query(path, "FROM evidence.windows SELECT count(*)")[1] == [(6,)]
    assert len(run_query(path, "FROM contexts", max_rows=3)[1]) == 3
    assert run_query(path, "DESCRIBE labels")[1][0][0] == "dictionary_id"


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{tmp}/out.csv'",
        "COPY features TO '{tmp}/out.parquet'",
        "EXPORT DATABASE '{tmp}/out'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "ATTACH '{tmp}/other.duckdb'",
        "INSTALL fts",
        "LOAD fts",
        "SELECT * FROM read_parquet('https://example.com/x.parquet')",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "RESET lock_configuration",
        "SET memory_limit = '100GB'",
        "CREATE SECRET (TYPE s3)",
        "CALL enable_logging(storage = 'file', storage_config = {{'path': '{tmp}/log'}})",
    ],
)
def test_lock_down(path: Path, tmp_path: Path, sql: str) -> None:
    with pytest.raises(InputError):
        run_query(path, sql.format(tmp=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO settings VALUES (1, 'a', 'b')",
        "DELETE FROM explanations",
        "UPDATE explanations SET text = 'x'",
        "DROP TABLE explanations",
        "CREATE TABLE t (a INTEGER)",
        "ALTER TABLE features ADD COLUMN x INTEGER",
        "DELETE FROM evidence.windows",
    ],
)
@pytest.mark.parametrize("unsafe", [pytest.param(False, marks=pytest.mark.slow), True])
def test_nothing_can_be_written(path: Path, sql: str, unsafe: bool) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match="cannot change the store"):
        run_query(path, sql, unsafe=unsafe)
    assert path.read_bytes() == before


READS = (
    "FROM labels SELECT feature", "VALUES (1), (2)", "TABLE features", "WITH a AS (SELECT 1 AS x) FROM a",
    "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 5) FROM r", "(SELECT 1)", "SHOW TABLES",
    "SHOW labels", "SUMMARIZE features", "DESCRIBE SELECT 1", "PIVOT labels ON status USING count(*);",
    "PIVOT labels ON status IN ('live')", "WITH p AS (PIVOT labels ON status USING count(*)) FROM p -- all",
    "EXPLAIN SELECT 1", "EXPLAIN ANALYZE SELECT 1", "EXPLAIN (FORMAT json) SELECT 'é;' ; -- é", "EXPLAIN (SELECT 1)",
    "EXPLAIN /* how */ PIVOT labels ON status", "SELECT 1 AS a, 2 AS a", "SELECT ';' /* ; */ ;;",
)  # fmt: skip
WRITES = (
    "COPY {select} TO '{file}' (FORMAT csv, USE_TMP_FILE false)",
    "COPY (PIVOT labels ON status) TO '{file}' (FORMAT csv, USE_TMP_FILE false)",
    "WITH x AS (COPY {select} TO '{file}' (FORMAT csv, USE_TMP_FILE false)) FROM x",
    "EXPLAIN ANALYZE COPY {select} TO '{file}' (FORMAT csv, USE_TMP_FILE false)",
    "EXPLAIN (ANALYZE) WITH x AS (COPY {select} TO '{file}' (FORMAT csv, USE_TMP_FILE false)) FROM x",
    "EXPLAIN COPY {select} TO '{file}' (FORMAT csv, USE_TMP_FILE false)",
    "FROM query('WITH x AS (COPY {select} TO ''{file}'' (FORMAT csv, USE_TMP_FILE false)) FROM x')",
    "FROM json_execute_serialized_sql(json_serialize_sql("
    "'WITH x AS (COPY {select} TO ''{file}'' (FORMAT csv, USE_TMP_FILE false)) FROM x'))",
    "WITH x AS (DELETE FROM explanations RETURNING *) FROM x", "EXPORT DATABASE '{file}'",
    "ATTACH '{file}' AS again (READ_WRITE)",
    "CALL enable_logging(storage = 'file', storage_config = {{'path': '{file}'}})",
    "FROM enable_logging(storage := 'file', storage_config := {{'path': '{file}'}})",
    "FROM enable_profiling(save_location := '{file}')",
    "SET threads = 1", "SET VARIABLE x = 1", "RESET threads", "PRAGMA enable_profiling", "CHECKPOINT", "VACUUM",
    "BEGIN",
    "CREATE TEMP TABLE t AS SELECT 1", "CREATE TEMP MACRO m() AS 1", "PREPARE p AS SELECT 1", "DETACH evidence",
    "USE evidence", "INSTALL fts", "LOAD fts", "IMPORT DATABASE '{file}'", "SELECT 1; SELECT 2",
)  # fmt: skip


@pytest.mark.parametrize("reads", [READS[::4], pytest.param(READS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_form_of_reading(path: Path, reads: tuple[str, ...]) -> None:
    for sql in reads:
        assert run_query(path, sql)[1], sql


def test_what_python_has_no_type_for_is_text(path: Path) -> None:
    """A time with a zone would need one more package, and Python knows no months and no infinite time."""
    columns, ((now, end, spans, struct, one),) = run_query(
        path,
        "SELECT now(), TIMESTAMPTZ 'infinity' AS end, [INTERVAL '1 month 2 days', NULL] AS spans, "
        "{'INTERVAL': 3, 'in': INTERVAL '99999999 years'} AS struct, 1 AS one ORDER BY one -- all",
    )
    assert columns == ["now()", "end", "spans", "struct", "one"]
    assert abs(datetime.fromisoformat(now) - datetime.now(UTC)) < timedelta(hours=1)
    assert (end, spans, one) == ("infinity", ["1 month 2 days", None], 1)
    assert struct == {"INTERVAL": 3, "in": "99999999 years"}
    assert len(run_query(path, "SELECT * FROM test_all_types()")[1]) == 3


@pytest.mark.parametrize(
    ("sql", "way"),
    [
        (sql, way) if way == "unsafe" or i % 6 == 0 else pytest.param(sql, way, marks=pytest.mark.slow)
        for i, sql in enumerate(WRITES)
        for way in ("locked", "unsafe", "output")
    ],
)
def test_only_reading_is_answered(path: Path, tmp_path: Path, sql: str, way: str) -> None:
    """DuckDB lets a query write to the files of attached databases, whatever external access it has."""
    store = tmp_path / path.name
    for file in path.parent.iterdir():
        shutil.copy(file, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for name in (path.name, evidence_path_of(path).name, path.name + ".wal"):
        statement = sql.format(select="(SELECT 1)", file=tmp_path / name)
        with pytest.raises(InputError):
            run_query(store, statement, unsafe=way == "unsafe", output=tmp_path / "o.csv" if way == "output" else None)
        if "{file}" not in sql or way != "locked":
            break
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_views_of_a_foreign_store_reach_no_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("PRIVATE")
    for file in path.parent.iterdir():
        shutil.copy(file, tmp_path)
    store = tmp_path / path.name
    with duckdb.connect(str(store)) as con:
        con.execute(f"ATTACH '{evidence_path_of(store)}' AS evidence (READ_ONLY)")
        con.execute(f"CREATE VIEW spy AS SELECT content FROM read_text('{tmp_path}/private.txt')")
        con.execute("CREATE OR REPLACE VIEW labels AS SELECT 0 AS feature, (SELECT content FROM spy) AS label")
    with pytest.raises(InputError, match="not allowed"):
        run_query(store, "FROM labels")
    with open_for_reading(store) as opened, pytest.raises(AutointerpError, match="disabled by configuration"):
        opened.rows("FROM labels")


def test_one_statement_without_parameters(path: Path) -> None:
    for sql in ("SELECT 1; SELECT 2", "", "-- nothing"):
        with pytest.raises(InputError, match="one SQL statement"):
            run_query(path, sql)
    with pytest.raises(InputError, match="does not parse"):
        run_query(path, "SELEC 1")
    with pytest.raises(InputError, match="not valid Unicode"):
        run_query(path, "SELECT '\ud800'")
    with pytest.raises(InputError, match="parameters"):
        run_query(path, "SELECT ?")
    with pytest.raises(InputError, match="labelz"):
        run_query(path, "SELECT * FROM labelz")
    with pytest.raises(InputError, match="memory limit"):
        run_query(path, "SELECT 1", memory_limit="lots'")


def test_timeout_and_memory(path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(StoppedError, match="took longer than 0.5 s") as caught:
        run_query(path, "SELECT count(*) FROM range(10000000) a, range(10000000) b, range(1000) c", timeout_s=0.5)
    assert time.monotonic() - start < 20
    assert caught.value.exit_code == 4
    with pytest.raises(InputError, match="at most"):
        run_query(path, "SELECT 1", timeout_s=float("inf"))
    with pytest.raises(InputError, match="needs more memory than 50MB"):
        run_query(path, "SELECT list(range) FROM range(100000000)", memory_limit="50MB")


def test_what_duckdb_does_not_stop_is_ended(path: Path) -> None:
    """Its planner heeds no interrupt, and the rows of a result are outside of its memory limit."""
    doubled = ["c0 AS NOT MATERIALIZED (SELECT 1 AS x)"]
    doubled += [f"c{i} AS NOT MATERIALIZED (SELECT c{i - 1}.x FROM c{i - 1}, c{i - 1} AS d)" for i in range(1, 22)]
    start = time.monotonic()
    with pytest.raises(StoppedError, match="took longer than 0.5 s"):
        run_query(path, f"WITH {', '.join(doubled)} SELECT count(*) FROM c21", timeout_s=0.5)
    assert time.monotonic() - start < 20
    with pytest.raises(InputError, match="more memory than 100MB"):
        run_query(path, "SELECT repeat('x', 1000000) FROM range(4000)", memory_limit="100MB", timeout_s=300)


def test_output_is_the_only_file_it_may_write(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "it's.parquet"
    assert run_query(path, "SELECT feature, label FROM labels ORDER BY 1 -- all", output=target) == ([], [])
    with duckdb.connect() as con:
        assert con.execute("SELECT count(*) FROM read_parquet(?)", [str(target)]).fetchone() == (6,)
    run_query(path, "SELECT 1 AS a; -- it ends here", output=tmp_path / "x.csv", output_format="csv")
    assert (tmp_path / "x.csv").read_text() == "a\n1\n"
    for sql in (
        "SELECT * FROM read_text('/etc/passwd')",
        "COPY (SELECT 1) TO '/nowhere/x'",
        "SELECT 1) TO '/nowhere/x' --",
    ):
        with pytest.raises(InputError):
            run_query(path, sql, output=tmp_path / "y.parquet")
    with pytest.raises(InputError, match="output format"):
        run_query(path, "SELECT 1", output=tmp_path / "y", output_format="xlsx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["it's.parquet", "x.csv"]


def test_a_file_may_hold_more_than_the_memory_does(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "large.parquet"
    run_query(path, "SELECT i, hash(i) AS h FROM range(8000000) AS r(i)", output=target, memory_limit="100MB")
    with duckdb.connect() as con:
        rows = con.execute("SELECT count(*), max(i), bool_and(h = hash(i)) FROM read_parquet(?)", [str(target)])
        assert rows.fetchone() == (8_000_000, 7_999_999, True)


def test_a_query_that_fails_half_way_ends(path: Path, tmp_path: Path) -> None:
    """COPY of a query that fails on one of several threads may wait for ever."""
    fails = "SELECT CASE WHEN i < 400000 THEN i ELSE error('at last') END AS i FROM range(500000) AS r(i)"
    for _ in range(6):
        with pytest.raises(InputError, match="at last"):
            run_query(path, fails, output=tmp_path / "x.csv", output_format="csv")
    assert not (tmp_path / "x.csv").exists()


def test_a_store_that_lost_commits_is_not_queried(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path.parent, tmp_path / "copy")
    path = tmp_path / "copy" / path.name
    ledger = path.with_name(path.name + ".ledger")
    line = json.loads(ledger.read_bytes().splitlines()[-1])
    line["rows"]["explanations"] += 1
    ledger.write_text(json.dumps(line) + "\n")
    with pytest.raises(DamagedError, match="explanations: 1 missing"):
        run_query(path, "SELECT 1")


def test_unsafe_may_read_files(path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n5\n")
    assert run_query(path, f"SELECT a FROM read_csv('{tmp_path}/t.csv')", unsafe=True) == (["a"], [(5,)])


def test_stores_that_cannot_be_queried(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no store"):
        run_query(tmp_path / "none.duckdb", "SELECT 1")
    duckdb.connect(str(tmp_path / "other.duckdb")).close()
    with pytest.raises(InputError, match="not a store"):
        run_query(tmp_path / "other.duckdb", "SELECT 1")
    (tmp_path / "torn.duckdb").write_bytes(b"x" * 20_000)
    with pytest.raises(DamagedError):
        run_query(tmp_path / "torn.duckdb", "SELECT 1")
    with Store.open(path), pytest.raises(StoreBusyError):
        run_query(path, "SELECT 1")
    kept = evidence_path_of(path).rename(tmp_path / "kept")
    try:
        with pytest.raises(DamagedError, match="evidence"):
            run_query(path, "SELECT 1")
    finally:
        kept.rename(evidence_path_of(path))
