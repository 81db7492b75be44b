"""What a scorer is: the table of scorers, and a stranger's scorer taken all the way from the command to a reader."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.commands import run as command
from support.known_words import WORDS, World, copy_of, job
from support.llm_server import BrainReply, Fault, LlmServer

from autointerp import plugins, stats
from autointerp.ask.chat import ReplyError, chat_body
from autointerp.ask.forecast import Estimate
from autointerp.ask.question import Asker
from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.errors import InputError
from autointerp.llm.requests import Reply, Request
from autointerp.records import Explanation, Score
from autointerp.score.score_rows import Result
from autointerp.score.scorer import (
    Labels,
    MadeBy,
    Needs,
    Run,
    Scorer,
    Told,
    Work,
    a_few,
    asks_llm,
    estimate_of,
    pending,
)
from autointerp.score.scorers import BUILT_IN, configured, scorer_named, scorers
from autointerp.scorer_names import HEADLINE_SCORERS, headline_of
from autointerp.store import Store

# --- a stranger's scorer: all that it takes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class HowSure:
    """How sure is the LLM, from 0 to 1, that the label says when the feature is active?"""

    config: ScoreConfig
    told: Told

    @property
    def request(self) -> Request:
        asked = f"How sure are you, from 0 to 1, that this label is of use: {json.dumps(self.told.label)}?"
        body = chat_body(
            self.config, [{"role": "system", "content": "You rate labels."}, {"role": "user", "content": asked}], 64
        )
        return Request("chat", body, "certainty", dictionary_id=1, feature=self.told.explanation.feature)

    def read(self, reply: Reply) -> float:
        try:
            return float(reply.text)
        except ValueError:
            raise ReplyError("no_number", f"{reply.text!r} is not a number") from None

    def again(self, reply: str, problem: str) -> Request | None:
        return None


@dataclass(frozen=True)
class Certainty:
    name: str = "certainty"
    reads_label: bool = True

    def needs(self, run: Run) -> Needs:
        return asks_llm(self.name, run.config)

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        return (MadeBy("stated", run.config.model, "certainty 1"),)

    async def start(self, run: Run, targets: Sequence[Explanation], asker: Asker | None) -> Work[Told]:
        assert asker is not None
        (by,) = self.made_by(run)

        async def score(item: Told) -> list[Score]:
            asked = await asker.ask(HowSure(run.config, item))
            found = Result(asked.status, stats.Estimate(asked.value, None, None, 1))
            identity = run.identity(item.explanation, by)
            return [
                identity.row(f"{self.name}_part", run.part, [], found, keep=False),
                identity.row(self.name, run.part, [], found, keep=False),
            ]

        return Work(by, Labels(run, targets), score)

    def estimate(self, run: Run, targets: Sequence[Explanation]) -> Estimate:
        some = Labels(run, targets)(a_few(targets))
        return estimate_of([HowSure(run.config, item).request for item in some], 4.0 * len(some), targets)


CERTAINTY = Certainty()


class SureWorld(World):
    """Sure of labels of every feature but the first, of which it says nothing usable."""

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if kind == "chat" and body["messages"][0]["content"] == "You rate labels.":
            return BrainReply("quite" if WORDS[0] in body["messages"][1]["content"] else "0.9")
        return super().__call__(kind, body, attempt)


@dataclass(frozen=True)
class FakeEntry:
    """An entry point of an installed package."""

    name: str
    brings: Any
    value: str = "strange_package:SCORER"
    dist: Any = None

    def load(self) -> Any:
        return self.brings


def install(monkeypatch: pytest.MonkeyPatch, *brought: Any) -> None:
    entries = [FakeEntry(f"e{i}", one) for i, one in enumerate(brought)]

    def found(group: str) -> list[FakeEntry]:
        return entries if group == "autointerp.scorers" else []

    monkeypatch.setattr(plugins, "entry_points", found)


# --- the table --------------------------------------------------------------------------------------------------------


def members(protocol: Any) -> dict[str, Any]:
    return {name: one for name, one in vars(protocol).items() if not name.startswith("_")}


@pytest.mark.parametrize("scorer", [*BUILT_IN, CERTAINTY], ids=lambda s: s.name)
def test_every_scorer_fits_the_protocol(scorer: Scorer[Any]) -> None:
    assert isinstance(scorer.name, str) and isinstance(scorer.reads_label, bool)
    for name, wanted in members(Scorer).items():
        if isinstance(wanted, property):
            continue
        given = getattr(scorer, name)
        assert list(inspect.signature(given).parameters) == list(inspect.signature(wanted).parameters)[1:], name
        assert inspect.iscoroutinefunction(given) == inspect.iscoroutinefunction(wanted), name


def test_names_are_unique_and_every_headline_is_one_scorer_s() -> None:
    """A scorer need not be in HEADLINE_SCORERS: it is then shown after those."""
    names = [scorer.name for scorer in scorers()]
    assert len(set(names)) == len(names) == len(BUILT_IN)
    for headline in HEADLINE_SCORERS:
        assert headline.startswith(scorer_named(headline).name)
        assert headline_of(headline) == headline
    assert [s.name for s in configured(("simulation_calibrated", "detection", "simulation"))] == [
        "simulation",
        "detection",
    ]
    assert [s.name for s in configured(())] == ["simulation"]


def test_an_unknown_name_is_refused_with_the_nearest(store: Store) -> None:
    with pytest.raises(InputError, match="no scorer 'intuder'; there are simulation, .* Did you mean intruder"):
        configured(("simulation", "intuder"))


def test_a_package_cannot_take_a_name_or_the_name_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Certainty("detection"))
    with pytest.raises(InputError, match="is called 'detection'"):
        scorers()
    install(monkeypatch, Certainty("detection_certainty"))
    with pytest.raises(InputError, match="parts of the scorer 'detection'"):
        scorers()


def test_what_is_pending_is_what_has_no_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(job(store), "patterns", ScoreConfig(model="m"))
    assert all(len(pending(scorer, run)) == 0 for scorer in BUILT_IN if scorer.reads_label)
    assert pending(scorer_named("intruder"), run) == list(range(len(WORDS)))


# --- from the command to a reader -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stranger_s_scorer_runs_through_the_commands(
    bare_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, CERTAINTY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    copy_of(bare_world, tmp_path / "x.duckdb").close()
    with LlmServer(SureWorld()) as server:
        endpoint = f'model = "m"\nbase_url = "{server.url}"\n'
        config = tmp_path / "autointerp.toml"
        config.write_text(
            f'[explain]\nexplainer = "combined"\nreply = "text"\n{endpoint}[score]\n'
            f'scorers = ["certainty", "detection"]\ncontexts = 4\n{endpoint}[llm]\nrequests_per_minute = 60000\n'
            f'[store]\npath = "{tmp_path / "x.duckdb"}"\n'
        )
        given = ("-c", str(config))
        assert command(capsys, "explain", *given)[0] == 0
        code, out, err = command(capsys, "score", *given, "--dry-run")
        assert code == 0 and "score: 6 pending, 30 calls" in out, err
        code, _, err = command(capsys, "score", *given)
        assert code == 6 and "(method stated, answers): 1 no_number, 11 ok" in err, err
        sent = len(server.requests)
        code, _, err = command(capsys, "score", *given)
        assert code == 0 and "nothing pending" in err and len(server.requests) == sent
        assert command(capsys, "score", *given, "--control", "shuffled")[0] == 6
    where = ("--store", str(tmp_path / "x.duckdb"))

    def rows(sql: str) -> list[dict[str, Any]]:
        code, out, err = command(capsys, "query", sql, *where, "--format", "json")
        assert code == 0, err
        found: list[dict[str, Any]] = json.loads(out)
        return found

    kept = rows(
        "SELECT status, value, method FROM scores WHERE scorer = 'certainty' AND control IS NULL ORDER BY feature"
    )
    assert kept == [{"status": "no_number", "value": None, "method": "stated"}] + 5 * [
        {"status": "ok", "value": 0.9, "method": "stated"}
    ]
    shown = rows("SELECT scorer, score, score_status FROM labels ORDER BY feature")
    assert [row["scorer"] for row in shown] == ["certainty"] * len(WORDS) and shown[1]["score"] == 0.9
    board = rows("SELECT DISTINCT scorer FROM explainer_leaderboard ORDER BY scorer")
    assert [row["scorer"] for row in board] == ["certainty", "detection"]
    code, out, err = command(capsys, "show", "1", *where)
    assert code == 0 and "score  0.90  certainty, stated, on report" in out and "part 0.90" in out, out
    code, out, err = command(capsys, "compare", *where)
    assert code == 0 and "certainty" in out and "certainty_part" not in out, out + err
    code, out, err = command(capsys, "status", *where, "--json")
    assert code == 0, err


def test_it_is_known_no_more_once_the_package_is_gone(store: Store) -> None:
    assert not importlib.metadata.entry_points(group="autointerp.scorers")
    with pytest.raises(InputError, match="no scorer 'certainty'"):
        scorer_named("certainty")


def test_explain_does_not_need_the_scorer(store: Store) -> None:
    """A configuration may name a scorer that is installed elsewhere; only scoring needs it."""
    from autointerp.config import Config
    from autointerp.stages import labelling

    config = Config(explain=ExplainConfig(explainer="patterns"), score=ScoreConfig(scorers=("certainty",)))
    labelling.show_in_labels(config, store, store.dictionary())
    assert store.rows("SELECT value FROM settings WHERE name = 'label_scorer'") == [("certainty",)]
