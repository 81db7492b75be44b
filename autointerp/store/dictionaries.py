"""What is worked on: corpora, dictionaries, harvests, and which label the view `labels` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autointerp.errors import InputError, MismatchError, nearest
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import select_list
from autointerp.store.rows import CorpusRow, DictionaryRow, HarvestRow
from autointerp.store.values import as_json, clean

_EMPTY = "coalesce({}, '{{}}'::JSON)"
"""A JSON column that may be NULL, read as a dict."""


class StoreDictionaries(StoreConnection):
    """Tables corpora, dictionaries, harvests and settings."""

    def add_corpus(
        self, source: str, config: Mapping[str, Any], tokenizer_sha256: str | None, n_documents: int, n_tokens: int
    ) -> int:
        """The corpus_id of this corpus, made where no equal one is recorded yet."""
        with self.transaction() as con:
            row = {
                "source": clean(source), "config": as_json(config), "tokenizer_sha256": tokenizer_sha256,
                "n_documents": n_documents, "n_tokens": n_tokens,
            }  # fmt: skip
            found = con.execute(
                "SELECT corpus_id FROM corpora WHERE source = ? AND config = ?::JSON "
                "AND tokenizer_sha256 IS NOT DISTINCT FROM ? AND n_documents = ? AND n_tokens = ?",
                list(row.values()),
            ).fetchall()
            if found:
                return int(found[0][0])
            corpus_id = self.next_id("corpora", "corpus_id")
            self.insert_row("corpora", {"corpus_id": corpus_id, **row, "created_at": self.now()})
            return corpus_id

    def add_dictionary(
        self, *, name: str, model: str, revision: str | None, hookpoint: str, output_hookpoint: str | None = None,
        architecture: str, d_in: int, d_out: int, d_sae: int, sae_sha256: str, tokenizer_sha256: str,
        config: Mapping[str, Any],
    ) -> int:  # fmt: skip
        """The dictionary_id of this SAE, made where the name is new.

        Raises MismatchError where the name is taken by another SAE, model, revision, hookpoint or tokenizer.
        """
        values: dict[str, Any] = {
            "model": model, "revision": revision, "hookpoint": hookpoint, "output_hookpoint": output_hookpoint,
            "architecture": architecture, "d_in": d_in, "d_out": d_out, "d_sae": d_sae, "sae_sha256": sae_sha256,
            "tokenizer_sha256": tokenizer_sha256,
        }  # fmt: skip
        with self.transaction():
            held = self.known_dictionary(name, values)
            if held is not None:
                return held
            dictionary_id = self.next_id("dictionaries", "dictionary_id")
            row = {"dictionary_id": dictionary_id, "name": name, **values, "config": as_json(config)}
            self.insert_row("dictionaries", {**row, "created_at": self.now()})
            return dictionary_id

    def known_dictionary(self, name: str, values: Mapping[str, Any]) -> int | None:
        """The dictionary_id of the dictionary with this name and these values of its other columns; None where the name
        is new. Raises MismatchError where it is taken by another one."""
        held = self.dicts(f"SELECT dictionary_id, {', '.join(values)} FROM dictionaries WHERE name = ?", [name])
        for old in held:
            for column, value in values.items():
                # A model in a folder is known by its content (model/load.py), and may have been moved.
                moved = column == "model" and str(values["revision"]).startswith("local:")
                if old[column] != value and not moved:
                    raise MismatchError(
                        f"the store {self.path} already has a dictionary {name!r} with {column} {old[column]!r}, "
                        f"now it is {value!r}. Give the new one another `name` under [[sae]], or use another store"
                    )
            return int(old["dictionary_id"])
        return None

    def add_harvest(
        self, dictionary_id: int, corpus_id: int, n_tokens: int, config: Mapping[str, Any],
        report: Mapping[str, Any] | None = None,
    ) -> int:  # fmt: skip
        """The harvest_id of this pass over a corpus, made where no equal one is recorded yet."""
        with self.transaction() as con:
            row = {
                "dictionary_id": dictionary_id, "corpus_id": corpus_id, "n_tokens": n_tokens, "config": as_json(config),
            }  # fmt: skip
            found = con.execute(
                "SELECT harvest_id FROM harvests WHERE dictionary_id = ? AND corpus_id = ? AND n_tokens = ? "
                "AND config = ?::JSON",
                list(row.values()),
            ).fetchall()
            if found:
                return int(found[0][0])
            harvest_id = self.next_id("harvests", "harvest_id")
            made = {"harvest_id": harvest_id, **row, "report": as_json(report or {}), "created_at": self.now()}
            self.insert_row("harvests", made)
            return harvest_id

    def set_label_choice(self, dictionary_id: int, explainer: str | None, scorer: str | None) -> None:
        """Which explainer and scorer the view `labels` shows for a dictionary. None: whatever came last."""
        with self.transaction() as con:
            for name, value in (("label_explainer", explainer), ("label_scorer", scorer)):
                con.execute("DELETE FROM settings WHERE dictionary_id = ? AND name = ?", [dictionary_id, name])
                if value is not None:
                    self.insert_row("settings", {"dictionary_id": dictionary_id, "name": name, "value": value})

    def dictionaries(self) -> list[DictionaryRow]:
        """Every dictionary, in the order in which they were added."""
        columns = select_list(DictionaryRow, config=_EMPTY.format("config"))
        return self.records(DictionaryRow, f"SELECT {columns} FROM dictionaries ORDER BY dictionary_id")

    def dictionary(self, name: str | None = None) -> DictionaryRow:
        """The dictionary of that name; without a name, the only dictionary in the store.

        Raises InputError, which lists the names, if there is no such dictionary, or no single one.
        """
        every = self.dictionaries()
        names = [d.name for d in every]
        if not every:
            raise InputError(f"{self.path} holds no dictionary yet; `autointerp harvest` adds one")
        if name is None:
            if len(every) > 1:
                raise InputError(
                    f"{self.path} holds {len(every)} dictionaries: {', '.join(names)}; choose one with --dictionary"
                )
            return every[0]
        for row in every:
            if row.name == name:
                return row
        raise InputError(f"no dictionary {name!r} in {self.path}; it holds {', '.join(names)}.{nearest(name, names)}")

    def corpus(self, corpus_id: int) -> CorpusRow:
        """Raises InputError where the store holds no such corpus."""
        columns = select_list(CorpusRow, config=_EMPTY.format("config"))
        found = self.records(CorpusRow, f"SELECT {columns} FROM corpora WHERE corpus_id = ?", [corpus_id])
        if not found:
            raise InputError(f"no corpus {corpus_id} in {self.path}")
        return found[0]

    def harvests(self, dictionary_id: int) -> list[HarvestRow]:
        """Every harvest of a dictionary, oldest first."""
        columns = select_list(HarvestRow, config=_EMPTY.format("config"), report=_EMPTY.format("report"))
        return self.records(
            HarvestRow, f"SELECT {columns} FROM harvests WHERE dictionary_id = ? ORDER BY harvest_id", [dictionary_id]
        )

    def current_harvest(self, dictionary_id: int) -> int | None:
        """The harvest that the dictionary's feature rows come from; None before the first merge."""
        found = self.rows("SELECT max(harvest_id) FROM features WHERE dictionary_id = ?", [dictionary_id])
        return None if found[0][0] is None else int(found[0][0])
