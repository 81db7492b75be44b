"""--control on the command line: floors of the scores, and dictionaries of which a part was never learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.commands import run, write_config, write_corpus
from support.llm_server import LlmServer
from support.token_reader import TokenReader
from torch.nn import functional as F

from autointerp.sae.formats import load_sae
from autointerp.store import Store

MADE = ("random_model", "random_model_embeddings", "soft_frozen", "frozen_encoder")


@pytest.fixture(scope="module")
def done(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything has run, for the dictionary and for one control."""
    folder = tmp_path_factory.mktemp("controls")
    write_corpus(folder / "texts")
    path = write_config(folder, tiny_gpt2)
    # The fixture's own weights are random with seed 0.
    path.write_text(path.read_text().replace("[train]", "[train]\nseed = 5"))
    run_all(path)
    run_all(path, "--control", "soft_frozen")
    return path


@pytest.fixture(scope="module")
def all_done(done: Path) -> Path:
    """The same for the controls MADE."""
    run_all(done, "--control", "random_model,random_model_embeddings", "--control", "frozen_encoder, soft_frozen")
    return done


def run_all(path: Path, *more: str) -> None:
    from autointerp.cli.app import main

    with pytest.raises(SystemExit) as end:
        main(["run", "-c", str(path), *more])
    assert not end.value.code


