"""The configuration: one frozen dataclass for each table of autointerp.toml, with the checks of its values.

The string under a field gives its meaning and unit; `autointerp init` writes these strings into the file it makes.
config_file.py reads the file. API keys are never kept here, only the name of the variable that holds one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlsplit

from autointerp.deadline import parse_deadline
from autointerp.errors import InputError
from autointerp.number_ranges import (
    Count,
    CountOrNone,
    Few,
    FewOrNone,
    LargeCount,
    PositiveShare,
    Price,
    Range,
    Seconds,
    Seed,
    Share,
    check_ranges,
)
from autointerp.sae_reading import parse_reading


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
    """none, or 8bit or 4bit weights, loaded through bitsandbytes, which has to be installed."""
    batch_tokens: Count = 8192
    """Tokens in one forward pass, padding included. Halved, at most four times, when memory runs out."""
    random_weights: Seed | None = None
    """Seed of random weights that replace the trained ones. `autointerp run --control random_model` sets it: the scores
    that labels reach on an untrained model show what a score is worth."""
    keep_embeddings: bool = False
    """With random_weights: keep the trained embeddings (`autointerp run --control random_model_embeddings`)."""

    def __post_init__(self) -> None:
        check_ranges(self)
        _check(
            not self.keep_embeddings or self.random_weights is not None,
            "model.keep_embeddings says what random weights leave as it was trained: set model.random_weights too",
        )
        _check(
            self.random_weights is None or (self.quantization == "none" and self.device_map is None),
            "model.random_weights cannot be combined with model.quantization or model.device_map",
        )
        _check(
            self.dtype in ("auto", "float32", "bfloat16", "float16"),
            f"model.dtype must be auto, float32, bfloat16 or float16, not {self.dtype!r}",
        )


@dataclass(frozen=True, slots=True)
class CorpusConfig:
    """[corpus]: the text. One file is one document unless document_separator says otherwise."""

    source: str = ""
    """File, folder, glob, `hf:owner/dataset[:config][@split]`, or `stdlib` (the standard library's source text)."""
    format: Literal["auto", "text", "jsonl", "json", "csv", "parquet"] = "auto"
    """text, jsonl, json (an array of objects), csv, parquet, or auto: by the file's suffix and first bytes. All but
    parquet may be compressed (gzip, bzip2, xz, zstd). A folder that `save_to_disk` wrote is recognised."""
    text_field: str = "text"
    """Field or column that holds the text (all formats but text)."""
    chat_field: str | None = None
    """Field that holds a list of {role, content}, used instead of text_field and rendered with the model's own chat
    template."""
    id_field: str | None = None
    """Field that holds a document's id. Default: documents are named by path and index."""
    document_separator: str | None = None
    """Plain text files only: the string between two documents. Default: one file is one document."""
    context_length: Annotated[int, Range(8, 10**9)] = 128
    """Tokens in one window (one input of the model), the BOS included."""
    prepend_bos: Literal["auto", "always", "never"] = "auto"
    """always, never, or auto: if the tokenizer has a BOS token. A prepended BOS is never counted or stored as text. For
    always, the EOS stands in where the tokenizer has no BOS (Qwen), as in TransformerLens."""
    exclude_tokens: tuple[str, ...] = ()
    """Token strings that never count, besides BOS, EOS, padding and other special tokens."""
    max_tokens: LargeCount | None = None
    """Stop after about this many tokens, at the end of a document. Default: read the whole corpus."""
    unit_characters: LargeCount = 2_000_000
    """Least size of a work unit, in characters. A work unit is a run of documents that are harvested, committed and
    sharded together."""
    block_characters: Annotated[int, Range(1000, 10**15)] = 400_000
    """A document longer than this is cut into blocks with a gap between them; each block is a document of its own."""
    heldout_fraction: Annotated[float, Range(0.0001, 0.9999)] = 0.5
    """Share of documents that the explainer never sees: half of them are `select`, half `report`."""
    max_skipped_share: Share = 0.05
    """Give up when more than this share of the records is unusable and had to be skipped."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class SaeConfig:
    """[[sae]]: one dictionary, which is either read from `path` or made by `train`."""

    hookpoint: str = ""
    """Path of the module whose activations the SAE reads: `transformer.h.6`, `model.layers.12.mlp`. Append `:in` for
    the module's input instead of its output. TransformerLens's names (`blocks.6.hook_resid_post`) work too."""
    name: str = ""
    """The dictionary's name in the store. Default: the hookpoint."""
    output_hookpoint: str | None = None
    """Transcoders only: the module whose activations are reconstructed."""
    path: str | None = None
    """A saved SAE: folder, file, or hf:owner/name@revision//folder. Default: train one and save it in
    `<store folder>/sae/<name>`."""
    format: Literal[
        "auto", "saelens", "sparsify", "dictionary_learning", "gemma_scope", "openai", "gemma_scope_2", "qwen_scope",
        "llama_scope", "llamascopium", "circuit_tracer", "goodfire",
    ] = "auto"  # fmt: skip
    """The tool that wrote the files at `path`: saelens, sparsify, dictionary_learning, gemma_scope, openai,
    gemma_scope_2, qwen_scope, llama_scope, llamascopium, circuit_tracer, goodfire, or auto: recognised by what is in
    them."""
    reading: str = ""
    """Only with path: how the file is to be read where its format's reading does not fit, as the check of declared L0
    and FVU names it: `b_dec_not_subtracted`, `input_scale=0.05`, several with commas between them (docs/saes.md lists
    them). `as read`: the file is read as its format has it, though the check finds that it does not fit."""
    architecture: str = "topk"
    """What to train: topk, batchtopk, matryoshka, relu, p_anneal, gated or jumprelu."""
    d_sae: Count | None = None
    """Number of features to train. Default: expansion x the hookpoint's width."""
    expansion: Annotated[int, Range(1, 10**6)] = 8
    """Only used if d_sae is not given."""
    k: Count = 32
    """Number of features active on one token: exactly k for topk, on average for all others."""
    penalty: Annotated[float, Range(0, 10**6)] | None = None
    """relu, p_anneal, gated, jumprelu: weight of the sparsity penalty. Default: adjusted in training until k features
    are active."""
    decoder_norm_penalty: bool = False
    """relu, p_anneal: weight the penalty by the norms of the decoder rows, which training then leaves free."""
    prefixes: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0)
    """matryoshka: shares of the features that must reconstruct the input by themselves, ascending to 1."""
    p_end: PositiveShare = 0.2
    """p_anneal: the penalty's last exponent."""
    bandwidth: Annotated[float, Range(1e-6, 10**6)] = 0.5
    """jumprelu: width around a threshold in which the jump has a slope, for inputs scaled to length sqrt(d)."""
    skip: bool = False
    """Transcoders (output_hookpoint): add a linear path from input to output, beside the features."""
    seed: Seed | None = None
    """Seed of the initial weights. Default: train.seed. `evaluate` measures stability on tables that differ only in
    their seed."""
    frozen: Literal["none", "decoder", "soft_decoder", "encoder"] = "none"
    """What training leaves as it was drawn: none, decoder or encoder (their rows), or soft_decoder (decoder rows stay
    within a cosine of 0.8 of their start). For controls: `autointerp run --control frozen_decoder` sets it."""

    def __post_init__(self) -> None:
        check_ranges(self)
        _check(
            parse_reading(self.reading) is None or self.path is not None,
            f"sae.reading = {self.reading!r} is for an SAE that is loaded; set sae.path too",
        )
        _check(
            self.frozen == "none" or self.path is None,
            f"sae.frozen = {self.frozen!r} is for an SAE that is trained here, and sae.path names one that is loaded",
        )
        _check(
            not self.decoder_norm_penalty or self.architecture in ("relu", "p_anneal"),
            f"sae.decoder_norm_penalty is for relu and p_anneal, not for {self.architecture}",
        )
        ascending = all(a < b for a, b in zip(self.prefixes, self.prefixes[1:], strict=False))
        _check(
            bool(self.prefixes) and ascending and self.prefixes[0] > 0 and self.prefixes[-1] == 1,
            f"sae.prefixes must ascend from above 0 to 1, not {list(self.prefixes)}",
        )
        _check(
            not self.skip or self.output_hookpoint is not None,
            "sae.skip is for transcoders: set sae.output_hookpoint too",
        )
        _check(
            self.d_sae is None or self.d_sae >= self.k, f"sae.d_sae ({self.d_sae}) must be at least sae.k ({self.k})"
        )

    @property
    def dictionary(self) -> str:
        return self.name or self.hookpoint


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """[train]: how an SAE is trained, for every [[sae]] without a path."""

    tokens: LargeCount = 2_000_000
    """Activation vectors to train on. A corpus with fewer tokens is read again from the start."""
    batch_size: Count = 2048
    """Activation vectors in one step."""
    lr: Annotated[float, Range(1e-12, 1000)] | None = None
    """Peak learning rate of Adam. Default: 7e-4 / sqrt(d_sae / 2^14)."""
    warmup_steps: CountOrNone = 200
    """Steps over which the learning rate rises linearly to its peak."""
    decay_share: Share = 0.5
    """Share of the steps, at the end, over which the learning rate falls linearly to zero."""
    buffer_vectors: Count = 131_072
    """Activation vectors held for shuffling."""
    cache: str | None = None
    """Folder in which the model's activations are kept, so that it reads the text once for any number of SAEs and
    epochs. One vector takes two bytes a number in bfloat16 and four in float32. Default: the model runs while an SAE
    trains."""
    cache_vectors: LargeCount | None = None
    """Most activation vectors kept in `cache` for each hookpoint; with fewer than train.tokens, training goes over them
    several times. Default: train.tokens, or the corpus where that is shorter."""
    auxk_alpha: Annotated[float, Range(0, 1000)] = 1 / 32
    """Weight of the loss that revives dead features; 0 turns reviving off."""
    dead_after: LargeCount = 50_000
    """A feature is dead when it has not fired for this many vectors. After twice as many its encoder bias is raised
    until it fires again. Raise it where k is small and the dictionary large: features that are merely rare would count
    as dead."""
    checkpoint_every: Count = 1000
    """Steps between two checkpoints."""
    longest: Annotated[float, Range(0, 10**6)] = 10.0
    """Vectors longer than this many times the median length are left out: a few tokens of many models (attention sinks)
    would take most of the loss. The dictionary keeps the limit, and no feature is active on them. 0 leaves none out."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the encoder's matrix product in training; all else is float32. float32, bfloat16, or auto: bfloat16
    on a GPU, else float32."""
    seed: Seed = 0
    """Seed of the initial weights and of the shuffling."""

    def __post_init__(self) -> None:
        check_ranges(self)
        _check(self.tokens >= self.batch_size, f"train.tokens ({self.tokens}) is less than one batch")
        _check(
            self.longest == 0 or self.longest >= 1,
            f"train.longest = {self.longest} would leave out more than half of all vectors; give 1 or more, or 0",
        )
        _check(self.cache != "", "train.cache is an empty name; name a folder, or leave it out")
        _check(
            self.cache_vectors is None or self.cache is not None,
            f"train.cache_vectors = {self.cache_vectors} bounds a cache, of which there is none; set train.cache",
        )


