"""Every fault of an endpoint against whole commands: exit code, rows, requests, spending, and the command after it.

The endpoint is a process of its own that keeps fsynced books (fault_server.py): what was asked and what would be on the
bill is read there, not from the client. ROWS says which test shows what of the whole table of faults, also those that
concern no endpoint.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import run, write_config, write_corpus
from support.fault_server import PASSING, WORDS, Entry, FaultServer
from support.known_words import WORDS as PLANTED
from support.ledger_invariants import (
    LABELS,
    SCORES,
    billed,
    booked,
    rows,
    tables,
    twice,
    underbooked,
    zeros_for_failures,
)
from support.sae_format_helpers import FIXTURES

from autointerp.corpus.formats import unpack
from autointerp.llm import client, limits, retry
from autointerp.sae import families
from autointerp.sae.formats import load_memory

CONFIG = """
[store]
path = "x.duckdb"
snapshot_seconds = 0
[explain]
explainer = "combined"
model = "test-model"
max_tokens = {max_tokens}
base_url = "{url}"
[score]
model = "test-model"
base_url = "{url}"
contexts = {contexts}
[llm]
requests_per_minute = 600000
max_connections = {connections}
timeout = {timeout}
attempts = {attempts}
[budget]
{budget}
"""
ATTEMPTS = 3
FEW = "0-2"
"""Features of most cases."""
SLOW = ("hang", "slow_loris")
"""Kinds that take a timeout each."""


def about(feature: int, condition: str = "") -> str:
    """A pattern for what only requests about one feature hold: its strongest token, or its label."""
    word = PLANTED[feature]
    return rf'(?s)^{condition}.*(\[" {word.strip()}", 10\]|description: "the word{word})'


def groups(kinds: Iterable[str], size: int) -> list[tuple[str, ...]]:
    """One kind for each of so many features, in one command; the slow ones by themselves."""
    kinds = list(kinds)
    fast = [kind for kind in kinds if kind not in SLOW]
    slow = tuple(kind for kind in kinds if kind in SLOW)
    return [*(tuple(fast[i : i + size]) for i in range(0, len(fast), size)), *([slow] if slow else [])]


ALPHA, BETA = about(0), about(1)
FIRST_QUESTION = "(?!.*(could not be used|has no line that begins))"
"""As a condition: not the second question after an unusable reply."""
MAX_TOKENS = 123
CONTEXTS = 3
"""Of a score: a top, a sampled and a negative one."""


@dataclass
class Project:
    """A folder with a copy of a planted store, and a server that has a ledger for it."""

    folder: Path
    server: FaultServer
    capsys: pytest.CaptureFixture[str]
    settings: dict[str, Any] = field(default_factory=dict)
    n_ledgers: int = 0
    earlier: list[Entry] = field(default_factory=list)
    """Of former plans."""

    @property
    def store(self) -> Path:
        return self.folder / "x.duckdb"

    def plan(self, latency: float = 0.0, **plan: Any) -> None:
        if self.n_ledgers:
            self.earlier += self.entries
        self.n_ledgers += 1
        self.server.renew(self.folder / f"ledger-{self.n_ledgers}.jsonl", latency, **plan)

    @property
    def entries(self) -> list[Entry]:
        """Under the present plan."""
        return self.server.entries()

    @property
    def all_entries(self) -> list[Entry]:
        return [*self.earlier, *self.entries]

    def run(self, *command: str, features: str | None = FEW) -> tuple[int, str]:
        """(exit code, stderr)."""
        given = {
            "max_tokens": MAX_TOKENS,
            "contexts": 1,
            "connections": 8,
            "timeout": 20.0,
            "attempts": ATTEMPTS,
            "budget": "",
            **self.settings,
        }
        (self.folder / "autointerp.toml").write_text(CONFIG.format(url=self.server.url, **given))
        chosen = [] if features is None else ["--features", features]
        code, _, err = run(self.capsys, *command, "-c", str(self.folder / "autointerp.toml"), *chosen)
        assert "Traceback" not in err
        return code, err

    def check(self) -> None:
        """What holds after every command."""
        assert not [*underbooked(self.store, self.all_entries), *zeros_for_failures(self.store), *twice(self.store)]


@dataclass(frozen=True)
class Undisturbed:
    labelled: Path
    labels: list[Any]
    tables: list[Any]
    """Labels and scores, of all features."""

    def of(self, features: set[int], labels_only: bool = False) -> list[Any]:
        return [row for row in (self.labels if labels_only else self.tables) if row[1] in features]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    with FaultServer(tmp_path_factory.mktemp("server") / "first.jsonl") as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, short_waits: None) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    pauses = limits.PausePolicy(first_s=0.05, longest_s=0.2)
    monkeypatch.setattr(limits, "PausePolicy", lambda: pauses)
    monkeypatch.setattr(client, "ReachPolicy", lambda: REACH)


ReachPolicy = client.ReachPolicy
REACH = ReachPolicy(longest_pause_s=0.2)


def copied(template: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for file in template.parent.glob(f"{template.stem}.*"):
        shutil.copy(file, folder / file.name.replace(template.stem, "x", 1))
    return folder


@pytest.fixture
def project(
    bare_world: Path, tmp_path: Path, shared_server: FaultServer, capsys: pytest.CaptureFixture[str]
) -> Project:
    """Nothing is labelled yet."""
    return Project(copied(bare_world, tmp_path / "project"), shared_server, capsys)


@pytest.fixture
def labelled(
    undisturbed: Undisturbed, tmp_path: Path, shared_server: FaultServer, capsys: pytest.CaptureFixture[str]
) -> Project:
    """All features have their label, none a score."""
    return Project(copied(undisturbed.labelled, tmp_path / "labelled"), shared_server, capsys)


_UNDISTURBED: list[Undisturbed] = []


@pytest.fixture
def undisturbed(
    bare_world: Path, tmp_path_factory: pytest.TempPathFactory, shared_server: FaultServer,
    capsys: pytest.CaptureFixture[str],
) -> Undisturbed:  # fmt: skip
    """What the commands write when nothing goes wrong. Made once: the fixtures it needs are of one test each."""
    if not _UNDISTURBED:
        folder = tmp_path_factory.mktemp("undisturbed")
        made = Project(copied(bare_world, folder / "a"), shared_server, capsys)
        made.plan()
        assert made.run("explain", features=None) == (0, ANY)
        between = copied(made.store, folder / "labelled")
        labels = rows(made.store, LABELS)
        assert made.run("score", features=None) == (0, ANY)
        assert booked(made.store) == billed(made.entries)  # to the token
        status = json.loads(run(capsys, "status", "--store", str(made.store), "--json")[1])["spent"]
        assert (status["input_tokens"], status["output_tokens"]) == booked(made.store)
        assert status["requests"] == len(made.entries)
        found = tables(made.store)
        assert {row[3] for row in labels} == {"ok"} and len(labels) == len(PLANTED)
        assert {row[6] for row in rows(made.store, SCORES)} == {"ok"}
        _UNDISTURBED.append(Undisturbed(between / "x.duckdb", labels, found))
    return _UNDISTURBED[0]


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY: Any = _Any()


def most_per_body(entries: list[Entry]) -> int:
    return max(Counter(e.sha256 for e in entries).values())


# --- one fault of a kind for each request ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds",
    [kinds if {"429", "hang"} & {*kinds} else pytest.param(kinds, marks=pytest.mark.slow)
     for kinds in groups([*PASSING, "garbage", "empty"], 5)],
    ids="+".join,
)  # fmt: skip
def test_a_passing_fault_changes_nothing(project: Project, undisturbed: Undisturbed, kinds: tuple[str, ...]) -> None:
    """Every request about a feature meets the feature's kind once. A model's slip is an answer: what follows it is
    another request."""
    project.settings["timeout"] = 1.0 if kinds[0] in SLOW else 20.0
    patterns = {about(f, FIRST_QUESTION if kind in WORDS else ""): kind for f, kind in enumerate(kinds)}
    project.plan(by=patterns, first=1, retry_after=0.05)
    assert project.run("explain", features=None) == (0, ANY)
    assert project.run("score", features=None) == (0, ANY)
    project.check()
    assert tables(project.store) == undisturbed.tables
    met = Counter(e.fault for e in project.entries if e.fault)
    assert met == dict.fromkeys(kinds, 1 + CONTEXTS)
    for kind in kinds:
        bodies = {e.sha256 for e in project.entries if e.fault == kind}
        times = Counter(e.sha256 for e in project.entries if e.sha256 in bodies)
        assert set(times.values()) == {1 if kind in WORDS else 2}


def test_a_reply_cut_off_once_is_asked_for_at_twice_the_length(project: Project, undisturbed: Undisturbed) -> None:
    project.plan(by={f"max_tokens {MAX_TOKENS}$": "cut"})
    assert project.run("explain", features=None) == (0, ANY)
    project.check()
    assert rows(project.store, LABELS) == undisturbed.labels
    assert most_per_body(project.entries) == 1


def test_every_request_may_fail_once(project: Project, undisturbed: Undisturbed) -> None:
    """Probes too."""
    project.plan(by={".": "500"}, first=1)
    assert project.run("explain") == (0, ANY)
    assert project.run("score") == (0, ANY)
    project.check()
    assert tables(project.store) == undisturbed.of({0, 1, 2})
    assert {e.attempt for e in project.entries if e.fault} == {0}


# --- a fault that lasts, on one feature -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Lasting:
    label: str
    """Status of the label that cannot be had."""
    per_body: int
    """Times the same request may be sent."""
    bodies: int = 1
    """Different requests about one question."""
    score: str = ""
    """Status of the score; where it is not that of the label."""

    @property
    def is_final(self) -> bool:
        """Whether the next run leaves it alone."""
        return self.label != "gave_up"


LASTING_FAULTS = {
    **dict.fromkeys(["500", "502", "503", "529", "408", "reset", "short_body"], Lasting("gave_up", ATTEMPTS)),
    **dict.fromkeys(["hang", "slow_loris"], Lasting("gave_up", 2)),
    **dict.fromkeys(
        ["truncated_json", "html", "error_200", "empty_choices", "null_choices", "no_message", "huge", "huge_declared"],
        Lasting("gave_up", 3),
    ),
    "429": Lasting("gave_up", 20),
    "400": Lasting("gave_up", 1),
    "422": Lasting("gave_up", 1),
    "refusal": Lasting("refused", 1),
    "content_filter_400": Lasting("filtered", 1),
    "ctx_too_long": Lasting("ctx_too_long", 1, 3),
    "413": Lasting("ctx_too_long", 1, 3),
    "garbage": Lasting("unparseable", 1, 2, "token_count"),
    "empty": Lasting("unparseable", 1, 2, "token_count"),
    "cut": Lasting("truncated", 1, 2),
}  # fmt: skip


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that alone meets 429s is given up after 20 of them, without the quarter of an hour."""
    monkeypatch.setattr(retry, "LIMITED_S", 0.0)


