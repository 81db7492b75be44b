"""`generation`: does text written from the label alone activate the feature (Gur-Arieh et al. 2025, input metric)?

An LLM writes a few texts that should activate the feature, as many near misses that should not, and as many
lookalikes, which use the same words, topic or form without fitting; the model says how strongly the feature is active
in each. Nothing of the corpus is asked about, so a label scores well only if it can be acted upon. The scoring method
is 'sentences'. That a feature fires in what was written from its label says little where it fires in most texts, so the
known tiles of the corpus stand beside it (see ordinary_firing.py); they cost nothing.

Rows of one label; `n` and `n_failed` count texts, those without a counted token are failures:

    generation              AUROC of the largest activation, active against silent texts. The interval is Newcombe's
                            score interval, which holds for a handful of texts where a bootstrap would be too narrow
    generation_sensitivity  share of the active texts with any activation above 0 (Wilson)
    generation_specificity  share of the silent texts with none (Wilson)
    generation_lookalikes   share of the lookalikes with none (Wilson): low where the feature goes by less than the
                            label says. A silent feature reaches 1, so it is read beside the sensitivity
    generation_ordinary     share of ordinary texts as long as the active ones in which it fires. `n` counts tiles. Not
                            defined without known tiles
    generation_lift         the sensitivity as a multiple of that share. Where it fires in no tile only the lower end is
                            known, and the status is 'no_false_alarm'
    generation_success      1 where the mean over the active texts is above that of the silent ones, else 0: the
                            published all-or-nothing score, without an interval
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from autointerp import stats
from autointerp.ask.chat import ReplyError, chat_body
from autointerp.ask.forecast import Estimate
from autointerp.ask.job import BLOCK
from autointerp.ask.json_reply import last_object
from autointerp.ask.prompts import PromptTemplate, load_template, mark, one_line
from autointerp.ask.question import Asker
from autointerp.config import ScoreConfig
from autointerp.llm.requests import Reply, Request
from autointerp.records import Context, Explanation, MeasureTask, Score
from autointerp.score.detection_questions import TIERS
from autointerp.score.measurements import measure_task
from autointerp.score.natural import NO_FALSE_ALARM
from autointerp.score.ordinary_firing import OrdinaryFiring, firing_of
from autointerp.score.ordinary_tiles import OrdinaryTiles
from autointerp.score.score_rows import Identity, Result, counted_row
from autointerp.score.scorer import Labels, MadeBy, Needs, Run, Told, Work, a_few, asks_llm, estimate_of
from autointerp.tasks import Activations, ActivationsAnswer

GENERATION = "generation"
SENTENCES = "sentences"
MAX_TEXT = 500
"""Characters of one text."""
SNIPPETS = 2
"""Excerpts that show the corpus's style."""
MAX_SNIPPET = 240
"""Characters of an excerpt."""
_TOKENS_PER_TEXT = 60
"""Room in the reply."""
_SENTENCE = 100
"""Characters of a text that is not written yet, for forecasts."""
_PARTS = ("_sensitivity", "_specificity", "_lookalikes", "_ordinary", "_lift", "_success", "")
KINDS = ("active", "silent", "lookalike")


@dataclass(frozen=True)
class Texts:
    """What the LLM wrote: equally many of each of KINDS."""

    active: list[str]
    silent: list[str]
    lookalike: list[str]

    @property
    def asked(self) -> Activations:
        """What the model is asked about them."""
        return Activations([*self.active, *self.silent, *self.lookalike])


def snippets(contexts: Iterable[Context]) -> list[str]:
    """Up to SNIPPETS excerpts of silent contexts: random ones first, since those of the other tiers would give the
    feature's surroundings away."""
    silent = [c for c in contexts if c.kind == "negative" and c.text.strip()]
    silent.sort(key=lambda c: (TIERS.index(c.tier or "random"), c.rank, c.context_id))
    return [c.text[:MAX_SNIPPET] for c in silent[:SNIPPETS]]


