"""A scan of a text for the rules of a real store: against the tiles that the scores saw, and of other texts."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from support.evidence_helpers import WORDS
from support.known_words import job
from support.scanned_world import ScannedWorld
from support.tokenizer_kinds import KINDS

from autointerp.cli.app import main
from autointerp.config import ModelConfig
from autointerp.corpus.token_text import TokenText, tokenizer_sha256
from autointerp.corpus.tokenizer_file import TokenizerFile, harvest_tokenizer
from autointerp.corpus.windows import token_ids
from autointerp.errors import InputError, MismatchError
from autointerp.records import SPLITS, beginning_of
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
from autointerp.score.natural import CLAIM
from autointerp.score.ordinary_tiles import OrdinaryTiles
from autointerp.stages.scanning import Scan, ScanOptions, scan, scan_with_progress
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.terminal import Terminal


def test_it_claims_the_tiles_that_the_scores_were_made_on(scanned: ScannedWorld) -> None:
    found = Scan(scanned.config, str(scanned.text))
    tiles = list(found._tiles())
    for _ in found.progress():
        pass
    rows = {row.feature: row for row in found.rows}
    place = {(tile.document, tile.start): i for i, tile in enumerate(tiles)}
    texts = ManyTexts([t.tokens for t in tiles], [beginning_of(t.begins_document, t.begins_window) for t in tiles])
    with Store.open(scanned.store, read_only=True) as store:
        assert store.n_tiles(1, "explain") + store.n_tiles(1, "select") + store.n_tiles(1, "report") == len(tiles)  # type: ignore[operator]
        labels = {row["feature"]: row for row in store.dicts("SELECT * FROM labels WHERE label IS NOT NULL")}
        rules = {row.feature: Rule.from_json(row.rule) for row in store.rule_labels(1, None)}
        assert set(rows) == set(labels) == set(rules) and len(rows) > 20
        for split in SPLITS:
            known = store.rows(
                'SELECT w.document, w.start + t."offset" - w.n_prefix, '
                'w.tokens[t."offset" + 1 : t."offset" + t.length] FROM evidence.known_tiles AS t '
                "JOIN evidence.windows AS w USING (window_id) WHERE t.split = ? ORDER BY t.tile_id", [split],
            )  # fmt: skip
            at = [place[document, start] for document, start, _ in known]
            assert [tiles[i].tokens for i in at] == [tokens for _, _, tokens in known] and len(known) > 100
            scored = OrdinaryTiles(job(store), split).texts
            for feature, rule in rules.items():
                claims = texts.peaks(texts.predict(rule)) >= CLAIM
                assert claims[at].tolist() == (scored.peaks(scored.predict(rule)) >= CLAIM).tolist(), (feature, split)
                assert rows[feature].n_claimed == claims.sum()
        for feature, row in rows.items():
            told = labels[feature]
            assert row.n_tiles == len(tiles) and row.share == row.n_claimed / len(tiles)
            assert (row.density, row.label, row.explainer) == (told["density"], told["label"], "patterns")
            assert (row.precision, row.recall, row.natural) == (told["precision"], told["recall"], told["score"])


def test_a_scan_needs_neither_torch_nor_transformers(scanned: ScannedWorld, tmp_path: Path) -> None:
    code = f"""
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "safetensors"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
from autointerp.cli.app import main
main(["scan", {str(scanned.text)!r}, "-c", {str(scanned.toml)!r}, "--features", "0-5", "--json", "--examples", "2"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    expected = list(scan(scanned.config, str(scanned.text), selection=Selection(features="0-5")))
    assert [row["n_claimed"] for row in rows] == [row.n_claimed for row in expected]
    assert all(len(row["examples"]) == min(2, row["n_claimed"]) for row in rows)


@pytest.mark.parametrize(
    ("installed", "of", "told"),
    [
        (
            False,
            "the file",
            "has to be read, and the package tokenizers is not installed: pip install 'autointerp[scan]'",
        ),
        (True, "nothing", "is found, so transformers has to make its tokenizer, and the package"),
        (True, "another", "makes another tokenizer of the files"),
        (True, "a chat", "the chat template of model"),
    ],
)
def test_what_is_to_be_installed_brings_what_is_missing(
    scanned: ScannedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool, of: str, told: str
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    if not installed:
        monkeypatch.setitem(sys.modules, "tokenizers", None)
    name = str(tmp_path) if of == "nothing" else scanned.config.model.name
    with pytest.raises(InputError) as refused:
        harvest_tokenizer(ModelConfig(name=name), "another", needs_template=of == "a chat")
    assert told in str(refused.value)
    assert installed == (
        "the package transformers is not installed: pip install 'autointerp[gpu]'" in str(refused.value)
    )


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return int(end.value.code or 0)


def test_the_command_prints_and_writes_files(
    scanned: ScannedWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan_one = ("scan", scanned.text, "-c", scanned.toml, "--features", "0-3", "--at-least", "2.5")
    assert run(*scan_one) == 0
    shown = capsys.readouterr().out
    assert "tiles" in shown and "precision" in shown and "<<" in shown
    expected = list(scan(scanned.config, str(scanned.text), selection=Selection(features="0-3"),
                         options=ScanOptions(at_least=2.5)))  # fmt: skip
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert run(*scan_one, "-o", tmp_path / name) == 0
        reader = "read_json" if name == "a.jsonl" else "read_csv" if name == "a.csv" else "read_parquet"
        with duckdb.connect() as con:
            found = con.execute(f"SELECT feature, n_claimed, share FROM {reader}('{tmp_path / name}')").fetchall()
        assert found == [(row.feature, row.n_claimed, pytest.approx(row.share)) for row in expected]
    for argv, told in (
        ((*scan_one, "-o", tmp_path / "a.txt"), ".jsonl, .csv or .parquet"),
        ((*scan_one, "-o", tmp_path / "b.jsonl", "--json"), "--json writes to the terminal"),
        ((*scan_one, "-o", scanned.store.with_suffix(".evidence.duckdb")), ".jsonl, .csv or .parquet"),
        ((*scan_one, "-o", tmp_path / f"{'a' * 300}.csv"), "cannot be written"),
        ((*scan_one, "-o", tmp_path / "no" / "a.csv"), "there is no folder"),
        ((*scan_one, "--explainer", "combined"), "'combined' carries a rule; labels by patterns do"),
        (("scan", tmp_path / "nothing", "-c", scanned.toml), "nothing"),
        (("scan", scanned.text, "-c", scanned.toml, "--features", "90"), "last feature is 47"),
    ):
        assert run(*argv) == 2
        assert told in capsys.readouterr().err


def test_all_of_another_text_is_read(scanned: ScannedWorld, tmp_path: Path) -> None:
    rng = random.Random(1)
    words = [word for word in WORDS if word.isascii()]  # other characters may be cut at the end of a window
    whole = " ".join(rng.choices(words, k=3000)) + "\n\n\x07 <|endoftext|> </s>\tend"
    (tmp_path / "long.txt").write_text(whole, encoding="utf-8")
    found = Scan(scanned.config, str(tmp_path / "long.txt"))
    assert "".join(token for tile in found._tiles() for token in tile.tokens) == whole
    for _ in found.progress():
        pass
    best = max(found.rows, key=lambda row: row.n_claimed)
    assert best.n_documents == 1 and len(best.examples) == 5  # further places of the only document
    assert len({one.position for one in best.examples}) == 5


@pytest.mark.parametrize("content", ["", " \n\t ", "x"])
def test_a_text_without_words_is_an_error(scanned: ScannedWorld, tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(InputError, match=r"no usable text|no document of two tokens"):
        list(scan(scanned.config, str(tmp_path / "empty.txt")))


def test_blocks_change_nothing(scanned: ScannedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(scan(scanned.config, str(scanned.text), selection=Selection(features="0-5")))
    monkeypatch.setattr("autointerp.stages.scanning.BLOCK_TOKENS", 300)
    monkeypatch.setattr("autointerp.stages.scanning.FORMS_KEPT", 0)
    assert list(scan(scanned.config, str(scanned.text), selection=Selection(features="0-5"))) == whole


def test_ctrl_c_keeps_what_was_found(
    scanned: ScannedWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tile_tokens = Scan(scanned.config, str(scanned.text))._tile_tokens
    monkeypatch.setattr("autointerp.stages.scanning.BLOCK_TOKENS", 16 * tile_tokens)
    read = Scan._tiles

    def interrupted(self: Scan) -> Iterator[object]:
        for number, tile in enumerate(read(self)):
            if number == 40:
                raise KeyboardInterrupt
            yield tile

    monkeypatch.setattr(Scan, "_tiles", interrupted)
    found = Scan(scanned.config, str(scanned.text))
    assert not scan_with_progress(found, Terminal())
    assert found.rows and {row.n_tiles for row in found.rows} == {32}
    assert run("scan", scanned.text, "-c", scanned.toml, "--features", "0") == 130
    told = capsys.readouterr()
    assert "of 32 tiles" in told.out and "stopped after 32 tiles" in told.err


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("ByT5", "Perceiver", "CTRL")])
def test_the_file_alone_gives_the_tokens_that_transformers_gives(name: str, tmp_path: Path) -> None:
    whole = KINDS[name].make(tmp_path)
    whole.save_pretrained(tmp_path / "model")
    found = harvest_tokenizer(ModelConfig(name=str(tmp_path / "model")), tokenizer_sha256(whole))
    assert isinstance(found, TokenizerFile)
    texts = ["the cat's naïve 東京 🙂 token_izer\n\nThe harbour lay quiet", " <think> def read_lines(path)"]
    ids = token_ids(texts, whole)
    assert token_ids(texts, found) == ids
    assert [TokenText(found).tokens(one) for one in ids] == [TokenText(whole).tokens(one) for one in ids]


def test_another_tokenizer_is_refused(scanned: ScannedWorld, tiny_gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="not the one that the dictionary was harvested with"):
        harvest_tokenizer(ModelConfig(name=str(tiny_gpt2)), "another")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer"):
        harvest_tokenizer(ModelConfig(name=str(tmp_path)), "another")
    with pytest.raises(InputError, match="model.name is not set"):
        Scan(replace(scanned.config, model=ModelConfig()), str(scanned.text))
