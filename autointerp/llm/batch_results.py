"""Reads the result files of a batch, and keeps account of what it cannot read.

What cannot be read is not what was not answered: the endpoint answered it and has charged for it. A line may be too
long, or no JSON; a file may break off, or never end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from autointerp.llm.batch_files import BatchState, FileLine, ResultLine, UnreadLine, read_line, unread
from autointerp.llm.batch_transport import BatchTransport
from autointerp.llm.batch_work import Batch
from autointerp.llm.endpoint_errors import AttemptError, BadReplyError, EndpointCredentialsError

AT_ONCE = 256
"""How many results are recorded at the same time, in one or a few commits."""
MOST_USELESS_BYTES = 64 * 2**20
MOST_USELESS_LINES = 100_000
"""A file with so much more in it than the results of our requests is taken for one that never ends."""


@dataclass
class Reading:
    """What one reading of a batch's files came to."""

    n_lines: int = 0
    unread: dict[str, UnreadLine] = field(default_factory=dict)
    """The lines that could not be read, by custom_id of their request."""
    n_nameless: int = 0
    """Lines that could not be read, and name no request of the batch."""
    may_pass: bool = False
    """Whether another download may bring what this one did not."""
    has_ended: bool = False
    """Whether all files were read to their end."""
    seen: set[str] = field(default_factory=set)
    """The requests of the batch to which a line belongs, readable or not."""
    useful_bytes: int = 0
    useless_bytes: int = 0
    useless_lines: int = 0

    def is_endless(self, batch: Batch) -> bool:
        too_much = self.useless_bytes > self.useful_bytes + MOST_USELESS_BYTES
        return too_much or self.useless_lines > len(batch.requests) + MOST_USELESS_LINES

    def unread_of(self, batch: Batch, state: BatchState) -> dict[str, UnreadLine]:
        """The requests without a readable result that were answered, as far as can be known, and why it is not
        readable."""
        missing = [one for one in batch.requests if one not in batch.done and one not in batch.failures]
        found = {one: self.unread[one] for one in missing if one in self.unread}
        others = [one for one in missing if one not in found]
        n = self.n_nameless + max(0, state.n_results - self.n_lines) if self.has_ended else len(others)
        why = "the batch has more results than could be read, and this may be one of them"
        return found | {one: UnreadLine(one, why) for one in others[:n]}


async def read_files(
    files: Sequence[str], transport: BatchTransport, batch: Batch, state: BatchState,
    take: Callable[[list[ResultLine]], Awaitable[None]], say: Callable[[str], None], reading: Reading,
) -> None:  # fmt: skip
    """Reads the files line by line into `take`, which marks what is done in `batch`; `reading` is told the rest.

    Raises AttemptError where a file cannot be read to its end, or where another download may bring more. All that
    arrived before was taken.
    """
    for file_id in files:
        try:
            async with aclosing(transport.lines(file_id)) as lines:
                async for block in _blocks(lines):
                    await take(_results(block, transport, batch, reading))
                    if reading.is_endless(batch):
                        if len(batch.done) == len(batch.requests):
                            break
                        raise BadReplyError(
                            f"file {file_id} goes on after {reading.n_lines:,} lines, with results of "
                            f"{len(reading.seen):,} of our {len(batch.requests):,} requests"
                        )
        except EndpointCredentialsError as error:
            if error.http_status != 404:
                raise
            say(f"a result file of batch {state.batch_id} is gone: {error}")
    reading.has_ended = True
    n_missing = len(batch.requests) - len(batch.done)
    if n_missing and (reading.may_pass or reading.n_lines < state.n_results):
        n_unread = len(reading.unread) + reading.n_nameless
        raise BadReplyError(f"{n_unread} of {reading.n_lines} lines were unreadable, of {state.n_results} expected")


def _results(block: Sequence[FileLine], transport: BatchTransport, batch: Batch, reading: Reading) -> list[ResultLine]:
    """The results in these lines; `reading` is told of lines that hold none."""
    results = []
    for line in block:
        text = transport.decoded(line.text)
        result = read_line(text) if line.is_whole else None
        lost = None
        if result is None and (text.strip() or not line.is_whole):
            lost = unread(line, text, transport.decoded(line.tail), transport.cap)
            reading.may_pass |= not lost.is_too_long
        custom_id = result.custom_id if result is not None else lost and lost.custom_id
        if custom_id in batch.requests and custom_id not in reading.seen:
            reading.seen.add(custom_id)
            reading.useful_bytes += line.size
        else:
            reading.useless_bytes += line.size
            reading.useless_lines += 1
        reading.n_lines += result is not None or lost is not None
        if result is not None:
            results.append(result)
        elif lost is not None and lost.custom_id in batch.requests:
            reading.unread[lost.custom_id] = lost
        elif lost is not None:
            reading.n_nameless += 1
    return results


async def _blocks(lines: AsyncIterator[FileLine]) -> AsyncIterator[list[FileLine]]:
    """The lines, AT_ONCE at a time. Those that came before an error come before it here too."""
    block: list[FileLine] = []
    try:
        async for line in lines:
            block.append(line)
            if len(block) >= AT_ONCE:
                yield block
                block = []
    except AttemptError:
        if block:
            yield block
        raise
    if block:
        yield block
