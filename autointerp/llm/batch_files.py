"""The files of a batch, without I/O: the JSONL that is uploaded, the JSONL that comes back, and the batch object.

What comes back may have any shape, whatever the API promises. Results are joined by custom_id, never by their order:
lines come in any order and may be missing, and failed requests are in a second file. A batch in which all requests
failed has only that second file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autointerp.llm.requests import Request
from autointerp.llm.transport import PATHS
from autointerp.records import BatchedRequest

MOST_REQUESTS = 50_000
MOST_BYTES = 190_000_000
"""OpenAI accepts files of up to 200 MB."""
MOST_INPUTS = 50_000
"""Most texts in one file, over all its embeddings requests."""
ENDED = ("completed", "failed", "expired", "cancelled")


def custom_id(request: Request) -> str:
    """192 bits of the request's hash, and its sample. Some endpoints allow at most 64 characters."""
    return f"{request.sha256[:48]}-{request.sample}"


def batched(request: Request) -> BatchedRequest:
    return BatchedRequest(
        custom_id(request), request.sha256, request.sample, request.dictionary_id, request.feature, request.stage,
        request.length_is_expected, len(request.inputs) if request.kind == "embeddings" else 0,
    )  # fmt: skip


def stand_in(kind: str, model: str, batched: BatchedRequest) -> Request:
    """A request that serves to read a result when no caller in this process has the real one. Its hash is not the real
    request's."""
    body: dict[str, Any] = {"model": model}
    if kind == "embeddings":
        body["input"] = [""] * batched.n_inputs
    return Request(
        kind, body, batched.stage, batched.sample, batched.dictionary_id, batched.feature,  # type: ignore[arg-type]
        truncation_ok=batched.length_is_expected,
    )  # fmt: skip


def input_line(request: Request) -> bytes:
    head = {"custom_id": custom_id(request), "method": "POST", "url": url_of(request.kind)}
    return json.dumps(head).encode("ascii")[:-1] + b', "body": ' + request.wire + b"}\n"


def url_of(kind: str) -> str:
    return "/v1" + PATHS[kind]


def parted(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Split `requests` into lists of one kind, in order, each small enough for one file."""
    for kind in dict.fromkeys(request.kind for request in requests):
        part: list[Request] = []
        size = texts = 0
        for request in requests:
            if request.kind != kind:
                continue
            more, inputs = len(request.wire) + 200, len(request.inputs) if kind == "embeddings" else 0
            full = len(part) >= MOST_REQUESTS or size + more > MOST_BYTES or texts + inputs > MOST_INPUTS
            if part and full:
                yield part
                part, size, texts = [], 0, 0
            part.append(request)
            size, texts = size + more, texts + inputs
        if part:
            yield part


@dataclass(frozen=True, slots=True)
class BatchState:
    """What the endpoint says about a batch."""

    batch_id: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    n_results: int
    """Lines that its two files should have together; 0 where the endpoint does not say."""
    took_s: float
    """Seconds from its creation to its end by the endpoint's clock; 0 where the endpoint does not say."""
    errors: str
    """The reason why the batch failed; '' if it did not."""
    batch_key: str | None
    """Our own key, which was sent as metadata."""

    @property
    def latency_s(self) -> float:
        """`took_s` plus a number that differs from batch to batch. It is the same whenever the batch is fetched, so the
        store can tell a result that is written twice from a second one that was paid for."""
        digits = hashlib.sha256(self.batch_id.encode("utf-8", "replace")).hexdigest()[:8]
        return self.took_s + int(digits, 16) / 2**32 * 1e-3


def read_state(payload: Any) -> BatchState | None:
    """The batch in `payload`; None where it is not a batch."""
    if not isinstance(payload, dict) or not isinstance(payload.get("id"), str) or not payload["id"]:
        return None
    ended = [payload.get(f"{status}_at") for status in ENDED]
    times = [float(t) for t in (payload.get("created_at"), *ended) if isinstance(t, (int, float))]
    counts = payload.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    n_results = [n for n in (counts.get("completed"), counts.get("failed")) if type(n) is int and n > 0]
    errors = payload.get("errors")
    listed = errors.get("data") if isinstance(errors, dict) else None
    texts = [_error_text(error) for error in listed] if isinstance(listed, list) else []
    metadata = payload.get("metadata")
    key = metadata.get("batch_key") if isinstance(metadata, dict) else None
    return BatchState(
        batch_id=payload["id"],
        status=str(payload.get("status")),
        output_file_id=_id(payload.get("output_file_id")),
        error_file_id=_id(payload.get("error_file_id")),
        n_results=sum(n_results),
        took_s=max(times) - min(times) if times else 0.0,
        errors="; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else ""),
        batch_key=key if isinstance(key, str) else None,
    )


def _id(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _error_text(error: Any) -> str:
    if not isinstance(error, dict):
        return str(error)[:300]
    line = f" (line {error['line']})" if error.get("line") is not None else ""
    return f"{error.get('code')}: {error.get('message')}"[:300] + line


@dataclass(frozen=True, slots=True)
class FileLine:
    """A line of a file, as it was downloaded."""

    text: bytes
    """The line; of one that is too long, only the beginning."""
    size: int
    """Bytes of the whole line."""
    tail: bytes = b""
    """The end of a line that is too long."""

    @property
    def is_whole(self) -> bool:
        return not self.tail


@dataclass(frozen=True, slots=True)
class ResultLine:
    custom_id: str
    status: int | None
    """HTTP status of the request's own reply; None where there was no reply."""
    body: str
    """That reply as JSON, or the error as JSON where there was no reply."""


@dataclass(frozen=True, slots=True)
class UnreadLine:
    """A line that holds a result, but cannot be read. Its request was answered, and has its price."""

    custom_id: str | None
    """The request that it belongs to; None where that cannot be read either."""
    why: str
    usage: dict[str, Any] | None = None
    """The usage object at its end, where it is too long."""
    is_too_long: bool = False
    """Then it will be so at every download, while another one may be torn at this one only."""


_CUSTOM_ID = re.compile(r'"custom_id"\s*:\s*"([^"\\]{1,100})"')
_USAGE = re.compile(r'(?<!\\)"usage"\s*:\s*(?=\{)')


def unread(line: FileLine, text: str, tail: str, cap: int) -> UnreadLine:
    """What can be said of a line that is longer than `cap` bytes, or is no result. `text`, `tail`: those of `line`,
    decoded."""
    named = _CUSTOM_ID.search(text)
    custom_id = named[1] if named else None
    if line.is_whole:
        return UnreadLine(custom_id, f"its line in the result file, of {line.size:,} bytes, is no result")
    why = f"its line in the result file has {line.size:,} bytes, and llm.max_reply_bytes allows {cap:,} in a batch"
    return UnreadLine(custom_id, why, _usage_in(tail), is_too_long=True)


def _usage_in(text: str) -> dict[str, Any] | None:
    """The last usage object in `text`."""
    places = list(_USAGE.finditer(text))
    if not places:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(text, places[-1].end())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_line(line: str) -> ResultLine | None:
    """The result in `line`; None where it is not a result."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("custom_id"), str):
        return None
    response = found.get("response")
    if not isinstance(response, dict) or type(response.get("status_code")) is not int:
        return ResultLine(found["custom_id"], None, json.dumps({"error": found.get("error")}))
    body = response.get("body")
    # A body may come as a string. An error stands in the body, or beside the response.
    if response["status_code"] != 200 and not body:
        body = {"error": found.get("error")}
    return ResultLine(found["custom_id"], response["status_code"], body if isinstance(body, str) else json.dumps(body))
