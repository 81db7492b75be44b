"""A planted model with features of the first token of a document, of the first token of a window, and of neither.

Documents begin with one of ten words that stand nowhere else, which is how the model can tell that it reads the
beginning of one; windows it knows by their first position. Documents are one to four windows long, and one of them is
so huge that it is cut into blocks.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from autointerp.records import Context
from support.llm_server import BrainReply, Fault
from support.planted_features import ADJECTIVES, ADVERBS, NOUNS, TREES, VERBS
from support.planted_world import CLASS, FILES, PLACE, TOKEN, WIDTH, K, N, simplex, write_world
from support.shown_excerpts import begins, pieces_of

DOCUMENT, WINDOW, NEITHER = range(3)
OPENINGS = [*ADVERBS, "and", "but"]
WINDOW_TOKENS = 31
TEXTS = {DOCUMENT: OPENINGS, NEITHER: TREES, **{3 + i: [noun] for i, noun in enumerate(NOUNS[:12])}}
"""Which words each of the features fires on; WINDOW fires on any."""
HUGE = "huge"

SETTINGS = """
block_characters = 4000
[harvest]
context_tokens = 8
top_contexts = 6
sampled_contexts = 20
negatives = 10
[evidence]
methods = ["shape"]
[explain]
explainer = "contexts"
model = "reader"
base_url = "{url}"
[score]
model = "reader"
base_url = "{url}"
scorers = ["detection", "fuzzing", "simulation"]
method = "numbers"
contexts = 6
"""


def build(folder: Path, url: str) -> Path:
    """Writes model, SAE, corpus and configuration; the path of the configuration."""
    draw = random.Random(0)
    texts = [_document(draw, draw.randrange(12, 4 * WINDOW_TOKENS)) for _ in range(120)]
    names = [*(f"text-{i:04}" for i in range(len(texts))), HUGE, "note#7"]
    texts += [_document(draw, 2000), _document(draw, 40)]
    config = FILES + SETTINGS.format(url=url)
    return write_world(folder, dict(zip(names, texts, strict=True)), [], _sae(), config)


def _document(draw: random.Random, n: int) -> list[str]:
    return [draw.choice(OPENINGS), *(draw.choice([*NOUNS, *ADJECTIVES, *VERBS]) for _ in range(n - 1))]


def _sae() -> Any:
    """A feature is 1 on its words (or, WINDOW, at the place after the BOS), and silent elsewhere."""
    from autointerp.sae.sae import Sae

    n = len(TEXTS) + 1
    W_enc, b_enc, W_dec = torch.zeros(WIDTH, n), torch.zeros(n), torch.zeros(n, WIDTH)
    for feature, words in TEXTS.items():
        read = torch.zeros(K)
        read[[CLASS[word] for word in words]] = 1.0
        W_enc[TOKEN, feature], b_enc[feature] = read, read.mean()
        W_dec[feature, TOKEN] = read @ simplex(K)
    W_enc[PLACE, WINDOW], b_enc[WINDOW] = torch.eye(N)[1], 1.0 / N
    W_dec[WINDOW, PLACE] = simplex(N)[1]
    return Sae(
        W_enc, b_enc, normalize(W_dec, dim=1), torch.zeros(WIDTH), threshold=torch.full((n,), 0.5),
        architecture="jumprelu",
    )  # fmt: skip


def fires(feature: int, token: str, is_first_of_window: bool) -> bool:
    """The truth about one token."""
    return is_first_of_window if feature == WINDOW else token.strip() in TEXTS[feature]


def at_the_beginning(context: Context) -> bool:
    return max(context.activations) > 0 and context.activations[0] == context.max_activation


class PlaceReader:
    """A judge who believes a label about the first token, and knows it from the marks alone."""

    def __call__(self, kind: str, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        if kind != "chat":
            return Fault("404")
        system, asked = body["messages"][0]["content"], body["messages"][-1]["content"].split("\n")
        label = asked[0]
        if "You judge" in system:
            lines = [line.split(": ", 1)[1] for line in asked[3:-1]]
            return BrainReply(json.dumps([int(self._chooses(label, line, "marked" in system)) for line in lines]))
        if "You predict" not in system:
            return BrainReply("7")
        start = asked.index("tokens:")
        shown = next((line.removeprefix("begins: ") for line in asked[:start] if line.startswith("begins: ")), None)
        fits = self._fits(label, shown)
        lines = [f"{token}\t{10 if fits and i == 0 else 0}" for i, token in enumerate(asked[start + 1 :])]
        return BrainReply("\n".join(lines))

    @staticmethod
    def _fits(label: str, shown: str | None) -> bool:
        return shown == "document" if "document" in label else shown is not None

    def _chooses(self, label: str, line: str, is_fuzzing: bool) -> bool:
        return self._fits(label, begins(line)) and (not is_fuzzing or isinstance(pieces_of(line)[0], list))
