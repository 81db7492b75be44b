"""The questions and rows of the two scorers that ask a judge for yes or no on whole contexts (Paulo et al. 2024).

    detection  the judge sees plain contexts and says in which the label's feature is active
    fuzzing    the judge sees contexts with marked tokens and says where the marks are right. In activating contexts
               the tokens with at least 0.3 of the context's maximum are marked; in silent ones, tokens at the places of
               an activating context's marks, so that neither their number nor where they stand gives the answer away

No I/O here; the scorers are in detection_fuzzing.py. The scoring method is 'answers_ordinary': the judge's own 0 or 1,
and silent text as it comes (see stopping.py for 'answers_ordinary_sequential'). Rows of the methods 'answers' and
'answers_sequential', by earlier versions, counted all silent contexts in the headline: how many of them had been chosen
to look active hung on what the feature had.

Rows of one label, `n` and `n_failed` counted in the contexts that were asked about:

    detection                      balanced accuracy, the mean of the sensitivity and of the specificity in the random
                                   tier, a uniform sample of silent text. The other tiers have rows of their own
    detection_sensitivity          share of the activating contexts that the judge found
    detection_sensitivity_decile_9 sensitivity in one decile (0 weakest .. 9 strongest); only deciles that were shown
    detection_specificity          share of all silent contexts that the judge left alone
    detection_specificity_random   specificity in one tier (random, same_token, neighbour); only tiers that were shown
    detection_precision            of the tiles of ordinary text that the judge would choose, the share in which the
                                   feature fires: from the sampled contexts, the random silent ones and the density
                                   (prevalence.py). Without a false alarm it has no value, only its lower end

From the same contexts as the precision, the row `detection` says from which activation on the label holds (holding.py).
Fuzzing has neither: that a judge rejects marks borrowed from another context does not say whether the label, on text
without marks, would claim the place.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from autointerp import jackknife, stats
from autointerp.ask.beginnings import Beginning, beginning, plain_excerpt
from autointerp.ask.chat import ReplyError, chat_body
from autointerp.ask.prompts import PromptTemplate, load_template, mark, one_line
from autointerp.clustered_shares import share_of
from autointerp.config import EndpointConfig
from autointerp.jackknife import Floats
from autointerp.llm.requests import Reply, Request
from autointerp.records import Context, Prediction, Score, stable_id
from autointerp.score.holding import claims_of_judge, cross_fitted
from autointerp.score.natural import is_ordinary, precision_result
from autointerp.score.score_rows import Answer, Identity, Part, Result, documents_of, obstacle, usable

DETECTION = "detection"
FUZZING = "fuzzing"
ANSWERS = "answers_ordinary"
RANDOM = "random"
TIERS = (RANDOM, "same_token", "neighbour")
ACTIVE = 0.3
"""A token counts as active from this share of the context's maximum."""


# --- which contexts, and what is marked in them ----------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """One context as a judge is to see it."""

    context: Context
    marked: tuple[int, ...] = ()
    """Places of the marked tokens, ascending; empty for detection."""

    @property
    def active(self) -> bool:
        """The right answer."""
        return self.context.kind != "negative"


def choose_examples(
    scorer: str, contexts: Sequence[Context], n: int, seed: int, dictionary_id: int, per_call: int = 5
) -> list[Example]:
    """Up to 2 n activating and 2 n silent contexts of one feature and split, as many as the simulation's top and
    sampled ones together, in an order drawn with `seed`; none without an activating and a random silent one.

    Activating contexts are the uniform samples, the deciles in turn, since strong contexts alone say nothing of most
    of what a feature does; top contexts fill in where there are too few. Half of the silent ones are random, the others
    of the two other tiers in turn. There are fewer silent ones where the activating ones are few: of `per_call`
    contexts that are asked about together, one is to be activating on average.
    A function of contexts and seed alone, so that labels of one feature are compared on the same questions.
    """
    sampled = [c for c in contexts if c.kind == "sampled"]
    seen = {(c.document, c.position) for c in sampled}
    top = [c for c in contexts if c.kind == "top" and (c.document, c.position) not in seen]
    active = [*_in_turn(sampled, lambda c: -1 if c.decile is None else c.decile), *top][: 2 * n]
    silent = _silent(contexts, n)
    if per_call > 1:
        silent = silent[: len(active) * (per_call - 1)]
    if not active or not silent:
        return []
    draw = random.Random(stable_id(seed, scorer, dictionary_id, active[0].feature))
    if scorer == FUZZING:
        examples = _marked(active, silent, draw)
    else:
        examples = [Example(c) for c in (*active, *silent)]
    draw.shuffle(examples)
    return examples


