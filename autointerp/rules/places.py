"""What tells the places where a feature fires on its tokens from those where it is silent: what stands before, the
line, the brackets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from autointerp.rules.occurrences import Occurrences, is_blank
from autointerp.rules.token_facts import START, Facts
from autointerp.rules.token_names import cased, group_of, is_word, listed, quoted, token_name

Way = tuple[str, Callable[[Facts], bool], float]
"""A way to say a place: the text, the test, and the smallest share at which it is worth saying."""
FIRES_FROM = 0.6
"""Where the feature fires in this share of the places of its tokens, a place is said only if it holds LEAST_HELD of the
active weight, and nothing common is said to stand before, but for one sign."""
LEAST_HELD = 0.55
COMMON = 0.01
"""What stands before more than this share of silent tokens is common: `the` stands before most nouns, and says nothing
of one that the feature fires on wherever it is."""
ITS_PLACE = 0.8
"""Where the feature fires in most places of its tokens, a place that holds this share of the active weight is compared
with all silent tokens: `import` stands at the start of a line wherever it is, and the label says so."""
MANY = 8
"""Silent occurrences of the same tokens that are enough to compare with."""
SECOND_FROM = 0.7
"""A second place is said only if it holds this share of the active weight."""
OF_EACH = 0.5
"""A place holds for one of several named tokens if this share of the weight of its own occurrences is there."""
OF_EACH_BEFORE = 0.08
"""The least share of each of several tokens that are named as standing before, for every token of which it is said."""
SECOND_LINE = 0.12
SECOND_DOCUMENTS = 3
"""The least share of a second beginning of lines that is named, and in how many documents it must be."""


def place_of(
    here: Occurrences,
    there: Occurrences,
    silent: Occurrences,
    *,
    each: Sequence[Occurrences] = (),
    examples: Sequence[Occurrences] = (),
    says_before: bool = False,
    most: int = 2,
) -> str:
    """What tells the active occurrences from silent ones: ' after `(`, in comments', at most `most` places.

    `there` holds the silent occurrences of the same tokens. Where they are too few, all silent tokens stand in. The
    place is said of the tokens of `each` and of `examples` too, so it holds for every one of them. `says_before`: what
    stands before is said already.
    """
    base = there if len(there.at) >= MANY else silent
    options: list[tuple[float, float, str]] = []
    fires, quiet = float(here.sample.weights[here.at].sum()), sum(there.weights)
    anywhere = fires >= FIRES_FROM * (fires + quiet)
    at_least = LEAST_HELD if anywhere else 0.0

    def offer(text: str, test: Callable[[Facts], bool], least: float, lift: float) -> None:
        share, usual = _share(here, test), _share(base, test)
        if anywhere and share >= ITS_PLACE:
            usual = min(usual, _share(silent, test))
        if share < max(least, at_least) or share - usual < lift:
            return
        if all(_share(some, test) >= OF_EACH for some in (*each, *examples)):
            options.append((share - usual, share, text))

    continued = here.share_of(lambda i: _continues_a_word(here, i)) >= 0.5
    if not says_before and not continued:  # of continued words the words themselves are shown
        for text, test, least in _befores(here, silent if anywhere else None, each):
            offer(f"after {text}", test, least, 0.3)
    offer("at the start of the text window", lambda f: f.before == START, 0.9, 0.5)
    offer("at the start of a line", lambda f: f.before_kind == "newline", 0.6, 0.35)
    offer("in comments", lambda f: f.quoted == "#" and "#" not in f.token, 0.6, 0.35)
    offer("in strings", lambda f: f.quoted in ("'", '"') and not set("'\"") & set(f.token), 0.75, 0.5)
    for text, test, least in _lines(here, each):
        offer(f"on lines that begin with {text}", test, least, 0.35)
    bracket = here.shares(lambda i: _inside(here.fact(i)))[0].value
    if len(bracket) > 1:
        offer(f"inside {quoted(bracket)}", lambda f: _inside(f) == bracket, 0.5, 0.35)
    offer("inside brackets", lambda f: _inside(f) != "", 0.75, 0.45)
    chosen: list[str] = []
    for _, share, text in sorted(options, key=lambda option: -option[0]):
        if (not chosen or share >= SECOND_FROM) and not any(_overlap(text, other) for other in chosen):
            chosen.append(text)
    return "".join(f" {text}" if n == 0 else f", {text}" for n, text in enumerate(chosen[:most]))


def before_group(fact: Facts) -> str:
    """The plural noun for the token before; '' at the context's first token."""
    return "" if fact.before == START else group_of(fact.before)


