"""A dictionary whose file is read otherwise than it was trained: the check says so, and names the way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.analytic_dictionary import analytic, figures, save
from support.commands import run, write_config, write_corpus
from torch import Tensor

from autointerp.config import Config as Whole
from autointerp.config import CorpusConfig, ModelConfig, SaeConfig, StoreConfig
from autointerp.evaluate.reading_trials import Sample, best, measure, take_sample, tried
from autointerp.model.norm_gain import norm_gain
from autointerp.sae.formats import load_sae
from autointerp.sae.formats.declared import Declared
from autointerp.sae_reading import AS_READ, Reading, parse_reading
from autointerp.stages import fit_check
from autointerp.stages.fit_check import Fit, fit_of
from autointerp.stages.session import Session
from autointerp.store import Store
from autointerp.terminal import Terminal

DEMO_MODEL = Path(__file__).parents[1] / "data" / "demo_model"
POINT, NORM = "model.layers.2", "model.layers.2.post_attention_layernorm"


@dataclass
class World:
    session: Session
    folder: Path
    _held: dict[str, Tensor]

    def vectors(self, point: str) -> Tensor:
        if point not in self._held:
            session, corpus = self.session, self.session.config.corpus
            excluded = session.token_text().excluded_ids(corpus.exclude_tokens)
            found = take_sample(session.model(), session.point(point), None, session.units(), excluded, 2048)
            self._held[point] = found.x.float()
        return self._held[point]

    def fit(self, folder: Path, point: str = POINT, reading: str = "", try_all: bool = False) -> Fit:
        return fit_of(self.session, SaeConfig(point, folder.name, path=str(folder), reading=reading), try_all)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("fit_check")
    corpus = CorpusConfig(source=str(write_corpus(folder / "texts")), context_length=64, max_tokens=3000)
    model = ModelConfig(name=str(DEMO_MODEL), dtype="float32", device="cpu")
    config = Whole(model=model, corpus=corpus, store=StoreConfig(path=str(folder / "s.duckdb")))
    sample, known = fit_check._sample, {}

    def once(session: Session, sae: SaeConfig, corpus: CorpusConfig) -> Sample:
        """The model reads the text once for each hookpoint, and not for every dictionary of it."""
        key = (session, sae.hookpoint, corpus.prepend_bos)
        known[key] = known[key] if key in known else sample(session, sae, corpus)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_check, "_sample", once)
        yield World(Session(config, Terminal(every_s=0)), folder, {})


def usual_scale(x: Tensor) -> float:
    return math.sqrt(x.shape[1]) / float(x.square().sum(1).mean().sqrt())


def gated_by_norm(world: World, folder: Path) -> tuple[Path, str]:
    x = world.vectors(POINT)
    t = analytic(x)
    declared = figures(t, x)
    return save(folder, t | {"threshold": t["threshold"] * t["W_dec"].norm(dim=1)}, declared), "gate_with_norm"


def ranked_by_norm(world: World, folder: Path) -> tuple[Path, str]:
    """A choice of k, in which the rows' lengths count; they lie far apart."""
    x = world.vectors(POINT)
    t = analytic(x)
    apart = 10 ** torch.linspace(-3, 3, len(t["W_dec"])).roll(17)
    t |= {"W_enc": t["W_enc"] / apart, "W_dec": t["W_dec"] * apart[:, None]}
    pre = (x - t["b_dec"]) @ t["W_enc"]
    index = (pre * t["W_dec"].norm(dim=1)).topk(8, dim=1).indices
    f = torch.zeros_like(pre).scatter(1, index, pre.gather(1, index).relu())
    fvu = float((f @ t["W_dec"] + t["b_dec"] - x).square().sum() / (x - x.mean(0)).square().sum())
    return save(folder, t, {"l0": 8, "fvu": fvu}, architecture="topk", k=8), "gate_with_norm"


