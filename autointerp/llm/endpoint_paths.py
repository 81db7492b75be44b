"""What an endpoint says of itself: the models that it serves, and whether it has a Batch API. Both cost nothing."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from autointerp.config import EndpointConfig, LlmConfig
from autointerp.errors import AutointerpError, InputError
from autointerp.llm.endpoint_errors import (
    AttemptError,
    EndpointCredentialsError,
    UnreachableError,
)
from autointerp.llm.replies import load_json
from autointerp.llm.transport import Transport


async def served_models(endpoint: EndpointConfig, llm: LlmConfig) -> dict[str, int | None]:
    """The models in the endpoint's list, and how many tokens each takes, where it says so. Raises InputError where
    there is no list, and AutointerpError where the endpoint cannot be reached or refuses the key."""
    where = f"{endpoint.address} gives no list of models"
    hint = "; most servers want base_url to end in /v1" if urlsplit(endpoint.base_url).path in ("", "/") else ""
    try:
        payload = await _get(endpoint, llm, "/models")
    except EndpointCredentialsError as error:
        if error.http_status != 404:
            raise
        raise InputError(f"{where} ({error}){hint}") from None
    except InputError as error:
        raise InputError(f"{where} ({error}){hint}") from None
    rows = payload.get("data") if isinstance(payload, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{where}{hint}; name one with --model")
    found: dict[str, int | None] = {}
    for row in rows:
        name = row.get("id") if isinstance(row, dict) else None
        if isinstance(name, str) and name:
            length = row.get("max_model_len")
            found[name] = length if type(length) is int and 0 < length < 10**9 else None
    return found


async def refusal_of_batches(endpoint: EndpointConfig, llm: LlmConfig) -> str | None:
    """None where the endpoint lists its batches, else what it answered instead."""
    try:
        payload = await _get(endpoint, llm, "/batches")
    except AutointerpError as error:
        return str(error)
    return None if isinstance(payload, dict) and isinstance(payload.get("data"), list) else "the reply is no list"


async def _get(endpoint: EndpointConfig, llm: LlmConfig, path: str) -> Any:
    async def send(client: openai.AsyncOpenAI) -> httpx2.Response:
        return await client.get(path, cast_to=httpx2.Response)

    try:
        async with Transport(endpoint, llm) as transport:
            reply = await transport.guarded(send, llm.timeout, endpoint.model, path)
            return load_json(transport.redact(reply.content.decode("utf-8", "replace")))
    except UnreachableError as error:
        raise AutointerpError(
            f"cannot reach {endpoint.address}: {error}; is it running, and is base_url right?"
        ) from None
    except AttemptError as error:
        raise InputError(str(error)) from None
