"""The body of a chat request, and the error that says why a reply is of no use."""

from __future__ import annotations

from typing import Any

from autointerp.config import EndpointConfig


class ReplyError(Exception):
    """A reply without a usable answer. `status` names why, for `scores.status`: token_count, no_answer, ...

    `is_final`: asking again would bring the same.
    """

    def __init__(self, status: str, message: str, is_final: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_final = is_final


def chat_body(
    endpoint: EndpointConfig, messages: list[dict[str, str]], max_tokens: int, seed: int = 0, **extra: Any
) -> dict[str, Any]:
    """The JSON body of a chat request. A seed other than 0 is sent, so that another seed is another sample."""
    body: dict[str, Any] = {"model": endpoint.model, "messages": messages, endpoint.max_tokens_field: max_tokens}
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    if seed:
        body["seed"] = seed
    return {**body, **extra}
