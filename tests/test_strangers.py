"""What somebody else adds: a scorer and an evidence method, brought by an installed package and taken through the
commands on a real model, from the harvest to the pages. docs/developing.md shows the same two classes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from support.commands import run as command
from support.commands import write_config, write_corpus
from support.known_words import planted_store
from support.llm_server import BrainReply, Fault, LlmServer

from autointerp import stats
from autointerp.ask.chat import ReplyError, chat_body
from autointerp.ask.forecast import Estimate
from autointerp.ask.prompts import one_line
from autointerp.ask.question import Asker
from autointerp.config import EvidenceConfig, ScoreConfig
from autointerp.evidence.method import Found, Study
from autointerp.llm.requests import Reply, Request
from autointerp.records import Explanation, Score
from autointerp.score.score_rows import Result
from autointerp.score.scorer import Labels, MadeBy, Needs, Run, Told, Work, a_few, asks_llm, estimate_of
from autointerp.store.finding_tables import FindingTable, Row

# --- a scorer ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HowLikely:
    """How likely is it, says the LLM, that a label is right for a text on which the feature is active?"""

    config: ScoreConfig
    item: Told

    @property
    def request(self) -> Request:
        label, text = one_line(self.item.label), one_line(self.item.contexts[0].text)
        asked = f"Label: {label}\nText: {text}\nThe chance that the label fits the text, from 0 to 1, as a number:"
        body = chat_body(self.config, [{"role": "user", "content": asked}], max_tokens=10)
        explanation = self.item.explanation
        return Request("chat", body, "chance", dictionary_id=explanation.dictionary_id, feature=explanation.feature)

    def read(self, reply: Reply) -> float:
        try:
            return min(1.0, max(0.0, float(reply.text)))
        except ValueError:
            raise ReplyError("no_number", f"{reply.text[:40]!r} is not a number") from None

    def again(self, reply: str, problem: str) -> Request | None:
        return None  # asking once more would bring the same reply


@dataclass(frozen=True)
class Chance:
    name: str = "chance"
    reads_label: bool = True

    def needs(self, run: Run) -> Needs:
        return asks_llm(self.name, run.config)

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        return (MadeBy("stated", run.config.model, "chance, version 1"),)

    async def start(self, run: Run, targets: Sequence[Explanation], asker: Asker | None) -> Work[Told]:
        assert asker is not None
        (by,) = self.made_by(run)

        async def score(item: Told) -> list[Score]:
            identity = run.identity(item.explanation, by)
            if not item.contexts:
                return [identity.row(self.name, run.part, [], Result("no_contexts"), keep=False)]
            asked = await asker.ask(HowLikely(run.config, item))
            found = Result(asked.status, stats.Estimate(asked.value, None, None, 1))
            return [identity.row(self.name, run.part, [], found, keep=False)]

        return Work(by, Labels(run, targets, {"top": 1}), score)

    def estimate(self, run: Run, targets: Sequence[Explanation]) -> Estimate:
        some = [item for item in Labels(run, targets, {"top": 1})(a_few(targets)) if item.contexts]
        return estimate_of([HowLikely(run.config, item).request for item in some], 4.0 * len(some), targets)


# --- an evidence method -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Longest:
    """The longest tokens on which a feature is active."""

    name: str = "longest"
    table: FindingTable = FindingTable(
        "longest", "longest_tokens", order=("-characters", "token"),
        columns={"token": "VARCHAR", "characters": "INTEGER"},
    )  # fmt: skip
    scope: Literal["dictionary", "feature"] = "feature"

    def settings(self, config: EvidenceConfig) -> Mapping[str, object]:
        return {"words": config.words}  # findings are made again when it changes

    def find(self, study: Study, features: Sequence[int]) -> Found:
        columns: dict[str, list[object]] = {"feature": [], "token": [], "characters": []}
        found = study.store.contexts_of(study.dictionary_id, study.harvest_id, features, "explain", {"top": None})
        for feature, contexts in found.items():
            tokens = {t for c in contexts for t, a in zip(c.tokens, c.activations, strict=True) if a > 0}
            for token in sorted(tokens, key=lambda t: (-len(t), t))[: study.evidence.words]:
                columns["feature"].append(feature)
                columns["token"].append(token)
                columns["characters"].append(len(token))
        return Found(columns)

    def page(self, rows: Sequence[Row]) -> list[str]:
        return [f"longest tokens  {', '.join(row['token'] for row in rows[:5])}"] if rows else []


# --- the package that brings both -------------------------------------------------------------------------------------

CHANCE, LONGEST = Chance(), Longest()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package whose entry points name the two objects above."""
    info = tmp_path / "site" / "strangers-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
    here = Path(__file__).stem
    (info / "entry_points.txt").write_text(
        f"[autointerp.scorers]\nchance = {here}:CHANCE\n[autointerp.methods]\nlongest = {here}:LONGEST\n"
    )
    monkeypatch.syspath_prepend(str(info.parent))
    importlib.invalidate_caches()
    assert sys.modules[here].CHANCE is CHANCE


