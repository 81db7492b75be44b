"""Sentence embeddings from a folder in sentence-transformers' layout, read with transformers alone.

    modules.json           Transformer, Pooling and perhaps Normalize, in this order
    sentence_bert_config.json   max_seq_length, do_lower_case
    1_Pooling/config.json  mean over the tokens, or the first token (cls)

A prompt that such a folder may name for queries is not added: what is to be put before a text stands in the text.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from autointerp.errors import DamagedError, InputError
from autointerp.model.load import DAMAGED_CONFIG, no_progress_bar, read_settings
from autointerp.model.token_batches import Batch, Halving, make_batches
from autointerp.records import Window
from autointerp.tasks import NotMeasured, Similarity

POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


@dataclass(slots=True)
class Cosines:
    """Cosines of one query with its texts, -1 to 1."""

    values: list[float]
    n_forwards: int = 0
    """Texts that the model read; one that several ask for counts for the first of them."""
    n_tokens: int = 0


class SentenceEncoder:
    """A sentence-transformers model: Transformer and Pooling. A Normalize changes no cosine."""

    def __init__(self, name: str, device: torch.device) -> None:
        """`name`: local:FOLDER, or local:PACKAGE for an installed package that carries such a folder.

        Raises InputError: no such folder or package, a layout or a pooling that is not read; DamagedError: weights
        that are missing or cannot be read.
        """
        self.folder = encoder_folder(name)
        self.pooling = _pooling(self.folder)
        self.device, self.halving = device, Halving()
        self.tokenizer, self.model = _loaded(self.folder)
        self.model.to(device)  # type: ignore[arg-type]  # wrapped by transformers without its type
        settings = _json(self.folder / "sentence_bert_config.json", {})
        self.lower = bool(settings.get("do_lower_case", False))
        positions = int(getattr(self.model.config, "max_position_embeddings", 512))
        self.max_tokens = min(int(settings.get("max_seq_length") or self.tokenizer.model_max_length), positions)

    def embed(self, texts: Sequence[str], batch_tokens: int) -> tuple[Tensor, list[int]]:
        """(float64 [n, d] vectors of length 1 on CPU, not finite where the model's are not; tokens read per text).

        Texts are cut at the model's longest. Raises errors.OutOfMemoryError where halving the batches no longer helps.
        """
        given = [text.strip().lower() if self.lower else text.strip() for text in texts]
        encoded: Any = self.tokenizer(
            given, truncation=True, max_length=self.max_tokens, padding=False, return_attention_mask=False
        )
        windows = [Window("", 0, "report", ids, 0) for ids in encoded["input_ids"]]
        result = torch.full((len(texts), self.model.config.hidden_size), torch.nan, dtype=torch.float64)
        for batch in make_batches(windows, batch_tokens, int(self.tokenizer.pad_token_id or 0)):
            for part, vectors in self.halving.run(batch.to(self.device), self._pooled):
                result[part.indices] = vectors
        return result, [len(window.token_ids) for window in windows]

    def _pooled(self, batch: Batch) -> Tensor:
        mask = torch.arange(batch.ids.shape[1], device=batch.ids.device) < batch.lengths[:, None]
        with torch.inference_mode():
            states = self.model(input_ids=batch.ids, attention_mask=mask.long()).last_hidden_state.double()
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            pooled = torch.where(mask[..., None], states, 0).sum(1) / mask.sum(1, keepdim=True)
        return (pooled / pooled.norm(dim=-1, keepdim=True)).cpu()


def similarities(
    encoder: SentenceEncoder, asked: Sequence[Similarity], batch_tokens: int
) -> list[Cosines | NotMeasured]:
    """The cosine of each query with its texts; a text that several tasks ask for is read once. NotMeasured (nonfinite)
    where a vector is not finite or zero."""
    texts = list(dict.fromkeys(text for one in asked for text in (one.query, *one.texts)))
    place = {text: i for i, text in enumerate(texts)}
    vectors, n_tokens = encoder.embed(texts, batch_tokens) if texts else (torch.zeros(0, 1), [])
    results: list[Cosines | NotMeasured] = []
    paid: set[int] = set()
    for one in asked:
        own = [place[text] for text in one.texts]
        found = Cosines((vectors[own] @ vectors[place[one.query]]).clamp(-1, 1).tolist())
        new = {place[one.query], *own} - paid
        paid |= new
        found.n_forwards, found.n_tokens = len(new), sum(n_tokens[i] for i in new)
        good = all(map(math.isfinite, found.values))
        results.append(found if good else NotMeasured("nonfinite", "a text's embedding is zero, NaN or infinite"))
    return results


def encoder_folder(name: str) -> Path:
    """The folder that `local:...` names: a path, or the one folder with a modules.json in an installed package (which
    is not imported). Raises InputError."""
    given = name.removeprefix("local:")
    folder = Path(given).expanduser()
    if folder.is_dir():
        return folder
    package = given.replace("-", "_")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # __main__ and the like
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{name!r}: there is neither a folder nor an installed package {given!r}")
    roots = [Path(root) for root in spec.submodule_search_locations]
    inside = [path for root in roots for path in (root, *sorted(root.iterdir())) if (path / "modules.json").is_file()]
    if len(inside) != 1:
        raise InputError(f"{name!r}: the package {package} holds {len(inside)} folders with a modules.json, not one")
    return inside[0]


def _json(path: Path, default: Any = None) -> Any:
    if default is not None and not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; the folder is no sentence-transformers model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error


def _pooling(folder: Path) -> str:
    """mean or cls. Raises InputError where the folder asks for anything else."""
    modules = _json(folder / "modules.json")
    try:
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        paths = [str(module["path"]) for module in modules]
    except (TypeError, KeyError) as error:
        raise InputError(f"{folder / 'modules.json'} does not list modules with type and path") from error
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or paths[0]:
        raise InputError(
            f"{folder} is made of {', '.join(kinds) or 'nothing'}; only a Transformer at its root, a Pooling and a "
            "Normalize are read"
        )
    settings = _json(folder / paths[1] / "config.json")
    chosen = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    found = [name for name, key in POOLINGS.items() if chosen == [key]]
    if not chosen and settings.get("pooling_mode") in POOLINGS:
        found = [settings["pooling_mode"]]
    if not found:
        raise InputError(f"{folder} pools by {', '.join(chosen) or 'an unknown mode'}; only mean and cls are read")
    return found[0]


def _loaded(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # no table of the weights that a folder has too many or does without
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        # Typed as a model, but with output_loading_info it is a pair.
        with no_progress_bar():
            loaded: Any = AutoModel.from_pretrained(
                str(folder),
                config=read_settings(str(folder)),
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise DamagedError(f"the weights at {folder} cannot be read ({error}); fetch them again") from error
    except DAMAGED_CONFIG as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the embedding model at {folder} cannot be loaded: {reason}") from error
    finally:
        hf_logging.set_verbosity(level)
    model: PreTrainedModel = loaded[0]
    # The pooler on top of the first token is another head, which no Pooling module reads.
    missing = sorted(key for key in loaded[1]["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise DamagedError(
            f"the embedding model at {folder} lacks {len(missing)} weights ({', '.join(missing[:3])}...)"
        )
    model.eval()
    model.requires_grad_(False)
    return tokenizer, model
