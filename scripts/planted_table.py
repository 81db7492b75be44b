"""What every method finds of features whose truth is known, and what it costs: four tables in markdown, on stdout.

    python scripts/planted_table.py [--out X.md] [--quality 0.95] [--seed 0]

The planted world of the tests (a hand-set GPT-2 and SAE) is built in a temporary folder, harvested and scored through
the real pipeline, at the defaults of the configuration, except that the harvest keeps more contexts. In place of an LLM
answers an oracle on loopback, which knows what every label means and errs in 1 - quality of its answers. No network, no
download; a few minutes on two cores.

The first table has mean scores on `report` of labels true / near miss / wrong, by scorer and kind of feature; they
are of the input, for `output` and `intervention` of the output. The second has what the labels are worth on ordinary
text, by simulation and detection over three times as many contexts (score.contexts = 30), which the comparison with a
control takes: means of the values that are defined, and shares of the labels. Then comes how many features of a kind
each evidence method found. The last has what one feature costs; the oracle's tokens are a quarter of the characters.

n/a: no label of that side, no text to ask about (a dense feature is silent in no tile of 32 tokens), or no value
(precision where there was no false alarm or no claim).
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
from support.planted_features import GRADES, QUALITIES, Planted
from support.planted_oracle import Oracle
from support.planted_scores import Means, job, means, score_and_measure
from support.planted_world import EXPLAINER, OUTPUT_EXPLAINER, PlantedWorld, build, corpus_words, insert_labels

from autointerp.config import ExplainConfig, ScoreConfig
from autointerp.config_file import load
from autointerp.evidence import methods
from autointerp.explain import explainers, explaining
from autointerp.score.controls import NEIGHBOUR
from autointerp.score.scoring import score
from autointerp.stages import gathering, labelling, pipeline
from autointerp.stages.session import Session
from autointerp.store import Store
from autointerp.terminal import Terminal

KINDS = ("single", "context", "position", "output", "polysemantic", "dense", "duplicate")
ON_INPUT = ("simulation", "detection", "fuzzing", "embedding", "surprisal", "generation")
ON_OUTPUT = ("output", "intervention")
METHOD_NAMES = tuple(method.name for method in methods.BUILT_IN)
DOCUMENTS = 360
MANY = 30
"""N of the second table. With the default of 10, the contexts are from too few documents for a comparison with a
control."""
MANY_JUDGE = "judge of many"
DEFAULTS: dict[str, object] = {
    "corpus.context_length": 128,
    "harvest.context_tokens": 32,
    "harvest.top_contexts": MANY,
    "harvest.sampled_contexts": 2 * MANY,
    "harvest.negatives": MANY,
}
"""Instead of the smaller numbers that the world's configuration has for the tests. Of contexts, as many are kept
as N = MANY takes."""
ORDINARY = (
    "simulation_natural",
    "simulation_precision",
    "simulation_recall",
    "detection_precision",
    "detection_sensitivity",
)


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
        lab.score_ordinary()
        return "\n\n".join([scores_table(world, found), ordinary_table(world, store), found_table(world, store), costs])


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

    def score_ordinary(self) -> None:
        """Scores the same labels, and the nearest feature's in their place, by another judge over more contexts."""
        with LlmServer(Oracle(self.world.features, self.quality)) as server:
            config = replace(self.scoring(server.url, "simulation", "detection", model=MANY_JUDGE), contexts=MANY)
            for control in (None, NEIGHBOUR):
                asyncio.run(score(job(self.store), EXPLAINER, config, control))
        self.store.update_label_controls(job(self.store).dictionary_id)

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
        rows.append([scorer, *map(_cell, cells)])
    rows.append(["intruder (no label)", *(_number(found.get(("intruder", kind, None))) for kind in KINDS)])
    return markdown(rows)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def ordinary_table(world: PlantedWorld, store: Store) -> str:
    """What labels are worth on ordinary text: means by kind and quality, and shares of labels."""
    of_label = "JOIN explanations AS e USING (explanation_id) WHERE e.explainer = ? AND"
    scored = f"FROM scores AS s {of_label} s.part = 'report' AND s.control IS NULL AND s.model = ? AND s.scorer = ?"
    tested = f"FROM label_controls AS s {of_label} s.control = ? AND s.scorer_model = ? AND s.scorer = ?"
    by = [EXPLAINER, MANY_JUDGE]
    numbers = [(scorer, f"s.value {scored}", [*by, scorer]) for scorer in ORDINARY]
    numbers.append(("has a `label_from` (share)", f"(s.label_from IS NOT NULL)::INT {scored}", [*by, "detection"]))
    for scorer in ("simulation_natural", "detection"):
        name = f"`beats_neighbour` by {scorer} (share)"
        numbers.append((name, f"s.beats::INT {tested}", [EXPLAINER, NEIGHBOUR, MANY_JUDGE, scorer]))
    rows = [["on ordinary text", *(f"{kind} ({len(world.of_kind(kind))})" for kind in KINDS)]]
    for name, sql, parameters in numbers:
        values: dict[tuple[str, str], list[float]] = {}
        for feature, quality, value in store.rows(f"SELECT s.feature, e.model, {sql}", parameters):
            if value is not None:
                values.setdefault((world.features[feature].kind, quality), []).append(value)
        mean = {key: sum(some) / len(some) for key, some in values.items()}
        cells = [[mean.get((kind, quality)) for quality in QUALITIES] for kind in KINDS]
        rows.append([name, *map(_cell, cells)])
    return markdown(rows) + "\n\n" + "\n".join(thresholds(world, store))


def thresholds(world: PlantedWorld, store: Store) -> list[str]:
    """Of labels that name the stronger of two meanings alone: where they hold, beside where they are right."""
    found = dict(
        store.rows(
            "SELECT s.feature, s.label_from FROM scores AS s JOIN explanations AS e USING (explanation_id) "
            "WHERE e.explainer = ? AND e.model = 'near_miss' AND s.scorer = 'detection' AND s.part = 'report' "
            "AND s.control IS NULL AND s.model = ?",
            [EXPLAINER, MANY_JUDGE],
        )
    )
    lines = []
    for f in world.of_kind("polysemantic"):
        weak, strong = sorted(f.law.word.values())
        lines.append(
            f"{f.labels['near_miss']}: right from {strong:.2f} on, the other meaning reaches "
            f"{weak + max(GRADES.values()):.2f}; label_from {_number(found.get(f.feature))}"
        )
    return lines


def _cell(values: Sequence[float | None]) -> str:
    return " / ".join(map(_number, values)) if any(v is not None for v in values) else "n/a"


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
    lens = lists("SELECT feature, token FROM lens_tokens WHERE sign = 1 ORDER BY feature, rank")
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
        ("jacobian_lens", "the first tokens are those that it promotes", lambda f: _says(f, lens)),
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