def test_a_control_runs_from_start_to_end(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says at its end how far the dictionary's labels score above its own."""
    with Store.open(done.parent / "tiny.duckdb", read_only=True) as store:
        real, soft = store.dictionaries()
        assert soft.name == "tiny (soft_frozen)" and soft.revision == real.revision
        scored = "SELECT count(value) FROM scores WHERE dictionary_id = ? AND scorer = 'simulation'"
        assert all(store.rows(scored, [row.dictionary_id])[0][0] > 10 for row in (real, soft))
    start = F.normalize(torch.randn(64, 48, generator=torch.Generator().manual_seed(5)), dim=1)
    held = {folder.name: load_sae(folder) for folder in (done.parent / "sae").iterdir()}
    nearest = {name: float(F.cosine_similarity(sae.W_dec, start).min()) for name, sae in held.items()}
    (plain,), (control,) = ([v for n, v in nearest.items() if ("soft" in n) == is_soft] for is_soft in (False, True))
    assert control >= 0.8 - 1e-6 > plain
    code, out, err = run(capsys, "run", "-c", str(done), "--control", "soft_frozen")
    assert code == 0 and "nothing to do" in err
    assert out.startswith("tiny over soft_frozen, simulation_natural of labels by patterns: ") and out.count("\n") == 1


@pytest.mark.slow
def test_random_weights_make_a_dictionary_of_their_own(all_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = all_done
    with Store.open(done.parent / "tiny.duckdb", read_only=True) as store:
        real, _, random, *_ = store.dictionaries()
        assert random.name == f"{real.name} (random_model)"
        assert random.revision and random.revision.startswith("random:")
        assert (random.d_sae, random.hookpoint) == (real.d_sae, real.hookpoint)
        assert random.sae_sha256 != real.sae_sha256
        scored = "SELECT count(value) FROM scores WHERE dictionary_id = ? AND scorer = 'simulation'"
        assert all(store.rows(scored, [d.dictionary_id])[0][0] > 10 for d in (real, random))
    code, _, err = run(capsys, "run", "-c", str(done), "--control", "random_model")
    assert code == 0 and "nothing to do" in err
    code, _, err = run(capsys, "score", "-c", str(done), "--control", "random_model")
    assert code == 0 and "nothing pending" in err


@pytest.mark.slow
def test_shuffled_labels_score_lower(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "score", "-c", str(done), "--control", "shuffled")
    assert code == 0 and "under the control shuffled" in err
    with Store.open(done.parent / "tiny.duckdb", read_only=True) as store:
        means = dict(
            store.rows(
                "SELECT coalesce(control, 'real'), avg(value) FROM scores JOIN dictionaries USING (dictionary_id) "
                "WHERE scorer = 'simulation' AND name = 'tiny' GROUP BY 1"
            )
        )
    assert means["shuffled"] < means["real"] / 2


def test_a_dry_run_counts_the_controls_too(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "run", "-c", str(done), "--control", "shuffled,empty", "--dry-run")
    counted = [line.partition(":")[0] for line in out.splitlines() if " pending" in line]
    assert code == 0, err
    assert counted == ["explain", "score", "score under the control shuffled", "score under the control empty"]


def test_a_budget_is_for_the_labels_and_all_controls_together(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three labels, their control and three labels of soft_frozen take 90 requests or more, each dictionary under 70.
    The run that a budget ended is gone on with."""
    copy = tmp_path / "copy"
    shutil.copytree(done.parent, copy)
    path, most = copy / done.name, 70
    with LlmServer(TokenReader()) as server:
        asking = f'model = "m"\nbase_url = "{server.url}"\n'
        text = path.read_text().replace(
            'explainer = "patterns"', f'explainer = "contexts"\nshape_labels = false\n{asking}'
        )
        text = text.replace("[score]\n", f"[score]\n{asking}") + "[llm]\nrequests_per_minute = 60000\n"
        path.write_text(f"{text}[budget]\nmax_requests = {most}\n")
        asked = ("run", "-c", str(path), "--limit", "3", "--control", "shuffled,soft_frozen")
        code, _, err = run(capsys, *asked)
        assert code == 4 and "max_requests" in err and len(server.requests) <= most
        path.write_text(text)
        code, _, err = run(capsys, *asked)
        assert code == 0, err
        assert len(server.requests) > most
        sent = len(server.requests)
        code, _, err = run(capsys, *asked)
        assert code == 0 and err.count("nothing to do") == 2 and len(server.requests) == sent


def test_unknown_controls_and_missing_floors_are_refused(
    done: Path, tmp_path: Path, tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ("--dictionary", "tiny (soft_frozen)", "--control", "soft_frozen")
    code, _, err = run(capsys, "score", "-c", str(done), *named)
    assert code == 2 and "there is no control of it" in err
    for command in ("run", "score"):
        code, _, err = run(capsys, command, "-c", str(done), "--control", "frozn_decoder")
        assert code == 2 and "Did you mean frozen_decoder" in err
    fresh = write_config(tmp_path, tiny_gpt2)
    code, _, err = run(capsys, "score", "-c", str(fresh), "--control", "random_model")
    assert code == 2 and "no store" in err


@pytest.mark.slow
def test_every_control_is_a_dictionary_that_differs_in_one_thing(
    all_done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = all_done
    with Store.open(done.parent / "tiny.duckdb", read_only=True) as store:
        real, *_ = held = store.dictionaries()
        controls = [row for name in MADE for row in held if row.name == f"tiny ({name})"]
        assert len(controls) == len(held) - 1 == len(MADE)
        for row in controls:
            same = ("d_sae", "hookpoint", "architecture", "tokenizer_sha256")
            assert all(getattr(row, name) == getattr(real, name) for name in same)
            scored = "SELECT count(value) FROM scores WHERE dictionary_id = ? AND scorer = 'simulation'"
            assert store.rows(scored, [row.dictionary_id])[0][0] > 0
        random, with_embeddings, soft, encoder = controls
    assert soft.revision == encoder.revision == real.revision
    assert with_embeddings.revision and with_embeddings.revision.startswith(f"{random.revision}:embeddings of local:")
    saved = {folder.name: load_sae(folder) for folder in (done.parent / "sae").iterdir()}
    assert len(saved) == len(MADE) + 1
    metrics = {name: (done.parent / "sae" / name / "training" / "metrics.jsonl").read_text() for name in saved}
    assert len(set(metrics.values())) == len(metrics)
    code, _, err = run(capsys, "run", "-c", str(done), "--control", ",".join(MADE))
    assert code == 0 and err.count("nothing to do") == 3  # the two that are trained on the model as it is are one run


@pytest.mark.slow
def test_the_lift_over_each_control_is_reported(all_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = all_done
    code, out, _ = run(capsys, "run", "-c", str(done), "--control", "soft_frozen")
    lines = out.splitlines()
    assert code == 0 and [line.split(",")[0] for line in lines] == [f"tiny over {name}" for name in MADE]
    assert all("features labelled" in line and "against" in line for line in lines)
    code, out, _ = run(capsys, "status", "-c", str(done))
    assert code == 0 and [line for line in out.splitlines() if line.startswith("lift: ")] == [
        f"lift: {line}" for line in lines
    ]
    code, out, _ = run(capsys, "compare", "-c", str(done), "--controls", "--format", "json")
    lifts = json.loads(out)
    assert code == 0 and [lift["control"] for lift in lifts] == list(MADE)
    code, out, _ = run(capsys, "status", "-c", str(done), "--json")
    assert code == 0 and json.loads(out)["control_lifts"] == lifts


@pytest.mark.slow
def test_what_a_control_would_need_is_told_before(
    done: Path, tmp_path: Path, tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "run", "-c", str(done), "--control", "frozen_decoder", "--dry-run")
    assert code == 0, err
    assert "tiny (frozen_decoder)" in out + err and "once the harvest has filled the store" in out
    code, _, err = run(capsys, "score", "-c", str(done), "--control", "frozen_decoder")
    assert code == 2 and "`autointerp run --control frozen_decoder` makes it" in err
    named = write_config(tmp_path, tiny_gpt2, corpus=str(done.parent / "texts"))
    named.write_text(named.read_text().replace('name = "tiny"', 'name = "tiny (soft_frozen)"'))
    code, _, err = run(capsys, "run", "-c", str(named), "--control", "soft_frozen")
    assert code == 2 and "is the name of a control" in err
