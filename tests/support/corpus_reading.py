"""Reads small corpora, and writes some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import read_documents

TEXTS = [f'Document {i}: "naïve", 日本語, 🙂;\tand more.\nA second line, with a comma.' for i in range(70)]
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


def read_texts(source: Path, **options: Any) -> tuple[list[str], CorpusReport]:
    """The texts of a corpus, in order. `options`: of CorpusConfig, and render_chat."""
    report, render = CorpusReport(), options.pop("render_chat", None)
    documents = read_documents(CorpusConfig(source=str(source), **options), report, render)
    return [document.text for document in documents], report


def write_parquet(path: Path, select: str) -> Path:
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    return path
