"""Choosing contexts, reading replies, and scores from predictions: all without a server."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from support.known_words import RAW_MAX, contexts, near

from autointerp.ask.chat import ReplyError
from autointerp.ask.scale import scaled
from autointerp.errors import AutointerpError
from autointerp.llm.requests import TokenLogprob
from autointerp.records import Context, Explanation, Prediction
from autointerp.score.correlation import calibrated_fit, correlation, correlation_rows
from autointerp.score.natural import is_ordinary
from autointerp.score.score_rows import Answer, Identity
from autointerp.score.simulation import choose_contexts
from autointerp.score.simulation_replies import expected_numbers, read_lines, read_prompt_logprobs
from autointerp.store.scores import check_score

TOKENS = [" the", " alpha", "\n", ' "x"']


# --- contexts -------------------------------------------------------------------------------------------------------


def test_equal_numbers_of_each_kind() -> None:
    every = contexts(0, "report")
    chosen = choose_contexts(every, 6)
    assert Counter(c.kind for c in chosen) == {"top": 6, "sampled": 6, "negative": 6}
    # The fixture has three random negatives of eight; half of six are random.
    assert Counter(c.tier for c in chosen if c.kind == "negative") == {"random": 3, "same_token": 2, "neighbour": 1}
    assert choose_contexts(every, 6) == chosen
    few = [c for c in every if c.kind != "sampled" or c.rank < 2]
    assert Counter(c.kind for c in choose_contexts(few, 6)) == {"top": 2, "sampled": 2, "negative": 2}
    assert choose_contexts([c for c in every if c.kind != "top"], 6) == []


def test_a_short_tier_is_filled_from_the_others() -> None:
    every = contexts(0, "report")
    no_hard = [c for c in every if c.tier in (None, "random")]
    assert Counter(c.tier for c in choose_contexts(no_hard, 3) if c.kind == "negative") == {"random": 3}
    no_random = [c for c in every if c.tier != "random"]
    assert len([c for c in choose_contexts(no_random, 4) if c.kind == "negative"]) == 4


def test_the_sampled_contexts_stay_a_uniform_sample() -> None:
    """One that shows a top context's peak is not put last: that would leave the strongest places out."""
    every = contexts(0, "report")
    top = next(c for c in every if c.kind == "top")
    twin = replace(top, kind="sampled", context_id=12345, rank=-1)
    chosen = choose_contexts([twin, *every], 8)
    assert [c.context_id for c in chosen if c.kind == "sampled"][0] == 12345
    assert is_ordinary(next(c for c in chosen if c.tier == "random"))
    assert not is_ordinary(next(c for c in chosen if c.tier == "neighbour"))


# --- lines ----------------------------------------------------------------------------------------------------------


def reply(*numbers: object, tokens: list[str] = TOKENS) -> str:
    return "\n".join(f"{json.dumps(t)}\t{n}" for t, n in zip(tokens, numbers, strict=True))


def test_lines_in_the_forms_that_models_write() -> None:
    wanted = [0.0, 10.0, 3.0, 2.5]
    good = reply(0, 10, 3, 2.5)
    for text in (
        good, good + "\n", f"```\n{good}\n```", good.replace("\t", "  "), good.replace("\t", ": "),
        good.replace("\n", "\r\n"),
        '" the"\t0\nalpha\t10\n"\\n"\t3\n"\\"x\\""\t2.5'.replace("alpha", '"alpha"'),
    ):  # fmt: skip
        lines = read_lines(text, TOKENS)
        assert [line.number for line in lines] == wanted
        assert [text[line.at : line.at + len(line.digits)] for line in lines] == ["0", "10", "3", "2.5"]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "token_count"),
        (reply(0, 1, 2, 3).rsplit("\n", 1)[0], "token_count"),
        (reply(0, 1, 2, 3) + '\n"more"\t0', "token_count"),
        ("Here you are:\n" + reply(0, 1, 2, 3), "token_count"),
        (reply(0, 11, 2, 3), "bad_number"),
        (reply(0, -1, 2, 3), "bad_number"),
        (reply(0, "high", 2, 3), "token_count"),
        (reply(0, 1, 2, 3, tokens=[" of", " the", " alpha", "\n"]), "token_mismatch"),
    ],
)
def test_unusable_lines_are_never_zeros(text: str, status: str) -> None:
    with pytest.raises(ReplyError) as caught:
        read_lines(text, TOKENS)
    assert caught.value.status == status


