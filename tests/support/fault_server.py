"""The loopback server of llm_server.py as a separate process, which misbehaves by a seed and keeps its own ledger.

    with FaultServer(tmp_path / "server.jsonl", brain="support.known_words:World", seed=7, rate=0.05) as server:
        ... EndpointConfig(base_url=server.url) ...
    entries = read_ledger(tmp_path / "server.jsonl")

A request's fault depends on the seed, on the request's body and on how often that body has come before. It depends
neither on the order of requests nor on time, so it can be replayed. The ledger is the truth about what was asked and
what would be billed: a line is on the disk before a request is worked on, and another one before its answer leaves.
Killing the client harms neither the server nor its ledger.

    # prints its URL; ends with its stdin
    PYTHONPATH=tests python -m support.fault_server --ledger server.jsonl --seed 7 --rate 0.05
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

from autointerp.llm.requests import request_sha256
from support.llm_server import PAYLOADS, Brain, BrainReply, Fault, Kind, LlmServer, prompt_text, usage_of

PASSING: dict[str, float] = {
    "429": 2, "500": 2, "502": 1, "503": 1, "529": 1, "408": 0.5, "reset": 1, "short_body": 1, "hang": 0.3,
    "slow_loris": 0.3, "truncated_json": 1, "html": 0.5, "error_200": 0.5, "empty_choices": 0.5, "null_choices": 0.5,
    "no_message": 0.5, "huge": 0.2, "huge_declared": 0.2,
}  # fmt: skip
"""Faults on the wire and their weights. The next attempt draws anew."""
WORDS: dict[str, float] = {"garbage": 1, "empty": 1, "cut": 1}
"""Mistakes that a model makes now and then: an unreadable answer, an empty one, one cut off by its length."""
LASTING: dict[str, float] = {"refusal": 1, "content_filter_400": 1, "ctx_too_long": 0.5}
"""Faults that a request meets every time, and their weights."""
BILLED_WITHOUT_ANSWER = {"reset", "short_body", "hang", "slow_loris", "truncated_json", "huge", "huge_declared"}
"""Faults after the model has written its answer, which is billed although nothing useful arrives."""


@dataclass(frozen=True)
class Plan:
    """The faults to make. `rate` is the share of attempts that meet a passing fault or a model's mistake, `lasting` the
    share of requests that are refused every time. `kinds` are weights that replace PASSING and WORDS. `by` (pattern ->
    kind) always spoils the requests in whose text the pattern is found (the text ends with a line `max_tokens N`), but
    only the `first` attempts of each. `retry_after` is that of a 429, in seconds."""

    seed: int = 0
    rate: float = 0.0
    lasting: float = 0.0
    kinds: Mapping[str, float] | None = None
    by: Mapping[str, str] | None = None
    first: int | None = None
    retry_after: float = 0.3
    huge: int = 6_000_000

    def fault(self, sha256: str, attempt: int, text: str = "") -> str | None:
        for pattern, kind in (self.by or {}).items():
            if (self.first is None or attempt < self.first) and re.search(pattern, text):
                return kind
        always = self._draw(sha256, "always")
        if always < self.lasting:
            return _pick(LASTING, always / self.lasting)
        now = self._draw(sha256, str(attempt))
        if now < self.rate:
            return _pick(self.kinds or {**PASSING, **WORDS}, now / self.rate)
        return None

    def _draw(self, *parts: str) -> float:
        digest = hashlib.sha256("\0".join((str(self.seed), *parts)).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


def _pick(weights: Mapping[str, float], at: float) -> str:
    """The kind at the share `at` (0..1) of the weights laid end to end."""
    left = at * sum(weights.values())
    for kind, weight in weights.items():
        left -= weight
        if left < 0:
            return kind
    return next(reversed(weights))


@dataclass(frozen=True)
class Entry:
    """A request as the server saw it."""

    number: int
    sha256: str
    """The hash of the body."""
    attempt: int
    """0 for the first time this body came."""
    kind: Kind
    request: str
    """The request's key in llm_calls."""
    arrived: float
    """The time.time() of its arrival."""
    fault: str | None = None
    billed: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    answered: bool = False
    """Whether an answer (or the fault in its place) was about to leave before the server or its client ended."""
    left: float = 0.0
    """The time.time() at which the answer was about to leave."""