@pytest.mark.parametrize(
    "kinds",
    [pytest.param(kinds, marks=pytest.mark.slow) if {"429", "truncated_json"} & {*kinds} else kinds
     for kinds in groups(LASTING_FAULTS, 5)],
    ids="+".join,
)  # fmt: skip
def test_a_lasting_fault_is_a_row_and_the_others_do_not_feel_it(
    project: Project, undisturbed: Undisturbed, short_patience: None, kinds: tuple[str, ...]
) -> None:
    project.settings["timeout"] = 0.6 if kinds[0] in SLOW else 20.0
    project.plan(by={about(f): kind for f, kind in enumerate(kinds)}, retry_after=0.01)
    code, err = project.run("explain", features=None)
    assert code == 6 and f"{len(kinds)} rows failed" in err
    project.check()
    labels = rows(project.store, LABELS)
    for feature, kind in enumerate(kinds):
        expected = LASTING_FAULTS[kind]
        met = Counter(e.sha256 for e in project.entries if e.fault == kind)
        assert set(met.values()) == {expected.per_body} and len(met) == expected.bodies, kind
        assert labels[feature][3:] == (expected.label, None)
    assert labels[len(kinds) :] == undisturbed.labels[len(kinds) :]
    # The faults go; the command that is run again asks only for what is missing.
    project.settings["timeout"] = 20.0
    project.plan()
    assert project.run("explain", features=None) == (0, ANY)
    project.check()
    missing = {f for f, kind in enumerate(kinds) if not LASTING_FAULTS[kind].is_final}
    assert len(project.entries) == len(missing)
    for row, whole, before in zip(rows(project.store, LABELS), undisturbed.labels, labels, strict=True):
        assert row == (whole if row[1] in missing else before)


