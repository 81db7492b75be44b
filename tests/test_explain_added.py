"""Explainers of another installed package, through `autointerp explain`: one without an LLM, one that asks one, and one
that chooses among the labels of the latter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.known_words import WORDS, World
from support.llm_server import LlmServer

from autointerp.cli.app import main
from autointerp.config import ExplainConfig
from autointerp.errors import InputError
from autointerp.explain.explainers import BUILT_IN, explainer_named
from autointerp.explain.explaining import methods_read
from autointerp.store import Store

MODULE = '''
from pathlib import Path

from autointerp.explain.evidence_sections import EXCERPTS, PRUNED, RAISED, Section
from autointerp.explain.one_call import OneCall
from autointerp.explain.rule_explainers import RuleExplainer
from autointerp.rules.labels import RuleLabel


def peak(evidence):
    """The token at the strongest peak."""
    top = evidence.top[0]
    return RuleLabel(f"the token{top.tokens[top.activations.index(top.max_activation)]}", "input")


PEAK = RuleExplainer("peak", (EXCERPTS,), peak, settings=(1,))
DENSITY = Section("density", lambda evidence, room: f"{evidence.density:.3f}")
FREQUENCY = OneCall("frequency", (EXCERPTS, DENSITY), "input", prompts=Path(__file__).parent)
KEPT = OneCall("kept", (PRUNED, RAISED), "input", prompts=Path(__file__).parent)
'''
TEMPLATE = """{% block system %}
You study a feature.{% if json %} Answer in JSON.{% endif %}
{% endblock %}
{% block user %}
Excerpts, {{ mark }}
{% for line in excerpts %}
{{ line }}
{% endfor %}
density: {{ density }}
End of excerpts, {{ mark }}
{% endblock %}
{% block again %}
Say LABEL:
{% endblock %}
"""


@pytest.fixture
def planted(bare_world: Path) -> Path:
    return bare_world


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with three explainers."""
    folder = tmp_path / "site"
    (folder / "explain").mkdir(parents=True)
    (folder / "strange_explainers.py").write_text(MODULE)
    for name in ("frequency", "kept"):
        (folder / "explain" / f"{name}.md").write_text(TEMPLATE)
    info = folder / "strange-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[autointerp.explainers]\nfrequency = strange_explainers:FREQUENCY\npeak = strange_explainers:PEAK\n"
        "kept = strange_explainers:KEPT\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield folder


def explain(store: Path, config: Path, *argv: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["explain", "-c", str(config), "--store", str(store), *argv])
    return int(end.value.code or 0)


def test_added_explainers_label_features(
    store: Store, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store.path
    store.close()
    config = tmp_path / "autointerp.toml"
    with LlmServer(World()) as server:
        endpoint = f'reply = "text"\nmodel = "m"\nbase_url = "{server.url}"\n'
        config.write_text(
            f'[explain]\nbase = "frequency"\nsamples = 2\n{endpoint}[score]\nmodel = "m"\nbase_url = "{server.url}"\n'
        )
        assert explain(path, config, "--explainer", "peak") == 0
        assert server.requests == []
        assert explain(path, config, "--explainer", "frequency") == 0
        assert len(server.requests) == len(WORDS)
        assert all("density: 0.100" in body["messages"][1]["content"] for body in server.requests)
        assert explain(path, config, "--explainer", "best_of_n", "--features", "0-1") == 0
        sent = len(server.requests)
        for name in ("peak", "frequency"):
            assert explain(path, config, "--explainer", name) == 0
        assert len(server.requests) == sent
        assert explain(path, config, "--explainer", "frequency", "--dry-run") == 0
        assert explain(path, config, "--explainer", "frequensy") == 2
        assert "Did you mean frequency" in capsys.readouterr().err
    with Store.open(path, read_only=True) as opened:
        found = opened.rows(
            "SELECT explainer, feature, text, side, model FROM explanations WHERE seed = 0 ORDER BY explainer, feature"
        )
    labels = {(explainer, feature): rest for explainer, feature, *rest in found}
    for feature, word in enumerate(WORDS):
        assert labels["peak", feature] == [f"the token{word}", "input", "peak"]
        assert labels["frequency", feature] == [f"the word{word}, stronger after `the`", "input", "m"]
    assert {feature for explainer, feature in labels if explainer == "best_of_n"} == {0, 1}


def test_what_an_added_explainer_reads_is_gathered_and_asked_for(
    store: Store, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert methods_read(ExplainConfig(explainer="kept")) == ("pruning", "token_change")
    assert methods_read(ExplainConfig(explainer="best_of_n", base="kept")) == ("pruning", "token_change")
    assert methods_read(ExplainConfig(explainer="frequency")) == ()
    path = store.path
    store.close()
    config = tmp_path / "autointerp.toml"
    config.write_text('[explain]\nexplainer = "kept"\nmodel = "m"\n')
    assert explain(path, config) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no chosen feature has what 'kept' reads: run `autointerp measure`, with pruning or token_change" in said


def test_what_the_built_in_explainers_read() -> None:
    """Methods without which they have nothing to say; what comes with a harvest is not run for them."""
    read = {one.name: methods_read(ExplainConfig(explainer=one.name)) for one in BUILT_IN}
    assert {name: methods for name, methods in read.items() if methods} == {
        "pruned": ("pruning",),
        "mutual_information": ("mutual_information", "words"),
        "token_change": ("token_change",),
        "jacobian_lens": ("jacobian_lens",),
    }
    for composed in ("best_of_n", "revise"):
        assert methods_read(ExplainConfig(explainer=composed, base="pruned")) == ("pruning",)
    assert methods_read(ExplainConfig(explainer="no such")) == ()


def test_the_nearest_name_is_named() -> None:
    with pytest.raises(InputError, match="no explainer 'contrast'; there are patterns, .*Did you mean .*contrastive"):
        explainer_named("contrast")