@dataclass(frozen=True, slots=True)
class HarvestConfig:
    """[harvest]: how much evidence is kept for every feature, on each split."""

    context_tokens: Count = 32
    """Tokens in one stored context and in one tile; at most corpus.context_length."""
    top_contexts: Few = 20
    """Strongest contexts kept per feature and split, from as many different documents as there are."""
    sampled_contexts: Few = 40
    """Activating tiles kept per feature and split, sampled uniformly."""
    negatives: Few = 10
    """Tiles kept per feature, split and tier (random, same token, neighbour) on which the feature is silent."""
    negative_pool_windows: Count = 16_384
    """Windows per split from which negatives are drawn; a hash chooses them."""
    known_tiles: CountOrNone = 2048
    """Tiles per split, drawn from the corpus at large, that are kept with all features that fire in them. On them a
    rule is checked against text as it comes. A change counts from the next harvest on, and does not cause one."""
    neighbours: FewOrNone = 5
    """Number of nearest features, by decoder cosine, whose tiles serve as hard negatives."""
    vocab_tokens: FewOrNone = 20
    """Tokens kept per feature among those it promotes most, and as many among those it suppresses most."""
    rare_below: CountOrNone = 10
    """A feature with fewer activating tiles than this on the explain split is `rare`."""
    feature_block: Count | None = None
    """Features processed in one pass over the corpus. Default: all, unless they would not fit into memory."""
    seed: Annotated[int, Range(0, 2**23 - 1)] = 0
    """Seed of the sampled contexts and of the negatives."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """[evidence]: what is found out about features beyond the harvest (see the table method_runs)."""

    methods: tuple[str, ...] = ("shape", "words", "neighbours", "output_statistic", "mutual_information")
    """Run for the whole dictionary after the harvest. pruning and token_change run the model for every feature: name
    them here, or run `autointerp measure` for chosen features. jacobian_lens differentiates the model, once for all
    features of a hookpoint."""
    relation_tokens: Count = 65_536
    """neighbours: tokens of the explain split over which co-activation and correlation are taken."""
    related: Few = 10
    """neighbours: features kept for each relation."""
    mi_words: Annotated[int, Range(1, 10**6)] = 5000
    """mutual_information: the corpus's commonest words that make up the vocabulary."""
    mi_mode: Literal["pmi", "paper"] = "pmi"
    """mutual_information: pmi ranks by p(w|c) (log p(c|w) - log p(c)); paper by the published p(w|c) log p(c|w)."""
    words: Few = 20
    """mutual_information, words: words kept for each feature."""
    pruned_contexts: Few = 5
    """pruning: top contexts per feature."""
    prune_mode: Literal["delete", "mask"] = "delete"
    """pruning: text before the kept part is left out, or masked in place (for models with absolute positions)."""
    prune_keep: PositiveShare = 0.5
    """pruning: share of the peak's activation that must remain."""
    prune_longest: Count = 32
    """pruning: longest left context tried, tokens, the peak included."""
    substitutes: FewOrNone = 3
    """pruning: the model's own likeliest substitutes tried for each important token; 0: none."""
    lens_file: str = ""
    """jacobian_lens: a lens that was made already, a .pt of the jlens library. Empty: one is computed."""
    lens_prompts: Annotated[int, Range(1, 10**6)] = 200
    """jacobian_lens: windows of the explain split over which the Jacobian is averaged."""
    lens_every: Few = 16
    """jacobian_lens: each prompt gives one in so many of the Jacobian's rows, so each row is the mean over that share
    of the prompts, and the cost is that of so many fewer. 1: all rows of every prompt, as in the published method."""
    lens_tokens: Annotated[int, Range(18, 10**6)] = 128
    """jacobian_lens: tokens of each, corpus.context_length at most; the first 16 and the last one do not count."""
    lens_effects: Literal["later", "same"] = "later"
    """jacobian_lens: later counts what a change at a position does there and at all later positions, as in the
    published method; same counts that position alone."""
    change_prompts: Annotated[int, Range(1, 10**6)] = 16
    """token_change: windows of the explain split on which the feature is clamped."""
    change_tokens: Annotated[int, Range(1, 10**6)] = 32
    """token_change: tokens of each."""
    change_kl: Annotated[float, Range(1e-6, 1000)] = 0.5
    """token_change: how far the clamping moves the next-token distribution, nats per token."""
    change_random: Annotated[int, Range(2, 10**4)] = 16
    """token_change: random features that the change is compared with."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self)


_LIKE_A_KEY = re.compile(r"(?=.{20})(?=.*[a-z])(?=.*[0-9])")
"""Matches API keys that would pass as the name of a variable (hf_..., gsk_...): long, with small letters and digits."""


_LONG_PART = re.compile(r".*\w{16,}.*|.*[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}.*|.{40,}", re.ASCII | re.IGNORECASE)
"""Matches a part of a path that has a long run without a dash, that no model has, or is a UUID, or very long."""


def _may_be_secret(part: str) -> bool:
    has_both = re.search("[0-9]", part) is not None and re.search("[A-Za-z]", part) is not None
    return part.lower().startswith("sk-") or (has_both and _LONG_PART.fullmatch(part) is not None)


def secret_parts(url: str) -> list[str]:
    """The parts of the URL's path that may be secrets: some gateways take a key there."""
    parts = re.split(r"[/;=,:@]", urlsplit(url).path)
    return [part for part in parts if _may_be_secret(part)]


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """How to reach one OpenAI-compatible endpoint; part of [explain] and [score]."""

    model: str = ""
    """Model name as the endpoint knows it. Explainers and scorers that ask no LLM need none."""
    base_url: str = "https://api.openai.com/v1"
    """Any OpenAI-compatible server (OpenAI, vLLM, llama.cpp, Ollama, OpenRouter). What looks like a key in its path is
    hidden in messages and in the store."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    temperature: Annotated[float, Range(0, 100)] | None = 0.0
    """Write "none" to send no temperature: some reasoning models refuse the field."""
    max_tokens: Count = 300
    """Most tokens in one reply."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The field that carries max_tokens. Newer OpenAI models want the second name; most local servers know only the
    first."""

    def __post_init__(self) -> None:
        check_ranges(self)
        # The value may be a secret in the wrong place, so these messages never repeat it.
        try:
            parts = urlsplit(self.base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # brackets without an address, or a port that is not a number
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

    @property
    def address(self) -> str:
        """base_url as messages show it and the store keeps it: each part that may be a secret is replaced by the start
        of its hash, so that two addresses stay two."""
        shown = self.base_url
        for part in secret_parts(shown):
            digest = hashlib.sha256(part.encode("utf-8", "replace")).hexdigest()[:8]
            shown = shown.replace(part, f"[hidden {digest}]")
        return shown


@dataclass(frozen=True, slots=True)
class ExplainConfig(EndpointConfig):
    """[explain]: how labels are made."""

    explainer: str = "auto"
    """Without an LLM: patterns, token_lookup. From one kind of evidence: contexts, pruned, vocab_projection,
    jacobian_lens, mutual_information, token_change, contrastive (contexts and hard negatives). From all evidence but
    jacobian_lens in one prompt: combined, rule (a label with a rule that is run on text, mended and scored for free).
    From other labels: concat (asks apart what the feature responds to and what it leads to), best_of_n, revise. auto:
    combined where a model is named, else patterns."""
    contexts: Few = 10
    """Contexts shown to the explainer."""
    random_contexts: FewOrNone = 20
    """Contexts that `combined` shows besides the strongest, drawn at random from all where the feature is active, in
    groups by decile; at most twice as many as `contexts`."""
    negatives: FewOrNone = 5
    """Silent contexts that `contrastive` shows. `combined` shows at most three of them, with the token of a peak."""
    base: str = "combined"
    """Explainer that writes the labels which best_of_n chooses from and revise starts from."""
    samples: Few = 3
    """Labels that best_of_n chooses from."""
    validator: Literal["detection", "fuzzing", "simulation"] = "detection"
    """Scorer (detection, fuzzing or simulation) by which best_of_n and revise judge labels, on the select part."""
    mistakes: FewOrNone = 8
    """Wrongly judged contexts that `revise` shows, and texts of each kind of mistake that `rule` shows."""
    rule_contexts: Few = 8
    """Contexts that `rule` shows, and at most as many drawn ones (see random_contexts)."""
    rounds: Annotated[int, Range(0, 5)] = 2
    """Calls, at most, in which `rule` shows what its rule gets wrong, to have it mended."""
    shape_labels: bool = True
    """A feature that its shape alone explains (see feature_shapes) gets its label from the shape, without an LLM."""
    unless_patterns_above: PositiveShare | None = None
    """A feature keeps its `patterns` label, without an LLM, where that label's natural correlation on the select part
    is at least this (0.7, say)."""
    reply: Literal["auto", "json", "text"] = "auto"
    """text, json (asks for a reply that follows a JSON schema), or auto: json where the endpoint supports it."""
    seed: Seed = 0
    """A label belongs to its seed: another seed asks for another label. Unless 0, it is sent to the endpoint."""

    def __post_init__(self) -> None:
        EndpointConfig.__post_init__(self)
        if self.explainer == "auto":
            object.__setattr__(self, "explainer", "combined" if self.model else "patterns")


@dataclass(frozen=True, slots=True)
class ScoreConfig(EndpointConfig):
    """[score]: how labels are checked."""

    scorers: tuple[str, ...] = ("simulation",)
    """With an LLM alone: simulation, simulation_calibrated (with its calibration, for twice the calls), detection,
    fuzzing, embedding, intruder (judges the feature, without its label), rule_agreement (whether the words of a label
    say what its rule says). With the model too: surprisal, generation, output, intervention. The view `labels` shows
    the first scorer named here."""
    controls: tuple[str, ...] = ("auto",)
    """Controls that are scored after the labels, without --control: shuffled, neighbour_label, empty, token_lookup.
    Each costs as many calls as the labels. auto: token_lookup and neighbour_label for scorers that cost nothing (labels
    of patterns and rule by simulation), none for the others. []: none."""
    method: Literal["auto", "prompt_logprobs", "generated_logprobs", "numbers"] = "auto"
    """How simulation asks, recorded with every score: prompt_logprobs, generated_logprobs or numbers. auto: the first
    of these that the endpoint supports."""
    contexts: Few = 10
    """N: simulation reads N top, N sampled and N negative contexts; detection and fuzzing read 2 N activating and 2 N
    negative ones, N of them random. So harvest.top_contexts and harvest.negatives have to be N or more, and
    harvest.sampled_contexts 2 N or more."""
    examples_per_call: Few = 5
    """detection, fuzzing: most contexts in one request."""
    stop_width: Annotated[float, Range(1e-6, 0.999999)] | None = None
    """detection, fuzzing: stop asking about a label once its score's interval is narrower than this."""
    stop_threshold: Annotated[float, Range(1e-6, 0.999999)] | None = None
    """detection, fuzzing: stop asking about a label once its score is clearly above or below this."""
    label_precision: PositiveShare = 0.5
    """Column label_from: a label holds from the activation on at which its precision on text as it comes is at least
    this. It counts for labels scored from then on."""
    repeat_share: Share = 0.05
    """detection, fuzzing: share of features about whose labels everything is asked twice, in other calls. It measures
    how far a judge agrees with itself and how far errors within a call go together (view judge_consistency); 0 asks
    nothing twice."""
    intruder_shown: Annotated[int, Range(3, 10**6)] = 5
    """intruder: contexts in one question, the intruder included."""
    sentences: Few = 5
    """generation: sentences to ask for that should activate the feature, as many that should not, and as many that only
    seem to."""
    distractors: Few = 4
    """output: labels of other features among which the judge has to find the right one."""
    steering_kl: Annotated[float, Range(1e-6, 1000)] = 0.5
    """output, intervention: how far steering moves the model's next-token distribution, in nats per token."""
    steered_tokens: Annotated[int, Range(1, 10**6)] = 25
    """output, intervention: tokens generated after each prompt."""
    embedding_model: str = ""
    """embedding: a model at base_url's /embeddings, or "local:FOLDER" for a sentence-transformers model, which
    `measure` reads."""
    language_model: str = ""
    """surprisal, intervention: the model (hub id or folder) that reads the label and the text. Default: [model]."""
    bootstrap: Annotated[int, Range(1, 10**6)] = 1000
    """Not used any more, since intervals are no longer resampled; older configurations name it."""
    seed: Seed = 0
    """Seed of the contexts drawn. Unless 0, it is sent to the endpoint."""


