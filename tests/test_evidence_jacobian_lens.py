"""The evidence method jacobian_lens: planted features of an early layer, files that were made elsewhere, and runs that
were killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import run, write_corpus
from support.small_models import VOCAB, byte_level_tokenizer
from torch import Tensor

from autointerp.config_file import load
from autointerp.corpus.token_text import TokenText
from autointerp.deadline import Deadline
from autointerp.errors import AutointerpError, DamagedError, InputError, MismatchError, StoppedError
from autointerp.evidence import lens_fit
from autointerp.evidence.lens_file import block_of, read_lens
from autointerp.evidence.lens_fit import LensFit, prompts_of
from autointerp.harvest.vocab_projection import Unembedding
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel
from autointerp.model.logit_path import find_logit_path, find_stream_end
from autointerp.progress import uncounted
from autointerp.records import Window
from autointerp.sae.formats import save_saelens
from autointerp.sae.sae import Sae
from autointerp.stages.session import Session
from autointerp.store import Store
from autointerp.terminal import Terminal

WIDTH, LENGTH = 48, 24
HELD, SAID = (310, 320, 330), (410, 420, 430)
"""The token whose unembedding row a planted feature writes, and the one whose row a later block makes of it."""
EARLY = "transformer.h.0"
D_SAE = 12


@pytest.fixture(scope="module")
def rotating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 whose last block adds, linearly but for its norm, much of a second direction for each of three."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("rotating")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=WIDTH, n_layer=3, n_head=4, n_inner=8, bos_token_id=0, eos_token_id=0,
        activation_function="linear", tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.lm_head.weight *= 20  # so that a clamped feature can move what is said
        rows = directions(model.lm_head.weight)
        mlp = model.transformer.h[2].mlp
        for layer in (mlp.c_fc, mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        for i, (held, said) in enumerate(zip(HELD, SAID, strict=True)):
            mlp.c_fc.weight[:, i] = rows[held]
            mlp.c_proj.weight[i] = rows[said]
    model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder


def directions(head: Tensor) -> Tensor:
    rows = head.detach() - head.detach().mean(0)
    return torch.nn.functional.normalize(rows - rows.mean(1, keepdim=True), dim=1)


@pytest.fixture(scope="module")
def project(rotating: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Harvested, with features 0 to 2 planted and random ones beside them."""
    from transformers import GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("lens")
    write_corpus(folder / "texts")
    head = directions(GPT2LMHeadModel.from_pretrained(rotating).lm_head.weight)
    rows = torch.randn(D_SAE, WIDTH, generator=torch.Generator().manual_seed(1))
    rows[: len(HELD)] = head[list(HELD)]
    rows = torch.nn.functional.normalize(rows, dim=1)
    # Of small activations, which clamping takes away without much effect.
    encoder = 0.01 * torch.randn(WIDTH, D_SAE, generator=torch.Generator().manual_seed(2))
    save_saelens(Sae(encoder, torch.zeros(D_SAE), rows, torch.zeros(WIDTH), k=4), folder / "sae", {})
    (folder / "c.toml").write_text(
        f'[model]\nname = "{rotating}"\ndtype = "float32"\ndevice = "cpu"\n[corpus]\nsource = "{folder / "texts"}"\n'
        f'context_length = {LENGTH}\n[[sae]]\nname = "early"\nhookpoint = "{EARLY}"\npath = "{folder / "sae"}"\n'
        'reading = "as read"\n'
        "[harvest]\ncontext_tokens = 12\ntop_contexts = 3\nsampled_contexts = 3\nnegatives = 2\nvocab_tokens = 5\n"
        "[evidence]\nmethods = []\nwords = 700\nlens_prompts = 10\nchange_prompts = 4\nchange_tokens = 12\n"
        "change_kl = 0.1\nchange_random = 6\n"
        f'[store]\npath = "{folder / "s.duckdb"}"\n'
    )
    from autointerp.stages import pipeline

    pipeline.harvest(load(folder / "c.toml"), None, Terminal(every_s=0).silent())
    return folder


@pytest.fixture(scope="module")
def loaded(project: Path) -> LoadedModel:
    return Session(load(project / "c.toml"), Terminal(every_s=0).silent()).model()


# --- planted features -------------------------------------------------------------------------------------------------


