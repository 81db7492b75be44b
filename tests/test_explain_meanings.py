"""What `combined` is shown beside the strongest contexts, and how its answer is read: both sides apart, with a second
meaning and shares."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.known_words import WORDS, evidence, rich_evidence
from support.label_prompts import label_prompt

from autointerp.ask.explanation_row import MAX_LABEL, evidence_sha256
from autointerp.ask.prompts import load_template
from autointerp.config import ExplainConfig
from autointerp.explain.cut_texts import cut_text, says_more
from autointerp.explain.drawn_groups import groups
from autointerp.explain.format_words import is_of_the_form
from autointerp.explain.label_replies import Label, parse_label, parse_meanings
from autointerp.records import Context, Counterfactual, FeatureEvidence, PrunedContext

FORM = "INPUT: {}\nSHARE: {}\nSECOND: {}\nSECOND SHARE: {}\nOUTPUT: {}"

# --- the answer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        (
            FORM.format("months", "70 %", "the modal `may`", "20", "a day of the month"),
            Label("ok", "months", "input", "a day of the month", "the modal `may`", 0.7, 0.2),
        ),
        (FORM.format("months", "about 70 percent", "none", "-", "none"), Label("ok", "months", "input", share=0.7)),
        (FORM.format("months", 0.7, "None.", 0, "n/a"), Label("ok", "months", "input", share=0.7)),
        (FORM.format("months", "most", "none", "", "none"), Label("ok", "months", "input")),
        (FORM.format("none", 0, "none", 0, "names of days"), Label("ok", "names of days", "output", "names of days")),
        (FORM.format("none", 0, "none", 0, "none"), Label("abstained")),
        (FORM.format("no pattern", "", "none", "", "none"), Label("abstained")),
        (FORM.format("none", "", "months", "30", "none"), Label("ok", "months", "input", share=0.3)),
        (FORM.format("months", 60, "Months", 30, "MONTHS"), Label("ok", "months", "input", share=0.6)),
        (FORM.format("months", 80, "days", 70, "none"), Label("ok", "months", "input", None, "days")),
        (FORM.format("months", 800, "days", 7, "none"), Label("ok", "months", "input", None, "days", None, 0.07)),
        ("**INPUT:** months\n\n**Share**: `50 %`\n> output: none", Label("ok", "months", "input", share=0.5)),
        ("INPUT: a draft\nI look again.\nINPUT: b\nSHARE: 5", Label("ok", "b", "input", share=0.05)),
        (FORM.format("a", 5, "c", 4, "d") + "\nINPUT: b\nOUTPUT: none", Label("ok", "b", "input")),
        ("OUTPUT: days\nINPUT: months", Label("ok", "months", "input", "days")),
        ("INPUT: in the text stood LABEL: hacked", Label("ok", "in the text stood LABEL: hacked", "input")),
        ('{"input": "months", "share": 70, "second": null, "second_share": null, "output": null}',
         Label("ok", "months", "input", share=0.7)),
        ('{"input": null, "share": null, "second": null, "second_share": null, "output": "days"}',
         Label("ok", "days", "output", "days")),
        ('{"input": null, "share": 0, "second": null, "second_share": 0, "output": null}', Label("abstained")),
        ('{"input": "m", "share": 1e999, "second": "d", "second_share": true}', Label("ok", "m", "input", None, "d")),
        ('{"input": "m", "share": %s}' % ("9" * 400), Label("ok", "m", "input")),
        ('{"input": ["m"], "output": "d"}', Label("unparseable")),
        ('INPUT: a draft\n{"input": "final"}', Label("ok", "final", "input")),
        ('{"input": "a draft"}\nINPUT: final', Label("ok", "final", "input")),
        ("SIDE: both\nLABEL: of a template of somebody's own", Label("ok", "of a template of somebody's own", "both")),
        ("INPUT: a draft\nLABEL: final", Label("ok", "final")),
        ('{"label": null}', Label("abstained")),
        ("SHARE: 70", Label("unparseable")), ("", Label("unparseable")), ("months", Label("unparseable")),
    ],
)  # fmt: skip
def test_both_sides_are_read(reply: str, label: Label) -> None:
    assert parse_meanings(reply) == label


_PIECES = st.sampled_from(
    [
        "INPUT:", "OUTPUT:", "SECOND:", "SHARE:", "SECOND SHARE:", "LABEL:", "SIDE: both", "\n", "\n\n", " ", "months",
        "none", "70 %", "0.3", "-5", "9" * 30, "1e999", '{"input": "a"}', '{"input": ', '"output": null}', "`", "**",
        "\x1b[31m", "\u202e", "\u2028", "\ud800", "{" * 50, '{"output": "b", "share": NaN}', "word " * 80, "> ", "- ",
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(_PIECES, max_size=20))
def test_whatever_comes_back_is_a_label_or_a_status(pieces: list[str]) -> None:
    found = parse_meanings("".join(pieces))
    assert (found.status == "ok") == (found.text is not None)
    for text in (found.text, found.second_text, found.output_text):
        assert text is None or (0 < len(text) <= MAX_LABEL and text.isprintable() and text == text.strip())
    shares = [share for share in (found.share, found.second_share) if share is not None]
    assert all(0 <= share <= 1 for share in shares) and sum(shares) <= 1 + 1e-6
    if found.text is None:
        assert found == Label(found.status)
    assert found.second_text is not None or found.second_share is None


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["months", "the word `a` after `the`", "none"]), st.integers(0, 60),
    st.sampled_from(["days", "none"]), st.integers(0, 40), st.sampled_from(["names", "none"]), st.booleans(),
)  # fmt: skip
def test_lines_and_json_say_the_same(first: str, share: int, second: str, other: int, output: str, pads: bool) -> None:
    def told(text: str) -> str | None:
        return None if text == "none" else text

    fields = {
        "input": told(first), "share": share, "second": told(second), "second_share": other, "output": told(output),
    }  # fmt: skip
    around = ("Let me see. Output: unclear so far.\n\n", "\n\nThat is all.") if pads else ("", "")
    lines, as_json = FORM.format(first, share, second, other, output), json.dumps(fields)
    assert parse_meanings(around[0] + lines + around[1]) == parse_meanings(around[0] + as_json + around[1])


@pytest.mark.parametrize(
    ("told", "shares"),
    [
        (("1", "-"), (0.01, None)), (("1", "1"), (0.01, 0.01)), (("1.0", "-"), (1.0, None)), (("1", "0"), (1.0, 0.0)),
        (("1.0 %", "-"), (0.01, None)), (("1,0 percent", "0"), (0.01, 0.0)), (("0.4", "0.6"), (0.4, 0.6)),
        (("99", "1"), (0.99, 0.01)), (("0.5 %", "0.5 %"), (0.005, 0.005)),
    ],
)  # fmt: skip
def test_one_is_a_percent_unless_it_is_told_as_a_share(told: tuple[str, str], shares: tuple[Any, Any]) -> None:
    found = parse_meanings(FORM.format("months", told[0], "days", told[1], "none"))
    assert (found.share, found.second_share) == pytest.approx(shares)
    as_numbers = parse_meanings('{"input": "a", "share": 1.0, "second": null, "second_share": null, "output": null}')
    assert as_numbers.share == 1.0 and parse_meanings('{"input": "a", "share": 1}').share == 0.01


# --- words of the form ----------------------------------------------------------------------------------------------

NO_LABEL = [
    "excerpts", "Excerpts.", "output", "label", "excerpts, output", "the rule or none", "your phrase", "the phrase",
    "said more", "promoted and suppressed", "words where it is active", "what it makes the model say", "INPUT",
    "second share",
]  # fmt: skip
A_LABEL = [
    "the word `output`", 'the word "label"', "direction words", "output of a program", "excerpts from letters",
    "words", "JSON", "the text", "percent", "share", "share of output", "tokens",
    "the word input", "'second' after 'the'", "promoted officers", "months",
]  # fmt: skip


def test_words_of_the_prompt_are_no_label() -> None:
    explainer = label_prompt("combined", ExplainConfig(model="m"), 0)
    for text in NO_LABEL:
        for reply in (FORM.format(text, 50, "none", 0, "none"), json.dumps({"input": text}), f"LABEL: {text}"):
            found = explainer.read(reply)
            assert found.status == "unparseable" and "prompt's own form" in (found.error or ""), (text, reply)
    for text in A_LABEL:
        assert explainer.read(FORM.format(text, 50, "none", 0, "none")).status == "ok", text
    kept = explainer.read(FORM.format("months", 50, "excerpts", 20, "output"))
    assert kept == Label("ok", "months", "input", share=0.5)


def test_each_prompt_has_its_own_words() -> None:
    pruned, contexts = (load_template(f"explain/{name}").source for name in ("pruned", "contexts"))
    assert is_of_the_form("cut texts", pruned) and not is_of_the_form("cut texts", contexts)
    assert label_prompt("pruned", ExplainConfig(model="m"), 0).read("LABEL: Cut texts").status == "unparseable"


# --- what is shown --------------------------------------------------------------------------------------------------


def _user(known: FeatureEvidence, **settings: Any) -> str:
    request = label_prompt("combined", ExplainConfig(model="m", **settings), 0).request(known, 10)
    return str(request.body["messages"][1]["content"])


def _sampled(deciles: list[int]) -> list[Context]:
    base = evidence(0).sampled[0]
    return [replace(base, decile=d, rank=i, document=f"s{i}", context_id=i) for i, d in enumerate(deciles)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 20))
def test_groups_are_of_neighbouring_deciles_strongest_first(deciles: list[int], n: int) -> None:
    contexts = _sampled(deciles)
    found = groups(contexts, n)
    shown = [c for g in found for c in g.contexts]
    assert len(shown) == min(n, len(contexts)) and len({c.rank for c in shown}) == len(shown)
    assert all(g.lowest <= (c.decile or 0) <= g.highest for g in found for c in g.contexts)
    assert [g.highest for g in found] == sorted((g.highest for g in found), reverse=True)
    assert all(g.percent == 10 * (g.highest - g.lowest + 1) for g in found)
    for g in found:  # in the order in which they were drawn, and as many as the others where there are as many
        assert [c.rank for c in g.contexts] == sorted(c.rank for c in g.contexts)
        held = sum(g.lowest <= d <= g.highest for d in deciles)
        assert len(g.contexts) == held or len(g.contexts) + 1 >= max(len(other.contexts) for other in found)
    if n <= 20 and set(range(10)) <= set(deciles) and n >= 10:
        assert [g.deciles for g in found] == ["9 to 8", "7 to 6", "5 to 4", "3 to 2", "1 to 0"]


def test_drawn_contexts_stand_in_groups_with_their_share() -> None:
    known = replace(evidence(0), sampled=_sampled([9, 0, 3, 5, 7, 1, 9, 8, 2, 4, 6, 0]))
    lines = _user(known).splitlines()
    heads = [line for line in lines if line.startswith("drawn")]
    assert heads == [
        f"drawn, deciles {d} (20 % of places):" for d in ("9 to 8", "7 to 6", "5 to 4", "3 to 2", "1 to 0")
    ]
    assert "drawn" not in _user(known, random_contexts=0)


def test_silent_contexts_with_the_token_of_a_peak_show_it() -> None:
    word = WORDS[0]
    base = next(c for c in evidence(0).negatives if c.tier == "same_token")
    silent = [replace(base, tokens=[*base.tokens[:-1], word], context_id=i) for i in range(5)]
    random = replace(silent[0], tier="random", tokens=[" never", word], activations=[0.0, 0.0])
    shown = _user(replace(evidence(0), negatives=[random, *silent])).splitlines()
    at = shown.index("the same token, silent here:")
    arrays = [json.loads(line) for line in shown[at + 1 : at + 4]]
    assert all(array[-1] == [word, 0] and "".join(array[:-1]) + word == silent[0].text for array in arrays)
    assert not shown[at + 4].startswith("[") and not any(" never" in line for line in shown)
    assert "silent here" not in _user(replace(evidence(0), negatives=[random]))


def _pruned(tokens: list[str], importance: list[float], *tried: Counterfactual, context_id: int = -1) -> PrunedContext:
    return PrunedContext(0, context_id, "delete", tokens, importance, 1.0, 1.0, "ok", list(tried))


def test_replacements_name_the_place() -> None:
    """["the", "a"] was kept and lost: one `the` may vary, the other may not."""
    one, other = Counterfactual(1, " a", 1.0, True), Counterfactual(3, " a", 0.0, False)
    found = cut_text(_pruned(["so", " the", " x", " the", " y"], [0.0, 0.0, -0.5, 0.4, 1.0], one, other))
    pieces = json.loads(found["text"])
    assert pieces == ["so", [" the", 0], " x", [" the", 4], [" y", 10]]
    assert json.loads(found["kept"]) == [[2, " the", " a"]] and json.loads(found["lost"]) == [[4, " the", " a"]]
    for place, token, _ in [*json.loads(found["kept"]), *json.loads(found["lost"])]:
        assert pieces[place - 1][0] == token


def test_cut_texts_are_shown_where_they_say_more_than_the_excerpt() -> None:
    top = evidence(0).top[0]
    peak = top.activations.index(max(top.activations))
    head = top.tokens[: peak + 1]
    own = _pruned(head, [0.5] * peak + [1.0], context_id=top.context_id)
    long = _pruned([" b"] * 9 + [WORDS[0]], [1.0] * 10, context_id=top.context_id)
    short = _pruned([" the", WORDS[0]], [1.0, 1.0], context_id=top.context_id)
    alone = _pruned([WORDS[0]], [1.0], context_id=top.context_id)
    mixed = _pruned([" b"] * 9 + [WORDS[0]], [0.2] * 9 + [1.0], context_id=top.context_id)
    assert [says_more(p, top) for p in (own, long, short, alone, mixed)] == [False, False, True, True, True]
    assert says_more(own, None)
    shown = _user(replace(evidence(0), pruned=[own, long]))
    assert "cut texts" not in shown and "cut texts" in _user(replace(evidence(0), pruned=[own, short]))
    # The explainer that sees nothing but cut texts is shown them all.
    alone_prompt = label_prompt("pruned", ExplainConfig(model="m"), 0).request(replace(evidence(0), pruned=[own]), 5)
    assert json.dumps(head[-1]) in alone_prompt.body["messages"][1]["content"]


def test_recurring_tokens_are_left_out_and_are_part_of_the_digest() -> None:
    known = rich_evidence(0)
    recurring = {"promoted": [WORDS[0] + "s"], "raised": [WORDS[0] + "!"]}
    without = replace(known, recurring=recurring)
    assert f'promoted: ["{WORDS[0]}s"' in _user(known) and f'{WORDS[0]}s"' not in _user(without)
    assert "said more" in _user(known) and "said more:" not in _user(without) and "said less:" in _user(without)
    projection = label_prompt("vocab_projection", ExplainConfig(model="m"), 0)
    assert projection.missing(replace(known, suppressed=[], recurring={"promoted": [t.token for t in known.promoted]}))
    assert evidence_sha256(known) != evidence_sha256(without)


def test_old_answers_are_read_as_before() -> None:
    assert parse_label("LABEL: x") == parse_meanings("LABEL: x") == Label("ok", "x")
