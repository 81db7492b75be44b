"""A model's tokenizer without the model and without torch, for commands that only read text.

It is read from the files tokenizer.json and tokenizer_config.json by the package `tokenizers` alone. For some models
transformers makes another tokenizer of these files than they hold. So what is read is compared with the tokenizer that
a dictionary was harvested with, by its hash. Where they differ, or there is no tokenizer.json, transformers reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autointerp.config import ModelConfig
from autointerp.corpus.token_text import tokenizer_sha256
from autointerp.errors import InputError, MismatchError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerBase

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The roles that tokenizer_config.json and special_tokens_map.json may give to a token. Tokens that are special without
a role are known by tokenizer.json."""
_LARGEST_FILE = 512 * 1024 * 1024


def harvest_tokenizer(config: ModelConfig, sha256: str, needs_template: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of the configured model, which has to be the one with this hash (see tokenizer_sha256).

    `needs_template`: whether its chat template will be asked for, which transformers alone can render. Raises
    InputError where it cannot be read, and MismatchError where it is another tokenizer.
    """
    if not config.name:
        raise InputError("model.name is not set; name the Hugging Face model, or folder, whose tokenizer cuts the text")
    found = None if needs_template else _by_itself(config)
    if found is not None and tokenizer_sha256(found) == sha256:
        return found
    whole = _by_transformers(config, needs_template, found is not None)
    if tokenizer_sha256(whole) != sha256:
        raise MismatchError(
            f"the tokenizer of model {config.name!r} is not the one that the dictionary was harvested with, so its "
            "rules would be applied to other tokens; set model.name and model.revision to the dictionary's model"
        )
    return whole


def _can_read_files() -> bool:
    try:
        import tokenizers  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _by_itself(config: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer as its files hold it; None where there are none that can be read so."""
    path = _file_of(config, "tokenizer.json") if _can_read_files() else None
    if path is None:
        return None
    import tokenizers

    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path} has more than {_LARGEST_FILE:,} bytes, so it is no tokenizer")
        backend = tokenizers.Tokenizer.from_file(str(path))
    except InputError:
        raise
    except Exception as error:  # the package raises plain Exceptions
        raise InputError(f"{path} is not a tokenizer: {str(error)[:200]}; fetch the model again") from None
    return cast("PreTrainedTokenizerBase", TokenizerFile(backend, _special_tokens(config), config.name))


def _by_transformers(config: ModelConfig, needs_template: bool, has_file: bool) -> PreTrainedTokenizerBase:
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        extra = "gpu"
        if needs_template:
            why = f"the chat template of model {config.name!r} has to be rendered"
        elif has_file:
            why = f"transformers makes another tokenizer of the files of model {config.name!r} than they hold"
        elif _can_read_files():
            why = f"no tokenizer.json of model {config.name!r} is found, so transformers has to make its tokenizer"
        else:
            why, extra = f"the tokenizer of model {config.name!r} has to be read", "scan"
        missing = "tokenizers" if extra == "scan" else (error.name or "transformers").split(".")[0]
        raise InputError(
            f"{why}, and the package {missing} is not installed: pip install 'autointerp[{extra}]'"
        ) from None
    try:
        return cast(
            "PreTrainedTokenizerBase",
            AutoTokenizer.from_pretrained(config.name, revision=config.revision or "main", trust_remote_code=False),
        )
    except Exception as error:  # whatever transformers raises for a folder or a name without a tokenizer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the tokenizer of model {config.name!r} cannot be loaded: {reason[:200]} (check model.name and "
            "model.revision, and the network)"
        ) from None


def _file_of(config: ModelConfig, name: str) -> Path | None:
    """A file of the model's folder, or of the hub model, fetched if it is not in the cache; None where it has none."""
    folder = Path(config.name).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(config.name, name, revision=config.revision or "main"))
    except Exception:  # no such model, file or network: transformers, which is asked next, says which
        return None


def _special_tokens(config: ModelConfig) -> dict[str, str]:
    """What the model's files call special, by its role."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = _file_of(config, name)
        if path is None:
            continue
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise InputError(f"{path} cannot be read ({str(error)[:200]}); fetch the model again") from None
        if isinstance(read, dict):
            found |= {key: read[key] for key in _SPECIAL if read.get(key)}
    return {key: text for key, value in found.items() if (text := _text_of(value)) is not None}


def _text_of(value: Any) -> str | None:
    """A special token is a string, or an object with its string as "content"."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


class TokenizerFile:
    """A tokenizer of the package `tokenizers` with those methods of transformers' tokenizers that cutting and decoding
    text use. It has no chat template."""

    is_fast = True
    chat_template: str | None = None

    def __init__(self, backend: Tokenizer, special: dict[str, str], name: str) -> None:
        self.backend_tokenizer = backend
        self.name_or_path = name
        self.special_tokens_map = special

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self.backend_tokenizer.get_added_tokens_decoder()

    @property
    def all_special_ids(self) -> list[int]:
        ids = map(self.backend_tokenizer.token_to_id, dict.fromkeys(self.special_tokens_map.values()))
        return [index for index in ids if index is not None]

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens_map.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of(self.eos_token)

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self.backend_tokenizer.token_to_id(token)

    def batch_decode(self, lists: Sequence[Sequence[int]], clean_up_tokenization_spaces: bool = False) -> list[str]:
        if clean_up_tokenization_spaces:
            raise ValueError("texts are decoded as they are")
        return self.backend_tokenizer.decode_batch([list(ids) for ids in lists], skip_special_tokens=False)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        decoder = self.backend_tokenizer.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)
