"""Parquet corpora: what is read, what is refused, and that memory is bounded by bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.corpus_reading import read_texts, write_parquet

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.formats import parquet_rows
from autointerp.errors import InputError


def test_long_and_short_rows_come_in_order_within_the_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are long or short at will; what is fetched together stays below the bound on bytes."""
    monkeypatch.setattr(parquet_rows, "SHORT_ROW", 100)
    monkeypatch.setattr(parquet_rows, "LONG_ROWS", 1000)
    monkeypatch.setattr(parquet_rows, "LONGEST_ROW", 600)
    monkeypatch.setattr(parquet_rows, "_ROWS_AT_ONCE", 7)
    wanted = [f"row {i} " + "é" * (i * 37 % 320) for i in range(60)]
    select = "SELECT CASE WHEN i <> 5 THEN 'row ' || i || ' ' || repeat('é', (i * 37 % 320)::INT) END AS text, i AS n"
    path = write_parquet(tmp_path / "a.parquet", f"{select} FROM range(60) t(i)")
    texts, report = read_texts(path, max_skipped_share=0.9)
    fits = [t for i, t in enumerate(wanted) if len(t.encode()) <= 600 and i != 5]
    assert texts == fits and 20 < len(fits) < 59
    assert report.n_skipped == {"row_too_long": 59 - len(fits), "missing_field": 1} and report.n_records == 60

    messages = "[{'content': repeat('é', (i * 37 % 320)::INT), 'role': 'user', 'name': 'x'}]"
    select = f"SELECT CASE i WHEN 3 THEN NULL WHEN 4 THEN [] ELSE {messages} END AS m FROM range(60) t(i)"
    path = write_parquet(tmp_path / "b.parquet", select)
    rendered, report = read_texts(
        path,
        chat_field="m",
        max_skipped_share=0.9,
        render_chat=lambda m: "".join(f"{x['role']}: {x['content']}" for x in m),
    )
    expected = [f"user: {'é' * (i * 37 % 320)}" for i in range(60) if i not in (3, 4)]
    assert rendered == [text for text in expected if len(text.encode()) - 2 <= 600]
    assert report.n_skipped["missing_field"] == report.n_skipped["wrong_type"] == 1


def test_a_small_file_of_huge_rows_costs_memory_by_the_byte(tmp_path: Path) -> None:
    """A file of 3 kB with 12 rows of 8 MB."""
    import tracemalloc

    long = "repeat('lorem ipsum dolor ', 450000) || (i % 2)"
    path = write_parquet(tmp_path / "a.parquet", f"SELECT {long} AS text FROM range(12) t(i)")
    tracemalloc.start()
    rows = parquet_rows.parquet_rows(path, "a", CorpusConfig(), CorpusReport())
    lengths = [len(row["text"]) for _, row in rows]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == [8_100_001] * 12 and peak < 2 * parquet_rows.LONG_ROWS


def test_parquet_that_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "MOST_MEMORY", "100MB")
    chat = "[{'role': 'user', 'content': repeat('lorem ipsum ', 100000)}]"
    path = write_parquet(tmp_path / "a.parquet", f"SELECT {chat} AS m FROM range(200) t(i)")
    with pytest.raises(InputError, match="cannot be read within 100MB of memory"):
        read_texts(path, chat_field="m", render_chat=lambda messages: messages[0]["content"])


@pytest.mark.parametrize(("value", "kind"), [("1", "INTEGER"), ("['a']", r"VARCHAR\[\]"), ("'a'::BLOB", "BLOB")])
def test_a_column_of_another_type_is_refused_by_name(tmp_path: Path, value: str, kind: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", f"SELECT {value} AS text")
    with pytest.raises(InputError, match=f"column 'text' holds {kind}, not text"):
        read_texts(path)
    with pytest.raises(InputError, match=f"column 'text' holds {kind}, not lists of"):
        read_texts(path, chat_field="text", render_chat=str)
