"""The English sentence of a `patterns` label: what the feature fires on, where, and what follows.

It is written from the same sample as the rule, and its most informative part comes first: the tokens that the feature
fires on (or the token before them, where they vary and that token does not). Then it says what tells active from silent
occurrences, and what comes next. What the feature promotes is said apart, where the output evidence agrees with the
text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autointerp.ask.explanation_row import MAX_LABEL
from autointerp.records import PromotedToken
from autointerp.rules.named_words import LEAST_DOCUMENTS, Named, named_words
from autointerp.rules.occurrences import Occurrences, Share, active_of, is_blank, is_part, leading_of, with_words
from autointerp.rules.patterns import Rule
from autointerp.rules.places import before_group
from autointerp.rules.reference import NO_REFERENCE, Reference
from autointerp.rules.samples import Sample
from autointerp.rules.subjects import Subject, with_places
from autointerp.rules.token_facts import START
from autointerp.rules.token_names import WHOLE_WORDS, WORD_GROUPS, cased, group_of, is_word, listed, quoted, token_name
from autointerp.rules.topics import topic_words

MIN_ACTIVE = 3
"""With fewer active tokens there is nothing to describe."""
NAMED_FROM = 0.2
"""Share of the active weight on words that tell when the feature fires from which on they are the label."""
FORM_FROM = 0.7
"""Share of the active weight on tokens of one form from which on the label names the form, unless a word leads."""
LEADS_FROM = 0.3
"""Share of the active weight on forms of one word from which on it leads."""
SIGNS_NAMED_FROM = 0.5
"""The same where the active tokens are signs and white space for the most part."""
CLAIMED_FROM = 0.45
"""Share of the active weight that the named words must hold for the label to say that the feature fires on them. With
less it names the form, and some of the words as examples."""
LEAST_EXAMPLES = 3
"""With fewer words to give as examples, the label names the commonest tokens of each form."""
EXAMPLES_FROM = 0.3
"""Where most active tokens are parts of words, the share of the active weight that the named words must hold for the
label to give them as examples. With less the form of the tokens is all there is to say."""
WORDS_FROM = 0.6
"""Share of the active weight on words from which on they are not signs for the most part."""
LOOSE_BELOW = 0.25
"""The sentence of a rule whose fit is below this begins with "loosely"."""


def sentence(sample: Sample, rule: Rule, reference: Reference = NO_REFERENCE) -> str | None:
    """The label, at most MAX_LABEL characters; None where there is too little to describe."""
    y = sample.activations
    active = active_of(sample)
    if len(active.at) < MIN_ACTIVE or not rule.tables:
        return None
    quiet = [int(i) for i in np.flatnonzero(y <= 0)]
    silent = Occurrences(sample, quiet, sample.weights[quiet].tolist())
    words = named_words(active, rule, reference.near)
    if _follows_something(active, rule, words) and (after := _after(active, silent)):
        parts = [after]
    else:
        parts = _tokens_and_place(active, silent, words)
    topic = topic_words(active, reference, [] if words is None else words.words)
    if topic:
        parts.append(f"mostly in text with words such as {listed([quoted(word) for word in topic])}")
    if following := _following(active):
        parts.append(following)
    if parts[0].startswith("`") and " " not in parts[0]:
        parts[0] = f"the {'word' if parts[0].strip('`').isalpha() else 'sign'} {parts[0]}"
    if rule.fit is not None and rule.fit < LOOSE_BELOW:
        parts[0] = f"loosely: {parts[0]}"
    return fitted(parts)


def _follows_something(active: Occurrences, rule: Rule, words: Named | None) -> bool:
    """Whether the token before says more than the active tokens do: because the rule's first table is about it, or
    because the active tokens vary and what stands before them does not. Not where one word leads and is named with what
    stands before it."""
    of = rule.tables[0].of
    if words is not None and words.says_before and words.largest >= CLAIMED_FROM:
        return False
    if of in (("before",), ("kind", "before")):
        return True
    if {"token", "folded", "word"} & set(of) or active.tokens()[0].share > 0.35:
        return False
    befores = [s for s in active.befores() if s.value != START and not is_blank(s.value)]
    return leading_of(befores, 0.6, 3, 0.1) is not None


def fitted(parts: Sequence[str]) -> str:
    """The parts joined. Where the whole would be too long, the last parts are left out."""
    kept = list(parts)
    while len(kept) > 1 and len("; ".join(kept)) > MAX_LABEL:
        kept.pop()
    text = "; ".join(kept)
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1].rsplit(" ", 1)[0] + "…"


# --- what it fires on -----------------------------------------------------------------------------------------------


def _tokens_and_place(active: Occurrences, silent: Occurrences, words: Named | None) -> list[str]:
    is_about_words = active.share_of(lambda i: is_word(active.fact(i).token)) >= WORDS_FROM
    least = NAMED_FROM if is_about_words else SIGNS_NAMED_FROM
    if words is not None and (words.share < least or _is_about_form(active, words)):
        words = None
    if words is None or words.shown < CLAIMED_FROM:
        return _examples_and_place(active, silent, words)
    return [with_places(words.main, active, silent), *([words.others] if words.others else [])]


def _examples_and_place(active: Occurrences, silent: Occurrences, words: Named | None) -> list[str]:
    """The form of the active tokens with examples, best those that tell."""
    groups = active.shares(lambda i: group_of(active.fact(i).token))
    whole, any_words = (sum(g.share for g in groups if g.value in some) for some in (WHOLE_WORDS, WORD_GROUPS))
    enough = words is not None and words.are_words and len(words.examples) >= LEAST_EXAMPLES
    are_words = whole >= WORDS_FROM or (any_words >= WORDS_FROM and words is not None and words.shown >= EXAMPLES_FROM)
    if words is None or not enough or not are_words:
        return _tokens_or_groups(active, silent, words)
    text = f"words such as {listed([example.text for example in words.examples])}"
    subject = Subject(text, words.tells, examples=tuple(example.members for example in words.examples))
    return [with_places([subject], active, silent), *([words.related] if words.related else [])]


def _is_about_form(active: Occurrences, words: Named) -> bool:
    """Whether the active tokens are of one form (numbers, names in capitals) and no single word leads."""
    form = active.shares(lambda i: group_of(active.fact(i).token))[0]
    capitals = active.share_of(lambda i: active.fact(i).token.strip().isupper())
    share = max(capitals, 0.0 if form.value in WORD_GROUPS else form.share)
    return share >= FORM_FROM and words.largest < LEADS_FROM


def _tokens_or_groups(active: Occurrences, silent: Occurrences, words: Named | None) -> list[str]:
    """What the active tokens are: a few tokens that lead, or what they have in common."""
    names = active.tokens()
    leading = leading_of(names, 0.6, 5, 0.07)
    if leading is not None and not all(is_blank(s.value) for s in leading):
        subjects = [_token(s, active, 3 if len(leading) == 1 else 2) for s in leading]
        named = {token_name(s.shown) for s in leading}
        extra = [s for s in names[len(leading) :][:3] if s.share >= 0.06 and token_name(s.shown) not in named]
        wide = [s for s in extra if _is_in_several_documents(s, active)]
        also = dict.fromkeys(with_words(s, active, 1) for s in wide)
        return [with_places(subjects, active, silent), *([f"also {', '.join(also)}"] if also else [])]
    groups = active.shares(lambda i: group_of(active.fact(i).token))
    main = leading_of(groups, 0.55, 2, 0.2) or [g for g in groups[:1] if g.share >= 0.4]
    if not main:
        varied = with_places([Subject("varied tokens", lambda fact: True)], active, silent)
        return [f"{varied}, most often {listed([with_words(s, active, 1) for s in names[:4]])}"]
    return [with_places([_group(s.value, active, words, alone=len(main) == 1) for s in main], active, silent)]


def _is_in_several_documents(token: Share, active: Occurrences) -> bool:
    return active.where(lambda i: cased(active.fact(i).token) == token.value).n_documents >= LEAST_DOCUMENTS


def _token(token: Share, active: Occurrences, most: int) -> Subject:
    return Subject(with_words(token, active, most), lambda fact: cased(fact.token) == token.value)


def _group(noun: str, active: Occurrences, words: Named | None, alone: bool) -> Subject:
    """A group with its commonest members: 'numbers (mostly `0` and `1`)'. Those that tell when the feature fires come
    first."""
    within = active.where(lambda i: group_of(active.fact(i).token) == noun)
    names = within.tokens()

    def subject(text: str, examples: Sequence[Share] = ()) -> Subject:
        tests = tuple(_token(s, within, 1).members for s in examples)
        return Subject(text, lambda fact: group_of(fact.token) == noun, examples=tests)

    if noun == "line breaks":
        return subject(_line_breaks(within))
    if noun == "runs of spaces" or (len(names) == 1 and is_blank(names[0].value)):
        return subject(noun)
    if words is not None:
        telling = {cased(within.fact(i).token) for i in within.at if words.tells(within.fact(i))}
        names.sort(key=lambda s: s.value not in telling)
    if within.share_of(lambda i: is_part(within, i)) >= 0.5:
        plural = f"beginnings of {noun}" if noun.endswith("words") else noun
        plural = "parts of words" if noun == "parts of lower-case names" else plural
        return subject(f"{plural} such as {listed([with_words(s, within, 1) for s in names[:3]])}", names[:3])
    if noun == "lower-case words":  # most words are
        examples = f"such as {listed([token_name(s.shown) for s in names[:5]])}"
        return subject(f"words {examples}" if alone else f"words ({examples})", names[:5])
    mostly = leading_of(within.tokens(), 0.6, 3, 0.1)
    word, some = ("mostly", mostly) if mostly else ("such as", names[:4])
    return subject(f"{noun} ({word} {listed([token_name(s.shown) for s in some])})", some)


def _line_breaks(within: Occurrences) -> str:
    def indent(i: int) -> int:
        columns = len(within.fact(i).token.rsplit("\n", 1)[1].expandtabs(8))
        # A tokenizer may leave the last space of an indentation to the word: 7 and 3 are then 8 and 4.
        follows = within.sample.following[i]
        return columns + (len(follows) - len(follows.lstrip(" ")))

    noun = "empty lines" if within.share_of(lambda i: within.fact(i).token.count("\n") > 1) >= 0.7 else "line breaks"
    depths = leading_of(within.shares(lambda i: str(indent(i))), 0.7, 3, 0.15)
    if depths is not None:
        ordered = sorted({int(s.value) for s in depths})
        if ordered == [0]:
            return f"{noun} before unindented lines"
        return f"{noun} followed by {listed([str(n) for n in ordered], 'or')} spaces of indentation"
    deep = [n for n in (24, 16, 12) if within.share_of(lambda i, n=n: indent(i) >= n) >= 0.85]  # type: ignore[misc]
    return f"{noun} followed by {deep[0]} or more spaces of indentation" if deep else noun


# --- what follows something ---------------------------------------------------------------------------------------


def _after(active: Occurrences, silent: Occurrences) -> str | None:
    """The sentence for a feature that fires after certain tokens, whatever comes: 'what follows `import`, for example
    `os`'."""
    befores = [s for s in active.befores() if s.value != START]
    leading = leading_of(befores, 0.5, 5, 0.06)
    if leading is not None:
        text = listed([token_name(s.shown) for s in leading], "or")
        chosen = {s.value for s in leading}
        here = active.where(lambda i: cased(active.fact(i).before) in chosen)
    else:
        noun = active.shares(lambda i: before_group(active.fact(i)))[0]
        usual = silent.share_of(lambda i: before_group(silent.fact(i)) == noun.value)
        if not noun.value or noun.share < 0.5 or noun.share - usual < 0.25:
            return None
        here = active.where(lambda i: before_group(active.fact(i)) == noun.value)
        shown = [token_name(s.shown) for s in here.befores()[:4]]
        text = "a line break" if noun.value == "line breaks" else f"{noun.value} such as {listed(shown)}"
    kinds = here.shares(lambda i: group_of(here.fact(i).token))
    if kinds[0].share >= 0.7 and kinds[0].value in ("line breaks", "runs of spaces", "numbers"):
        return f"{kinds[0].value} after {text}"
    examples = dict.fromkeys(with_words(s, here, 1) for s in here.tokens()[:4])
    return f"what follows {text}, for example {listed(list(examples))}"


