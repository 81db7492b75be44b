"""Makes a small language model, an SAE whose features are known, their text and a configuration, all from a seed.

The model is a GPT-2 with weights set by hand. Its residual stream is four blocks and one bias coordinate:

    token     K numbers   the word class at this place (planted_features.CLASSES)
    before    K numbers   the word class before it, copied by the one attention head of block 0
    place     N numbers   the position in the input
    says      S numbers   which output feature's words this one belongs to, if any
    bias      0; the final norm makes it 1

A code is a corner of a simplex: e_i - 1/n in its block. It sums to zero and its length is the same for every i, so a
LayerNorm multiplies by a constant, which its weight undoes: every norm of this model is the identity. Any table w[i] is
then read by one column w and a bias mean(w). The head scores a key by whether it is one place before the query, with so
large a gap that nothing else gets attention. The second block does nothing. The unembedding reads log p(next | this
word) of the corpus from the token block, and for the words of the output features partly from the says block.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from autointerp.records import Explanation, stable_id
from support import planted_features as planted
from support.planted_features import (
    CLASSES,
    END,
    N_POSITIONS,
    OTHER,
    OUTPUT_SETS,
    PUNCTUATION,
    QUALITIES,
    WORDS,
    Planted,
)

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

    from autointerp.store import Store

K, N, S = len(CLASSES), N_POSITIONS, 12
TOKEN, BEFORE, PLACE, SAYS = slice(0, K), slice(K, 2 * K), slice(2 * K, 2 * K + N), slice(2 * K + N, 2 * K + N + S)
BIAS = 2 * K + N + S
WIDTH = BIAS + 1
HOOKPOINT = "transformer.h.0"
CLASS = {name: i for i, name in enumerate(CLASSES)}
SILENT = len(OUTPUT_SETS)
"""The class, in the says block, of a word that belongs to no output feature."""
SAY_GAIN = 3.0
"""The logits by which an output feature's words raise the words that it promotes."""
ATTENTION_GAP = 80.0
"""The logit gap between the place before and every other place; e^-80 is nothing in float32."""
NO_WORD = math.log(1e-7)
"""The logit of tokens that never occur in the corpus."""
EXPLAINER, OUTPUT_EXPLAINER = "contexts", "vocab_projection"
"""The explainers' names under which `insert_labels` writes; the qualities are the names of their models."""

FILES = f"""
[model]
name = "model"
dtype = "float32"
device = "cpu"
[[sae]]
name = "planted"
hookpoint = "{HOOKPOINT}"
path = "sae"
reading = "as read"
[llm]
requests_per_minute = 600000.0
[store]
path = "planted.duckdb"
[corpus]
source = "corpus.jsonl"
id_field = "id"
context_length = 32
"""
"""The configuration of what `write_world` writes; more of [corpus] may follow."""
CONFIG = f"""{FILES}
[harvest]
context_tokens = 16
top_contexts = 10
sampled_contexts = 10
negatives = 10
[explain]
explainer = "contexts"
model = "oracle"
base_url = "http://127.0.0.1:9/v1"
[score]
model = "oracle"
base_url = "http://127.0.0.1:9/v1"
contexts = 5
"""


@dataclass(frozen=True)
class PlantedWorld:
    """The files of a planted world, and the truth about its features."""

    config: Path
    """The autointerp.toml, which names model, SAE, corpus and store."""
    features: list[Planted]
    """The features in order of number: features[i].feature == i."""

    @property
    def folder(self) -> Path:
        return self.config.parent

    def of_kind(self, *kinds: str) -> list[Planted]:
        return [feature for feature in self.features if feature.kind in kinds]


def build(folder: Path, seed: int = 0, documents: int = 360) -> PlantedWorld:
    """Writes model, tokenizer, SAE, corpus and configuration to `folder`, which is created. `seed` determines them."""
    features = planted.planted_features(seed)
    texts = {f"text-{i:04}": words for i, words in enumerate(corpus_words(seed, documents))}
    return PlantedWorld(write_world(folder, texts, features, make_sae(features), CONFIG), features)