def gated_without_norm(world: World, folder: Path) -> tuple[Path, str]:
    """One threshold for all; the file says that it is compared with what the rows' lengths are multiplied into."""
    x = world.vectors(POINT)
    t = analytic(x)
    level = 3 * t.pop("threshold").median()
    declared = figures(t | {"threshold": level}, x)
    spoilt = {"architecture": "batchtopk", "rescale_acts_by_decoder_norm": True}
    return save(folder, t | {"topk_threshold": level}, declared, **spoilt), "gate_without_norm"


def thresholds_of_scaled_inputs(world: World, folder: Path) -> tuple[Path, str]:
    """Weights and biases were brought to raw inputs, and thresholds were forgotten."""
    x = world.vectors(POINT)
    t = analytic(x)
    s = usual_scale(x)
    return save(folder, t | {"threshold": t["threshold"] * s}, figures(t, x)), f"threshold_scale={1 / s:.6g}"


def inputs_were_scaled(world: World, folder: Path) -> tuple[Path, str]:
    x = world.vectors(POINT)
    s = usual_scale(x)
    t = analytic(x * s)
    return save(folder, t, figures(t, x * s)), f"input_scale={s:.6g}"


def inputs_were_scaled_to_one(world: World, folder: Path) -> tuple[Path, str]:
    x = world.vectors(POINT)
    s = usual_scale(x) / math.sqrt(x.shape[1])
    t = analytic(x * s)
    return save(folder, t, figures(t, x * s)), f"input_scale={s:.6g}"


def inputs_were_not_scaled(world: World, folder: Path) -> tuple[Path, str]:
    """The file names a factor that had been folded into it before."""
    x = world.vectors(POINT)
    t, s = analytic(x), 0.2
    save(folder, t, figures(t, x), normalize_activations="expected_average_only_in")
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": s}))
    return folder, "input_scale=5"


def inputs_were_layer_normed(world: World, folder: Path) -> tuple[Path, str]:
    x = world.vectors(POINT)
    u = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    t = analytic(u)
    return save(folder, t, figures(t, u)), "input_layer_norm"


def inputs_were_not_layer_normed(world: World, folder: Path) -> tuple[Path, str]:
    x = world.vectors(POINT)
    t = analytic(x)
    return save(folder, t, figures(t, x), normalize_activations="layer_norm"), "input_not_normalized"


def b_dec_was_not_subtracted(world: World, folder: Path) -> tuple[Path, str]:
    x = world.vectors(POINT)
    t = analytic(x)
    declared = figures(t, x)
    return save(folder, t | {"b_enc": t["b_enc"] - t["b_dec"] @ t["W_enc"]}, declared), "b_dec_not_subtracted"


def b_dec_was_subtracted(world: World, folder: Path) -> tuple[Path, str]:
    x = world.vectors(POINT)
    t = analytic(x)
    return save(folder, t, figures(t, x), apply_b_dec_to_input=False), "b_dec_subtracted"


def trained_before_the_gain(world: World, folder: Path) -> tuple[Path, str]:
    gain = norm_gain(world.session.model(), world.session.point(NORM))
    assert gain is not None
    z = world.vectors(NORM) / gain.factor
    t = analytic(z)
    return save(folder, t, figures(t, z)), "before_gain"


def two_things(world: World, folder: Path) -> tuple[Path, str]:
    x = world.vectors(POINT)
    s = usual_scale(x)
    t = analytic(x * s)
    declared = figures(t, x * s)
    spoilt = t | {"threshold": t["threshold"] * t["W_dec"].norm(dim=1)}
    return save(folder, spoilt, declared), f"gate_with_norm, input_scale={s:.6g}"


Spoil = Callable[[World, Path], tuple[Path, str]]
SPOILT: list[Spoil] = [
    gated_by_norm, ranked_by_norm, gated_without_norm, thresholds_of_scaled_inputs, inputs_were_scaled,
    inputs_were_scaled_to_one, inputs_were_not_scaled, inputs_were_layer_normed, inputs_were_not_layer_normed,
    b_dec_was_not_subtracted, b_dec_was_subtracted, trained_before_the_gain, two_things,
]  # fmt: skip


