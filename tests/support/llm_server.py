"""A real OpenAI-compatible HTTP server on loopback for the tests: a `brain` answers, faults are real, on the wire.

    with LlmServer(lambda kind, body, attempt: BrainReply("hello")) as server:
        EndpointConfig(base_url=server.url, ...)

A brain is called as `brain(kind, body, attempt)`: kind is "chat", "completions" or "embeddings", body the parsed JSON
body, attempt 0 for the first time this very body is seen, 1 for the second, and so on. It returns a BrainReply, or a
Fault.
Set `blocking = True` on a brain that computes for long (a language model): it is then called in a worker thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from aiohttp import web

Kind = Literal["chat", "completions", "embeddings"]
TokenLogprobs = tuple[str, float | None, Sequence[tuple[str, float]]]
"""(token, its logprob, [(alternative, logprob), ...]); the first prompt token has no logprob and no alternatives."""


@dataclass
class BrainReply:
    """The model's answer. As with a real server, logprobs are sent only if the request asked for them."""

    text: str
    tokens: Sequence[TokenLogprobs] | None = None
    """The tokens of the generated text; None for a server that cannot give them."""
    prompt_tokens: Sequence[TokenLogprobs] | None = None
    """The tokens of the prompt; None for a server that cannot give them."""
    finish_reason: str = "stop"
    refusal: str | None = None
    input_tokens: int | None = None
    """Default: the number of prompt_tokens, else a quarter of the prompt's characters."""
    cached_tokens: int = 0
    output_tokens: int | None = None
    """Default: the number of tokens, else a quarter of the text's characters."""
    vectors: Sequence[Sequence[float]] = ()
    """The vectors for an embeddings request, one per input."""


@dataclass
class Fault:
    """One fault on the wire. kind is one of

    "400" "401" "402" "403" "404" "408" "413" "422" "429" "500" "502" "503" "529": that status with a JSON error
    "insufficient_quota": 429 of an empty account      "ctx_too_long": 400 of a prompt beyond the context
    "content_filter_400": 400 of a filtered prompt     "logprobs_400": 400 that names the logprobs field
    "busy_503": 503 of vLLM with a full queue
    "validation_500" "unsupported_500": 500 of llama-cpp-python for a value that a field may not have, and for logprobs
    "hang": never answers                              "slow_loris": one byte every 0.2 s, for ever
    "reset": connection reset                          "short_body": less than Content-Length, then closed
    "truncated_json" "html" "error_200" "empty_choices" "null_choices" "no_message": a 200 that is no answer
    "huge": a 200 of `size` bytes without Content-Length; "huge_declared": with it
    "echo_key_401" "echo_key_500" "echo_key_200": an error that repeats the Authorization header
    """

    kind: str
    retry_after: float | str | None = None
    size: int = 8_000_000


Brain = Callable[[Kind, dict[str, Any], int], BrainReply | Fault]


def prompt_text(body: dict[str, Any]) -> str:
    """All text of a request: the prompt, or the contents of the messages."""
    if "prompt" in body:
        return str(body["prompt"])
    if "input" in body:
        return body["input"] if isinstance(body["input"], str) else "\n".join(body["input"])
    parts: list[str] = []
    for message in body.get("messages", []):
        content = message.get("content") or ""
        parts.append(content if isinstance(content, str) else "".join(p.get("text", "") for p in content))
    return "\n".join(parts)


