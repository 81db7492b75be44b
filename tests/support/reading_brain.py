"""A stand-in for an LLM on real text: it reads the prompts that it is given, and knows nothing else.

The explainer names the token that is strongest in most excerpts. The judge checks whether the named token is in a text,
and errs in 5 % of its answers. A plain reader could do as much, so its scores are a floor, not a hint of what a
language model would reach.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

from support.known_words import World

ERRS = 0.05


def reader() -> World:
    return World(label=_named, choose=_stands_in)


def _named(body: dict[str, Any]) -> str:
    lines = [line for m in body["messages"] for line in m["content"].split("\n") if line.startswith("[")]
    strongest: Counter[str] = Counter()
    for line in lines:
        pairs = [piece for piece in json.loads(line) if isinstance(piece, list)]
        if pairs:
            strongest[str(max(pairs, key=lambda pair: pair[1])[0])] += 1
    if not strongest:
        return "no pattern"
    token, times = strongest.most_common(1)[0]
    more = [f" or {json.dumps(t, ensure_ascii=False)}" for t, n in strongest.most_common(3)[1:] if n > times / 2]
    return f"the text {json.dumps(token, ensure_ascii=False)}{''.join(more)}"


def _stands_in(label: str, question: str, pieces: list[Any]) -> bool:
    text = "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)
    named = [json.loads(part) for part in label.removeprefix("the text ").split(" or ") if part.startswith('"')]
    truth = any(token in text for token in named)
    seed = hashlib.sha256(json.dumps([label, pieces]).encode()).digest()
    return truth != (int.from_bytes(seed[:4], "big") < ERRS * 2**32)
