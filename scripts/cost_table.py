"""What 1,000 features cost, for several settings, by doing it: calls and tokens are counted, not reckoned.

    scripts/cost_table.py --store demo/demo.duckdb --tokenizer data/demo_model [--features 40]
                          [--prices 0.15/0.075/0.60 --prices 2.50/1.25/10.00] [--rpm 500]

For every setting some random live features are labelled and scored in a copy of the store, through a real server on
this machine, and the counts scaled to 1,000 features. The server answers like a reader with one idea (the strongest
tokens shown are what the feature is about), in the shortest form that the prompts allow; a model that thinks aloud
writes more. It caches prompts as OpenAI's servers do (blocks of 128 tokens from 1,024 on; "cached") and, for
comparison, as vLLM does (blocks of 16; "by 16"). Tokens are those of --tokenizer: a small vocabulary, as the demo
model's 4,096 pieces, gives more of them than a large one. Without it, four characters are a token.

--prices are US dollars per million tokens of input, cached input and output. They are examples to reckon with, not
those of any provider. The prompts and replies of a simulation by numbers are those of generated_logprobs. Beside each
setting stands what `--dry-run` says of it beforehand ("forecast"): calls, input tokens, and the cost at the first
prices without a cache.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.batch_server import BatchServer
from support.known_words import World
from support.prefix_cache import PrefixCache, by_fours

from autointerp.ask.job import Job
from autointerp.config import BudgetConfig, ExplainConfig, LlmConfig, PriceConfig, ScoreConfig
from autointerp.explain import explaining
from autointerp.llm.budget import Budget, cost_usd
from autointerp.score import scoring
from autointerp.store import Selection, Store

PER = 1000
STOP = {"stop_threshold": 0.7, "stop_width": 0.3}


@dataclass(frozen=True)
class Setting:
    name: str
    explain: dict[str, Any]
    score: dict[str, Any] = field(default_factory=dict)
    batch: bool = False


SETTINGS = (
    Setting("patterns, scored by their rule", {"explainer": "patterns"}),
    Setting("contexts; simulation, generated_logprobs", {"explainer": "contexts"}, {"method": "generated_logprobs"}),
    Setting("contexts; simulation, prompt_logprobs", {"explainer": "contexts"}, {"method": "prompt_logprobs"}),
    Setting("combined; detection, 5 a call", {}, {"scorers": ("detection",)}),
    Setting("combined; fuzzing, 5 a call", {}, {"scorers": ("fuzzing",)}),
    Setting("combined; detection, 10 a call", {}, {"scorers": ("detection",), "examples_per_call": 10}),
    Setting("combined; detection, stopping early", {}, {"scorers": ("detection",), **STOP}),
    Setting(
        "the same after the free pass", {"unless_patterns_above": 0.7}, {"scorers": ("detection",), **STOP}
    ),
    Setting(
        "the same by batch", {"unless_patterns_above": 0.7}, {"scorers": ("detection",), **STOP}, batch=True
    ),
)  # fmt: skip


# --- the reader ------------------------------------------------------------------------------------------------------


_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


def idea(body: dict[str, Any]) -> str:
    """A label: up to three of the tokens that are strongest where they stand."""
    lines = [line for line in body["messages"][-1]["content"].split("\n") if line.startswith("[")]
    pairs = [piece for line in lines for piece in json.loads(line) if isinstance(piece, list)]
    strong = Counter(token for token, n in pairs if isinstance(n, int) and n >= 5)
    return "the tokens " + ", ".join(repr(token) for token, _ in strong.most_common(3))


def named(label: str) -> list[str]:
    return [ast.literal_eval(found) for found in _QUOTED.findall(label)]


def predict(label: str, tokens: list[str]) -> list[int]:
    wanted = set(named(label))
    return [10 if token in wanted else 0 for token in tokens]


def choose(label: str, question: str, shown: list[Any]) -> bool:
    wanted = named(label)
    marked = [piece[0] for piece in shown if isinstance(piece, list)]
    if marked:
        return all(token in wanted for token in marked)
    return any(token in "".join(shown) for token in wanted)


# --- one setting -----------------------------------------------------------------------------------------------------


@dataclass
class Row:
    setting: Setting
    totals: Counter[str]
    cached_by_16: int
    forecast: Counter[str]
    seconds: float
    probes: int
    free: int


def copied(source: Path, folder: Path) -> Path:
    """A copy of the store. The reader's labels have a seed of their own, so none of those in it are theirs."""
    for path in source.parent.glob(f"{source.stem}.*"):
        if path.is_file():
            shutil.copy(path, folder / path.name)
    return folder / source.name


