"""The command line with several dictionaries: trained together, brought along from other tools, evaluated."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import CONFIG, run, write_corpus

from autointerp.cli.app import main
from autointerp.harvest import unit
from autointerp.harvest.checkpoint import Checkpoints

SEVERAL = CONFIG.replace(
    "[train]",
    """
[[sae]]
name = "jump"
hookpoint = "transformer.h.1"
architecture = "jumprelu"
d_sae = 48
k = 4
seed = 9
[[sae]]
name = "mlp"
hookpoint = "transformer.h.1.mlp:in"
output_hookpoint = "transformer.h.1.mlp"
skip = true
d_sae = 32
k = 3
[train]""",
)


@pytest.fixture(scope="module")
def project(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which three dictionaries were trained."""
    folder = tmp_path_factory.mktemp("several")
    with pytest.raises(SystemExit) as end:
        main(["train", "-c", str(configured(folder, tiny_gpt2))])
    assert end.value.code in (0, None)
    return folder


def configured(folder: Path, model: Path) -> Path:
    write_corpus(folder / "texts")
    config = folder / "autointerp.toml"
    config.write_text(SEVERAL.format(model=str(model), hookpoint="blocks.1.hook_resid_post", corpus="texts"))
    return config


@pytest.mark.slow
def test_two_torchrun_processes_train_and_one_of_them_speaks(tiny_gpt2: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, tiny_gpt2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "autointerp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train", "-c", str(config)], capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trained 64 features (topk)") == 1
    assert {path.name for path in (tmp_path / "sae").iterdir()} == {"tiny", "jump", "mlp"}


