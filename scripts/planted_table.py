"""What every method finds of features whose truth is known, and what it costs: three tables in markdown, on stdout.

    python scripts/planted_table.py [--out X.md] [--quality 0.95] [--seed 0]

The planted world of the tests (a hand-set GPT-2 and SAE) is built in a temporary folder, harvested and scored through
the real pipeline, at the defaults of the configuration. In place of an LLM answers an oracle on loopback, which knows
what every label means and errs in 1 - quality of its answers. No network, no download; a few minutes on two cores.

The first table has mean scores on `report` of labels true / near miss / wrong, by scorer and kind of feature; they
are of the input, for `output` and `intervention` of the output. Below it, how many features of a kind each evidence
method found. The third has what one feature costs; the oracle's tokens are a quarter of the characters.

n/a: no label of that side, or no text to ask about (a dense feature is silent in no tile of 32 tokens).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.llm_server import LlmServer
from support.planted_bag_model import save_bag_model
from support.planted_features import QUALITIES, Planted
from support.planted_oracle import Oracle
from support.planted_scores import Means, job, means, score_and_measure
from support.planted_world import EXPLAINER, OUTPUT_EXPLAINER, PlantedWorld, build, corpus_words, insert_labels

from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.config_file import load
from autointerp.evidence import methods
from autointerp.explain import explainers, explaining
from autointerp.stages import gathering, labelling, pipeline
from autointerp.stages.session import Session
from autointerp.store import Store
from autointerp.terminal import Terminal

KINDS = ("single", "context", "position", "output", "polysemantic", "dense", "duplicate")
ON_INPUT = ("simulation", "detection", "fuzzing", "embedding", "surprisal", "generation")
ON_OUTPUT = ("output", "intervention")
METHOD_NAMES = tuple(method.name for method in methods.BUILT_IN)
DOCUMENTS = 360
DEFAULTS: dict[str, object] = {
    "corpus.context_length": 128,
    "harvest.context_tokens": 32,
    "harvest.top_contexts": 20,
    "harvest.sampled_contexts": 20,
}
"""Instead of the smaller numbers that the world's configuration has for the tests."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables here, too")
    parser.add_argument("--quality", type=float, default=0.95, help="share of the oracle's answers that are right")
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    args = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = "not-needed-on-loopback"
    with tempfile.TemporaryDirectory() as folder:
        text = tables(Path(folder) / "world", args.quality, args.seed)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


def tables(folder: Path, quality: float, seed: int) -> str:
    world = build(folder, seed, DOCUMENTS)
    config = load(world.config, DEFAULTS)
    terminal = Terminal().silent()
    pipeline.harvest(config, None, terminal)
    bag = save_bag_model(folder / "bag", corpus_words(seed, DOCUMENTS))
    with Store.open(Path(config.store.path)) as store:
        session = Session(config, terminal)
        for method in METHOD_NAMES:
            gathering.gather(session, store, config.sae[0], [method], labelling.describe_shape)
        lab = Lab(world, session, store, str(bag), quality)
        # One feature's costs first, while nothing has been asked yet.
        costs = lab.costs()
        found = lab.scores()
        return "\n\n".join([scores_table(world, found), found_table(world, store), costs])


@dataclass
class Lab:
    world: PlantedWorld
    session: Session
    store: Store
    language_model: str
    quality: float

    def scoring(self, url: str, *scorers: str, model: str = "judge") -> ScoreConfig:
        """At its defaults, but for the models."""
        return ScoreConfig(
            model=model, base_url=url, scorers=scorers, embedding_model="words", language_model=self.language_model
        )

    def scores(self) -> Means:
        insert_labels(self.store, [f for f in self.world.features if f.kind in KINDS])
        with LlmServer(Oracle(self.world.features, self.quality)) as server:
            score_and_measure(self.session, self.store, EXPLAINER, self.scoring(server.url, *ON_INPUT, "intruder"))
            score_and_measure(self.session, self.store, OUTPUT_EXPLAINER, self.scoring(server.url, *ON_OUTPUT))
        return means(self.store, self.world.features)

    # --- costs -------------------------------------------------------------------------------------------------------

    def costs(self) -> str:
        """Of one feature, an output feature, since it has labels of both sides."""
        rows = [["of", "method", "calls", "input tokens", "output tokens", "model forwards", "model tokens"]]
        n = len({feature for (feature,) in self.store.rows("SELECT feature FROM method_runs")})
        for method in METHOD_NAMES:
            ((forwards, tokens),) = self.store.rows(
                "SELECT sum(n_forwards), sum(n_tokens) FROM method_runs WHERE method = ?", [method]
            )
            rows.append(["evidence", method, "0", "0", "0", *(f"{value / n:,.1f}" for value in (forwards, tokens))])
        outputs = self.world.of_kind("output")
        only = outputs[0].feature
        insert_labels(
            self.store, [replace(f, labels={"truth": f.truth_label}, output_labels=_truth_of(f)) for f in outputs]
        )

        def scoring(explainer: str, scorer: str, model: str = "judge") -> Callable[[str], None]:
            def run(url: str) -> None:
                config = self.scoring(url, scorer, model=model)
                score_and_measure(self.session, self.store, explainer, config, str(only))

            return run

        for logprobs, method in (((), "numbers"), (("prompt",), "prompt_logprobs")):
            # What an endpoint can do is remembered by the model's name.
            spent = self.spent(scoring(EXPLAINER, "simulation", f"judge with {method}"), logprobs)
            rows.append(["scorer", f"simulation ({method})", *spent])
        for scorer in (*ON_INPUT[1:], "intruder"):
            rows.append(["scorer", scorer, *self.spent(scoring(EXPLAINER, scorer))])
        for scorer in ON_OUTPUT:
            rows.append(["scorer", scorer, *self.spent(scoring(OUTPUT_EXPLAINER, scorer))])
        # After the scorers, which would score what these find.
        explained: list[list[str]] = []
        for i, explainer in enumerate(one.name for one in explainers.BUILT_IN if not one.is_free):
            # A seed of its own, so that a composite pays for its parts.
            def explain(url: str, explainer: str = explainer, seed: int = 100 * i) -> None:
                made = ExplainConfig(explainer=explainer, model="oracle", base_url=url, seed=seed, shape_labels=False)
                judge = replace(self.scoring(url), seed=seed)
                asyncio.run(explaining.explain(job(self.store, str(only)), made, judge))

            explained.append(["explainer", explainer, *self.spent(explain)])
        return markdown([*rows[: 1 + len(METHOD_NAMES)], *explained, *rows[1 + len(METHOD_NAMES) :]])

    def spent(self, work: Callable[[str], None], logprobs: tuple[str, ...] = ()) -> list[str]:
        """What the work adds to the ledger and to the measurements; questions about what the endpoint can do are asked
        once in a run, whatever the number of features, and are left out."""
        before = self.totals()
        with LlmServer(Oracle(self.world.features, logprobs=logprobs)) as server:
            work(server.url)
        return [f"{after - start:,}" for start, after in zip(before, self.totals(), strict=True)]

    def totals(self) -> list[int]:
        ((*asked,),) = self.store.rows(
            "SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0) FROM llm_calls "
            "WHERE stage <> 'probe'"
        )
        ((*measured,),) = self.store.rows(
            "SELECT coalesce(sum(n_forwards), 0), coalesce(sum(n_tokens), 0) FROM measurements"
        )
        return [int(value) for value in (*asked, *measured)]


