"""The body of a chat request, and what is said of a reply that is of no use."""

from __future__ import annotations

from typing import Any

from autointerp.config import EndpointConfig


class ReplyError(Exception):
    """A reply that predicts nothing. `status` names why: token_count, token_mismatch, bad_number, no_logprobs."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def chat_body(
    endpoint: EndpointConfig, messages: list[dict[str, str]], max_tokens: int, seed: int = 0, **extra: Any
) -> dict[str, Any]:
    """The JSON body of a chat request. A seed other than 0 is sent: another seed is another sample."""
    body: dict[str, Any] = {"model": endpoint.model, "messages": messages, endpoint.max_tokens_field: max_tokens}
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    if seed:
        body["seed"] = seed
    return {**body, **extra}
