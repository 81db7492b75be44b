"""A scan of a text for the rules of a real store: against the tiles that the scores saw, and of other texts."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import duckdb
import pytest
from support.evidence_helpers import BATCH_TOKENS, POINT, SMALL, WORDS, Setup
from support.known_words import job
from support.tokenizer_kinds import KINDS

from autointerp.cli.app import main
from autointerp.config import Config, CorpusConfig, ExplainConfig, ModelConfig, ScoreConfig, StoreConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import read_documents
from autointerp.corpus.token_text import TokenText, tokenizer_sha256
from autointerp.corpus.tokenizer_file import TokenizerFile, harvest_tokenizer
from autointerp.corpus.windows import token_ids, work_units
from autointerp.errors import InputError, MismatchError
from autointerp.explain.explaining import explain
from autointerp.harvest.merge import CorpusFacts, bounds_of, merge
from autointerp.harvest.shards import HarvestFolder
from autointerp.harvest.text_pass import identity
from autointerp.records import SPLITS
from autointerp.rules.patterns import Rule
from autointerp.score.natural import CLAIM
from autointerp.score.ordinary_text import OrdinaryText
from autointerp.score.scoring import score
from autointerp.stages.scanning import Scan, ScanOptions, scan, scan_with_progress
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.terminal import Terminal

HARVEST = replace(SMALL, negative_pool_windows=2000, sampled_contexts=40)


class World(NamedTuple):
    store: Path
    config: Config
    toml: Path
    text: Path


@pytest.fixture(scope="module")
def world(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A harvest of a folder of texts by a real model, with labels of `patterns` and their scores."""
    root = tmp_path_factory.mktemp("scan")
    text = root / "text"
    text.mkdir()
    rng = random.Random(7)
    for i in range(12):
        (text / f"t{i:02}.txt").write_text(" ".join(rng.choices(WORDS, k=rng.choice((3, 60, 1000)))), encoding="utf-8")
    corpus = CorpusConfig(source=str(text), context_length=26, prepend_bos="always", heldout_fraction=0.6)
    setup = Setup(tiny_gpt2)
    documents = read_documents(corpus, CorpusReport())
    setup.units = list(work_units(documents, setup.loaded.tokenizer, replace(corpus, unit_characters=20_000)))
    what = identity(setup.loaded, POINT, "sha", corpus, "print", HARVEST, BATCH_TOKENS)
    folder = HarvestFolder(root / "work", what, bounds_of(HARVEST))
    setup.harvest(folder, HARVEST)
    path = root / "x.duckdb"
    with Store.open(path, create=True) as store:
        sha = setup.loaded.tokenizer_sha256
        number = store.add_dictionary(
            name="a", model="m", revision="r", hookpoint=str(POINT), architecture="topk", d_in=setup.sae.d_in,
            d_out=setup.sae.d_out, d_sae=setup.sae.d_sae, sae_sha256="sha", tokenizer_sha256=sha, config={},
        )  # fmt: skip
        merge(store, number, folder, setup.sae, setup.text, HARVEST, CorpusFacts(str(text), {}, sha))
        asyncio.run(explain(job(store), ExplainConfig(explainer="patterns")))
        asyncio.run(score(job(store), "patterns", ScoreConfig(contexts=4)))
    config = Config(model=ModelConfig(name=str(tiny_gpt2)), store=StoreConfig(path=str(path)))
    toml = root / "autointerp.toml"
    toml.write_text(f'[model]\nname = "{tiny_gpt2}"\n[store]\npath = "{path}"\n')
    return World(path, config, toml, text)


def test_it_claims_the_tiles_that_the_scores_were_made_on(world: World) -> None:
    found = Scan(world.config, str(world.text))
    tiles = {(tile.document, tile.start): tile for tile in found._tiles()}
    for _ in found.progress():
        pass
    rows = {row.feature: row for row in found.rows}
    with Store.open(world.store, read_only=True) as store:
        known = store.rows(
            'SELECT w.document, w.start + t."offset" - w.n_prefix, w.tokens[t."offset" + 1 : t."offset" + t.length] '
            "FROM evidence.known_tiles AS t JOIN evidence.windows AS w USING (window_id)"
        )
        assert len(known) == len(tiles) > 300
        for document, start, tokens in known:
            assert tiles[document, start].tokens == tokens
        for split in SPLITS:  # what they begin is known alike
            assert all(t.begins == ("document" if t.begins_document else "window" if t.begins_window else None)
                       for t in store.known_tiles(1, split))  # fmt: skip
        ordinary = {split: OrdinaryText(job(store), split) for split in SPLITS}
        rules = {row.feature: Rule.from_json(row.rule) for row in store.rule_labels(1, None)}
        labels = {row["feature"]: row for row in store.dicts("SELECT * FROM labels WHERE label IS NOT NULL")}
        assert set(rows) == set(labels) and len(rows) > 20
        for feature, row in rows.items():
            texts = [ordinary[split]._texts for split in SPLITS]
            peaks = [text.peaks(text.predict(rules[feature])) for text in texts]
            assert row.n_claimed == sum(int((of_split >= CLAIM).sum()) for of_split in peaks), feature
            assert row.n_tiles == len(tiles) and row.share == row.n_claimed / len(tiles)
            told = labels[feature]
            assert (row.density, row.label, row.explainer) == (told["density"], told["label"], "patterns")
            assert (row.precision, row.recall, row.natural) == (told["precision"], told["recall"], told["score"])