def alike(found: Reading, wanted: Reading) -> bool:
    """The same reading; factors are measured, so they may differ by a little."""
    scales = ("threshold_scale", "input_scale")
    for name in scales:
        a, b = getattr(found, name), getattr(wanted, name)
        if (a is None) != (b is None) or (a is not None and abs(a / b - 1) > 1e-3):
            return False
    return all(
        getattr(found, name) == getattr(wanted, name)
        for name in ("gate", "b_dec_subtracted", "input_norm", "before_gain", "output_scale")
    )


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_the_way_in_which_a_file_is_misread_is_named_and_can_be_chosen(world: World, spoil: Spoil) -> None:
    folder, names = spoil(world, world.folder / spoil.__name__)
    wanted = parse_reading(names)
    assert wanted is not None
    point = NORM if spoil is trained_before_the_gain else POINT
    fit = world.fit(folder, point)
    assert not fit.is_good
    found = best(fit.declared, fit.trials)
    assert found is not None and alike(found.reading, wanted), fit.message
    assert f'set reading = "{found.reading}" in its [[sae]] table' in fit.message
    assert all(f"{one.name} " in fit.message for one in fit.trials)
    chosen = world.fit(folder, point, reading=str(found.reading))
    assert chosen.is_good and not chosen.trials
    assert chosen.figures.l0 == pytest.approx(fit.declared.l0, rel=0.02)
    accepted = world.fit(folder, point, reading=AS_READ)
    assert not accepted.is_good and not accepted.stops and accepted.figures == fit.figures


def test_files_that_are_right_fit(world: World) -> None:
    x = world.vectors(POINT)
    t = analytic(x)
    u = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    t_u = analytic(u)
    for name, folder in {
        "plain": save(world.folder / "plain", t, figures(t, x)),
        "only_l0": save(world.folder / "only_l0", t, {"l0": figures(t, x)["l0"] * 1.4}),
        "nothing": save(world.folder / "nothing", t, None),
        "normed": save(world.folder / "normed", t_u, figures(t_u, u), normalize_activations="layer_norm"),
    }.items():
        fit = world.fit(folder)
        assert fit.is_good and not fit.trials, f"{name}: {fit.message}"
    everything = world.fit(world.folder / "plain", try_all=True)
    assert everything.is_good and len(everything.trials) > 5
    nearest = best(everything.declared, everything.trials)
    assert nearest is not None and nearest.reading == Reading()


def test_another_layer_s_dictionary_fits_under_no_reading(world: World) -> None:
    x = world.vectors("model.layers.0")
    t = analytic(torch.flip(x, dims=[1]))  # of directions that no layer has
    fit = world.fit(save(world.folder / "elsewhere", t, {"l0": 2.0, "fvu": 0.01}))
    assert fit.stops and best(fit.declared, fit.trials) is None
    assert "None of these readings fits: the hookpoint, the layer or the model" in fit.message


def test_text_with_and_without_a_bos_is_tried_too(world: World) -> None:
    """On vectors in the place of those that the model has with the other setting."""
    x = world.vectors(POINT)
    t = analytic(x)
    sae = load_sae(save(world.folder / "bos", t, None))
    declared = Declared(**figures(t, x))
    setting = 'corpus.prepend_bos = "never"'
    shifted = x + 3 * x.std() * torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0))
    trials = list(tried(sae, declared, {"": Sample(shifted, shifted), setting: Sample(x, x)}, None))
    found = best(declared, trials)
    assert found is not None and (found.text, found.reading) == (setting, Reading()) and found.name == setting
    assert measure(sae, Sample(x, x)).l0 == pytest.approx(declared.l0, rel=1e-3)


