"""A brain for the test server: it names a feature by its strongest token, and predicts that token."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from typing import Any

from support.llm_server import BrainReply, Fault

PAIR = re.compile(r'\["((?:[^"\\]|\\.)*)", (\d+)\]')


class TokenReader:
    """Answers like a reader with one idea: labels a feature by its strongest token, and predicts that token.

    `faults` maps the number of a request (from 0) to what goes wrong with it.
    """

    def __init__(self, faults: dict[int, Fault] | None = None) -> None:
        self.faults = faults or {}
        self._seen = 0
        self._lock = threading.Lock()

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        with self._lock:
            number, self._seen = self._seen, self._seen + 1
        if number in self.faults:
            return self.faults[number]
        if kind != "chat":
            return Fault("404")
        asked = body["messages"][-1]["content"]
        if "description:" in asked:
            return BrainReply(text=self._simulate(asked))
        pairs = PAIR.findall(asked)
        if not pairs:
            return BrainReply(text="7")
        strongest = Counter(token for token, n in pairs if int(n) >= 5).most_common(1)
        return BrainReply(text=f"LABEL: the token {json.loads(chr(34) + strongest[0][0] + chr(34))!r}")

    @staticmethod
    def _simulate(asked: str) -> str:
        label = re.search(r"description: (.*)", asked)
        lines = asked[asked.index("tokens:\n") + len("tokens:\n") :].splitlines()
        tokens = [json.loads(line) for line in lines if line.startswith('"')]
        assert label is not None
        return "\n".join(
            f"{json.dumps(t)}\t{10 if repr(t) in label[1].replace(chr(92) * 2, chr(92)) else 0}" for t in tokens
        )