# --- what comes next ------------------------------------------------------------------------------------------------


def _following(active: Occurrences) -> str | None:
    shares = [s for s in active.shares(lambda i: active.sample.following[i], cased) if s.value]
    leading = leading_of(shares, 0.6, 2, 0.2)
    if leading is None or any(is_word(s.value) and not s.value[0].isspace() for s in leading):
        return None
    adverb = "always" if sum(s.share for s in leading) >= 0.97 else "usually"
    return f"{adverb} followed by {listed([token_name(s.shown) for s in leading], 'or')}"


def leads_to(promoted: Sequence[PromotedToken], sample: Sample) -> str | None:
    """Names promoted tokens where at least two of the ten strongest really do follow, and often."""
    active = active_of(sample)
    best = [p.token for p in promoted[:10]]
    follows = {s.value: s.share for s in active.shares(lambda i: active.sample.following[i])}
    seen = [t for t in best if follows.get(t, 0.0) >= 0.03 and t.strip()]
    if len(seen) < 2 or sum(follows[t] for t in seen) < 0.15:
        return None
    names = list(dict.fromkeys(token_name(t) for t in seen))[:4]
    return listed(names)


def lookup_sentence(rule: Rule) -> str | None:
    """The label by `token_lookup`: the tokens of its rule. None where the rule has none."""
    if not rule.tables or not rule.tables[0].weights:
        return None
    best = sorted(rule.tables[0].weights.items(), key=lambda item: -item[1])
    names = list(dict.fromkeys(token_name(key[0]) for key, weight in best if weight > 0))[:8]
    return f"tokens most active on average: {', '.join(names)}" if names else None
