"""What is the latest follows the order in which rows were written, whatever the clock said."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from support.older_store import as_of_version_3
from support.store_fixtures import call, explanation, filled, score

from autointerp.records import BatchRecord
from autointerp.report.page import load_page
from autointerp.store import Selection, Store, connection
from autointerp.store.connection import SEQUENCED
from autointerp.store.pace import earlier_scores, measured_latency
from autointerp.store.run_progress import run_progress, written_by
from autointerp.store.safety.salvage import salvage

OLD = explanation(0, template_sha256="old", text="old words")
NEW = explanation(0, template_sha256="new", text="new words")


@contextmanager
def clock(patch: pytest.MonkeyPatch, days: float) -> Iterator[None]:
    """The store's clock is so many days ahead."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(days=days)  # type: ignore[arg-type]

    with patch.context() as local:
        local.setattr(connection, "datetime", Shifted)
        yield


def write(store: Store, text: str, value: float, latency_s: float) -> str:
    """What a run leaves that labels feature 0 with `text`."""
    label = OLD if text == OLD.text else NEW
    run_id = store.begin_run(f"explain {text}", {"explain": {"explainer": "contexts"}}, {})
    store.begin_batch(BatchRecord(text, None, run_id, "gpt", "http://x/v1", "chat", None, "uploading", 0.0), [])
    n = int(latency_s)
    store.insert_calls([call(n, run_id="another", latency_s=latency_s), call(n + 100, run_id=run_id)])
    store.insert_explanations([label])
    store.insert_scores(
        [score(label, value=value), score(label, value=value / 2, seed=1), score(label, scorer="other", value=value)]
    )
    return run_id


def test_after_the_clock_was_set_back_the_new_rows_are_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.duckdb"
    with clock(monkeypatch, 400):
        store, _, _ = filled(path)
        write(store, "old words", 0.75, 1.0)
        store.close()
    with Store.open(path) as store:
        run_id = write(store, "new words", 0.25, 9.0)
        times = store.rows("SELECT text, created_at FROM explanations ORDER BY sequence")
        assert [text for text, _ in times] == ["old words", "new words"] and times[0][1] > times[1][1]
        shown = store.rows("SELECT label, scorer, score FROM labels WHERE feature = 0")
        assert shown == [("new words", "other", 0.25)]
        store.set_label_choice(1, "contexts", "simulation")
        assert store.rows("SELECT label, score FROM labels WHERE feature = 0") == [("new words", 0.125)]
        assert store.rows("SELECT previous_text, text FROM label_changes") == [("old words", "new words")]
        waiting = store.explanations_to_score(1, "contexts", "x", None, "", "", "report", Selection())
        assert [label.text for label in waiting] == ["new words"]
        assert [e.text for e in store.explanations_of(1, [0])[0]] == ["old words", "new words"]
        found = store.scores_of([NEW.explanation_id], 1, "simulation", "numbers", "report", "gpt", "s", 0)
        assert found[NEW.explanation_id].value == 0.25
        page = load_page(store, 1, 0)
        assert [e.text for e in page.explanations] == ["new words", "old words"]
        assert [s.value for s in page.scores] == [0.25, 0.125, 0.25, 0.75, 0.375, 0.75]
        assert {group.score.scorer: group.score.value for group in page.label_scores} == {
            "simulation": 0.125, "other": 0.25,
        }  # fmt: skip
        assert [row["command"] for row in store.status()["runs"]] == ["explain new words", "explain old words"]
        progress = run_progress(store)
        assert progress is not None and progress["run_id"] == run_id
        assert written_by(store, run_id).labels == {"ok": 1}
        assert earlier_scores(store, 1, "simulation", "gpt", "report") == [0.125, 0.25, 0.375, 0.75]
        assert [batch.batch_key for batch, _ in store.unfinished_batches("http://x/v1", "gpt")] == [
            "old words", "new words",
        ]  # fmt: skip
        monkeypatch.setattr("autointerp.store.pace.LATEST", 1)
        latency = measured_latency(store, "gpt")
        assert latency is not None and latency.seconds == 9.0


def test_an_answer_in_the_place_of_one_that_gave_up_is_the_latest(tmp_path: Path) -> None:
    store, _, _ = filled(tmp_path / "x.duckdb")
    store.insert_explanations([explanation(0, template_sha256="new", status="gave_up"), OLD])
    assert store.rows("SELECT label FROM labels WHERE feature = 0") == [("old words",)]
    store.insert_explanations([NEW])
    assert store.rows("SELECT label FROM labels WHERE feature = 0") == [("new words",)]
    store.insert_explanations([OLD])  # recorded before, so it stays what it is
    assert store.rows("SELECT label FROM labels WHERE feature = 0") == [("new words",)]
    store.close()


def test_every_row_has_a_number_of_its_own_over_all_tables(tmp_path: Path) -> None:
    store, _, _ = filled(tmp_path / "x.duckdb")
    write(store, "old words", 0.5, 1.0)
    store.close()
    with Store.open(tmp_path / "x.duckdb") as again:
        write(again, "new words", 0.5, 2.0)
        numbers = [n for table in SEQUENCED for (n,) in again.rows(f"SELECT sequence FROM {table}")]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_a_store_of_an_older_version_is_numbered_by_its_times(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    store, _, _ = filled(path)
    rng = random.Random(0)
    made = [explanation(rng.randrange(4), template_sha256=f"t{i}", text=f"label {i}") for i in range(40)]
    scored = [score(label, value=i / 40) for i, label in enumerate(made)]
    for part in (slice(0, 15), slice(15, 40)):
        store.insert_group([call(i) for i in range(40)[part]], made[part], scored[part])
    latest = store.rows("SELECT feature, label, score FROM labels ORDER BY feature")
    order = store.rows(
        "SELECT explanation_id AS id, sequence FROM explanations UNION ALL SELECT score_id, sequence FROM scores "
        "UNION ALL SELECT request_sha256, sequence FROM llm_calls ORDER BY sequence"
    )
    store.close()
    as_of_version_3(path)
    damaged = tmp_path / "copy.duckdb"
    damaged.write_bytes(path.read_bytes())
    with Store.open(path) as store:
        assert store.rows("SELECT feature, label, score FROM labels ORDER BY feature") == latest
        assert (
            store.rows(
                "SELECT explanation_id AS id, sequence FROM explanations UNION ALL SELECT score_id, sequence "
                "FROM scores UNION ALL SELECT request_sha256, sequence FROM llm_calls ORDER BY sequence"
            )
            == order
        )
        store.insert_explanations([NEW])
        assert store.rows("SELECT label FROM labels WHERE feature = 0") == [("new words",)]
    # What is salvaged from a damaged file of that version is numbered as well.
    salvage(damaged, tmp_path / "saved.duckdb", None, 0)
    with duckdb.connect(str(tmp_path / "saved.duckdb"), read_only=True) as con:
        assert con.execute("SELECT text FROM explanations ORDER BY sequence").fetchall() == [(e.text,) for e in made]
