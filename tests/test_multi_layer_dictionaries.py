"""Crosscoders and cross-layer transcoders through the stages: trained or loaded, harvested, verified, evaluated,
labelled, shown and steered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.commands import run, write_corpus

from autointerp.config_file import load
from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.resources import data_folder
from autointerp.sae.formats import load_sae
from autointerp.stages import pipeline
from autointerp.stages.control_dictionaries import control_configs
from autointerp.stages.evaluate_options import EvaluateOptions
from autointerp.stages.session import Session
from autointerp.steer.steering import Steerer
from autointerp.store import Selection, Store
from autointerp.terminal import Terminal

REST = """
[train]
tokens = {tokens}
batch_size = 256
buffer_vectors = 2048
lr = 1e-2
[harvest]
context_tokens = 16
top_contexts = 4
sampled_contexts = 4
negatives = 3
vocab_tokens = 5
[evidence]
methods = ["shape"]
[explain]
explainer = "patterns"
[score]
contexts = 3
[store]
path = "s.duckdb"
"""
N_FEATURES = 24


def write_clt(folder: Path, width: int, n_layers: int) -> Path:
    """Weights as circuit-tracer lays them out."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(n_layers):
        enc = torch.randn(N_FEATURES, width, generator=generator)
        held = {f"W_enc_{i}": enc, f"b_enc_{i}": torch.zeros(N_FEATURES), f"b_dec_{i}": torch.ones(width) * 0.01 * i}
        save_file(held, folder / f"W_enc_{i}.safetensors")
        dec = torch.randn(N_FEATURES, n_layers - i, width, generator=generator) * 0.02
        save_file({f"W_dec_{i}": dec}, folder / f"W_dec_{i}.safetensors")
    return folder


def write_project(folder: Path, model: Path, saes: str, tokens: int = 4096, more_model: str = "") -> Path:
    write_corpus(folder / "texts")
    head = (
        f'[model]\nname = "{model}"\ndtype = "float32"\n{more_model}[corpus]\nsource = "texts"\ncontext_length = 32\n'
    )
    (folder / "c.toml").write_text(head + saes + REST.format(tokens=tokens), encoding="utf-8")
    return folder / "c.toml"


CROSSCODER = """
[[sae]]
name = "cross"
hookpoint = ["blocks.0.hook_resid_post", "model.layers.{last}"]
d_sae = 64
k = 6
"""
CLT = """
[[sae]]
name = "clt"
path = "clt"
hookpoint = "blocks.{}.hook_resid_mid"
output_hookpoint = "blocks.{}.hook_mlp_out"
source_layers = 3
"""