def test_all_are_there_and_train_again_does_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", "-c", str(project / "autointerp.toml"))
    assert code == 0 and err.count("trained already") == 3
    metadata = json.loads((project / "sae" / "tiny" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    code, out, _ = run(
        capsys, "query", "SELECT name, architecture, d_in, d_out FROM dictionaries ORDER BY name", "--format", "json",
        "--store", str(project / "tiny.duckdb"),
    )  # fmt: skip
    assert [(r["name"], r["architecture"]) for r in json.loads(out)] == [
        ("jump", "jumprelu"), ("mlp", "skip_transcoder"), ("tiny", "topk")
    ]  # fmt: skip


def test_evaluate_writes_metrics_and_a_page(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probes = project / "probes.jsonl"
    lines = [{"text": f"the def {i}" if i % 2 else f"a return {i}", "label": i % 2} for i in range(80)]
    probes.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["evaluate", "-c", str(project / "autointerp.toml"), "--tokens", "6000", "--splice-tokens", "1500"]
    arguments += ["--corpus", str(project / "texts" / "00*.txt"), "--probes", str(probes)]
    code, out, err = run(capsys, *arguments, "--report", str(project / "page.html"), "--json")
    assert code == 0, err
    rows = json.loads(out)
    found = {(r["dictionary"], r["metric"]): r["value"] for r in rows if r.get("split") is None}
    assert 0 < found["tiny", "fvu"] < 1 and found["tiny", "l0"] <= 4
    assert found["mlp", "l0"] <= 3 and "loss_recovered_zero" in {metric for _, metric in found}
    assert any(metric.startswith("stability_") and metric.endswith("[jump]") for _, metric in found)
    assert any(row["metric"].startswith("probing_probes") for row in rows)
    fvus = {r["note"]: r for r in rows if (r["dictionary"], r["metric"], r["split"]) == ("tiny", "fvu", None)}
    assert set(fvus) == {"report text, held out from training", "another corpus"}
    assert {r["split"] for r in rows if r.get("note") == "report text, held out from training"} == {"report", None}
    assert all(r["n"] > 1 and r["unit"] == "documents" for r in fvus.values())
    page = (project / "page.html").read_text()
    assert "jump" in page and "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
    code, out, _ = run(
        capsys, "query",
        "SELECT count(*) AS n, count(DISTINCT corpus_id) AS corpora FROM sae_metrics JOIN dictionaries "
        "USING (dictionary_id) WHERE name = 'tiny'",
        "--store", str(project / "tiny.duckdb"), "--format", "json",
    )  # fmt: skip
    assert json.loads(out)[0]["n"] > 100 and json.loads(out)[0]["corpora"] == 1  # not harvested yet: only the other


@pytest.mark.slow
def test_every_kind_of_dictionary_is_harvested_labelled_and_scored(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project, tmp_path / "copy")
    config = str(tmp_path / "copy" / "autointerp.toml")
    code, _, err = run(capsys, "run", "-c", config)
    assert code == 0, err
    code, out, _ = run(
        capsys, "query",
        "SELECT name, count(*) AS n, count(label) AS labelled, avg(score) AS score FROM labels "
        "WHERE status = 'live' GROUP BY name ORDER BY name",
        "--store", str(tmp_path / "copy" / "tiny.duckdb"), "--format", "json",
    )  # fmt: skip
    rows = json.loads(out)
    assert [row["name"] for row in rows] == ["jump", "mlp", "tiny"]
    assert all(row["n"] > 10 and row["labelled"] > 5 and row["score"] > 0.3 for row in rows), rows
    code, out, err = run(capsys, "verify", "-c", config, "--sample", "50")
    assert code == 0, err


def tables_of(folder: Path) -> dict[str, list[str]]:
    """Every table of both files but runs and the store's own state, without times and places."""
    found = {}
    with duckdb.connect(str(folder / "tiny.duckdb"), read_only=True) as con:
        con.execute(f"ATTACH '{folder / 'tiny.evidence.duckdb'}' AS evidence (READ_ONLY)")
        tables = con.execute(
            "SELECT database_name, table_name FROM duckdb_tables() WHERE NOT internal ORDER BY ALL"
        ).fetchall()
        for database, table in tables:
            if table in ("runs", "store_state", "evidence_state"):
                continue
            columns = con.execute(
                "SELECT column_name FROM duckdb_columns() WHERE database_name = ? AND table_name = ? "
                "AND data_type NOT LIKE 'TIMESTAMP%' AND column_name <> 'store_id'",
                [database, table],
            ).fetchall()
            listed = ", ".join(f'"{name}"' for (name,) in columns)
            rows = con.execute(f'SELECT {listed} FROM "{database}"."{table}" ORDER BY ALL').fetchall()
            found[table] = [repr(row).replace(str(folder), "") for row in rows]  # NaN equals itself
    return found


def copied(project: Path, folder: Path) -> str:
    """The configuration of a copy of the project."""
    shutil.copytree(project, folder)
    with (folder / "autointerp.toml").open("a") as config:
        config.write('[evidence]\nmethods = ["shape"]\n')
    return str(folder / "autointerp.toml")


@pytest.fixture(scope="module")
def apart(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The tables of three passes, one after another."""
    folder = tmp_path_factory.mktemp("apart") / "copy"
    config = copied(project, folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("autointerp.harvest.memory.share_a_pass", lambda saes, *_: [[0], [1], [2]])
        with pytest.raises(SystemExit) as end:
            main(["harvest", "-c", config])
    assert end.value.code in (0, None)
    tables = tables_of(folder)
    assert len(tables["harvests"]) == 3 and tables["context_rows"] and tables["windows"] and tables["features"]
    return tables


@pytest.mark.parametrize(
    "first",
    [(), ("--dictionary", "tiny")],
    ids=["all", "one is there already"],
)
@pytest.mark.slow
def test_three_dictionaries_in_one_pass_are_as_one_after_another(
    project: Path, apart: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    first: tuple[str, ...],
) -> None:  # fmt: skip
    config = copied(project, tmp_path / "copy")
    if first:
        assert run(capsys, "harvest", "-c", config, *first)[0] == 0
    code, _, err = run(capsys, "harvest", "-c", config)
    assert code == 0, err
    assert f"{'jump, mlp' if first else 'tiny, jump, mlp'}: harvested" in err
    assert ("tiny: harvested already" in err) == bool(first)
    assert tables_of(tmp_path / "copy") == apart


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.mark.slow
def test_a_pass_killed_inside_a_unit_goes_on_there(
    project: Path, apart: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = copied(project, tmp_path / "copy")
    monkeypatch.setattr(Checkpoints, "is_due", lambda self: True)
    forward = unit.activations_at_all
    for after in (3, 6):
        calls = itertools.count()

        def dying(*arguments: Any, calls: Iterator[int] = calls, after: int = after) -> Any:
            if next(calls) == after:
                raise Killed
            return forward(*arguments)

        monkeypatch.setattr(unit, "activations_at_all", dying)
        with pytest.raises(Killed):
            main(["harvest", "-c", config])
        assert len(list((tmp_path / "copy").rglob("partial/*.npz"))) == 3
    monkeypatch.setattr(unit, "activations_at_all", forward)
    capsys.readouterr()
    code, _, err = run(capsys, "harvest", "-c", config)
    assert code == 0 and err.count("goes on inside work unit") == 3, err
    assert tables_of(tmp_path / "copy") == apart


def test_a_dry_run_tells_who_shares_a_pass(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "harvest", "-c", str(project / "autointerp.toml"), "--dry-run")
    assert code == 0, err
    assert "one pass over the text for tiny, jump, mlp: about " in out and out.count("pass(es) over the text") == 3


@pytest.mark.slow
def test_what_does_not_fit_together_is_harvested_in_groups(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project, tmp_path / "copy")
    config = str(tmp_path / "copy" / "autointerp.toml")
    monkeypatch.setattr("autointerp.harvest.memory.share_a_pass", lambda saes, *_: [[0, 1], [2]])
    code, _, err = run(capsys, "harvest", "-c", config)
    assert code == 0 and "2 passes over the text (tiny, jump; mlp)" in err, err
    assert "tiny, jump: harvested" in err and "mlp: harvested" in err


def brought(project: Path, folder: Path, **metadata: object) -> Path:
    """A configuration that names the trained SAE's folder as somebody else's, with changed metadata."""
    copied = folder / "theirs"
    copied.mkdir()
    source = project / "sae" / "tiny"
    config = json.loads((source / "cfg.json").read_text())
    config["metadata"] |= metadata
    (copied / "cfg.json").write_text(json.dumps(config))
    save_file(load_file(source / "sae_weights.safetensors"), copied / "sae_weights.safetensors")
    text = (project / "autointerp.toml").read_text().replace("tiny.duckdb", str(folder / "new.duckdb"))
    text = text.replace("corpus = 'texts'", "").replace("source = 'texts'", f"source = {str(project / 'texts')!r}")
    begin, end = text.index("[[sae]]"), text.index("[train]")
    table = f"[[sae]]\nname = 'theirs'\nhookpoint = 'transformer.h.1'\npath = {str(copied)!r}\n"
    (folder / "autointerp.toml").write_text(text[:begin] + table + text[end:])
    return folder / "autointerp.toml"


def test_an_sae_that_explains_nothing_is_not_harvested(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = brought(project, tmp_path)
    weights = load_file(tmp_path / "theirs" / "sae_weights.safetensors")
    weights["b_dec"] += 50 * torch.randn(weights["b_dec"].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, tmp_path / "theirs" / "sae_weights.safetensors")
    code, _, err = run(capsys, "harvest", "-c", str(config))
    assert code == 8 and "harvested" not in err
    assert "None of these readings fits: the hookpoint, the layer or the model is probably not the one" in err


@pytest.mark.slow
def test_a_fitting_sae_is_harvested_without_one(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "harvest", "-c", str(brought(project, tmp_path)))
    assert code == 0 and "WARNING" not in err, err


@pytest.mark.parametrize(
    "metadata, code, message",
    [
        ({"prepend_bos": False}, 8, "set corpus.prepend_bos = 'never'"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, 2, "center_writing_weights"),
    ],
)
def test_what_the_file_says_of_the_models_treatment_is_honoured_or_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], metadata: dict[str, object], code: int,
    message: str,
) -> None:  # fmt: skip
    found, _, err = run(capsys, "harvest", "-c", str(brought(project, tmp_path, **metadata)))
    assert found == code and message in err, err


def test_another_hookpoint_than_the_files_is_said(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = brought(project, tmp_path, hook_name="blocks.0.hook_resid_post")
    _, _, err = run(capsys, "harvest", "-c", str(config))
    assert "trained at blocks.0.hook_resid_post, which is transformer.h.0 here" in err


def test_an_unknown_architecture_names_the_nearest(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (project / "autointerp.toml").read_text().replace('"jumprelu"', '"jumprleu"')
    text = text.replace("tiny.duckdb", str(tmp_path / "x.duckdb")).replace(
        "source = 'texts'", f"source = {str(project / 'texts')!r}"
    )
    (tmp_path / "autointerp.toml").write_text(text)
    code, _, err = run(capsys, "train", "-c", str(tmp_path / "autointerp.toml"))
    assert code == 2 and "'jumprleu' cannot be trained" in err and "jumprelu" in err
