"""How a model reads the corpus: what is found before the pass, and what is said of it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import write_config, write_corpus
from support.small_models import END, VOCAB, byte_level_tokenizer
from support.tokenizer_kinds import KINDS, morphological_bytes
from transformers import PreTrainedTokenizerBase

from autointerp.config_file import load
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.errors import InputError, MismatchError
from autointerp.sae.formats import save_saelens
from autointerp.sae.sae import Sae
from autointerp.stages.session import Session, loaded_sae
from autointerp.stages.text_reading import reading_notes
from autointerp.terminal import Terminal

Make = Callable[..., Session]


@pytest.fixture
def session_of(tiny_gpt2: Path, tmp_path: Path) -> Make:
    """A session on tiny_gpt2 with another tokenizer, and [corpus] settings."""

    def make(tokenizer: PreTrainedTokenizerBase, **corpus: Any) -> Session:
        folder = tmp_path / "model"
        shutil.copytree(tiny_gpt2, folder, ignore=shutil.ignore_patterns("tokenizer*", "special*"), dirs_exist_ok=True)
        tokenizer.save_pretrained(folder)
        if not (tmp_path / "texts").exists():
            write_corpus(tmp_path / "texts")
        config = load(write_config(tmp_path, folder, corpus=str(tmp_path / "texts")))
        return Session(replace(config, corpus=replace(config.corpus, **corpus)), Terminal().silent())

    return make


def notes(session: Session) -> list[str]:
    return list(reading_notes(session.model(), session.token_text(), session.config.corpus))


def without(**special: str | None) -> PreTrainedTokenizerBase:
    """The byte-level tokenizer with other special tokens: like Qwen's, it has no BOS."""
    tokenizer = byte_level_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = None
    for name, token in special.items():
        setattr(tokenizer, name, token)
    return tokenizer


def saelens_sae(session: Session, folder: Path, **metadata: Any) -> Session:
    """The session with an SAE of SAELens's that says so of its training."""
    decoder = torch.nn.functional.normalize(torch.randn(64, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    sae = Sae(decoder.T.contiguous(), torch.zeros(64), decoder, torch.zeros(48), threshold=torch.zeros(64))
    save_saelens(sae, folder, {"hook_name": "blocks.1.hook_resid_post", **metadata})
    table = replace(session.config.sae[0], path=str(folder))
    session.config = replace(session.config, sae=(table,))
    return session


@pytest.mark.parametrize(("eos", "stand_in"), [("Q", "Q"), (None, END)])
def test_an_sae_trained_with_bos_on_a_tokenizer_without_one(
    session_of: Make, tmp_path: Path, eos: str | None, stand_in: str
) -> None:
    """Qwen: TransformerLens, in which SAELens trains, takes the EOS, or <|endoftext|>. `always` does so too."""
    tokenizer = without(eos_token=eos)
    for setting in ("auto", "never"):
        session = saelens_sae(session_of(tokenizer, prepend_bos=setting), tmp_path / "sae", prepend_bos=True)
        with pytest.raises(MismatchError, match=r"prepend_bos = 'always' \(the tokenizer has no BOS: '") as refused:
            loaded_sae(session, session.config.sae[0])
        assert repr(stand_in) in str(refused.value)
    session = saelens_sae(session_of(tokenizer, prepend_bos="always"), tmp_path / "sae", prepend_bos=True)
    loaded_sae(session, session.config.sae[0])
    first = next(session.units()).windows[0]
    assert first.token_ids[0] == tokenizer.convert_tokens_to_ids(stand_in) and first.n_prefix == 1
    assert notes(session) == [f"the tokenizer has no BOS: every window begins with {stand_in!r}, as in TransformerLens"]


def test_a_tokenizer_with_nothing_to_stand_in(session_of: Make, tmp_path: Path) -> None:
    characters = KINDS["characters, fused"].make(tmp_path)
    session = saelens_sae(session_of(characters), tmp_path / "sae", prepend_bos=True)
    for refused in (
        lambda: loaded_sae(session, session.config.sae[0]),
        session_of(characters, prepend_bos="always").units,
    ):
        with pytest.raises(
            (InputError, MismatchError), match="neither a BOS nor an EOS token.* name the token as bos_to"
        ):
            refused()


def test_an_sae_trained_on_the_hugging_face_model_saw_no_stand_in(session_of: Make, tmp_path: Path) -> None:
    said = {"prepend_bos": True, "model_class_name": "AutoModelForCausalLM"}
    tokenizer = without(eos_token=END)
    session = saelens_sae(session_of(tokenizer), tmp_path / "sae", **said)
    loaded_sae(session, session.config.sae[0])
    assert notes(session) == []
    session = saelens_sae(session_of(tokenizer, prepend_bos="always"), tmp_path / "sae", **said)
    with pytest.raises(MismatchError, match="trained without a BOS .* corpus.prepend_bos = 'never'"):
        loaded_sae(session, session.config.sae[0])


def test_tokens_without_an_embedding_are_told_and_their_windows_left_out(
    session_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["[PAD]"])
    session = session_of(tokenizer)
    (tmp_path / "texts" / "000.txt").write_text("the boats [PAD] turned slowly", encoding="utf-8")
    told: list[str] = []
    monkeypatch.setattr(session.terminal, "warn", told.append)
    session.say_how_text_is_read()
    session.say_how_text_is_read()
    (note,) = told
    assert "no embedding for 1 of the tokenizer's added tokens ('[PAD]')" in note
    report = CorpusReport()
    ids = {i for unit in session.units(report=report) for window in unit.windows for i in window.token_ids}
    assert report.n_skipped["unreadable_token"] == 1 and max(ids) < VOCAB == tokenizer.convert_tokens_to_ids("[PAD]")
    tokenizer.bos_token = "[PAD]"
    with pytest.raises(InputError, match=r"begin with '\[PAD\]', which model .* has no embedding for"):
        session_of(tokenizer).units()


def test_a_decoder_that_depends_on_its_neighbours_is_told(session_of: Make, tmp_path: Path) -> None:
    session = session_of(morphological_bytes(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # this tokenizer does not close its file
        session.model()
    (note,) = notes(session)
    assert "windows is not what the tokenizer decodes (first: 000.txt" in note


def test_doctor_says_so_and_names_what_is_refused(session_of: Make) -> None:
    """The lines of `doctor`: the model cannot read the corpus's windows."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["[PAD]"])
    session = session_of(tokenizer, context_length=128)
    assert "no embedding for 1 of the tokenizer's added tokens" in session.describe_corpus()
    assert "parameters" in session.describe_model()
    long = session_of(tokenizer, context_length=129)
    looked = (long.describe_model, long.describe_corpus, long.units, lambda: long.describe_sae(long.config.sae[0]))
    for work in looked:
        with pytest.raises(InputError, match="context_length = 129, but model .* reads at most 128 tokens at once"):
            work()