@pytest.fixture(scope="module")
def project(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crosscoder that was trained and a transcoder that was converted, both harvested."""
    folder = tmp_path_factory.mktemp("layers")
    write_clt(folder / "clt", 64, 3)
    config = load(write_project(folder, tiny_llama, CROSSCODER.format(last=2) + CLT))
    terminal = Terminal(every_s=0)
    pipeline.train(config, None, terminal)
    pipeline.harvest(config, None, terminal)
    return folder


def test_a_list_of_hookpoints_and_source_layers_in_toml(project: Path) -> None:
    config = load(project / "c.toml")
    assert [sae.dictionary for sae in config.sae] == ["cross", "clt:0", "clt:1", "clt:2"]
    assert config.sae[0].hookpoint == "blocks.0.hook_resid_post + model.layers.2"
    assert config.sae[2].hookpoint == "blocks.1.hook_resid_mid" and config.sae[2].source_layer == 1
    assert config.sae[2].output_hookpoint == "blocks.1.hook_mlp_out + blocks.2.hook_mlp_out"
    assert [s.dictionary for s in pipeline.chosen_saes(config, "clt")] == ["clt:0", "clt:1", "clt:2"]
    text = (project / "c.toml").read_text(encoding="utf-8")
    for old, new, reason in (
        ("source_layers = 3", "source_layers = 3\nsource_layer = 1", "set one of the two"),
        ("source_layers = 3", "source_layers = 0", "source_layers"),
        ('output_hookpoint = "blocks.{}', 'output_hookpoint = "blocks.1', "needs `{}`, for the layer"),
        ('path = "clt"\n', "", r"set sae\.path too"),
        ('"blocks.0.hook_resid_post", ', '7, "a", ', r"sae\[0\]\.hookpoint\[0\] must be str"),
    ):  # fmt: skip
        assert old in text
        (project / "bad.toml").write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(InputError, match=reason):
            load(project / "bad.toml")


def test_a_trained_crosscoder_reads_both_layers_and_is_verified(project: Path) -> None:
    config = load(project / "c.toml")
    sae = load_sae(project / "sae" / "cross")
    assert (sae.d_in, sae.d_out, sae.k) == (128, 128, 6)
    assert sae.metadata["hook_name"] == "blocks.0.hook_resid_post + blocks.2.hook_resid_post"
    norms = torch.stack([sae.W_dec[:, :64].norm(dim=1), sae.W_dec[:, 64:].norm(dim=1)])
    assert bool((norms > 0).all())
    pipeline.verify(config, "cross", 40, Terminal(every_s=0))
    pipeline.verify(config, "clt", 40, Terminal(every_s=0))


def test_decoder_norms_are_in_the_store_and_on_the_page(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae = load_sae(project / "sae" / "cross")
    with Store.open(project / "s.duckdb", read_only=True) as store:
        rows = store.rows(
            "SELECT name, feature, part, n.hookpoint, n.model, norm, share FROM decoder_norms n "
            "JOIN dictionaries USING (dictionary_id) ORDER BY 1, 2, 3"
        )
    cross = [row for row in rows if row[0] == "cross"]
    assert len(cross) == 2 * 64 and {row[3] for row in cross} == {"model.layers.0", "model.layers.2"}
    assert cross[1][5] == pytest.approx(float(sae.W_dec[0, 64:].norm()), rel=1e-5)
    assert sum(row[6] for row in cross) == pytest.approx(64, rel=1e-4)
    assert {name: sum(row[0] == name for row in rows) for name in ("clt:0", "clt:1", "clt:2")} == {
        "clt:0": 3 * N_FEATURES, "clt:1": 2 * N_FEATURES, "clt:2": 0,
    }  # fmt: skip
    code, out, _ = run(capsys, "show", "clt:1:3", "--store", str(project / "s.duckdb"))
    assert code == 0 and "writes  model.layers.1.mlp " in out and ", model.layers.2.mlp " in out
    code, out, _ = run(capsys, "show", "cross:3", "--store", str(project / "s.duckdb"), "--json")
    assert code == 0 and [row["part"] for row in json.loads(out)["decoder_norms"]] == [0, 1]


def test_a_transcoder_is_evaluated_as_a_whole(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(project / "c.toml")
    options = EvaluateOptions(tokens=1500, splice_tokens=300, is_structural_only=True)
    rows = pipeline.evaluate(config, "clt", options, Terminal(every_s=0))
    whole = {(r["dictionary"], r["metric"]): r["value"] for r in rows if r["split"] is None}
    fvu = {whole[f"clt:{layer}", "clt_fvu"] for layer in range(3)}
    assert len(fvu) == 1, "the same for every source layer"
    assert ("clt:1", "fvu") not in whole and ("clt:1", "delta_ce") not in whole
    assert whole["clt:1", "l0"] > 0 and ("clt:1", "clt_delta_ce") in whole
    assert ("clt:0", "clt_fvu [model.layers.2.mlp]") in whole
    # by hand, on all windows of full length of the report text
    session = Session(config, Terminal(every_s=0))
    windows = [w for unit in session.units() for w in unit.windows if w.split == "report"]
    longest = max(len(w.token_ids) for w in windows)
    ids = torch.tensor([w.token_ids for w in windows if len(w.token_ids) == longest])
    loaded = session.model()
    read = [activations_at(loaded, session.points(s)[0], ids)[:, 1:].flatten(0, 1) for s in config.sae[1:]]
    out = [activations_at(loaded, Hookpoint(f"model.layers.{i}.mlp"), ids)[:, 1:].flatten(0, 1) for i in range(3)]
    error = variance = 0.0
    for target in range(3):
        y_hat = torch.zeros_like(out[target])
        for source in range(target + 1):
            sae = load_sae(project / "clt", "auto", source)
            y_hat += sae(read[source])[:, (target - source) * 64 : (target - source + 1) * 64]
        error += float((out[target] - y_hat).square().sum())
        variance += float((out[target] - out[target].mean(0)).square().sum())
    assert whole["clt:0", "clt_fvu"] == pytest.approx(error / variance, rel=0.15)
    alone = project / "alone.toml"
    text = (project / "c.toml").read_text(encoding="utf-8")
    one = (
        CLT.replace("{}", "1")
        .replace("source_layers = 3", "source_layer = 1")
        .replace('name = "clt"', 'name = "clt:1"')
    )
    one = one.replace('"blocks.1.hook_mlp_out"', '["blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"]')
    alone.write_text(text.replace(CLT, one), encoding="utf-8")
    capsys.readouterr()
    rows = pipeline.evaluate(load(alone), "clt:1", options, Terminal(every_s=0))
    assert not any(row["metric"].startswith(("clt_", "fvu")) for row in rows) and any(r["metric"] == "l0" for r in rows)
    assert "no [[sae]] table is for layer 0" in " ".join(capsys.readouterr().err.split())


def test_a_crosscoder_is_evaluated_labelled_and_steered(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, terminal = load(project / "c.toml"), Terminal(every_s=0)
    options = EvaluateOptions(tokens=1500, splice_tokens=300, is_structural_only=True)
    rows = {
        r["metric"]: r["value"] for r in pipeline.evaluate(config, "cross", options, terminal) if r["split"] is None
    }
    assert {"fvu [model.layers.0]", "fvu [model.layers.2]", "delta_ce"} <= rows.keys()
    assert 0 < rows["fvu [model.layers.0]"] < 2 and 0 < rows["fvu [model.layers.2]"] < 2
    pipeline.measure(config, "cross", Selection(), terminal)
    pipeline.explain(config, "cross", Selection(limit=8), terminal)
    with Store.open(project / "s.duckdb", read_only=True) as store:
        labels = store.rows("SELECT label FROM labels WHERE name = 'cross' AND label IS NOT NULL")
        promoted = store.rows(
            "SELECT count(*) FROM vocab_projection JOIN dictionaries USING (dictionary_id) WHERE name = 'cross'"
        )
    assert labels and promoted[0][0] == 2 * 5 * 64
    code, out, _ = run(capsys, "show", "cross:3", "--store", str(project / "s.duckdb"))
    assert code == 0 and "writes  model.layers.0 " in out and "promotes  " in out
    session = Session(config, terminal)
    sae = load_sae(project / "sae" / "cross")
    steerer = Steerer(session.model(), sae, *session.points(config.sae[0]), excluded_ids=(0,))
    ids = torch.tensor([[0, 5, 9, 12]])
    clean, strong = (steerer.logits(ids, torch.tensor([f]), torch.tensor([10.0])) for f in (-1, 3))
    assert (clean - strong).abs().max() > 1e-2 and torch.equal(clean[:, 0], strong[:, 0])


def test_a_crosscoder_of_two_models_is_trained_and_its_norms_kept(tiny_llama: Path, tmp_path: Path) -> None:
    saes = (
        '[[sae]]\nname = "pair"\nhookpoint = ["model.layers.1", "other/blocks.1.hook_resid_post"]\nd_sae = 32\nk = 4\n'
    )
    path = write_project(tmp_path, tiny_llama, saes, 1024, f'other = "{tiny_llama}"\n')
    config, terminal = load(path), Terminal(every_s=0)
    pipeline.train(config, None, terminal)
    pipeline.harvest(config, None, terminal)
    pipeline.verify(config, None, 20, terminal)
    with Store.open(tmp_path / "s.duckdb", read_only=True) as store:
        rows = store.rows("SELECT part, model, hookpoint, avg(share) FROM decoder_norms GROUP BY ALL ORDER BY 1")
        row = store.dictionary("pair")
    assert [(part, hookpoint) for part, _, hookpoint, _ in rows] == [(0, "model.layers.1"), (1, "model.layers.1")]
    assert " and " in str(row.revision) and row.d_in == 128
    text = path.read_text(encoding="utf-8").replace("other = ", "# other = ")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"name it with model\.other"):
        pipeline.verify(load(path), None, 20, terminal)


@pytest.mark.slow
def test_a_crosscoder_of_the_demo_model_explains_both_of_its_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(
        f'[model]\nname = "{data_folder() / "demo_model"}"\ndtype = "float32"\n'
        '[corpus]\nsource = "stdlib"\nmax_tokens = 200000\n'
        '[[sae]]\nname = "cross"\nhookpoint = ["model.layers.1", "model.layers.3"]\nd_sae = 512\nk = 16\n'
        'architecture = "batchtopk"\n[train]\ntokens = 200000\nlr = 3e-3\n'
        '[evidence]\nmethods = ["shape", "token_change"]\n'
        '[explain]\nexplainer = "patterns"\n[store]\npath = "s.duckdb"\n',
        encoding="utf-8",
    )
    config, terminal = load(tmp_path / "c.toml"), Terminal(every_s=0)
    pipeline.train(config, None, terminal)
    pipeline.harvest(config, None, terminal)
    pipeline.verify(config, None, 100, terminal)
    options = EvaluateOptions(tokens=20_000, splice_tokens=2000, is_structural_only=True)
    rows = {r["metric"]: r["value"] for r in pipeline.evaluate(config, None, options, terminal) if r["split"] is None}
    assert rows["fvu [model.layers.1]"] < 0.6 and rows["fvu [model.layers.3]"] < 0.6
    assert rows["loss_recovered_mean"] > 0.5 and rows["ce_with_error_term"] == pytest.approx(rows["ce_clean"], abs=1e-3)
    pipeline.measure(config, None, Selection(limit=4), terminal)
    pipeline.explain(config, None, Selection(limit=40), terminal)
    with Store.open(tmp_path / "s.duckdb", read_only=True) as store:
        assert store.rows("SELECT count(*) FROM labels WHERE label IS NOT NULL")[0][0] > 20
        assert store.rows("SELECT count(DISTINCT feature) FROM token_changes")[0][0] > 0
        shares = store.rows("SELECT part, avg(share) FROM decoder_norms GROUP BY 1 ORDER BY 1")
    assert 0.1 < shares[0][1] < 0.9
    code, out, _ = run(capsys, "show", "0", "--store", str(tmp_path / "s.duckdb"))
    assert code == 0 and "writes  model.layers.1 " in out and "promotes  " in out


def test_a_crosscoder_is_loaded_from_a_file_and_checked(project: Path, tiny_llama: Path) -> None:
    table = CROSSCODER.format(last=2).replace("d_sae = 64\nk = 6\n", f'path = "{project / "sae" / "cross"}"\n')
    text = (project / "c.toml").read_text(encoding="utf-8")
    begin, end = text.index("[[sae]]"), text.index("[train]")
    (project / "loaded.toml").write_text((text[:begin] + table + text[end:]).replace("s.duckdb", "loaded.duckdb"))
    config, terminal = load(project / "loaded.toml"), Terminal(every_s=0)
    pipeline.harvest(config, None, terminal)
    pipeline.verify(config, "cross", 10, terminal)


def test_a_source_layer_has_no_control(project: Path) -> None:
    config = load(project / "c.toml")
    with pytest.raises(InputError, match="clt:0 is one source layer of a cross-layer transcoder"):
        control_configs(config, [config.sae[1]], ["random_model"], Terminal(every_s=0))
