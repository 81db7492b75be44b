"""Reads the clauses of a rule from JSON that anyone may have written: an LLM, a file, a store.

What is read is normalised: strings in one Unicode form, folded where the condition folds, each once, in order; equal
clauses merged. So reading what `rule_to_json` wrote gives the same clauses. Anything else than clauses within the
bounds of conditions.py raises RuleError, whose words go back to an LLM as the reason why it is asked once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, get_args

from autointerp.errors import nearest
from autointerp.rules.language.conditions import (
    CLASSES,
    KINDS,
    MAX_CLAUSES,
    MAX_CONDITIONS,
    MAX_JSON,
    MAX_REGEX,
    MAX_SAYS,
    MAX_STRENGTH,
    MAX_WITHIN,
    MAX_WORD,
    MAX_WORDS,
    OPENINGS,
    PLACES,
    STRING_KEYS,
    Classes,
    Clause,
    Combine,
    Condition,
    Inside,
    Left,
    Near,
    Not,
    Positive,
    Regex,
    Starts,
    StringKey,
    Strings,
    Test,
    Topic,
    fold,
    normalised,
)
from autointerp.rules.language.json_values import (
    RuleError,
    joined,
    list_of,
    number_of,
    object_of,
    one_of,
    one_with_number,
    printable,
    refuse,
    text_of,
    whole_number,
)
from autointerp.rules.language.linear_regex import linear_regex
from autointerp.rules.near import NO_NEAR_WORDS, NearWords

TEST_KEYS = (*STRING_KEYS, "class", "regex")
CONDITION_KEYS = (*TEST_KEYS, "left", "starts", "inside", "topic", "near", "not")
TOPIC_KEYS = ("word", "lemma", "regex")
COMBINES: tuple[Combine, ...] = get_args(Combine)


def clauses_of(value: object, near: NearWords = NO_NEAR_WORDS) -> tuple[list[Clause], Combine]:
    """The clauses of `{"clauses": [...], "combine": "max" | "sum"}`, normalised, and how they combine: by their maximum
    if nothing is said. `near` expands conditions `near` that are not expanded yet."""
    rule = object_of(value, "the rule", ("clauses", "combine"))
    combine = rule.get("combine", "max")
    if combine not in COMBINES:
        refuse("combine", combine, 'it is "max" or "sum"')
    listed = list_of(rule.get("clauses"), "clauses", MAX_CLAUSES)
    clauses = _merged([_clause(one, f"clauses[{i}]", near) for i, one in enumerate(listed)], combine)
    size = json_bytes(clauses, combine)
    if size > MAX_JSON:
        raise RuleError(f"the clauses take {size} bytes of JSON, and {MAX_JSON} are the most; list fewer words")
    return clauses, combine


def rule_to_json(clauses: Collection[Clause], combine: Combine) -> dict[str, Any]:
    """What `clauses_of` reads as the same clauses."""
    return {"clauses": [clause_to_json(clause) for clause in clauses], "combine": combine}


def json_bytes(clauses: Collection[Clause], combine: Combine) -> int:
    """What the clauses take as JSON, of which MAX_JSON are the most."""
    return len(json.dumps(rule_to_json(clauses, combine), ensure_ascii=False).encode())


def clause_to_json(clause: Clause) -> dict[str, Any]:
    says = {"says": clause.says} if clause.says else {}
    return {**says, "strength": clause.strength, "all": [condition_to_json(c) for c in clause.conditions]}


def condition_to_json(condition: Condition) -> dict[str, Any]:
    match condition:
        case Strings(key, of):
            return {key: list(of)}
        case Classes(of):
            return {"class": list(of)}
        case Regex(pattern):
            return {"regex": pattern}
        case Left(test, within):
            return {"left": {**condition_to_json(test), "within": within}}
        case Starts(of):
            return {"starts": list(of)}
        case Inside(of):
            return {"inside": list(of)}
        case Topic(test, least):
            return {"topic": {**condition_to_json(test), "least": least}}
        case Near(given, cosine, words):
            return {"near": {"word": list(given), "least": cosine, "words": list(words)}}
        case Not(inner):
            return {"not": condition_to_json(inner)}


def _merged(clauses: list[Clause], combine: Combine) -> list[Clause]:
    """Clauses with the same conditions as one, as strong as they are together, unless no clause may be so strong."""
    found: list[Clause] = []
    place: dict[tuple[Condition, ...], int] = {}
    for clause in clauses:
        at = place.setdefault(clause.conditions, len(found))
        if at == len(found):
            found.append(clause)
            continue
        held = found[at]
        together = max(held.strength, clause.strength) if combine == "max" else held.strength + clause.strength
        if together > MAX_STRENGTH:
            found.append(clause)
        else:
            found[at] = replace(held, strength=together, says=held.says or clause.says)
    return found


# --- clauses and conditions -------------------------------------------------------------------------------------------


def _clause(value: object, at: str, near: NearWords) -> Clause:
    clause = object_of(value, at, ("says", "strength", "all"))
    listed = list_of(clause.get("all"), f"{at}.all", MAX_CONDITIONS)
    conditions = {_condition(one, f"{at}.all[{i}]", near) for i, one in enumerate(listed)}
    if all(isinstance(condition, Not) for condition in conditions):
        raise RuleError(f'{at}.all holds only "not"; a clause also needs a condition that says where it does hold')
    ordered = sorted(conditions, key=_order)
    strength = number_of(clause.get("strength"), f"{at}.strength", 0.0, MAX_STRENGTH)
    return Clause(tuple(ordered), strength, _says(clause.get("says", ""), f"{at}.says"))


def _order(condition: Condition) -> tuple[bool, int, str]:
    ((key, _),) = condition_to_json(condition).items()
    return key == "not", CONDITION_KEYS.index(key), json.dumps(condition_to_json(condition))


def _condition(value: object, at: str, near: NearWords) -> Condition:
    key, inner = one_of(value, at, CONDITION_KEYS)
    if key != "not":
        return _positive(key, inner, at, near)
    negated, inner = one_of(inner, f"{at}.not", CONDITION_KEYS)
    if negated == "not":
        raise RuleError(f'{at}.not holds another "not"; say the condition itself')
    return Not(_positive(negated, inner, f"{at}.not", near))


def _positive(key: str, value: object, at: str, near: NearWords) -> Positive:
    read = _READ.get(key)
    if read is not None:
        return read(value, f"{at}.{key}")
    if key == "near":
        return _near(value, f"{at}.near", near)
    return _test(key, value, f"{at}.{key}")


def _test(key: str, value: object, at: str) -> Test:
    if key == "regex":
        return Regex(_pattern(value, at))
    if key == "class":
        return Classes(_names(value, at, CLASSES, is_kind))
    return Strings(_STRING_KEY[key], _words(value, at, _STRING_KEY[key]))


def _left(value: object, at: str) -> Left:
    key, inner, within = one_with_number(value, at, TEST_KEYS, "within")
    return Left(_test(key, inner, f"{at}.{key}"), whole_number(within, f"{at}.within", MAX_WITHIN))


def _topic(value: object, at: str) -> Topic:
    key, inner, least = one_with_number(value, at, TOPIC_KEYS, "least")
    test, number = _test(key, inner, f"{at}.{key}"), whole_number(least, f"{at}.least", MAX_WORDS)
    if isinstance(test, Strings) and number > len(test.of):
        refuse(f"{at}.least", number, f"only {len(test.of)} different words are listed, so it can never hold")
    return Topic(test, number)


def _near(value: object, at: str, near: NearWords) -> Near:
    inner = object_of(value, at, ("word", "least", "words"))
    given = _words(inner.get("word"), f"{at}.word", "word")
    least = number_of(inner.get("least"), f"{at}.least", 0.0, 1.0)
    if "words" in inner:
        return Near(given, least, _words(inner["words"], f"{at}.words", "word"))
    if not near:
        raise RuleError(f'{at}: the neighbours of words are not known here; use "word" or "lemma" instead')
    pairs = sorted((cosine, fold(other)) for word in given for other, cosine in near.of(word) if cosine >= least)
    found = {other: cosine for cosine, other in pairs}  # of several cosines the largest
    usable = [word for word in found if _word_problem(word, "word") is None and word not in given]
    nearest_first = sorted(usable, key=lambda word: (-found[word], word))
    return Near(given, least, tuple(sorted([*given, *nearest_first][:MAX_WORDS])))


_STRING_KEY: dict[str, StringKey] = {key: key for key in STRING_KEYS}
_READ: dict[str, Callable[[object, str], Positive]] = {
    "left": _left,
    "starts": lambda value, at: Starts(_names(value, at, PLACES)),
    "inside": lambda value, at: Inside(_names(value, at, OPENINGS)),
    "topic": _topic,
}


# --- what stands in a condition ---------------------------------------------------------------------------------------


def _words(value: object, at: str, key: StringKey) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else list_of(value, at, MAX_WORDS)
    found = set()
    for one in listed:
        text = text_of(one, at)
        word = normalised(text) if key == "exact" else fold(text)
        problem = _word_problem(word, key)
        if problem is not None:
            refuse(at, one, problem)
        found.add(word)
    return tuple(sorted(found))


def _word_problem(word: str, key: StringKey) -> str | None:
    if not word:
        return "an empty string is on no token"
    if len(word) > MAX_WORD:
        return f"{MAX_WORD} characters are the most"
    if key not in ("token", "exact") and word.strip() and any(map(str.isspace, word)):
        return f'"{key}" takes single words; put the last word here and those before it into "left"'
    return None


def _names(
    value: object, at: str, known: Collection[str], is_other: Callable[[str], bool] = lambda _: False
) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else list_of(value, at, MAX_WORDS)
    for one in listed:
        if not isinstance(one, str) or not (one in known or is_other(one)):
            close = nearest(one[:MAX_WORD], known, 1) if isinstance(one, str) else ""
            refuse(at, one, f"it is one of {joined(known)}.{close}")
    return tuple(sorted({str(one) for one in listed}))


def is_kind(name: str) -> bool:
    kind = name.removeprefix("kind:")
    return kind != name and (kind in KINDS or (kind.startswith("mark:") and len(kind) == len("mark:") + 1))


def _pattern(value: object, at: str) -> str:
    """A list of patterns is any of them, as everywhere."""
    if isinstance(value, list):
        several = [text_of(one, at) for one in list_of(value, at, MAX_WORDS)]
        value = several[0] if len(several) == 1 else "|".join(f"(?:{one})" for one in several)
    pattern = text_of(value, at)
    if not pattern or len(pattern) > MAX_REGEX:
        refuse(at, value, f"a regular expression has 1 to {MAX_REGEX} characters")
    try:
        linear_regex(pattern)
    except ValueError as error:
        refuse(at, value, f"it is no regular expression of RE2 ({printable(str(error))})")
    return pattern


def _says(value: object, at: str) -> str:
    shown = printable(text_of(value, at))
    says = text_of(" ".join(shown.split()), at)  # again, since a long text is normalised only without its white space
    if len(says) > MAX_SAYS:
        raise RuleError(f"{at} has {len(says)} characters, and {MAX_SAYS} are the most; say it shorter")
    return says