@dataclass
class LlmServer:
    brain: Brain
    latency: float = 0.0
    """Seconds before every answer."""
    model_names: Sequence[str] = ("test-model",)
    requests: list[dict[str, Any]] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    """time.monotonic() of each request."""
    faults: list[str] = field(default_factory=list)
    """The kinds of the faults made so far."""
    in_flight: int = 0
    peak_in_flight: int = 0
    port: int = 0
    """The port; 0 takes a free one at start."""

    def __post_init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> LlmServer:
        self._thread = threading.Thread(target=self._run, name="llm-server", daemon=True)
        self._thread.start()
        if not self._ready.wait(20):
            raise RuntimeError("the test server did not start within 20 s")
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(20)
        self._thread = None

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # handed to the thread that waits in __enter__
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        self._add_routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, backlog=2048)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stopping.wait()
        await runner.cleanup()

    def _add_routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/v1/models", self._models)

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": n, "object": "model"} for n in self.model_names]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("chat", request)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("completions", request)

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("embeddings", request)

    async def _answer(self, kind: Kind, request: web.Request) -> web.StreamResponse:
        self.arrivals.append(time.monotonic())
        raw = await request.read()
        body = json.loads(raw)
        key = hashlib.sha256(raw).hexdigest()
        attempt = self._seen[key]
        self._seen[key] += 1
        self.requests.append(body)
        self.kinds.append(kind)
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            if getattr(self.brain, "blocking", False):
                result = await asyncio.to_thread(self.brain, kind, body, attempt)
            else:
                result = self.brain(kind, body, attempt)
            if isinstance(result, Fault):
                self.faults.append(result.kind)
                return await self._fault(result, request)
            return web.json_response(
                PAYLOADS[kind](body, result), headers={"x-request-id": f"req-{len(self.requests)}"}
            )
        finally:
            self.in_flight -= 1

    async def _fault(self, fault: Fault, request: web.Request) -> web.StreamResponse:
        if fault.kind in ("hang", "slow_loris"):
            return await self._stall(fault, request)
        if fault.kind == "reset":
            _abort(request)
            return web.Response()
        if fault.kind in ("short_body", "huge", "huge_declared"):
            return await self._odd_body(fault, request)
        if fault.kind.startswith("echo_key_"):
            status = int(fault.kind.removeprefix("echo_key_"))
            message = f"Incorrect API key provided: {request.headers.get('Authorization')}"
            return web.json_response({"error": {"message": message, "code": "invalid_api_key"}}, status=status)
        if fault.kind in BODIES:
            status, content_type, text = BODIES[fault.kind]
            return web.Response(status=status, content_type=content_type, text=text, headers=_retry_header(fault))
        status = int(fault.kind)
        error = {"error": {"message": f"fault {fault.kind}", "type": "test_fault", "code": None}}
        return web.json_response(error, status=status, headers=_retry_header(fault))

    async def _stall(self, fault: Fault, request: web.Request) -> web.StreamResponse:
        assert self._stopping is not None
        if fault.kind == "hang":
            await self._stopping.wait()
            return web.Response(status=503)
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100000"})
        await response.prepare(request)
        while not self._stopping.is_set():
            try:
                await response.write(b" ")
            except (ConnectionError, RuntimeError):
                break
            await asyncio.sleep(0.2)
        _abort(request)
        return response

    async def _odd_body(self, fault: Fault, request: web.Request) -> web.StreamResponse:
        if fault.kind == "short_body":
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "5000"})
            await response.prepare(request)
            await response.write(b'{"id": "x", "choices": [')
            await asyncio.sleep(0.05)
            _abort(request)
            return response
        declared = {"Content-Length": str(fault.size)} if fault.kind == "huge_declared" else {}
        response = web.StreamResponse(headers={"Content-Type": "application/json", **declared})
        await response.prepare(request)
        block = b" " * 65_536
        left = fault.size
        with contextlib.suppress(ConnectionError, RuntimeError):  # the client has had enough
            while left > 0:
                await response.write(block[:left])
                left -= len(block)
            await response.write_eof()
        return response


BODIES: dict[str, tuple[int, str, str]] = {
    "truncated_json": (200, "application/json", '{"id": "x", "choices": [{"index": 0, "message": {"role": "assi'),
    "html": (200, "text/html", "<html><body>Bad gateway, or a login page</body></html>"),
    "error_200": (200, "application/json", '{"error": {"message": "upstream failed", "code": 500}}'),
    "empty_choices": (200, "application/json", '{"id": "x", "object": "chat.completion", "choices": []}'),
    "null_choices": (200, "application/json", '{"id": "x", "object": "chat.completion", "choices": null}'),
    "no_message": (200, "application/json", '{"id": "x", "choices": [{"index": 0, "finish_reason": "stop"}]}'),
    "insufficient_quota": (
        429,
        "application/json",
        '{"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", '
        '"code": "insufficient_quota"}}',
    ),
    "busy_503": (
        503,
        "application/json",
        '{"error": {"message": "The engine is busy. Please try again later.", "type": "ServiceUnavailableError", '
        '"param": null, "code": 503}}',
    ),
    "ctx_too_long": (
        400,
        "application/json",
        '{"error": {"message": "This model\'s maximum context length is 4096 tokens. However, you requested 5000 '
        'tokens.", "type": "invalid_request_error", "code": "context_length_exceeded"}}',
    ),
    "content_filter_400": (
        400,
        "application/json",
        '{"error": {"message": "The response was filtered due to the content management policy", '
        '"code": "content_filter"}}',
    ),
    "logprobs_400": (
        400,
        "application/json",
        '{"error": {"message": "Unsupported parameter: logprobs", "param": "logprobs", '
        '"code": "unsupported_parameter"}}',
    ),
    "validation_500": (
        500,
        "application/json",
        "{\"error\": {\"message\": \"1 validation error:\\n  {'type': 'literal_error', 'input': 'json_schema'}\\n\", "
        '"type": "internal_server_error", "param": null, "code": null}}',
    ),
    "unsupported_500": (
        500,
        "application/json",
        '{"error": {"message": "logprobs is not supported for models created with logits_all=False", '
        '"type": "internal_server_error", "param": null, "code": null}}',
    ),
}


