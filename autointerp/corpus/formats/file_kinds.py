"""Looks at the first bytes of a file's content: is it text that can be read, or what else is it?"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import NamedTuple

from autointerp.corpus.formats.unpack import opened, packing

SNIFF_BYTES = 8192
MOST_NULS = 0.1
"""The largest share of NUL bytes in text. English in UTF-16 without a byte order mark has a half."""
MOST_NONSENSE = 0.2
"""The largest share of control characters and characters that are not UTF-8 in text with a NUL in it."""
_CONTROL = bytes(set(range(32)) - set(b"\a\b\t\n\v\f\r\x1b"))
_MAGIC = (
    (b"PAR1", "a Parquet file"), (b"PK\x03\x04", "a zip archive (or an Office document)"), (b"%PDF-", "a PDF"),
    (b"ARROW1", "an Arrow file"), (b"\xff\xff\xff\xff", "an Arrow stream"), (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"), (b"GIF8", "a picture"), (b"RIFF", "sound or video"), (b"OggS", "sound or video"),
    (b"SQLite format 3\0", "an SQLite database"), (b"\x93NUMPY", "a NumPy array"), (b"\x89HDF", "an HDF5 file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (b"Rar!", "a rar archive"), (b"\x04\x22\x4d\x18", "an lz4 file"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"), (b"\x7fELF", "a program"), (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"), (b"\x1f\x9d", "a compress (.Z) file"), (b"wOF", "a font"),
)  # fmt: skip
_NO_TEXT = frozenset({"a picture", "sound or video", "a NumPy array", "a program", "a font", "binary"})
_PRINTABLE_TOO = frozenset({b"RIFF", b"ORC", b"GIF8", b"OggS", b"wOF", b"Rar!", b"PAR1"})
"""Marks with which a text may begin as well; a NUL or a byte that is not UTF-8 must follow."""
_JSON_RECORDS = re.compile(rb'\s*(\[\s*)?\{\s*"')


class Look(NamedTuple):
    other: str | None
    """What the file is instead of text, as 'a PDF'; None for text."""
    may_hold_text: bool
    """Whether a corpus may be in it all the same; not in a picture, or in what is not recognised."""
    is_parquet: bool
    looks_like_json: bool
    """Whether it begins as a JSON object, or as an array of them."""


def look_at(path: Path) -> Look:
    """What the file holds, once unpacked. Raises the errors of `opened`, and UNREADABLE."""
    with opened(path) as handle:
        start = handle.read(SNIFF_BYTES)
    other = _other(start)
    may_hold_text = other is None or other not in _NO_TEXT
    return Look(other, may_hold_text, other == "a Parquet file", other is None and bool(_JSON_RECORDS.match(start)))


def _other(start: bytes) -> str | None:
    decodes = _is_utf8(start)
    for mark, what in _MAGIC:
        if start.startswith(mark) and (mark not in _PRINTABLE_TOO or b"\0" in start or not decodes):
            return what
    if start[257:262] == b"ustar":
        return "a tar archive"
    inner = packing(start)
    if inner is not None:
        return f"a file compressed twice (the second time with {inner})"
    if start.count(0) > MOST_NULS * len(start):
        return "binary (or UTF-16 without a byte order mark)"
    if b"\0" in start and _share_of_nonsense(start) > MOST_NONSENSE:
        return "binary"
    return None


def _share_of_nonsense(start: bytes) -> float:
    n_control = len(start) - len(start.translate(None, _CONTROL))
    return (n_control + start.decode("utf-8", "replace").count("\ufffd")) / len(start)


def _is_utf8(start: bytes) -> bool:
    """Whether it is UTF-8, possibly cut inside a character. A text with a stray NUL is."""
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(start)
    except UnicodeDecodeError:
        return False
    return True
