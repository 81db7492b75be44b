"""Compares rendered requests with tests/snapshots. UPDATE_SNAPSHOTS=1 rewrites them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from autointerp.llm.requests import Request

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"


def written(request: Request) -> str:
    """A request as a text file: its parameters, then its prompt or messages."""
    body = dict(request.body)
    messages = body.pop("messages", None)
    prompt = body.pop("prompt", None)
    parts = [f"{request.kind} {json.dumps(body, sort_keys=True)}"]
    if prompt is not None:
        parts.append(prompt + "<<end of prompt>>")
    parts += [f"======== {m['role']}\n{m['content']}" for m in messages or []]
    return "\n".join(parts) + "\n"


def check(name: str, text: str) -> None:
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name} differs; UPDATE_SNAPSHOTS=1 writes it anew"
