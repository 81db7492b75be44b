"""`intruder`: is there anything to be said of a feature at all? No label is involved.

A judge sees a few excerpts in all of which but one the feature is active, and says which one does not belong. Where
even a judge who may compare cannot tell, the contexts have nothing in common that text shows, and no label can score
well: the score is a ceiling for those of labels, and a flag for features that are several things at once.

The excerpts are plain text: marked tokens would give away which excerpts are active. The scoring method is 'choice'.

Rows of one feature, label-free (explanation_id NULL); `n` and `n_failed` counted in questions:

    intruder           (accuracy - 1/s) / (1 - 1/s) with s excerpts shown: 1 always right, 0 guessing, below 0 worse
    intruder_accuracy  the plain share of right answers, of which guessing has 1/s

Each question's prediction stands under the intruder's context: truth is its place in the question, counted from 1, and
predicted the place that the judge named.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autointerp import stats
from autointerp.ask.beginnings import plain_excerpt
from autointerp.ask.chat import ReplyError, chat_body
from autointerp.ask.forecast import CHARACTERS_PER_TOKEN, Estimate
from autointerp.ask.prompts import PromptTemplate, load_template, mark, one_line
from autointerp.ask.question import Asked, Asker
from autointerp.config import EndpointConfig
from autointerp.llm.requests import Reply, Request
from autointerp.records import Context, Prediction, Score, stable_id
from autointerp.score.detection_questions import silent_in_turn
from autointerp.score.score_rows import Answer, Identity, Result, obstacle
from autointerp.score.scorer import MadeBy, Needs, Run, Work, a_few, asks_llm, estimate_of

INTRUDER = "intruder"
ACCURACY = "intruder_accuracy"
CHOICE = "choice"


# --- which contexts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lineup:
    """The excerpts of one question, in the order in which they are shown."""

    contexts: tuple[Context, ...]
    place: int
    """The intruder's place, from 0."""

    @property
    def intruder(self) -> Context:
        return self.contexts[self.place]


def draw_lineups(contexts: Sequence[Context], shown: int, most: int, seed: int, dictionary_id: int) -> list[Lineup]:
    """Questions about one feature, from its contexts of one split: `shown` - 1 activating ones and one silent.

    As many as the contexts allow, `most` at most, no context twice: the activating contexts (uniform samples and, where
    their peak is another, top contexts) of one decile form groups of `shown` - 1, so that no excerpt stands out by its
    strength; what is left over in the deciles forms groups in the deciles' order, so with its neighbours. The silent
    ones are of the three tiers in turn. Groups, orders and places are drawn with `seed`; the intruder's place is
    uniform. A function of contexts and seed alone.
    """
    sampled = [c for c in contexts if c.kind == "sampled"]
    seen = {(c.document, c.position) for c in sampled}
    active = [*sampled, *(c for c in contexts if c.kind == "top" and (c.document, c.position) not in seen)]
    silent = silent_in_turn(contexts)
    if not active or not silent:
        return []
    draw = random.Random(stable_id(seed, INTRUDER, dictionary_id, active[0].feature))
    groups = _groups(active, shown - 1, draw)
    draw.shuffle(groups)
    lineups = []
    for group, intruder in zip(groups[:most], silent, strict=False):
        place = draw.randrange(shown)
        lineups.append(Lineup((*group[:place], intruder, *group[place:]), place))
    return lineups


