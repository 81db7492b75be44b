"""A run that is killed with SIGKILL, wherever it stands, loses nothing, asks for nothing twice but what was under way,
and ends with the tables of a run that was left alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from support.fault_server import FaultServer
from support.kill_harness import (
    POINTS,
    STAGES,
    ForkServer,
    Kill,
    Story,
    make_project,
    random_kills,
    run_killed,
    what_is_wrong,
)
from support.kill_harness import write_corpus as write_texts
from support.small_models import TRAINING_TEXT

PASSING = {"429": 2, "500": 2, "503": 1, "529": 1, "reset": 1, "short_body": 1, "truncated_json": 1, "html": 1,
           "error_200": 1, "empty_choices": 1, "no_message": 1}  # fmt: skip
"""Faults that are over at the next attempt; none that takes seconds."""


@dataclass(frozen=True)
class World:
    """What the tests share: the process that forks, the parts of a project, and one run that was left alone."""

    forks: ForkServer
    corpus: Path
    model: Path
    server: FaultServer
    undisturbed: Story

    @property
    def duration_s(self) -> float:
        ended = self.undisturbed.steps[0].ended
        return ended.ended - ended.begun


@pytest.fixture(scope="module")
def world(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kills")
    corpus = write_texts(folder / "texts", TRAINING_TEXT)
    server = FaultServer(folder / "server.jsonl", brain="support.kill_harness:brain", latency=0.005)
    with server, ForkServer() as forks:
        undisturbed = run_killed(forks, make_project(folder / "left", corpus, tiny_gpt2, server.url), [])
        assert undisturbed.unrecorded(server.entries()) == [0]
        yield World(forks, corpus, tiny_gpt2, server, undisturbed)


@pytest.mark.slow
def test_a_kill_at_every_named_place(world: World, tmp_path: Path) -> None:
    project = make_project(tmp_path / "killed", world.corpus, world.model, world.server.url)
    story = run_killed(world.forks, project, [Kill(point=point) for point in POINTS])
    for point, step in zip(POINTS, story.kills, strict=True):
        stage = point.name.partition(":")[0]
        assert stage not in STAGES or step.ended.stage == stage, point.name
    entries = world.server.entries()
    assert what_is_wrong(story, entries, world.undisturbed, entries) == []


@pytest.mark.slow
def test_kills_at_random_moments(world: World, tmp_path: Path) -> None:
    """Against a server of which every twentieth answer fails."""
    kills, rng, n = random_kills(random.Random(7), world.duration_s), random.Random(1), 25
    faulty = FaultServer(tmp_path / "faulty.jsonl", brain="support.kill_harness:brain",
                         seed=rng.randrange(1000), rate=0.05,
                         kinds=PASSING, retry_after=0.05, latency=0.005)  # fmt: skip
    with faulty:
        stories: list[Story] = []
        while (left := n - sum(len(story.kills) for story in stories)) > 0:
            project = make_project(tmp_path / f"{len(stories)}", world.corpus, world.model, faulty.url)
            stories.append(run_killed(world.forks, project, islice(kills, left)))
        entries = faulty.entries()
    assert any(entry.fault for entry in entries)
    for story in stories:
        assert what_is_wrong(story, entries, world.undisturbed, world.server.entries(), faults=True) == []