def write_world(
    folder: Path, texts: Mapping[str, Sequence[str]], features: Sequence[Planted], sae: Any, config: str
) -> Path:
    """Writes a corpus (the words of each document, by its name), its model and tokenizer, an SAE and a configuration to
    `folder`, which is created; the path of the configuration."""
    from autointerp.sae.formats import save_saelens

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for name, words in texts.items():
            file.write(json.dumps({"id": name, "text": written(words)}) + "\n")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    make_model(tokenizer, list(texts.values()), features).save_pretrained(folder / "model")
    save_saelens(sae, folder / "sae", {"hook_name": HOOKPOINT})
    (folder / "autointerp.toml").write_text(config, encoding="utf-8")
    return folder / "autointerp.toml"


def harvested(folder: Path, seed: int = 0) -> Store:
    """The open store of a world that the real pipeline has harvested and merged. Builds the world if it is missing."""
    from autointerp.config_file import load
    from autointerp.stages import pipeline
    from autointerp.store import Store
    from autointerp.terminal import Terminal

    if not (folder / "autointerp.toml").exists():
        build(folder, seed)
    config = load(folder / "autointerp.toml")
    pipeline.harvest(config, None, Terminal().silent())
    return Store.open(Path(config.store.path))


def insert_labels(store: Store, features: Sequence[Planted]) -> None:
    """Inserts every label of the features as an explanation by EXPLAINER, with its quality as the name of the model.
    Labels for what a feature makes the model say are by OUTPUT_EXPLAINER."""
    row = store.dictionary("planted")
    harvest_id = store.current_harvest(row.dictionary_id)
    assert harvest_id is not None
    sides: tuple[tuple[Literal["input", "output"], str], ...] = (("input", EXPLAINER), ("output", OUTPUT_EXPLAINER))
    store.insert_explanations(
        [
            Explanation(
                explanation_id=stable_id("planted", quality, f.feature, labels[quality]),
                dictionary_id=row.dictionary_id, feature=f.feature, harvest_id=harvest_id, explainer=explainer,
                model=quality, template_sha256="planted", evidence_sha256="planted", seed=0, text=labels[quality],
                status="ok", side=side,
            )
            for f in features
            for side, explainer in sides
            for labels in (f.labels if side == "input" else f.output_labels,)
            for quality in QUALITIES
            if quality in labels
        ]
    )  # fmt: skip


# --- the text ---------------------------------------------------------------------------------------------------------


def corpus_words(seed: int, documents: int) -> list[list[str]]:
    """Documents of five to seven sentences, as words and punctuation."""
    draw = random.Random(f"corpus {seed}")
    grammar = Grammar(draw, planted.output_words(seed))
    return [[w for _ in range(draw.randint(5, 7)) for w in grammar.sentence()] for _ in range(documents)]


def written(words: Sequence[str]) -> str:
    return "".join(word if word in PUNCTUATION else f" {word}" for word in words).strip()


