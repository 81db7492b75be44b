"""How fast the clauses of many rules are found in text: all rules together, beside each rule by itself.

    python scripts/bench_rules.py --config autointerp-demo/autointerp.toml

The text is that of the store's evidence, tokenised already, as often as it takes to have enough of it. The rules are
made from the store's rules by `patterns`, with a fixed seed: the words of their tables, in clauses of all kinds. "The
words known" is further text whose words have all stood in the text before, as most have in a long text. All times are
CPU seconds of one core.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from autointerp.config_file import load
from autointerp.rules.language.conditions import Clause
from autointerp.rules.language.forms import Forms
from autointerp.rules.language.matching import patterns_of, predicted_of
from autointerp.rules.language.parsing import clauses_of
from autointerp.rules.language.token_texts import Texts
from autointerp.rules.patterns import Rule
from autointerp.store import Store

Condition = dict[str, Any]
PATTERNS = (
    r"[A-Z][a-z]+", r"\d+", r"[0-9a-f]{2,}", r"\w+ing", r"[a-z]+_[a-z_]+", r"(?i)re\w+", r"[^\w\s]{3,}", r"\w{9,}",
    r"\p{Lu}\p{Ll}+", r"(un|in|im)\w+(ed|able)",
)  # fmt: skip
"""Regular expressions as an LLM might write them."""
LEAST = 1.0
"""A word is taken over from a table that raises the prediction by this much there, of 10."""
ALONE = 5
"""Rules that are tried by themselves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("autointerp-demo/autointerp.toml"))
    parser.add_argument("--rules", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    options = parser.parse_args()
    config = load(options.config)
    with Store.open(config.store.path, read_only=True) as store:
        texts = read_texts(store, options.tokens)
        rows = store.rows(
            "SELECT rule FROM explanations WHERE rule IS NOT NULL AND explainer = 'patterns' ORDER BY feature"
        )
    rules = made_rules([Rule.from_json(rule) for (rule,) in rows], texts, options.rules)
    n = sum(map(len, texts))
    print(f"{n:,} tokens in {len(texts):,} texts, {len(set().union(*texts)):,} different ones")
    n_conditions = sum(len(clause.conditions) for rule in rules for clause in rule)
    print(f"{len(rules)} rules, {sum(map(len, rules))} clauses, {n_conditions} conditions")
    tokenizer = Path(config.model.name) / "tokenizer.json"
    if tokenizer.exists():
        report("tokenising", n, seconds(lambda: tokenised(tokenizer, texts)))
    places = 0

    def all_forms() -> Forms:
        return Forms(patterns_of(clause for clauses in rules for clause in clauses))

    def together(forms: Forms | None = None) -> None:
        nonlocal places
        shared = Texts(texts, forms=all_forms() if forms is None else forms)
        places = sum(len(predicted_of(clauses, "max", shared)[0]) for clauses in rules)

    found = [seconds(together) for _ in range(2)]
    report(f"{len(rules)} rules together", n, min(found))
    print(f"{places:,} places found, {places / n / len(rules):.2%} of the tokens for each rule")
    forms = all_forms()
    further = [seconds(lambda: together(forms)) for _ in range(3)]
    report(f"{len(rules)} rules together, the words known", n, min(further[1:]))
    one = [seconds(lambda clauses=clauses: predicted_of(clauses, "max", Texts(texts))) for clauses in rules[:ALONE]]
    report(f"{len(rules)} rules, each by itself", n, sum(one) / len(one) * len(rules))
    print(f"together {sum(one) / len(one) * len(rules) / min(found):.1f} times as fast")


def read_texts(store: Store, tokens: int) -> list[list[str]]:
    """The windows of the evidence, again and again until there are enough tokens."""
    windows = [text for (text,) in store.rows("SELECT tokens[n_prefix + 1 :] FROM evidence.windows ORDER BY window_id")]
    texts, n = [], 0
    for window in cycle(window for window in windows if window):
        texts.append(window[: tokens - n])
        n += len(texts[-1])
        if n == tokens:
            return texts
    raise SystemExit("the evidence holds no text")


def made_rules(rules: Sequence[Rule], texts: Sequence[Sequence[str]], n: int) -> list[list[Clause]]:
    rng = random.Random(0)
    vocabulary = sorted({word for token in set().union(*texts) if (word := token.strip().lower()).isalpha()})
    words = [found for rule in rules if len(found := words_of(rule)) >= 3]
    return [clauses_of({"clauses": clauses(rng.choice(words), vocabulary, rng)})[0] for _ in range(n)]


def words_of(rule: Rule) -> list[str]:
    """The words on which the rule predicts most, the largest first."""
    rows = [
        (weight, key[0])
        for table in rule.tables
        if table.of[0] in ("token", "folded")
        for key, weight in table.weights.items()
    ]
    found = (token.strip().lower() for weight, token in sorted(rows, reverse=True) if weight >= LEAST)
    return list(dict.fromkeys(word for word in found if word and len(word) <= 64 and not any(map(str.isspace, word))))


def clauses(words: Sequence[str], vocabulary: Sequence[str], rng: random.Random) -> list[dict[str, Any]]:
    """One clause of its strongest words, and some of each other kind."""
    some = lambda n: rng.sample(words, min(n, len(words)))  # noqa: E731
    topic = rng.sample(vocabulary, 20)
    kinds: list[Callable[[], list[Condition]]] = [
        lambda: [{"token": some(20)}, {"left": {"word": some(5), "within": rng.randint(1, 32)}}],
        lambda: [{"word": some(20)}, {"topic": {"word": topic, "least": rng.randint(1, 3)}}],
        lambda: [{"word": some(20)}, {"not": {"topic": {"lemma": topic[:5]}}}, {"not": {"left": {"class": "number"}}}],
        lambda: [{"regex": rng.choice(PATTERNS)}, {"left": {"token": some(10), "within": rng.randint(1, 6)}}],
        lambda: [{"regex": rng.choice(PATTERNS)}, {"topic": {"word": topic[:5]}}, {"class": ["word", "piece"]}],
        lambda: [{"lemma": some(20)}],
        lambda: [{"prefix": [word[:4] for word in some(5)]}, {"suffix": ["s", "ed", "ing"]}],
        lambda: [{"class": "capitalised"}, {"starts": "line"}],
        lambda: [{"token": some(20)}, {"inside": rng.choice(["(", "[", "quote", "comment"])}],
        lambda: [{"word": some(10)}, {"left": {"regex": rng.choice(PATTERNS), "within": 2}}],
    ]
    chosen = [[{"word": list(words[:20])}], *(kind() for kind in rng.sample(kinds, 5))]
    return [{"strength": rng.randint(1, 10), "all": conditions} for conditions in chosen]


def tokenised(path: Path, texts: Sequence[Sequence[str]]) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    for text in texts:
        tokenizer.encode("".join(text), add_special_tokens=False)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def report(what: str, tokens: int, took: float) -> None:
    print(f"{what}: {took:.2f} s, {tokens / took:,.0f} tokens/s")


if __name__ == "__main__":
    main()
