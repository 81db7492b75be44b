"""Small corpora are split by another rule than before: harvests name theirs, and texts of the two do not mix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autointerp.config import Config, CorpusConfig
from autointerp.corpus.sources import corpus_fingerprint
from autointerp.errors import MismatchError
from autointerp.stages.session import check_splits, harvest_fingerprint


def config_of(folder: Path, n_files: int) -> Config:
    folder.mkdir()
    for i in range(n_files):
        (folder / f"{i:02}.txt").write_text(f"text number {i}")
    return replace(Config(), corpus=CorpusConfig(source=str(folder)))


def test_a_harvest_names_the_rule_of_its_splits(tmp_path: Path) -> None:
    small, large = config_of(tmp_path / "small", 63), config_of(tmp_path / "large", 64)
    assert harvest_fingerprint(small) == corpus_fingerprint(small.corpus) + " split by runs"
    assert harvest_fingerprint(large) == corpus_fingerprint(large.corpus)  # as before: not harvested anew
    row = SimpleNamespace(name="d")
    for config in (small, large):
        check_splits(config, row, {"corpus_fingerprint": harvest_fingerprint(config)})  # type: ignore[arg-type]
    old = {"corpus_fingerprint": corpus_fingerprint(small.corpus)}
    with pytest.raises(MismatchError, match="d was harvested when a corpus of few documents was split block by block"):
        check_splits(small, row, old)  # type: ignore[arg-type]