@pytest.mark.parametrize(
    "kinds",
    [kinds if {"500", "garbage"} & {*kinds} else pytest.param(kinds, marks=pytest.mark.slow)
     for kinds in groups(LASTING_FAULTS, 5)],
    ids="+".join,
)  # fmt: skip
def test_a_lasting_fault_is_no_score_and_never_a_zero(
    labelled: Project, undisturbed: Undisturbed, short_patience: None, kinds: tuple[str, ...]
) -> None:
    labelled.settings["timeout"] = 0.6 if kinds[0] in SLOW else 20.0
    labelled.plan(by={about(f): kind for f, kind in enumerate(kinds)}, retry_after=0.01)
    assert labelled.run("score", features=None) == (6, ANY)
    labelled.check()
    scores = rows(labelled.store, SCORES)
    whole = [row for row in undisturbed.tables if row not in undisturbed.labels]
    again = 0
    for feature, kind in enumerate(kinds):
        expected = LASTING_FAULTS[kind]
        met = Counter(e.sha256 for e in labelled.entries if e.fault == kind)
        assert set(met.values()) == {expected.per_body}, kind
        status = expected.score or expected.label
        assert {row[6:10] for row in scores if row[1] == feature} == {(status, None, None, None)}
        again += 0 if expected.is_final else len(met)
    assert [row for row in scores if row[1] >= len(kinds)] == [row for row in whole if row[1] >= len(kinds)]
    labelled.settings["timeout"] = 20.0
    labelled.plan()
    assert labelled.run("score", features=None) == (0, ANY)
    labelled.check()
    probes = len(rows(labelled.store, "SELECT DISTINCT request_sha256 FROM llm_calls WHERE stage = 'probe'"))
    assert len(labelled.entries) == (again and again + probes - 1)  # of the probes one is the explainer's
    missing = {f for f, kind in enumerate(kinds) if not LASTING_FAULTS[kind].is_final}
    expected_rows = [row for row in whole if row[1] in missing] + [row for row in scores if row[1] not in missing]
    assert sorted(rows(labelled.store, SCORES), key=str) == sorted(expected_rows, key=str)


