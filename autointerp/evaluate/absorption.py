"""Feature absorption on the first-letter task (Chanin et al. 2024, arXiv 2409.14507).

A dictionary may have a feature for "begins with S" that is silent on some words with S, because the word's own feature
has absorbed the letter's direction. To find such words, for each letter:

1. A logistic probe on the activations at the word finds the letter's direction p. A letter whose probe is poor on
   held-out words (F1 below `min_f1`) is skipped, since the model does not show there that it knows the letter.
2. The letter's main features are those of a k-sparse probe. k grows while F1 grows by more than .03, to 10 at most.
3. For the letter's held-out words on which the probe is right, the projection of the activation onto p (taken from
   the dictionary's bias b_dec, so that features have to explain all of it) is divided among the active features:
   feature i contributes f_i d_i.p.

full absorption       the main features are silent, and the feature that contributes most has cos(d_i, p) >= .025 and
                      makes up at least .4 of the projection
absorption fraction   as SAEBench defines it. Let m and a be the shares of the projection that the main features and
                      up to 3 other features with cos(d_i, p) >= .1 contribute. Those others absorb no more than what
                      the main features leave: a' = min(a, 1 - m). If a is at least .4 and m is below 1, the fraction
                      is a' / (a' + m); else 0

Activations are read at the last token of a prompt that says nothing about spelling. The words are single tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import cross_val_predict

from autointerp.config import CorpusConfig
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import bos_prefix, token_ids
from autointerp.evaluate.metric_rows import MetricRow, metric_row
from autointerp.evaluate.pooled import BATCH_TOKENS
from autointerp.means import mean_interval
from autointerp.model.hooks import Hookpoint
from autointerp.model.input_limits import n_embeddings
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import activation_batches
from autointerp.progress import Adding, Counting, uncounted
from autointerp.records import Window
from autointerp.sae.sae import Sae

PROMPT = "They talked about it for a while, and then about the"
"""The text before the word. Any word can follow it, and it names no letter."""
MIN_F1 = 0.6
MIN_WORDS = 20
MOST_WORDS = 6000
TEST_SHARE = 0.4
PROBE_C = 1.0
FOLDS = 3
FEWEST_WORDS = 5
"""Fewest words of a letter, whatever `min_words` says: after holding some out, one must be left for each fold."""
MOST_MAIN, F1_GAIN = 10, 0.03
SILENT = 1e-8
FULL_COSINE, FULL_SHARE = 0.025, 0.4
FRACTION_COSINE, FRACTION_SHARE, MOST_ABSORBING = 0.1, 0.4, 3
FIELDS = {
    "absorption_full": "full",
    "absorption_fraction": "fraction",
    "absorption_main_silent": "main_silent",
    "absorption_probe_f1": "probe_f1",
    "absorption_sparse_probe_f1": "sparse_f1",
}
"""Each metric, and the field of `Letter` whose mean it is."""


@dataclass(frozen=True, slots=True)
class Letter:
    """The result for one letter."""

    letter: str
    probe_f1: float
    """F1 of the dense probe on held-out words."""
    usable: bool
    """Whether `probe_f1` reached `min_f1`. If not, the fields below are None."""
    sparse_f1: float | None = None
    """F1 of the probe on the main features, on held-out words."""
    main: tuple[int, ...] = ()
    n_words: int = 0
    """Held-out words of the letter on which the dense probe is right."""
    full: float | None = None
    fraction: float | None = None
    main_silent: float | None = None
    """Share of those words on which every main feature is silent."""


def absorption(
    loaded: LoadedModel,
    sae: Sae,
    hookpoint: Hookpoint,
    *,
    corpus: CorpusConfig | None = None,
    prompt: str = PROMPT,
    min_f1: float = MIN_F1,
    min_words: int = MIN_WORDS,
    most_words: int = MOST_WORDS,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    n_boot: int = 1000,
    counting: Counting = uncounted,
) -> list[MetricRow]:
    """The rows of `absorption_rows` for the words of the model's own vocabulary.

    The decoder of a transcoder does not write into the space that it reads, so no probe can be compared with it: its
    rows have the value None and a note. Of `corpus` only prepend_bos matters. Raises InputError for a wrong hookpoint.
    """
    if sae.d_in != sae.d_out or sae.W_skip is not None or not torch.equal(sae.b_pre, sae.b_dec):
        return _without("the dictionary does not reconstruct what it reads, so its decoder has no direction to compare")
    words = vocabulary_words(TokenText(loaded.tokenizer).pieces[: n_embeddings(loaded.model)])
    if len(words) > most_words:
        kept = np.random.default_rng(seed).choice(len(words), most_words, replace=False)
        words = [words[i] for i in np.sort(kept)]
    if len(words) < 2 * min_words:
        return _without(f"the vocabulary holds {len(words)} words as single tokens, at least {2 * min_words} needed")
    prefix = bos_prefix(loaded.tokenizer, corpus or CorpusConfig())
    head = [*prefix, *token_ids([prompt], loaded.tokenizer)[0]]
    windows = [Window(word, 0, "report", [*head, index], len(prefix)) for index, word in words]
    raw = torch.empty(len(words), sae.d_in, device=sae.W_enc.device)
    with counting("reading the words for absorption", len(words), "words") as update:
        adding = Adding(update)
        for batch, activations in activation_batches(loaded, hookpoint, windows, batch_tokens):
            # All prompts are of one length, so the word is always the last token.
            raw[batch.indices] = activations[:, -1].to(raw)
            adding(len(batch.indices))
    read = sae.encode_sparse(raw)
    index = (read.rows.cpu().numpy(), read.features.cpu().numpy())
    letters = letter_scores(
        sae.normalized(raw)[0].float().cpu().numpy(),
        csr_matrix((read.values.cpu().numpy(), index), shape=(len(words), sae.d_sae)),
        sae.W_dec.float().cpu().numpy(),
        sae.b_dec.float().cpu().numpy(),
        [word.strip()[0].lower() for _, word in words],
        min_f1=min_f1,
        min_words=min_words,
        seed=seed,
        counting=counting,
    )
    return absorption_rows(letters, len(words), min_f1, len(words) * (len(head) + 1), n_boot, seed)


def vocabulary_words(pieces: Sequence[str | None]) -> list[tuple[int, str]]:
    """(id, string) of the tokens that are a space and at least three ASCII letters, or, where the tokenizer ends words
    instead (`</w>`), the letters and a space. Of words that differ only in case, the first is taken."""
    for shape in (r" [A-Za-z]{3,}", r"[A-Za-z]{3,} "):
        found: dict[str, tuple[int, str]] = {}
        for index, piece in enumerate(pieces):
            if piece is not None and re.fullmatch(shape, piece):
                found.setdefault(piece.lower(), (index, piece))
        if found:
            break
    return list(found.values())


def letter_scores(
    vectors: NDArray[np.float32],
    codes: csr_matrix,
    W_dec: NDArray[np.float32],
    b_dec: NDArray[np.float32],
    letters: Sequence[str],
    *,
    min_f1: float = MIN_F1,
    min_words: int = MIN_WORDS,
    seed: int = 0,
    counting: Counting = uncounted,
) -> list[Letter]:
    """One Letter for each letter with at least `min_words` words, in alphabetical order.

    `vectors` [n, d] are the activations at the words, in the units that the dictionary reconstructs; `codes` [n, d_sae]
    are its features there. `letters` gives each word's class, which may be any string; spelling is not read.
    """
    classes = np.array(letters)
    held_out = _held_out(classes, seed)
    # One scale for all dimensions, since a scale for each would bend the probe's direction.
    x = vectors - vectors[~held_out].mean(0)
    x /= max(float(np.sqrt((x[~held_out] ** 2).mean())), 1e-12)
    explained = vectors - b_dec
    columns = codes.tocsc()
    sizes = {str(letter): int((classes == letter).sum()) for letter in np.unique(classes)}
    enough = [letter for letter, n in sizes.items() if max(min_words, FEWEST_WORDS) <= n < len(classes)]

    def judged(letter: str) -> Letter:
        y = classes == letter
        probe = LogisticRegression(C=PROBE_C, class_weight="balanced", max_iter=5000)
        probe.fit(x[~held_out], y[~held_out])
        right = probe.predict(x)
        f1 = float(f1_score(y[held_out], right[held_out], zero_division=0.0))
        if f1 < min_f1:
            return Letter(letter, f1, False)
        p = probe.coef_[0] / np.linalg.norm(probe.coef_[0])
        main, sparse_f1 = _main_features(columns, y, held_out)
        projection = explained @ p
        words = np.flatnonzero(held_out & y & right & (projection > 0))
        cosine = W_dec @ p
        found = [absorbed(codes[i], cosine, float(projection[i]), main) for i in words]
        full, fraction, silent = np.array(found, dtype=np.float64).reshape(-1, 3).T
        return Letter(
            letter,
            f1,
            True,
            sparse_f1,
            tuple(main),
            len(words),
            *(float(v.mean()) if len(words) else None for v in (full, fraction, silent)),
        )

    scores = []
    with counting("probing the letters for absorption", len(enough), "letters") as update:
        for letter in enough:
            scores.append(judged(letter))
            update(len(scores))
    return scores


def absorbed(
    code: csr_matrix, cosine: NDArray[np.float64], projection: float, main: Sequence[int]
) -> tuple[bool, float, bool]:
    """(full absorption, absorption fraction, whether the main features are silent) for one word.

    `code` [1, d_sae]: the word's active features. `cosine` [d_sae]: cosine of each feature's decoder row with the
    probe. `projection`: the activation along the probe, above 0. `main`: the letter's main features.
    """
    features, values = code.indices, code.data
    share = values * cosine[features] / projection
    is_main = np.isin(features, main)
    silent = not (values[is_main] > SILENT).any()
    full = False
    if silent and len(features):
        top = int(share.argmax())
        full = bool(cosine[features[top]] >= FULL_COSINE and share[top] >= FULL_SHARE)
    absorbing = np.sort(share[~is_main & (cosine[features] >= FRACTION_COSINE)])[::-1][:MOST_ABSORBING].sum()
    from_main = max(0.0, float(share[is_main].sum()))
    if absorbing < FRACTION_SHARE or from_main >= 1.0:
        return full, 0.0, silent
    absorbing = min(float(absorbing), 1.0 - from_main)  # what goes beyond the projection is nobody's to absorb
    return full, absorbing / (absorbing + from_main), silent


def _main_features(columns: csc_matrix, y: NDArray[np.bool_], held_out: NDArray[np.bool_]) -> tuple[list[int], float]:
    """The features of a k-sparse probe for `y`, chosen on the words that are not held out, and its F1 on the others.

    Candidates are ranked by how much higher their mean is on the letter's words, in units of their own spread. Ranked
    by the plain difference, large features that have nothing to do with the letter would come first.
    """
    train = columns[~held_out]
    positive, negative = train[y[~held_out]], train[~y[~held_out]]
    mean = np.asarray(train.mean(axis=0)).ravel()
    spread = np.sqrt(np.maximum(np.asarray(train.multiply(train).mean(axis=0)).ravel() - mean**2, 0))
    difference = np.asarray(positive.mean(axis=0) - negative.mean(axis=0)).ravel()
    standing = np.divide(difference, spread, out=np.zeros_like(difference), where=spread > SILENT)
    ranked = np.argsort(-standing, kind="stable")[:MOST_MAIN]
    ranked = ranked[standing[ranked] > 0]
    main: list[int] = []
    best, held_out_f1 = 0.0, 0.0
    for k in range(1, len(ranked) + 1):
        chosen = columns[:, ranked[:k]].toarray()
        chosen /= np.maximum(chosen[~held_out].max(axis=0), SILENT)
        probe = LogisticRegression(C=PROBE_C, class_weight="balanced", max_iter=5000)
        # Cross-validated, since on its own training words every feature of a single word would raise the F1.
        guessed = cross_val_predict(probe, chosen[~held_out], y[~held_out], cv=FOLDS)
        f1 = float(f1_score(y[~held_out], guessed, zero_division=0.0))
        if main and f1 - best <= F1_GAIN:
            break
        main, best = ranked[:k].tolist(), f1
        predicted = probe.fit(chosen[~held_out], y[~held_out]).predict(chosen[held_out])
        held_out_f1 = float(f1_score(y[held_out], predicted, zero_division=0.0))
    return main, held_out_f1


def _held_out(classes: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """Which words are held out: the same share of every class, drawn at random."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(classes), dtype=np.bool_)
    for name in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == name))
        chosen[members[: round(TEST_SHARE * len(members))]] = True
    return chosen


