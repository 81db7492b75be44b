"""Reads labelled text for probing: jsonl files of texts with a label 0 or 1, or of words with one tag each."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.errors import InputError

FEWEST_PER_CLASS = 10


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    texts: list[str]
    labels: list[int]
    """0 or 1 for each text."""


@dataclass(frozen=True, slots=True)
class TaggedSentences:
    sentences: list[list[str]]
    """The words of each sentence."""
    tags: list[list[str]]
    """The tag of each word of each sentence."""


def read_labelled(path: Path, most: int | None = None) -> LabelledTexts | TaggedSentences:
    """Read a jsonl file whose lines are all {"text": str, "label": 0 or 1}, or all {"words": [str], "tags": [str]}.

    Other fields and empty lines are ignored. `most`: read at most this many records, spread evenly over the file.
    Raises InputError, which names the line, when the file is missing, a line is not JSON, a field is missing or has the
    wrong type, a label is not 0, 1, true or false, or words and tags differ in number. Raises InputError too when the
    file has only one class or tag, or fewer than FEWEST_PER_CLASS sentences or texts of a class.
    """
    records = _records(path)
    if most is not None and len(records) > most:
        records = [records[i * len(records) // most] for i in range(most)]
    if records and "words" in records[0][1]:
        pairs = [_tagged(record, f"{path}, line {number}") for number, record in records]
        tagged = TaggedSentences([words for words, _ in pairs], [tags for _, tags in pairs])
        _check_tags(tagged, path)
        return tagged
    labelled = [_labelled(record, f"{path}, line {number}") for number, record in records]
    texts = LabelledTexts([text for text, _ in labelled], [label for _, label in labelled])
    check_labels(texts.labels, str(path))
    return texts


def check_labels(labels: list[int], what: str) -> None:
    """Raise InputError when a class is missing or has fewer than FEWEST_PER_CLASS members."""
    counts = Counter(labels)
    if not labels:
        raise InputError(f"{what} holds no labelled text")
    if len(counts) < 2:
        raise InputError(f"{what}: all {len(labels)} labels are {labels[0]}; a probe needs texts of both classes")
    rarest, n = min(counts.items(), key=lambda item: item[1])
    if n < FEWEST_PER_CLASS:
        raise InputError(f"{what}: only {n} texts have label {rarest}; a probe needs {FEWEST_PER_CLASS} of each class")


def _check_tags(tagged: TaggedSentences, path: Path) -> None:
    n_tags = len({tag for tags in tagged.tags for tag in tags})
    if n_tags < 2:
        raise InputError(f"{path}: {n_tags} different tags; a probe needs at least two")
    if len(tagged.sentences) < FEWEST_PER_CLASS:
        raise InputError(f"{path}: {len(tagged.sentences)} sentences; a probe needs {FEWEST_PER_CLASS}")


def _records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    found = []
    # Not splitlines, since JSON strings may hold U+2028 and the like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, a deep nest
            raise InputError(f"{path}, line {number} cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, line {number}: an object with text and label (or words and tags) is needed, not {line!r:.60}"
            )
        found.append((number, record))
    return found


def _labelled(record: dict[str, Any], where: str) -> tuple[str, int]:
    if "text" not in record or "label" not in record:
        raise InputError(f"{where}: fields text and label (or words and tags) are needed, not {', '.join(record)[:80]}")
    text, label = record["text"], record["label"]
    if not isinstance(text, str):
        raise InputError(f"{where}: text is to be a string, not {type(text).__name__}")
    if not isinstance(label, int) or label not in (0, 1):
        raise InputError(f"{where}: label is to be 0 or 1, not {label!r:.40}")
    return text, int(label)


def _tagged(record: dict[str, Any], where: str) -> tuple[list[str], list[str]]:
    words, tags = record.get("words"), record.get("tags")
    for name, value in (("words", words), ("tags", tags)):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{where}: {name} is to be a list of strings")
    assert isinstance(words, list) and isinstance(tags, list)
    if len(words) != len(tags):
        raise InputError(f"{where}: {len(words)} words and {len(tags)} tags")
    return words, tags