# --- what ends a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "kind", "code"),
    [
        ("explain", "401", 3), ("explain", "402", 4), ("explain", "400", 2), ("score", "402", 4),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (
            ("explain", "403", 3), ("explain", "404", 3), ("explain", "insufficient_quota", 4), ("score", "401", 3),
        )),
    ],
)  # fmt: skip
def test_what_concerns_the_account_ends_the_run_at_once(
    project: Project, labelled: Project, undisturbed: Undisturbed, kind: str, code: int, command: str
) -> None:
    """In the middle of a run where the first answers are good (400 is a wrong parameter only before that)."""
    there = project if command == "explain" else labelled
    there.settings["connections"] = 2
    from_start = kind == "400"
    there.plan(by={"." if from_start else "You study|You predict": kind}, latency=0.02)
    assert there.run(command, features=None) == (code, ANY)
    there.check()
    ended = [e for e in there.entries if e.fault == kind]
    assert 1 <= len(ended) <= (8 if from_start else 2), "no more than were in flight"
    assert most_per_body(ended) == 1
    assert rows(there.store, "SELECT status, exit_code FROM runs ORDER BY started_at DESC LIMIT 1")[0][1] == code
    there.plan()
    assert there.run(command, features=None) == (0, ANY)
    there.check()
    wanted = undisturbed.labels if command == "explain" else undisturbed.tables
    assert tables(there.store) == wanted


@pytest.mark.parametrize(("kind", "code"), [("402", 4), pytest.param("401", 3, marks=pytest.mark.slow)])
def test_a_run_that_ends_books_what_hung(project: Project, undisturbed: Undisturbed, kind: str, code: int) -> None:
    """A request that ran into its timeout and waits for its next attempt (402), or is cut off two seconds after the
    run was ended (401), is perhaps on the bill."""
    project.settings["timeout"] = 0.6 if code == 4 else 30.0
    project.plan(by={ALPHA: "hang", BETA: kind}, latency=0.02)
    assert project.run("explain") == (code, ANY)
    hung = [e for e in project.entries if e.fault == "hang"]
    assert len(hung) == 1 and hung[0].billed
    project.check()
    assert rows(project.store, "SELECT count(*) FROM llm_calls WHERE status = 'gave_up' AND input_tokens > 0") == [(1,)]
    project.plan()
    assert project.run("explain") == (0, ANY)
    project.check()
    assert rows(project.store, LABELS) == undisturbed.of({0, 1, 2}, labels_only=True)


