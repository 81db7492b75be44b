"""A harvest of SAEs that do not write into the residual stream: promoted tokens come from where the model leads their
directions, or there are none, with the reason; all other evidence is kept."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from support.commands import run, write_corpus
from torch import Tensor

from autointerp.config import ModelConfig
from autointerp.config_file import load
from autointerp.model.load import load_model
from autointerp.sae.formats import load_sae, save_saelens
from autointerp.sae.sae import Sae
from autointerp.stages import pipeline
from autointerp.stages.session import Session
from autointerp.store import Selection, Store
from autointerp.terminal import Terminal

HEADS, INSIDE = "blocks.2.attn.hook_z", "model.layers.2.mlp:in"
REASON = "read by model.layers.2.mlp (LlamaMLP), which is not linear"
WIDTH, FEATURES = 64, 24


def random_sae(seed: int) -> Sae:
    rows = torch.randn(FEATURES, WIDTH, generator=torch.Generator().manual_seed(seed))
    rows = torch.nn.functional.normalize(rows, dim=1)
    return Sae(rows.T.contiguous(), torch.zeros(FEATURES), rows, torch.zeros(WIDTH), k=4)


@pytest.fixture(scope="module")
def project(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("no_projection")
    write_corpus(folder / "texts")
    saes = ""
    for seed, (name, hookpoint) in enumerate((("heads", HEADS), ("inside", INSIDE))):
        named = {"hook_name": HEADS, "reshape_activations": "hook_z"} if name == "heads" else {}
        save_saelens(random_sae(seed), folder / name, named)
        saes += f'[[sae]]\nname = "{name}"\nhookpoint = "{hookpoint}"\npath = "{folder / name}"\n'
        saes += 'reading = "as read"\n'  # random directions explain next to nothing
    (folder / "c.toml").write_text(
        f'[model]\nname = "{tiny_llama}"\ndtype = "float32"\n[corpus]\nsource = "{folder / "texts"}"\n'
        f"context_length = 32\n{saes}"
        "[harvest]\ncontext_tokens = 16\ntop_contexts = 3\nsampled_contexts = 3\nnegatives = 2\nvocab_tokens = 20\n"
        '[evidence]\nmethods = ["output_statistic", "mutual_information"]\n'
        '[explain]\nexplainer = "vocab_projection"\nmodel = "m"\nbase_url = "http://127.0.0.1:9/v1"\n'
        '[score]\nmodel = "m"\nbase_url = "http://127.0.0.1:9/v1"\n'
        f'[store]\npath = "{folder / "s.duckdb"}"\n'
    )
    return folder


@pytest.fixture(scope="module")
def harvested(project: Path) -> Path:
    pipeline.harvest(load(project / "c.toml"), None, Terminal(every_s=0))
    return project


def test_doctor_says_it_before_a_run(project: Path) -> None:
    config = load(project / "c.toml")
    session = Session(config, Terminal(every_s=0))
    heads, inside = (session.describe_sae(sae) for sae in config.sae)
    assert "promoted tokens through model.layers.2.self_attn.o_proj -> model.norm -> lm_head" in heads
    assert "no promoted tokens: what model.layers.2.mlp:in of LlamaForCausalLM holds" in inside and REASON in inside


def test_a_run_whose_explainer_reads_nothing_else_ends_before_the_text_is_read(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(project / "unused" / "s.duckdb")
    code, _, err = run(capsys, "run", "-c", str(project / "c.toml"), "--store", store, "--dictionary", "inside")
    assert code == 2 and "inside has no promoted tokens, and the explainer 'vocab_projection' reads nothing else" in err
    assert REASON in err and "harvested" not in err


def test_the_directions_of_heads_are_led_through_the_output_projection(harvested: Path, tiny_llama: Path) -> None:
    """Against the plain model, whose last block is made to return the projected row and nothing else."""
    model = load_model(ModelConfig(name=str(tiny_llama), device="cpu", dtype="float32")).model
    rows = load_sae(harvested / "heads").W_dec @ model.get_submodule("model.layers.2.self_attn.o_proj").weight.T
    logits = []
    for value in (rows, torch.zeros_like(rows)):

        def give(module: torch.nn.Module, args: object, output: Tensor, value: Tensor = value) -> Tensor:
            return value.view_as(output)

        handle = model.get_submodule("model.layers.2").register_forward_hook(give)
        with torch.no_grad():
            logits.append(model(torch.full((FEATURES, 1), 5), use_cache=False).logits[:, 0])
        handle.remove()
    real = logits[0] - logits[1]
    ordinary = torch.arange(1, real.shape[1])  # id 0 is special
    real = real - real[:, ordinary].mean(1, keepdim=True)
    with Store.open(harvested / "s.duckdb", read_only=True) as store:
        held = store.rows(
            "SELECT feature, token_id, logit FROM vocab_projection JOIN dictionaries USING (dictionary_id) "
            "WHERE name = 'heads' AND sign = 1 ORDER BY feature, rank"
        )
    promoted = defaultdict(list)
    for feature, token, logit in held:
        promoted[feature].append(token)
        assert logit == pytest.approx(float(real[feature, token]), abs=1e-4)
    assert len(promoted) == FEATURES
    for feature, tokens in promoted.items():
        assert tokens == (real[feature, ordinary].topk(20).indices + 1).tolist()


def test_what_cannot_be_projected_keeps_all_other_evidence(harvested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(harvested / "s.duckdb", read_only=True) as store:
        row = store.dictionary("inside")
        assert REASON in str(store.why_nothing("vocab_projection", row.dictionary_id))
        assert store.why_nothing("vocab_projection", store.dictionary("heads").dictionary_id) is None
        contexts = dict(
            store.rows("SELECT name, count(*) FROM contexts JOIN dictionaries USING (dictionary_id) GROUP BY 1")
        )
        runs = store.rows(
            "SELECT DISTINCT d.name, method, status, error FROM method_runs JOIN dictionaries d USING (dictionary_id)"
        )
        feature = store.selected_features(row.dictionary_id, Selection())[0]
    assert contexts["inside"] > 50 and contexts["heads"] > 50
    told = {(name, method): (status, error) for name, method, status, error in runs}
    assert told["heads", "output_statistic"] == ("ok", None)
    status, error = told["heads", "mutual_information"]
    assert status == "no_output_space" and "stream through model.layers.2.self_attn.o_proj, so its encoder" in error
    for method in ("output_statistic", "mutual_information"):
        assert told["inside", method][0] == "no_output_space" and REASON in told["inside", method][1]

    store_path = str(harvested / "s.duckdb")
    code, out, err = run(capsys, "show", f"inside:{feature}", "--store", store_path)
    lines = out.splitlines()
    assert code == 0, err
    assert any(line.startswith("promotes  not known: what model.layers.2.mlp:in") and REASON in line for line in lines)
    assert any(line.startswith("nothing found by  mutual_information, output_statistic: what ") for line in lines)
    code, out, err = run(capsys, "show", f"inside:{feature}", "--store", store_path, "--json")
    page = json.loads(out)
    assert code == 0 and page["promoted"] == [] and REASON in page["no_projection"]
    code, out, _ = run(capsys, "show", f"heads:{feature}", "--store", store_path, "--json")
    assert json.loads(out)["no_projection"] is None and len(json.loads(out)["promoted"]) == 20


def test_a_feature_of_heads_shows_which_heads_it_is_of(harvested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = load_sae(harvested / "heads").W_dec.view(FEATURES, 4, -1).square().sum(2)
    with Store.open(harvested / "s.duckdb", read_only=True) as store:
        held = store.rows(
            "SELECT name, feature, head, decoder_share FROM head_shares JOIN dictionaries USING (dictionary_id) "
            "ORDER BY feature, head"
        )
        assert {name for name, *_ in held} == {"heads"} and len(held) == 4 * FEATURES
        feature = store.selected_features(store.dictionary("heads").dictionary_id, Selection())[0]
    for _, f, head, share in held:
        assert share == pytest.approx(float(rows[f, head]), abs=1e-5)
    store_path = str(harvested / "s.duckdb")
    _, out, _ = run(capsys, "show", f"heads:{feature}", "--store", store_path, "--json")
    heads = json.loads(out)["heads"]
    assert len(heads) == 4 and sum(one["output_share"] for one in heads) == pytest.approx(1)
    assert [one["output_share"] for one in heads] == sorted((one["output_share"] for one in heads), reverse=True)
    _, out, _ = run(capsys, "show", f"heads:{feature}", "--store", store_path)
    line = next(line for line in out.splitlines() if line.startswith("heads  "))
    first = heads[0]
    assert line.startswith(
        f"heads  {first['head']} ({first['decoder_share']:.0%} of its decoder row, {first['output_share']:.0%} of what"
    )
    _, out, _ = run(capsys, "show", f"inside:{feature}", "--store", store_path, "--json")
    assert json.loads(out)["heads"] == []


def test_a_store_from_before_there_were_head_shares_gets_them(harvested: Path) -> None:
    with Store.open(harvested / "s.duckdb") as store, store.transaction() as con:
        before = store.rows("SELECT * FROM head_shares ORDER BY ALL")
        con.execute("DELETE FROM head_shares")
    pipeline.harvest(load(harvested / "c.toml"), "heads", Terminal(every_s=0))
    with Store.open(harvested / "s.duckdb", read_only=True) as store:
        assert store.rows("SELECT * FROM head_shares ORDER BY ALL") == before


def test_explainers_that_need_it_are_refused_with_the_reason(
    harvested: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "explain", "--dictionary", "inside", "-c", str(harvested / "c.toml"))
    assert code == 2 and "no chosen feature has what 'vocab_projection' reads: what model.layers.2.mlp:in" in err
    assert REASON in err and "autointerp harvest" not in err