def test_both_settings_of_the_bos_are_in_the_table_where_the_file_names_none(world: World) -> None:
    folder = world.folder / gated_by_norm.__name__
    if not folder.exists():
        gated_by_norm(world, folder)
    assert 'corpus.prepend_bos = "never"' in [one.name for one in world.fit(folder).trials]
    x = world.vectors(POINT)
    t = analytic(x)
    told = save(world.folder / "told", t, {"l0": 3.0}, metadata={"prepend_bos": True})
    assert all(not one.text for one in world.fit(told).trials)


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration whose dictionary chose its features by the lengths of their rows too, which its file omits."""
    folder = tmp_path_factory.mktemp("misread")
    write_corpus(folder / "texts")
    config = write_config(folder, tiny_gpt2)
    text = config.read_text().replace("d_sae = 64\nk = 4\n", 'path = "spoilt"\n')
    config.write_text(text)
    corpus = CorpusConfig(source=str(folder / "texts"), context_length=32, unit_characters=20000)
    whole = Whole(model=ModelConfig(name=str(tiny_gpt2), dtype="float32", device="cpu"), corpus=corpus)
    world = World(Session(whole, Terminal(every_s=0)), folder, {})
    x = world.vectors("transformer.h.1")
    t = analytic(x, 20)
    metadata = {"hook_name": "transformer.h.1"}
    save(folder / "right", t, figures(t, x), metadata=metadata)
    spoilt = t | {"threshold": t["threshold"] * t["W_dec"].norm(dim=1)}
    save(folder / "spoilt", spoilt, figures(t, x), metadata=metadata)
    return folder


def test_a_file_is_checked_by_itself(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ("evaluate", "-c", str(project / "autointerp.toml"), "--check")
    code, out, err = run(capsys, *check, str(project / "right"))
    assert code == 0, err
    assert "as read" in out and "b_dec_not_subtracted" in out and "is read as it was trained" in err
    code, out, err = run(capsys, *check, str(project / "spoilt"))
    assert code == 8 and "gate_with_norm" in out
    assert "What fits best is gate_with_norm (features are chosen by the pre-activation times the length" in err
    code, out, err = run(capsys, *check, str(project / "spoilt"), "--reading", "gate_with_norm", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["reading"] for row in rows][:2] == ["as read", "gate_with_norm"] and rows[1]["fits"]
    assert not (project / "tiny.duckdb").exists()
    code, _, err = run(capsys, *check, str(project / "right"), "--hookpoint", "transformer.h.9")
    assert code == 2 and "no module 'transformer.h.9'" in err
    code, _, err = run(capsys, "evaluate", "-c", check[2], "--hookpoint", "transformer.h.1")
    assert code == 2 and "go with --check" in err


def test_a_harvest_stops_until_a_reading_is_chosen(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = project / "autointerp.toml"
    plain = config.read_text()
    code, _, err = run(capsys, "harvest", "-c", str(config))
    assert code == 8 and 'set reading = "gate_with_norm" in its [[sae]] table' in err and "harvested" not in err
    code, out, _ = run(capsys, "doctor", "-c", str(config), "--no-calls")
    assert code != 0 and "FAIL  reading of tiny: tiny: the dictionary at" in out
    config.write_text(plain.replace('path = "spoilt"', f'path = "spoilt"\nreading = "{AS_READ}"'))
    code, _, err = run(capsys, "harvest", "-c", str(config))
    assert code == 0, err
    config.write_text(plain)  # the same dictionary, which the store holds by now
    code, _, err = run(capsys, "evaluate", "-c", str(config), "--structural-only", "--tokens", "2000")
    assert code == 0 and "is probably not read as it was trained" in err.replace("\n", " "), err
    config.write_text(plain.replace('path = "spoilt"', 'path = "spoilt"\nreading = "gate_with_norm"'))
    code, _, err = run(capsys, "harvest", "-c", str(config))
    assert code == 8 and "already has a dictionary 'tiny' with sae_sha256" in err
    code, _, err = run(capsys, "harvest", "-c", str(config), "--store", str(project / "other.duckdb"))
    assert code == 0, err
    code, out, _ = run(capsys, "doctor", "-c", str(config), "--no-calls", "--store", str(project / "other.duckdb"))
    line = next(line for line in out.splitlines() if "reading of tiny" in line)
    assert line.startswith("ok") and 'reading = "gate_with_norm"; its files declare L0' in line
    with Store.open(project / "other.duckdb", read_only=True) as store:
        density = store.rows("SELECT sum(token_density) FROM features")[0][0]
    declared = json.loads((project / "spoilt" / "cfg.json").read_text())["metadata"]["declared"]["l0"]
    assert density == pytest.approx(declared, rel=0.2)
    config.write_text(plain)