def _truth_of(feature: Planted) -> dict[str, str]:
    return {"truth": feature.output_labels["truth"]}


# --- what was found ---------------------------------------------------------------------------------------------------


def scores_table(world: PlantedWorld, found: Means) -> str:
    rows = [["scorer", *(f"{kind} ({len(world.of_kind(kind))})" for kind in KINDS)]]
    for scorer in (*ON_INPUT, *ON_OUTPUT):
        cells = [[found.get((scorer, kind, quality)) for quality in QUALITIES] for kind in KINDS]
        rows.append(
            [scorer, *(" / ".join(map(_number, cell)) if any(v is not None for v in cell) else "n/a" for cell in cells)]
        )
    rows.append(["intruder (no label)", *(_number(found.get(("intruder", kind, None))) for kind in KINDS)])
    return markdown(rows)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def found_table(world: PlantedWorld, store: Store) -> str:
    """How many features of each kind a method found, and by what sign."""
    checks: list[tuple[str, str, Callable[[Planted], bool]]] = []

    def lists(sql: str) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for feature, value in store.rows(sql):
            found.setdefault(feature, []).append(str(value).strip())
        return found

    shapes = lists("SELECT feature, kind FROM feature_shapes")
    words = lists("SELECT feature, word FROM input_words ORDER BY feature, rank")
    twins = lists("SELECT feature, neighbour FROM neighbours WHERE relation = 'decoder' AND rank = 0 AND value > 0.9")
    is_output = lists("SELECT feature, kurtosis > 4 * threshold FROM output_statistics")
    tied = lists("SELECT feature, word FROM mutual_information ORDER BY feature, rank")
    said = lists("SELECT feature, token FROM token_changes WHERE sign = 1 ORDER BY feature, rank")
    projected = lists("SELECT feature, token FROM vocab_projection WHERE sign = 1 ORDER BY feature, rank")
    needed = lists("SELECT feature, array_to_string(tokens, '') FROM pruned_contexts WHERE status = 'ok'")
    checks = [
        ("shape", "calls it token, position or dense", lambda f: shapes[f.feature][0] != "other"),
        (
            "words",
            "the first word is of its law",
            lambda f: words.get(f.feature, [""])[0] in {*f.law.word, *f.law.before},
        ),
        ("neighbours", "its twin by decoder cosine", lambda f: twins.get(f.feature) == [str(f.twin)]),
        ("output_statistic", "four times the threshold", lambda f: is_output[f.feature] == ["True"]),
        ("mutual_information", "the first words are those that it promotes", lambda f: _says(f, tied)),
        ("pruning", "every cut text is what its law needs", lambda f: _is_needed(f, needed.get(f.feature, []))),
        ("vocab_projection", "the first tokens are those that it promotes", lambda f: _says(f, projected)),
        ("token_change", "the first tokens are those that it promotes", lambda f: _says(f, said)),
    ]
    rows = [["evidence", "found if", *KINDS]]
    for method, sign, check in checks:
        counts = [(sum(map(check, world.of_kind(kind))), len(world.of_kind(kind))) for kind in KINDS]
        rows.append([method, sign, *(f"{n} of {of}" if n else "-" for n, of in counts)])
    return markdown(rows)


def _says(feature: Planted, found: dict[int, list[str]]) -> bool:
    n = len(feature.promoted)
    return n > 0 and set(found.get(feature.feature, [])[:n]) == set(feature.promoted)


def _is_needed(feature: Planted, texts: Sequence[str]) -> bool:
    """A word of the law, with the word before where the law asks for one, and nothing else."""
    law = feature.law
    if feature.kind == "position":
        return bool(texts) and all(len(text.split()) == 1 for text in texts)

    def fits(text: str) -> bool:
        *before, last = text.split()
        return (
            (not law.word or last in law.word)
            and len(before) == bool(law.before)
            and all(w in law.before for w in before)
        )

    return bool(texts) and all(map(fits, texts))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


if __name__ == "__main__":
    main()
