"""The configuration: one frozen dataclass per stage, read from TOML with the standard library.

Every field has its meaning and its unit under it. An unknown key is an error that names the nearest known one; flags
and AUTOINTERP_* variables override the file (see `load`). API keys never stand here, only the name of the variable.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from datetime import date, datetime
from datetime import time as day_time
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from autointerp.deadline import fixed, parse_deadline
from autointerp.errors import InputError, nearest


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """[model]: the language model whose activations are read."""

    name: str = ""
    """Hugging Face hub id or folder. Gated models read the token from HF_TOKEN."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), or a torch device such as cuda:1."""
    dtype: str = "auto"
    """auto (bfloat16 where the device has it, float32 on CPU), float32, bfloat16 or float16."""
    device_map: str | None = None
    """Passed on to transformers, for models larger than one device (needs accelerate)."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Weights loaded through bitsandbytes (needs it installed)."""
    batch_tokens: int = 8192
    """Tokens in one forward pass, padding included. Halved, at most four times, when memory runs out."""
    random_weights: int | None = None
    """Seed: the same architecture with random weights in place of the trained ones. `autointerp run --control
    random_model` sets it; labels of such a model's features show what a score is worth."""

    def __post_init__(self) -> None:
        _check(
            self.random_weights is None or (self.quantization == "none" and self.device_map is None),
            "model.random_weights goes with neither model.quantization nor model.device_map",
        )
        _check(self.batch_tokens >= 1, f"model.batch_tokens must be 1 or more, not {self.batch_tokens}")
        _check(
            self.dtype in ("auto", "float32", "bfloat16", "float16"),
            f"model.dtype must be auto, float32, bfloat16 or float16, not {self.dtype!r}",
        )


@dataclass(frozen=True, slots=True)
class CorpusConfig:
    """[corpus]: the text. One file is one document unless document_separator says otherwise."""

    source: str = ""
    """File, folder, glob, `hf:owner/dataset[:config][@split]`, or `stdlib` (the standard library's source text)."""
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    """By suffix where auto."""
    text_field: str = "text"
    """Field or column that holds the text (jsonl, parquet, hf)."""
    chat_field: str | None = None
    """Field that holds a list of {role, content}; rendered with the model's own chat template. Replaces text_field."""
    id_field: str | None = None
    """Field that holds a document's id; without it documents are named by path and index."""
    document_separator: str | None = None
    """Plain text files only: a string that parts documents. None: one file is one document."""
    context_length: int = 128
    """Tokens in one window, the model's input; a BOS counts."""
    prepend_bos: Literal["auto", "always", "never"] = "auto"
    """auto: where the tokenizer has a BOS token. A prepended BOS is never counted or stored as text."""
    exclude_tokens: tuple[str, ...] = ()
    """Further token strings that never count (BOS, EOS, padding and other special tokens never do)."""
    max_tokens: int | None = None
    """Stop after about so many tokens (at the end of a work unit's document). None: all of it."""
    unit_characters: int = 2_000_000
    """Characters of a work unit, at least: consecutive documents that are harvested, committed and sharded together."""
    block_characters: int = 400_000
    """A larger document is cut into blocks with a gap between them, each a document of its own."""
    heldout_fraction: float = 0.5
    """Share of documents kept from the explainer; half of it is `select`, half `report`."""
    max_skipped_share: float = 0.05
    """Give up when more than this share of the records had to be skipped as unusable."""

    def __post_init__(self) -> None:
        _check(self.context_length >= 8, f"corpus.context_length must be 8 or more, not {self.context_length}")
        _check(
            0.0 < self.heldout_fraction < 1.0,
            f"corpus.heldout_fraction must lie between 0 and 1, not {self.heldout_fraction}",
        )
        _check(self.unit_characters >= 1, f"corpus.unit_characters must be positive, not {self.unit_characters}")
        _check(self.block_characters >= 1000, f"corpus.block_characters must be >= 1000, not {self.block_characters}")
        _check(
            self.max_tokens is None or self.max_tokens > 0,
            f"corpus.max_tokens must be positive, not {self.max_tokens}",
        )