def test_the_lens_says_what_steering_shows_and_the_plain_projection_does_not(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(project / "c.toml")
    code, out, err = run(capsys, "measure", "-c", config, "--method", "jacobian_lens", "--method", "token_change")
    assert code == 0, err
    assert "jacobian_lens of " in out + err
    with Store.open(project / "s.duckdb", read_only=True) as store:
        first = {
            table: dict(store.rows(f"SELECT feature, arg_max(token_id, {by}) FROM {table} GROUP BY feature"))
            for table, by in (("vocab_projection", "logit"), ("lens_tokens", "logit"), ("token_changes", "delta"))
        }
        n = store.rows("SELECT count(*), count(DISTINCT token_id), max(rank) FROM lens_tokens WHERE feature = 3")[0]
        ordered = store.rows("SELECT count(*) FROM lens_tokens WHERE sign = 1 AND rank = 0 AND logit <= 0")
        evidence = store.feature_evidence(1, 1, [0], 0)[0]
        runs = store.rows("SELECT DISTINCT method, status FROM method_runs WHERE feature < 3 ORDER BY method")
    assert runs == [("jacobian_lens", "ok"), ("token_change", "ok")]
    for feature, (held, said) in enumerate(zip(HELD, SAID, strict=True)):
        assert first["vocab_projection"][feature] == held
        assert first["lens_tokens"][feature] == first["token_changes"][feature] == said
    assert ordered == [(0,)]
    n_rows, n_tokens, last = n  # every token that is not special, in both orders
    assert n_tokens > 500 and n_rows == 2 * n_tokens and last == n_tokens - 1
    assert [t.sign for t in evidence.lens] == [1] * n_tokens + [-1] * n_tokens

    code, out, err = run(capsys, "show", "0", "--store", str(project / "s.duckdb"), "--contexts", "0")
    assert code == 0 and "\nlens promotes  " in out and "\nlens suppresses  " in out, err
    code, out, err = run(capsys, "show", "0", "--store", str(project / "s.duckdb"), "--json")
    assert [row["token_id"] for row in json.loads(out)["lens"]][0] == SAID[0]


def test_a_second_run_finds_the_lens_and_other_settings_do_not(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = lens_fit.mean_jacobian

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        made.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(lens_fit, "mean_jacobian", counted)
    config = project / "c.toml"
    code, _, err = run(capsys, "measure", "-c", str(config), "--method", "jacobian_lens")
    text = config.read_text()
    for change, computes in (("words = 4", False), ('lens_effects = "same"\nwords = 5', True)):
        changed = config.with_name("changed.toml")
        changed.write_text(text.replace("words = 700", change))
        made.clear()
        code, _, err = run(capsys, "measure", "-c", str(changed), "--method", "jacobian_lens")
        assert code == 0 and bool(made) == computes, err


# --- computing --------------------------------------------------------------------------------------------------------


def windows(n: int) -> list[Window]:
    ids = torch.randint(1, VOCAB, (n, LENGTH), generator=torch.Generator().manual_seed(4)).tolist()
    return [Window(f"d{i}", 0, "explain", row, 0) for i, row in enumerate(ids)]


def fit_of(loaded: LoadedModel, n: int = 7, **changed: Any) -> LensFit:
    one = LensFit(
        loaded, Hookpoint(EARLY), find_stream_end(loaded), windows(n), "later", 0, 1,
        LENGTH * lens_fit.BATCH_SHARE * 2, {},
    )  # fmt: skip
    return replace(one, **changed)


class Killed(Exception):
    """Stands for a process that ends in the midst of its work."""


def kill_after(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    real, calls = lens_fit.mean_jacobian, [0]

    def one(*args: Any, **kwargs: Any) -> Tensor:
        calls[0] += 1
        if calls[0] > n:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(lens_fit, "mean_jacobian", one)


@pytest.mark.parametrize("effects", ["later", "same"])
def test_a_killed_run_goes_on_and_ends_the_same(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effects: Any
) -> None:
    """Four batches, of two prompts each but for the last."""
    monkeypatch.setattr(lens_fit, "KEEP_EVERY_S", 0.0)
    fit, never = fit_of(loaded, effects=effects), Deadline.of(None)
    whole, n_read = fit.run(tmp_path / "whole", uncounted, never)
    assert n_read == 7
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            fit.run(tmp_path / "killed", uncounted, never)
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        found, n_read = fit.run(tmp_path / "killed", uncounted, never)
        assert torch.equal(found, whole) and n_read == 1
    with monkeypatch.context() as patch:
        kill_after(patch, 0)
        found, n_read = fit.run(tmp_path / "killed", uncounted, never)
        assert torch.equal(found, whole) and n_read == 0
        for changed in ({"prompts": windows(6)}, {"seed": 1, "effects": "same"}, {"identity": {"revision": "other"}}):
            with pytest.raises(Killed):  # none of these is the lens that is there
                replace(fit, **changed).run(tmp_path / "killed", uncounted, never)
    (file,) = (tmp_path / "killed").iterdir()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedError, match="delete it to have the Jacobian lens computed again"):
        fit.run(tmp_path / "killed", uncounted, never)


def test_a_deadline_keeps_what_is_done(loaded: LoadedModel, tmp_path: Path) -> None:
    fit = fit_of(loaded)
    with pytest.raises(StoppedError):
        fit.run(tmp_path, uncounted, Deadline.of("2020-01-01T00:00"))
    assert len(list(tmp_path.iterdir())) == 1
    assert fit.run(tmp_path, uncounted, Deadline.of(None))[1] == 5


def test_batches_take_turns_with_the_rows(loaded: LoadedModel, tmp_path: Path) -> None:
    """Of four batches two give the even rows and two the odd ones."""
    whole, never = fit_of(loaded), Deadline.of(None)
    found, _ = replace(whole, every=2).run(tmp_path, uncounted, never)
    first, second = (
        replace(whole, prompts=[whole.prompts[i] for i in own]).run(tmp_path, uncounted, never)[0]
        for own in ((0, 1, 4, 5), (2, 3, 6))
    )
    assert torch.allclose(found[::2], first[::2], atol=1e-6) and torch.allclose(found[1::2], second[1::2], atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-3)
    few, _ = replace(whole, every=1000).run(tmp_path, uncounted, never)  # every row is of some batch
    assert torch.isfinite(few).all() and few.norm(dim=1).min() > 0


def test_prompts_are_of_many_documents() -> None:
    def window(document: str, n: int) -> Window:
        return Window(document, 0, "explain", list(range(n)), 0)

    held = [[window("a", 30), window("a", 31), window("b", 10)], [window("c", 18), window("d", 40)]]
    chosen = prompts_of(iter(held), 3, 18)
    assert [(w.document, len(w.token_ids)) for w in chosen] == [("a", 18), ("c", 18), ("d", 18)]
    assert [w.document for w in prompts_of(iter(held), 9, 18)] == ["a", "c", "d", "a"]
    with pytest.raises(InputError, match="no window of the explain split has 50 tokens"):
        prompts_of(iter(held), 3, 50)
    with pytest.raises(InputError, match=r"takes prompts of 18 tokens at least, and .* is 17"):
        prompts_of(iter(held), 3, 17)


# --- files that were made elsewhere -----------------------------------------------------------------------------------


def lens_of(path: Path, **changed: Any) -> Path:
    made = {layer: torch.eye(WIDTH).half() * (layer + 1) for layer in (0, 1)}
    torch.save({"J": made, "n_prompts": 9, "source_layers": [0, 1], "d_model": WIDTH, **changed}, path)
    return path


def test_the_jacobian_is_that_of_what_the_hookpoint_is(loaded: LoadedModel, tmp_path: Path) -> None:
    path = lens_of(tmp_path / "lens.pt")
    for hookpoint, factor in (("transformer.h.0", 1), ("transformer.h.1:in", 1), ("transformer.h.1", 2)):
        found = read_lens(path, loaded, Hookpoint.parse(hookpoint), WIDTH)
        assert torch.equal(found, factor * torch.eye(WIDTH)), hookpoint
    for hookpoint in ("transformer.h.0:in", "transformer.h.0.mlp", "transformer.ln_f"):
        assert block_of(loaded.model, Hookpoint.parse(hookpoint)) is None
        with pytest.raises(InputError, match="is not what a block of .* returns, or reads; leave evidence.lens_file"):
            read_lens(path, loaded, Hookpoint.parse(hookpoint), WIDTH)
    with pytest.raises(InputError, match=r"no Jacobian of layer 2, which is .*, but of layers 0 to 1"):
        read_lens(path, loaded, Hookpoint("transformer.h.2"), WIDTH)


WRONG: dict[str, tuple[dict[str, Any], type[AutointerpError], str]] = {
    "too many blocks": ({"J": {3: torch.eye(WIDTH)}, "source_layers": [3]}, MismatchError, "layer 3, and .* has 3 bl"),
    "another width": ({"J": {0: torch.eye(9)}, "source_layers": [0], "d_model": 9}, MismatchError, r"\[9, 9\], and"),
    "shape and width differ": ({"d_model": 47}, DamagedError, r"shape \[48, 48\], and its d_model is 47"),
    "rectangular": ({"J": {0: torch.ones(9, WIDTH)}, "source_layers": [0]}, DamagedError, r"\[9, 48\]"),
    "layers differ": ({"source_layers": [0]}, DamagedError, "source_layers are not"),
    "no layers": ({"J": {}}, DamagedError, "'J' is no table"),
    "named layers": ({"J": {"0": torch.eye(WIDTH)}, "source_layers": ["0"]}, DamagedError, "'0' in its 'J'"),
    "whole numbers": ({"J": {0: torch.eye(WIDTH).long()}, "source_layers": [0]}, DamagedError, "no matrix"),
    "no prompts": ({"n_prompts": 0}, DamagedError, "'?0'? is no number of prompts"),
    "NaN": ({"J": {0: torch.eye(WIDTH) * torch.nan}, "source_layers": [0]}, DamagedError, "NaN or infinity"),
    "an unfinished fit": ({"jacobian_sum": {}}, InputError, "a fit that is not finished"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_files_are_refused(name: str, loaded: LoadedModel, tmp_path: Path) -> None:
    changed, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        read_lens(lens_of(tmp_path / "lens.pt", **changed), loaded, Hookpoint(EARLY), WIDTH)


def test_other_files_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    other = tmp_path / "x.pt"
    torch.save({"W_dec": torch.eye(3)}, other)
    with pytest.raises(InputError, match="is no Jacobian lens: it has no 'J'"):
        read_lens(other, loaded, Hookpoint(EARLY), WIDTH)
    torch.save(torch.eye(3), other)
    with pytest.raises(InputError, match="is no Jacobian lens"):
        read_lens(other, loaded, Hookpoint(EARLY), WIDTH)
    torch.save({"J": Runs()}, other)
    with pytest.raises(InputError, match="Nothing of it was run"):
        read_lens(other, loaded, Hookpoint(EARLY), WIDTH)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("it ran",))


def test_a_named_file_is_used_and_checked_before_the_run(
    project: Path, loaded: LoadedModel, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A lens that turns feature 5 into a row of the unembedding. Its path is relative to the configuration."""
    wanted = directions(loaded.model.get_output_embeddings().weight)[500]
    row = Session(load(project / "c.toml"), Terminal(every_s=0).silent())
    from autointerp.stages.session import loaded_sae

    weights = loaded_sae(row, row.config.sae[0])[0].W_dec
    turning = torch.outer(wanted, weights[5]).half()
    lens_of(project / "lens.pt", J={0: turning}, source_layers=[0])
    config = project / "file.toml"
    text = (project / "c.toml").read_text()
    config.write_text(text.replace("methods = []", 'methods = ["jacobian_lens"]\nlens_file = "lens.pt"'))
    code, out, err = run(capsys, "doctor", "-c", str(config))
    assert f"lens.pt has one of {EARLY}" in out, (out, err)
    code, _, err = run(capsys, "measure", "-c", str(config))
    assert code == 0, err
    with Store.open(project / "s.duckdb", read_only=True) as store:
        assert store.rows("SELECT token_id FROM lens_tokens WHERE feature = 5 AND sign = 1 AND rank = 0") == [(500,)]

    lens_of(project / "lens.pt", J={1: turning}, source_layers=[1])
    code, _, err = run(capsys, "run", "-c", str(config), "--store", str(tmp_path / "new.duckdb"))
    assert code == 2 and "has no Jacobian of layer 0" in err and "harvested" not in err
    (project / "lens.pt").unlink()
    code, _, err = run(capsys, "measure", "-c", str(config))
    assert code == 2 and "evidence.lens_file = " in err and "cannot be read: No such file" in err


def test_without_a_lens_of_its_own_it_is_the_vocabulary_projection(loaded: LoadedModel) -> None:
    """What follows the end of the stream is the way of the last block's vectors to the logits."""
    end = find_logit_path(loaded, find_stream_end(loaded))
    last = find_logit_path(loaded, Hookpoint("transformer.h.2"))
    rows = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    text = TokenText(loaded.tokenizer)
    assert end.carry == () and torch.equal(Unembedding(end, text).logits(rows), Unembedding(last, text).logits(rows))
