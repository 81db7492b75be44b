"""`autointerp demo --real`: what it forecasts, which configuration it writes, and the run itself, with the shipped demo
model in place of the real one. The slow test runs the real one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run
from support.small_models import TRAINING_TEXT

from autointerp.cli import real_demo
from autointerp.cli.real_demo import FIRST, Prepared, RealSizes, config_text, forecast_lines
from autointerp.config import Config, TrainConfig
from autointerp.config_file import load
from autointerp.errors import InputError
from autointerp.real_model import english_text, machine_speed, model_folder
from autointerp.real_model.machine_speed import ModelSpeed, chosen
from autointerp.real_model.run_forecast import Sizes, Speed, forecast, largest_that_fits, span
from autointerp.real_model.wheels import MODEL, fetched
from autointerp.resources import data_folder
from autointerp.store.store import Store
from autointerp.terminal import Terminal

SIZES = Sizes(1_000_000, 500_000, 4096)
FAST = Speed(5000.0, 4.0)
speeds = st.builds(Speed, st.floats(1, 1e6), st.floats(0.01, 1e4), st.floats(0.5, 50))
sizes = st.builds(Sizes, st.integers(2048, 10**8), st.integers(1024, 10**7), st.integers(1, 10**5), st.integers(1, 4))


def test_the_forecast_adds_what_was_measured() -> None:
    found = forecast(FAST, SIZES, 200)
    assert found.train == 1_000_000 / 5000 + 488 / 4
    assert found.harvest > 500_000 / 5000 and found.evidence > 65_536 / 5000
    assert found.whole == found.until_first_labels + found.other_labels
    kept = forecast(FAST, replace(SIZES, passes=500_000), 200)
    assert found.train - kept.train == 100, "what is kept on disk is not passed through the model again"


@given(speeds, sizes)
def test_more_work_takes_longer_and_a_faster_machine_less(speed: Speed, of: Sizes) -> None:
    now = forecast(speed, of, FIRST)
    assert min(now.train, now.harvest, now.evidence, now.first_labels) > 0 and now.other_labels >= 0
    for more in ("train_tokens", "corpus_tokens", "features"):
        assert forecast(speed, replace(of, **{more: 2 * getattr(of, more)}), FIRST).whole > now.whole
    twice = replace(speed, tokens_per_s=2 * speed.tokens_per_s, steps_per_s=2 * speed.steps_per_s)
    assert forecast(twice, of, FIRST).whole < now.whole
    assert forecast(twice, of, FIRST).whole > now.whole / 2, "Python and SQL are not made faster by it"
    loaded = replace(speed, slowness=2 * speed.slowness)
    assert forecast(loaded, of, FIRST).whole > now.whole


@given(speeds, st.floats(1, 1e5))
def test_the_size_fits_or_is_the_smallest(speed: Speed, seconds: float) -> None:
    choices = RealSizes().choices()
    taken = largest_that_fits(speed, choices, FIRST, seconds)
    if forecast(speed, taken, FIRST).until_first_labels > seconds:
        assert taken == choices[-1]
    larger = choices[: choices.index(taken)]
    assert all(forecast(speed, one, FIRST).until_first_labels > seconds for one in larger)


def test_spans() -> None:
    assert [span(s) for s in (1, 44, 89, 90, 540, 5400, 36000)] == [
        "5 seconds", "45 seconds", "90 seconds", "2 minutes", "9 minutes", "1.5 hours", "10.0 hours",
    ]  # fmt: skip


def test_bfloat16_is_taken_where_it_is_much_faster() -> None:
    taken = chosen(1900.0, 4900.0)
    assert (taken.dtype, taken.tokens_per_s) == ("bfloat16", 4900.0)
    assert "4,900 tokens a second in bfloat16 and 1,900 in float32, 2.6 times as many" in taken.reason
    taken = chosen(1900.0, 2400.0)
    assert (taken.dtype, taken.tokens_per_s) == ("float32", 1900.0) and "not 1.3 times as many" in taken.reason


@pytest.mark.parametrize("asked", [RealSizes(), RealSizes(tokens=50_000, features=16), RealSizes(proper=True)])
@pytest.mark.parametrize("folder", ["/a/b", 'C:\\with "quotes"', "/näme with 空"])
def test_the_configuration_says_what_was_measured(asked: RealSizes, folder: str, tmp_path: Path) -> None:
    points = [f"model.layers.{layer}" for layer in asked.layers]
    path = tmp_path / "autointerp.toml"
    of = asked.choices()[0]
    path.write_text(config_text(Prepared(folder, f"{folder}/t.jsonl", "bfloat16", "so fast", points), of), "utf-8")
    config = load(path)
    assert ('cache = "activations"' in path.read_text("utf-8")) == asked.proper
    assert config.model.name == folder.replace("\\", "/") and config.model.dtype == "bfloat16"
    assert [sae.hookpoint for sae in config.sae] == points and "so fast" in path.read_text("utf-8")
    assert {sae.d_sae for sae in config.sae} == {of.features} and config.train.tokens == of.train_tokens
    assert config.corpus.max_tokens == of.corpus_tokens and config.explain.explainer == "patterns"


def test_nonsense_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="too little text"):
        RealSizes(tokens=100)
    for flags in (["--proper"], ["--features", "9"], ["--cache", "x"], ["--text", "x"]):
        code, _, err = run(capsys, "demo", "--out", str(tmp_path / "no"), *flags)
        assert code == 2 and f"{flags[0]} belongs to the run on the real model" in " ".join(err.split())
    assert not (tmp_path / "no").exists()
    with pytest.raises(InputError, match="control characters"):
        config_text(Prepared("a\nb", "c", "float32", ""), SIZES)


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model and a small text in the cache's place, and speeds that no machine has."""
    lines = [line for line in TRAINING_TEXT.splitlines() if line.strip()]
    with (tmp_path / "text.jsonl").open("w") as out:
        for i in range(900):
            text = "\n".join(lines[(i * 7 + j * (1 + i % 5)) % len(lines)] for j in range(6 + i % 7))
            out.write(json.dumps({"id": str(i), "source": "x", "text": f"document {i}\n{text}"}) + "\n")
    monkeypatch.setattr(model_folder, "model_folder", lambda cache, terminal: data_folder() / "demo_model")
    monkeypatch.setattr(english_text, "english_text", lambda cache, more, terminal: tmp_path / "text.jsonl")
    monkeypatch.setattr(real_demo, "LAYERS", (1,))
    monkeypatch.setattr(real_demo, "FIRST", 5)
    monkeypatch.setattr(machine_speed, "model_speed", lambda *given: ModelSpeed("float32", 1e4, "measured as float32"))
    monkeypatch.setattr(machine_speed, "steps_per_second", lambda *given: 100.0)
    monkeypatch.setattr(machine_speed, "slowness", lambda: 1.0)