def test_a_few_misspelt_tokens_do_not_matter() -> None:
    tokens = [f" w{i}" for i in range(20)]
    text = reply(*[1] * 20, tokens=["wrong", *tokens[1:]])
    assert len(read_lines(text, tokens)) == 20


# --- logprobs of what was written -----------------------------------------------------------------------------------


def rows(*parts: str | tuple[str, list[tuple[str, float]]]) -> list[TokenLogprob]:
    """Tokens with (text, probability) alternatives; a plain string is certain."""
    out = []
    for part in parts:
        token, top = part if isinstance(part, tuple) else (part, [(part, 1.0)])
        out.append(TokenLogprob(token, math.log(top[0][1]), tuple((t, math.log(p)) for t, p in top)))
    return out


def expected(tokens: list[str], *parts: str | tuple[str, list[tuple[str, float]]]) -> list[float]:
    made = rows(*parts)
    text = "".join(r.token for r in made)
    return expected_numbers(text, made, read_lines(text, tokens))


def test_expected_value_over_the_alternatives() -> None:
    found = expected([" a"], '" a"', "\t", ("7", [("7", 0.5), ("8", 0.25), (" the", 0.25)]))
    assert found == pytest.approx([(7 * 0.5 + 8 * 0.25) / 0.75])


def test_spellings_of_one_number_are_added() -> None:
    found = expected([" a"], '" a"', ("\t3", [("\t3", 0.4), ("\t5", 0.2), ("3", 0.2), ("05", 0.1), ("42", 0.1)]))
    assert found == pytest.approx([(3 * 0.6 + 5 * 0.2) / 0.8])


def test_ten_as_one_token() -> None:
    found = expected([" a"], '" a"\t', ("10", [("10", 0.6), ("1", 0.2), ("9", 0.2)]))
    assert found == pytest.approx([10 * 0.6 + 1 * 0.2 + 9 * 0.2])


def test_ten_as_two_tokens() -> None:
    """P(10) = P(1) P(0|1)."""
    ten = expected([" a"], '" a"\t', ("1", [("1", 0.8), ("9", 0.2)]), ("0", [("0", 0.75), ("\n", 0.25)]))
    assert ten == pytest.approx([10 * 0.6 + 1 * 0.2 + 9 * 0.2])
    one = expected(
        [" a", "b"], '" a"\t', ("1", [("1", 0.8), ("2", 0.2)]), ("\n", [("\n", 0.9), ("0", 0.1)]), '"b"\t', "0"
    )
    assert one == pytest.approx([10 * 0.08 + 1 * 0.72 + 2 * 0.2, 0.0])


def test_an_unfinished_one_counts_as_the_nearer_number() -> None:
    high = expected([" a"], '" a"\t', ("9", [("9", 0.5), ("1", 0.5)]))
    low = expected([" a"], '" a"\t', ("0", [("0", 0.5), ("1", 0.5)]))
    assert (high, low) == ([9.5], [0.5])


def test_trimmed_text_still_fits_its_logprobs() -> None:
    made = rows("\n", '" a"\t', "4", "\n")
    text = '" a"\t4'
    assert expected_numbers(text, made, read_lines(text, [" a"])) == [4.0]


