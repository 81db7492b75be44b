"""Scores that ask for more contexts than the harvest kept: said before anything is asked, and stored with the score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import write_config

from autointerp import config_file
from autointerp.cli.doctor import run_doctor
from autointerp.config import Config, ScoreConfig
from autointerp.errors import AutointerpError
from autointerp.score.kept_contexts import kept_by, shortfall
from autointerp.stages.labelling import short_of_contexts
from autointerp.terminal import Terminal

DEFAULT = {"top_contexts": 20, "sampled_contexts": 40, "negatives": 10}


@pytest.mark.parametrize(
    ("contexts", "short"),
    [
        (10, None),
        (11, "(negatives = 10)"),
        (25, "(top_contexts = 20, sampled_contexts = 40, negatives = 10)"),
    ],
)
def test_what_is_short(contexts: int, short: str | None) -> None:
    found = shortfall(contexts, DEFAULT)
    if short is None:
        assert found is None
    else:
        assert found is not None and f"score.contexts = {contexts}" in found and short in found
        assert "at most 10" in found and f"negatives = {contexts}" in found.split("harvest with")[1]
    assert short_of_contexts(replace(Config(), score=ScoreConfig(contexts=contexts))) == found


def test_what_a_harvest_kept_is_read_from_its_row() -> None:
    row = {"harvest": {"top_contexts": 4, "sampled_contexts": 6, "seed": 0}, "merge": {"negatives": 3}, "key": "k"}
    assert kept_by(row) == {"top_contexts": 4, "sampled_contexts": 6, "negatives": 3}
    assert kept_by({"context_tokens": 4}) == {} and shortfall(100, {}) is None  # an older row does not say


def test_doctor_says_so_before_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The small project asks for 3 contexts and keeps 4 sampled ones. Its model does not exist, which fails; the rest
    is checked all the same."""
    config = config_file.load(write_config(tmp_path, tmp_path / "nowhere"))
    with pytest.raises(AutointerpError):
        run_doctor(config, Terminal())
    assert "score.contexts = 3 is more than the harvest keeps (sampled_contexts = 4)" in (
        " ".join(capsys.readouterr().out.split())
    )