class Book:
    """Writes lines, which are on the disk when `write` returns. All waiting lines share one fsync."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab")  # noqa: SIM115 - as long as the server
        self._lines: list[bytes] = []
        self._flushing: asyncio.Future[None] | None = None

    async def write(self, line: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps(line).encode() + b"\n")
        while self._flushing is not None:
            await asyncio.wait([self._flushing])
        if not self._lines:  # the flush that began after ours was added has taken it along
            return
        lines, self._lines = self._lines, []
        self._flushing = asyncio.ensure_future(asyncio.to_thread(self._flush, b"".join(lines)))
        try:
            await asyncio.shield(self._flushing)
        finally:
            self._flushing = None

    def _flush(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())


class MisbehavingServer(LlmServer):
    """An LlmServer whose answers are spoiled by a Plan and recorded in a Book."""

    def __init__(self, brain: Brain, plan: Plan, ledger: Path, **options: Any) -> None:
        super().__init__(brain, **options)
        self.plan = plan
        self.ledger = ledger
        self.count = 0
        self._times: Counter[str] = Counter()
        self._book: Book | None = None

    def _add_routes(self, app: web.Application) -> None:
        super()._add_routes(app)
        app.router.add_post("/plan", self._renew)

    async def _renew(self, request: web.Request) -> web.Response:
        """Replaces plan and ledger, as if the server had been started with them."""
        new = await request.json()
        self.plan, self.ledger, self.latency = Plan(**new["plan"]), Path(new["ledger"]), new["latency"]
        self._book, (self.count, self._times) = None, _known(self.ledger)
        return web.Response()

    async def _answer(self, kind: Kind, request: web.Request) -> web.StreamResponse:
        self._book = self._book or Book(self.ledger)
        raw = await request.read()
        sha = hashlib.sha256(raw).hexdigest()
        self.count += 1
        key = request_sha256(kind, json.loads(raw))
        entry = Entry(self.count, sha, self._times[sha], kind, key, time.time())
        self._times[sha] += 1
        await self._book.write({"arrived": asdict(entry)})
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            return await self._spoiled(kind, json.loads(raw), request, entry)
        finally:
            self.in_flight -= 1

    async def _spoiled(
        self, kind: Kind, body: dict[str, Any], request: web.Request, entry: Entry
    ) -> web.StreamResponse:
        assert self._book is not None
        if self.latency:
            await asyncio.sleep(self.latency)
        fault = self.plan.fault(
            entry.sha256, entry.attempt, f"{prompt_text(body)}\nmax_tokens {body.get('max_tokens')}"
        )
        result = self.brain(kind, body, entry.attempt)
        reply = result if isinstance(result, BrainReply) else BrainReply("")
        fault = result.kind if isinstance(result, Fault) else fault
        if fault in WORDS or fault == "refusal":
            reply = _slip(fault, reply)
        usage = usage_of(body, reply)
        billed = fault is None or fault in WORDS or fault == "refusal" or fault in BILLED_WITHOUT_ANSWER
        entry = replace(
            entry,
            fault=fault,
            billed=billed,
            input_tokens=usage["prompt_tokens"] if billed else 0,
            output_tokens=usage["completion_tokens"] if billed else 0,
            answered=True,
            left=time.time(),
        )
        await self._book.write({"answered": asdict(entry)})
        if fault is None or fault in WORDS or fault == "refusal":
            return web.json_response(PAYLOADS[kind](body, reply))
        wait = self.plan.retry_after if fault == "429" else None
        return await self._fault(Fault(fault, retry_after=wait, size=self.plan.huge), request)


def _slip(kind: str, reply: BrainReply) -> BrainReply:
    if kind == "refusal":
        return replace(reply, text="", tokens=None, prompt_tokens=None, refusal="I cannot help with that.")
    if kind == "garbage":
        return replace(reply, text="~~ ?? ~~", tokens=None, prompt_tokens=None)
    if kind == "empty":
        return replace(reply, text="", tokens=None, prompt_tokens=None)
    return replace(reply, text=reply.text[: len(reply.text) // 3], tokens=None, finish_reason="length")


def read_ledger(path: Path) -> list[Entry]:
    """All requests in the order of their arrival. A torn last line is skipped."""
    entries: dict[int, Entry] = {}
    for raw in path.read_bytes().split(b"\n")[:-1]:
        for found in json.loads(raw).values():
            entries[found["number"]] = Entry(**found)
    return [entries[number] for number in sorted(entries)]


@dataclass
class FaultServer:
    """The server as a child process. `brain` is "module:name" of a callable without arguments that makes the brain;
    it must be importable from the folder of the tests."""

    ledger: Path
    brain: str = "support.known_words:World"
    seed: int = 0
    rate: float = 0.0
    lasting: float = 0.0
    latency: float = 0.0
    kinds: Mapping[str, float] | None = None
    retry_after: float = 0.3
    port: int = 0
    url: str = ""
    pid: int = 0

    def __enter__(self) -> FaultServer:
        command = [
            sys.executable, "-m", "support.fault_server", "--ledger", str(self.ledger), "--brain", self.brain,
            "--seed", str(self.seed),
            "--rate", str(self.rate), "--lasting", str(self.lasting), "--latency", str(self.latency),
            "--retry-after", str(self.retry_after), "--port", str(self.port),
        ]  # fmt: skip
        if self.kinds is not None:
            command += ["--kinds", json.dumps(dict(self.kinds))]
        # A group of its own: a kill of the client's group must not reach it.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self.pid = self._process.pid
        if not self.url:
            raise RuntimeError("the fault server did not start")
        self.port = int(self.url.removesuffix("/v1").rpartition(":")[2])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def renew(self, ledger: Path, latency: float = 0.0, **plan: Any) -> None:
        """Gives the running server another plan (fields of Plan) and ledger, which is cheaper than a new server."""
        body = json.dumps({"plan": plan, "ledger": str(ledger), "latency": latency}).encode()
        request = urllib.request.Request(self.url.removesuffix("/v1") + "/plan", body, method="POST")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20).close()
        self.ledger = ledger

    def kill(self) -> None:
        """Kills the server as a power cut would. Entering again restarts it on the same port and ledger."""
        self._process.kill()
        self._process.wait(20)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def entries(self) -> list[Entry]:
        return read_ledger(self.ledger) if self.ledger.exists() else []


def _made(name: str) -> Brain:
    module, _, attribute = name.partition(":")
    brain: Brain = getattr(importlib.import_module(module), attribute)()
    return brain


def _known(ledger: Path) -> tuple[int, Counter[str]]:
    """The last number that an earlier server has written, and how often each body came."""
    entries = read_ledger(ledger) if ledger.exists() else []
    return max((e.number for e in entries), default=0), Counter(e.sha256 for e in entries)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--brain", default="support.known_words:World")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--lasting", type=float, default=0.0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--retry-after", type=float, default=0.3)
    parser.add_argument("--kinds", type=json.loads, default=None)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args(argv)
    plan = Plan(args.seed, args.rate, args.lasting, args.kinds, retry_after=args.retry_after)
    server = MisbehavingServer(_made(args.brain), plan, args.ledger, latency=args.latency, port=args.port)
    server.count, server._times = _known(args.ledger)
    with server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        sys.stdin.read()  # until the parent closes it, or is gone
    os._exit(0)


if __name__ == "__main__":
    main()
