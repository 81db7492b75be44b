"""Padding: whatever a model looks at, a window's activations are those of the window alone, or the model is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
import transformers
from support.commands import run, write_config, write_corpus
from support.small_models import VOCAB, byte_level_tokenizer, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from autointerp.config import ModelConfig
from autointerp.errors import InputError
from autointerp.evaluate.splice import splice_metrics
from autointerp.measure.language import Continuation, mean_nll
from autointerp.model.hooks import Hookpoint, activations_at, hidden_size_at, model_inputs
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.padding import checked
from autointerp.model.token_batches import Halving, activation_batches
from autointerp.records import Window
from autointerp.sae.formats import save_saelens
from autointerp.sae.sae import Sae
from autointerp.stages import session
from autointerp.steer.steering import Steerer

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 128, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
GQA: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": None}
BOTH_WAYS: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "bert": (lambda: transformers.BertConfig(**SIZES, pad_token_id=0), "bert.encoder.layer.1"),
    "roberta": (lambda: transformers.RobertaConfig(**SIZES, pad_token_id=1), "roberta.encoder.layer.0"),
    "roformer": (lambda: transformers.RoFormerConfig(**SIZES), "roformer.encoder.layer.1"),
    "gemma3, bidirectional": (
        lambda: transformers.Gemma3TextConfig(
            **GQA, use_bidirectional_attention=True, sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "model.layers.1",
    ),
}  # fmt: skip
CAUSAL: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=128),
    "bert as a decoder": lambda: transformers.BertConfig(**SIZES, is_decoder=True),
    "gemma3, sliding": lambda: transformers.Gemma3TextConfig(
        **GQA, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "mixtral": lambda: transformers.MixtralConfig(**GQA, num_local_experts=4, num_experts_per_tok=2),
    "mamba": lambda: transformers.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
}


def loaded_as(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> LoadedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    return LoadedModel(model, byte_level_tokenizer(), torch.device("cpu"), dtype, "tiny", "r", "t")


def alone(loaded: LoadedModel, path: str, ids: list[int]) -> Tensor:
    """The output [T, d] of the module at `path`, from a plain run of the whole model on this text and nothing else."""
    found: list[Any] = []
    handle = loaded.model.get_submodule(path).register_forward_hook(lambda _, args, output: found.append(output))
    with torch.no_grad():
        loaded.model(torch.tensor([ids]), use_cache=False)
    handle.remove()
    output = found[0]
    return (output if isinstance(output, Tensor) else output[0])[0]


def windows(*lengths: int) -> list[Window]:
    return [Window("", 0, "explain", [3 + (7 * i + j * j) % 500 for j in range(n)]) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_a_model_that_looks_both_ways_reads_each_window_as_if_alone(name: str) -> None:
    config, path = BOTH_WAYS[name]
    loaded = checked(loaded_as(config()), 40, 8192)
    assert loaded.looks_ahead
    point, texts = Hookpoint(path), windows(40, 21, 33, 25, 38)
    parts = list(activation_batches(loaded, point, texts, 400))
    assert max(len(batch.windows) for batch, _ in parts) > 2, "several share a batch"
    unmasked = activations_at(loaded_as(config()), point, parts[0][0].ids)
    for batch, acts in parts:
        for row, window in enumerate(batch.windows):
            expected = alone(loaded, path, list(window.token_ids))
            torch.testing.assert_close(acts[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
    batch = parts[0][0]
    last = alone(loaded, path, list(batch.windows[-1].token_ids))
    assert (unmasked[-1, : len(last)] - last).abs().max() > 0.01, "without a mask, padding changes them"
    with pytest.raises(ValueError, match="needs the lengths of its rows"):
        activations_at(loaded, point, batch.ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_short_float_rounds_away_is_found_all_the_same(dtype: torch.dtype) -> None:
    """Untrained weights attend to everything alike, so padding changes little: less than another kernel might."""
    config = transformers.BertConfig(**{**SIZES, "initializer_range": 0.02}, pad_token_id=0)
    assert checked(loaded_as(config, dtype), 40, 8192).looks_ahead


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_gets_no_mask(name: str, dtype: torch.dtype) -> None:
    loaded = checked(loaded_as(CAUSAL[name](), dtype), 40, 8192)
    assert not loaded.looks_ahead
    assert set(model_inputs(loaded, torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 1]))) == {
        "input_ids", "use_cache",
    }  # fmt: skip


def test_a_model_that_no_mask_helps_is_refused() -> None:
    scaled = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    phi = transformers.Phi3Config(
        **{**SIZES, "pad_token_id": None}, original_max_position_embeddings=30,
        rope_parameters={**scaled, "rope_theta": 10_000.0, "original_max_position_embeddings": 30},
    )  # fmt: skip
    loaded = loaded_as(phi)
    assert not checked(loaded, 30, 8192).looks_ahead
    with pytest.raises(InputError, match=r"depend on what stands beside .* lower corpus\.context_length"):
        checked(loaded, 48, 8192)  # beyond 30 tokens the longest row scales the positions of all


def test_a_model_that_cannot_be_run_on_ids_alone_is_refused() -> None:
    config = transformers.ProphetNetConfig(
        vocab_size=VOCAB, hidden_size=32, num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=2,
        num_decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_position_embeddings=128,
    )  # fmt: skip
    with pytest.raises(InputError, match="cannot read a batch of plain token ids"):
        checked(loaded_as(config), 40, 8192)


def test_a_module_that_swaps_rows_and_tokens_is_refused() -> None:
    config = transformers.XLNetConfig(vocab_size=VOCAB, d_model=32, n_layer=2, n_head=2, d_inner=48)
    loaded = checked(loaded_as(config), 40, 8192)
    assert loaded.looks_ahead
    with pytest.raises(InputError, match=r"of shape \(3, 2, 32\), not one vector for each of \(2, 3\) tokens"):
        hidden_size_at(loaded, Hookpoint("transformer.layer.0"))


def test_nothing_that_predicts_a_next_token_is_measured_on_a_model_that_sees_it() -> None:
    config, path = BOTH_WAYS["bert"]
    loaded, sae, point = checked(loaded_as(config()), 40, 8192), random_sae(), Hookpoint(path)
    with pytest.raises(InputError, match="the probability of a text lets model tiny predict a next token"):
        mean_nll(loaded, [Continuation([1], [2, 3])], 100, Halving())
    with pytest.raises(InputError, match="steering lets model tiny predict a next token"):
        Steerer(loaded, sae, point)
    with pytest.raises(InputError, match="the loss lets model tiny predict a next token"):
        splice_metrics(loaded, sae, point, None, windows(12), [], 100)


# --- a whole harvest -------------------------------------------------------------------------------------------------


def random_sae() -> Sae:
    generator = torch.Generator().manual_seed(1)
    w_dec = torch.nn.functional.normalize(torch.randn(24, 32, generator=generator), dim=1)
    return Sae(w_dec.T.clone(), torch.zeros(24), w_dec, torch.zeros(32), k=4)


@pytest.fixture(scope="module")
def bert_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, (config, path) = tmp_path_factory.mktemp("bert"), BOTH_WAYS["bert"]
    save_model(folder / "model", config())
    save_saelens(random_sae(), folder / "sae", {})
    write_corpus(folder / "texts")
    written = write_config(folder, folder / "model", path, corpus=str(folder / "texts"))
    text = written.read_text().replace("d_sae = 64\nk = 4", f"path = {str(folder / 'sae')!r}\nreading = 'as read'")
    written.write_text(text.replace("[[sae]]", "max_tokens = 4000\n[[sae]]"))
    return folder


def contexts_off(model: Path, project: Path) -> tuple[int, int]:
    """(stored contexts, those that are not what plain transformers and the SAE give for their window)."""
    loaded = load_model(ModelConfig(name=str(model), device="cpu", dtype="float32"))
    sae, special = random_sae(), set(loaded.tokenizer.all_special_ids)
    with duckdb.connect(str(project / "tiny.duckdb"), read_only=True) as con:
        con.execute(f"ATTACH '{project}/tiny.evidence.duckdb' AS evidence (READ_ONLY)")
        rows = con.execute(
            """SELECT feature, c."offset", activations, w.token_ids, w.n_prefix
               FROM contexts c JOIN evidence.windows w USING (window_id)"""
        ).fetchall()
    known: dict[tuple[int, ...], Tensor] = {}
    n_off = 0
    for feature, offset, stored, ids, n_prefix in rows:
        if tuple(ids) not in known:
            known[tuple(ids)] = sae.encode(alone(loaded, BOTH_WAYS["bert"][1], ids))
        column = known[tuple(ids)][:, feature].clone()
        column[[p < n_prefix or i in special for p, i in enumerate(ids)]] = 0
        expected, found = column[offset : offset + len(stored)], torch.tensor(stored)
        n_off += bool((expected - found).abs().max() > 1e-3 * max(1e-3, float(found.max())))
    return len(rows), n_off


@pytest.mark.slow
def test_a_harvest_stores_what_the_model_makes_of_each_window_alone(
    bert_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(bert_project / "autointerp.toml")
    code, _, err = run(capsys, "harvest", "-c", config)
    assert code == 0, err
    assert "reads the tokens on both sides of a token: its batches get an attention mask" in err
    n_contexts, n_off = contexts_off(bert_project / "model", bert_project)
    assert n_contexts > 300 and n_off == 0
    code, out, err = run(capsys, "verify", "-c", config, "--sample", "100")
    assert code == 0, out + err


@pytest.mark.slow
def test_verify_finds_activations_that_padding_has_changed(
    bert_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it would pad in the same way: its batches are not those of the harvest."""
    monkeypatch.setattr(session, "checked", lambda loaded, *_: loaded)
    config = tmp_path / "autointerp.toml"
    config.write_text((bert_project / "autointerp.toml").read_text())
    assert run(capsys, "harvest", "-c", str(config))[0] == 0
    n_contexts, n_off = contexts_off(bert_project / "model", tmp_path)
    assert 0 < n_off < n_contexts
    code, out, err = run(capsys, "verify", "-c", str(config), "--sample", "1000")
    assert code == 1, out + err
    assert "differ from the model's" in err
