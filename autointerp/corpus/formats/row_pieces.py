"""Records to documents: the field that holds the text, or a chat rendered with the model's template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateError

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.splits import Piece

ChatRenderer = Callable[[list[dict[str, str]]], str]
Row = tuple[str, Mapping[str, Any]]
"""Where a record is, as 'a.jsonl:7', and its fields."""


def row_pieces(
    rows: Iterator[Row], config: CorpusConfig, report: CorpusReport, render_chat: ChatRenderer | None
) -> Iterator[Piece]:
    """One document for each usable record. The others are counted in `report`, and InputError is raised when there are
    too many."""
    wanted = config.chat_field or config.text_field
    for where, row in rows:
        value: Any = row.get(wanted)
        reason: str | None = None
        if value is None:
            reason = "missing_field"
            report.saw_fields(row)
        elif config.chat_field is not None and render_chat is not None:
            value, reason = _rendered(value, render_chat)
        elif not isinstance(value, str):
            reason = "wrong_type"
        if reason is not None:
            report.skip(reason, where)
            report.check(config.max_skipped_share, wanted, final=False)
            continue
        identity = row.get(config.id_field) if config.id_field else None
        yield Piece(where if identity is None else _cleaned(str(identity), None), _cleaned(value, report), False)


def _rendered(messages: Any, render_chat: ChatRenderer) -> tuple[str, str | None]:
    """(the chat's text, None), or ('', the reason why it has none)."""
    if not isinstance(messages, list) or not messages:
        return "", "wrong_type"
    plain: list[dict[str, str]] = []
    for message in messages:
        if not isinstance(message, dict):
            return "", "wrong_type"
        role, content = message.get("role"), message.get("content")
        if not (isinstance(role, str) and isinstance(content, str)):
            return "", "wrong_type"
        plain.append({"role": role, "content": content})
    try:
        return render_chat(plain), None
    except (TemplateError, ValueError, TypeError, KeyError):  # a template may refuse two user turns in a row
        return "", "chat_template"


def _cleaned(text: str, report: CorpusReport | None) -> str:
    """`text` without NULs and lone surrogates, which JSON escapes can make but DuckDB and UTF-8 cannot hold."""
    clean = text.replace("\0", "") if "\0" in text else text
    try:
        clean.encode()
    except UnicodeEncodeError:
        clean = clean.encode("utf-8", "ignore").decode()
    if report is not None and len(clean) != len(text):
        report.n_stripped += 1
    return clean