def _silent(contexts: Sequence[Context], n: int) -> list[Context]:
    """Up to 2 n silent contexts, n of them random; where a tier is short, the others fill in. The random ones come
    first; without any there are none."""
    random_ones = _in_turn((c for c in contexts if c.tier == RANDOM), lambda c: 0)
    others = silent_in_turn(c for c in contexts if c.tier != RANDOM)
    return [*random_ones[:n], *others, *random_ones[n:]][: 2 * n] if random_ones else []


def silent_in_turn(contexts: Iterable[Context]) -> list[Context]:
    """The silent ones among the contexts, the three tiers in turn."""
    return _in_turn((c for c in contexts if c.kind == "negative"), lambda c: TIERS.index(c.tier or RANDOM))


def _in_turn(contexts: Iterable[Context], group: Callable[[Context], int]) -> list[Context]:
    """Takes one context of each group, then a second of each, and so on. Each group stays in the store's rank order."""
    groups: dict[int, list[Context]] = defaultdict(list)
    for context in sorted(contexts, key=lambda c: (c.rank, c.context_id)):
        groups[group(context)].append(context)
    rounds = zip_longest(*(groups[key] for key in sorted(groups)))
    return [context for one in rounds for context in one if context is not None]


def _marked(active: Sequence[Context], silent: Sequence[Context], draw: random.Random) -> list[Example]:
    right = [Example(c, active_places(c)) for c in active]
    # Every activating context lends its marks once before one of them does so again.
    lenders = draw.sample(right, len(right))
    return [
        *right,
        *(Example(c, borrowed_places(c, lenders[i % len(lenders)])) for i, c in enumerate(silent)),
    ]


def active_places(context: Context) -> tuple[int, ...]:
    """Where the context has at least ACTIVE of its maximum; that of an empty piece of a character counts for the next
    token that shows."""
    least = ACTIVE * context.max_activation
    strong = [i for i, a in enumerate(context.activations) if a > 0.0 and a >= least]
    visible = _visible(context)
    found = {next((v for v in visible if v >= i), visible[-1]) for i in strong} if visible else set()
    return tuple(sorted(found))


def borrowed_places(context: Context, lender: Example) -> tuple[int, ...]:
    """Places in `context`, as many as `lender` has marked and at the same relative positions. A place that is not
    visible is replaced by the nearest free token. There are fewer places if the context has too few tokens."""
    free = _visible(context)
    places = []
    for place in lender.marked:
        if not free:
            break
        wanted = place * len(context.tokens) // len(lender.context.tokens)
        nearest = min(free, key=lambda v: (abs(v - wanted), v))
        free.remove(nearest)
        places.append(nearest)
    return tuple(sorted(places))


def _visible(context: Context) -> list[int]:
    """Places of the tokens that show: the first pieces of a character split over several tokens are empty."""
    return [i for i, token in enumerate(context.tokens) if token]


def batches(examples: Sequence[Example], size: int, again: bool = False) -> list[list[Example]]:
    """Batches of at most `size` examples, of almost equal length, dealt by `deal`. A function of the examples and their
    order alone; `again`: another deal of them."""
    sizes = [len(run) for run in even_runs(examples, size)]
    return deal(examples, sizes, random.Random(stable_id("deal", again, *(e.context.context_id for e in examples))))


