"""--control on the command line: floors of the scores, the model with random weights among them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import run, write_config, write_corpus

from autointerp.store import Store


@pytest.fixture(scope="module")
def done(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything has run, with the model as it is and with random weights."""
    folder = tmp_path_factory.mktemp("controls")
    write_corpus(folder / "texts")
    path = write_config(folder, tiny_gpt2)
    # The fixture's own weights are random with seed 0.
    path.write_text(path.read_text().replace("[train]", "[train]\nseed = 5"))
    for more in ([], ["--control", "random_model"]):
        with pytest.raises(SystemExit) as end:
            from autointerp.cli.app import main

            main(["run", "-c", str(path), *more])
        assert not end.value.code
    return path


@pytest.mark.slow
def test_random_weights_make_a_dictionary_of_their_own(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(done.parent / "tiny.duckdb", read_only=True) as store:
        real, random = store.dictionaries()
        assert random.name == f"{real.name} (random_model)"
        assert random.revision and random.revision.startswith("random:")
        assert (random.d_sae, random.hookpoint) == (real.d_sae, real.hookpoint)
        assert random.sae_sha256 != real.sae_sha256
        scored = "SELECT count(value) FROM scores WHERE dictionary_id = ? AND scorer = 'simulation'"
        assert all(store.rows(scored, [d.dictionary_id])[0][0] > 10 for d in (real, random))
    code, _, err = run(capsys, "run", "-c", str(done), "--control", "random_model")
    assert code == 0 and "nothing to do" in err
    code, _, err = run(capsys, "score", "-c", str(done), "--control", "random_model")
    assert code == 0 and "nothing pending" in err


@pytest.mark.slow
def test_shuffled_labels_score_lower(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "score", "-c", str(done), "--control", "shuffled")
    assert code == 0 and "under the control shuffled" in err
    with Store.open(done.parent / "tiny.duckdb", read_only=True) as store:
        means = dict(
            store.rows(
                "SELECT coalesce(control, 'real'), avg(value) FROM scores JOIN dictionaries USING (dictionary_id) "
                "WHERE scorer = 'simulation' AND name NOT LIKE '%random_model%' GROUP BY 1"
            )
        )
    assert means["shuffled"] < means["real"] / 2


def test_unknown_controls_and_missing_floors_are_refused(
    done: Path, tmp_path: Path, tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "run", "-c", str(done), "--control", "shufled")
    assert code == 2 and "shuffled" in err
    fresh = write_config(tmp_path, tiny_gpt2)
    code, _, err = run(capsys, "score", "-c", str(fresh), "--control", "random_model")
    assert code == 2 and "no store" in err