def test_a_backoff_ends_with_the_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty account is told at once, not after the minute that another request waits for its next attempt."""
    monkeypatch.setattr(client, "RetryPolicy", lambda: retry.RetryPolicy(first_s=500.0, then_s=500.0))
    project.plan(by={ALPHA: "500", BETA: "402"}, latency=0.02)
    assert project.run("explain") == (4, ANY)


def test_a_budget_holds_under_faults(project: Project, undisturbed: Undisturbed) -> None:
    """Failed attempts count; every request that was sent is inside it, and more of it finishes the work."""
    project.settings |= {"attempts": 6, "budget": "max_requests = 5"}
    project.plan(rate=0.4, seed=2, kinds={"500": 1, "reset": 1})
    assert project.run("explain", features=None) == (4, ANY)
    assert len(project.entries) <= 5
    project.check()
    project.settings["budget"] = ""
    assert project.run("explain", features=None) == (0, ANY)
    project.check()
    assert rows(project.store, LABELS) == undisturbed.labels


# --- pauses and outages ---------------------------------------------------------------------------------------------


def test_nobody_asks_while_retry_after_lasts(labelled: Project) -> None:
    """From the server's books: once the 429 has arrived, no request comes for as long as it says."""
    wait = 1.0
    labelled.settings["connections"] = 4
    labelled.plan(by={ALPHA: "429"}, first=1, retry_after=wait, latency=0.02)
    assert labelled.run("score", features=None) == (0, ANY)
    entries = labelled.entries
    limited = [e for e in entries if e.fault == "429"]
    for entry in limited:
        arrivals = sorted(e.arrived for e in entries if e.arrived > entry.left)
        # Those that were on their way come at once; then there is silence. The slack is for the way of a request.
        gaps = [b - a for a, b in zip([entry.left, *arrivals], arrivals, strict=False)]
        silence = next(i for i, gap in enumerate(gaps) if gap > 0.9 * wait)
        assert silence <= 3, "more came than were in flight"
    assert limited
    assert not underbooked(labelled.store, entries, {e.number for e in labelled.earlier})