def even_runs(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """The examples as they come, in runs of at most `size` and of almost equal length: a last request with one example
    would be another kind of question."""
    count = -(-len(examples) // size)
    edges = [i * len(examples) // count for i in range(count + 1)] if count else [0]
    return [list(examples[a:b]) for a, b in zip(edges, edges[1:], strict=False)]


def deal(examples: Sequence[Example], sizes: Sequence[int], draw: random.Random) -> list[list[Example]]:
    """The examples in batches of these sizes, in an order that is drawn.

    Three of four activating ones go to batches without one, as long as there are such, and all others anywhere. So few
    batches have none at all, and how many there are in a batch still varies; left to chance, a quarter of all pairs
    would have none."""
    active = [e for e in examples if e.active]
    active = draw.sample(active, len(active))
    given = draw.sample(range(len(sizes)), min(len(sizes), 3 * len(active) // 4))
    dealt: list[list[Example]] = [[] for _ in sizes]
    for place, example in zip(given, active, strict=False):
        dealt[place].append(example)
    rest = [*active[len(given) :], *(e for e in examples if not e.active)]
    draw.shuffle(rest)
    left = iter(rest)
    for batch, size in zip(dealt, sizes, strict=True):
        batch += [next(left) for _ in range(size - len(batch))]
        draw.shuffle(batch)
    return dealt


# --- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """Builds requests and reads replies for detection or fuzzing."""

    scorer: str
    template: PromptTemplate
    endpoint: EndpointConfig
    seed: int = 0

    @classmethod
    def of(cls, scorer: str, endpoint: EndpointConfig, seed: int = 0, prompts: Path | None = None) -> Judge:
        return cls(scorer, template_of(scorer, prompts), endpoint, seed)

    def request(self, label: str, examples: Sequence[Example], dictionary_id: int) -> Request:
        """The question about a few contexts of one feature."""
        lines = [one_line(pieces(e) if self.scorer == FUZZING else plain_excerpt(e.context)) for e in examples]
        fence = mark(self.seed, self.scorer, label, lines)
        question = self.template.block("user", label=one_line(label), examples=lines, mark=fence)
        messages = [
            {"role": "system", "content": self.template.block("system")},
            {"role": "user", "content": question},
        ]
        return self._request(messages, examples, dictionary_id)

    def again(
        self, request: Request, reply: str, problem: str, examples: Sequence[Example], dictionary_id: int
    ) -> Request:
        """Asks once more after an unusable reply, which is shown."""
        messages = [
            *request.body["messages"],
            {"role": "assistant", "content": reply},
            {"role": "user", "content": self.template.block("again", problem=problem, count=len(examples))},
        ]
        return self._request(messages, examples, dictionary_id)

    def _request(self, messages: list[dict[str, str]], examples: Sequence[Example], dictionary_id: int) -> Request:
        limit = max(self.endpoint.max_tokens, 64 + 4 * len(examples))
        body = chat_body(self.endpoint, messages, limit, seed=self.seed)
        return Request("chat", body, self.scorer, dictionary_id=dictionary_id, feature=examples[0].context.feature)

    def read(self, reply: Reply, examples: Sequence[Example]) -> list[bool]:
        """The judge's answer for every example. Raises ReplyError."""
        return read_answers(reply.text, len(examples))


@dataclass(frozen=True)
class Batch:
    """Which of these contexts fit the label? The answer is a yes or no for each."""

    judge: Judge
    label: str
    examples: Sequence[Example]
    dictionary_id: int

    @property
    def request(self) -> Request:
        return self.judge.request(self.label, self.examples, self.dictionary_id)

    def read(self, reply: Reply) -> list[bool]:
        return self.judge.read(reply, self.examples)

    def again(self, reply: str, problem: str) -> Request:
        return self.judge.again(self.request, reply, problem, self.examples, self.dictionary_id)

    def halves(self) -> tuple[Batch, Batch] | None:
        half = len(self.examples) // 2
        if half == 0:
            return None
        return replace(self, examples=self.examples[:half]), replace(self, examples=self.examples[half:])


def template_of(scorer: str, prompts: Path | None = None) -> PromptTemplate:
    return load_template(f"score/{scorer}", prompts)


def pieces(example: Example) -> list[str | list[str] | Beginning]:
    """A context with its marks: what it begins, unmarked stretches as strings, marked tokens as arrays of one string.
    As JSON this cannot be mistaken, whatever delimiters the text itself contains."""
    out: list[str | list[str] | Beginning] = [*beginning(example.context)]
    plain = ""
    marked = set(example.marked)
    for place, token in enumerate(example.context.tokens):
        if place not in marked:
            plain += token
            continue
        if plain:
            out.append(plain)
            plain = ""
        out.append([token])
    return [*out, plain] if plain else out


# --- replies --------------------------------------------------------------------------------------------------------

_ARRAY = re.compile(r"\[([^\[\]]*)\]")
_WORDS = {"1": True, "true": True, '"1"': True, "0": False, "false": False, '"0"': False}


def read_answers(text: str, count: int) -> list[bool]:
    """The last array of ones and zeros in a reply. Raises ReplyError ('no_answer') if there is no array, and ReplyError
    ('answer_count') if its length is not `count`, since it is then unknown which answer is missing."""
    found: list[bool] | None = None
    text = " ".join(text.split())
    for match in _ARRAY.finditer(text):
        if _is_nested(text, match.start(), match.end()):
            continue  # pairs of numbers and answers, say: their inner arrays are not what was asked for
        words = [word.strip().lower() for word in match[1].split(",")]
        if len(words) > 1 and words[-1] == "":
            words.pop()
        if all(word in _WORDS for word in words):
            found = [_WORDS[word] for word in words]
    if found is None:
        raise ReplyError("no_answer", f"there is no JSON array of ones and zeros in {text[:60]!r}")
    if len(found) != count:
        raise ReplyError("answer_count", f"it has {len(found)} answers, not {count}")
    return found


def _is_nested(text: str, start: int, end: int) -> bool:
    """Whether the array at text[start:end] stands in another one, or in a row of arrays."""
    # White space is single by now, so a few characters are enough to see.
    before, after = text[max(0, start - 4) : start].rstrip(), text[end : end + 4].lstrip()
    return (
        before.endswith("[")
        or (before.endswith(",") and before[:-1].rstrip().endswith("]"))
        or after.startswith("]")
        or (after.startswith(",") and after[1:].lstrip().startswith("["))
    )


# --- scores ---------------------------------------------------------------------------------------------------------


def answer_of(example: Example, said: bool | None, status: str, error: str | None = None) -> Answer:
    """The judge's answer about one example. Without an answer, `said` is None and `status` says why."""
    predicted = None if said is None else [float(said)]
    truth = [float(example.active)]
    return Answer(example.context, Prediction(example.context.context_id, truth, predicted, status), error)


def detection_rows(
    identity: Identity, scorer: str, answers: Sequence[Answer], part: Part = "report", z: float = stats.Z95,
    density: float | None = None, label_precision: float | None = None,
) -> list[Score]:  # fmt: skip
    """All rows of one label, the scorer's own row last: where it stands, the others do. `z`: standard errors on either
    side of an interval. `density`: the share of the split's tiles in which the feature fires; without it there is no
    precision. `label_precision`: score.label_precision, without which it is not looked for where the label holds."""
    active = [a for a in answers if a.active]
    silent = [a for a in answers if not a.active]
    deciles: dict[int, list[Answer]] = defaultdict(list)
    tiers: dict[str, list[Answer]] = defaultdict(list)
    for answer in active:
        if answer.context.decile is not None:
            deciles[answer.context.decile].append(answer)
    for answer in silent:
        if answer.context.tier is not None:
            tiers[answer.context.tier].append(answer)
    strata = [
        *((f"{scorer}_sensitivity_decile_{decile}", deciles[decile]) for decile in sorted(deciles)),
        *((f"{scorer}_specificity_{tier}", tiers[tier]) for tier in TIERS if tier in tiers),
        (f"{scorer}_sensitivity", active),
        (f"{scorer}_specificity", silent),
    ]
    rows = [identity.row(name, part, some, share_right(some, z), keep=False) for name, some in strata]
    if scorer == DETECTION and density is not None:
        ordinary = [a for a in answers if is_ordinary(a.context)]
        rows.append(identity.row(f"{scorer}_precision", part, ordinary, precision(ordinary, density), keep=False))
    own = identity.row(scorer, part, answers, balanced(answers, z), keep=True)
    if scorer == DETECTION and density is not None and label_precision is not None and obstacle(answers) is None:
        own = replace(own, **asdict(cross_fitted(claims_of_judge(answers, density), label_precision)))
    return [*rows, own]


def share_right(answers: Sequence[Answer], z: float = stats.Z95) -> Result:
    """Share of right answers among contexts of one class (see clustered_shares.share_of)."""
    why = obstacle(answers)
    if why is not None:
        return Result(why)
    told = usable(answers)
    right = [a.active == a.said for a in told]
    documents = documents_of(told)
    moved = jackknife.influences(_share_of, [right, np.ones(len(right))], documents)
    return Result("ok", replace(share_of(right, documents, z), influences=moved))


def _share_of(sums: Floats) -> Floats:
    right, n = sums.T
    return np.where(n > 0, right / np.maximum(n, 1.0), np.nan)


def _balanced_of(sums: Floats) -> Floats:
    found, active, spared, silent = sums.T
    defined = (active > 0) & (silent > 0)
    return np.where(defined, (found / np.maximum(active, 1.0) + spared / np.maximum(silent, 1.0)) / 2, np.nan)


def precision(answers: Sequence[Answer], density: float) -> Result:
    """Precision at natural prevalence, from answers about sampled and about random silent contexts."""
    why = obstacle(answers)
    if why is not None:
        return Result(why)
    told = usable(answers)
    active, silent = (
        share_of([a.said for a in some], documents_of(some))
        for some in ([a for a in told if a.active], [a for a in told if not a.active])
    )
    return precision_result(active, silent, density)


def counts(context: Context) -> bool:
    """Whether the headline counts a context: those that are active, and silent text as it comes."""
    return context.kind != "negative" or context.tier == RANDOM


def balanced(answers: Sequence[Answer], z: float = stats.Z95) -> Result:
    """Balanced accuracy over the contexts that count; 'constant_truth' where only such of one class were answered."""
    why = obstacle(answers)
    if why is not None:
        return Result(why)
    told = [a for a in usable(answers) if counts(a.context)]
    active = np.array([a.active for a in told], dtype=np.bool_)
    said = np.array([a.said for a in told], dtype=np.bool_)
    if active.all() or not active.any():
        return Result("constant_truth")
    columns = [active & said, active, ~active & ~said, ~active]
    n_found, n_active, n_spared, n_silent = (int(column.sum()) for column in columns)
    found = stats.balanced_accuracy_interval(n_found, n_active, n_spared, n_silent, z)
    moved = jackknife.influences(_balanced_of, columns, documents_of(told))
    return Result("ok", replace(found, influences=moved))
