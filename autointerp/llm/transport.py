"""One HTTP attempt through the SDK: it returns the reply's text, or raises an error of endpoint_errors.py.

The SDK's typed methods cost 1.8 to 2.6 ms a call and accept a body of any shape and size. So this uses the SDK's
low-level `post` with the raw response, caps what is read, and gives every failure its own error. An SDK exception holds
the request, whose headers hold the key, so none of them leaves this module, not even as a __context__.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import Any, TypeVar

import aiohttp
import httpx2
import openai

from autointerp.config import EndpointConfig, LlmConfig, secret_parts
from autointerp.errors import AutointerpError, InputError, StoppedError
from autointerp.llm.endpoint_errors import (
    AttemptTimeoutError,
    BadReplyError,
    DeclinedError,
    EndpointCredentialsError,
    RateLimitedError,
    RequestRefusedError,
    UnavailableError,
    UnreachableError,
)
from autointerp.llm.keys import NO_KEY, Redactor, api_key, is_local, is_openai
from autointerp.llm.requests import Request

T = TypeVar("T")
PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
CONNECT_S = 10.0
LONGEST_BELIEVED_S = 366 * 86_400.0
"""A longer Retry-After is taken for a mistake, and ignored."""
_NOT_SENT = tuple(
    f"x-stainless-{name}"
    for name in (
        "lang", "package-version", "os", "arch", "runtime", "runtime-version", "async", "retry-count", "read-timeout",
    )
)  # fmt: skip
"""Headers in which the SDK describes this machine: private, and each costs time in every call."""
_UNCOMPRESSED = {"Accept-Encoding": "identity"}
"""A compressed body could be small on the wire and huge in memory."""
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_OVERLOADED = {503, 529}
_BUSY = re.compile(
    r"\b(busy|overloaded|at capacity|queue is full|backlog limit|(high|heavy) (load|demand))\b", re.IGNORECASE
)
"""How an endpoint says that it has as many calls at work as it takes."""
_FILTER_CODES = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}
_CONTEXT = re.compile(
    r"context[ _](length|window|size)|prompt is too long|input is too (long|large)|too many (input )?tokens"
    r"|max_model_len",
    re.IGNORECASE,
)

_INVALID_FIELD = re.compile(r"\d+ validation errors?\b")
"""How FastAPI begins its account of a request that it does not accept. llama-cpp-python sends it with status 500."""


class _OversizedError(Exception):
    pass


class _CappedStream(httpx2.AsyncByteStream):
    """A reply's body that raises once it grows past the cap, before the rest is read."""

    def __init__(self, stream: httpx2.AsyncByteStream, cap: int) -> None:
        self._stream = stream
        self._cap = cap

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > self._cap:
                raise _OversizedError(f"the reply is larger than llm.max_reply_bytes = {self._cap}")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class _PlainClient(openai.AsyncOpenAI):
    """The SDK's client for other endpoints than OpenAI's. What the environment holds for OpenAI (OPENAI_ORG_ID,
    OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS) is none of their business."""

    @property
    def default_headers(self) -> dict[str, str | openai.Omit]:
        return {
            "Accept": "application/json", "Content-Type": "application/json", "User-Agent": self.user_agent,
            **_UNCOMPRESSED,
        }  # fmt: skip


@lru_cache(maxsize=4)
def _trusted(asks_env: bool, cert_file: str | None, cert_dir: str | None) -> ssl.SSLContext:
    """The certificates that are trusted, with `asks_env` those that the environment names. Reading them takes longer
    than all else that a client begins with, so it is done once in a process for each environment: `cert_file` and
    `cert_dir` are what the environment names, and are read from there."""
    return httpx2.create_ssl_context(trust_env=asks_env)


