"""Loads a causal language model and its tokenizer from the Hugging Face hub, its cache, or a folder.

Code that comes with a model is never run: trust_remote_code stays False, and the kernels of attention and experts are
transformers' own whatever config.json names, since a name there makes transformers fetch and run a kernel of the hub.
With HF_HUB_OFFLINE=1 only the cache is used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from autointerp.config import ModelConfig
from autointerp.corpus.token_text import tokenizer_sha256
from autointerp.errors import DamagedError, InputError, OutOfMemoryError
from autointerp.model.input_limits import check_vocabulary

FINGERPRINT_BYTES = 1_000_000
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".json")
DAMAGED_CONFIG = (
    OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError,
    AssertionError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises for a folder or a hub model that it cannot make a model or a tokenizer of."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A frozen model in eval mode, with all that its provenance row needs."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    """The device that input ids go to."""
    dtype: torch.dtype
    name: str
    revision: str
    """Commit hash of a hub model; `local:` and a hash of the files for a folder; for random weights `random:`, and with
    trained embeddings the revision that these are of."""
    tokenizer_sha256: str
    looks_ahead: bool = False
    """Whether a token's activations depend on what stands to its right, padding included (BERT's do): then batches get
    an attention mask, and the model predicts no next token. padding.py finds out."""
    other: LoadedModel | None = None
    """A second model that reads the same tokens, for crosscoders of two models."""

    @property
    def pad_id(self) -> int:
        """The id that pads a batch on the right. Causal attention never reads it and a mask hides it, so any valid id
        will do; the model's own padding id would only make transformers warn about a missing attention mask."""
        return 1 if getattr(self.model.config.get_text_config(), "pad_token_id", None) == 0 else 0


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises InputError when it has none."""
    _check_name(config)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            config.name, revision=config.revision or "main", trust_remote_code=False
        )
    except DAMAGED_CONFIG as error:
        raise InputError(_not_loaded(config, "tokenizer", error)) from error
    return tokenizer


def load_model(config: ModelConfig) -> LoadedModel:
    """The model on its device, in eval mode, without gradients.

    Raises InputError when there is no such model, device or package, DamagedError when weights are missing or cannot
    be read, MismatchError when the tokenizer is another model's, and OutOfMemoryError when the model does not fit on
    the device.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    tokenizer = load_tokenizer(config)
    options: dict[str, Any] = {"dtype": dtype, "revision": config.revision or "main", "trust_remote_code": False}
    placed = _placement(config, device, dtype, options)
    try:
        if config.random_weights is None:
            model, missing = _with_trained_weights(config, options)
            revision = _revision(config, model)
        else:
            model, missing, revision = _with_random_weights(config, dtype, options)
        if not placed:
            model.to(device)  # type: ignore[arg-type]  # transformers wraps it and loses its type
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"model {config.name} in {dtype} does not fit on {device}; use model.dtype, model.quantization or "
            "model.device_map"
        ) from error
    except SafetensorError as error:
        raise DamagedError(f"the weights of model {config.name} cannot be read ({error}); fetch them again") from error
    except DAMAGED_CONFIG as error:
        raise InputError(_not_loaded(config, "model", error)) from error
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise DamagedError(f"the weights of model {config.name} do not fit its config.json: {reason}") from error
    if missing:
        # transformers would use random numbers instead.
        raise DamagedError(
            f"model {config.name} lacks {len(missing)} weights that its config.json asks for ({', '.join(missing[:3])}"
            "...); fetch it again, or name the model it belongs to"
        )
    check_vocabulary(model, tokenizer, config.name)
    model.eval()
    model.requires_grad_(False)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=next(model.get_input_embeddings().parameters()).device,
        dtype=dtype,
        name=config.name,
        revision=revision,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
    )


