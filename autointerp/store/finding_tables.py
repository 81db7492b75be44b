"""The tables in which evidence methods keep what they find: one record for each.

Migrations make the tables of the built-in methods. A method of another package declares its columns; the store makes
that table when the method is first run, and notes it in `settings`, so that readers find it where the package is not
installed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autointerp.errors import DamagedError, InputError
from autointerp.records import (
    ChangedToken,
    Counterfactual,
    FeatureShape,
    PromotedToken,
    PrunedContext,
    RelatedWord,
)
from autointerp.store.connection import StoreConnection

Row = Mapping[str, Any]
"""One row of a table, by column name."""

NOTED = "finding_table:"
"""In `settings`, the name of the row about a method's own table begins with this and ends with the method's name."""
KEYS = {"dictionary_id": "INTEGER", "feature": "INTEGER", "harvest_id": "INTEGER"}
"""The columns that the store puts before those of a method's own table."""
PAGE_KEYS = (
    "feature", "label", "explanations", "scores", "label_controls", "promoted", "suppressed", "no_projection",
    "contexts", "method_runs", "heads",
)  # fmt: skip
"""What a feature's page shows besides findings."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TYPE = re.compile(r"[A-Z][A-Z0-9_ ,()]*(\[\])*")


@dataclass(frozen=True, slots=True)
class FindingTable:
    """Where one evidence method keeps its findings: any number of rows for each feature."""

    method: str
    """The method's name."""
    name: str
    """The table's name in SQL."""
    order: tuple[str, ...] = ()
    """Columns by which a feature's rows are ordered; "-sign" is descending."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """DuckDB types by column name, without KEYS. Empty where a migration makes the table."""
    key: str = ""
    """What a feature's page calls the rows; the method's name where it is empty."""
    is_single: bool = False
    """Whether a feature has one row at most, which a page shows as it is and not in a list."""
    other_feature: str | None = None
    """A column that holds the number of another feature, whose label a page shows beside it."""
    found_where: str = "true"
    """SQL condition on the rows that say anything about a feature."""
    fills: str | None = None
    """The field of FeatureEvidence that the findings fill. Only a built-in table fills one."""
    read: Callable[[Sequence[Row]], Any] | None = None
    """A feature's rows, of which there is one at least, -> the value of that field."""

    @property
    def page_key(self) -> str:
        return self.key or self.method

    def order_by(self) -> str:
        terms = [f'"{name.removeprefix("-")}"{" DESC" if name.startswith("-") else ""}' for name in self.order]
        return ", ".join(("feature", *terms))

    def create_sql(self) -> str:
        keys = [f"{name} {kind} NOT NULL" for name, kind in KEYS.items()]
        columns = [f'"{name}" {kind}' for name, kind in self.columns.items()]
        return f"CREATE TABLE {self.name} ({', '.join([*keys, *columns])})"

    def check(self) -> None:
        """Raise InputError unless every name and type can be used in SQL unchanged."""
        declared = f"the table of the evidence method {self.method!r}"
        used = [name.removeprefix("-") for name in self.order]
        if self.other_feature is not None:
            used.append(self.other_feature)
        for name in (self.name, *self.columns, *used):
            if not _NAME.fullmatch(name):
                raise InputError(f"{declared}: {name!r} is no name of small letters, digits and underscores")
        for name, kind in self.columns.items():
            if not _TYPE.fullmatch(kind):
                raise InputError(f"{declared}: {kind!r} of column {name} is not the name of an SQL type")
        if self.key or self.fills or self.read or self.found_where != "true":
            raise InputError(f"{declared}: key, fills, read and found_where are for built-in tables")
        if self.method in PAGE_KEYS or self.method in {table.page_key for table in BUILT_IN}:
            raise InputError(f"{declared}: a feature's page shows something else under that name")
        if not self.columns or set(self.columns) & set(KEYS):
            raise InputError(f"{declared} must have columns, and none of them may be called {', '.join(KEYS)}")
        unknown = [name for name in used if name not in self.columns and name not in KEYS]
        if unknown:
            raise InputError(f"{declared} has no column {unknown[0]!r}")

    def noted(self) -> str:
        """JSON of what a reader needs to know of a method's own table."""
        told = {
            "method": self.method, "name": self.name, "order": list(self.order), "columns": dict(self.columns),
            "is_single": self.is_single, "other_feature": self.other_feature,
        }  # fmt: skip
        return json.dumps(told, sort_keys=True)


