"""Migrations, the public schema, and how a store is opened."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path

import duckdb
import pytest
from support.store_fixtures import add_dictionary, add_features, call, child, filled, write_evidence

from autointerp.errors import AutointerpError, DamagedError, InputError, MismatchError, StoreBusyError
from autointerp.store import Store, schema
from autointerp.store.connection import sql_file
from autointerp.store.finding_tables import NOTED, FindingTable
from autointerp.store.safety.paths import evidence_path_of
from autointerp.store.schema import migrations

# The SQL contract. A change here is a change for every user's query: it needs a migration and a note.
CONTRACT = {
    "corpora": "corpus_id source config tokenizer_sha256 n_documents n_tokens",
    "dictionaries": "dictionary_id name model revision hookpoint output_hookpoint architecture d_in d_out d_sae "
    "sae_sha256 tokenizer_sha256 config created_at",
    "harvests": "harvest_id dictionary_id corpus_id n_tokens config created_at",
    "features": "dictionary_id feature status density n_active_tokens max_activation mean_activation histogram_edges "
    "histogram_counts token_density n_active_tiles explain_max_activation harvest_id",
    "windows": "window_id document start split token_ids tokens",
    "contexts": "context_id dictionary_id feature split kind tier decile sampling_probability rank document position "
    "window_id offset tokens activations max_activation text",
    "vocab_projection": "dictionary_id feature sign rank token_id token logit",
    "near_words": "dictionary_id word near cosine",
    "head_shares": "dictionary_id feature head decoder_share output_share",
    "lens_tokens": "dictionary_id feature sign rank token_id token logit",
    "explanations": "explanation_id dictionary_id feature harvest_id explainer model template_sha256 evidence_sha256 "
    "seed text status error input_tokens output_tokens cost_usd created_at rule sequence side derived_from "
    "output_text second_text share second_share",
    "recurring_tokens": "dictionary_id list token n_features share by_chance",
    "same_labels": "dictionary_id explainer model text n_features share",
    "scores": "score_id dictionary_id feature explanation_id scorer method control part model template_sha256 seed "
    "value ci_low ci_high n n_failed status error created_at harvest_id sequence "
    "n_documents n_by_kind documents influences label_from from_status from_share from_mass from_precision "
    "from_precision_low from_precision_high from_recall from_recall_low from_recall_high from_n from_floor",
    "predictions": "score_id context_id truth predicted status",
    "labels": "dictionary_id name feature label explainer model scorer score ci_low ci_high density status "
    "explanation_id side precision precision_low precision_high recall recall_low recall_high label_from from_status "
    "from_quantile from_share from_mass from_precision from_precision_low from_precision_high from_recall "
    "from_recall_low from_recall_high from_n "
    "from_floor second_label output_label label_share second_share n_same_label label_flag",
    "sae_metrics": "dictionary_id corpus_id split metric value ci_low ci_high n_tokens",
    "llm_calls": "request_sha256 sample run_id dictionary_id feature stage model status reply input_tokens "
    "cached_tokens output_tokens cost_usd latency_s created_at sequence",
    "runs": "run_id command started_at finished_at status exit_code config versions sequence",
    "spend_by_stage": "dictionary_id name stage model n_calls cost_usd",
    "explainer_leaderboard": "dictionary_id name explainer model scorer method control mean_score ci_low ci_high n",
    "context_need": "dictionary_id feature median_tokens n",
    "judge_repeats": "repeat_id dictionary_id feature explanation_id harvest_id scorer method model template_sha256 "
    "seed n_twice n_agreed n_answers square_sum n_within within_sum n_between between_sum created_at",
    "judge_consistency": "dictionary_id name scorer model template_sha256 n_labels n_contexts agreement n_pairs "
    "correlation ci_low ci_high",
    "explainer_leaderboard_strata": "dictionary_id name explainer model scorer method control mean_score ci_low n",
}
TYPES = {
    ("features", "histogram_edges"): "FLOAT[]",
    ("features", "histogram_counts"): "BIGINT[]",
    ("windows", "token_ids"): "INTEGER[]",
    ("windows", "tokens"): "VARCHAR[]",
    ("contexts", "tokens"): "VARCHAR[]",
    ("contexts", "activations"): "FLOAT[]",
    ("contexts", "text"): "VARCHAR",
    ("scores", "n_documents"): "INTEGER",
    ("scores", "n_by_kind"): "JSON",
    ("scores", "documents"): "VARCHAR[]",
    ("scores", "influences"): "FLOAT[]",
    ("predictions", "truth"): "FLOAT[]",
    ("predictions", "predicted"): "FLOAT[]",
    ("corpora", "config"): "JSON",
    ("runs", "versions"): "JSON",
}


def test_schema_from_blank_is_the_contract(tmp_path: Path) -> None:
    with Store.open(tmp_path / "x.duckdb", create=True) as store:
        found = store.rows("SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal")
        columns = {(table, column): kind for table, column, kind in found}
        for table, names in CONTRACT.items():
            missing = [name for name in names.split() if (table, name) not in columns]
            assert not missing, f"{table} lacks {missing}"
        for key, kind in TYPES.items():
            assert columns[key] == kind
        assert store.rows("SELECT version, name FROM schema_migrations") == [
            (1, "initial"),
            (2, "methods"),
            (3, "batches"),
            (4, "sequence"),
            (5, "score_documents"),
            (6, "output_p_values"),
            (7, "label_from"),
            (8, "label_controls"),
            (9, "meanings"),
            (10, "judge_repeats"),
            (11, "near_words"),
            (12, "jacobian_lens"),
            (13, "head_shares"),
        ]


def test_a_store_of_the_first_schema_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.duckdb"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: migrations()[:1])
        views = "CREATE OR REPLACE VIEW labels AS SELECT feature FROM features"  # of that version
        patch.setattr(schema, "sql_file", lambda name: views if name == "views.sql" else sql_file(name))
        with Store.open(path, create=True) as store:
            store.add_corpus("text", {}, "tok", 1, 2)
            assert not store.rows("SELECT 1 FROM duckdb_tables() WHERE table_name = 'measure_tasks'")
    with Store.open(path) as store:
        assert store.rows("SELECT source FROM corpora") == [("text",)]
        assert store.row_counts()["measure_tasks"] == 0
        assert store.rows("SELECT * FROM context_need") == []
        store.add_corpus("more", {}, "tok", 1, 2)
    with Store.open(path, read_only=True) as store:
        assert store.row_counts()["corpora"] == 2


def test_scores_of_an_older_schema_stay_and_constant_predictions_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.duckdb"
    columns = (
        "(score_id, dictionary_id, feature, harvest_id, scorer, method, part, model, template_sha256, seed, n, "
        "n_failed, created_at, value, status) "
        "VALUES (?, 1, 0, 1, 'simulation', 'numbers', 'report', 'm', 't', 0, 30, 0, now()::TIMESTAMP, ?, ?)"
    )
    rows = [("a", 0.5, "ok"), ("b", None, "constant_prediction"), ("c", None, "constant_truth")]
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: [m for m in migrations() if m[1] != "score_documents"])
        patch.setattr(schema, "sql_file", lambda name: "" if name == "views.sql" else sql_file(name))
        with Store.open(path, create=True) as store:
            store.con.executemany(f"INSERT INTO scores {columns}", rows)
    with Store.open(path) as store:
        found = store.rows("SELECT score_id, value, status, n_documents, n_by_kind FROM scores ORDER BY score_id")
    assert found == [
        ("a", 0.5, "ok", None, None), ("b", 0.0, "constant_prediction", None, None),
        ("c", None, "constant_truth", None, None),
    ]  # fmt: skip


def test_scores_of_an_older_schema_do_not_say_from_where_on_a_label_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.duckdb"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: [m for m in migrations() if m[0] < 7])
        patch.setattr(schema, "sql_file", lambda name: "" if name == "views.sql" else sql_file(name))
        with Store.open(path, create=True) as store:
            store.con.execute(
                "INSERT INTO scores (score_id, dictionary_id, feature, harvest_id, scorer, method, part, model, "
                "template_sha256, seed, n, n_failed, created_at, value, status) VALUES ('a', 1, 0, 1, 'detection', "
                "'answers', 'report', 'm', 't', 0, 30, 0, now()::TIMESTAMP, 0.5, 'ok')"
            )
    with Store.open(path) as store:
        found = store.rows("SELECT score_id, value, label_from, from_status, from_precision, from_n FROM scores")
        assert store.rows("SELECT label_from FROM labels") == []
    assert found == [("a", 0.5, None, None, None, None)]


def test_every_column_of_the_first_schema_is_pinned(tmp_path: Path) -> None:
    """001_initial.sql is history once it is released: its tables never change, later migrations change them."""
    with duckdb.connect() as con:
        con.execute({version: sql for version, _, sql in migrations()}[1])
        rows = con.execute(
            "SELECT table_name, string_agg(column_name || ' ' || data_type, ', ' ORDER BY column_index) "
            "FROM duckdb_columns() WHERE NOT internal GROUP BY table_name ORDER BY table_name"
        ).fetchall()
    assert dict(rows)["features"] == (
        "dictionary_id INTEGER, feature INTEGER, harvest_id INTEGER, status VARCHAR, density DOUBLE, "
        "token_density DOUBLE, n_active_tiles BIGINT, n_active_tokens BIGINT, max_activation DOUBLE, "
        "mean_activation DOUBLE, explain_max_activation DOUBLE, histogram_edges FLOAT[], histogram_counts BIGINT[]"
    )
    assert dict(rows)["predictions"] == (
        "score_id VARCHAR, context_id BIGINT, truth FLOAT[], predicted FLOAT[], status VARCHAR"
    )
    assert [table for table, _ in rows] == [
        "corpora", "dictionaries", "explanations", "features", "harvests", "llm_calls", "predictions", "runs",
        "sae_metrics", "scores", "settings", "store_state", "training_metrics", "vocab_projection",
    ]  # fmt: skip


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    Store.open(path, create=True).close()
    before = path.read_bytes()
    with Store.open(path, create=True) as store:
        assert store.store_id
    assert path.read_bytes() == before
    assert not path.with_name("x.duckdb.wal").exists()


def test_missing_store_and_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no store at"):
        Store.open(tmp_path / "x.duckdb")
    with duckdb.connect(str(tmp_path / "other.duckdb")) as con:
        con.execute("CREATE TABLE t (a INTEGER)")
    with pytest.raises(InputError, match="not a store of this program"):
        Store.open(tmp_path / "other.duckdb")


def test_ledger_or_wal_without_its_store_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    Store.open(path, create=True).close()
    path.unlink()
    with pytest.raises(DamagedError, match=r"x\.duckdb is missing, but x\.duckdb\.ledger"):
        Store.open(path, create=True)
    assert not path.exists()


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    with Store.open(path, create=True) as store:
        store.con.execute("INSERT INTO schema_migrations VALUES (99, 'later', now()::TIMESTAMP)")
    with pytest.raises(DamagedError, match="newer version"):
        Store.open(path)


def test_interrupted_first_migration_is_repeated(tmp_path: Path) -> None:
    duckdb.connect(str(tmp_path / "x.duckdb")).close()  # killed right after the file was made
    with Store.open(tmp_path / "x.duckdb") as store:
        assert store.rows("SELECT count(*) FROM features") == [(0,)]


def test_locked_store_names_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    Store.open(path, create=True).close()
    holder = child(
        """
        from autointerp.store import Store
        store = Store.open(sys.argv[1]); print("open", flush=True); sys.stdin.read()
        """,
        path,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        for read_only in (False, True):
            with pytest.raises(StoreBusyError, match=rf"PID {holder.pid}\b") as caught:
                Store.open(path, read_only=read_only)
            assert caught.value.exit_code == 75
    finally:
        holder.kill()
        holder.communicate()
    Store.open(path).close()


def test_reader_and_writer_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    with Store.open(path, create=True), pytest.raises(StoreBusyError, match="already open in this process"):
        Store.open(path, read_only=True)
    with Store.open(path, read_only=True) as one, Store.open(path, read_only=True) as two:
        assert one.store_id == two.store_id
        with pytest.raises(AutointerpError, match="reading only"), one.transaction():
            pass


def test_bit_flip_is_refused_and_nothing_deleted(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    store, _, _ = filled(path)
    store.close()
    good = path.read_bytes()
    refused = 0
    for at in (100, 4096 + 8, 3 * 4096 + 40, 12288 + 262144 + 100, len(good) // 2):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        damaged = path.read_bytes()
        try:
            with Store.open(path) as store:
                store.check()
                [store.rows(f"SELECT * FROM {t}") for t in ("features", "dictionaries", "harvests", "corpora")]
        except DamagedError as error:
            assert str(path) in str(error)
            refused += 1
            assert path.read_bytes() == damaged
        assert path.exists()
    assert refused >= 3
    path.write_bytes(good[: len(good) // 3])
    with pytest.raises(DamagedError):
        Store.open(path)
    path.write_bytes(b"not a database at all" * 1000)
    with pytest.raises(DamagedError):
        Store.open(path, read_only=True)
    assert path.stat().st_size == 21000


def test_plain_duckdb_reads_every_view(tmp_path: Path) -> None:
    """A user without this package: attach the evidence by hand, as the README says."""
    path = tmp_path / "x.duckdb"
    store, dictionary_id, _ = filled(path)
    store.close()
    with duckdb.connect(str(path), read_only=True) as con:
        assert con.execute("SELECT count(*) FROM labels").fetchone() == (6,)  # needs no evidence
        with pytest.raises(duckdb.Error, match="evidence"):
            con.execute("SELECT * FROM contexts")
        con.execute(f"ATTACH '{evidence_path_of(path)}' AS evidence (READ_ONLY)")
        row = con.execute(
            'SELECT tokens, activations, text, document, position, "offset" FROM contexts '
            "WHERE dictionary_id = ? AND feature = 4 AND split = 'explain' AND kind = 'top' ORDER BY rank",
            [dictionary_id],
        ).fetchall()
        assert row[0] == ([" cat", " sat", " on", " the"], [0.0, 0.5, 0.0, 5.0], " cat sat on the", "doc0", 3, 2)
        views = [r[0] for r in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()]
        for view in views:
            con.execute(f"SELECT * FROM {view}").fetchall()
        assert set(views) >= {"contexts", "labels", "windows", "spend_by_stage", "explainer_leaderboard"}
    with duckdb.connect(str(evidence_path_of(path)), read_only=True) as con:
        assert con.execute("SELECT count(*) FROM contexts").fetchone() == (5 * 3 * 7,)


def test_changed_views_are_renewed(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    with Store.open(path, create=True) as store:
        store.con.execute("CREATE OR REPLACE VIEW labels AS SELECT 1 AS old")
        store.con.execute("UPDATE settings SET value = 'older' WHERE name = 'views_sha256'")
    with Store.open(path) as store:
        assert "old" not in [r[0] for r in store.rows("DESCRIBE labels")]


def test_views_from_elsewhere_are_renewed_though_their_digest_is_ours(tmp_path: Path) -> None:
    """A store may come from somebody else, and its views could read files of this machine."""
    path = tmp_path / "x.duckdb"
    (tmp_path / "private.txt").write_text("PRIVATE")
    with Store.open(path, create=True) as store:
        store.con.execute(f"CREATE OR REPLACE VIEW labels AS SELECT content FROM read_text('{tmp_path}/private.txt')")
    with Store.open(path) as store:
        assert "content" not in [r[0] for r in store.rows("DESCRIBE labels")]
        commits = store.commit_number
    unchanged = path.read_bytes()
    with Store.open(path) as store:
        assert store.commit_number == commits
    assert path.read_bytes() == unchanged


OWN = FindingTable("own", "own", columns={"a": "VARCHAR"})


@pytest.mark.parametrize(
    "change",
    [
        "CREATE MACRO coalesce_all(x) AS 1; CREATE MACRO upper(x) AS 'evil'",
        "CREATE MACRO duckdb_functions() AS TABLE SELECT 1 AS a",
        "ALTER TABLE settings RENAME TO kept; CREATE VIEW settings AS FROM kept",
        "CREATE TRIGGER t AFTER INSERT ON llm_calls FOR EACH STATEMENT "
        "INSERT INTO settings SELECT 1, 'a', content FROM read_text('/etc/hostname')",
        f"INSERT INTO settings VALUES (NULL, '{NOTED}own', '{OWN.noted()}'); "
        "CREATE VIEW own AS SELECT 1 AS dictionary_id, 0 AS feature, content AS a FROM read_text('/etc/hostname')",
    ],
)
def test_a_store_that_changes_our_sql_is_not_written(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x.duckdb"
    Store.open(path, create=True).close()
    with duckdb.connect(str(path)) as con:
        con.execute(change)
    before = path.read_bytes()
    with pytest.raises(InputError, match="which this program did not make"):
        Store.open(path)
    assert path.read_bytes() == before


def test_evidence_that_could_read_other_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    filled(path)[0].close()
    evidence = evidence_path_of(path)
    before = evidence.read_bytes()
    for change in (
        "ALTER TABLE windows RENAME TO kept; CREATE VIEW windows AS FROM kept",
        "CREATE OR REPLACE VIEW contexts AS SELECT * FROM context_rows, read_text('/etc/hostname')",
        "CREATE OR REPLACE VIEW contexts AS SELECT * FROM context_rows, (DESCRIBE windows)",
        "CREATE MACRO upper(x) AS (SELECT content FROM read_text('/etc/hostname'))",
    ):
        evidence.write_bytes(before)
        with duckdb.connect(str(evidence)) as con:
            con.execute(change)
        for read_only in (False, True):
            with pytest.raises(InputError, match="in a form that this program did not make"):
                Store.open(path, read_only=read_only)


def test_dictionary_names_and_mismatch(tmp_path: Path) -> None:
    with Store.open(tmp_path / "x.duckdb", create=True) as store:
        with pytest.raises(InputError, match="no dictionary yet"):
            store.dictionary()
        first = add_dictionary(store)
        assert add_dictionary(store) == first
        assert store.dictionary().dictionary_id == first
        assert store.dictionary().config == {"k": 2}
        for changed in ({"sae_sha256": "other"}, {"model": "other"}, {"tokenizer_sha256": "other"}, {"revision": "z"}):
            with pytest.raises(MismatchError, match=next(iter(changed))):
                add_dictionary(store, **changed)
        second = add_dictionary(store, "layer4")
        assert second == first + 1
        with pytest.raises(InputError, match="layer3, layer4"):
            store.dictionary()
        with pytest.raises(InputError, match="Did you mean layer4"):
            store.dictionary("layer44")
        assert store.dictionary("layer4").dictionary_id == second


def test_evidence_missing_foreign_or_older(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    store, dictionary_id, harvest_id = filled(path)
    store.close()
    evidence = evidence_path_of(path)
    assert evidence.name == "x.evidence.duckdb"
    kept = evidence.rename(tmp_path / "kept.duckdb")
    with pytest.raises(DamagedError, match=r"x\.evidence\.duckdb is missing"):
        Store.open(path)
    write_evidence(evidence, "another store", dictionary_id, harvest_id)
    with pytest.raises(MismatchError, match="another store"):
        Store.open(path)
    evidence.unlink()
    write_evidence(evidence, None, dictionary_id, harvest_id - 1)
    with pytest.raises(DamagedError, match=f"does not hold harvest {harvest_id}"):
        Store.open(path, read_only=True)
    evidence.write_bytes(b"torn" * 5000)
    with pytest.raises(DamagedError, match="evidence"):
        Store.open(path)
    kept.replace(evidence)
    Store.open(path).close()


def test_replace_evidence_keeps_the_old_one_when_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    store, dictionary_id, harvest_id = filled(path)
    with store:
        new = tmp_path / "next.duckdb"
        write_evidence(new, "another store", dictionary_id, harvest_id + 1)
        with pytest.raises(MismatchError):
            store.replace_evidence(new)
        assert store.rows("SELECT DISTINCT harvest_id FROM contexts") == [(harvest_id,)]
        new.unlink()
        duckdb.connect(str(new)).close()
        with pytest.raises(DamagedError, match="not a whole evidence file"):
            store.replace_evidence(new)
        assert store.rows("SELECT count(*) FROM contexts") == [(105,)]
        new.unlink()
        write_evidence(new, store.store_id, dictionary_id, harvest_id + 1)
        store.replace_evidence(new)
        assert store.rows("SELECT DISTINCT harvest_id FROM contexts") == [(harvest_id + 1,)]
    # Killed between the two files: evidence is newer than the features. The store opens, and the merge goes on.
    with Store.open(path) as store:
        assert store.current_harvest(dictionary_id) == harvest_id
        add_features(store, dictionary_id, harvest_id + 1)
        assert store.current_harvest(dictionary_id) == harvest_id + 1


def test_only_the_store_package_holds_sql_files() -> None:
    assert re.search(r"CREATE VIEW contexts", sql_file("evidence_schema.sql"))
    assert [version for version, _, _ in migrations()] == list(range(1, len(migrations()) + 1))


def test_a_store_that_nobody_holds_is_closed_at_once(tmp_path: Path) -> None:
    """A cycle of references would keep the file open until the garbage collector comes by."""
    path = tmp_path / "x.duckdb"
    store = Store.open(path, create=True)
    store.insert_calls([call(1)])
    assert store.find_call(call(1).request_sha256, 0) == call(1)
    held = weakref.ref(store)
    gc.disable()
    try:
        del store
        assert held() is None
    finally:
        gc.enable()
