"""What training says while it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import write_config, write_corpus

from autointerp.config import Config
from autointerp.config_file import load
from autointerp.stages import pipeline
from autointerp.terminal import Terminal


@pytest.fixture
def config(tiny_gpt2: Path, tmp_path: Path) -> Config:
    write_corpus(tmp_path / "texts")
    loaded = load(write_config(tmp_path, tiny_gpt2))
    return replace(loaded, sae=(replace(loaded.sae[0], d_sae=256, k=2),))


@pytest.mark.parametrize(("dead_after", "warns"), [(100, True), (1_000_000, False)])
def test_rare_features_that_count_as_dead_are_told_of_once(
    config: Config, capsys: pytest.CaptureFixture[str], dead_after: int, warns: bool
) -> None:
    recipe = replace(config.train, tokens=64 * 400, batch_size=64, lr=0.2, dead_after=dead_after)
    pipeline.train(replace(config, train=recipe), None, Terminal(every_s=0))
    said = capsys.readouterr().err
    assert said.count(f"raise train.dead_after ({dead_after:,} vectors)") == warns