@dataclass(frozen=True, slots=True)
class PriceConfig:
    """[llm.prices."model"]: US dollars per million tokens."""

    input: Price = 0.0
    cached_input: Price | None = None
    """Default: the input price."""
    output: Price = 0.0
    batch_discount: Share = 0.5
    """Share of these prices that the batch API takes off."""
    batch_input: Price | None = None
    """The batch API's own input price. Default: the discounted input price."""
    batch_cached_input: Price | None = None
    """Default: batch_input where that is given, else the discounted cached price."""
    batch_output: Price | None = None
    """Default: the discounted output price."""

    def __post_init__(self) -> None:
        check_ranges(self, "llm.prices")

    def in_batch(self) -> PriceConfig:
        """The prices that the batch API charges."""
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
    """[llm]: how many calls the endpoint gets, and what a token costs."""

    requests_per_minute: Annotated[float, Range(0.001, 10**9)] = 600.0
    tokens_per_minute: Annotated[float, Range(1, 10**12)] | None = None
    """Default: no limit."""
    max_connections: Few = 64
    """Most calls in flight at once."""
    timeout: Seconds = 120.0
    """Seconds that one attempt may take, the whole reply included."""
    attempts: Annotated[int, Range(1, 100)] = 6
    """Attempts at one request before it becomes a failed row."""
    max_reply_bytes: Count = 4_000_000
    """Bytes of the largest reply that is accepted; a larger one is a failed row."""
    batch: bool = False
    """Send requests through the endpoint's batch API, as --batch does: cheaper, and answered within a day. A batch that
    was sent survives the end of the process."""
    batch_in_flight: Annotated[int, Range(1, 10**7)] = 5000
    """With the batch API, instead of max_connections: about how many requests are collected into one batch."""
    batch_poll_seconds: Seconds = 30.0
    """Seconds between the first looks at a batch; the pauses grow to ten times that."""
    batch_quiet_seconds: Seconds = 2.0
    """A batch is sent once no new request has come for this many seconds."""
    prices: dict[str, PriceConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """[budget]: what one run may spend. A run that reaches a limit ends with exit code 4; the next one goes on with a
    full budget."""

    max_usd: Annotated[float, Range(0, 10**12)] | None = None
    max_requests: Annotated[int, Range(0, 10**15)] | None = None
    max_tokens: Annotated[int, Range(0, 10**15)] | None = None
    """Input and output tokens together."""
    deadline: float | str | None = None
    """When to stop: seconds from the start (5400), a span (3h, 1h30m), a time of day (07:30) or a date and time. Calls
    in flight are finished and kept. Harvests and evidence methods stop between two units of work, training after a
    checkpoint."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.deadline is not None:
            parse_deadline(self.deadline, datetime.now().astimezone())


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """[store]: where the results are kept."""

    path: str = "autointerp.duckdb"
    """The store. Its evidence file is beside it: X.evidence.duckdb."""
    snapshot_seconds: Annotated[float, Range(0, 10**9)] = 60.0
    """Greatest age, in seconds, of the X.snapshot.duckdb that others read while a run writes. 0: they have to wait."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class Config:
    """The whole of autointerp.toml."""

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