@pytest.mark.slow
def test_a_restarted_endpoint_loses_nothing_and_one_that_stays_away_stops_resumably(
    undisturbed: Undisturbed, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def after_requests(n: int, work: Any) -> threading.Thread:
        def wait() -> None:
            while len(own.entries()) < n:
                time.sleep(0.01)
            work()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    with FaultServer(tmp_path / "own.jsonl", latency=0.02) as own:
        project.server, project.settings["connections"] = own, 2
        assert project.run("explain", features=None) == (0, ANY)
        for outage_s, code in ((30.0, 0), (0.5, 4)):
            reach = ReachPolicy(longest_pause_s=0.2, outage_s=outage_s)
            monkeypatch.setattr(client, "ReachPolicy", lambda reach=reach: reach)
            seen = len(own.entries())
            url = own.url

            def outage(back: bool = code == 0) -> None:
                own.kill()
                if back:
                    own.__enter__()

            thread = after_requests(seen + 5, outage)
            features = "0-2" if code == 0 else "3-5"
            got, err = project.run("score", features=features)
            thread.join()
            assert got == code, err
            assert own.url == url
            project.check()
        own.__enter__()
        assert project.run("score", features=None) == (0, ANY)
        project.check()
    assert tables(project.store) == undisturbed.tables


def test_a_second_writer_sends_nothing(project: Project) -> None:
    project.plan()
    code = (
        f"import duckdb, sys\ncon = duckdb.connect({str(project.store)!r})\nprint('open', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "open\n"
        got, err = project.run("explain")
        holder.stdin.close()
    assert got == 75 and str(holder.pid) in err
    assert not project.entries


# --- everything at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "seed"), [pytest.param(0.05, 1, marks=pytest.mark.slow), (0.3, 2)])
def test_mixed_passing_faults_change_nothing(
    project: Project, undisturbed: Undisturbed, rate: float, seed: int
) -> None:
    project.settings |= {"timeout": 2.0, "attempts": 6}
    project.plan(rate=rate, seed=seed, kinds=dict(PASSING), retry_after=0.05)
    assert project.run("explain", features=None) == (0, ANY)
    assert project.run("score", features=None) == (0, ANY)
    project.check()
    assert tables(project.store) == undisturbed.tables
    faults = [e for e in project.entries if e.fault]
    assert len(faults) > rate * len(project.entries) / 3
    assert most_per_body(project.entries) <= 6


@pytest.mark.slow
def test_mixed_faults_of_all_kinds_leave_a_status_in_every_row(project: Project, undisturbed: Undisturbed) -> None:
    """Refusals and slips too: what is ok is what it is without faults, the rest says why, and is no zero."""
    project.settings |= {"timeout": 2.0, "attempts": 2}
    project.plan(rate=0.3, lasting=0.3, seed=11, retry_after=0.05)
    assert project.run("explain", features=None)[0] in (0, 6)
    assert project.run("score", features=None)[0] in (0, 6)
    project.check()
    labels = rows(project.store, LABELS)
    assert [row[1] for row in labels] == list(range(len(PLANTED)))
    assert {row[3] for row in labels} > {"ok"}
    assert {row for row in labels if row[3] == "ok"} < set(undisturbed.labels)
    headline = [row for row in rows(project.store, SCORES) if row[2] == "simulation"]
    assert {row[1] for row in headline} == {row[1] for row in labels if row[3] == "ok"}
    for row in headline:
        if row[6] == "ok" and row[11] == 0:
            assert row in undisturbed.tables


# --- the model's side -----------------------------------------------------------------------------------------------


def test_an_empty_corpus_is_told_before_the_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "nothing.txt").write_text(" \n")
    config = write_config(tmp_path, tmp_path / "no model here")
    for command in ("train", "run"):
        code, _, err = run(capsys, command, "-c", str(config))
        assert code == 2 and "no usable text" in err and "no model here" not in err


CORPORA = {
    "a.pdf": (b"%PDF-1.7 \x00\x01\xff" * 99, "a.pdf is a PDF"),
    "a.json": (b'{\n "text": "x"\n}', "a.json is one JSON object, not a list of records"),
    "a.csv": (b"id,body\n1,x\n", "no column 'text' in its first line"),
    "a.txt": ("Où êtes-vous? ".encode("latin-1") * 99, "1 not_utf8"),
    "z.zst": (b"\x28\xb5\x2f\xfd\x00", "pip install backports.zstd"),
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_that_is_no_text_is_told_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(unpack, "_module", lambda module: None)  # nothing here unpacks zstd
    (tmp_path / name).write_bytes(CORPORA[name][0])
    config = write_config(tmp_path, tmp_path / "no model here")
    config.write_text(config.read_text().replace("source = 'texts'", f"source = '{name}'"))
    code, _, err = run(capsys, "run", "-c", str(config))
    assert code == 2 and CORPORA[name][1] in err and "no model here" not in err, err


def test_an_sae_that_does_not_fit_into_memory_is_told(
    tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "texts")
    config = write_config(tmp_path, tiny_gpt2)
    shutil.copytree(FIXTURES / "saelens" / "topk", tmp_path / "sae" / "tiny")
    text = config.read_text().replace("hookpoint =", f"path = '{tmp_path / 'sae' / 'tiny'}'\nhookpoint =")
    config.write_text(text)
    monkeypatch.setattr(load_memory, "free_memory", lambda: 1000)
    code, _, err = run(capsys, "harvest", "-c", str(config))
    assert code == 2 and "GiB of memory are free" in err, err


def test_memory_that_runs_out_in_training_is_exit_9_and_resumable(
    tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "texts")
    config = write_config(tmp_path, tiny_gpt2)
    config.write_text(config.read_text().replace("[train]", "[train]\ncheckpoint_every = 4").replace("8192", "2560"))
    whole, steps = families.TopK.loss, 0

    def loss(self: families.TopK, step: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, step)

    monkeypatch.setattr(families.TopK, "loss", loss)
    code, _, err = run(capsys, "train", "-c", str(config))
    assert code == 9 and "Tried to allocate 2.00 GiB" in err and "batch_size" in err
    assert (tmp_path / "sae" / "tiny" / "training" / "checkpoint.safetensors").exists()
    code, _, err = run(capsys, "train", "-c", str(config))
    assert code == 0, err
    assert steps == 7 + (10 - 4)  # from the checkpoint on


# --- the whole table ------------------------------------------------------------------------------------------------

ROWS: dict[str, list[str]] = {
    "a line of a batch's results that cannot be read": [
        "test_llm_batch_unread::test_one_unreadable_line_costs_no_other_result",
        "test_llm_batch_unread::test_a_file_without_end_is_left_with_what_it_held",
    ],
    "store or evidence taken away while it is open": [
        "test_store_displaced::test_a_run_stops_paying",
        "test_store_displaced::test_all_that_was_committed_is_saved_beside",
        "test_store_displaced::test_evidence_that_is_taken_away_stops_the_run_and_is_saved",
    ],
    "the endpoint refuses seed": ["test_explain_seed::test_samples_without_a_seed"],
    "429 with Retry-After": [
        "test_fault_matrix::test_nobody_asks_while_retry_after_lasts",
        "test_fault_matrix::test_a_passing_fault_changes_nothing",
        "test_llm_client::test_429_pauses_all_workers",
        "test_llm_client::test_long_and_absurd_retry_after",
        "test_llm_client::test_retry_after_of_any_kind",
        "test_llm_limits::test_tiny_pauses_grow_and_come_to_an_end",
    ],
    "429 for one request only": ["test_fault_matrix::test_a_lasting_fault_is_a_row_and_the_others_do_not_feel_it"],
    "5xx, reset, short body": [
        "test_fault_matrix::test_a_passing_fault_changes_nothing",
        "test_fault_matrix::test_a_lasting_fault_is_a_row_and_the_others_do_not_feel_it",
        "test_llm_client::test_lasting_fault_gives_the_request_up_and_leaves_others_alone",
    ],
    "hung and slow sockets": [
        "test_fault_matrix::test_a_lasting_fault_is_a_row_and_the_others_do_not_feel_it",
        "test_fault_matrix::test_a_run_that_ends_books_what_hung",
        "test_llm_client::test_hung_socket_ends_at_the_timeout_twice_at_most",
    ],
    "reply larger than the cap": [
        "test_llm_client::test_huge_reply_is_not_read",
        "test_fault_matrix::test_a_lasting_fault_is_a_row_and_the_others_do_not_feel_it",
    ],
    "bad envelopes": [
        "test_llm_client::test_bad_reply_is_tried_three_times_and_kept",
        "test_fault_matrix::test_a_lasting_fault_is_a_row_and_the_others_do_not_feel_it",
        "test_parsers::test_envelopes",
    ],
    "bad model output": [
        "test_fault_matrix::test_a_lasting_fault_is_no_score_and_never_a_zero",
        "test_score_scoring::test_a_wrong_number_of_tokens_never_becomes_zeros",
        "test_score_scoring::test_replies_without_a_label",
    ],
    "refusal, content filter": [
        "test_fault_matrix::test_a_lasting_fault_is_a_row_and_the_others_do_not_feel_it",
        "test_llm_client::test_refusal_filter_and_context_are_statuses_without_retry",
    ],
    "stopped by its length": [
        "test_llm_client::test_cut_off_reply_is_asked_for_once_more_at_twice_the_length",
        "test_fault_matrix::test_a_lasting_fault_is_a_row_and_the_others_do_not_feel_it",
        "test_fault_matrix::test_a_reply_cut_off_once_is_asked_for_at_twice_the_length",
    ],
    "a finish_reason that is not complete": [
        "test_llm_finish_reasons::test_every_word_has_one_meaning",
        "test_llm_finish_reasons::test_an_aborted_reply_is_tried_again_and_a_cut_one_asked_for_at_twice_the_length",
        "test_llm_batch::test_each_requests_own_outcome",
    ],
    "thinking aloud": [
        "test_llm_thoughts::test_explainers_and_judges_read_the_answer_only",
        "test_llm_thoughts::test_positions_of_logprobs_move_with_the_thoughts_taken_out",
    ],
    "missing logprobs": [
        "test_llm_capabilities::test_a_server_that_drops_logprobs_silently",
        "test_score_scoring::test_logprobs_that_go_missing_after_the_probe",
    ],
    "context too long": ["test_score_scoring::test_a_prompt_too_long_is_halved_twice_at_most"],
    "401, 403, 404": [
        "test_fault_matrix::test_what_concerns_the_account_ends_the_run_at_once",
        "test_llm_client::test_what_ends_the_run",
        "test_cli_llm::test_a_refused_key_stops_at_once_and_stays_secret",
    ],
    "402, insufficient quota": [
        "test_fault_matrix::test_what_concerns_the_account_ends_the_run_at_once",
        "test_fault_matrix::test_a_backoff_ends_with_the_run",
    ],
    "spend cap": [
        "test_fault_matrix::test_a_budget_holds_under_faults",
        "test_llm_client::test_dollar_budget_is_not_overrun_by_calls_in_flight",
        "test_cli_llm::test_a_budget_stops_the_run_and_a_larger_one_goes_on",
    ],
    "duplicate response": [
        "test_store_writes::test_second_reply_to_one_request_is_paid_but_not_kept",
        "test_llm_client::test_equal_requests_in_flight_are_sent_once",
    ],
    "endpoint restarted or away": [
        "test_fault_matrix::test_a_restarted_endpoint_loses_nothing_and_one_that_stays_away_stops_resumably",
        "test_llm_client::test_restarted_server_loses_nothing",
        "test_llm_limits::test_six_attempts_outlast_a_minute",
        "test_cli_app::test_an_unreachable_endpoint",
    ],
    "killed in harvest": [
        "test_harvest_text_pass::test_killed_resumed_and_folded",
        "test_kills::test_a_kill_at_every_named_place",
    ],
    "killed in explain or score": [
        "test_store_ledger::test_kill_loses_no_acknowledged_row",
        "test_store_snapshot::test_a_killed_writer_leaves_a_store_that_opens",
        "test_kills::test_a_kill_at_every_named_place",
        "test_kills::test_kills_at_random_moments",
    ],
    "killed in training": [
        "test_sae_trainer::test_sigkill_while_saving_leaves_the_last_checkpoint_whole",
        "test_kills::test_a_kill_at_every_named_place",
    ],
    "disk full": [
        "test_store_ledger::test_full_disk",
        "test_llm_client::test_the_record_is_committed_before_the_reply_is_returned",
        "test_store_disk_full::test_a_disk_that_fails_at_any_write",
        "test_store_disk_full::test_a_run_whose_disk_fills_up_stops_asking",
        "test_store_disk_full::test_a_harvest_that_would_not_fit_is_refused_before_the_model_is_loaded",
    ],
    "second writer": [
        "test_fault_matrix::test_a_second_writer_sends_nothing",
        "test_store_schema::test_locked_store_names_the_process",
    ],
    "corrupt store": [
        "test_cli_app::test_a_damaged_store",
        "test_store_schema::test_bit_flip_is_refused_and_nothing_deleted",
        "test_store_ledger::test_flipped_wal_bit_is_refused",
        "test_store_damage::test_damage_is_refused_or_harmless",
        "test_recover::test_a_damaged_main_file_is_copied_as_far_as_it_can_be_read",
    ],
    "lost WAL": [
        "test_store_ledger::test_lost_wal_is_found_and_nothing_is_touched",
        "test_store_ledger::test_an_update_that_is_lost_is_found_too",
        "test_recover::test_labels_lost_with_the_wal_are_asked_for_again",
    ],
    "corrupt SAE file": [
        "test_sae_formats_saelens::test_damaged_files_are_named",
        "test_sae_restricted::test_truncated_files_are_damaged",
        "test_sae_trainer::test_a_damaged_checkpoint_is_named_and_kept",
    ],
    "another SAE than the store's": ["test_cli_app::test_verify_finds_a_swapped_sae"],
    "wrong tokenizer or model": [
        "test_cli_app::test_another_tokenizer_or_model_is_refused",
        "test_store_schema::test_dictionary_names_and_mismatch",
    ],
    "SAE of another width": ["test_cli_app::test_an_sae_of_another_width"],
    "NaN and inf": [
        "test_harvest_text_pass::test_nonfinite_activations_are_counted_and_left_out_or_abort",
        "test_sae_trainer::test_one_bad_batch_is_left_out_three_in_a_row_end_the_run",
    ],
    "empty corpus": [
        "test_fault_matrix::test_an_empty_corpus_is_told_before_the_model_is_loaded",
        "test_cli_app::test_an_empty_corpus",
        "test_corpus_sources::test_an_empty_corpus_is_an_error",
    ],
    "bad text": [
        "test_corpus_sources::test_bytes_that_are_not_utf8_are_replaced_and_counted",
        "test_corpus_sources::test_bad_rows_are_skipped_by_reason",
        "test_corpus_sources::test_a_huge_line_is_skipped_in_pieces",
        "test_corpus_sources::test_too_many_bad_rows_end_it_and_the_fields_are_named",
    ],
    "out of memory": [
        "test_model_token_batches::test_a_batch_that_runs_out_of_memory_is_halved",
        "test_model_token_batches::test_after_four_halvings_it_gives_up",
        "test_fault_matrix::test_memory_that_runs_out_in_training_is_exit_9_and_resumable",
    ],
    "pickled SAE": [
        "test_sae_restricted::test_a_pickle_that_would_run_something_runs_nothing",
        "test_sae_restricted::test_files_beyond_the_limits_are_not_opened",
        "test_model_load::test_code_that_comes_with_a_model_is_not_run",
    ],
    "prompt injection": [
        "test_prompt_safety::test_injected_orders_do_not_change_labels",
        "test_prompt_safety::test_orders_in_contexts_and_labels_stay_data_for_judges",
    ],
    "SQL injection": ["test_store_query::test_lock_down", "test_store_query::test_timeout_and_memory"],
    "script in a page": ["test_evaluate_html_report::test_strings_from_outside_are_escaped_in_the_page_and_in_the_svg"],
    "paths out of the folder": [
        "test_paths::test_a_dictionary_name_is_one_part_of_a_path",
        "test_paths::test_no_result_takes_the_place_of_the_store",
    ],
    "key in the address, or leaking": [
        "test_config::test_a_wrong_value_is_named",
        "test_llm_client::test_the_key_reaches_nothing_but_the_wire",
        "test_cli_llm::test_a_refused_key_stops_at_once_and_stays_secret",
        "test_canary::test_a_run_through_every_fault",
        "test_canary::test_what_a_killed_run_leaves",
    ],
}
"""Row of the fault table -> the tests that show it."""


def test_every_row_of_the_table_has_its_test() -> None:
    folder = Path(__file__).parent
    for row, names in ROWS.items():
        assert names, row
        for name in names:
            module, _, function = name.partition("::")
            source = (folder / f"{module}.py").read_text(encoding="utf-8")
            assert re.search(rf"^def {function}\(", source, re.MULTILINE), f"{row}: there is no {name}"