@dataclass(frozen=True)
class Author:
    """Builds requests for texts and reads the replies."""

    template: PromptTemplate
    config: ScoreConfig

    @classmethod
    def of(cls, config: ScoreConfig, prompts: Path | None = None) -> Author:
        return cls(load_template(f"score/{GENERATION}", prompts), config)

    def request(self, label: str, excerpts: Sequence[str], dictionary_id: int, feature: int) -> Request:
        """Asks for `score.sentences` texts of each kind."""
        shown = [one_line(text) for text in excerpts]
        fence = mark(self.config.seed, GENERATION, label, shown)
        asked = self.template.block(
            "user", label=one_line(label), count=self.config.sentences, snippets=shown, mark=fence
        )
        messages = [
            {"role": "system", "content": self.template.block("system")},
            {"role": "user", "content": asked},
        ]
        return self._request(messages, dictionary_id, feature)

    def again(self, request: Request, reply: str, problem: str) -> Request:
        """Asks once more after an unusable reply, which is shown."""
        messages = [
            *request.body["messages"],
            {"role": "assistant", "content": reply},
            {"role": "user", "content": self.template.block("again", problem=problem, count=self.config.sentences)},
        ]
        return self._request(messages, request.dictionary_id, request.feature)

    def _request(self, messages: list[dict[str, str]], dictionary_id: int | None, feature: int | None) -> Request:
        limit = max(self.config.max_tokens, 64 + len(KINDS) * self.config.sentences * _TOKENS_PER_TEXT)
        body = chat_body(self.config, messages, limit, seed=self.config.seed)
        return Request("chat", body, GENERATION, dictionary_id=dictionary_id, feature=feature)

    def read(self, reply: Reply) -> Texts:
        """The texts in a reply. Raises ReplyError."""
        return read_texts(reply.text, self.config.sentences)


@dataclass(frozen=True)
class TextsQuestion:
    """Which texts should activate the feature of this label, which should not, and which only seem to?"""

    author: Author
    told: Told
    dictionary_id: int

    @property
    def request(self) -> Request:
        excerpts = snippets(self.told.contexts)
        return self.author.request(self.told.label, excerpts, self.dictionary_id, self.told.explanation.feature)

    def read(self, reply: Reply) -> Texts:
        return self.author.read(reply)

    def again(self, reply: str, problem: str) -> Request:
        return self.author.again(self.request, reply, problem)


def read_texts(text: str, count: int) -> Texts:
    """The last JSON object of a reply that holds the three lists. Raises ReplyError ('no_sentences') if there is no
    such object, and ReplyError ('sentence_count') if one of its lists does not hold exactly `count` texts."""
    found = last_object(text, lambda value: all(isinstance(value.get(kind), list) for kind in KINDS))
    if found is None:
        raise ReplyError(
            "no_sentences", f"there is no JSON object with the lists active, silent and lookalike in {text[:60]!r}"
        )
    cleaned = {kind: [clean_text(one) for one in found[kind] if isinstance(one, str)] for kind in KINDS}
    usable = {kind: [one for one in cleaned[kind] if one] for kind in KINDS}
    for kind in KINDS:
        if len(usable[kind]) != count or len(found[kind]) != count:
            raise ReplyError("sentence_count", f"{kind!r} holds {len(usable[kind])} texts, not {count}")
    return Texts(**usable)


def clean_text(text: str) -> str:
    """Stripped, at most MAX_TEXT characters, without control characters (but line breaks and tabs, which code needs)
    and lone surrogates."""
    kept = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    return kept.strip()[:MAX_TEXT].rstrip()


def generation_rows(
    identity: Identity, texts: Texts, result: dict[str, Any], ordinary: OrdinaryFiring | None = None
) -> list[Score]:
    """All rows of one label, the headline last: where it stands, the others do. `ordinary`: how often the feature fires
    in the known tiles; None where there are none."""
    answer = ActivationsAnswer.parse_result(result, len(texts.asked.texts))
    size = len(texts.active)
    sides = [answer.max[size * i : size * (i + 1)] for i in range(len(KINDS))]
    active, silent, lookalike = ([value for value in side if value is not None] for side in sides)
    failed = [sum(value is None for value in side) for side in sides]
    judged = size + len(texts.silent)
    if not active or not silent or 2 * (failed[0] + failed[1]) > judged:
        return failed_rows(identity, "no_tokens", len(answer.max), sum(failed), "texts without a counted token")
    fires = stats.wilson(sum(v > 0 for v in active), len(active))
    share = _as_long(ordinary, answer, size)
    whole = (judged, failed[0] + failed[1], None)
    area = stats.auroc(active, silent)
    assert area is not None
    success = sum(active) / len(active) > sum(silent) / len(silent)
    n_tiles = 0 if ordinary is None else ordinary.share.n
    found: list[tuple[Result, tuple[int, int, str | None]]] = [
        (Result("ok", fires), (size, failed[0], None)),
        (_share_silent(silent), (len(sides[1]), failed[1], None)),
        (_share_silent(lookalike), (len(sides[2]), failed[2], None)),
        (share, (n_tiles, 0, None)),
        (_lift(fires, share), (size, failed[0], None)),
        (Result("ok", stats.Estimate(float(success), None, None, judged)), whole),
        (Result("ok", stats.auroc_of_independent(area, len(active), len(silent))), whole),
    ]
    return [
        counted_row(identity, GENERATION + part, one, *counts)
        for part, (one, counts) in zip(_PARTS, found, strict=True)
    ]


