"""The speed of a model's passes is measured by running them. How fast this machine is, no test says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.commands import run, write_config, write_corpus

from autointerp.config import ModelConfig
from autointerp.model import forward_speed
from autointerp.model.forward_speed import bfloat16_gain, tokens_per_second
from autointerp.model.hooks import Hookpoint, hooked
from autointerp.model.load import load_model
from autointerp.stages import model_checks


def test_passes_end_at_the_hookpoint_and_are_counted(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_llama), dtype="float32", device="cpu"))
    clock = iter(range(1000))
    monkeypatch.setattr(forward_speed.time, "perf_counter", lambda: float(next(clock)))
    ran, after = [], []
    with (
        hooked(loaded.model, Hookpoint("model.layers.1"), capture=ran),
        hooked(loaded.model, Hookpoint("model.layers.2"), capture=after),
    ):
        speed = tokens_per_second(loaded, [Hookpoint("model.layers.1")], 32, 0.0, batch_tokens=256)
    assert not after, "nothing behind the hookpoint runs"
    timed = ran[1:]  # the first pass warms up
    assert [part.shape[:2] for part in timed] == [(8, 32)] * 2
    # the clock moves by one second at each look: at the start, after the second pass, and at the end
    assert speed == 2 * 256 / 2


def test_the_gain_is_that_of_the_models_own_matrices(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_llama), dtype="float32", device="cpu"))
    tried: list[tuple[tuple[int, ...], torch.dtype]] = []

    def seconds(shape: tuple[int, ...], dtype: torch.dtype) -> float:
        tried.append((shape, dtype))
        return 6.0 if dtype == torch.float32 else 2.0

    monkeypatch.setattr(forward_speed, "_product_seconds", seconds)
    assert bfloat16_gain(loaded.model) == 3.0
    shapes = {shape for shape, _ in tried}
    assert (64, 64) in shapes and (160, 64) in shapes
    assert {dtype for _, dtype in tried} == {torch.float32, torch.bfloat16}
    assert bfloat16_gain(torch.nn.Embedding(4, 4)) is None, "a table is looked up, not multiplied"


def test_products_really_run(tiny_llama: Path) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_llama), dtype="float32", device="cpu"))
    gain = bfloat16_gain(loaded.model)
    assert gain is not None and gain > 0


@pytest.mark.parametrize(
    "gain,said", [(3.14, "3.1 times as fast in bfloat16: consider model.dtype"), (1.2, "bfloat16 would not pay here")]
)
def test_doctor_says_what_bfloat16_would_bring(
    gain: float, said: str, tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write_corpus(tmp_path / "texts")
    config = write_config(tmp_path, tiny_gpt2)
    monkeypatch.setattr(model_checks, "bfloat16_gain", lambda model: gain)
    code, out, err = run(capsys, "doctor", "--no-calls", "-c", str(config))
    assert code == 0, out + err
    line = next(line for line in out.splitlines() if "  dtype: " in line)
    assert line.startswith("ok") and said in line
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    _, out, _ = run(capsys, "doctor", "--no-calls", "-c", str(config))
    assert "dtype: bfloat16 on cpu" in out
