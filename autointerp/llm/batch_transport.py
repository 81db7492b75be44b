"""The calls about a batch, one attempt each, through the SDK's client and with the errors of transport.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import openai

from autointerp.llm.batch_files import BatchState, read_state, url_of
from autointerp.llm.endpoint_errors import BadReplyError
from autointerp.llm.replies import load_json
from autointerp.llm.transport import Transport

SLOWEST_BYTES_PER_S = 100_000
"""An upload slower than this is a timeout."""
PAGES = 20
"""Pages of 100 batches that are searched for a batch whose creation was not acknowledged."""


class BatchTransport:
    """Every method raises the errors of endpoint_errors.py, and StoppedError when the account is empty."""

    def __init__(self, transport: Transport, timeout: float, line_cap: int, model: str) -> None:
        self._transport = transport
        self._timeout = timeout
        self._cap = line_cap
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

    async def lines(self, file_id: str) -> AsyncGenerator[bytes]:
        """The lines of a file, as they arrive. If the file ends early, the lines that arrived come first, then the
        error."""
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=8)

        async def read(client: openai.AsyncOpenAI) -> None:
            async with client.files.with_streaming_response.content(file_id) as response:
                async for chunk in response.iter_bytes():
                    await chunks.put(chunk)

        async def download() -> None:
            failure: Exception | None = None
            try:
                # How long a whole file takes is not known; the SDK's own timeout ends a stream that stands still.
                await self._transport.guarded(read, 86_400.0, self._model, f"/files/{file_id}/content")
            except Exception as error:
                failure = error
            await chunks.put(None)
            if failure is not None:
                raise failure

        task = asyncio.create_task(download(), name="batch-download")
        try:
            rest = b""
            while (chunk := await chunks.get()) is not None:
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line
                if len(rest) > self._cap:
                    raise BadReplyError(f"a line of file {file_id} is larger than llm.max_reply_bytes = {self._cap}")
            if rest:
                yield rest
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _json(self, raw: bytes) -> Any:
        return load_json(self._transport.redact(raw.decode("utf-8", "replace")))

    def _state(self, raw: bytes) -> BatchState:
        state = read_state(self._json(raw))
        if state is None:
            raise BadReplyError("the reply is not a batch")
        return state
