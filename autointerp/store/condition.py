"""`--where`: a user's SQL condition on features. A process of its own, limited as that of `query`, answers it.

While a run holds the store, no other process can open it. So the process gets a copy of the tables that the condition
may read. The evidence file, which nobody writes to, is shared.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from autointerp.errors import InputError, StoreBusyError, shown
from autointerp.store.connection import StoreConnection, connect, identifier, quoted, restrict, sql_file
from autointerp.store.evidence_file import attach_evidence
from autointerp.store.parsed_sql import every_dict, parsed, tables_read
from autointerp.store.query_process import Alarm, Limits, Rows, Say, answer_in_a_process
from autointerp.store.query_statements import first_line
from autointerp.store.safety.faults import translated
from autointerp.store.safety.paths import evidence_path_of

LIMIT_S, MEMORY = 30.0, "2GB"
"""What finding the features of a condition may take; the limits of `query` by default."""
TABLES = frozenset(
    {
        "corpora", "dictionaries", "harvests", "features", "vocab_projection", "explanations", "scores", "predictions",
        "sae_metrics", "training_metrics", "llm_calls", "runs", "labels", "contexts", "windows", "spend_by_stage",
        "explainer_leaderboard", "explainer_leaderboard_strata", "method_runs", "measure_tasks", "measurements",
        "context_need", "label_changes", "batches", "batch_requests", "judge_repeats", "judge_consistency",
        "recurring_tokens", "same_labels", "label_controls", "decoder_norms",
    }
)  # fmt: skip
"""Those that a condition may read; the tables of evidence methods are added (see finding_tables.py)."""
# The columns that a condition may use: those of `features`, and those that only `labels` has.
_SELECTABLE = """
    SELECT f.*, l.* EXCLUDE (dictionary_id, feature, density, status)
    FROM features AS f JOIN labels AS l USING (dictionary_id, feature)
    WHERE f.dictionary_id = ?
"""
_ALWAYS = ("features", "labels")
_VIEW = re.compile(r"^CREATE OR REPLACE VIEW (\w+) AS(.*?);$", re.MULTILINE | re.DOTALL)


def features_where(
    store: StoreConnection, dictionary_id: int, condition: str, more_tables: Collection[str]
) -> set[int]:
    """The features of the dictionary for which `condition` holds. `more_tables`: the tables of evidence methods.

    Raises InputError where the condition is not one (see `check_condition`), does not fit the store or needs too much
    memory; StoppedError where it takes too long.
    """
    limits = Limits(f"--where {shown(condition)}", LIMIT_S, MEMORY)
    try:
        condition.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"--where is not valid Unicode: {error.reason} at character {error.start}") from None
    with _file_for_others(store, condition) as (file, is_copy):
        question = _Condition(
            condition, dictionary_id, store.path, store.store_id, file, is_copy, frozenset(more_tables), limits
        )
        return {row[0] for row in answer_in_a_process(question, limits)[1]}


@contextmanager
def _file_for_others(store: StoreConnection, condition: str) -> Iterator[tuple[Path, bool]]:
    """A database that another process can open for reading, and whether it is a copy, which has no views."""
    if store.read_only:
        with store.cursor() as cursor:
            ((file,),) = cursor.execute(
                "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
            ).fetchall()
        yield Path(file), False
        return
    with TemporaryDirectory(prefix="autointerp-") as folder:
        file = Path(folder) / "condition.duckdb"
        _copy_tables(store, file, needed_tables(condition))
        yield file, True


def needed_tables(condition: str) -> set[str]:
    """At least the tables that `condition` reads, by themselves or through views: all whose names occur in it. It is
    not parsed here, where nothing limits that."""
    views = {name: _words(text) for name, text in _VIEW.findall(sql_file("views.sql"))}
    needed: set[str] = set()
    found = _words(condition) | set(_ALWAYS)
    while found - needed:
        needed |= found
        found = set().union(*(views[name] for name in needed & set(views)))
    return needed


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _copy_tables(store: StoreConnection, file: Path, needed: set[str]) -> None:
    """Copies the tables whose names are in `needed` into a new database, and the others without their rows."""
    copy = f'"/{uuid.uuid4().hex}"'  # with a slash, no store has this name
    with store.cursor() as cursor:
        ((main,),) = cursor.execute("SELECT current_database()").fetchall()
        cursor.execute(f"ATTACH {quoted(str(file))} AS {copy}")
        try:
            cursor.begin()
            tables = cursor.execute(
                "SELECT table_name FROM duckdb_tables() WHERE database_name = ? AND NOT temporary", [main]
            ).fetchall()
            for (table,) in tables:
                rows = "" if table.lower() in needed else " LIMIT 0"
                name = identifier(table)
                cursor.execute(f"CREATE TABLE {copy}.{name} AS FROM {identifier(main)}.{name}{rows}")
            cursor.commit()
        finally:
            with suppress(duckdb.Error):  # after the commit there is no transaction
                cursor.rollback()
            cursor.execute(f"DETACH {copy}")


@dataclass(frozen=True, slots=True)
class _Condition:
    """A condition, as it is sent to the process that answers it."""

    condition: str
    dictionary_id: int
    path: Path
    """The store."""
    store_id: str
    file: Path
    """The database to read, and whether it is a copy of the store's tables without views."""
    is_copy: bool
    more_tables: frozenset[str]
    limits: Limits

    def __call__(self, alarm: Alarm, say: Say) -> Rows:
        """The features, a row each."""
        alarm.set(self.limits.seconds)
        with closing(self._opened()) as con:
            check_condition(con, self.condition, self.more_tables)
            sql = f"SELECT feature FROM ({_SELECTABLE}) AS features WHERE (\n{self.condition}\n)"
            try:
                found = con.execute(sql, [self.dictionary_id]).fetchall()
            except duckdb.OutOfMemoryException as error:
                raise self.limits.needs_more_memory(first_line(error)) from error
            except MemoryError:
                raise self.limits.needs_more_memory() from None
            except duckdb.Error as error:
                reason = str(error).split("\n\nLINE", 1)[0]
                raise InputError(
                    f"--where {shown(self.condition)} does not fit the table features: {reason}"
                ) from error
        alarm.off()
        return ["feature"], found

    def _opened(self) -> duckdb.DuckDBPyConnection:
        if not self.file.exists():  # a snapshot, which its writer renews and at its end removes
            raise StoreBusyError(f"{self.file} was replaced before it was read; try again")
        with translated(self.path, opening=True):
            con = connect(self.file, read_only=not self.is_copy)
        try:
            with translated(self.path, opening=True):
                con.execute("SET temp_directory = ''")
                restrict(con, self.path)
            attach_evidence(con, self.path, evidence_path_of(self.path), self.store_id)
            with translated(self.path, opening=True):
                if self.is_copy:
                    con.execute(sql_file("views.sql"))
                con.execute(f"SET memory_limit = {quoted(self.limits.memory)}")
                con.execute("SET lock_configuration = true")
            return con
        except BaseException:
            con.close()
            raise


