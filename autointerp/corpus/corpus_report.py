"""Counts what was read from a corpus, and what was skipped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from autointerp.errors import InputError, nearest
from autointerp.records import Split

HARMLESS = frozenset({"empty", "one_token", "not_text", "link_out", "unreadable_token"})
"""Reasons that do not speak against the corpus and never count towards `max_skipped_share`."""
EARLY_RECORDS = 100
"""Give up at once when this many records were read and none of them was usable."""
CHECK_EVERY = 10_000
FIELDS_KEPT = 30
MOST_REPLACED = 0.01
"""The largest share of characters that may be none of UTF-8. German in Latin-1 has about 2 %."""
MANY_REPLACED = 100
"""Fewer such characters are told of, but end nothing."""


@dataclass(slots=True)
class CorpusReport:
    """Counters that fill while documents are read. They are complete once the iterator of documents is exhausted."""

    n_records: int = 0
    """Files, lines or rows read, usable or not."""
    n_documents: int = 0
    """Documents yielded. Each block of a large document counts as one."""
    n_characters: int = 0
    """Characters of the documents yielded."""
    n_replaced: int = 0
    """Records with bytes that are not UTF-8, which became U+FFFD."""
    n_replaced_characters: int = 0
    """How often that happened."""
    n_decoded: int = 0
    """Characters decoded from bytes; those of Parquet and of datasets, which are UTF-8 by themselves, do not count."""
    n_stripped: int = 0
    """Records from which NULs or lone surrogates were removed."""
    n_skipped: Counter[str] = field(default_factory=Counter)
    """Records skipped, by reason. These count as unusable: bad_json, bad_csv, not_an_object, missing_field, wrong_type,
    line_too_long, row_too_long, chat_template, not_utf8, unreadable. These are harmless: empty, one_token, not_text
    (another kind of file in a folder of texts), link_out (a link that leads out of the folder), unreadable_token
    (documents of which some windows were left out)."""
    split_documents: Counter[Split] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """The first record skipped for each reason, for messages."""
    fields: dict[str, None] = field(default_factory=dict)
    """The first few field names found in records without the wanted field, in order."""

    @property
    def n_unusable(self) -> int:
        return sum(n for reason, n in self.n_skipped.items() if reason not in HARMLESS)

    def skip(self, reason: str, where: str) -> None:
        self.n_skipped[reason] += 1
        self.examples.setdefault(reason, where)

    def decoded(self, n_characters: int, n_replaced: int) -> None:
        """Count what was decoded, and how much of it was no UTF-8. Raises InputError when that is too much."""
        self.n_decoded += n_characters
        self.n_replaced_characters += n_replaced
        if n_replaced and self.n_replaced_characters > max(MANY_REPLACED, MOST_REPLACED * self.n_decoded):
            raise InputError(
                f"{self.n_replaced_characters:,} of {self.n_decoded:,} characters of the corpus are not UTF-8 (allowed "
                f"share: {MOST_REPLACED}); convert it, as with `iconv -f latin1 -t utf8`"
            )

    def saw_fields(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self.fields) < FIELDS_KEPT:
                self.fields[name] = None

    def check(self, max_skipped_share: float, wanted_field: str, *, final: bool) -> None:
        """Raise InputError when too many records were unusable. The share is checked at the end and every CHECK_EVERY
        records; the first EARLY_RECORDS are too many if all of them were unusable."""
        hopeless = self.n_unusable == self.n_records == EARLY_RECORDS
        due = final or self.n_records % CHECK_EVERY == 0
        if hopeless or (due and self.n_unusable > max_skipped_share * self.n_records):
            raise InputError(
                f"{self.n_unusable} of {self.n_records} records of the corpus are unusable (allowed share: "
                f"corpus.max_skipped_share = {max_skipped_share}): {self.skipped_summary()}.{self._hint(wanted_field)}"
            )

    def remarks(self) -> list[str]:
        """What a person should know of the corpus as it was read: records skipped, and characters replaced."""
        found = [f"skipped {self.skipped_summary()}"] if self.n_skipped else []
        if self.n_replaced_characters:
            found.append(
                f"{self.n_replaced_characters:,} characters in {self.n_replaced:,} records are not UTF-8 and became "
                "U+FFFD"
            )
        return found

    def skipped_summary(self) -> str:
        """'3 bad_json (first: a.jsonl:7), 1 empty (first: b.txt)', most frequent reason first."""
        return ", ".join(f"{n} {reason} (first: {self.examples[reason]})" for reason, n in self.n_skipped.most_common())

    def _hint(self, wanted_field: str) -> str:
        if not self.fields:
            return ""
        close = nearest(wanted_field, self.fields, n=1)
        return (
            f" Records without {wanted_field!r} have the fields {', '.join(self.fields)}; set corpus.text_field to the "
            f"one that holds the text.{close}"
        )