def absorption_rows(
    letters: Sequence[Letter],
    n_words: int,
    min_f1: float,
    n_tokens: int | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> list[MetricRow]:
    """absorption_letters (how many of the letters with enough words can be judged), then the means of FIELDS over the
    letters that can, each with the same weight. Intervals are a bootstrap over letters."""
    usable = [letter for letter in letters if letter.usable]
    best = max((letter.probe_f1 for letter in letters), default=0.0)
    note = (
        f"{len(letters) - len(usable)} of {len(letters)} letters skipped: probe F1 below {min_f1:g} (the best is "
        f"{best:.2f}); {n_words} words in the vocabulary"
    )
    rows = [metric_row("absorption_letters", len(usable), n=len(letters), unit="letters", n_tokens=n_tokens, note=note)]
    judged = f"{sum(letter.n_words for letter in usable)} held-out words" if usable else f"no letter to judge; {note}"
    for metric, field in FIELDS.items():
        # The probe's F1 covers all letters, since it is why letters are skipped.
        of = letters if metric == "absorption_probe_f1" else usable
        values = [value for letter in of if (value := getattr(letter, field)) is not None]
        remark = "all letters with enough words" if of is letters else judged
        estimate = mean_interval(values, n_boot, seed)
        rows.append(metric_row(metric, estimate, unit="letters", n_tokens=n_tokens, note=remark))
    return rows


def _without(reason: str) -> list[MetricRow]:
    return [metric_row(m, None, n=0, unit="letters", note=reason) for m in ("absorption_letters", *FIELDS)]