def check_condition(con: duckdb.DuckDBPyConnection, condition: str, more_tables: Collection[str] = ()) -> None:
    """Raises InputError unless `condition` is one SQL expression that reads nothing but the store's own tables, those
    that evidence methods of other packages brought to it (`more_tables`) included.

    DuckDB parses the text and does not run it. It is parsed twice: in brackets, as the only WHERE clause of a statement
    that we build, where the parse shows anything that ends the expression early, adds a statement, or names a table
    function or a file; and without brackets, so that it cannot close ours and open its own.
    """
    # The closing bracket has a line of its own, so that a trailing comment cannot swallow it.
    nodes: list[dict[str, Any]] = []
    for statement in (f"SELECT\n{condition}\n", f"SELECT 1 FROM features WHERE (\n{condition}\n)"):
        try:
            nodes = parsed(con, statement)
        except InputError as error:
            raise InputError(f"--where {shown(condition)} is not an SQL condition: {error}") from None
    node = nodes[0] if len(nodes) == 1 else {}
    plain = (
        node.get("type") == "SELECT_NODE"
        and not node["modifiers"]
        and not node["group_expressions"]
        and node["having"] is None
        and node["qualify"] is None
        and node["sample"] is None
        and node["from_table"]["type"] == "BASE_TABLE"
    )
    if not plain:
        raise InputError(f"--where {shown(condition)} must be one SQL condition and nothing after it")
    with_names = {entry["key"] for inner in every_dict(node) for entry in inner.get("cte_map", {}).get("map", [])}
    try:
        tables = tables_read(node["where_clause"])
    except InputError as error:
        raise InputError(f"--where {shown(condition)}: {error} in a condition") from None
    for inner in tables:
        table = inner["table_name"]
        is_ours = table in TABLES or table in more_tables
        known = is_ours and inner["schema_name"] in ("", "main", "evidence") and not inner["catalog_name"]
        if not known and not (table in with_names and not inner["schema_name"]):
            raise InputError(f"--where {shown(condition)}: {table!r} is not a table of the store")
