"""The calls about a batch, one attempt each, through the SDK's client and with the errors of transport.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import openai

from autointerp.llm.batch_files import BatchState, FileLine, read_state, url_of
from autointerp.llm.endpoint_errors import AttemptTimeoutError, BadReplyError
from autointerp.llm.replies import load_json
from autointerp.llm.transport import Transport

SLOWEST_BYTES_PER_S = 100_000
"""An upload slower than this is a timeout."""
SLOWEST_DOWNLOAD_BYTES_PER_S = 1000
"""A download that is slower than this on the whole is a timeout: it may be one that never ends."""
ENDS_KEPT = 4096
"""Bytes that are kept of each end of a line that is too long."""
MOST_LINE_BYTES = 256 * 2**20
"""A line larger than this is taken for one that never ends."""
PAGES = 20
"""Pages of 100 batches that are searched for a batch whose creation was not acknowledged."""


class _GrowingLine:
    """A line that arrives in pieces."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._pieces: list[bytes] = []
        self._tail = b""
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._tail:
            self._tail = (self._tail + piece)[-ENDS_KEPT:]
            return
        self._pieces.append(piece)
        if self.size > self._cap:
            text = b"".join(self._pieces)
            self._pieces, self._tail = [text[:ENDS_KEPT]], text[-ENDS_KEPT:]

    def ended(self) -> FileLine:
        return FileLine(b"".join(self._pieces), self.size, self._tail)


class BatchTransport:
    """Every method raises the errors of endpoint_errors.py, and StoppedError when the account is empty."""

    def __init__(self, transport: Transport, timeout: float, line_cap: int, model: str) -> None:
        self._transport = transport
        self._timeout = timeout
        self.cap = line_cap
        self._model = model

    async def upload(self, name: str, lines: bytes) -> str:
        """Upload a file and return its id."""

        async def send(client: openai.AsyncOpenAI) -> bytes:
            file = (name, lines, "application/jsonl")
            return (await client.files.with_raw_response.create(file=file, purpose="batch")).content

        seconds = self._timeout + len(lines) / SLOWEST_BYTES_PER_S
        payload = self._json(await self._transport.guarded(send, seconds, self._model, "/files"))
        file_id = payload.get("id") if isinstance(payload, dict) else None
        if not isinstance(file_id, str) or not file_id:
            raise BadReplyError("the reply to an upload names no file")
        return file_id

    async def create(self, file_id: str, kind: str, metadata: dict[str, str]) -> BatchState:
        async def send(client: openai.AsyncOpenAI) -> bytes:
            found = await client.batches.with_raw_response.create(
                input_file_id=file_id,
                endpoint=url_of(kind),  # type: ignore[arg-type]
                completion_window="24h",
                metadata=metadata,
            )
            return found.content

        return self._state(await self._transport.guarded(send, self._timeout, self._model, "/batches"))

    async def state(self, batch_id: str) -> BatchState:
        async def send(client: openai.AsyncOpenAI) -> bytes:
            return (await client.batches.with_raw_response.retrieve(batch_id)).content

        return self._state(await self._transport.guarded(send, self._timeout, self._model, f"/batches/{batch_id}"))

    async def with_key(self, batch_key: str) -> BatchState | None:
        """The batch whose metadata holds this key; None where the endpoint has none."""
        after: str | None = None
        for _ in range(PAGES):
            payload = await self._page(after)
            rows = payload.get("data") if isinstance(payload, dict) else None
            states = [read_state(row) for row in rows] if isinstance(rows, list) else []
            for state in states:
                if state is not None and state.batch_key == batch_key:
                    return state
            last = states[-1] if states else None
            if last is None or payload.get("has_more") is not True or last.batch_id == after:
                break
            after = last.batch_id
        return None

    async def _page(self, after: str | None) -> Any:
        async def send(client: openai.AsyncOpenAI) -> bytes:
            page = client.batches.with_raw_response
            return (await (page.list(limit=100) if after is None else page.list(limit=100, after=after))).content

        return self._json(await self._transport.guarded(send, self._timeout, self._model, "/batches"))

    async def lines(self, file_id: str) -> AsyncGenerator[FileLine]:
        """The lines of a file, as they arrive. Of a line longer than the cap, only both ends are kept. If the file ends
        early, the lines that arrived come first, then the error."""
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=8)

        async def read(client: openai.AsyncOpenAI) -> None:
            waited, received = 0.0, 0
            async with client.files.with_streaming_response.content(file_id) as response:
                arriving = aiter(response.iter_bytes())
                asked_at = time.monotonic()
                async for chunk in arriving:
                    waited, received = waited + time.monotonic() - asked_at, received + len(chunk)
                    if waited > self._timeout + received / SLOWEST_DOWNLOAD_BYTES_PER_S:
                        raise AttemptTimeoutError(
                            f"file {file_id} arrives too slowly: {received:,} B in {waited:.0f} s"
                        )
                    await chunks.put(chunk)
                    asked_at = time.monotonic()

        async def download() -> None:
            failure: Exception | None = None
            try:
                # How long a whole file takes is not known; `read` and the SDK's own timeout end a stream that crawls
                # or stands still.
                await self._transport.guarded(read, 86_400.0, self._model, f"/files/{file_id}/content")
            except Exception as error:
                failure = error
            await chunks.put(None)
            if failure is not None:
                raise failure

        task = asyncio.create_task(download(), name="batch-download")
        try:
            line = _GrowingLine(self.cap)
            while (chunk := await chunks.get()) is not None:
                *ends, rest = chunk.split(b"\n")
                for end in ends:
                    line.add(end)
                    yield line.ended()
                    line = _GrowingLine(self.cap)
                line.add(rest)
                if line.size > MOST_LINE_BYTES:
                    yield line.ended()
                    raise BadReplyError(f"a line of file {file_id} goes on after {line.size:,} bytes")
            if line.size:
                yield line.ended()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def decoded(self, raw: bytes) -> str:
        """What was downloaded, as text without the key."""
        return self._transport.redact(raw.decode("utf-8", "replace"))

    def _json(self, raw: bytes) -> Any:
        return load_json(self.decoded(raw))

    def _state(self, raw: bytes) -> BatchState:
        state = read_state(self._json(raw))
        if state is None:
            raise BadReplyError("the reply is not a batch")
        return state