class Grammar:
    """Makes English-looking sentences. Words of a class are Zipf-distributed. Each adjective prefers some nouns, and
    each noun some verbs, so that a word says something about the next one."""

    LIKED = 0.5
    """How often the next word is one that this word prefers."""
    SAID = 0.5
    """How often a word of an output feature is followed by one that the feature promotes."""

    def __init__(self, draw: random.Random, output_words: Sequence[Sequence[str]]) -> None:
        self.draw = draw
        self.likes = {a: draw.sample(planted.NOUNS[:45], 5) for a in planted.ADJECTIVES}
        self.likes |= {noun: draw.sample(planted.VERBS, 4) for noun in planted.NOUNS}
        self.likes |= {first: [second] for first, second in planted.CONTEXT_PAIRS}
        self.says = {w: promoted for words, promoted in zip(output_words, OUTPUT_SETS, strict=True) for w in words}

    def sentence(self) -> list[str]:
        words = self.clause()
        if self.draw.random() < 0.2:
            words += [",", self.zipf(planted.CONNECTIVES), *self.clause()]
        return [*self.said(words), "."]

    def clause(self) -> list[str]:
        words = self.noun_phrase()
        words.append(self.after(words[-1], planted.VERBS))
        if self.draw.random() < 0.2:
            return [*words, self.zipf(planted.ADVERBS)]
        words += self.noun_phrase()
        if self.draw.random() < 0.8:
            words += [self.zipf(planted.PREPOSITIONS), *self.noun_phrase()]
        return words

    def noun_phrase(self) -> list[str]:
        words = [self.zipf(planted.DETERMINERS)]
        if self.draw.random() < 0.4:
            words.append(self.zipf(planted.ADJECTIVES))
        return [*words, self.after(words[-1], planted.NOUNS)]

    def after(self, word: str, choices: Sequence[str]) -> str:
        liked = self.likes.get(word)
        return self.draw.choice(liked) if liked and self.draw.random() < self.LIKED else self.zipf(choices)

    def zipf(self, choices: Sequence[str]) -> str:
        weights = accumulate(1.0 / (rank + 10) for rank in range(len(choices)))
        return self.draw.choices(choices, cum_weights=list(weights))[0]

    def said(self, words: Sequence[str]) -> list[str]:
        out = []
        for word in words:
            out.append(word)
            if word in self.says and self.draw.random() < self.SAID:
                out.append(self.draw.choice(self.says[word]))
        return out


# --- the model --------------------------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer. A word of the language with the space before it is one token; all else becomes bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [END, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"Ġ{word}" for word in WORDS)]
    model = models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    # A text's first word is a word too.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=N
    )


