"""doctor names what a run would refuse, in the run's own words, and the run refuses it before it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from support.commands import run, write_config, write_corpus
from support.llm_server import LlmServer
from support.small_models import VOCAB, save_model
from support.token_reader import TokenReader

from autointerp.sae.formats import save_saelens
from autointerp.sae.sae import Sae
from autointerp.store.store import Store

JUDGE = 'model = "m"\nbase_url = "http://127.0.0.1:9/v1"'
WIDTH = 48
"""Of the tiny GPT-2 of conftest.py."""


def sae_of(width: int) -> Sae:
    generator = torch.Generator().manual_seed(1)
    w_dec = torch.nn.functional.normalize(torch.randn(8, width, generator=generator), dim=1)
    return Sae(w_dec.T.clone(), torch.zeros(8), w_dec, torch.zeros(width), k=2)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, SAEs of two widths, and a BERT: what the projects below are put together from."""
    folder = tmp_path_factory.mktemp("parts")
    write_corpus(folder / "texts")
    (folder / "empty").mkdir()
    (folder / "empty" / "a.txt").write_text(" ")
    (folder / "paper.pdf").write_bytes(b"%PDF-1.7 \x00\x01\xff" * 99)
    save_saelens(sae_of(WIDTH), folder / "fits", {})
    save_saelens(
        sae_of(WIDTH), folder / "wants_no_bos", {"prepend_bos": False, "hook_name": "blocks.1.hook_resid_post"}
    )
    save_saelens(sae_of(32), folder / "narrow", {})
    bert = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.2, max_position_embeddings=64,
    )  # fmt: skip
    save_model(folder / "bert", bert)
    broken = folder / "prompts" / "explain"
    broken.mkdir(parents=True)
    (broken / "combined.md").write_text("{% block user %}{{ 7 * }}{% endblock %}")
    return folder