def _groups(active: Sequence[Context], size: int, draw: random.Random) -> list[list[Context]]:
    deciles: dict[int, list[Context]] = defaultdict(list)
    for context in sorted(active, key=lambda c: c.context_id):
        deciles[-1 if context.decile is None else context.decile].append(context)
    groups: list[list[Context]] = []
    left: list[Context] = []
    for _, members in sorted(deciles.items()):
        draw.shuffle(members)
        whole = len(members) // size * size
        groups += [members[i : i + size] for i in range(0, whole, size)]
        left += members[whole:]
    mixed = [left[i : i + size] for i in range(0, len(left) // size * size, size)]
    for group in mixed:
        draw.shuffle(group)
    return [*groups, *mixed]


# --- requests and replies --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IntruderJudge:
    """Builds requests and reads replies."""

    template: PromptTemplate
    endpoint: EndpointConfig
    seed: int = 0

    @classmethod
    def of(cls, endpoint: EndpointConfig, seed: int = 0, prompts: Path | None = None) -> IntruderJudge:
        return cls(template_of(prompts), endpoint, seed)

    def request(self, lineup: Lineup, dictionary_id: int) -> Request:
        lines = [one_line(plain_excerpt(c)) for c in lineup.contexts]
        question = self.template.block("user", examples=lines, mark=mark(self.seed, INTRUDER, lines))
        messages = [
            {"role": "system", "content": self.template.block("system")},
            {"role": "user", "content": question},
        ]
        return self.chat(messages, lineup, dictionary_id)

    def chat(self, messages: list[dict[str, str]], lineup: Lineup, dictionary_id: int) -> Request:
        body = chat_body(self.endpoint, messages, self.endpoint.max_tokens, seed=self.seed)
        return Request("chat", body, INTRUDER, dictionary_id=dictionary_id, feature=lineup.intruder.feature)


@dataclass(frozen=True)
class IntruderQuestion:
    """Which excerpt does not belong? The answer is its place, from 0."""

    judge: IntruderJudge
    lineup: Lineup
    dictionary_id: int

    @property
    def request(self) -> Request:
        return self.judge.request(self.lineup, self.dictionary_id)

    def read(self, reply: Reply) -> int:
        return read_place(reply.text, len(self.lineup.contexts))

    def again(self, reply: str, problem: str) -> Request:
        block = self.judge.template.block("again", problem=problem, count=len(self.lineup.contexts))
        messages = [
            *self.request.body["messages"],
            {"role": "assistant", "content": reply},
            {"role": "user", "content": block},
        ]
        return self.judge.chat(messages, self.lineup, self.dictionary_id)


def template_of(prompts: Path | None = None) -> PromptTemplate:
    return load_template(f"score/{INTRUDER}", prompts)


_DECORATION = "*_`\"' \t"
_TAGGED = re.compile(
    r"(?:^|[^\w])answer[*_`\"'\s]{0,4}(?:is|:|=)[*_`\"'\s]{0,4}(?:excerpt|number|no\.|#)?\s?"
    r"(\[?)\s?([0-9]{1,6})\s?(\]?)[*_`\"'.\s}]{0,6}$",
    re.IGNORECASE,
)
_BARE = re.compile(r"(\[?)\s?(?:excerpt\s|#)?([0-9]{1,6})\s?(\]?)\.?", re.IGNORECASE)
_IN_BRACKETS = re.compile(r"\[\s*([0-9]{1,6})\s*\]")


def read_place(text: str, count: int) -> int:
    """The place, from 0, that a reply names from 1 to `count`.

    A line counts where it is a number (3, [3], `3`, Excerpt 3) or ends in a named answer (ANSWER: 3, {"answer": 3});
    the last such line wins. Numbers inside a sentence do not count: they speak of any excerpt. Raises ReplyError
    ('no_answer', 'out_of_range').
    """
    found: int | None = None
    before = ""
    for raw in _IN_BRACKETS.sub(r"[\1]", text).splitlines():
        line = raw.strip()
        if not line:
            continue
        # A number after an open bracket or a comma is one of several, or of something else.
        alone = None if before.endswith(("[", ",", "(")) else _BARE.fullmatch(line.strip(_DECORATION))
        match = _TAGGED.search(line[-120:]) or alone
        if match is not None and bool(match[1]) == bool(match[3]):
            found = int(match[2])
        before = line
    if found is None:
        raise ReplyError("no_answer", f"no line of it is a number: {' '.join(text.split())[:60]!r}")
    if not 1 <= found <= count:
        raise ReplyError("out_of_range", f"it names excerpt {found}, but they are numbered 1 to {count}")
    return found - 1


# --- scores ----------------------------------------------------------------------------------------------------------


def answer_of(lineup: Lineup, asked: Asked[int]) -> Answer:
    predicted = None if asked.value is None else [float(asked.value + 1)]
    prediction = Prediction(lineup.intruder.context_id, [float(lineup.place + 1)], predicted, asked.status)
    return Answer(lineup.intruder, prediction, asked.error)


def intruder_rows(identity: Identity, answers: Sequence[Answer], shown: int) -> list[Score]:
    """Both rows of one feature, the headline last: where it stands, the other does."""
    plain = share_found(answers)
    corrected = Result(plain.status, beyond_chance(plain.estimate, 1 / shown))
    return [
        identity.row(ACCURACY, "report", answers, plain, keep=False),
        identity.row(INTRUDER, "report", answers, corrected, keep=True),
    ]


def share_found(answers: Sequence[Answer]) -> Result:
    """Share of the questions whose intruder was found, with Wilson's interval."""
    why = obstacle(answers)
    if why is not None:
        return Result(why)
    right = [a.prediction.predicted == a.prediction.truth for a in answers if a.prediction.predicted is not None]
    return Result("ok", stats.wilson(sum(right), len(right)))


def beyond_chance(share: stats.Estimate, chance: float) -> stats.Estimate:
    """A share of right answers as a share of what guessing leaves to be gained; the interval's ends likewise."""

    def gained(p: float | None) -> float | None:
        return None if p is None else (p - chance) / (1 - chance)

    return stats.Estimate(gained(share.value), gained(share.low), gained(share.high), share.n)


# --- the scorer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asking:
    """One feature and the questions about it. There are no questions if it has too few contexts."""

    feature: int
    lineups: list[Lineup]


@dataclass(frozen=True)
class IntruderScorer:
    name: str = INTRUDER
    reads_label: bool = False

    def needs(self, run: Run) -> Needs:
        return asks_llm(self.name, run.config)

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        return (MadeBy(CHOICE, run.config.model, template_of(run.job.prompts).sha256),)

    async def start(self, run: Run, targets: Sequence[int], asker: Asker | None) -> Work[Asking]:
        assert asker is not None, self.name
        (by,), config = self.made_by(run), run.config
        judge = IntruderJudge.of(config, config.seed, run.job.prompts)

        async def score(item: Asking) -> list[Score]:
            asked = await asker.ask_all(
                IntruderQuestion(judge, lineup, run.job.dictionary_id) for lineup in item.lineups
            )
            answers = [answer_of(lineup, one) for lineup, one in zip(item.lineups, asked, strict=True)]
            return intruder_rows(run.identity(item.feature, by), answers, config.intruder_shown)

        return Work(by, lambda places: _load(run, [targets[i] for i in places]), score, calls=2 * config.contexts)

    def estimate(self, run: Run, targets: Sequence[int]) -> Estimate:
        judge = IntruderJudge.of(run.config, run.config.seed, run.job.prompts)
        some = _load(run, [targets[i] for i in a_few(targets)])
        requests = [judge.request(lineup, run.job.dictionary_id) for item in some for lineup in item.lineups]
        return estimate_of(requests, CHARACTERS_PER_TOKEN * len(requests), targets)


INTRUDER_SCORER = IntruderScorer()


def _load(run: Run, features: Sequence[int]) -> list[Asking]:
    job, config, most = run.job, run.config, 2 * run.config.contexts
    limits = {"top": most, "sampled": None, "negative": None}
    contexts = job.store.contexts_of(job.dictionary_id, job.harvest_id, features, run.part, limits)
    return [
        Asking(f, draw_lineups(contexts[f], config.intruder_shown, most, config.seed, job.dictionary_id))
        for f in features
    ]