def tables_in(store: StoreConnection) -> list[FindingTable]:
    """The tables of the built-in methods, then those that other methods brought to this store."""
    noted = store.rows(
        "SELECT value FROM settings WHERE dictionary_id IS NULL AND starts_with(name, ?) ORDER BY name", [NOTED]
    )
    return [*BUILT_IN, *(from_note(text) for (text,) in noted)]


def from_note(text: str) -> FindingTable:
    """The reverse of `noted`. Raises DamagedError if `text` is not such a note."""
    try:
        told = json.loads(text)
        known = {name: told[name] for name in ("method", "name", "columns", "is_single", "other_feature")}
        table = FindingTable(**known, order=tuple(told["order"]))
        table.check()
    except (ValueError, TypeError, KeyError, AttributeError, InputError) as error:
        raise DamagedError(f"settings: the note of a method's own table cannot be read: {error}") from error
    return table


def _pruned(rows: Sequence[Row]) -> list[PrunedContext]:
    names = (
        "feature", "context_id", "mode", "tokens", "importance", "activation", "full_activation", "status",
    )  # fmt: skip
    return [
        PrunedContext(
            **{name: row[name] for name in names},
            counterfactuals=[Counterfactual(**one) for one in row["counterfactuals"]],
        )
        for row in rows
    ]


def _changed(rows: Sequence[Row]) -> list[ChangedToken]:
    return [ChangedToken(row["token"], row["sign"], row["rank"], row["delta"], row["z"]) for row in rows]


def _promoted(rows: Sequence[Row]) -> list[PromotedToken]:
    return [PromotedToken(row["token"], row["logit"], row["rank"], row["sign"]) for row in rows]


def _words(score: str) -> Callable[[Sequence[Row]], list[RelatedWord]]:
    return lambda rows: [RelatedWord(row["word"], row["rank"], row[score]) for row in rows]


def _shape(rows: Sequence[Row]) -> FeatureShape:
    names = ("kind", "unigram", "unigram_purity", "position_dependence", "text", "rule")
    return FeatureShape(**{name: rows[0][name] for name in names})


FEATURE_SHAPES = FindingTable("shape", "feature_shapes", key="shape", is_single=True, fills="shape", read=_shape)
CLEARLY = 2.0
"""An output feature's promoted tokens stand out clearly if its kurtosis is so many times what 1 in 100 random
directions exceed: among many tokens, very little is already more than chance."""


def stands_out(found: Row) -> bool:
    """Whether the promoted tokens of the feature of this row stand out clearly."""
    return bool(found["is_output"] and found["kurtosis"] >= CLEARLY * found["threshold"])


OUTPUT_STATISTICS = FindingTable(
    "output_statistic",
    "output_statistics",
    is_single=True,
    fills="stands_out",
    read=lambda rows: stands_out(rows[0]),
)
LENS_TOKENS = FindingTable("jacobian_lens", "lens_tokens", ("-sign", "rank"), key="lens", fills="lens", read=_promoted)
TOKEN_CHANGES = FindingTable(
    "token_change", "token_changes", ("-sign", "rank"), key="changed", fills="changed", read=_changed
)
MUTUAL_INFORMATION = FindingTable(
    "mutual_information", "mutual_information", ("rank",), key="related_words", fills="related_words",
    read=_words("score"),
)  # fmt: skip
INPUT_WORDS = FindingTable(
    "words", "input_words", ("rank",), key="input_words", fills="input_words", read=_words("pmi")
)
NEIGHBOURS = FindingTable("neighbours", "neighbours", ("relation", "rank"), other_feature="neighbour")
PRUNED_CONTEXTS = FindingTable(
    "pruning", "pruned_contexts", ("rank",), key="pruned", found_where="status = 'ok'", fills="pruned", read=_pruned
)

BUILT_IN = (
    FEATURE_SHAPES, OUTPUT_STATISTICS, LENS_TOKENS, TOKEN_CHANGES, MUTUAL_INFORMATION, INPUT_WORDS, NEIGHBOURS,
    PRUNED_CONTEXTS,
)  # fmt: skip
"""The built-in tables, in the order in which a feature's page shows them."""
