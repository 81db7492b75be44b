"""What each metric of the report means, and what it does not say."""

from __future__ import annotations

from collections.abc import Iterable

MEANINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("fvu", "explained_variance", "mse", "cosine", "l2_ratio", "relative_bias", "error_norm_share"),
        "Reconstruction",
        "FVU is the squared error of the reconstruction over the variance of the activations around their mean: 0 "
        "is perfect, 1 no better than the mean; explained variance is 1 minus it. Where a few directions hold "
        "most of the variance, a low FVU says little about the rest. L2 ratio below 1 and a relative bias above 1 "
        "mean that the reconstruction is shrunk. None of these says whether what is lost matters to the model.",
    ),
    (
        ("l0", "l1", "dead_fraction", "dense_fraction", "input_gamma"),
        "Sparsity and use",
        "L0 is the mean number of features active on a token. Dead is the share never active on the tokens read "
        "here (a rare feature needs more text to be seen), dense the share active on more than a tenth of them.",
    ),
    (
        ("ce_", "delta_ce", "kl_", "loss_recovered"),
        "Loss when spliced in",
        "The model's next-token loss in nats with its activations replaced by the reconstruction, zeros or their "
        "mean. Delta is what the reconstruction costs. The recovered share against zeros flatters every "
        "dictionary, because zeros also take the mean away; read the one against the mean.",
    ),
    (
        ("decoder_",),
        "Redundancy",
        "How close each feature's decoder direction comes to another one's. Near-duplicates waste features; a "
        "high mean in a small space is partly chance.",
    ),
    (
        ("stability_",),
        "Stability",
        "Features of two dictionaries matched by decoder cosine: the mean cosine of matches and the share of .7 "
        "or above. Rows ending in random repeat it with directions drawn at random with the same mean and "
        "covariance; only the excess says that training found the same features again. A low value is common and "
        "does not make a feature wrong.",
    ),
    (
        ("robustness_",),
        "Robustness",
        "Each text's features, by their largest activation, before and after a small edit: weighted overlap "
        "(jaccard) and correlation. Rows ending in floor compare with another text instead. Upper case changes "
        "nearly every token and often what the model itself reads, so a drop is not the dictionary's alone.",
    ),
    (
        ("absorption_",),
        "Absorption",
        "On words by their first letter: how often the features that stand for the letter are silent while "
        "another feature carries the letter's direction. Only letters are judged that a dense probe finds; where "
        "the model does not know spelling there is no value. Main silent is the share of words that the letter's "
        "features miss for whatever reason: where it is high, a high absorption may only mean that there is no "
        "feature for the letter.",
    ),
    (
        ("probing", "token_probing"),
        "Probing",
        "AUROC on held-out examples of a logistic probe on the k most telling features, beside a dense probe on "
        "the raw activations and a floor from permuted labels (chance is .5). High at k = 1: one feature stands "
        "for the class. The dense probe says what can be read from the activations at all; sparse probes seldom "
        "reach it.",
    ),
)
"""(prefixes of the metrics, heading, text)."""

GENERAL = (
    "Intervals hold 95 % and come from resampling what the n column counts (documents, texts, features, letters); they "
    "do not cover another seed of training, another corpus or another model.",
    "A dash stands for a number that the data do not define; the note says why.",
)


def meanings_of(metrics: Iterable[str]) -> list[tuple[str, str]]:
    """(heading, text) for those of MEANINGS that one of the metrics belongs to."""
    names = list(metrics)
    return [(heading, text) for prefixes, heading, text in MEANINGS if any(n.startswith(prefixes) for n in names)]