class Transport:
    """The connection pool to one endpoint. Use as an async context manager."""

    def __init__(self, endpoint: EndpointConfig, llm: LlmConfig) -> None:
        key = api_key(endpoint)
        self.redact = Redactor(key, *secret_parts(endpoint.base_url))
        self._address = endpoint.address
        self._key_env = endpoint.api_key_env
        self._has_key = key != NO_KEY
        self._timeout = llm.timeout
        self._cap = llm.max_reply_bytes
        asks_env = not is_local(endpoint.base_url)  # a proxy from the environment is not for local servers
        named = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
        timeout = openai.Timeout(llm.timeout, connect=min(CONNECT_S, llm.timeout), pool=llm.timeout)
        http = openai.DefaultAioHttpClient(
            timeout=timeout,
            limits=httpx2.Limits(max_connections=llm.max_connections + 8, keepalive_expiry=30.0),
            follow_redirects=False,
            event_hooks={"response": [self._cap_reply]},
            trust_env=asks_env,
            verify=_trusted(asks_env, *named),
        )
        make = openai.AsyncOpenAI if is_openai(endpoint.base_url) else _PlainClient
        self._client = make(
            api_key=key,
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=timeout,
            http_client=http,
            default_headers=_UNCOMPRESSED,
        )

        # For every call the SDK joins the path to the base URL and copies the default of each missing option. Giving
        # them saves a tenth of its time.
        self._urls = {kind: f"{str(self._client.base_url).rstrip('/')}{path}" for kind, path in PATHS.items()}
        self._options: openai.RequestOptions = {
            "headers": dict.fromkeys(_NOT_SENT, openai.omit),
            "max_retries": 0,
            "timeout": timeout,
            "follow_redirects": False,
            "security": {"bearer_auth": True},
        }

    def __repr__(self) -> str:
        return f"Transport({self._address!r})"

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._client.close()

    async def _cap_reply(self, response: httpx2.Response) -> None:
        length = response.headers.get("content-length", "")
        is_file = response.request.url.path.endswith("/content")  # it holds many replies and is read line by line
        if not is_file and length.isdigit() and int(length) > self._cap:
            raise _OversizedError(f"the reply has {length} bytes; llm.max_reply_bytes = {self._cap}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _OversizedError("the reply is compressed although an uncompressed one was asked for")
        if not is_file:
            response.stream = _CappedStream(response.stream, self._cap)  # type: ignore[arg-type]

    async def post(self, request: Request) -> str:
        """The body of a 2xx answer. Raises an error of endpoint_errors.py, or StoppedError when the account is
        empty."""

        async def send(client: openai.AsyncOpenAI) -> httpx2.Response:
            return await client.post(
                self._urls[request.kind], cast_to=httpx2.Response, content=request.wire, options=self._options
            )

        response = await self.guarded(send, self._timeout, request.model, PATHS[request.kind])
        return self.redact(response.content.decode("utf-8", "replace"))

    async def guarded(
        self, call: Callable[[openai.AsyncOpenAI], Awaitable[T]], timeout: float, model: str, path: str
    ) -> T:
        """Run `call` with the SDK's client for at most `timeout` seconds. Raises the same errors as `post`."""
        failure: Exception
        try:
            async with asyncio.timeout(timeout):
                return await call(self._client)
        except openai.APIStatusError as error:
            body = self.redact(error.response.content.decode("utf-8", "replace"))
            failure = self.status_error(error.status_code, body, error.response.headers, model, path)
        except (openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError, _OversizedError, OSError) as error:
            failure = self._connection_error(error)
        raise failure

    def _connection_error(self, error: BaseException) -> Exception:
        """Our error for a failed connection. The causes are searched, since the layers above report a reset or a
        refused connection as a timeout."""
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        for cause in chain:
            text = self.redact(f"{type(cause).__name__}: {cause}")[:300]
            if isinstance(cause, _OversizedError):
                return BadReplyError(str(cause))
            if isinstance(cause, aiohttp.ClientConnectorCertificateError):
                return AutointerpError(f"{self._address}: the TLS certificate is not accepted ({text})")
            if isinstance(cause, aiohttp.ClientHttpProxyError):  # so nothing reached the endpoint
                return UnreachableError(
                    self.redact(f"the proxy refused the connection: {cause.status} {cause.message}")[:300]
                )
            if isinstance(cause, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
                return UnreachableError(text)
            if isinstance(cause, (aiohttp.InvalidURL, UnicodeError)):
                return InputError(f"base_url {self._address!r} is not usable ({text})")
            if isinstance(cause, aiohttp.SocketTimeoutError):
                return AttemptTimeoutError(f"nothing arrived for {self._timeout:g} s")
            if isinstance(cause, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)):
                return UnavailableError(text)
        if any(isinstance(cause, TimeoutError) for cause in chain):
            return AttemptTimeoutError(f"no complete reply within llm.timeout = {self._timeout:g} s")
        return UnavailableError(self.redact(f"{type(chain[-1]).__name__}: {chain[-1]}")[:300])

    def status_error(self, status: int, body: str, headers: httpx2.Headers | None, model: str, path: str) -> Exception:
        """Our error for an HTTP error status. `body` may be anything."""
        message, codes, inner = _read_error(body)
        where = f"{self._address} answered {status}"
        text = f"{where}: {message}"
        wait = retry_after_s(headers) if headers is not None else None
        if status == 402 or codes & _QUOTA_CODES:
            return StoppedError(f"{text}; the account has no credit left. What is done is kept: top up and run again")
        if status == 429:
            return RateLimitedError(text, raw=body, retry_after=wait)
        if codes & _FILTER_CODES or (status == 403 and "flagged_input" in json.dumps(inner.get("metadata"))):
            return DeclinedError("filtered", text, raw=body)
        if "context_length_exceeded" in codes or status == 413:
            return DeclinedError("ctx_too_long", text, raw=body)
        if status in (400, 422, 500) and _CONTEXT.search(message):
            return DeclinedError("ctx_too_long", text, raw=body)
        if status in (401, 403):
            key = f"the key in {self._key_env}" if self._has_key else f"no key is set in {self._key_env}"
            return EndpointCredentialsError(f"{text} ({key})", status)
        if status == 404:
            return EndpointCredentialsError(f"{text} (model {model!r}, path {path})", status)
        if status == 500 and _INVALID_FIELD.match(message):
            return RequestRefusedError(text, status)
        if status in (408, 409, 425) or status >= 500:
            error = UnavailableError(text, raw=body, retry_after=wait)
            error.http_status = status
            error.overloaded = wait is not None or status in _OVERLOADED
            error.is_busy = error.overloaded and _BUSY.search(message) is not None
            return error
        if 300 <= status < 400:
            target = self.redact(headers.get("location", "?"))[:300] if headers is not None else "?"
            return RequestRefusedError(f"{where}, a redirect to {target}; set base_url to the final address", status)
        return RequestRefusedError(text, status)


def _read_error(body: str) -> tuple[str, set[str], dict[str, Any]]:
    """(message, code and type words, error object) from an error body in OpenAI's, vLLM's or FastAPI's shape."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return " ".join(body[:300].split()) or "no message", set(), {}
    inner = payload.get("error", payload) if isinstance(payload, dict) else payload
    if not isinstance(inner, dict):
        return str(inner)[:300], set(), {}
    message = inner.get("message") or inner.get("detail") or body[:300]
    codes = {str(inner[k]) for k in ("code", "type", "status") if inner.get(k) is not None}
    nested = inner.get("innererror")
    if isinstance(nested, dict) and nested.get("code"):
        codes.add(str(nested["code"]))
    return " ".join(str(message)[:500].split()), codes, inner


def retry_after_s(headers: httpx2.Headers) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds or an HTTP date); None where neither is there, or
    what they say is in the past, not readable, or over LONGEST_BELIEVED_S away."""
    milliseconds = _number(headers.get("retry-after-ms"))
    raw = headers.get("retry-after")
    seconds = _number(raw)
    told = [milliseconds / 1000 if milliseconds is not None else None, seconds]
    if raw is not None and seconds is None:
        told.append(_seconds_until(raw))
    return next((value for value in told if value is not None and 0 < value <= LONGEST_BELIEVED_S), None)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _seconds_until(date: str) -> float | None:
    """Seconds from now to an HTTP date; None where it is none, or has a year or an hour that no calendar has."""
    try:
        parsed = email.utils.parsedate_tz(date)
        return None if parsed is None else email.utils.mktime_tz(parsed) - time.time()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def error_in_ok_reply(payload: Any) -> int | None:
    """The status in the body of a 200 such as `{"error": {"code": 429}}`, if it is one that ends or pauses a run."""
    error = payload.get("error") if isinstance(payload, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if code in ("401", "402", "403", "429"):
        code = int(code)
    return code if code in (401, 402, 403, 429) else None
