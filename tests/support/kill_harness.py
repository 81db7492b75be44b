"""Kills `autointerp run` with SIGKILL at a moment or at a named place, and runs it again until it ends by itself.

    with FaultServer(...) as server, ForkServer() as forks:
        project = make_project(folder, corpus, model, server.url)
        story = run_killed(forks, project, [Kill(after_s=0.7), Kill(point=POINTS[3])])
        problems = what_is_wrong(story, server.entries(), undisturbed)

The product has no code for this. A separate process (`python -m support.kill_harness`) imports torch, transformers and
the program once, since loading them takes far longer than a run, and then forks one child for each run. It has a single
thread when it forks. The child wraps the named callable so that its process kills itself there, and calls
`autointerp.cli.app.main`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import duckdb

from support.fault_server import Entry
from support.known_words import World, coin

CONNECTIONS = 6
CONFIG = """
[model]
name = {model!r}
dtype = "float32"
batch_tokens = 1024
[corpus]
source = {corpus!r}
context_length = 32
unit_characters = 3500
[[sae]]
name = "tiny"
hookpoint = "transformer.h.1"
d_sae = 16
k = 3
[train]
tokens = 3840
batch_size = 64
buffer_vectors = 1024
checkpoint_every = 12
lr = 1e-2
[harvest]
context_tokens = 16
top_contexts = 3
sampled_contexts = 3
negatives = 2
[evidence]
methods = ["shape", "words", "neighbours", "output_statistic", "mutual_information", "pruning"]
pruned_contexts = 1
prune_longest = 4
substitutes = 1
mi_words = 50
[explain]
explainer = "combined"
model = "m"
base_url = {url!r}
shape_labels = false
[score]
scorers = ["simulation", "detection", "surprisal"]
contexts = 2
model = "m"
base_url = {url!r}
[llm]
requests_per_minute = 600000
max_connections = {connections}
timeout = 30
[llm.prices."m"]
input = 1.0
output = 2.0
[store]
path = "tiny.duckdb"
snapshot_seconds = 1.0
"""


def brain() -> World:
    """The server's brain. It labels by the strongest token, and its predictions are noise but deterministic."""
    return World(predict=coin)


def write_corpus(folder: Path, text: str, documents: int = 68) -> Path:
    """Writes different mixtures of the text's lines, enough of them for all three splits."""
    folder.mkdir()
    lines = [line for line in text.splitlines() if line.strip()]
    for i in range(documents):
        chosen = [lines[(i * 7 + j * (1 + i % 5)) % len(lines)] for j in range(4 + i % 5)]
        (folder / f"{i:03}.txt").write_text(f"document {i}\n" + "\n".join(chosen) + "\n", encoding="utf-8")
    return folder


def make_project(folder: Path, corpus: Path, model: Path, url: str) -> Path:
    folder.mkdir(parents=True)
    text = CONFIG.format(model=str(model), corpus=str(corpus), url=url, connections=CONNECTIONS)
    (folder / "autointerp.toml").write_text(text, encoding="utf-8")
    return folder