def _retry_header(fault: Fault) -> dict[str, str]:
    return {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def usage_of(body: dict[str, Any], reply: BrainReply) -> dict[str, Any]:
    read = reply.input_tokens
    if read is None:
        read = len(reply.prompt_tokens) if reply.prompt_tokens else max(1, len(prompt_text(body)) // 4)
    written = reply.output_tokens
    if written is None:
        written = len(reply.tokens) if reply.tokens is not None else (len(reply.text) + 3) // 4
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }


def chat_payload(body: dict[str, Any], reply: BrainReply) -> dict[str, Any]:
    """The JSON body of /chat/completions, with the fields that OpenAI and vLLM give."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": None if reply.refusal else reply.text, "refusal": reply.refusal},
        "finish_reason": reply.finish_reason,
        "logprobs": None,
    }
    if body.get("logprobs") and reply.tokens is not None:
        k = int(body.get("top_logprobs") or 0)
        choice["logprobs"] = {
            "content": [
                {
                    "token": token,
                    "logprob": logprob,
                    "bytes": list(token.encode()),
                    "top_logprobs": [{"token": t, "logprob": lp, "bytes": list(t.encode())} for t, lp in alts[:k]],
                }
                for token, logprob, alts in reply.tokens
            ]
        }
    payload = _envelope("chat.completion", body, choice, reply)
    if body.get("prompt_logprobs") is not None and reply.prompt_tokens is not None:
        payload["prompt_logprobs"] = _vllm_prompt_logprobs(reply.prompt_tokens, int(body["prompt_logprobs"]))
    return payload


def completions_payload(body: dict[str, Any], reply: BrainReply) -> dict[str, Any]:
    """The JSON body of /completions: legacy `logprobs=k` (with `echo` also over the prompt), vLLM's
    `prompt_logprobs=k` beside it."""
    echo = bool(body.get("echo"))
    choice: dict[str, Any] = {
        "index": 0,
        "text": (prompt_text(body) if echo else "") + reply.text,
        "finish_reason": reply.finish_reason,
        "logprobs": None,
    }
    wants = body.get("logprobs") is not None
    if wants and reply.tokens is not None and not (echo and reply.prompt_tokens is None):
        k = int(body["logprobs"])
        rows = [*(reply.prompt_tokens or [] if echo else []), *reply.tokens]
        offsets, at = [], 0
        for token, _, _ in rows:
            offsets.append(at)
            at += len(token)
        choice["logprobs"] = {
            "tokens": [token for token, _, _ in rows],
            "token_logprobs": [logprob for _, logprob, _ in rows],
            "top_logprobs": [None if lp is None else {**dict(alts[:k]), token: lp} for token, lp, alts in rows],
            "text_offset": offsets,
        }
    if body.get("prompt_logprobs") is not None and reply.prompt_tokens is not None:
        choice["prompt_logprobs"] = _vllm_prompt_logprobs(reply.prompt_tokens, int(body["prompt_logprobs"]))
    return _envelope("text_completion", body, choice, reply)


def embeddings_payload(body: dict[str, Any], reply: BrainReply) -> dict[str, Any]:
    """The JSON body of /embeddings. No text is generated, so only the prompt's tokens are counted."""
    read = usage_of(body, reply)["prompt_tokens"]
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": list(v)} for i, v in enumerate(reply.vectors)],
        "model": body.get("model", ""),
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }


PAYLOADS = {"chat": chat_payload, "completions": completions_payload, "embeddings": embeddings_payload}


def _envelope(kind: str, body: dict[str, Any], choice: dict[str, Any], reply: BrainReply) -> dict[str, Any]:
    return {
        "id": "cmpl-test",
        "object": kind,
        "created": 0,
        "model": body.get("model", ""),
        "choices": [choice],
        "usage": usage_of(body, reply),
    }


