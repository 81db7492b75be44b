"""k-sparse probing: how well do a few features tell the classes of texts or words apart?

The probe is a logistic regression on the k features whose means differ most between the classes, each feature in units
of its mean activation where active, measured on the training part (Kantamneni et al. 2025, arXiv 2502.16681). Its AUROC
on held-out examples is reported beside

    dense            a logistic regression on the raw activations, with a regularisation chosen by cross-validation:
                     what a probe can do without a dictionary
    dense_pca        a logistic regression on the activations' first principal components
    shuffled_labels  the k-sparse probe (largest k) trained on permuted labels, as the mean of PERMUTATIONS such probes:
                     the floor, about .5 (its interval does not cover how much the permutations differ)

A high value at k = 1 means that one feature stands for the class. If only k = 16 comes near the dense probe, the class
is spread over features. A sparse probe usually stays below the dense one; that is not a fault of its features.
Intervals resample the held-out texts or sentences (percentile bootstrap, 95 %) and keep the trained probes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from autointerp.config import CorpusConfig
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import bos_prefix
from autointerp.errors import InputError
from autointerp.evaluate.labelled_texts import FEWEST_PER_CLASS, check_labels
from autointerp.evaluate.metric_rows import MetricRow, metric_row
from autointerp.evaluate.pooled import BATCH_TOKENS, pooled
from autointerp.model.hooks import Hookpoint
from autointerp.model.input_limits import spelled_unreadable
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import activation_batches, eligible
from autointerp.progress import Adding, Counting, uncounted
from autointerp.records import Window
from autointerp.sae.sae import Sae
from autointerp.stats import Estimate

KS = (1, 2, 5, 16)
TEST_SHARE = 0.3
N_TAGS = 10
MOST_WORDS = 20_000
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
COMPONENTS = 32
PERMUTATIONS = 5

Scores = NDArray[np.float64]


def k_sparse_probing(
    loaded: LoadedModel,
    sae: Sae,
    hookpoint: Hookpoint,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    name: str = "probing",
    ks: Sequence[int] = KS,
    corpus: CorpusConfig | None = None,
    batch_tokens: int = BATCH_TOKENS,
    test_share: float = TEST_SHARE,
    seed: int = 0,
    n_boot: int = 1000,
    counting: Counting = uncounted,
) -> list[MetricRow]:
    """AUROC rows <name>_max_k<k> and <name>_mean_k<k> (features pooled over the text's tokens by their maximum or
    mean), <name>_dense and <name>_dense_pca (on the mean activation), <name>_shuffled_labels, and <name>_majority:
    the accuracy of always naming the more frequent class. `name` must begin with probing, by which the report finds it.

    A text is read up to `corpus.context_length` tokens. A text without a token that counts is left out. Raises
    InputError when texts and labels differ in number, a label is not 0 or 1, or a class is too small.
    """
    if len(texts) != len(labels):
        raise InputError(f"{len(texts)} texts and {len(labels)} labels")
    if not set(labels) <= {0, 1}:
        raise InputError(f"labels must be 0 or 1, not {sorted(set(labels) - {0, 1})[:5]}")
    with counting(f"reading the texts of {name}", len(texts), "texts") as update:
        read = pooled(loaded, sae, hookpoint, texts, corpus or CorpusConfig(), batch_tokens, Adding(update))
    kept = np.flatnonzero(read.n_tokens > 0)
    y = np.asarray(labels, dtype=np.int64)[kept]
    check_labels(y.tolist(), "the labelled text")
    train, test = train_test_split(np.arange(len(kept)), test_size=test_share, random_state=seed, stratify=y)
    features = {"max": read.maximum[kept], "mean": read.mean[kept]}
    sparse = [(pooling, k) for pooling in features for k in _ks(ks, sae)]
    scores: dict[str, Scores] = {}
    with counting(f"training the probes of {name}", len(sparse) + 2, "probes") as update:
        for pooling, k in sparse:
            scores[f"{pooling}_k{k}"] = sparse_probe(features[pooling], y, train, test, k)
            update(len(scores))
        scores |= dense_probes(read.raw_mean[kept], y, train, test, seed)
        update(len(scores))
    counts = group_counts(np.arange(len(test)), n_boot, seed)
    aurocs = {probe: weighted_auroc(score, y[test], counts) for probe, score in scores.items()}
    aurocs["shuffled_labels"] = _floor(features["max"], y, train, test, max(_ks(ks, sae)), counts, [seed, 0])
    n_tokens = int(read.n_tokens.sum())
    note = f"AUROC; trained on {len(train)} texts; {int(read.cut.sum())} texts cut at the context's end"
    rows = [_row(f"{name}_{probe}", found, len(test), "texts", n_tokens, note) for probe, found in aurocs.items()]
    return [*rows, _majority(name, y[test], "texts", n_tokens)]


def token_probing(
    loaded: LoadedModel,
    sae: Sae,
    hookpoint: Hookpoint,
    sentences: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    *,
    name: str = "token_probing",
    ks: Sequence[int] = KS,
    n_tags: int = N_TAGS,
    most_words: int = MOST_WORDS,
    corpus: CorpusConfig | None = None,
    batch_tokens: int = BATCH_TOKENS,
    test_share: float = TEST_SHARE,
    seed: int = 0,
    n_boot: int = 1000,
    counting: Counting = uncounted,
) -> list[MetricRow]:
    """k-sparse probing of words, by the features at each word's last token: one-vs-rest for the `n_tags` most frequent
    tags.

    Rows <name>_k<k>, _dense, _dense_pca and _shuffled_labels are means over the tags. <name>_k1 and _dense also have a
    row for each tag, in brackets. Training and held-out words come from different sentences, and intervals resample
    sentences. A sentence is its words joined by spaces; words beyond `corpus.context_length` tokens are left out.
    Sentences are read in a random order until there are `most_words` words. Raises InputError when words and tags
    differ in number, no tag has FEWEST_PER_CLASS words in both parts of the split, or the tokenizer cannot say where in
    the text its tokens are.
    """
    if [len(words) for words in sentences] != [len(found) for found in tags]:
        raise InputError("sentences and their tags are not equally long")
    order = np.random.default_rng(seed).permutation(len(sentences))
    total = np.cumsum([len(sentences[i]) for i in order])
    order = order[: int(np.searchsorted(total, most_words)) + 1]
    chosen_sentences = [sentences[i] for i in order]
    with counting(f"reading the sentences of {name}", len(order), "sentences") as update:
        read = word_vectors(
            loaded, sae, hookpoint, chosen_sentences, corpus or CorpusConfig(), batch_tokens, Adding(update)
        )
    sentence, word, vectors, codes, n_tokens = read
    tag_of_word = np.array([tags[order[s]][w] for s, w in zip(sentence, word)], dtype=np.str_)
    # The sentences are in a random order already, so the first part of them is held out.
    is_test = sentence < round(test_share * len(order))
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    chosen = [tag for tag, _ in Counter(tag_of_word.tolist()).most_common(n_tags)]
    chosen = [tag for tag in chosen if _enough(tag_of_word[train] == tag) and _enough(tag_of_word[test] == tag)]
    if not chosen:
        raise InputError(
            f"no tag has {FEWEST_PER_CLASS} words and as many others in both parts of the {len(order)} sentences"
        )
    counts = group_counts(sentence[test], n_boot, seed)
    found: dict[str, list[NDArray[np.float64]]] = {}
    with counting(f"training the probes of {name}", len(chosen), "tags") as update:
        for i, tag in enumerate(chosen):
            y = (tag_of_word == tag).astype(np.int64)
            scores = {f"k{k}": sparse_probe(codes, y, train, test, k) for k in _ks(ks, sae)}
            scores |= dense_probes(vectors, y, train, test, seed)
            for probe, score in scores.items():
                found.setdefault(probe, []).append(weighted_auroc(score, y[test], counts))
            floor = _floor(codes, y, train, test, max(_ks(ks, sae)), counts, [seed, i])
            found.setdefault("shuffled_labels", []).append(floor)
            update(i + 1)
    note = f"AUROC, mean over {len(chosen)} tags one-vs-rest; trained on {len(train)} words of other sentences"
    rows = [
        _row(f"{name}_{probe}", np.mean(values, axis=0), len(test), "words", n_tokens, note)
        for probe, values in found.items()
    ]
    for i, tag in enumerate(chosen):
        positives = f"AUROC; {int((tag_of_word[test] == tag).sum())} held-out words have the tag"
        rows += [
            _row(f"{name}_{probe} [{tag}]", found[probe][i], len(test), "words", n_tokens, positives)
            for probe in ("k1", "dense")
            if probe in found
        ]
    return rows


def word_vectors(
    loaded: LoadedModel,
    sae: Sae,
    hookpoint: Hookpoint,
    sentences: Sequence[Sequence[str]],
    corpus: CorpusConfig,
    batch_tokens: int,
    on_sentences: Callable[[int], object] = lambda n: None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], csr_matrix, int]:
    """(sentence [n], word in it [n], activations [n, d_in], features [n, d_sae], tokens read), all at each word's last
    token, ordered by sentence and word. Empty words, and words whose last token does not count, are left out."""
    if not loaded.tokenizer.is_fast:
        raise InputError(
            "probing words needs a tokenizer that says where in the text its tokens are (a tokenizer.json)"
        )
    prefix = bos_prefix(loaded.tokenizer, corpus)
    excluded = TokenText(loaded.tokenizer).excluded_ids(corpus.exclude_tokens)
    room = corpus.context_length - len(prefix)
    windows, places = [], []
    for number, words in enumerate(sentences):
        encoded = loaded.tokenizer(
            " ".join(words), add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        ends = np.array([end for _, end in encoded["offset_mapping"]], dtype=np.int64)
        word_ends = np.cumsum([len(word) + 1 for word in words]) - 1
        # The first token that reaches the word's end. Words inside one token share it.
        tokens = np.searchsorted(ends, word_ends)
        ids = list(encoded["input_ids"][:room])
        for why in spelled_unreadable(loaded.model, loaded.tokenizer, [ids]).values():
            raise InputError(f"sentence {number} {why}; take it out of the sentences")
        here = [(w, int(t)) for w, t in enumerate(tokens) if words[w].strip() and t < len(ids)]
        here = [(w, t) for w, t in here if ids[t] not in excluded]
        if here:
            windows.append(Window(str(number), 0, "report", [*prefix, *ids], len(prefix)))
            places.append((number, here))
    sentence = np.array([number for number, here in places for _ in here], dtype=np.int64)
    word = np.array([w for _, here in places for w, _ in here], dtype=np.int64)
    starts = np.cumsum([0, *(len(here) for _, here in places)])
    vectors = torch.empty(len(word), sae.d_in, device=sae.W_enc.device)
    n_tokens = 0
    for batch, activations in activation_batches(loaded, hookpoint, windows, batch_tokens):
        n_tokens += int(eligible(batch, excluded).sum())
        on_sentences(len(batch.indices))
        for row, index in enumerate(batch.indices):
            at = torch.tensor([len(prefix) + t for _, t in places[index][1]], device=activations.device)
            vectors[starts[index] : starts[index + 1]] = activations[row, at].to(vectors)
    codes = sae.encode_sparse(vectors)
    place = (codes.rows.cpu().numpy(), codes.features.cpu().numpy())
    features = csr_matrix((codes.values.cpu().numpy(), place), shape=(len(word), sae.d_sae))
    return sentence, word, vectors.cpu().numpy(), features, n_tokens


def sparse_probe(
    features: csr_matrix, y: NDArray[np.int64], train: NDArray[np.int64], test: NDArray[np.int64], k: int
) -> Scores:
    """Scores of the examples `test` by a logistic regression on the k best of `features` [n, m]. The features are
    chosen, and the regression is trained, on the examples `train` with labels `y` (0 or 1)."""
    x = features[train]
    active = np.maximum(x.getnnz(axis=0), 1)
    scale = np.asarray(x.sum(axis=0)).ravel() / active
    difference = np.asarray(x[y[train] == 1].mean(axis=0) - x[y[train] == 0].mean(axis=0)).ravel()
    standing = np.abs(np.divide(difference, scale, out=np.zeros_like(difference), where=scale > 0))
    best = np.argsort(-standing, kind="stable")[:k]
    unit = np.maximum(scale[best], 1e-12)
    probe = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000)
    probe.fit(x[:, best].toarray() / unit, y[train])
    return np.asarray(probe.decision_function(features[test][:, best].toarray() / unit), dtype=np.float64)


def _floor(
    features: csr_matrix,
    y: NDArray[np.int64],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    k: int,
    counts: NDArray[np.float32],
    seed: list[int],
) -> NDArray[np.float64]:
    """The AUROCs [b] of `weighted_auroc`, averaged over PERMUTATIONS sparse probes of permuted labels. A single such
    probe may by chance lean to one side on all held-out examples."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(PERMUTATIONS):
        permuted = y.copy()
        permuted[train] = rng.permutation(y[train])
        found.append(weighted_auroc(sparse_probe(features, permuted, train, test, k), y[test], counts))
    return np.asarray(np.mean(found, axis=0))


