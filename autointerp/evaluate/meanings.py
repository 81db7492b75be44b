"""What each metric of the report means, and what it does not say."""

from __future__ import annotations

from collections.abc import Iterable

MEANINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("fvu", "explained_variance", "mse", "cosine", "l2_ratio", "relative_bias", "error_norm_share"),
        "Reconstruction",
        "FVU is the squared error of the reconstruction divided by the variance of the activations around their "
        "mean: 0 is perfect, and 1 is no better than the mean. Explained variance is 1 minus the FVU. If a few "
        "directions hold most of the variance, a low FVU says little about the others. An L2 ratio below 1 and a "
        "relative bias above 1 mean that the reconstruction is too small. None of these says whether the model "
        "needs what is lost.",
    ),
    (
        ("l0", "l1", "dead_fraction", "dense_fraction", "input_gamma"),
        "Sparsity and use",
        "L0 is the mean number of features active on a token. Dead is the share of features that were never active "
        "on the tokens read here; a rare feature shows only in more text. Dense is the share of features active on "
        "more than a tenth of the tokens.",
    ),
    (
        ("ce_", "delta_ce", "kl_", "loss_recovered"),
        "Loss when spliced in",
        "The model's next-token loss, in nats, when its activations are replaced by the reconstruction, by zeros or "
        "by their mean. Delta is the loss that the reconstruction costs. The share recovered relative to zeros "
        "flatters every dictionary, because zeros also remove the mean; read the share relative to the mean.",
    ),
    (
        ("decoder_",),
        "Redundancy",
        "How similar each feature's decoder direction is to the nearest other one. Near-duplicates waste features. "
        "In a small space a high mean is partly chance.",
    ),
    (
        ("stability_",),
        "Stability",
        "The features of two dictionaries are matched by decoder cosine: the mean cosine of the matches, and the "
        "share of matches at .7 or above. Rows ending in random do so with random directions of the same mean and "
        "covariance. Only what exceeds them says that training found the same features again. A low value is "
        "common and does not make a feature wrong.",
    ),
    (
        ("robustness_",),
        "Robustness",
        "How similar a text's features, by their largest activation, are before and after a small edit: weighted "
        "overlap (jaccard) and correlation. Rows ending in floor compare with another text instead. Upper case "
        "changes nearly every token, and often what the model itself understands, so not all of a drop is due to "
        "the dictionary.",
    ),
    (
        ("absorption_",),
        "Absorption",
        "For words by their first letter: how often the features for the letter are silent while another feature "
        "carries the letter's direction. Only letters that a dense probe finds are judged; if the model does not "
        "know spelling, there is no value. Main silent is the share of words that the letter's features miss for "
        "any reason. If it is high, a high absorption may only mean that there is no feature for the letter.",
    ),
    (
        ("probing", "token_probing"),
        "Probing",
        "AUROC, on held-out examples, of a logistic probe on the k most telling features, beside a dense probe on "
        "the raw activations and a floor from permuted labels (chance is .5). A high value at k = 1 means that one "
        "feature stands for the class. The dense probe shows what can be read from the activations at all; sparse "
        "probes seldom reach it.",
    ),
)
"""(prefixes of the metrics, heading, text)."""

GENERAL = (
    "Intervals are 95 % intervals, from resampling what the column n counts (documents, texts, features, letters). "
    "They do not cover another training seed, another corpus or another model.",
    "A dash means that the data do not define the number; the note says why.",
)


def meanings_of(metrics: Iterable[str]) -> list[tuple[str, str]]:
    """(heading, text) of each entry of MEANINGS that has one of the metrics."""
    names = list(metrics)
    return [(heading, text) for prefixes, heading, text in MEANINGS if any(n.startswith(prefixes) for n in names)]