def test_missing_or_foreign_logprobs() -> None:
    lines = read_lines('" a"\t4', [" a"])
    for bad in (None, [], rows("something else")):
        with pytest.raises(ReplyError, match="logprobs") as caught:
            expected_numbers('" a"\t4', bad, lines)
        assert caught.value.status == "no_logprobs"
    with pytest.raises(ReplyError, match="no number"):
        expected([" a"], '" a"\t', ("4", [("four", 1.0)]))


# --- logprobs of the prompt -----------------------------------------------------------------------------------------


def prompt_rows(*numbers: int) -> list[TokenLogprob]:
    out = rows("<s>", "Record 1\n", '"x"', "\t", ("?", [("?", 1.0)]), "\n")
    for token, number in zip(TOKENS, numbers, strict=True):
        out += rows(json.dumps(token)[:2], json.dumps(token)[2:], "\t")
        out.append(TokenLogprob("?", -3.0, tuple(near(number, 9))))
        out += rows("\n")
    return out


def test_expected_values_at_the_question_marks() -> None:
    found = read_prompt_logprobs(prompt_rows(0, 9, 0, 4), 4)
    assert found == pytest.approx([0, 10, 0, 40 / 9], abs=0.15)


def test_merged_and_odd_tokens_do_not_shift_the_lines() -> None:
    """A tokenizer may merge `?` and the line break, spell the first token its own way, or break characters."""
    odd = [TokenLogprob("", None, ()), *prompt_rows(0, 9, 0, 4)]
    merged = []
    for row in odd:
        if row.token == "\n" and merged and merged[-1].token == "?":
            top = tuple((t + "\n", lp) for t, lp in merged[-1].top)
            merged[-1] = TokenLogprob("?\n", -3.0, top)
        else:
            merged.append(row)
    merged[2] = TokenLogprob("\ufffd\ufffd\n", -1.0, ())
    assert read_prompt_logprobs(merged, 4) == pytest.approx([0, 10, 0, 40 / 9], abs=0.15)


@pytest.mark.parametrize(
    ("made", "status"),
    [
        (None, "no_logprobs"),
        ([], "no_logprobs"),
        (prompt_rows(0, 9, 0, 4)[:8], "token_count"),
        ([replace(r, token="!") if r.token == "?" else r for r in prompt_rows(0, 9, 0, 4)], "token_mismatch"),
        ([replace(r, top=()) for r in prompt_rows(0, 9, 0, 4)], "no_logprobs"),
    ],
)
def test_prompt_logprobs_that_cannot_be_read(made: list[TokenLogprob] | None, status: str) -> None:
    with pytest.raises(ReplyError) as caught:
        read_prompt_logprobs(made, 4)
    assert caught.value.status == status


# --- scores ---------------------------------------------------------------------------------------------------------

LABEL = Explanation("e" * 32, 1, 0, 1, "contexts", "m", "t", "v", 0, "a label", "ok")
IDENTITY = Identity(LABEL, 1, "numbers", None, "judge", "t" * 64, 0)


def answers(part: str, predict: object = None, failed: dict[int, str] | None = None) -> list[Answer]:
    out = []
    for i, c in enumerate(choose_contexts(contexts(0, part), 6)):  # type: ignore[arg-type]
        truth = scaled(c.activations, RAW_MAX)
        status = (failed or {}).get(i, "ok")
        predicted = truth if predict is None else predict(c, truth)  # type: ignore[operator]
        out.append(Answer(c, Prediction(c.context_id, truth, predicted if status == "ok" else None, status), None))
    return out


def test_the_rows_of_a_perfect_label() -> None:
    found = correlation_rows(IDENTITY, answers("report"), answers("select"))
    assert [(r.scorer, r.part, r.n) for r in found] == [
        ("simulation", "select", 18), ("simulation_calibrated", "report", 18), ("simulation_random", "report", 9),
        ("simulation", "report", 18),
    ]  # fmt: skip
    for row in found:
        assert row.status == "ok" and row.value == pytest.approx(1.0) and row.n_failed == 0
        assert row.ci_low is None  # all documents agree, which says nothing of the next one
        assert row.explanation_id == LABEL.explanation_id and row.n_documents == len(row.documents or [])
    assert len({r.score_id for r in found}) == 4
    assert [len(r.predictions) for r in found] == [18, 0, 0, 18]
    by_kind = {"top": 6, "sampled": 6, "random": 3, "same_token": 2, "neighbour": 1}
    assert [r.n_by_kind for r in found] == [by_kind, by_kind, {"sampled": 6, "random": 3}, by_kind]