def measured(setting: Setting, source: Path, features: str, tokenize: Callable[[str], Sequence[object]],
             price: PriceConfig) -> Row:  # fmt: skip
    brain = World(predict, ("generated", "prompt"), label=idea, choose=choose)
    by_16 = PrefixCache(brain, block=16, smallest=0, tokenize=tokenize)
    cache = PrefixCache(by_16, tokenize=tokenize)
    with tempfile.TemporaryDirectory() as temporary, BatchServer(cache) as server:
        path = copied(source, Path(temporary))
        endpoint = {"model": "reader", "base_url": server.url, "seed": 101}
        explain = ExplainConfig(**{"explainer": "combined", "reply": "text", **endpoint, **setting.explain})
        score = ScoreConfig(**{**endpoint, **setting.score})
        llm = LlmConfig(requests_per_minute=1e6, max_connections=16, batch=setting.batch, prices={"reader": price},
                        batch_poll_seconds=0.05, batch_quiet_seconds=0.2)  # fmt: skip
        with Store.open(path) as store:
            row = store.dictionary()
            harvest_id = store.current_harvest(row.dictionary_id)
            assert harvest_id is not None
            job = Job(store, row.dictionary_id, harvest_id, store.begin_run("cost table", {}, {}),
                      Selection(features=features), llm, Budget(BudgetConfig()))  # fmt: skip
            asked = replace(job, llm=replace(llm, prices={"reader": price.in_batch() if setting.batch else price}))
            labels = explaining.forecast_explain(asked, explain, score)
            planned = explaining.planned_labels(asked, explain, score)
            scores = scoring.forecast_score(asked, explain.explainer, score, planned=planned)
            told = Counter(calls=labels.likely_calls + scores.likely_calls)
            told.update(most=labels.calls + scores.calls, input=labels.input_tokens + scores.input_tokens)
            told.update(microdollars=round(1e6 * ((labels.likely_usd or 0.0) + (scores.likely_usd or 0.0))))
            begun = time.perf_counter()
            asyncio.run(explaining.explain(job, explain, score))
            asyncio.run(scoring.score(job, explain.explainer, score))
            seconds = time.perf_counter() - begun
            probes, read = store.rows(
                "SELECT count(*) FILTER (stage = 'probe'), coalesce(sum(input_tokens), 0) FROM llm_calls "
                "WHERE run_id = ?",
                [job.run_id],
            )[0]
        assert read == cache.totals["input"], "what is on record is what was sent"
    return Row(setting, cache.totals, by_16.totals["cached"], told, seconds, int(probes), labels.free)


def chosen(source: Path, n: int) -> str:
    with Store.open(source, read_only=True) as store:
        row = store.dictionary()
        found = store.selected_features(row.dictionary_id, Selection(where="status = 'live'", random=n, seed=0))
    return ",".join(map(str, found))


# --- the table -------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], n: int, prices: Sequence[PriceConfig], rpm: float) -> str:
    heads = ["setting", "calls", "input, M", "cached", "by 16", "output, M"]
    for price in prices:
        heads.append(f"$ at {price.input:g}/{price.cached_input:g}/{price.output:g}: no cache, cached, by 16")
    heads += [f"minutes at {rpm:g}/min", "forecast: calls, input M, $"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        total, scale = row.totals, PER / n
        read = max(1, total["input"])
        cells = [
            row.setting.name,
            f"{total['calls'] * scale:,.0f}",
            f"{total['input'] * scale / 1e6:.2f}",
            f"{100 * total['cached'] / read:.0f} %",
            f"{100 * row.cached_by_16 / read:.0f} %",
            f"{total['output'] * scale / 1e6:.2f}",
        ]
        for price in prices:
            paid = price.in_batch() if row.setting.batch else price
            costs = [
                cost_usd(paid, total["input"], cached, total["output"]) * scale
                for cached in (0, total["cached"], row.cached_by_16)
            ]
            cells.append(", ".join(f"{usd:.2f}" for usd in costs))
        cells.append("up to a day" if row.setting.batch else f"{total['calls'] * scale / rpm:,.0f}")
        told = row.forecast
        usd = told["microdollars"] / 1e6 * scale
        calls = f"{told['calls'] * scale:,.0f}"
        if told["most"] > told["calls"]:
            calls += f" (at most {told['most'] * scale:,.0f})"
        cells.append(f"{calls}, {told['input'] * scale / 1e6:.2f}, {usd:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parsed_prices(text: str) -> PriceConfig:
    read, cached, written = (float(part) for part in text.split("/"))
    return PriceConfig(input=read, cached_input=cached, output=written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("autointerp-demo/demo.duckdb"))
    parser.add_argument("--tokenizer", help="folder or hub name; default: four characters are a token")
    parser.add_argument("--features", type=int, default=40)
    parser.add_argument("--prices", type=parsed_prices, action="append")
    parser.add_argument("--rpm", type=float, default=500.0)
    parser.add_argument("--only", default="", help="settings whose name holds this")
    args = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = "none"
    prices = args.prices or [parsed_prices("0.15/0.075/0.60"), parsed_prices("2.50/1.25/10.00")]
    tokenize: Callable[[str], Sequence[object]] = by_fours
    if args.tokenizer:
        from transformers import AutoTokenizer

        reader = AutoTokenizer.from_pretrained(args.tokenizer)
        tokenize = lambda text: reader(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    features = chosen(args.store, args.features)
    n = features.count(",") + 1
    rows = []
    for setting in SETTINGS:
        if args.only in setting.name:
            rows.append(measured(setting, args.store, features, tokenize, prices[0]))
            print(f"{setting.name}: {rows[-1].seconds:.0f} s, {dict(rows[-1].totals)}, {rows[-1].free} free, "
                  f"{rows[-1].probes} probes", file=sys.stderr)  # fmt: skip
    characters = sum(row.totals["characters"] for row in rows)
    tokens = sum(row.totals["input"] for row in rows)
    print(f"{n} features, scaled to {PER:,}; {characters / max(1, tokens):.2f} characters a token\n")
    print(table(rows, n, prices, args.rpm))


if __name__ == "__main__":
    main()
