"""A store as an older version of the program left it."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from autointerp.store.schema import migrations


def as_of_version_3(path: Path) -> None:
    """Makes the closed store at `path` one that an older version wrote."""
    with duckdb.connect(str(path)) as con:
        for (view,) in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall():
            con.execute(f"DROP VIEW {view}")
        later = "".join(sql for version, _, sql in migrations() if version > 3)
        for table in re.findall(r"CREATE TABLE (\w+)", later):
            con.execute(f"DROP TABLE {table}")
        for table, column in re.findall(r"ALTER TABLE (\w+) ADD COLUMN (\w+)", later):
            con.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        con.execute("DELETE FROM schema_migrations WHERE version > 3")
