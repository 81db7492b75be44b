"""A prefix cache like those of inference servers, in front of any brain of the test server. It reports as cached the
beginning that a prompt shares with earlier prompts, in whole blocks.

    LlmServer(PrefixCache(brain))                          blocks of 128 from 1,024 tokens on, as OpenAI's
    LlmServer(PrefixCache(brain, block=16, smallest=0))    as vLLM's

Nothing is ever evicted. A prompt enters the cache when it is answered. So requests that arrive before the first of them
was answered all miss, as on a real server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from support.llm_server import Brain, BrainReply, Fault, Kind, prompt_text

Tokenize = Callable[[str], Sequence[object]]


def by_fours(text: str) -> Sequence[object]:
    """A stand-in for a tokenizer: four characters a token."""
    return [text[i : i + 4] for i in range(0, len(text), 4)]


class PrefixCache:
    """Counts what it sees in `totals`: calls, characters, input, cached and output tokens, by the given tokenizer."""

    def __init__(self, brain: Brain, block: int = 128, smallest: int = 1024, tokenize: Tokenize = by_fours) -> None:
        self.brain, self.block, self.smallest, self.tokenize = brain, block, smallest, tokenize
        self.totals: Counter[str] = Counter()
        self._held: set[int] = set()

    def __call__(self, kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        reply = self.brain(kind, body, attempt)
        if isinstance(reply, Fault):
            return reply
        text = prompt_text(body)
        tokens = list(self.tokenize(text))
        cached = self._look_up(tokens)
        written = 0 if kind == "embeddings" else len(list(self.tokenize(reply.text)))
        self.totals.update(calls=1, characters=len(text), input=len(tokens), cached=cached, output=written)
        return replace(reply, input_tokens=len(tokens), cached_tokens=cached, output_tokens=written)

    def _look_up(self, tokens: list[object]) -> int:
        """The number of tokens in the longest cached beginning. Adds the prompt's own blocks to the cache."""
        cached, running, broken = 0, 0, False
        for end in range(self.block, len(tokens) + 1, self.block):
            running = hash((running, *tokens[end - self.block : end]))
            broken = broken or running not in self._held
            cached = cached if broken else end
            self._held.add(running)
        return cached if cached >= self.smallest else 0
