"""The smallest and the largest value of every number of the configuration really runs.

Numbers that only bound what there is (contexts, words shown) run at both ends. WAITED names those that set how long
something waits or how often it is done: their far end would take days, and test_config_numbers.py checks their ranges.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.batch_client import Asked, texts
from support.batch_server import BatchServer
from support.commands import run, write_corpus
from support.known_words import World, count_tiles, job, plant_findings
from support.llm_helpers import ask_all, chat, client_for, echo
from support.llm_server import LlmServer
from support.small_models import VOCAB
from support.store_fixtures import add_dictionary

from autointerp.config import (
    BudgetConfig,
    ExplainConfig,
    HarvestConfig,
    LlmConfig,
    PriceConfig,
    ScoreConfig,
    TrainConfig,
)
from autointerp.errors import StoppedError
from autointerp.explain.explaining import explain
from autointerp.number_ranges import ranges
from autointerp.score.scoring import score
from autointerp.store import Store

WAITED = {"requests_per_minute", "tokens_per_minute", "batch_poll_seconds", "batch_quiet_seconds", "samples"}
"""One call, or the near end, is tried of these."""


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


def ends(kind: type) -> list[tuple[str, float]]:
    """(name, value) for both ends of every number of a config dataclass."""
    return [(name, end) for name, allowed in ranges(kind).items() for end in (allowed.low, allowed.high)]


@pytest.fixture
def planted(bare_world: Path) -> Path:
    return bare_world


@pytest.mark.parametrize(("name", "value"), [pair for pair in ends(LlmConfig) if not pair[0].startswith("batch")])
def test_a_call_at_both_ends_of_every_limit(name: str, value: float) -> None:
    with LlmServer(echo()) as server:
        (reply,) = ask_all(client_for(server, attempts=1) if name == "attempts" and value == 1 else client_for(
            server, **{"attempts": 2, name: value}), chat("a"))  # fmt: skip
    if (name, value) == ("max_reply_bytes", 1):
        assert (reply.status, reply.attempts) == ("bad_reply", 2) and "max_reply_bytes = 1" in (reply.error or "")
    elif (name, value) == ("timeout", 0.001):
        assert reply.status in ("gave_up", "ok")
    else:
        assert reply.ok


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, value in ends(LlmConfig) if name.startswith("batch")
     and (name not in WAITED or value < 1)],
)  # fmt: skip
@pytest.mark.slow
def test_a_batch_at_both_ends_of_its_limits(name: str, value: float, tmp_path: Path) -> None:
    with Store.open(tmp_path / "x.duckdb", create=True) as store, BatchServer(echo()) as server:
        add_dictionary(store, "d")
        assert len(Asked(server, store, *texts(3), **{name: value}).ok) == 3


@pytest.mark.parametrize(("name", "value"), ends(BudgetConfig))
def test_a_budget_at_both_ends(name: str, value: float) -> None:
    with LlmServer(echo()) as server:
        client = client_for(
            server, budget=BudgetConfig(**{name: value}), prices={"test-model": PriceConfig(input=1.0, output=1.0)}
        )
        if value == 0:
            with pytest.raises(StoppedError, match=f"budget.{name} = 0"):
                ask_all(client, chat("a"))
            assert not server.requests
        else:
            assert ask_all(client, chat("a"))[0].ok


@pytest.mark.parametrize(("name", "value"), ends(PriceConfig))
def test_a_price_at_both_ends(name: str, value: float) -> None:
    prices = {"test-model": PriceConfig(**{"input": 1.0, "output": 1.0, name: value})}
    with LlmServer(echo()) as server:
        (reply,) = ask_all(client_for(server, prices=prices), chat("a"))
    assert reply.ok and 0 <= reply.cost_usd < 1e9


def at(kind: type, end: str, **fixed: Any) -> dict[str, Any]:
    """Every number of a config dataclass at its "low" or "high" end, except those that are given."""
    numbers = {name: getattr(allowed, end) for name, allowed in ranges(kind).items()}
    return {**numbers, **fixed}


@pytest.mark.parametrize("explainer", ["combined", "best_of_n", *map(slow, ("contrastive", "revise"))])
@pytest.mark.parametrize("end", ["low", "high"])
def test_labels_at_both_ends_of_everything(store: Store, end: str, explainer: str) -> None:
    plant_findings(store, [0], [0], {})
    with LlmServer(World()) as server:
        config = ExplainConfig(
            **at(ExplainConfig, end, samples=1 if end == "low" else 3, unless_patterns_above=None),
            explainer=explainer, model="m", base_url=server.url, reply="text",
        )  # fmt: skip
        judge = ScoreConfig(model="m", base_url=server.url, contexts=3)
        assert asyncio.run(explain(job(store, features="0"), config, judge)).statuses == {"ok": 1}
        assert asyncio.run(explain(job(store, features="0"), config, judge)).pending == 0
    seeds = {row[0] for row in store.rows("SELECT seed FROM explanations")}
    if explainer == "best_of_n" and end == "high":  # the samples' seeds go round
        assert seeds == {2**32 - 1, 0, 1}


def test_a_feature_that_any_rule_explains_is_left_to_patterns(store: Store) -> None:
    store.close()
    count_tiles(store.path, "select", 60)
    with LlmServer(World()) as server, Store.open(store.path) as store:
        for value in (ranges(ExplainConfig)["unless_patterns_above"].low, 1.0):
            config = ExplainConfig(
                explainer="contexts", model="m", base_url=server.url, reply="text", unless_patterns_above=value
            )
            assert asyncio.run(explain(job(store, features="0"), config)).statuses == {"ok": 1}


@pytest.mark.parametrize(
    "scorer", ["simulation", "simulation_calibrated", "detection", "fuzzing", "intruder", "embedding"]
)
@pytest.mark.parametrize("end", ["low", "high"])
def test_scores_at_both_ends_of_everything(labelled: Store, end: str, scorer: str) -> None:
    with LlmServer(World()) as server:
        config = ScoreConfig(
            **at(ScoreConfig, end, stop_width=None, stop_threshold=None),
            scorers=(scorer,), model="m", base_url=server.url, embedding_model="m",
        )  # fmt: skip
        outcome = asyncio.run(score(job(labelled, features="0"), "combined", config))
        assert outcome.pending == 1 and set(outcome.statuses) <= {"ok", "no_contexts"}
        again = asyncio.run(score(job(labelled, features="0"), "combined", config))
    assert again.pending == 0
    assert outcome.statuses == {"ok": 1} or (scorer, end) == ("intruder", "high")


@pytest.mark.parametrize("name", ["stop_width", "stop_threshold"])
@pytest.mark.parametrize("end", ["low", "high"])
def test_early_stopping_at_both_ends(labelled: Store, end: str, name: str) -> None:
    with LlmServer(World()) as server:
        value = getattr(ranges(ScoreConfig)[name], end)
        config = ScoreConfig(scorers=("detection",), model="m", base_url=server.url, contexts=3, **{name: value})
        assert asyncio.run(score(job(labelled, features="0"), "combined", config)).statuses == {"ok": 1}


@pytest.fixture
def labelled(labelled_world: Path, tmp_path: Path) -> Any:
    from support.known_words import copy_of

    with copy_of(labelled_world, tmp_path / "planted.duckdb") as opened:
        yield opened


def test_what_is_not_run_at_its_far_end_is_still_a_number_of_the_configuration() -> None:
    named = {name for kind in (LlmConfig, ExplainConfig) for name in ranges(kind)}
    assert named >= WAITED


# --- the model side ---------------------------------------------------------------------------------------------------

HARVEST_ENDS = {
    "low": {
        "harvest": at(HarvestConfig, "low", negative_pool_windows=1, feature_block=8),
        "corpus": {"unit_characters": 1, "block_characters": 1000, "max_skipped_share": 0.0},
        "model": {"batch_tokens": 1},
    },
    "high": {
        # A pool of a billion windows, and contexts of a billion tokens, are refused: the disk has no room for them.
        "harvest": at(HarvestConfig, "high", context_tokens=32, negative_pool_windows=10_000, negatives=1000),
        "corpus": {
            "context_length": 32, "unit_characters": 10**15, "block_characters": 10**15, "max_skipped_share": 1.0,
            "max_tokens": 10**15,
        },
        "model": {"batch_tokens": 10**9},
    },
}  # fmt: skip
"""Values under which a harvest runs; the ends of the rest are refused by name, or are those of other tests."""


def small_project(folder: Path, model: Path, tables: dict[str, dict[str, Any]]) -> Path:
    """A configuration with these tables, and 25 short documents."""
    texts_folder = write_corpus(folder / "texts")
    for file in sorted(texts_folder.iterdir())[25:]:
        file.unlink()
    tables = {
        "model": {"name": str(model), "dtype": "float32", **tables.get("model", {})},
        "corpus": {"source": str(texts_folder), "context_length": 32, **tables.get("corpus", {})},
        "train": {"tokens": 1024, "batch_size": 128, "buffer_vectors": 512, "lr": 0.01, **tables.get("train", {})},
        "harvest": {"context_tokens": 16, "top_contexts": 4, **tables.get("harvest", {})},
        "store": {"path": str(folder / "tiny.duckdb")},
    }
    lines = ["[[sae]]", 'name = "tiny"', 'hookpoint = "transformer.h.1"', "d_sae = 16", "k = 4"]
    for section, values in tables.items():
        lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    config = folder / "autointerp.toml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config


@pytest.mark.slow
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_harvest_at_both_ends_of_everything(
    end: str, tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_project(tmp_path, tiny_gpt2, HARVEST_ENDS[end])
    for command in ("train", "harvest"):
        code, _, err = run(capsys, command, "-c", str(config))
        assert code == 0, err
    with Store.open(tmp_path / "tiny.duckdb", read_only=True) as store:
        assert store.rows("SELECT count(*) FROM features") == [(16,)]
        assert store.check() == []
        promoted = store.rows("SELECT DISTINCT n FROM (SELECT count(*) AS n FROM vocab_projection GROUP BY feature)")
        # All tokens but the special one, promoted and suppressed.
        assert promoted == ([] if end == "low" else [(2 * (VOCAB - 1),)])
        most = store.rows("SELECT max(n) FROM (SELECT count(*) AS n FROM contexts WHERE kind = 'top' GROUP BY ALL)")
        per_split = store.rows(
            "SELECT max(n) FROM (SELECT count(*) AS n FROM contexts WHERE kind = 'top' GROUP BY feature, split)"
        )
        assert most[0][0] and (per_split == [(1,)] if end == "low" else per_split[0][0] > 1)
        rare = store.rows("SELECT count(*) FROM features WHERE status = 'live'")[0][0]
        assert (rare > 0) == (end == "low"), "with rare_below at its end, every feature is rare"


TRAIN_ENDS = {
    "low": at(TrainConfig, "low", tokens=256, batch_size=1, lr=1e-12),
    "high": at(TrainConfig, "high", tokens=1024, batch_size=1024, lr=0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ["low", "high"])
def test_training_at_both_ends_of_everything(
    end: str, tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_project(tmp_path, tiny_gpt2, {"train": TRAIN_ENDS[end]})
    code, _, err = run(capsys, "train", "-c", str(config))
    assert code == 0, err
    assert (tmp_path / "sae" / "tiny" / "sae_weights.safetensors").exists()