def classes_of_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The word class of every token id."""
    from autointerp.corpus.token_text import TokenText

    pieces = TokenText(tokenizer).pieces
    return [CLASS[OTHER if piece is None else planted.word_of(piece)] for piece in pieces]


def simplex(n: int) -> Tensor:
    """[n, n]: row i is the code of i."""
    return torch.eye(n) - 1.0 / n


@torch.no_grad()
def make_model(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], features: Sequence[Planted]
) -> GPT2LMHeadModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    classes = torch.tensor(classes_of_ids(tokenizer))
    says = torch.full((K,), SILENT)
    for i, feature in enumerate(f for f in features if f.kind == "output"):
        says[[CLASS[word] for word in feature.law.word]] = i
    config = GPT2Config(
        vocab_size=len(classes), n_positions=N, n_embd=WIDTH, n_layer=2, n_head=1, n_inner=4, bos_token_id=0,
        eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.zero_()
    body = model.transformer
    body.wte.weight[:, TOKEN] = simplex(K)[classes]
    body.wte.weight[:, SAYS] = simplex(S)[says[classes]]
    body.wpe.weight[:, PLACE] = simplex(N)
    squared = 3.0 - 1 / K - 1 / N - 1 / S  # the length of a code in n numbers is sqrt(1 - 1/n)
    deviation = (squared / WIDTH + config.layer_norm_epsilon) ** 0.5
    body.h[0].ln_1.weight.fill_(deviation)
    body.ln_f.weight.fill_(((squared + 1 - 1 / K) / WIDTH + config.layer_norm_epsilon) ** 0.5)
    body.ln_f.bias[BIAS] = 1.0
    attention = body.h[0].attn
    query, key, value = (slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3))
    gain = (ATTENTION_GAP * WIDTH**0.5) ** 0.5  # scores are divided by the root of the head's width
    attention.c_attn.weight[PLACE, query][:, :N] = gain * torch.eye(N)
    attention.c_attn.weight[PLACE, key][:, :N] = gain * torch.eye(N).roll(1, dims=1)  # key j looks like query j + 1
    attention.c_attn.weight[TOKEN, value][:, :K] = torch.eye(K)
    attention.c_proj.weight[:K, BEFORE] = torch.eye(K)
    _set_unembedding(model, classes, says, texts)
    return model


def _set_unembedding(model: GPT2LMHeadModel, classes: Tensor, says: Tensor, texts: Sequence[Sequence[str]]) -> None:
    promoted = torch.zeros(S, K)
    for i, words in enumerate(OUTPUT_SETS):
        promoted[i, [CLASS[word] for word in words]] = SAY_GAIN
    # [next class, this class]; what a word promotes through the says block is not counted twice.
    table = log_bigrams(texts).T - promoted[says].T
    weight = model.lm_head.weight
    weight[:, TOKEN] = table[classes]
    weight[:, SAYS] = promoted.T[classes]
    weight[:, BIAS] = (table.mean(1) + promoted.T.mean(1))[classes]


def log_bigrams(texts: Sequence[Sequence[str]]) -> Tensor:
    """[K, K]: log p(next | this) of the corpus. A tenth of p is p(next), so that nothing is impossible."""
    counts = torch.zeros(K, K)
    for words in texts:
        for (this, following), n in Counter(zip([END, *words], words, strict=False)).items():
            counts[CLASS[this], CLASS[following]] += n
    of_all = counts.sum(0) / counts.sum()
    conditional = torch.where(
        counts.sum(1, keepdim=True) > 0, counts / counts.sum(1, keepdim=True).clamp_min(1), of_all
    )
    mixed = 0.9 * conditional + 0.1 * of_all
    return mixed.clamp_min(math.exp(NO_WORD)).log()


# --- the SAE ----------------------------------------------------------------------------------------------------------


def make_sae(features: Sequence[Planted]) -> Any:
    """A JumpReLU SAE that follows the laws. Its decoder rows are the codes of what a feature reads, or of what it says
    for output features. The second of two twins also writes a little of another code."""
    from autointerp.sae.sae import Sae

    n = len(features)
    W_enc, b_enc, W_dec = torch.zeros(WIDTH, n), torch.zeros(n), torch.zeros(n, WIDTH)
    outputs = [f.feature for f in features if f.kind == "output"]
    for i, feature in enumerate(features):
        law = feature.law
        read = [
            (TOKEN, list(law.of_word.values())),  # in the order of CLASSES
            (BEFORE, list(law.of_before.values())),
            (PLACE, law.of_place),
        ]
        b_enc[i] = -law.lack
        for block, added in read:
            W_enc[block, i] = torch.tensor(added)
            b_enc[i] += sum(added) / len(added)
        for name, strength in law.word.items():
            W_dec[i, TOKEN] += strength * simplex(K)[CLASS[name]]
        for name, strength in law.before.items():
            W_dec[i, BEFORE] += strength * simplex(K)[CLASS[name]]
        for place, strength in law.place.items():
            W_dec[i, PLACE] += strength * simplex(N)[place]
        if feature.kind == "output":
            # Read from the says block, as the model has it: the words are only told apart in the token block.
            say = outputs.index(feature.feature)
            W_enc[TOKEN, i] -= torch.tensor([law.word.get(name, 0.0) for name in CLASSES])
            b_enc[i] += 1.0 / S - len(law.word) / K
            W_enc[SAYS, i] = torch.eye(S)[say]
            W_dec[i] = 0.0
            W_dec[i, SAYS] = simplex(S)[say]
        if feature.twin is not None and feature.twin < i:
            W_dec[i, TOKEN] += TWIN_TURN * simplex(K)[CLASS[OTHER]]
    threshold = torch.tensor([f.law.threshold for f in features])
    return Sae(
        W_enc, b_enc, normalize(W_dec, dim=1), torch.zeros(WIDTH), threshold=threshold, architecture="jumprelu"
    )  # fmt: skip


TWIN_TURN = math.tan(math.acos(0.99))
"""How much of another code is added to a twin's decoder row, which makes the cosine of the two rows .99."""
