"""What tells the places where a feature fires on its tokens from those where it is silent: what stands before, the
line, the brackets."""

from __future__ import annotations

from collections.abc import Callable

from autointerp.rules.occurrences import Occurrences, is_blank
from autointerp.rules.token_facts import START, Facts
from autointerp.rules.token_names import cased, group_of, is_word, listed, quoted, token_name

FIRES_FROM = 0.6
"""Where the feature fires in this share of the places of its tokens, a place is said only if it holds LEAST_HELD of the
active weight, and nothing common is said to stand before, but for one sign."""
LEAST_HELD = 0.55
COMMON = 0.01
"""What stands before more than this share of silent tokens is common: `the` stands before most nouns, and says nothing
of one that the feature fires on wherever it is."""
MANY = 8
"""Silent occurrences of the same tokens that are enough to compare with."""


def place_of(here: Occurrences, there: Occurrences, silent: Occurrences, says_before: bool = False) -> str:
    """What tells the active occurrences from silent ones: ' after `(`, in comments'.

    `there` holds the silent occurrences of the same tokens. Where they are too few, all silent tokens stand in.
    `says_before`: what stands before is said already.
    """
    base = there if len(there.at) >= MANY else silent
    options: list[tuple[float, str]] = []
    fires, quiet = float(here.sample.weights[here.at].sum()), sum(there.weights)
    anywhere = fires >= FIRES_FROM * (fires + quiet)
    at_least = LEAST_HELD if anywhere else 0.0

    def offer(text: str, test: Callable[[Facts], bool], least: float, lift: float) -> None:
        share = here.share_of(lambda i: test(here.fact(i)))
        usual = base.share_of(lambda i: test(base.fact(i)))
        if share >= max(least, at_least) and share - usual >= lift:
            options.append((share - usual, text))

    continued = here.share_of(lambda i: _continues_a_word(here, i)) >= 0.5
    if not says_before and not continued:  # of continued words the words themselves are shown
        for text, test, least in _befores(here, silent if anywhere else None):
            offer(f"after {text}", test, least, 0.3)
    offer("at the start of a line", lambda f: f.before_kind == "newline", 0.6, 0.35)
    if "#" not in here.tokens()[0].value:
        offer("in comments", lambda f: f.quoted == "#", 0.6, 0.35)
    if not set("'\"") & set(here.tokens()[0].value):
        offer("in strings", lambda f: f.quoted in ("'", '"'), 0.75, 0.5)
    for line in here.shares(lambda i: here.fact(i).line)[:2]:
        if line.value not in ("", "?", "#") and here.tokens()[0].value.strip() != line.value.lower():
            text = f"on lines that begin with {quoted(line.value)}"
            offer(text, lambda f, value=line.value: f.line == value, 0.5, 0.35)  # type: ignore[misc]
    brackets = here.shares(lambda i: here.fact(i).bracket)
    if len(brackets[0].value) > 1:
        text = f"inside {quoted(brackets[0].value)}"
        offer(text, lambda f: f.bracket == brackets[0].value, 0.5, 0.35)
    offer("inside brackets", lambda f: f.bracket != "", 0.75, 0.45)
    chosen: list[str] = []
    for _, text in sorted(options, key=lambda option: -option[0]):
        if not any(_overlap(text, other) for other in chosen):
            chosen.append(text)
    return "".join(f" {text}" if n == 0 else f", {text}" for n, text in enumerate(chosen[:2]))


def _continues_a_word(of: Occurrences, i: int) -> bool:
    core = of.fact(i).token
    return is_word(core) and not core[0].isspace() and is_word(of.fact(i).before)


def _befores(here: Occurrences, silent: Occurrences | None) -> list[tuple[str, Callable[[Facts], bool], float]]:
    """Ways to say what stands before: (text, test, the smallest share at which it is worth saying). With `silent`,
    nothing that is common there, but for one sign."""
    names = [s for s in here.befores()[:5] if s.value != START and not is_blank(s.value)]
    first = names[:1]
    if silent is not None:
        usual = {s.value: s.share for s in silent.befores()}
        names = [s for s in names if usual.get(s.value, 0.0) < COMMON]
        if first and is_word(first[0].value):
            first = names[:1]
    out: list[tuple[str, Callable[[Facts], bool], float]] = []
    if first:
        out.append((token_name(first[0].shown), lambda f: cased(f.before) == first[0].value, 0.45))
    for n in (2, 3):
        if len(names) >= n and names[n - 1].share >= 0.08:
            some = {s.value for s in names[:n]}
            text = listed([token_name(s.shown) for s in names[:n]], "or")
            out.append((text, lambda f, some=some: cased(f.before) in some, 0.55))  # type: ignore[misc]
    noun = here.shares(lambda i: group_of(here.fact(i).before))[0].value
    if noun not in ("line breaks", "lower-case words", "parts of lower-case names", "punctuation", "runs of spaces"):
        out.append((noun, lambda f: group_of(f.before) == noun, 0.75))
    return out


def _overlap(text: str, other: str) -> bool:
    """Whether both texts are about what stands before, about the line, or about brackets: one of them is enough."""
    about = [("after" in t, "line" in t, "inside" in t or "(`" in t) for t in (text, other)]
    return any(a and b for a, b in zip(*about, strict=True))