@pytest.mark.slow  # the whole pipeline, twice
@pytest.mark.usefixtures("stand_ins")
def test_the_first_labels_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("demo", "--real", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"))
    code, out, err = run(capsys, *command, "--tokens", "40000", "--features", "64")
    assert code == 0, out + err
    tables = out.split("layer1: ")[1:]
    assert "5 labelled" in tables[0] and "best-scored features" in tables[1]
    first, rest = err.index("forecast for this machine"), err.index("the first labels after")
    assert "measured as float32" in err[:first] and "set [explain] explainer" in err[rest:]
    with Store.open(tmp_path / "out" / "real.duckdb", read_only=True) as store:
        before = store.row_counts()
        assert store.dictionary("layer1").d_sae == 64

    code, _, err = run(capsys, *command, "--features", "32")
    assert code == 2 and "what it says holds" in " ".join(err.split())
    code, out, err = run(capsys, *command)  # once more: nothing is left to do
    assert code == 0 and "wrote" not in err and "nothing to do" in err
    with Store.open(tmp_path / "out" / "real.duckdb", read_only=True) as store:
        assert {k: v for k, v in store.row_counts().items() if k != "runs"} == {
            k: v for k, v in before.items() if k != "runs"
        }


@pytest.mark.usefixtures("stand_ins")
def test_text_that_would_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def note(config: Config, *_: object) -> None:
        ran.append(config.corpus.source)

    monkeypatch.setattr(real_demo, "label_in_two_rounds", note)
    command = ("demo", "--real", "--out", str(tmp_path / "out"), "--cache", str(tmp_path), "--text", "prose.txt")
    for _ in range(2):  # the same command goes on
        assert run(capsys, *command)[0] == 0
    assert ran == 2 * [str(tmp_path / "text.jsonl")]
    monkeypatch.setattr(english_text, "english_text", lambda cache, more, terminal: tmp_path / "other.jsonl")
    code, _, err = run(capsys, *command)
    assert code == 2 and "text.jsonl, not what --text names now" in " ".join(err.split())
    assert run(capsys, *command[:-2])[0] == 0 and ran == 3 * [str(tmp_path / "text.jsonl")]


def test_speeds_are_measured_on_a_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_speed, "_TRIAL_S", 0.0)
    name = str(data_folder() / "demo_model")
    found = machine_speed.model_speed(name, ["model.layers.1"], 64)
    assert found.tokens_per_s > 0 and found.dtype in ("float32", "bfloat16", "auto")
    fixed = machine_speed.model_speed(name, ["model.layers.1"], 64, "float32")
    assert fixed.dtype == "float32" and fixed.tokens_per_s > 0
    assert machine_speed.slowness() > 0
    assert machine_speed.steps_per_second(32, 64, 4, TrainConfig(batch_size=64)) > 0
    lines = forecast_lines(Speed(fixed.tokens_per_s, 3.0), SIZES)
    assert "4,096 features, trained on 1,000,000 activation vectors" in lines[0] and "as it is loaded now" in lines[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_real_thing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    try:
        fetched(MODEL, cache, Terminal().silent())
    except InputError as error:
        pytest.skip(f"the real model cannot be fetched here: {error}")
    command = ("demo", "--real", "--out", str(tmp_path / "out"), "--cache", str(cache))
    code, out, err = run(capsys, *command, "--tokens", "40000", "--features", "128")
    assert code == 0, out + err
    with Store.open(tmp_path / "out" / "real.duckdb", read_only=True) as store:
        labelled = store.rows("SELECT count(*) FROM labels WHERE label IS NOT NULL")[0][0]
        words = store.rows("SELECT string_agg(text, ' ') FROM contexts WHERE kind = 'top'")[0][0]
    assert labelled > 64
    assert all(f" {word} " in words for word in ("the", "of", "and")), "it is English that the model read"
