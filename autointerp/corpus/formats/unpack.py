"""Opens a file as the bytes of its content: what is compressed is unpacked, UTF-16 and UTF-32 become UTF-8.

The first bytes decide, not the name. Everything streams, so a few kilobytes that unfold into gigabytes take time but no
memory.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import importlib
import io
import lzma
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Protocol, cast

from autointerp.errors import InputError

UNREADABLE = (OSError, EOFError, zlib.error)
"""What reading an opened file raises if it cannot be read to its end. A truncated gzip file raises EOFError."""
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")
ZSTD_SUFFIXES = (".zst", ".zstd")
MOST_XZ_MEMORY = 256 << 20
"""Bytes. An xz file names the memory that unpacking it takes: 65 MB at the strongest usual setting, 4 GB at most."""
_CHUNK = 1 << 16
_MAGIC_BYTES = 16
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),  # before UTF-16, whose mark begins the same
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def opened(path: Path) -> IO[bytes]:
    """The content of a regular file. Raises OSError if it is no regular file (a FIFO would never end) or cannot be
    opened, and InputError if it is zstd and nothing here can unpack that. Reading it raises UNREADABLE."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is not a regular file")
    plain = path.open("rb")
    try:
        content = _unpacked(plain, path)
        encoding = _encoding(content.peek(_MAGIC_BYTES))  # type: ignore[attr-defined]  # every reader here is buffered
        return content if encoding is None else io.BufferedReader(_Transcoded(content, encoding), _CHUNK)
    except BaseException:
        plain.close()
        raise


def packing(start: bytes) -> str | None:
    """How a file that begins with these bytes is compressed: gzip, bzip2, xz, zstd, or not at all."""
    if start.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if start.startswith(b"BZh") and start[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    if start.startswith(b"\xfd7zXZ\0"):
        return "xz"
    # A skippable frame, with which some writers begin, has one of sixteen marks.
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F):
        return "zstd"
    return None


def require_zstd(path: Path) -> None:
    """Raise InputError if nothing here can unpack zstd."""
    if _zstd_module() is None and _module("pyarrow") is None:
        raise InputError(
            f"{path} is compressed with zstd, which Python itself reads from 3.14 on; pip install backports.zstd "
            "(or pyarrow), or unpack it: zstd -d"
        )


def _unpacked(plain: IO[bytes], path: Path) -> IO[bytes]:
    kind = packing(plain.read(_MAGIC_BYTES))
    plain.seek(0)
    if kind is None:
        return plain
    if kind == "gzip":
        plain.close()
        return cast(IO[bytes], gzip.open(path, "rb"))
    if kind == "zstd":
        require_zstd(path)
        zstd = _zstd_module()
        raw: io.RawIOBase = _Arrow(plain) if zstd is None else _Unpacked(plain, zstd.ZstdDecompressor, zstd.ZstdError)
    elif kind == "bzip2":
        raw = _Unpacked(plain, bz2.BZ2Decompressor, ValueError)
    else:
        raw = _Unpacked(plain, lambda: lzma.LZMADecompressor(memlimit=MOST_XZ_MEMORY), lzma.LZMAError)
    return io.BufferedReader(raw, _CHUNK)


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _zstd_module() -> ModuleType | None:
    """The standard library's zstd, or its backport, which has the same interface."""
    return _module("compression.zstd") or _module("backports.zstd")


class _Decompressor(Protocol):
    """What bz2, lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Inner(io.RawIOBase):
    """A readable stream that is made from another one, and closes it."""

    def __init__(self, inner: IO[bytes]) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Unpacked(_Inner):
    """The content of one compressed stream after another. Raises OSError for a damaged stream, EOFError for one that is
    cut short."""

    def __init__(self, inner: IO[bytes], make: Callable[[], _Decompressor], fault: type[Exception]) -> None:
        super().__init__(inner)
        self._make, self._fault = make, fault
        self._stream, self._waiting = make(), b""

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof and not self._next_stream():
                return 0
            data = b""
            if self._stream.needs_input:
                data, self._waiting = self._waiting or self._inner.read(_CHUNK), b""
                if not data:
                    raise EOFError("the compressed file ended before the end of its stream")
            try:
                out = self._stream.decompress(data, max_length=len(buffer))
            except self._fault as error:
                raise OSError(str(error)) from None
            if out:
                buffer[: len(out)] = out
                return len(out)

    def _next_stream(self) -> bool:
        left = self._stream.unused_data.lstrip(b"\0")  # an xz file may be padded
        while not left:
            data = self._inner.read(_CHUNK)
            if not data:
                return False
            left = data.lstrip(b"\0")
        self._stream, self._waiting = self._make(), left
        return True


class _Arrow(_Inner):
    """zstd through pyarrow, which the package `datasets` brings along."""

    def __init__(self, inner: IO[bytes]) -> None:
        super().__init__(inner)
        arrow: Any = importlib.import_module("pyarrow")
        self._fault = arrow.ArrowException
        self._stream = arrow.CompressedInputStream(arrow.PythonFile(inner, mode="r"), "zstd")

    def readinto(self, buffer: Any) -> int:
        try:
            out = self._stream.read(len(buffer))
        except self._fault as error:
            raise OSError(str(error)) from None
        buffer[: len(out)] = out
        return len(out)


def _encoding(start: bytes) -> str | None:
    return next((encoding for mark, encoding in _BOMS if start.startswith(mark)), None)


class _Transcoded(_Inner):
    """Text of another encoding as UTF-8, without its byte order mark. Raises OSError where it is not of that
    encoding."""

    def __init__(self, inner: IO[bytes], encoding: str) -> None:
        super().__init__(inner)
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._waiting, self._is_over = b"", False

    def readinto(self, buffer: Any) -> int:
        while not self._waiting and not self._is_over:
            chunk = self._inner.read(_CHUNK)
            self._is_over = not chunk
            try:
                self._waiting = self._decoder.decode(chunk, self._is_over).encode()
            except UnicodeError as error:
                raise OSError(f"it begins as {self._encoding} and is not: {error}") from None
        n = min(len(buffer), len(self._waiting))
        buffer[:n], self._waiting = self._waiting[:n], self._waiting[n:]
        return n
