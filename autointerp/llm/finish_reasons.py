"""What a reply's finish_reason says: whether the answer is complete, and if not, why.

Only the words that providers use for a complete answer count as complete. Any other word, known or not, means that the
text stops somewhere in the middle, however finished it looks.
"""

from __future__ import annotations

import re
from typing import Any, Literal

Ending = Literal["complete", "unknown", "truncated", "filtered", "refused", "broken"]
"""'unknown' where the reply gives no reason; 'broken' for a reason that is none of the others."""

_COMPLETE = {
    "stop",  # OpenAI, vLLM, SGLang, llama.cpp, Mistral, Gemini ("STOP")
    "eos", "eos_token", "stop_sequence",  # Together; TGI, watsonx; also Anthropic and Cohere
    "end_turn", "complete", "finish", "finished", "stop_criteria_met",  # Anthropic; Cohere; Amazon
    "endoftext", "end_of_text", "stop_token",  # AI21, Aleph Alpha
}  # fmt: skip
_TRUNCATED = {
    "length", "max_tokens", "max_output_tokens", "max_completion_tokens", "max_length", "maximum_tokens",
    "token_limit", "model_length", "error_limit", "model_context_window_exceeded",
}  # fmt: skip
_FILTERED = {
    "content_filter", "content_filtered", "guardrail_intervened", "guardrails", "safety", "image_safety", "recitation",
    "blocklist", "prohibited_content", "spii", "language", "error_toxic", "sensitive",
}  # fmt: skip
_REFUSED = {"refusal", "refused"}


def ending_of(finish_reason: Any) -> Ending:
    """What the value of a finish_reason field means. It may be of any type."""
    if finish_reason is None or finish_reason == "":
        return "unknown"
    if not isinstance(finish_reason, str):
        return "broken"
    word = re.sub(r"[\s-]+", "_", finish_reason[:200].strip().casefold())
    word = word.removeprefix("finishreason.").removeprefix(
        "finish_reason_"
    )  # an enum's name, as Gemini's SDK writes it
    head = word.split(":")[0]  # Gemini writes "content_filter: PROHIBITED_CONTENT"
    if word in _COMPLETE:
        return "complete"
    if head in _TRUNCATED:
        return "truncated"
    if head in _FILTERED:
        return "filtered"
    return "refused" if head in _REFUSED else "broken"