def _share_silent(values: Sequence[float]) -> Result:
    return Result("ok", stats.wilson(sum(v <= 0 for v in values), len(values))) if values else Result("no_tokens")


def _as_long(ordinary: OrdinaryFiring | None, answer: ActivationsAnswer, size: int) -> Result:
    """How often the feature fires in ordinary texts as long as the active ones, the first `size` of the answer."""
    lengths = [n for n, value in zip(answer.n_tokens, answer.max[:size], strict=False) if value is not None]
    if ordinary is None or not lengths:
        return Result("no_contexts")
    return Result("ok", ordinary.in_texts_of(fmean(lengths)))


def _lift(fires: stats.Estimate, ordinary: Result) -> Result:
    if ordinary.status != "ok":
        return Result(ordinary.status)
    found = stats.ratio_of_shares(fires, ordinary.estimate)
    return Result("ok" if found.value is not None else NO_FALSE_ALARM, found)


def failed_rows(identity: Identity, status: str, n: int, n_failed: int, error: str | None) -> list[Score]:
    """The rows of a label that cannot be scored."""
    return [counted_row(identity, GENERATION + part, Result(status), n, n_failed, error) for part in _PARTS]


@dataclass(frozen=True)
class GenerationScorer:
    name: str = GENERATION
    reads_label: bool = True

    def needs(self, run: Run) -> Needs:
        return Needs(asks_llm(self.name, run.config).endpoint, measured=True)

    def made_by(self, run: Run) -> tuple[MadeBy, ...]:
        template = load_template(f"score/{GENERATION}", run.job.prompts)
        return (MadeBy(SENTENCES, run.config.model, template.sha256),)

    async def start(self, run: Run, targets: Sequence[Explanation], asker: Asker | None) -> Work[Told]:
        """Texts that an LLM wrote come back out of the call ledger, so the run after the measurement asks for the same
        tasks as the run before it."""
        assert asker is not None, self.name
        (by,), author, tasks = self.made_by(run), Author.of(run.config, run.job.prompts), _Tasks(run)
        n, tiles = len(KINDS) * run.config.sentences, OrdinaryTiles(run.job, run.part)

        async def score(item: Told) -> list[Score] | None:
            identity = run.identity(item.explanation, by)
            asked = await asker.ask(TextsQuestion(author, item, run.job.dictionary_id))
            if asked.value is None:
                return failed_rows(identity, asked.status, n, n, asked.error)
            task = measure_task(item.explanation, asked.value.asked)
            found = run.job.store.measurements_of([task.task_id]).get(task.task_id)
            if found is None:
                tasks.add(task)
                return None
            if found.status != "ok":
                return failed_rows(identity, found.status, n, n, found.error)
            ordinary = firing_of(item.explanation.feature, tiles)
            return generation_rows(identity, asked.value, found.result or {}, ordinary)

        return Work(by, _excerpts(run, targets), score, block=BLOCK, finish=tasks.write)

    def estimate(self, run: Run, targets: Sequence[Explanation]) -> Estimate:
        """Texts that wait for the model are paid for already, and not in it."""
        author = Author.of(run.config, run.job.prompts)
        some = _excerpts(run, targets)(a_few(targets))
        requests = [TextsQuestion(author, item, run.job.dictionary_id).request for item in some]
        requests = [r for r in requests if run.job.store.find_call(r.sha256, r.sample) is None]
        return estimate_of(requests, len(requests) * len(KINDS) * run.config.sentences * _SENTENCE, targets)


GENERATION_SCORER = GenerationScorer()


def _excerpts(run: Run, labels: Sequence[Explanation]) -> Labels:
    """Labels with silent contexts of the select part, which show the corpus's style."""
    return Labels(replace(run, part="select"), labels, {"negative": None})


@dataclass
class _Tasks:
    """Tasks that are not written yet: a commit for each would cost more than all else about it."""

    run: Run
    waiting: list[MeasureTask] = field(default_factory=list)

    def add(self, task: MeasureTask) -> None:
        self.waiting.append(task)
        if len(self.waiting) >= BLOCK:
            self.write()

    def write(self) -> None:
        """Writes the tasks, even if the run was stopped, so that they can be measured before the next run. Nothing is
        written to a store that failed (full disk); its first failed write has already reported that."""
        store = self.run.job.store
        if store.failed is None:
            store.insert_tasks(self.waiting)
        self.waiting = []