def _vllm_prompt_logprobs(rows: Sequence[TokenLogprobs], k: int) -> list[dict[str, Any] | None]:
    """Prompt logprobs in vLLM's shape. Each prompt token has a map of token id -> {logprob, rank, decoded_token}, which
    holds the k best tokens and always the prompt's own token as the FIRST entry. The first prompt token has None."""
    out: list[dict[str, Any] | None] = []
    for token, logprob, alts in rows:
        if logprob is None:
            out.append(None)
            continue
        ranks = {text: rank for rank, (text, _) in enumerate(alts, start=1)}
        entries = {token: (logprob, ranks.get(token, len(alts) + 1))}
        entries.update({text: (lp, ranks[text]) for text, lp in alts[:k] if text != token})
        out.append(
            {
                _token_id(text): {"logprob": lp, "rank": rank, "decoded_token": text}
                for text, (lp, rank) in entries.items()
            }
        )
    return out


def _token_id(text: str) -> str:
    return str(int(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8], 16))


def bag_of_words(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply:
    """A brain that embeds. Each word of a text but the commonest ones is counted in one of 256 hashed places, so texts
    are as similar as the words that they share."""
    return BrainReply("", vectors=[_counts(text) for text in body["input"]])


def _counts(text: str) -> list[float]:
    counts = [0.0] * 256
    counts[0] = 0.1  # a text without words has a vector too
    for word in re.findall(r"\w+", text.lower()):
        if word not in ("the", "a", "of", "is", "in", "it", "what", "would", "be"):
            counts[1 + int(hashlib.sha256(word.encode("utf-8", "replace")).hexdigest()[:8], 16) % 255] += 1.0
    return counts


class DemoLmBrain:
    """A real Hugging Face causal LM: greedy answers, real logprobs of prompt and reply, true token counts.

    Chat messages are rendered with the model's chat template, or joined by newlines where it has none.
    `max_context` tokens are the most it reads; longer prompts get the context-length 400 of OpenAI.
    """

    blocking = True

    def __init__(self, model_dir: Path | str, top: int = 20, max_context: int | None = None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
        self.model = AutoModelForCausalLM.from_pretrained(str(model_dir)).eval()
        self.top = top
        positions: Any = getattr(self.model.config, "max_position_embeddings", 1024)
        self.max_context = max_context if max_context is not None else int(positions)
        self._lock = threading.Lock()

    def __call__(self, kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if kind == "chat" and getattr(self.tokenizer, "chat_template", None):
            text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        else:
            text = prompt_text(body)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= self.max_context:
            return Fault("ctx_too_long")
        wanted = body.get("max_tokens", body.get("max_completion_tokens"))
        limit = min(16 if wanted is None else int(wanted), self.max_context - len(ids))
        with self._lock:
            return self._generate(ids, limit, with_prompt=bool(body.get("echo")) or "prompt_logprobs" in body)

    def _generate(self, ids: list[int], limit: int, with_prompt: bool) -> BrainReply:
        import torch

        written: list[TokenLogprobs] = []
        new: list[int] = []
        prompt: list[TokenLogprobs] | None = None
        finish = "length"
        with torch.inference_mode():
            out = self.model(torch.tensor([ids]), use_cache=True)
            if with_prompt:
                table = out.logits[0].float().log_softmax(-1)
                prompt = [(self._text(ids[0]), None, [])]
                prompt += [self._row(table[i - 1], ids[i]) for i in range(1, len(ids))]
            last = out.logits[0, -1].float().log_softmax(-1)
            for _ in range(limit):
                token = int(last.argmax())
                if token == self.tokenizer.eos_token_id:
                    finish = "stop"
                    break
                written.append(self._row(last, token))
                new.append(token)
                out = self.model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
                last = out.logits[0, -1].float().log_softmax(-1)
        return BrainReply(
            text=str(self.tokenizer.decode(new)),
            tokens=written,
            prompt_tokens=prompt,
            finish_reason=finish,
            input_tokens=len(ids),
            output_tokens=len(new),
        )

    def _row(self, logprobs: Any, token: int) -> TokenLogprobs:
        best = logprobs.topk(min(self.top, logprobs.shape[-1]))
        alternatives = [
            (self._text(int(i)), float(v)) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return self._text(token), float(logprobs[token]), alternatives

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))