@dataclass(frozen=True, slots=True)
class SaeConfig:
    """[[sae]]: one dictionary. Either `path` (an SAE that exists) or what `train` should make."""

    hookpoint: str = ""
    """Path of the module whose activations the SAE reads: `transformer.h.6`, `model.layers.12.mlp`; append `:in` for
    the module's input instead of its output. TransformerLens's names (`blocks.6.hook_resid_post`) are known too."""
    name: str = ""
    """The dictionary's name in the store; default: the hookpoint."""
    output_hookpoint: str | None = None
    """Transcoders only: the module whose activations are reconstructed."""
    path: str | None = None
    """A saved SAE: folder, file, or hf:owner/name@revision//folder. None: train one into
    `<store folder>/sae/<name>`."""
    format: Literal["auto", "saelens", "sparsify", "dictionary_learning", "gemma_scope", "openai"] = "auto"
    """Which tool's files lie at `path`; "auto" tells them apart by what is in them."""
    architecture: str = "topk"
    """What to train: topk, batchtopk, matryoshka, relu, p_anneal, gated or jumprelu."""
    d_sae: int | None = None
    """Number of features to train. Default: expansion x the hookpoint's width."""
    expansion: int = 8
    """Only used if d_sae is not given."""
    k: int = 32
    """Features active at once: exactly (topk), or on average (all others)."""
    penalty: float | None = None
    """relu, p_anneal, gated, jumprelu: weight of the sparsity penalty. None: steered so that k features are active."""
    decoder_norm_penalty: bool = False
    """relu, p_anneal: weight the penalty by the decoder rows' norms, which then are free while training."""
    prefixes: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0)
    """matryoshka: shares of the features that have to reconstruct on their own; ascending, the last is 1."""
    p_end: float = 0.2
    """p_anneal: the penalty's last exponent."""
    bandwidth: float = 0.5
    """jumprelu: how near its threshold a feature's jump counts as a slope; inputs are scaled to length sqrt(d)."""
    skip: bool = False
    """Transcoders (output_hookpoint): a linear path beside the features."""
    seed: int | None = None
    """Of the first weights; default: train.seed. Tables that differ only in it measure stability."""

    def __post_init__(self) -> None:
        _check(self.k >= 1, f"sae.k must be 1 or more, not {self.k}")
        _check(self.expansion >= 1, f"sae.expansion must be 1 or more, not {self.expansion}")
        _check(
            not self.decoder_norm_penalty or self.architecture in ("relu", "p_anneal"),
            f"sae.decoder_norm_penalty is for relu and p_anneal, not for {self.architecture}",
        )
        _check(self.penalty is None or self.penalty >= 0, f"sae.penalty must not be negative, but it is {self.penalty}")
        _check(0 < self.p_end <= 1, f"sae.p_end must lie in 0..1, not {self.p_end}")
        _check(self.bandwidth > 0, f"sae.bandwidth must be positive, not {self.bandwidth}")
        ascending = all(a < b for a, b in zip(self.prefixes, self.prefixes[1:], strict=False))
        _check(
            bool(self.prefixes) and ascending and self.prefixes[0] > 0 and self.prefixes[-1] == 1,
            f"sae.prefixes must ascend from above 0 to 1, not {list(self.prefixes)}",
        )
        _check(
            not self.skip or self.output_hookpoint is not None,
            "sae.skip is the linear path of a transcoder; set sae.output_hookpoint too",
        )
        _check(
            self.d_sae is None or self.d_sae >= self.k, f"sae.d_sae ({self.d_sae}) must be at least sae.k ({self.k})"
        )

    @property
    def dictionary(self) -> str:
        return self.name or self.hookpoint


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """[train]: how an SAE is trained (only used for [[sae]] without a path)."""

    tokens: int = 2_000_000
    """Activation vectors to train on; the corpus is read again from the start where it is shorter."""
    batch_size: int = 2048
    """Activation vectors in one step."""
    lr: float | None = None
    """Peak learning rate of Adam. None: 7e-4 / sqrt(d_sae / 2^14)."""
    warmup_steps: int = 200
    decay_share: float = 0.5
    """Share of the steps, at the end, over which the rate falls linearly to zero."""
    buffer_vectors: int = 131_072
    """Activation vectors held for shuffling."""
    auxk_alpha: float = 1 / 32
    """Weight of the loss that revives dead features; 0 turns reviving off."""
    dead_after: int = 50_000
    """A feature that has not fired for so many vectors counts as dead; after twice as many it is also woken."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder's product while training. auto: bfloat16 on a GPU, float32 elsewhere; all else is float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.batch_size >= 1, f"train.batch_size must be 1 or more, not {self.batch_size}")
        _check(self.tokens >= self.batch_size, f"train.tokens ({self.tokens}) is less than one batch")
        _check(0 <= self.decay_share <= 1, f"train.decay_share must lie in 0..1, not {self.decay_share}")


@dataclass(frozen=True, slots=True)
class HarvestConfig:
    """[harvest]: what evidence is kept for every feature, on each split."""

    context_tokens: int = 32
    """Tokens in one stored context, and in one tile. At most corpus.context_length."""
    top_contexts: int = 20
    """Strongest contexts kept per feature and split; one per document as far as there are documents."""
    sampled_contexts: int = 20
    """Uniform samples of activating tiles kept per feature and split."""
    negatives: int = 10
    """Verified silent tiles kept per feature, split and tier (random, same token, neighbour)."""
    negative_pool_windows: int = 16_384
    """Windows per split, chosen by hash, from which negatives are drawn."""
    neighbours: int = 5
    """Nearest features by decoder cosine whose tiles serve as hard negatives."""
    vocab_tokens: int = 20
    """Promoted and suppressed tokens kept per feature."""
    rare_below: int = 10
    """A feature with fewer activating tiles on the explain split is `rare`."""
    feature_block: int | None = None
    """Features processed in one pass over the corpus. None: all, unless the memory estimate says otherwise."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("context_tokens", "top_contexts", "sampled_contexts", "negatives", "negative_pool_windows"):
            _check(getattr(self, name) >= 1, f"harvest.{name} must be 1 or more, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """[evidence]: what is found out about features beyond the harvest (see the table method_runs)."""

    methods: tuple[str, ...] = ("shape", "words", "neighbours", "output_statistic", "mutual_information")
    """Run for the whole dictionary after the harvest. pruning and token_change run the model for every feature: name
    them here, or run `autointerp measure` for chosen features."""
    relation_tokens: int = 65_536
    """neighbours: tokens of the explain split over which co-activation and correlation are taken."""
    related: int = 10
    """neighbours: features kept for each relation."""
    mi_words: int = 5000
    """mutual_information: the corpus's commonest words that make up the vocabulary."""
    mi_mode: Literal["pmi", "paper"] = "pmi"
    """mutual_information: pmi ranks by p(w|c) (log p(c|w) - log p(c)); paper by the published p(w|c) log p(c|w)."""
    words: int = 20
    """mutual_information, words: words kept for each feature."""
    pruned_contexts: int = 5
    """pruning: top contexts per feature."""
    prune_mode: Literal["delete", "mask"] = "delete"
    """pruning: text before the kept part is left out, or masked in place (for models with absolute positions)."""
    prune_keep: float = 0.5
    """pruning: share of the peak's activation that must remain."""
    prune_longest: int = 32
    """pruning: longest left context tried, tokens, the peak included."""
    substitutes: int = 3
    """pruning: the model's own likeliest substitutes tried for each important token; 0: none."""
    change_prompts: int = 16
    """token_change: windows of the explain split on which the feature is clamped."""
    change_tokens: int = 32
    """token_change: tokens of each."""
    change_kl: float = 0.5
    """token_change: how far the clamping moves the next-token distribution, nats per token."""
    change_random: int = 16
    """token_change: random features that the change is compared with."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check(0 < self.prune_keep <= 1, f"evidence.prune_keep must lie in 0..1, not {self.prune_keep}")
        _check(self.change_kl > 0, f"evidence.change_kl must be positive, not {self.change_kl}")
        for name in ("relation_tokens", "related", "mi_words", "words", "pruned_contexts", "prune_longest",
                     "change_prompts", "change_tokens"):  # fmt: skip
            _check(getattr(self, name) >= 1, f"evidence.{name} must be 1 or more, not {getattr(self, name)}")
        _check(self.change_random >= 2, f"evidence.change_random must be 2 or more, not {self.change_random}")


_LIKE_A_KEY = re.compile(r"(?=.{20})(?=.*[a-z])(?=.*[0-9])")
"""Keys that could be the name of a variable (hf_..., gsk_...): long, with small letters and digits."""


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """How to reach one OpenAI-compatible endpoint; part of [explain] and [score]."""

    model: str = ""
    """Model name as the endpoint knows it. Not needed by explainers and methods without an LLM."""
    base_url: str = "https://api.openai.com/v1"
    """Any OpenAI-compatible server (OpenAI, vLLM, llama.cpp, Ollama, OpenRouter)."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    temperature: float | None = 0.0
    """None: not sent (some reasoning models refuse it)."""
    max_tokens: int = 300
    """Most tokens of one reply."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Newer OpenAI models want the second name, most local servers know the first only."""

    def __post_init__(self) -> None:
        # A secret in the wrong place must not be repeated, so these messages show nothing of the value.
        try:
            parts = urlsplit(self.base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # brackets that hold no address, a port that is no number
            usable = False
        _check(usable, "base_url must be an http(s) URL such as http://127.0.0.1:8000/v1")
        _check(
            self.base_url.isprintable() and not ("@" in parts.netloc or parts.query or parts.fragment),
            "base_url must not carry a user name, password, query or fragment; put the key into the environment",
        )
        _check(
            re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", self.api_key_env) is not None
            and not _LIKE_A_KEY.match(self.api_key_env),
            "api_key_env must be the name of an environment variable that holds the key, not the key itself",
        )


@dataclass(frozen=True, slots=True)
class ExplainConfig(EndpointConfig):
    """[explain]: how labels are made."""

    explainer: str = "auto"
    """Without an LLM: patterns, token_lookup. From one kind of evidence: contexts, pruned, vocab_projection,
    mutual_information, token_change, contrastive (contexts and hard negatives). From all of it in one prompt:
    combined. From other labels: concat (what it responds to and what it leads to, asked apart), best_of_n, revise.
    auto: combined where a model is named, else patterns."""
    contexts: int = 10
    """Contexts shown to the explainer."""
    random_contexts: int = 4
    """Contexts drawn at random from wherever the feature is active, shown by `combined` besides the strongest."""
    negatives: int = 5
    """Silent contexts shown to `contrastive`."""
    base: str = "combined"
    """Explainer whose labels best_of_n chooses from and revise starts from."""
    samples: int = 3
    """Labels that best_of_n chooses from."""
    validator: Literal["detection", "fuzzing", "simulation"] = "detection"
    """Scorer that best_of_n and revise ask on the select part."""
    mistakes: int = 8
    """Wrongly judged contexts shown to `revise`."""
    shape_labels: bool = True
    """Features whose shape alone explains them (see feature_shapes) get that label, without an LLM."""
    unless_patterns_above: float | None = None
    """Features whose `patterns` label simulates them at least this well on the select part (0.9, say) get that label,
    without an LLM."""
    reply: Literal["auto", "json", "text"] = "auto"
    """json asks for a JSON schema; auto does where the endpoint is found to support it."""
    seed: int = 0

    def __post_init__(self) -> None:
        EndpointConfig.__post_init__(self)
        if self.explainer == "auto":
            object.__setattr__(self, "explainer", "combined" if self.model else "patterns")
        above = self.unless_patterns_above
        _check(above is None or 0 < above <= 1, f"explain.unless_patterns_above must lie in 0..1, not {above}")
        _check(self.samples >= 1, f"explain.samples must be 1 or more, not {self.samples}")
        _check(self.contexts >= 1, f"explain.contexts must be 1 or more, not {self.contexts}")


@dataclass(frozen=True, slots=True)
class ScoreConfig(EndpointConfig):
    """[score]: how labels are checked."""

    scorers: tuple[str, ...] = ("simulation",)
    """simulation, simulation_calibrated (the same and its calibration, for twice the calls), detection, fuzzing,
    embedding, intruder (of the feature, without label), and those that need the model too: surprisal, generation,
    output, intervention. The view `labels` shows the first."""
    method: Literal["auto", "prompt_logprobs", "generated_logprobs", "numbers"] = "auto"
    """Of the simulation. auto: what the endpoint is found to support, best first. Recorded with every score."""
    contexts: int = 10
    """N: a simulation is taken over N top, N sampled and N negative contexts, detection and fuzzing over 2 N activating
    and 2 N negative ones."""
    examples_per_call: int = 5
    """Contexts that one request of detection or fuzzing asks about, at most."""
    stop_width: float | None = None
    """detection, fuzzing: a label is not asked about further once its interval is narrower than this."""
    stop_threshold: float | None = None
    """detection, fuzzing: nor once its score is clearly on one side of this."""
    intruder_shown: int = 5
    """Contexts in one question of intruder, the intruder included."""
    sentences: int = 5
    """generation: sentences asked for that should activate the feature, and as many that should not."""
    distractors: int = 4
    """output: other features' labels among which the judge is to find the right one."""
    steering_kl: float = 0.5
    """output, intervention: how far steering moves the model's next-token distribution, nats per token."""
    steered_tokens: int = 25
    """output, intervention: tokens generated after each prompt."""
    embedding_model: str = ""
    """embedding: model at base_url's /embeddings, or "local:FOLDER" of a sentence-transformers model (read by
    `measure`)."""
    language_model: str = ""
    """surprisal, intervention: model (hub id or folder) that reads the label and the text; default: [model]."""
    bootstrap: int = 1000
    """Resamples of documents behind a simulation's interval."""
    seed: int = 0

    def __post_init__(self) -> None:
        EndpointConfig.__post_init__(self)
        _check(self.intruder_shown >= 3, f"score.intruder_shown must be 3 or more, not {self.intruder_shown}")
        _check(self.distractors >= 1, f"score.distractors must be 1 or more, not {self.distractors}")
        _check(self.steering_kl > 0, f"score.steering_kl must be positive, not {self.steering_kl}")
        for name in ("stop_width", "stop_threshold"):
            value = getattr(self, name)
            _check(value is None or 0 < value < 1, f"score.{name} must lie in 0..1, not {value}")
        _check(self.examples_per_call >= 1, f"score.examples_per_call must be 1 or more, not {self.examples_per_call}")


@dataclass(frozen=True, slots=True)
class PriceConfig:
    """[llm.prices."model"]: US dollars per million tokens."""

    input: float = 0.0
    cached_input: float | None = None
    """Default: the input price."""
    output: float = 0.0
    batch_discount: float = 0.5
    """Share of these prices that the batch API takes off."""
    batch_input: float | None = None
    """Instead of the discount: the batch API's own price, and so of the next two."""
    batch_cached_input: float | None = None
    """Default: the discounted cached price; where batch_input is given, that one."""
    batch_output: float | None = None

    def __post_init__(self) -> None:
        for name in ("input", "cached_input", "output", "batch_input", "batch_cached_input", "batch_output"):
            value = getattr(self, name)
            _check(value is None or 0 <= value < math.inf, f"a price of {name} = {value} is none")
        _check(0 <= self.batch_discount <= 1, f"batch_discount must lie in 0..1, not {self.batch_discount}")

    def in_batch(self) -> PriceConfig:
        """The prices of the batch API."""
        share = 1 - self.batch_discount
        cached = self.batch_cached_input
        if cached is None and self.cached_input is not None and self.batch_input is None:
            cached = self.cached_input * share
        return PriceConfig(
            input=self.input * share if self.batch_input is None else self.batch_input,
            cached_input=cached,
            output=self.output * share if self.batch_output is None else self.batch_output,
        )


@dataclass(frozen=True, slots=True)
class LlmConfig:
    """[llm]: how hard to press the endpoint, and what a token costs."""

    requests_per_minute: float = 600.0
    tokens_per_minute: float | None = None
    """None: no limit."""
    max_connections: int = 64
    """Calls in flight at most."""
    timeout: float = 120.0
    """Seconds for one attempt, whole reply included."""
    attempts: int = 6
    """Attempts for one request before it is given up as a failed row."""
    max_reply_bytes: int = 4_000_000
    batch: bool = False
    """Through the endpoint's batch API (also: --batch): cheaper, and answered within a day. What waits for a batch
    survives the end of the process."""
    batch_in_flight: int = 5000
    """In place of max_connections, with the batch API: about how many requests are collected into one batch."""
    batch_poll_seconds: float = 30.0
    """Between the first looks at a batch; they grow to ten times as far apart."""
    batch_quiet_seconds: float = 2.0
    """A batch is sent once no new request has come for so long."""
    prices: dict[str, PriceConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.requests_per_minute > 0, "llm.requests_per_minute must be positive")
        _check(self.max_connections >= 1, "llm.max_connections must be 1 or more")
        _check(self.timeout > 0, "llm.timeout must be positive")
        _check(self.attempts >= 1, "llm.attempts must be 1 or more")
        _check(self.batch_in_flight >= 1, "llm.batch_in_flight must be 1 or more")
        _check(self.batch_poll_seconds > 0, "llm.batch_poll_seconds must be positive")
        _check(self.batch_quiet_seconds > 0, "llm.batch_quiet_seconds must be positive")


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """[budget]: hard stops for what a run may spend; exit code 4 and resumable. Every run has all of it anew."""

    max_usd: float | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    """Input and output tokens together."""
    deadline: float | str | None = None
    """When to stop: seconds from the start (5400), a span (3h, 1h30m), a time of day (07:30) or a date and time. Calls
    in flight are finished and kept; harvests and evidence methods stop between two units of work, training after a
    checkpoint."""

    def __post_init__(self) -> None:
        for name in ("max_usd", "max_requests", "max_tokens"):
            most = getattr(self, name)
            _check(most is None or most >= 0, f"budget.{name} must not be negative, and is {most}")
        if self.deadline is not None:
            parse_deadline(self.deadline, datetime.now().astimezone())


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """[store]"""

    path: str = "autointerp.duckdb"
    """The evidence file stands beside it: X.evidence.duckdb."""
    snapshot_seconds: float = 60.0
    """While a run writes, others read X.snapshot.duckdb: at most this old, in seconds. 0: they have to wait."""

    def __post_init__(self) -> None:
        _check(
            0 <= self.snapshot_seconds < math.inf,
            f"store.snapshot_seconds must be 0 or more, not {self.snapshot_seconds}",
        )


@dataclass(frozen=True, slots=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    sae: tuple[SaeConfig, ...] = ()
    train: TrainConfig = field(default_factory=TrainConfig)
    harvest: HarvestConfig = field(default_factory=HarvestConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    explain: ExplainConfig = field(default_factory=ExplainConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    llm: LlmConfig = field(default_factory=LlmConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    store: StoreConfig = field(default_factory=StoreConfig)

    def __post_init__(self) -> None:
        _check(
            self.harvest.context_tokens <= self.corpus.context_length,
            f"harvest.context_tokens ({self.harvest.context_tokens}) exceeds corpus.context_length "
            f"({self.corpus.context_length})",
        )
        names = [s.dictionary for s in self.sae]
        double = {n for n in names if names.count(n) > 1}
        _check(not double, f"two [[sae]] tables have the name {', '.join(sorted(double))}; give each its own `name`")


def _convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as the field type `kind`, or an InputError that names the key."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        fitting = [a for a in kinds if isinstance(value, a)] if len(kinds) > 1 and not isinstance(value, bool) else []
        if not fitting and str in kinds and isinstance(value, (datetime, date, day_time)):
            return value.isoformat()
        return _convert(value, (fitting or kinds)[0], where)
    if origin is Literal:
        _check(value in args, f"{where} must be one of {', '.join(map(str, args))}, not {value!r}")
        return value
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    if origin is tuple:
        _check(isinstance(value, (list, tuple)), f"{where} must be a list, not {value!r}")
        return tuple(_convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        _check(isinstance(value, dict), f"{where} must be a table, not {value!r}")
        return {str(k): _convert(v, args[1], f'{where}."{k}"') for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    good = isinstance(value, kind) and not (kind is not bool and isinstance(value, bool))
    _check(good, f"{where} must be {kind.__name__}, not {value!r}")
    _check(not (kind is str and "\0" in value), f"{where} holds a NUL character, which no path or name takes")
    return value


def _build(kind: type, table: Any, where: str) -> Any:
    _check(isinstance(table, dict), f"{where or 'the configuration'} must be a table, not {table!r}")
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        name = f"{where}.{key}" if where else key
        if key not in hints:
            raise InputError(f"unknown configuration key {name!r}.{_section_of(key, where) or nearest(key, hints)}")
        values[key] = _convert(value, hints[key], name)
    return kind(**values)


def _section_of(key: str, where: str) -> str:
    """' It belongs into [explain] or [score].' of a key that stands in the wrong table, or ''."""
    kinds = {name: kind for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)}
    homes = [f"[{name}]" for name, kind in kinds.items() if name != where and key in typing.get_type_hints(kind)]
    return f" It belongs into {' or '.join(homes)}." if homes else ""


def _set(table: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for part in path:
        table = table.setdefault(part, {})
    table[last] = value


def from_table(table: dict[str, Any], overrides: dict[str, Any] | None = None) -> Config:
    """A Config from a parsed TOML table; `overrides` maps dotted keys ("store.path") to values."""
    for dotted, value in (overrides or {}).items():
        _set(table, dotted, value)
    return typing.cast(Config, _build(Config, table, ""))


def load(path: Path, overrides: dict[str, Any] | None = None) -> Config:
    """The configuration at `path`. Relative paths in it (model folder, corpus, SAE, store) are relative to the file,
    and a deadline that is a span or a time of day counts from now.

    Raises InputError: no such file, not TOML, unknown key, wrong type, values that contradict one another.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no configuration at {path}; `autointerp init` writes one, -c names another") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    config = from_table(table, overrides)
    return _settled(config, path.parent)


def _settled(config: Config, folder: Path) -> Config:
    """Relative paths as from `folder`, a relative deadline as from now."""

    def resolved(value: str, must_exist: bool) -> str:
        """A path beside the configuration file where there is one (a hub id is left alone)."""
        if value.startswith("hf:"):
            return value
        expanded = Path(value).expanduser()
        beside = folder / expanded
        if expanded.is_absolute():
            return str(expanded)
        return str(beside) if beside.exists() or not must_exist else value

    score = config.score
    if score.language_model:
        score = dataclasses.replace(score, language_model=resolved(score.language_model, True))
    if score.embedding_model.startswith("local:"):
        path = resolved(score.embedding_model.removeprefix("local:"), True)
        score = dataclasses.replace(score, embedding_model=f"local:{path}")
    source = config.corpus.source
    if source and source != "stdlib":
        source = resolved(source, must_exist=False)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name=resolved(config.model.name, True) if config.model.name else ""),
        corpus=dataclasses.replace(config.corpus, source=source),
        sae=tuple(dataclasses.replace(s, path=resolved(s.path, False) if s.path else None) for s in config.sae),
        score=score,
        budget=dataclasses.replace(config.budget, deadline=fixed(config.budget.deadline)),
        store=dataclasses.replace(config.store, path=resolved(config.store.path, False)),
    )


def environment_overrides(environ: typing.Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Overrides from AUTOINTERP_SECTION__KEY variables, e.g. AUTOINTERP_STORE__PATH; values are read as TOML where
    they parse as such, else as plain strings."""
    overrides: dict[str, Any] = {}
    for name, raw in environ.items():
        if name.startswith("AUTOINTERP_") and "__" in name:
            dotted = name.removeprefix("AUTOINTERP_").lower().replace("__", ".")
            try:
                overrides[dotted] = tomllib.loads(f"value = {raw}")["value"]
            except tomllib.TOMLDecodeError:
                overrides[dotted] = raw
    return overrides


def as_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON-able values, for provenance columns."""
    return dataclasses.asdict(config)
