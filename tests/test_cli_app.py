"""The command line on a small real model and corpus: every command, twice, and every bad input with its exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from support.commands import run, write_config, write_corpus

from autointerp.cli.app import main


@pytest.fixture(scope="module")
def project(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `autointerp run` has run once."""
    folder = tmp_path_factory.mktemp("project")
    write_corpus(folder / "texts")
    write_config(folder, tiny_gpt2)
    with pytest.raises(SystemExit) as end:
        main(["run", "-c", str(folder / "autointerp.toml"), "-v"])
    assert end.value.code in (0, None)
    return folder


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    """The project, to be spoilt."""
    folder = tmp_path / "copy"
    shutil.copytree(project, folder)
    return folder


def test_a_second_run_does_nothing_and_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "tiny.evidence.duckdb").read_bytes()
    code, _, err = run(capsys, "run", "-c", str(project / "autointerp.toml"))
    assert code == 0, err
    assert "nothing to do" in err
    assert (project / "tiny.evidence.duckdb").read_bytes() == before


def test_units_of_another_harvest_stay(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one that was begun with other settings, before they were put back."""
    config, work = copy / "autointerp.toml", copy / "tiny.work" / "tiny"
    before = config.read_text()
    config.write_text(before.replace("top_contexts = 4", "top_contexts = 5"))
    assert run(capsys, "harvest", "--num-shards", "2", "-c", str(config))[0] == 0
    units = sorted(p.name for p in work.rglob("*"))
    config.write_text(before)
    code, _, said = run(capsys, "harvest", "-c", str(config))
    assert code == 0 and "harvested already" in said
    assert units and sorted(p.name for p in work.rglob("*")) == units
    shutil.rmtree(work)
    assert run(capsys, "harvest", "--num-shards", "2", "-c", str(config))[0] == 0
    assert run(capsys, "harvest", "-c", str(config))[0] == 0
    assert not work.exists(), "its own are of no use any more"


def test_every_feature_has_one_row(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, "query", "SELECT feature, status, label, score, explanation_status FROM labels ORDER BY feature",
        "--store", str(project / "tiny.duckdb"), "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads(out)
    assert [r["feature"] for r in rows] == list(range(64))
    live = [r for r in rows if r["status"] == "live"]
    assert len(live) > 10
    assert all(bool(r["label"]) == (r["explanation_status"] == "ok") for r in rows if r["status"] != "dead")
    assert any(r["score"] is not None for r in live)
    assert all(r["label"] is None for r in rows if r["status"] == "dead")


def test_the_contexts_view_is_the_contract(project: Path) -> None:
    with duckdb.connect(str(project / "tiny.duckdb"), read_only=True) as con:
        con.execute(f"ATTACH '{project}/tiny.evidence.duckdb' AS evidence (READ_ONLY)")
        names = {row[0] for row in con.execute("DESCRIBE contexts").fetchall()}
        assert names >= {
            "context_id", "dictionary_id", "feature", "split", "kind", "tier", "decile", "sampling_probability", "rank",
            "document", "position", "window_id", "offset", "tokens", "activations", "max_activation", "text",
        }  # fmt: skip
        bad = con.execute(
            """SELECT count(*) FROM contexts
               WHERE array_to_string(tokens, '') <> text OR len(tokens) <> len(activations)
                  OR abs(coalesce(list_max(activations), 0) - max_activation) > 1e-6
                  OR (kind = 'negative') <> (max_activation = 0)"""
        ).fetchone()
        assert bad == (0,)
        both = con.execute(
            "SELECT count(*) FROM (SELECT text FROM contexts GROUP BY text HAVING count(DISTINCT split) > 1)"
        ).fetchone()
        assert both == (0,), "a snippet stands in two splits"


@pytest.mark.parametrize(
    "argv",
    [("status",), ("show", "0"), ("search", "the"), ("query", "SELECT 1 AS one"), ("compare", "--agreement")],
)
def test_reading_commands_answer(project: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *argv, "--store", str(project / "tiny.duckdb"))
    assert code == 0, err
    assert out or "no label" in err
    assert "\x1b" not in out


@pytest.mark.parametrize(
    "argv",
    [("status", "--json"), ("show", "tiny:3", "--json"), ("search", "e", "--json"), ("compare", "--format", "json")],
)
def test_json_is_json(project: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *argv, "--store", str(project / "tiny.duckdb"))
    assert code == 0, err
    json.loads(out)


def test_verify_recomputes_and_passes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "verify", "-c", str(project / "autointerp.toml"), "--sample", "50")
    assert code == 0, err
    assert "50 contexts" in out


def test_verify_finds_a_tampered_activation(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with duckdb.connect(str(copy / "tiny.evidence.duckdb")) as con:
        con.execute(
            """UPDATE context_rows SET "values" = list_transform("values", lambda v: v * 1.5),
                                       max_activation = max_activation * 1.5 WHERE kind = 'top'"""
        )
    code, out, err = run(capsys, "verify", "-c", str(copy / "autointerp.toml"), "--sample", "200")
    assert code == 1, out + err
    assert "differ" in err


def test_verify_finds_a_swapped_sae(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    file = next((copy / "sae").rglob("sae_weights.safetensors"))
    weights = load_file(file)
    weights["W_enc"] = weights["W_enc"].flip(1).contiguous()
    save_file(weights, file)
    code, _, err = run(capsys, "verify", "-c", str(copy / "autointerp.toml"))
    assert code == 8, err
    assert "sha256" in err


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
def test_another_tokenizer_or_model_is_refused(copy: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    """The one in the same place as before, with a vocabulary in another order, or one other weight."""
    config = copy / "autointerp.toml"
    line = next(line for line in config.read_text().splitlines() if line.startswith("name = '"))
    model = shutil.copytree(line.removeprefix("name = '").removesuffix("'"), copy / "model")
    raw = bytearray((model / file).read_bytes())
    if file == "tokenizer.json":
        loaded = json.loads(raw)
        loaded["model"]["merges"] = loaded["model"]["merges"][:-1]
        raw = bytearray(json.dumps(loaded).encode())
    else:
        raw[-2] ^= 1
    (model / file).write_bytes(raw)
    config.write_text(config.read_text().replace(line, f"name = '{model}'"))
    for command in ("verify", "harvest"):
        code, _, err = run(capsys, command, "-c", str(config))
        assert code == 8, err
        assert "revision" in err or "tokenizer" in err


def test_a_name_taken_by_another_sae_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "sae")
    config = copy / "autointerp.toml"
    config.write_text(config.read_text().replace("tokens = 8192", "tokens = 4096"))
    code, _, err = run(capsys, "run", "-c", str(config))
    assert code == 8, err
    assert "'tiny'" in err


def test_shards_and_merge_equal_one_pass(copy: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(copy / "autointerp.toml")
    for name in ("tiny.duckdb", "tiny.evidence.duckdb", "tiny.duckdb.ledger"):
        (copy / name).unlink(missing_ok=True)
    shutil.rmtree(copy / "tiny.work", ignore_errors=True)
    for index in (1, 0):
        code, _, err = run(capsys, "harvest", "-c", config, "--shard-index", str(index), "--num-shards", "2")
        assert code == 0, err
    code, _, err = run(capsys, "merge", "-c", config)
    assert code == 0, err
    tables = {}
    for folder in (project, copy):
        with duckdb.connect(str(folder / "tiny.evidence.duckdb"), read_only=True) as con:
            tables[folder] = [
                con.execute(f"SELECT * FROM {table} ORDER BY ALL").fetchall() for table in ("windows", "context_rows")
            ]
    assert tables[project] == tables[copy]


def bad_config(copy: Path, old: str, new: str) -> Path:
    config = copy / "autointerp.toml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    for name in ("tiny.duckdb", "tiny.evidence.duckdb", "tiny.duckdb.ledger"):
        (copy / name).unlink(missing_ok=True)
    return config


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("transformer.h.1", "transformer.h.7", 2, "transformer.h.0"),
        ('source = "texts"', 'source = "nothing"', 2, "nothing"),
        ("[train]", "[trian]", 2, "train"),
        ("k = 4", "kk = 4", 2, "sae[0].kk"),
    ],
)
def test_bad_configuration(
    copy: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, code: int, message: str
) -> None:
    config = bad_config(copy, old.replace('"texts"', "'texts'"), new)
    shutil.rmtree(copy / "sae")
    got, _, err = run(capsys, "run", "-c", str(config))
    assert got == code, err
    assert message in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1


def test_a_missing_model(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy / "autointerp.toml"
    lines = [
        "name = 'no/such-model'" if line.startswith("name = '") else line for line in config.read_text().splitlines()
    ]
    config.write_text("\n".join(lines))
    shutil.rmtree(copy / "sae")
    code, _, err = run(capsys, "train", "-c", str(config))
    assert code == 2, err
    assert "no/such-model" in err


def test_an_empty_corpus(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (copy / "texts").iterdir():
        file.write_text("")
    shutil.rmtree(copy / "sae")
    code, _, err = run(capsys, "train", "-c", str(copy / "autointerp.toml"))
    assert code == 2, err
    assert "no usable text" in err


def test_a_wrong_text_field(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "texts.jsonl").write_text("\n".join(json.dumps({"body": f"text {i}"}) for i in range(100)))
    config = bad_config(copy, "source = 'texts'", "source = 'texts.jsonl'")
    shutil.rmtree(copy / "sae")
    code, _, err = run(capsys, "train", "-c", str(config))
    assert code == 2, err
    assert "body" in err and "text_field" in err


def test_an_sae_of_another_width(copy: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae = next((copy / "sae").iterdir())
    config = bad_config(copy, "hookpoint = 'transformer.h.1'", f"hookpoint = 'model.layers.1'\npath = '{sae}'")
    lines = [
        f"name = '{tiny_llama}'" if line.startswith("name = '") else line for line in config.read_text().splitlines()
    ]
    config.write_text("\n".join(lines))
    code, _, err = run(capsys, "harvest", "-c", str(config))
    assert code == 8, err
    assert "48" in err and "64" in err


def test_a_locked_store_names_the_process(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import duckdb, sys, time\n"
        f"con = duckdb.connect({str(copy / 'tiny.duckdb')!r})\nprint('open', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        got, _, err = run(capsys, "explain", "-c", str(copy / "autointerp.toml"))
        holder.kill()
    assert got == 75, err
    assert str(holder.pid) in err


def llm_config(copy: Path, url: str) -> Path:
    config = copy / "autointerp.toml"
    text = config.read_text().replace(
        'explainer = "patterns"', f'explainer = "combined"\nmodel = "m"\nbase_url = "{url}"'
    )
    config.write_text(text.replace("[score]", f'[score]\nmodel = "m"\nbase_url = "{url}"'))
    return config


def test_no_api_key(copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, _, err = run(capsys, "explain", "-c", str(llm_config(copy, "https://api.openai.com/v1")))
    assert code in (2, 3), err
    assert "OPENAI_API_KEY" in err


def test_an_unreachable_endpoint(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "explain", "-c", str(llm_config(copy, "http://127.0.0.1:9/v1")), "--limit", "2")
    assert code == 1, err
    assert "127.0.0.1:9" in err


def test_a_damaged_store(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = copy / "tiny.duckdb"
    raw = bytearray(store.read_bytes())
    raw[:4096] = os.urandom(4096)
    store.write_bytes(raw)
    code, _, err = run(capsys, "status", "--store", str(store))
    assert code == 7, err


def test_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "status", "--store", str(tmp_path / "none.duckdb"))
    assert code == 2, err


def test_init_writes_a_configuration_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "init", str(tmp_path))
    assert code == 0 and "autointerp.toml" in out
    code, _, err = run(capsys, "init", str(tmp_path))
    assert code == 2 and "--force" in err


def test_unknown_options_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "run", "--nonsense")
    assert code == 2
    assert "--nonsense" in err


def test_the_name_of_a_file_says_its_format(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(copy / "tiny.duckdb")
    for name, given, begins in (
        ("a.parquet", (), b"PAR1"),
        ("a.json", (), b"{"),
        ("a.csv", (), b"one\n"),
        ("a.txt", (), b"one\n"),
        ("b.parquet", ("--format", "csv"), b"one\n"),
    ):
        code, _, err = run(capsys, "query", "SELECT 1 AS one", "--store", store, "-o", str(copy / name), *given)
        assert code == 0 and (copy / name).read_bytes().startswith(begins), (name, err)


def test_a_dry_run_leaves_no_trace(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copy / "tiny.duckdb").read_bytes()
    for command in ("explain", "score"):
        code, out, err = run(capsys, command, "-c", str(copy / "autointerp.toml"), "--dry-run")
        assert code == 0 and f"{command}: " in out, err
    assert (copy / "tiny.duckdb").read_bytes() == before


def test_dry_run_spends_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "harvest", "-c", str(project / "autointerp.toml"), "--dry-run")
    assert code == 0, err
    assert "memory" in out


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_fault(buffered: str) -> None:
    """Of results that Python still holds when the command ends, and of those that are written at once."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    command = [sys.executable, "-m", "autointerp", "--version"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
