"""Shared fixtures: small real models and planted stores. No network."""

from __future__ import annotations

import os

# Before anything imports torch or transformers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import asyncio  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from support.small_models import VOCAB, byte_fallback_tokenizer, byte_level_tokenizer, save_model  # noqa: E402

if TYPE_CHECKING:
    from support.scanned_world import ScannedWorld
    from transformers import PreTrainedTokenizerBase

    from autointerp.store import Store

# No example has a time limit: it would hold or not by what else the machine does.
settings.register_profile("without_deadline", parent=settings(), deadline=None)
settings.load_profile("without_deadline")

LONGEST = (
    "test_fault_matrix",
    "test_planted_methods",
    "test_store_query",
    "test_llm_batch",
    "test_score_scoring",
    "test_cli_dictionaries",
    "test_parsers",
    "test_cli_app",
    "test_recover",
    "test_explain_composites",
)
"""Files that go first, so that with several processes none of them is left over at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda name: tmp_path_factory.mktemp(name)


@pytest.fixture(scope="session")
def filled_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with features, calls and evidence, to be copied."""
    from support.store_fixtures import filled

    path = tmp_path_factory.mktemp("filled") / "x.duckdb"
    filled(path)[0].close()
    return path


@pytest.fixture(scope="session")
def tiny_gpt2(model_folder: Callable[[str], Path]) -> Path:
    """3 layers x 48, LayerNorm, tied head, learned positions (128)."""
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=128, n_embd=48, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return save_model(model_folder("tiny_gpt2"), config)


@pytest.fixture(scope="session")
def tiny_llama(model_folder: Callable[[str], Path]) -> Path:
    """3 layers x 64, RMSNorm, an untied head, grouped-query attention."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    return save_model(model_folder("tiny_llama"), config)


@pytest.fixture(scope="session")
def tiny_neox(model_folder: Callable[[str], Path]) -> Path:
    """2 layers x 32, parallel residual (Pythia's), untied head."""
    from transformers import GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return save_model(model_folder("tiny_neox"), config)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def metaspace_tokenizer() -> PreTrainedTokenizerBase:
    return byte_fallback_tokenizer()


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An LLM stage that tries again after milliseconds, not seconds, and does not wait for more rows to a commit."""
    from support.llm_helpers import QUICK

    from autointerp.llm import client
    from autointerp.store.group_writer import GroupWriter

    monkeypatch.setattr(client, "RetryPolicy", lambda: QUICK)
    monkeypatch.setitem(GroupWriter.__init__.__kwdefaults__, "max_wait_s", 0.01)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def bare_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of planted features and their contexts (see known_words.py), without labels. Copy it."""
    from support.known_words import planted_store

    path = tmp_path_factory.mktemp("bare") / "planted.duckdb"
    planted_store(path).close()
    return path


@pytest.fixture(scope="session")
def labelled_world(bare_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a label of every feature by `combined`: the word it fires on."""
    from support.known_words import World, copy_of, job
    from support.llm_server import LlmServer

    from autointerp.config import ExplainConfig
    from autointerp.explain.explaining import explain

    path = tmp_path_factory.mktemp("labelled") / "planted.duckdb"
    with copy_of(bare_world, path) as made, LlmServer(World()) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "test")
        asyncio.run(explain(job(made), ExplainConfig(explainer="combined", model="test-model", base_url=server.url)))
    return path


@pytest.fixture(scope="session")
def scanned(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> ScannedWorld:
    """A store of a folder of texts, which can be scanned. Copy the store to change it."""
    from support.scanned_world import scanned_world

    return scanned_world(tiny_gpt2, tmp_path_factory.mktemp("scanned"))


@pytest.fixture
def planted(labelled_world: Path) -> Path:
    """Of which `store` is a copy; a module that wants another world overrides it."""
    return labelled_world


@pytest.fixture
def store(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_waits: None) -> Iterator[Store]:
    """A planted store to work on, and a key for the test server."""
    from support.known_words import copy_of

    monkeypatch.setenv("OPENAI_API_KEY", "test")
    with copy_of(planted, tmp_path / "x.duckdb") as opened:
        yield opened