@pytest.fixture
def project(parts: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that was never run, in the working directory, with nothing wrong."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path, tiny_gpt2, corpus=str(parts / "texts"))
    text = path.read_text().replace("d_sae = 64\nk = 4", f"path = {str(parts / 'fits')!r}\nreading = 'as read'")
    path.write_text(text.replace("[score]", f"[score]\n{JUDGE}"))
    return tmp_path


def changed(project: Path, old: str, new: str) -> None:
    path = project / "autointerp.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def lines_of(out: str) -> dict[str, tuple[str, str]]:
    """The lines by their check's name: (ok, FAIL, skip or note; what is said)."""
    found = {}
    for line in out.splitlines():
        state, _, rest = line.partition("  ")
        name, _, said = rest.strip().partition(": ")
        found[name] = (state, said)
    return found


def test_a_project_with_nothing_wrong(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(project.rglob("*"))
    code, out, err = run(capsys, "doctor", "--no-calls")
    assert code == 0, out + err
    lines = lines_of(out)
    assert list(lines) == [
        "evidence methods", "store", "explainer", "explain endpoint", "scorers", "score key", "corpus", "model", "text",
        "next token", "SAE tiny", "reading of tiny", "dtype", "score endpoint",
    ]  # fmt: skip
    assert {name for name, (state, _) in lines.items() if state != "ok"} == {"explain endpoint", "score endpoint"}
    assert lines["score key"][1] == "not needed"
    assert lines["store"][1] == "tiny.duckdb does not exist yet; the first run makes it"
    assert lines["explainer"][1] == "patterns; asks no LLM"
    fit = lines["reading of tiny"][1]
    assert fit.startswith("L0 ") and "its files declare L0 2 and no FVU; accepted" in fit
    assert sorted(project.rglob("*")) == before, "nothing is left behind"


Spoil = Callable[[Path, Path], None]


def replacing(old: str, new: str) -> Spoil:
    return lambda project, parts: changed(project, old, new.replace("PARTS", str(parts)))


def bert_that_predicts(project: Path, parts: Path) -> None:
    model = next(line for line in (project / "autointerp.toml").read_text().splitlines() if line.startswith("name = "))
    changed(project, model, f"name = {str(parts / 'bert')!r}")
    changed(project, "transformer.h.1", "bert.encoder.layer.1")
    changed(project, "[explain]", '[evidence]\nmethods = ["token_change"]\n[explain]')


def store_with_another_dictionary(project: Path, parts: Path) -> None:
    with Store.open(project / "tiny.duckdb", create=True) as store:
        store.add_dictionary(
            name="tiny", model="another", revision="r", hookpoint="h", architecture="topk", d_in=1, d_out=1, d_sae=1,
            sae_sha256="0", tokenizer_sha256="0", config={},
        )  # fmt: skip


def damaged_store(project: Path, parts: Path) -> None:
    (project / "tiny.duckdb").write_text("no store")


def folder_that_is_a_file(project: Path, parts: Path) -> None:
    (project / "taken").write_text("")
    changed(project, '"tiny.duckdb"', '"taken/tiny.duckdb"')


NO_METHOD = '[evidence]\nmethods = ["no"]\n[explain]'
ASKING = 'explainer = "combined"\nmodel = "m"\nbase_url = "https://llm.example.org/v1"'
EMBEDDING = 'scorers = ["embedding"]\nembedding_model = "e"\nmodel = "m"\nbase_url = "https://llm.example.org/v1"'
LOCAL = 'explainer = "combined"\nmodel = "m"\nbase_url = "http://127.0.0.1:9/v1"'
EXPLAINER = 'explainer = "patterns"'
PRICED = LOCAL.replace('"m"', '"n"') + '\n[budget]\nmax_usd = 1.0\n[llm.prices."m"]\ninput = 1.0\noutput = 1.0'
REFUSALS: dict[str, tuple[str, Spoil, int, str]] = {
    "no such method": ("evidence methods", replacing("[explain]", NO_METHOD), 2, "no method 'no'"),
    "no such explainer": ("explainer", replacing(EXPLAINER, 'explainer = "pattern"'), 2, "no explainer 'pattern'"),
    "no model to ask": ("explainer", replacing(EXPLAINER, 'explainer = "combined"'), 2, "set explain.model"),
    "no such scorer": ("scorers", replacing("[score]", '[score]\nscorers = ["fuzz"]'), 2, "no scorer 'fuzz'"),
    "no judge to ask": ("scorers", replacing(JUDGE, 'scorers = ["detection"]'), 2, "set score.model"),
    "no key": ("explain key", replacing(EXPLAINER, ASKING), 2, "no API key"),
    "no key for embeddings": ("score key", replacing(JUDGE, EMBEDDING), 2, "no API key"),
    "no price": ("explain key", replacing(EXPLAINER, PRICED), 2, "price"),
    "no text": ("corpus", replacing("/texts'", "/empty'"), 2, "usable"),
    "no corpus": ("corpus", replacing("/texts'", "/nowhere'"), 2, "nowhere"),
    "no chat template": ("text", replacing("[[sae]]", "chat_field = 'm'\n[[sae]]"), 2, "no chat template"),
    "no module": ("SAE tiny", replacing("transformer.h.1", "transformer.h.9"), 2, "no module 'transformer.h.9'"),
    "another width": ("SAE tiny", replacing("fits", "narrow"), 8, "vectors of width 32"),
    "another BOS": ("SAE tiny", replacing("fits", "wants_no_bos"), 8, "without a BOS"),
    "a taken name": ("SAE tiny", store_with_another_dictionary, 8, "already has a dictionary 'tiny'"),
    "a damaged store": ("store", damaged_store, 7, "tiny.duckdb"),
    "no folder": ("store", folder_that_is_a_file, 2, "no store can be made at 'taken/tiny.duckdb'"),
    "a next token": ("next token", bert_that_predicts, 2, "the evidence method token_change asks for one"),
    "no text file": ("corpus", replacing("/texts'", "/paper.pdf'"), 2, "paper.pdf is a PDF"),
}  # fmt: skip
IN_OTHER_WORDS = {"a damaged store", "no folder", "no text file"}
"""A run opens the store first, and begins to read a corpus that is one file; both say so in other words."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if i % 2 else case for i, case in enumerate(REFUSALS)]
)
def test_doctor_names_what_a_run_refuses_before_it_begins(
    case: str, project: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, spoil, exit_code, said = REFUSALS[case]
    spoil(project, parts)
    code, out, err = run(capsys, "doctor", "--no-calls")
    assert code == exit_code, out + err
    lines = lines_of(out)
    assert [failed for failed, (state, _) in lines.items() if state == "FAIL"] == [name], out
    assert said in lines[name][1]
    code, _, err = run(capsys, "run")
    assert code == exit_code, err
    assert case in IN_OTHER_WORDS or lines[name][1].splitlines()[0] in err
    assert not (project / "sae").exists() and not (project / "tiny.work").exists()


def test_a_control_spares_the_labels_no_check(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`intruder` has no control, so a run with one asks it of the labels alone; but it asks it."""
    changed(project, JUDGE, 'scorers = ["intruder"]\nmodel = "m"\nbase_url = "https://llm.example.org/v1"')
    code, _, err = run(capsys, "run", "--control", "shuffled")
    assert code == 2 and "no API key" in err
    assert not (project / "tiny.work").exists()


def test_what_depends_on_a_model_that_fails_is_skipped(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "autointerp.toml"
    model = next(line for line in path.read_text().splitlines() if line.startswith("name = "))
    changed(project, model, "name = 'nowhere/at/all'")
    code, out, _ = run(capsys, "doctor", "--no-calls", "-v")
    lines = lines_of(out)
    assert code == 2 and lines["model"] == ("FAIL", "model.name: there is no folder 'nowhere/at/all'")
    assert [name for name, (_, said) in lines.items() if said == "it needs the model"] == [
        "text",
        "next token",
        "SAE tiny",
        "reading of tiny",
        "dtype",
    ]
    assert lines["corpus"][0] == "ok"


def test_a_model_that_padding_changes_is_named(
    parts: Path, tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phi = transformers.Phi3Config(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.2, max_position_embeddings=128, original_max_position_embeddings=20, pad_token_id=None,
        bos_token_id=0, eos_token_id=0,
        rope_parameters={
            "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "rope_theta": 10_000.0,
            "original_max_position_embeddings": 20,
        },
    )  # fmt: skip
    model = next(line for line in (project / "autointerp.toml").read_text().splitlines() if line.startswith("name = "))
    changed(project, model, f"name = {str(save_model(tmp_path / 'phi', phi))!r}")
    code, out, _ = run(capsys, "doctor", "--no-calls")
    assert code == 2
    state, said = lines_of(out)["model"]
    assert state == "FAIL" and "depend on what stands beside a text in its batch" in said


def test_a_broken_template_is_named(project: Path, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(project, EXPLAINER, LOCAL)
    code, out, _ = run(capsys, "doctor", "--no-calls", "--prompts", str(parts / "prompts"))
    assert code == 2
    state, said = lines_of(out)["explainer"]
    assert state == "FAIL" and "combined" in said
    code, _, err = run(capsys, "run", "--prompts", str(parts / "prompts"))
    assert code == 2 and said in err


def test_nothing_is_asked_unless_it_was_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LlmServer(TokenReader()) as server:
        changed(project, EXPLAINER, f'explainer = "combined"\nmodel = "m"\nbase_url = "{server.url}"')
        changed(project, JUDGE, "scorers = ['surprisal']")
        code, out, err = run(capsys, "doctor", "--no-calls")
        assert code == 0, out + err
        assert not server.requests
        assert lines_of(out)["explain endpoint"] == ("skip", "it is not asked (--no-calls)")
        assert lines_of(out)["explain key"][1] == "none is set, and a local endpoint needs none"
        code, out, err = run(capsys, "doctor")
        assert code == 0, out + err
        n = len(server.requests)
    told = [line for line in out.splitlines() if "explain endpoint" in line]
    assert told[0].startswith("note") and "up to eight short calls of m, which cost like any others" in told[0]
    assert told[1].startswith("ok") and f"this took {n} calls, " in told[1] and 0 < n <= 8