def _share(of: Occurrences, test: Callable[[Facts], bool]) -> float:
    return of.share_of(lambda i: test(of.fact(i)))


def _lines(here: Occurrences, each: Sequence[Occurrences]) -> list[Way]:
    """Ways to say what the line begins with: one word or mark, or either of two."""
    names = [s for s in here.shares(lambda i: here.fact(i).line)[:3] if s.value not in ("", "?", "#")]
    out: list[Way] = []
    if names:
        out.append((quoted(names[0].value), partial(_is_on_line, first=names[0].value), 0.5))
    if len(names) > 1 and names[1].share >= SECOND_LINE:
        tests = [partial(_is_on_line, first=s.value) for s in names[:2]]
        second = here.where(lambda i: tests[1](here.fact(i)))
        if second.n_documents >= SECOND_DOCUMENTS and all(
            _share(some, test) >= OF_EACH_BEFORE for test in tests for some in (here, *each)
        ):
            text = listed([quoted(s.value) for s in names[:2]], "or")
            out.append((text, lambda f: any(test(f) for test in tests), 0.6))
    return out


def _is_on_line(fact: Facts, first: str) -> bool:
    """Whether the token stands on a line that begins with `first`, and does not begin it itself."""
    return fact.line == first and fact.word.strip() != first


def _inside(fact: Facts) -> str:
    """The innermost bracket that was open before the token. Of a token that opens or closes one, this is not known:
    facts tell what is open after it."""
    return "" if set("()[]{}") & set(fact.token) else fact.bracket


def _continues_a_word(of: Occurrences, i: int) -> bool:
    core = of.fact(i).token
    return is_word(core) and not core[0].isspace() and is_word(of.fact(i).before)


def _befores(here: Occurrences, silent: Occurrences | None, each: Sequence[Occurrences]) -> list[Way]:
    """Ways to say what stands before. With `silent`,
    nothing that is common there, but for one sign. Of several tokens, each stands before all of `each`."""
    names = [s for s in here.befores()[:5] if s.value != START and not is_blank(s.value)]
    first = names[:1]
    if silent is not None:
        usual = {s.value: s.share for s in silent.befores()}
        names = [s for s in names if usual.get(s.value, 0.0) < COMMON]
        if first and is_word(first[0].value):
            first = names[:1]
    out: list[Way] = []
    if first:
        out.append((token_name(first[0].shown), lambda f: cased(f.before) == first[0].value, 0.45))
    for n in (2, 3):
        if len(names) >= n and all(_stands_before(s.value, at) for s in names[:n] for at in (here, *each)):
            some = {s.value for s in names[:n]}
            text = listed([token_name(s.shown) for s in names[:n]], "or")
            out.append((text, lambda f, some=some: cased(f.before) in some, 0.55))  # type: ignore[misc]
    noun = here.shares(lambda i: before_group(here.fact(i)))[0].value
    if noun not in (
        "",
        "line breaks",
        "lower-case words",
        "parts of lower-case names",
        "punctuation",
        "runs of spaces",
    ):
        out.append((noun, lambda f: before_group(f) == noun, 0.75))
    return out


def _stands_before(value: str, of: Occurrences) -> bool:
    return _share(of, lambda f: cased(f.before) == value) >= OF_EACH_BEFORE


def _overlap(text: str, other: str) -> bool:
    """Whether one of two places is enough: both are about what stands before, about the line, or about brackets, or
    both name the same words (`:` after `try` stands on lines that begin with `try`)."""
    about = [("after" in t, "line" in t, "inside" in t or "(`" in t) for t in (text, other)]
    names = [t.partition("`")[2] for t in (text, other)]
    return any(a and b for a, b in zip(*about, strict=True)) or (names[0] == names[1] != "")