def dense_probes(
    vectors: NDArray[np.float32], y: NDArray[np.int64], train: NDArray[np.int64], test: NDArray[np.int64], seed: int
) -> dict[str, Scores]:
    """Scores of the examples `test` by the probes dense and dense_pca on `vectors` [n, d]."""
    logistic = LogisticRegression(class_weight="balanced", max_iter=2000)
    components = min(COMPONENTS, vectors.shape[1], len(train) // 2)
    pca = PCA(components, svd_solver="covariance_eigh", random_state=seed)
    # PCA of centred activations, not of standardised ones, since it is to find directions of large variance.
    pipelines = {
        "dense": make_pipeline(StandardScaler(), logistic),
        "dense_pca": make_pipeline(pca, StandardScaler(), logistic),
    }
    folds = int(min(3, np.bincount(y[train], minlength=2).min()))
    found = {}
    for name, pipeline in pipelines.items():
        search = GridSearchCV(pipeline, {"logisticregression__C": STRENGTHS}, scoring="roc_auc", cv=folds)
        search.fit(vectors[train], y[train])
        found[name] = np.asarray(search.decision_function(vectors[test]), dtype=np.float64)
    return found


def group_counts(groups: NDArray[np.int64], n_boot: int, seed: int) -> NDArray[np.float32]:
    """How often each of n examples counts, [1 + n_boot, n]: once in the first row, then in resamples of `groups`."""
    _, index = np.unique(groups, return_inverse=True)
    n_groups = int(index.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_boot)
    return np.concatenate([np.ones((1, n_groups)), drawn]).astype(np.float32)[:, index]


def weighted_auroc(scores: Scores, y: NDArray[np.int64], counts: NDArray[np.float32]) -> NDArray[np.float64]:
    """The AUROC of `scores` [n] for labels `y` [n] under each row of `counts` [b, n]: [b]. Ties count half. NaN where a
    row leaves out one of the classes."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    found = np.empty(len(counts))
    positive = (y[order] == 1).astype(np.float64)
    # In blocks of resamples, since float64 copies of all of them could take gigabytes.
    for begin in range(0, len(counts), 100):
        weights = counts[begin : begin + 100][:, order].astype(np.float64)
        up = np.add.reduceat(weights * positive, starts, axis=1)
        down = np.add.reduceat(weights * (1 - positive), starts, axis=1)
        pairs = up.sum(1) * down.sum(1)
        above = (up * (down.cumsum(1) - down / 2)).sum(1)
        found[begin : begin + 100] = np.divide(above, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return found


def _row(metric: str, aurocs: NDArray[np.float64], n: int, unit: str, n_tokens: int, note: str) -> MetricRow:
    """The row of an AUROC with its interval. `aurocs` holds the AUROC itself, then those of the resamples."""
    resampled = aurocs[1:][~np.isnan(aurocs[1:])]
    value = None if np.isnan(aurocs[0]) else float(aurocs[0])
    low, high = None, None
    if value is not None and len(resampled) * 2 > len(aurocs) - 1:
        low, high = (float(end) for end in np.percentile(resampled, [2.5, 97.5]))
    return metric_row(metric, Estimate(value, low, high, n), split="test", unit=unit, n_tokens=n_tokens, note=note)


def _majority(name: str, y: NDArray[np.int64], unit: str, n_tokens: int) -> MetricRow:
    share = float(max(y.mean(), 1 - y.mean()))
    note = "accuracy of always naming the more frequent class; its AUROC is .5"
    return metric_row(f"{name}_majority", share, split="test", n=len(y), unit=unit, n_tokens=n_tokens, note=note)


def _ks(ks: Sequence[int], sae: Sae) -> list[int]:
    """The different values of `ks` that the dictionary has enough features for."""
    found = sorted({k for k in ks if 1 <= k <= sae.d_sae})
    if not found:
        raise InputError(f"probing: no k of {list(ks)} lies between 1 and the dictionary's {sae.d_sae} features")
    return found


def _enough(members: NDArray[np.bool_]) -> bool:
    return bool(members.sum() >= FEWEST_PER_CLASS and (~members).sum() >= FEWEST_PER_CLASS)
