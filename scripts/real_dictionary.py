"""Trains dictionaries of a real model on ever more tokens and measures what that brings: a table in markdown on stdout.

    python scripts/real_dictionary.py [--out FOLDER] [--layers 14] [--tokens 1,10] [--k 16] [--text PROSE.jsonl]

The model is SmolLM2-135M-Instruct and the text English, both from packages (see `autointerp demo --real`); the figures
in docs/measured.md are with some more prose, given by --text. The model reads the text once and keeps its activations
in FOLDER/activations (7 GB for 6M vectors of one layer). All dictionaries of a layer learn from these, so training on
10M vectors goes over 6M of them more than once. Then one harvest takes the evidence of all, `evaluate`
measures them on text that they were not trained on, and rules label and score as many random features of each. Seeds
are fixed. Every step resumes, so the same command goes on where it was stopped; a configuration that stands in FOLDER
is not written again. It takes some two hours on two idle cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from autointerp.cli.demo_config import toml_path
from autointerp.means import mean_interval
from autointerp.real_model.cache_folder import default_cache
from autointerp.real_model.english_text import english_text
from autointerp.real_model.model_folder import model_folder
from autointerp.terminal import Terminal

CONTEXT = 128
MILLION = 1_000_000
TRAIN = """
[train]
tokens = {tokens}
cache = "activations"
cache_vectors = {vectors}
precision = "bfloat16"
"""
FOR_FEW = """lr = 0.0007
warmup_steps = 500
dead_after = 500000
"""
"""For k below 16: a feature is active so seldom that after the usual 50,000 vectors rare ones would count as dead."""
LABELLING = """
[harvest]
sampled_contexts = 60

[explain]
explainer = "patterns"

[score]
scorers = ["simulation"]
"""
EVALUATED = ("--tokens", "100000", "--splice-tokens", "8000")
METRICS = {"fvu": "FVU", "l0": "L0", "delta_ce": "delta CE", "loss_recovered_mean": "loss recovered"}
"""Of the report split, which no dictionary was trained on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("real-dictionary"))
    parser.add_argument("--cache", type=Path, default=None, help="where model and text are kept")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="English texts besides those of the package")
    parser.add_argument("--layers", default="14")
    parser.add_argument("--tokens", default="1,10", help="training vectors of each dictionary, in millions")
    parser.add_argument("--vectors", type=int, default=6 * MILLION, help="different vectors of a layer that are kept")
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--corpus-tokens", type=int, default=2 * MILLION, help="tokens that the harvest reads")
    parser.add_argument("--label", type=int, default=300, help="random features of each dictionary that rules label")
    args = parser.parse_args()
    cache = (default_cache() if args.cache is None else args.cache).absolute()
    model, text = model_folder(cache, Terminal()), english_text(cache, args.text, Terminal())
    out, layers = args.out.absolute(), [int(layer) for layer in args.layers.split(",")]
    sizes = sorted((int(size) for size in args.tokens.split(",")), reverse=True)
    out.mkdir(parents=True, exist_ok=True)
    head = head_of(model, text)
    for size in sizes:
        saes = "".join(sae_table(name_of(layer, args.k, size), layer, args.features, args.k) for layer in layers)
        train = TRAIN.format(tokens=size * MILLION, vectors=args.vectors) + (FOR_FEW if args.k < 16 else "")
        name = f"train-k{args.k}-{size}m"
        run("train", written(out / f"{name}.toml", head + saes + train + store_table(name)))
    made = [(name_of(layer, args.k, size), layer) for layer in layers for size in sorted(sizes)]
    names = [name for name, _ in made]
    saes = "".join(read_table(out, name, layer) for name, layer in made)
    text_read = f"max_tokens = {args.corpus_tokens}\n"
    config = written(out / "autointerp.toml", head + text_read + saes + LABELLING + store_table("real"))
    run("harvest", config)
    for name in names:
        if not is_evaluated(out / "real.duckdb", name):
            run("evaluate", config, "--structural-only", *EVALUATED, "--dictionary", name)
        run("run", config, "--dictionary", name, "--random", str(args.label))
    print(table(out / "real.duckdb", names))