def test_a_scan_needs_neither_torch_nor_transformers(world: World, tmp_path: Path) -> None:
    code = f"""
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "safetensors"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
from autointerp.cli.app import main
main(["scan", {str(world.text)!r}, "-c", {str(world.toml)!r}, "--features", "0-5", "--json", "--examples", "2"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    expected = list(scan(world.config, str(world.text), selection=Selection(features="0-5")))
    assert [row["n_claimed"] for row in rows] == [row.n_claimed for row in expected]
    assert all(len(row["examples"]) == min(2, row["n_claimed"]) for row in rows)


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return int(end.value.code or 0)


def test_the_command_prints_and_writes_files(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan_one = ("scan", world.text, "-c", world.toml, "--features", "0-3", "--at-least", "2.5")
    assert run(*scan_one) == 0
    shown = capsys.readouterr().out
    assert "tiles" in shown and "precision" in shown and "<<" in shown
    expected = list(scan(world.config, str(world.text), selection=Selection(features="0-3"),
                         options=ScanOptions(at_least=2.5)))  # fmt: skip
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert run(*scan_one, "-o", tmp_path / name) == 0
        reader = "read_json" if name == "a.jsonl" else "read_csv" if name == "a.csv" else "read_parquet"
        with duckdb.connect() as con:
            found = con.execute(f"SELECT feature, n_claimed, share FROM {reader}('{tmp_path / name}')").fetchall()
        assert found == [(row.feature, row.n_claimed, pytest.approx(row.share)) for row in expected]
    for argv, told in (
        ((*scan_one, "-o", tmp_path / "a.txt"), ".jsonl, .csv or .parquet"),
        ((*scan_one, "-o", world.store.with_suffix(".evidence.duckdb")), ".jsonl, .csv or .parquet"),
        ((*scan_one, "--explainer", "combined"), "'combined' carries a rule; labels by patterns do"),
        (("scan", tmp_path / "nothing", "-c", world.toml), "nothing"),
        (("scan", world.text, "-c", world.toml, "--features", "90"), "last feature is 47"),
    ):
        assert run(*argv) == 2
        assert told in capsys.readouterr().err


def test_all_of_another_text_is_read(world: World, tmp_path: Path) -> None:
    rng = random.Random(1)
    whole = " ".join(rng.choices(WORDS, k=3000)) + "\n\n\x07 \u202e 🙂 end"
    (tmp_path / "long.txt").write_text(whole, encoding="utf-8")
    found = Scan(world.config, str(tmp_path / "long.txt"))
    assert "".join(token for tile in found._tiles() for token in tile.tokens) == whole
    for _ in found.progress():
        pass
    best = max(found.rows, key=lambda row: row.n_claimed)
    assert best.n_documents == 1 and len(best.examples) == 5  # further places of the only document
    assert len({one.position for one in best.examples}) == 5


@pytest.mark.parametrize("content", ["", " \n\t ", "x"])
def test_a_text_without_words_is_an_error(world: World, tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(InputError, match=r"no usable text|no document of two tokens"):
        list(scan(world.config, str(tmp_path / "empty.txt")))


def test_ctrl_c_keeps_what_was_found(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autointerp.stages.scanning.BLOCK_TILES", 16)
    read = Scan._tiles

    def interrupted(self: Scan) -> Iterator[object]:
        for number, tile in enumerate(read(self)):
            if number == 40:
                raise KeyboardInterrupt
            yield tile

    monkeypatch.setattr(Scan, "_tiles", interrupted)
    found = Scan(world.config, str(world.text))
    assert not scan_with_progress(found, Terminal())
    assert found.rows and {row.n_tiles for row in found.rows} == {32}
    assert run("scan", world.text, "-c", world.toml, "--features", "0") == 130
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


def test_another_tokenizer_is_refused(world: World, tiny_gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="not the one that the dictionary was harvested with"):
        harvest_tokenizer(ModelConfig(name=str(tiny_gpt2)), "another")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer"):
        harvest_tokenizer(ModelConfig(name=str(tmp_path)), "another")
    with pytest.raises(InputError, match="model.name is not set"):
        Scan(replace(world.config, model=ModelConfig()), str(world.text))