def rater(kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
    """Sure of nearly every label; says nothing usable of the others."""
    return BrainReply("0.75" if len(body["messages"][0]["content"]) % 7 else "I would rather not say")


def test_a_strangers_scorer_and_method_go_all_the_way(
    installed: None, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    write_corpus(tmp_path / "texts")
    config = write_config(tmp_path, tiny_gpt2)
    given, where = ("-c", str(config)), ("--store", str(tmp_path / "tiny.duckdb"))

    def done(*argv: str, code: int = 0) -> str:
        ended, out, err = command(capsys, *argv)
        assert ended == code, f"{argv}: {err}"
        return out + err

    def rows(sql: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(done("query", sql, *where, "--format", "json"))
        return found

    with LlmServer(rater) as server:
        text = config.read_text().replace("[score]\n", f'[score]\nmodel = "m"\nbase_url = "{server.url}"\n'
                                          'scorers = ["chance", "simulation"]\nmethod = "auto"\n')  # fmt: skip
        config.write_text(text + '[evidence]\nmethods = ["shape", "longest"]\n[llm]\nrequests_per_minute = 60000\n')
        done("train", *given)
        done("harvest", *given)
        assert rows("SELECT count(*) AS n FROM longest_tokens")[0]["n"] > 0
        done("explain", *given)
        assert "calls" in done("score", "--dry-run", *given)
        said = done("score", *given, code=6)
        sent = len(server.requests)
        assert "nothing pending" in done("score", *given) and len(server.requests) == sent > 0, said
        done("score", "--control", "shuffled", *given, code=6)

    counts = {row["status"]: row["n"] for row in rows(
        "SELECT status, count(*) AS n FROM scores WHERE scorer = 'chance' AND control IS NULL GROUP BY ALL"
    )}  # fmt: skip
    assert counts["ok"] > counts["no_number"] > 0
    labels = rows("SELECT feature, scorer, score FROM labels WHERE score IS NOT NULL ORDER BY feature")
    assert {(row["scorer"], row["score"]) for row in labels} == {("chance", 0.75)}
    number = str(labels[0]["feature"])
    shown = done("show", number, *where)
    assert "score  0.75  chance, stated, on report" in shown and "longest tokens  " in shown
    page = json.loads(done("show", number, "--json", *where))
    assert {"token", "characters"} <= set(page["longest"][0])
    assert any(score["scorer"] == "chance" for score in page["scores"])
    compared = done("compare", *where)
    assert "chance" in compared and "shuffled" in compared
    longest = rows("SELECT feature FROM longest_tokens GROUP BY feature HAVING max(characters) > 1")
    assert longest and done("explain", "--where", "feature IN (SELECT feature FROM longest_tokens)", *given)


def test_a_package_that_cannot_be_loaded_is_named(
    installed: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = tmp_path / "site" / "strangers-1.0.dist-info" / "entry_points.txt"
    here = Path(__file__).stem
    refusals = {
        "chance = no_such_module:CHANCE": "cannot be loaded from no_such_module:CHANCE (of the installed package str",
        f"simulation = {here}:TAKEN": "is called 'simulation', and autointerp.scorers has one",
        f"nameless = {here}:Mapping": "has no `name`",
    }
    config = tmp_path / "autointerp.toml"
    config.write_text(f'[score]\nscorers = ["detection"]\nmodel = "m"\n[store]\npath = "{tmp_path}/s.duckdb"\n')
    planted_store(tmp_path / "s.duckdb", 3).close()
    for line, told in refusals.items():
        points.write_text(f"[autointerp.scorers]\n{line}\n")
        importlib.invalidate_caches()
        code, _, err = command(capsys, "score", "--dry-run", "-c", str(config))
        assert code == 2 and told in " ".join(err.split()), err


TAKEN = Chance(name="simulation")