def test_calibration_corrects_scale_but_not_order() -> None:
    def squeezed(_: Context, truth: list[float]) -> list[float]:
        return [0.2 * t + 1.0 for t in truth]

    raw = correlation(answers("report", squeezed)).estimate.value
    calibrated = calibrated_fit(answers("select", squeezed), answers("report", squeezed)).estimate.value
    assert raw == pytest.approx(1.0) and calibrated == pytest.approx(1.0)
    wrong_size = calibrated_fit(answers("select"), answers("report", squeezed)).estimate.value
    assert wrong_size is not None and wrong_size < 0.5


def test_failed_contexts_are_counted_and_left_out() -> None:
    found = correlation_rows(IDENTITY, answers("report", failed={0: "token_count", 7: "refused"}), None)
    headline = found[-1]
    assert (headline.n, headline.n_failed, headline.status) == (18, 2, "ok")
    assert headline.value == pytest.approx(1.0)
    assert [p.status for p in headline.predictions].count("ok") == 16


def test_statuses_without_a_value() -> None:
    half = dict.fromkeys(range(10), "token_count")
    assert correlation(answers("report", failed=half)).status == "token_count"
    assert correlation(answers("report", failed={3: "gave_up"})).status == "gave_up"
    assert correlation([]).status == "no_contexts"
    silent = [a for a in answers("report") if a.context.kind == "negative"]
    moving = [replace(a, prediction=replace(a.prediction, predicted=[float(i) for i in range(16)])) for a in silent]
    result = correlation(moving)
    assert result.status == "constant_truth" and result.estimate.value is None
    assert calibrated_fit(answers("select"), moving).status == "constant_truth"


def test_a_label_that_predicts_the_same_everywhere_scores_zero() -> None:
    constant = answers("report", lambda c, t: [3.0] * len(t))
    result = correlation(constant)
    assert (result.status, result.estimate.value, result.estimate.low) == ("constant_prediction", 0.0, None)
    assert set((result.estimate.influences or {}).values()) == {0.0}
    for row in correlation_rows(IDENTITY, constant, None):
        check_score(row)
        assert (row.status, row.value) == ("constant_prediction", 0.0)
    with pytest.raises(AutointerpError, match="only then"):
        check_score(replace(row, value=None))
    with pytest.raises(AutointerpError, match="only then"):
        check_score(replace(row, status="constant_truth"))


def test_blocks_of_one_file_are_one_document_to_an_interval() -> None:
    """Renaming documents to blocks of one file leaves the value and takes the interval; blocks of as many files as
    there were documents change nothing."""
    some = answers("report", lambda c, t: [v + i % 3 for i, v in enumerate(t)])
    others = answers("report", lambda c, t: [v + i % 2 for i, v in enumerate(t)])
    plain = [*some, *(replace(a, context=replace(a.context, document=f"other {a.context.document}")) for a in others)]
    names = list(dict.fromkeys(a.context.document for a in plain))
    one = [replace(a, context=replace(a.context, document=f"a.txt#{names.index(a.context.document)}")) for a in plain]
    many = [replace(a, context=replace(a.context, document=f"{a.context.document}#7")) for a in plain]
    whole = correlation(plain).estimate
    of_one, of_many = correlation(one).estimate, correlation(many).estimate
    assert whole.low is not None and (of_many.value, of_many.low) == (whole.value, whole.low)
    assert of_one.value == pytest.approx(whole.value) and of_one.low is None