# --- what is to happen ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A place in the program: `target` is "module:name" or "module:Class.method", by the name under which it is called.

    The process dies before the nth call, after it, or `during` it: it is then killed from outside a few milliseconds
    after the call began, and at the latest at its end. A call counts only if its arguments, as text, match `match`, and
    only after `since` was first called.
    """

    name: str
    target: str
    when: Literal["before", "after", "during"] = "after"
    nth: int = 1
    match: str = ""
    since: str = ""
    delay_s: float = 0.002


@dataclass(frozen=True)
class Kill:
    after_s: float | None = None
    point: Point | None = None


@dataclass(frozen=True)
class Ended:
    """How one child ended. `stage` is the stage in which it ended."""

    code: int
    begun: float
    ended: float
    stage: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


_OPEN, _STORE = "autointerp.store.connection:StoreConnection", "autointerp.store.store:Store"
_EVIDENCE, _FEATURES = "autointerp.store.evidence_file:StoreEvidence", "autointerp.store.features:StoreFeatures"
_CALLS, _SCORES = "autointerp.store.calls:StoreCalls", "autointerp.store.scores:StoreScores"
_LEDGER, _GROUPS = "autointerp.store.safety.row_ledger:RowLedger", "autointerp.store.group_writer:GroupWriter"
_FOLDER, _IN_A_FOLDER = "autointerp.harvest.shards:HarvestFolder", r"^\w+\.(parquet|json)$"
_FINDINGS = "autointerp.store.findings:StoreFindings"
_SNAPSHOT, _CLIENT = "autointerp.store.safety.snapshot:SnapshotPublisher", "autointerp.llm.client:LlmClient"
_EXPLAIN, _SCORE = "autointerp.stages.labelling:explain", "autointerp.stages.labelling:score"

POINTS = (
    Point("new store: while the file is made", "autointerp.store.opening:connect", "during", delay_s=0.0),
    Point("new store: first migration committed", "autointerp.store.opening:migrate"),
    Point("new store: ledger not begun", f"{_LEDGER}.compact", "before"),
    Point("train: checkpoint not renamed", "os:replace", "before", 2, r"checkpoint\.safetensors"),
    Point("train: checkpoint renamed", "os:replace", "after", 1, r"checkpoint\.safetensors"),
    Point("train: metrics ahead of the checkpoint", "os:replace", "before", 3, r"checkpoint\.safetensors"),
    Point("train: metrics being cut", "os:replace", "before", 1, r"metrics\.jsonl"),
    Point("train: at its end, SAE not saved", "autointerp.stages.training:_keep_trained", "before"),
    Point("train: weights not renamed", "os:replace", "before", 1, r"sae_weights\.safetensors"),
    Point("train: weights renamed, no configuration", "os:replace", "after", 1, r"sae_weights\.safetensors"),
    Point("train: metrics stored, not marked as trained", f"{_FEATURES}.insert_metrics"),
    Point("train: mark not renamed", "os:replace", "before", 1, r"trained\.json"),
    Point("harvest: in a unit", "autointerp.harvest.unit:add_batch", "after", 4),
    Point("harvest: unit not renamed", "os:rename", "before", 2, "/units/u"),
    Point("harvest: unit renamed", "os:rename", "after", 1, "/units/u"),
    Point("harvest: fold not renamed", "os:rename", "before", 1, "/folds/f"),
    Point("harvest: folded, units not deleted", "os:rename", "after", 1, "/folds/f"),
    Point("harvest: folded, a unit half deleted", "os:unlink", "after", 3, _IN_A_FOLDER, f"{_FOLDER}.fold"),
    Point("harvest: end of the corpus not noted", "os:replace", "before", 1, "n_units"),
    Point("merge: before the vocabulary projection", f"{_FEATURES}.insert_vocab_projection", "before"),
    Point("merge: after the vocabulary projection", f"{_FEATURES}.insert_vocab_projection"),
    Point("merge: evidence half written", "autointerp.store.merge_units:_part", "after", 2),
    Point("merge: evidence not renamed", "os:replace", "before", 1, r"evidence\.duckdb\.new"),
    Point("merge: evidence renamed, features not", f"{_EVIDENCE}.replace_evidence"),
    Point("merge: features not in the ledger", f"{_LEDGER}.append", "before", since=f"{_EVIDENCE}.replace_evidence"),
    Point(
        "merged: units half deleted", "os:unlink", "after", 3, _IN_A_FOLDER,
        "autointerp.stages.harvesting:remove_leftovers",
    ),  # fmt: skip
    Point("gather: between methods", f"{_FINDINGS}.replace_findings", "after", 2),
    Point("gather: pruned, not written", "autointerp.evidence.pruned_context_search:prune"),
    Point("snapshot: while it is copied", f"{_SNAPSHOT}._copy", "during", delay_s=0.02),
    Point("snapshot: not renamed", "os:replace", "before", 1, r"snapshot\.duckdb\.new"),
    Point("explain: before the request leaves", "autointerp.llm.transport:Transport.post", "before", 2, since=_EXPLAIN),
    Point("explain: reply there, not handed on", f"{_CLIENT}._record", "before", 2, since=_EXPLAIN),
    Point("explain: in the commit", f"{_CALLS}._insert_calls", "after", 1, since=_EXPLAIN),
    Point("explain: committed, not in the ledger", f"{_LEDGER}.append", "before", 1, since=_EXPLAIN),
    Point("explain: in the ledger, not read", f"{_LEDGER}.append", "after", 1, since=_EXPLAIN),
    Point("explain: between two labels", f"{_GROUPS}.explanation", "after", 1),
    Point("score: before the request leaves", "autointerp.llm.transport:Transport.post", "before", 5, since=_SCORE),
    Point("score: reply there, not handed on", f"{_CLIENT}._record", "before", 5, since=_SCORE),
    Point("score: while it is committed", f"{_STORE}.insert_group", "during", 2, since=_SCORE),
    Point("score: rows in the commit", f"{_SCORES}._insert_scores", "after", 1),
    Point("score: committed, not in the ledger", f"{_LEDGER}.append", "before", 2, since=_SCORE),
    Point("score: between the rows of a label", f"{_GROUPS}.score", "after", 1),
    Point("measure: first answers not written", f"{_FINDINGS}.insert_measurements", "before"),
    Point("measure: between answers", f"{_FINDINGS}.insert_measurements"),
    Point("close: before it", f"{_OPEN}.close", "before"),
    Point("close: in the checkpoint", f"{_OPEN}.close", "during", delay_s=0.003),
    Point("close: snapshot not removed", f"{_SNAPSHOT}.remove", "before"),
)  # fmt: skip
"""The places in the order in which a run reaches them, so that one story may use them all."""

# --- the process that forks -------------------------------------------------------------------------------------------

STAGES = {
    "train": "autointerp.stages.training:train",
    "harvest": "autointerp.stages.harvesting:_harvest_units",
    "merge": "autointerp.stages.harvesting:_merge",
    "gather": "autointerp.stages.gathering:gather",
    "explain": "autointerp.stages.labelling:explain",
    "score": "autointerp.stages.labelling:score",
    "measure": "autointerp.stages.measuring:measure",
}


def _preload() -> None:
    """Imports everything that a run imports, and shortens waits: retries come after milliseconds, not seconds."""
    import torch
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast  # noqa: F401

    import autointerp.evidence.feature_relations
    import autointerp.evidence.logit_shifts
    import autointerp.evidence.logit_tails
    import autointerp.evidence.pruned_context_search
    import autointerp.evidence.word_information
    import autointerp.stages.gathering
    import autointerp.stages.harvesting
    import autointerp.stages.measuring
    import autointerp.stages.training  # noqa: F401
    from autointerp.harvest.shards import HarvestFolder
    from autointerp.llm import client
    from autointerp.store.group_writer import GroupWriter
    from support.llm_helpers import QUICK

    torch.set_num_threads(1)
    client.RetryPolicy = lambda: QUICK  # type: ignore[assignment,misc]
    defaults = GroupWriter.__init__.__kwdefaults__
    assert defaults is not None
    defaults["max_wait_s"] = 0.01
    HarvestFolder.fold.__defaults__ = (0, 1, 2, None)  # a corpus of a few units is folded too


def _serve() -> None:
    _preload()
    n_threads = len(os.listdir("/proc/self/task"))
    if n_threads != 1:
        raise RuntimeError(f"{n_threads} threads are alive; a fork would leave their locks as they are")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        heard, told = os.pipe()
        begun = time.time()
        pid = os.fork()
        if pid == 0:
            os.close(heard)
            _child(order, told)
        os.close(told)
        stage = _watch(pid, heard, order["after_s"])
        _, status = os.waitpid(pid, 0)
        os.close(heard)
        ended = Ended(os.waitstatus_to_exitcode(status), begun, time.time(), stage)
        sys.stdout.write(json.dumps(asdict(ended)) + "\n")
        sys.stdout.flush()


def _watch(pid: int, heard: int, after_s: float | None) -> str:
    """Waits until the child is gone (its end of the pipe closes), or kills it. Returns the stage that it was in."""
    deadline = None if after_s is None else time.monotonic() + after_s
    stages, text = ["start"], b""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([heard], [], [], left)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            return stages[-1]
        data = os.read(heard, 4096)
        if not data:
            return stages[-1]
        *lines, text = (text + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "kill":
                time.sleep(float(rest))
                os.kill(pid, signal.SIGKILL)
                return stages[-1]
            if word == "begin":
                stages.append(rest)
            else:
                stages[-2:] = ["after " + rest] if len(stages) == 2 else [stages[-2]]


def _child(order: dict[str, Any], told: int) -> None:
    """Runs one order in the child. Never returns."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 -- the parent's has read ahead
        os.environ.update(order["env"])
        for name, target in STAGES.items():
            _wrap(target, functools.partial(_marked, name, told))
        if order["point"] is not None:
            _arm(Point(**order["point"]), told)
        from autointerp.cli.app import main

        try:
            main(order["argv"])
        except SystemExit as end:
            code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wrap(target: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    module, _, path = target.partition(":")
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    setattr(owner, name, make(getattr(owner, name)))


def _marked(stage: str, told: int, plain: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*args: Any, **more: Any) -> Any:
        os.write(told, f"begin {stage}\n".encode())
        try:
            return plain(*args, **more)
        finally:
            os.write(told, f"end {stage}\n".encode())

    return marked


def _arm(point: Point, told: int) -> None:
    counting, left = [not point.since], [point.nth]

    def is_it(args: tuple[Any, ...]) -> bool:
        if not counting[0] or not re.search(point.match, " ".join(map(str, args))):
            return False
        left[0] -= 1
        return left[0] == 0

    def die(when: str) -> None:
        if point.when == when == "during":
            os.write(told, f"kill {point.delay_s}\n".encode())
        elif point.when == "during" and when == "after":
            time.sleep(60)  # it was over sooner; the signal is on its way
        elif point.when == when:
            os.kill(os.getpid(), signal.SIGKILL)

    def killing(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if not is_it(args):
                return plain(*args, **more)
            die("during")
            die("before")
            result = plain(*args, **more)
            die("after")
            return result

        async def call_later(*args: Any, **more: Any) -> Any:
            if not is_it(args):
                return await plain(*args, **more)
            die("during")
            die("before")
            result = await plain(*args, **more)
            die("after")
            return result

        return call_later if inspect.iscoroutinefunction(plain) else call

    def starting(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            counting[0] = True
            return plain(*args, **more)

        return call

    _wrap(point.target, killing)
    if point.since:
        _wrap(point.since, starting)


class ForkServer:
    """The process that forks, as a context manager."""

    def __enter__(self) -> ForkServer:
        tests = Path(__file__).resolve().parents[1]
        paths = [str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")]
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.kill_harness"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **quiet, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        if self._answer() != "ready":
            raise RuntimeError("the process that forks did not start")
        return self

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(self, argv: Sequence[str], log: Path, kill: Kill | None = None, **env: str) -> Ended:
        """One run of the command line, killed as `kill` says."""
        assert self._process.stdin is not None
        kill = kill or Kill()
        point = None if kill.point is None else asdict(kill.point)
        order = {"argv": list(argv), "log": str(log), "after_s": kill.after_s, "point": point, "env": env}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if not answer:
            raise RuntimeError("the process that forks has ended")
        return Ended(**json.loads(answer))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(20)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


# --- a run and its kills ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """The rows of a store after a run had ended or was killed."""

    rows: dict[str, frozenset[str]] = field(default_factory=dict)
    """The keys of every table that may lose no rows; for llm_calls, the keys of answered calls."""
    attempts: int = 0
    """The number of requests that the store knows."""


_KEPT = {
    "llm_calls": "SELECT request_sha256 || sample FROM llm_calls WHERE status = 'ok'",
    "explanations": "SELECT explanation_id || status || coalesce(text, '') FROM explanations WHERE status <> 'gave_up'",
    "scores": "SELECT score_id || status || coalesce(value, 0) FROM scores WHERE status <> 'gave_up'",
    "predictions": "SELECT score_id || context_id FROM predictions",
    "measure_tasks": "SELECT task_id FROM measure_tasks",
    "measurements": "SELECT task_id FROM measurements",
    "harvests": "SELECT harvest_id::VARCHAR FROM harvests",
    "dictionaries": "SELECT dictionary_id::VARCHAR FROM dictionaries",
    "runs": "SELECT run_id FROM runs",
}


def held(store: Path) -> Held:
    """Reads the store without changing anything, since the next run must find what the kill left."""
    if not store.exists():
        return Held()
    with duckdb.connect(str(store), read_only=True) as con:
        there = {row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        rows = {t: frozenset(r[0] for r in con.execute(sql).fetchall()) for t, sql in _KEPT.items() if t in there}
        attempts = con.execute("SELECT coalesce(sum(attempts), 0) FROM llm_calls").fetchall() if rows else [(0,)]
        return Held(rows, int(attempts[0][0]))


@dataclass(frozen=True)
class Step:
    """One run of a story: how it ended, and what the store then held."""

    ended: Ended
    kill: Kill | None
    held: Held


@dataclass
class Story:
    """A project's runs, up to the one that ended by itself."""

    project: Path
    steps: list[Step] = field(default_factory=list)

    @property
    def kills(self) -> list[Step]:
        return [step for step in self.steps if step.ended.killed]

    @property
    def log(self) -> str:
        return (self.project / "log.txt").read_text(encoding="utf-8", errors="replace")

    def lost_rows(self) -> list[str]:
        """Rows that a run found in the store and a later run did not. There must be no such rows."""
        lost = []
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            for table, keys in before.held.rows.items():
                lost += [f"{table}: {key}" for key in keys - after.held.rows.get(table, frozenset())]
        return lost

    def requests(self, entries: Sequence[Entry]) -> list[list[Entry]]:
        """For every run, the requests that reached the server between its beginning and that of the next run."""
        begun = [step.ended.begun for step in self.steps]
        ends = [*begun[1:], self.steps[-1].ended.ended]
        return [[e for e in entries if b <= e.arrived < end] for b, end in zip(begun, ends, strict=True)]

    def unrecorded(self, entries: Sequence[Entry]) -> list[int]:
        """For every run, the number of requests that reached the server but are unknown to the store."""
        known = [0, *(step.held.attempts for step in self.steps)]
        asked = self.requests(entries)
        return [len(asked[i]) - (known[i + 1] - known[i]) for i in range(len(self.steps))]


def one_run(forks: ForkServer, story: Story, kill: Kill | None, command: Sequence[str] = ("run",)) -> Step:
    """Adds one run to the story. Raises AssertionError if it was not killed and its exit code is not 0."""
    project = story.project
    argv = [*command, "-c", str(project / "autointerp.toml"), "-v"]
    ended = forks.run(argv, project / "log.txt", kill, OPENAI_API_KEY="sk-test")
    story.steps.append(Step(ended, kill, held(project / "tiny.duckdb")))
    assert ended.killed or ended.code == 0, f"exit code {ended.code} after {kill}:\n{story.log[-3000:]}"
    return story.steps[-1]


def run_killed(forks: ForkServer, project: Path, kills: Iterable[Kill]) -> Story:
    """Runs `autointerp run` once for each of `kills`, killed as that says, and then once more to its end. If a run ends
    before the time of its kill, the story ends early; if it never reaches the place of its kill, raises
    AssertionError."""
    story = Story(project)
    for kill in kills:
        if not one_run(forks, story, kill).ended.killed:
            assert kill.point is None, f"no run came by {kill.point.name!r}"
            return story
    one_run(forks, story, None)
    return story


def random_kills(rng: random.Random, duration_s: float) -> Iterator[Kill]:
    """Kills at moments within an undisturbed run's time, most of them within its first quarter, so that several kills
    hit the same stretch of the work before a run gets beyond it."""
    while True:
        yield Kill(after_s=rng.uniform(0.0, duration_s * rng.choice((0.25, 0.25, 0.25, 1.0))))


# --- what must be so afterwards ---------------------------------------------------------------------------------------

NATURAL_KEYS = {
    "corpora": "source, tokenizer_sha256, n_documents",
    "dictionaries": "name",
    "harvests": "dictionary_id, corpus_id, config::VARCHAR",
    "features": "dictionary_id, feature",
    "vocab_projection": "dictionary_id, feature, sign, rank",
    "method_runs": "dictionary_id, feature, method",
    "neighbours": "dictionary_id, feature, relation, rank",
    "feature_shapes": "dictionary_id, feature",
    "output_statistics": "dictionary_id, feature",
    "mutual_information": "dictionary_id, feature, mode, rank",
    "input_words": "dictionary_id, feature, rank",
    "pruned_contexts": "dictionary_id, feature, rank",
    "explanations": "dictionary_id, feature, harvest_id, explainer, model, template_sha256, seed",
    "scores": "explanation_id, feature, scorer, method, control, part, model, template_sha256, seed",
    "predictions": "score_id, context_id",
    "llm_calls": "request_sha256, sample",
    "measure_tasks": "task_id",
    "measurements": "task_id",
    "training_metrics": "dictionary_id, step, metric",
    "evidence.windows": "corpus_id, document, start",
    "evidence.context_rows": "dictionary_id, feature, split, kind, tier, rank",
    "evidence.harvest_info": "dictionary_id",
}
_OF_THE_RUN = ("created_at", "sequence", "run_id", "latency_s", "attempts", "store_id")
_OF_THE_ATTEMPTS = ("input_tokens", "cached_tokens", "output_tokens", "cost_usd")
"""Columns that include failed attempts, which are billed as well; which attempts fail depends on what was in flight."""


@dataclass(frozen=True)
class Result:
    """The result of a run to the end."""

    tables: dict[str, list[tuple[Any, ...]]]
    duplicates: list[str]
    asked_again: int
    """The number of requests beyond the first that rows of llm_calls report."""
    files: dict[str, str | None]
    """Every file of the project, with its sha256 if it must be equal byte for byte."""


def result_of(project: Path, *, with_usage: bool = True) -> Result:
    """The result of a project's runs, without times, ids of runs and whatever depends on the number of attempts.
    Unless `with_usage`, what the calls have used is left out too."""
    left_out = _OF_THE_RUN if with_usage else (*_OF_THE_RUN, *_OF_THE_ATTEMPTS)
    tables, duplicates = {}, []
    with duckdb.connect(str(project / "tiny.duckdb"), read_only=True) as con:
        con.execute(f"ATTACH '{project / 'tiny.evidence.duckdb'}' AS evidence (READ_ONLY)")
        for table, key in NATURAL_KEYS.items():
            columns = [row[0] for row in con.execute(f"DESCRIBE {table}").fetchall() if row[0] not in left_out]
            # Which abilities an endpoint has is asked anew by every run.
            where = "WHERE stage <> 'probe'" if table == "llm_calls" else ""
            listed = ", ".join(f'"{column}"' for column in columns)
            tables[table] = con.execute(f"SELECT {listed} FROM {table} {where} ORDER BY ALL").fetchall()
            twice = con.execute(f"SELECT {key} FROM {table} GROUP BY ALL HAVING count(*) > 1").fetchall()
            duplicates += [f"{table}: {row}" for row in twice]
        settings = "SELECT dictionary_id, name, value FROM settings ORDER BY ALL"
        tables["settings"] = con.execute(settings).fetchall()
        asked_again = con.execute("SELECT sum(attempts) - count(*) FROM llm_calls").fetchall()[0][0]
    files = {}
    for path in sorted(project.rglob("*")):
        name = str(path.relative_to(project))
        equal = name.startswith("sae/") and not name.endswith("checkpoint.safetensors")
        if path.is_file() and name not in ("log.txt", "autointerp.toml"):
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest() if equal else None
    return Result(tables, duplicates, int(asked_again), files)


def what_is_wrong(
    story: Story, entries: Sequence[Entry], undisturbed: Story, its_entries: Sequence[Entry], *, faults: bool = False
) -> list[str]:
    """What a story of kills has done wrong; empty if all is well. `faults` says that its server has faults, so that
    requests are repeated and the bill differs."""
    wanted = result_of(undisturbed.project, with_usage=not faults)
    found = result_of(story.project, with_usage=not faults)
    wrong = [f"lost {row}" for row in story.lost_rows()] + [f"twice {row}" for row in found.duplicates]
    for table, rows in wanted.tables.items():
        if rows != found.tables[table]:
            other = set(map(repr, rows)) ^ set(map(repr, found.tables[table]))
            wrong.append(f"{table} has other rows: {sorted(other)[:2]}")
    for name in sorted({*wanted.files, *found.files}):
        if name not in wanted.files or name not in found.files:
            wrong.append(f"{name} is {'left over' if name in found.files else 'missing'}")
        elif wanted.files[name] != found.files[name]:
            wrong.append(f"{name} has other bytes")
    if not faults and found.asked_again:
        wrong.append(f"{found.asked_again} requests were made although the store had their answer")
    asked = {entry.sha256 for requests in story.requests(entries) for entry in requests}
    should = {entry.sha256 for requests in undisturbed.requests(its_entries) for entry in requests}
    if asked != should:
        wrong.append(
            f"{len(asked - should)} requests that an undisturbed run does not make, {len(should - asked)} less"
        )
    for step, n, requests in zip(story.steps, story.unrecorded(entries), story.requests(entries), strict=True):
        # Under way, or answered and not yet committed: together no more than may be in flight. A failed attempt is
        # recorded with the outcome of its request.
        most = CONNECTIONS + sum(entry.fault is not None for entry in requests) if step.ended.killed else 0
        if not 0 <= n <= most:
            wrong.append(f"{n} requests without a record in {step.ended.stage!r} after {step.kill}")
    return wrong


if __name__ == "__main__":
    _serve()