def name_of(layer: int, k: int, size: int) -> str:
    return f"layer{layer}-k{k}-{size}m"


def head_of(model: Path, text: Path) -> str:
    """[model] and the beginning of [corpus]. A dtype is named, so that the same is measured on every machine."""
    return (
        f'[model]\nname = {toml_path(str(model))}\ndtype = "bfloat16"\n'
        f'[corpus]\nsource = {toml_path(str(text))}\nid_field = "id"\ncontext_length = {CONTEXT}\n'
    )


def sae_table(name: str, layer: int, features: int, k: int) -> str:
    return (
        f'[[sae]]\nname = "{name}"\nhookpoint = "model.layers.{layer}"\narchitecture = "topk"\n'
        f"d_sae = {features}\nk = {k}\n"
    )


def read_table(out: Path, name: str, layer: int) -> str:
    """The table of a dictionary that was trained by another configuration."""
    return (
        f'[[sae]]\nname = "{name}"\nhookpoint = "model.layers.{layer}"\npath = {toml_path(str(out / "sae" / name))}\n'
    )


def store_table(name: str) -> str:
    return f'\n[store]\npath = "{name}.duckdb"\n'


def written(path: Path, text: str) -> Path:
    """The configuration file; one that is there stays as it is."""
    if not path.exists():
        path.write_text(text, encoding="utf-8")
    return path


def run(command: str, config: Path, *options: str) -> None:
    """One command of autointerp; this script ends where it fails."""
    line = [sys.executable, "-m", "autointerp", command, "--config", str(config), *options]
    print("$ autointerp", *line[3:], file=sys.stderr, flush=True)
    done = subprocess.run(line, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def rows(store: Path, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(store), read_only=True) as con:
        return con.execute(sql, list(values)).fetchall()


def is_evaluated(store: Path, name: str) -> bool:
    return bool(rows(store, "SELECT 1 FROM sae_metrics JOIN dictionaries USING (dictionary_id) WHERE name = ?", [name]))


def table(store: Path, names: Sequence[str]) -> str:
    """One row for each dictionary."""
    heads = [*METRICS.values(), "dead", "live: tokens (median)", "places (median)", "labelled", "natural correlation"]
    lines = [["dictionary", *heads, "precision", "recall", "hold"]]
    lines += [[name, *measured(store, name), *density(store, name), *labels(store, name)] for name in names]
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def measured(store: Path, name: str) -> list[str]:
    sql = (
        "SELECT metric, value, ci_low, ci_high FROM sae_metrics JOIN dictionaries USING (dictionary_id) "
        "WHERE name = ? AND split = 'report'"
    )
    found = {metric: figures for metric, *figures in rows(store, sql, [name])}
    shown = [interval(*found[metric]) for metric in METRICS]
    return [*shown, share(found["dead_fraction"][0])]


def density(store: Path, name: str) -> list[str]:
    sql = (
        "SELECT median(token_density), median(density) FROM features JOIN dictionaries USING (dictionary_id) "
        "WHERE name = ? AND features.status = 'live'"
    )
    ((tokens, places),) = rows(store, sql, [name])
    return [f"{tokens:.2%}", f"{places:.2%}"]


def labels(store: Path, name: str) -> list[str]:
    sql = "SELECT score, precision, recall, label_from FROM labels WHERE name = ? AND score IS NOT NULL"
    found = rows(store, sql, [name])
    score, precision, recall = ([row[i] for row in found if row[i] is not None] for i in range(3))
    of_score, of_precision, of_recall = (mean_interval(values) for values in (score, precision, recall))
    shown = [interval(of.value, of.low, of.high) for of in (of_score, of_precision, of_recall)]
    return [str(len(found)), *shown, share(sum(row[3] is not None for row in found) / max(1, len(found)))]


def interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def share(value: float) -> str:
    return f"{value:.1%}"


if __name__ == "__main__":
    main()
