"""Loading: what comes back, and an error with a next step for all that can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autointerp.config import ModelConfig
from autointerp.corpus.token_text import tokenizer_sha256
from autointerp.errors import DamagedError, InputError
from autointerp.model.load import load_model, load_tokenizer, resolve_device, resolve_dtype


def test_a_folder_is_loaded_frozen_on_the_cpu(tiny_llama: Path) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_llama), device="cpu"))
    assert (loaded.device, loaded.dtype) == (torch.device("cpu"), torch.float32)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer_sha256 == tokenizer_sha256(load_tokenizer(ModelConfig(name=str(tiny_llama))))
    assert loaded.model.lm_head.weight.data_ptr() != loaded.model.get_input_embeddings().weight.data_ptr()
    assert loaded.pad_id == 0


def test_dtype_is_as_asked(tiny_gpt2: Path) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_gpt2), dtype="bfloat16", device="cpu"))
    assert loaded.dtype == torch.bfloat16 == next(loaded.model.parameters()).dtype
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32


def test_the_revision_of_a_folder_follows_its_files(tiny_gpt2: Path, tmp_path: Path) -> None:
    def revision(folder: Path) -> str:
        return load_model(ModelConfig(name=str(folder), device="cpu")).revision

    copy = Path(shutil.copytree(tiny_gpt2, tmp_path / "copy"))
    assert revision(copy) == revision(tiny_gpt2)
    assert revision(copy).startswith("local:")
    weights = {name: tensor.clone() for name, tensor in load_file(copy / "model.safetensors").items()}
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert revision(copy) != revision(tiny_gpt2)


def test_random_weights_are_a_function_of_their_seed(tiny_llama: Path) -> None:
    ids = torch.arange(8).view(1, 8)
    before = torch.random.get_rng_state()
    first, again, other = (load_model(ModelConfig(name=str(tiny_llama), random_weights=seed)) for seed in (7, 7, 8))
    trained = load_model(ModelConfig(name=str(tiny_llama)))
    assert torch.equal(torch.random.get_rng_state(), before)
    logits = [loaded.model(ids).logits for loaded in (first, again, other, trained)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2]) and not torch.allclose(logits[0], logits[3])
    assert first.revision == again.revision != other.revision
    assert first.revision.startswith("random:7:") and not first.model.training


@pytest.mark.parametrize("model", ["tiny_gpt2", "tiny_llama"])
def test_random_weights_keep_the_trained_embeddings(model: str, request: pytest.FixtureRequest) -> None:
    """Those of positions too, and a tied unembedding; the rest is what the seed gives without them."""
    name = str(request.getfixturevalue(model))
    trained = load_model(ModelConfig(name=name, device="cpu"))
    random = load_model(ModelConfig(name=name, device="cpu", random_weights=7))
    kept = load_model(ModelConfig(name=name, device="cpu", random_weights=7, keep_embeddings=True))
    tables = {n for n, module in trained.model.named_modules() if isinstance(module, torch.nn.Embedding)}
    assert len(tables) == (2 if model == "tiny_gpt2" else 1)
    of = {loaded: dict(loaded.model.named_parameters(remove_duplicate=False)) for loaded in (trained, random, kept)}
    for part, values in of[kept].items():
        is_kept = part.removesuffix(".weight") in tables or (part == "lm_head.weight" and model == "tiny_gpt2")
        assert torch.equal(values, of[trained if is_kept else random][part]), part
        assert not is_kept or not torch.equal(values, of[random][part]), part
    assert kept.revision == f"{random.revision}:embeddings of {trained.revision}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": ""}, "model.name is not set"),
        ({"name": "/nowhere/model"}, "no folder '/nowhere/model'"),
        ({"name": "nobody/no-such-model"}, "HF_HUB_OFFLINE is set"),
        ({"device": "cuda:7"}, "device = 'cuda:7' cannot be used"),
        ({"device": "abacus"}, "device = 'abacus' cannot be used"),
        ({"quantization": "4bit"}, "needs the package bitsandbytes"),
        ({"device_map": "auto"}, "needs the package accelerate"),
    ],
)
def test_what_cannot_be_loaded_is_an_input_error(tiny_gpt2: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(ModelConfig(**{"name": str(tiny_gpt2), "device": "cpu", **config}))


def test_a_folder_without_a_model_is_an_input_error(tmp_path: Path, tiny_gpt2: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(ModelConfig(name=str(tmp_path)))
    copy = Path(shutil.copytree(tiny_gpt2, tmp_path / "copy"))
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(ModelConfig(name=str(copy), device="cpu"))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, tiny_gpt2: Path) -> None:
    copy = Path(shutil.copytree(tiny_gpt2, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.Odd"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(ModelConfig(name=str(copy), device="cpu"))
    assert not (tmp_path / "ran").exists()


def test_damaged_weights_are_not_replaced_by_random_ones(tmp_path: Path, tiny_llama: Path) -> None:
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not mapped from the file
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedError, match="cannot be read"):
        load_model(ModelConfig(name=str(copy), device="cpu"))
    save_file({k: v for k, v in weights.items() if "layers.1.mlp" not in k}, path, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match=r"lacks 3 weights.*layers\.1\.mlp"):
        load_model(ModelConfig(name=str(copy), device="cpu"))
    weights["model.norm.weight"] = weights["model.norm.weight"][:10].clone()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match="do not fit"):
        load_model(ModelConfig(name=str(copy), device="cpu"))


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


# --- what a config.json asks for -------------------------------------------------------------------------------------


KERNEL = "somebody/some-kernel"


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels of the hub that transformers has asked for."""
    from transformers import modeling_utils

    asked: list[str] = []
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda name, **_: asked.append(name))
    return asked


@pytest.mark.parametrize("random_weights", [None, 3])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_config_that_names_a_kernel_fetches_none(
    tiny_llama: Path, tmp_path: Path, asked_for: list[str], key: str, random_weights: int | None
) -> None:
    plain = load_model(ModelConfig(name=str(tiny_llama), device="cpu", random_weights=random_weights))
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, key: KERNEL}))
    loaded = load_model(ModelConfig(name=str(copy), device="cpu", random_weights=random_weights))
    assert not asked_for
    ids = torch.arange(8).view(1, 8)
    assert torch.equal(loaded.model(ids).logits, plain.model(ids).logits)
    assert loaded.model.config._attn_implementation == "sdpa"


def test_the_parts_of_a_model_name_no_kernel_either(tmp_path: Path, asked_for: list[str]) -> None:
    from support.small_models import VOCAB, save_model
    from transformers import Gemma3Config

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": VOCAB, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    folder = save_model(tmp_path / "model", Gemma3Config(text_config=text, vision_config=vision))
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["_attn_implementation"] = settings["vision_config"]["attn_implementation"] = KERNEL
    (folder / "config.json").write_text(json.dumps(settings))
    load_model(ModelConfig(name=str(folder), device="cpu"))
    assert not asked_for


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": "many"},
        {"hidden_size": -3},
        {"hidden_act": "__import__('os')"},
        {"_experts_implementation": KERNEL, "rope_parameters": 7},
        {"model_type": None},
    ],
)
def test_a_config_that_makes_no_model_is_an_input_error(
    tiny_llama: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    (copy / "config.json").write_text(json.dumps({**json.loads((copy / "config.json").read_text()), **change}))
    with pytest.raises((InputError, DamagedError), match="cannot be loaded|do not fit its config.json"):
        load_model(ModelConfig(name=str(copy), device="cpu", dtype="float32"))