def _with_trained_weights(config: ModelConfig, options: dict[str, Any]) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the weights that its files lack."""
    # The type says a model, but with output_loading_info it is a pair.
    with no_progress_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config.name,
            config=read_settings(config.name, options["revision"]),
            output_loading_info=True,
            **options,
        )
    return loaded[0], sorted(loaded[1]["missing_keys"])


def _with_random_weights(
    config: ModelConfig, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[PreTrainedModel, list[str], str]:
    """The architecture with weights as its own code initialises them, which depend only on seed and configuration; the
    weights that the model's files lack, if they are read; and the revision. With `keep_embeddings` the embeddings are
    then replaced by the trained ones, and all else is as without."""
    settings = read_settings(config.name, config.revision or "main")
    with torch.random.fork_rng():
        torch.manual_seed(config.random_weights or 0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    sha256 = hashlib.sha256(model.config.to_json_string().encode()).hexdigest()
    revision = f"random:{config.random_weights}:{sha256}"
    if not config.keep_embeddings:
        return model, [], revision
    trained, missing = _with_trained_weights(config, options)
    _copy_embeddings(trained, model)
    return model, missing, f"{revision}:embeddings of {_revision(config, trained)}"


@torch.no_grad()
def _copy_embeddings(trained: PreTrainedModel, model: PreTrainedModel) -> None:
    """Give `model` every embedding of `trained`, an equal model but for its weights: the tables in which tokens are
    looked up and, where they are learned, positions. An unembedding that is tied to one is it, and so comes along."""
    for name, module in trained.named_modules():
        if isinstance(module, torch.nn.Embedding):
            held = model.get_submodule(name)
            assert isinstance(held, torch.nn.Embedding), name
            held.weight.copy_(module.weight)


def read_settings(name: str, revision: str = "main") -> PreTrainedConfig:
    """A model's config.json, with no choice of kernels. Raises what transformers raises."""
    settings: PreTrainedConfig = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    _choose_no_kernels(settings)
    return settings


def _choose_no_kernels(settings: PreTrainedConfig) -> None:
    """Leave the choice of attention and expert kernels, of the parts of the model too, to transformers' defaults."""
    settings._attn_implementation = None
    settings._experts_implementation = None
    for part in list(vars(settings).values()):
        if isinstance(part, PreTrainedConfig):
            _choose_no_kernels(part)


def resolve_device(name: str) -> torch.device:
    """The torch device for model.device. `auto` takes cuda, else mps, else cpu. Raises InputError for a device that
    this machine does not have."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"model.device = {name!r} cannot be used here: {reason}. Use auto or cpu") from None
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype for model.dtype. `auto` takes bfloat16 where the device supports it, else float32, since float16
    overflows in too many models."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if device.type == "mps" and torch.backends.mps.is_macos_or_newer(14, 0):
        return torch.bfloat16
    return torch.float32


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Suppress the bar that transformers draws while it loads weights, in log files too."""
    if not hf_logging.is_progress_bar_enabled():
        yield
        return
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.enable_progress_bar()


def _placement(config: ModelConfig, device: torch.device, dtype: torch.dtype, options: dict[str, Any]) -> bool:
    """Add the options by which transformers places the weights itself. Returns whether it does."""
    if config.quantization != "none":
        _require("bitsandbytes", f"model.quantization = {config.quantization!r}")
        _require("accelerate", f"model.quantization = {config.quantization!r}")
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=config.quantization == "8bit",
            load_in_4bit=config.quantization == "4bit",
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = config.device_map or {"": str(device)}
    elif config.device_map is not None:
        _require("accelerate", f"model.device_map = {config.device_map!r}")
        options["device_map"] = config.device_map
    return "device_map" in options


def _require(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{what} needs the package {package}, which is not installed; pip install {package}")


def _check_name(config: ModelConfig) -> None:
    if not config.name:
        raise InputError("model.name is not set; name a Hugging Face model or a folder that holds one")
    path = Path(config.name).expanduser()
    looks_like_path = path.is_absolute() or config.name.startswith((".", "~")) or config.name.count("/") > 1
    if looks_like_path and not path.is_dir():
        raise InputError(f"model.name: there is no folder {config.name!r}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"model.name: the folder {config.name!r} holds no config.json, so it is not a Hugging Face model"
        )


def _not_loaded(config: ModelConfig, what: str, error: Exception) -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    hint = (
        "HF_HUB_OFFLINE is set, so only folders and models already in the cache can be used"
        if offline and not Path(config.name).is_dir()
        else "check model.name and model.revision, the network, and HF_TOKEN for gated models"
    )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the {what} of model {config.name!r} cannot be loaded: {reason} ({hint})"


def _revision(config: ModelConfig, model: PreTrainedModel) -> str:
    """The revision of the trained weights."""
    folder = Path(config.name)
    if folder.is_dir():
        return f"local:{folder_sha256(folder)}"
    return str(getattr(model.config, "_commit_hash", None) or config.revision or "unknown")


def folder_sha256(folder: Path) -> str:
    """The sha256, in hex, over names, sizes, and first and last MB of the weight and JSON files: cheap for any
    model."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if not (path.is_file() and path.suffix in WEIGHT_SUFFIXES):
            continue
        with path.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(0)
            digest.update(json.dumps([path.name, size]).encode())
            digest.update(handle.read(FINGERPRINT_BYTES))
            handle.seek(max(FINGERPRINT_BYTES, size - FINGERPRINT_BYTES))
            digest.update(handle.read(FINGERPRINT_BYTES))
    return digest.hexdigest()
