"""The test server with the Batch API (files, batches and their results). The server's brain answers the requests.

    with BatchServer(brain, spoiled=[{"shuffled"}, {"expired"}]) as server: ...

`spoiled` says what goes wrong with the first, second, ... batch that is created:

    "shuffled": lines in another order          "missing": every second result is in no file
    "duplicated": every line twice              "strays": lines whose custom_id nobody sent
    "errors_only": every request answered 500, so there is an error file and no output file
    "expired": it expires half-way, the rest is in the error file
    "failed": it does not pass validation       "token_limit": it fails for the enqueued tokens
    "torn": the last line of the output breaks off, on the first download only
    "lost_create": it is created, but the reply to its creation is a 500
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from support.llm_server import BODIES, PAYLOADS, BrainReply, Kind, LlmServer, _abort

KINDS: dict[str, Kind] = {
    "/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/embeddings": "embeddings",
}  # fmt: skip


@dataclass
class BatchServer(LlmServer):
    spoiled: list[set[str]] = field(default_factory=list)
    polls: int = 1
    """How many polls of a batch find it unfinished."""
    held: bool = False
    """If true, no batch ends."""
    poll_faults: int = 0
    """How many polls are answered with a 500."""
    download_faults: int = 0
    """How many downloads break off half-way."""
    upload_faults: int = 0
    edit: Callable[[bytes], bytes] = lambda lines: lines
    """What becomes of the lines of every output file."""
    endless: bytes = b""
    """If given, every output file goes on with this again and again."""
    slow_s: float = 0.0
    """If given, files come in pieces of a byte, with so many seconds between them."""
    prefix: str = ""
    """What the address has before /v1, for batches."""
    all_headers: list[dict[str, str]] = field(default_factory=list)
    """The headers of every request, those about files and batches included."""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    answered: Counter[str] = field(default_factory=Counter)
    """How often each custom_id was answered by the model (and would be billed)."""
    submitted: Counter[str] = field(default_factory=Counter)
    """The number of batches that held each custom_id."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._looks: Counter[str] = Counter()
        self._attempts: Counter[str] = Counter()
        self._downloads: Counter[str] = Counter()

    def _add_routes(self, app: web.Application) -> None:
        super()._add_routes(app)
        under = f"{self.prefix}/v1"
        app.router.add_post(f"{under}/files", self._upload)
        app.router.add_get(f"{under}/files/{{id}}/content", self._content)
        app.router.add_post(f"{under}/batches", self._create)
        app.router.add_get(f"{under}/batches", self._list)
        app.router.add_get(f"{under}/batches/{{id}}", self._retrieve)

        @web.middleware
        async def note(request: web.Request, handler: Any) -> web.StreamResponse:
            self.all_headers.append(dict(request.headers))
            response: web.StreamResponse = await handler(request)
            return response

        app.middlewares.append(note)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}/v1"

    @property
    def sizes(self) -> list[int]:
        """The number of requests in each batch."""
        return [batch["request_counts"]["total"] for batch in self.batches.values()]

    def _faults(self, batch: dict[str, Any]) -> set[str]:
        number = int(batch["id"].removeprefix("batch_"))
        return self.spoiled[number] if number < len(self.spoiled) else set()

    def _store(self, content: bytes) -> str:
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = content
        return file_id

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        if self.upload_faults > 0:
            self.upload_faults -= 1
            return _server_error()
        assert form["purpose"] == "batch"
        upload = form["file"]
        assert isinstance(upload, web.FileField)
        content = upload.file.read()
        return web.json_response({"id": self._store(content), "object": "file", "bytes": len(content)})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        assert asked["completion_window"] == "24h"
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        assert all(line["url"] == asked["endpoint"] and line["method"] == "POST" for line in lines)
        ids = [line["custom_id"] for line in lines]
        assert len(set(ids)) == len(ids) and max(map(len, ids)) <= 64
        self.submitted.update(ids)
        batch = {
            "id": f"batch_{len(self.batches)}", "object": "batch", "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"], "completion_window": "24h", "status": "validating",
            "created_at": 1_000_000, "metadata": asked.get("metadata"), "errors": None, "output_file_id": None,
            "error_file_id": None, "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }  # fmt: skip
        self.batches[batch["id"]] = batch
        return _server_error() if "lost_create" in self._faults(batch) else web.json_response(batch)

    async def _list(self, request: web.Request) -> web.Response:
        """Lists the batches, two to a page, newest first."""
        newest = list(reversed(self.batches.values()))
        after = request.query.get("after")
        start = 0 if after is None else 1 + [b["id"] for b in newest].index(after)
        return web.json_response(
            {"object": "list", "data": newest[start : start + 2], "has_more": start + 2 < len(newest)}
        )

    async def _retrieve(self, request: web.Request) -> web.Response:
        if self.poll_faults > 0:
            self.poll_faults -= 1
            return _server_error()
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return web.json_response({"error": {"message": "No such batch", "code": None}}, status=404)
        self._looks[batch["id"]] += 1
        if batch["status"] in ("validating", "in_progress"):
            batch["status"] = "in_progress"
            if not self.held and self._looks[batch["id"]] > self.polls:
                self._end(batch)
        return web.json_response(batch)

    def _end(self, batch: dict[str, Any]) -> None:
        faults = self._faults(batch)
        if faults & {"failed", "token_limit"}:
            code = "token_limit_exceeded" if "token_limit" in faults else "invalid_json_line"
            errors = [{"code": code, "message": "not accepted", "line": 3, "param": None}]
            batch.update(status="failed", failed_at=1_000_010, errors={"object": "list", "data": errors})
            return
        asked = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        left: list[dict[str, Any]] = []
        if "expired" in faults:
            asked, left = asked[: len(asked) // 2], asked[len(asked) // 2 :]
        good, bad = [], []
        for line in asked:
            status, body = (500, _ERROR) if "errors_only" in faults else self._result(line, KINDS[batch["endpoint"]])
            response = {"status_code": status, "request_id": "r", "body": body}
            result = {"id": "batch_req", "custom_id": line["custom_id"], "response": response, "error": None}
            (good if status == 200 else bad).append(result)
        gone = {"code": "batch_expired", "message": "This request could not be executed before the window expired."}
        bad += [{"id": "batch_req", "custom_id": x["custom_id"], "response": None, "error": gone} for x in left]
        batch["request_counts"].update(completed=len(good), failed=len(bad))
        if "missing" in faults:
            good = good[::2]
            batch["request_counts"]["completed"] = len(good)
        if "shuffled" in faults:
            good.reverse()
        if "duplicated" in faults:
            good = [x for line in good for x in (line, line)]
        if "strays" in faults:
            good = [{**good[0], "custom_id": "nobody-0"}, *good, {**good[-1], "custom_id": "nobody-1"}]
        batch["output_file_id"] = self._store(self.edit(_jsonl(good))) if good else None
        batch["error_file_id"] = self._store(_jsonl(bad)) if bad else None
        batch.update(status="expired" if left else "completed")
        batch["expired_at" if left else "completed_at"] = 1_000_060

    def _result(self, line: dict[str, Any], kind: Kind) -> tuple[int, Any]:
        """(status, body) of one request's own reply."""
        body = line["body"]
        key = json.dumps(body, sort_keys=True)
        attempt, self._attempts[key] = self._attempts[key], self._attempts[key] + 1
        result = self.brain(kind, body, attempt)
        if isinstance(result, BrainReply):
            self.answered[line["custom_id"]] += 1
            return 200, PAYLOADS[kind](body, result)
        if result.kind in BODIES:
            status, _, text = BODIES[result.kind]
            try:
                return status, json.loads(text)
            except ValueError:
                return status, text
        return int(result.kind), {"error": {"message": f"fault {result.kind}", "code": None}}

    async def _content(self, request: web.Request) -> web.StreamResponse:
        file_id = request.match_info["id"]
        content = self.files[file_id]
        first = not self._downloads[file_id]
        self._downloads[file_id] += 1
        owner = next((b for b in self.batches.values() if b["output_file_id"] == file_id), None)
        if owner is not None and "torn" in self._faults(owner) and first:
            content = content[:-20]
        if self.download_faults > 0:
            self.download_faults -= 1
            response = web.StreamResponse(headers={"Content-Length": str(len(content))})
            await response.prepare(request)
            await response.write(content[: len(content) // 2])
            await asyncio.sleep(0.02)
            _abort(request)
            return response
        if self.slow_s:
            response = web.StreamResponse()
            await response.prepare(request)
            with suppress(ConnectionError):
                for at in range(len(content)):
                    await response.write(content[at : at + 1])
                    await asyncio.sleep(self.slow_s)
            return response
        if self.endless:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(content)
            with suppress(ConnectionError):
                while True:
                    await response.write(self.endless)
            return response
        return web.Response(body=content, content_type="application/octet-stream")


_ERROR = {"error": {"message": "upstream failed", "type": "server_error", "code": None}}


def _server_error() -> web.Response:
    return web.json_response(_ERROR, status=500)


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
