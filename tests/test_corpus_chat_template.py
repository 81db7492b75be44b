"""Chat templates: a chat becomes the text that transformers makes of it, and no template runs or grows without end."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from support.small_models import END, byte_level_tokenizer
from transformers.utils import chat_template_utils

from autointerp.config import CorpusConfig
from autointerp.corpus.chat_template import BoundedEnvironment, chat_renderer
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import ChatRenderer, read_documents
from autointerp.errors import InputError

TOKENIZER = byte_level_tokenizer()
CHAT = [
    {"role": "system", "content": "Be short, 12345 %s {x}."},
    {"role": "user", "content": " Hi **there**\n"},
    {"role": "assistant", "content": "<think>a</think>Hello"},
    {"role": "user", "content": "Bye"},
]


def renderer(template: str) -> ChatRenderer:
    TOKENIZER.chat_template = template
    render = chat_renderer(TOKENIZER)
    assert render is not None
    return render


def plain(template: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What transformers alone makes of CHAT."""
    with monkeypatch.context() as patch:
        patch.setattr(chat_template_utils, "ImmutableSandboxedEnvironment", ImmutableSandboxedEnvironment)
        chat_template_utils._compile_jinja_template.cache_clear()
        TOKENIZER.chat_template = template
        text = TOKENIZER.apply_chat_template(CHAT, tokenize=False)
    chat_template_utils._compile_jinja_template.cache_clear()
    return str(text)


def test_chats_are_rendered_by_the_tokenizer_without_its_bos() -> None:
    tokenizer = byte_level_tokenizer()
    assert chat_renderer(tokenizer) is None
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    render = chat_renderer(tokenizer)
    assert render is not None
    assert render([{"role": "user", "content": "Hi"}]) == "<user>Hi\n"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).startswith(END)


@pytest.mark.parametrize(
    "template",
    [
        # ChatML
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}",
        # Llama 3: slices, loop.index0, trim, a date, tojson
        "{%- set first = messages[0]['content'] | trim %}{%- for m in messages[1:] %}"
        "{{- '<|h|>' ~ m.role ~ '<|e|>\n\n' ~ (m.content | trim) ~ loop.index0 ~ loop.length }}{%- endfor %}"
        "{{ first | tojson(indent=4) }}{{ messages | length * 2 }}{{ messages | tojson }}",
        # Qwen 3: a namespace, reversed messages, methods, break
        "{%- set ns = namespace(last=messages|length - 1, text='') %}{%- for m in messages[::-1] %}"
        "{%- set at = (messages|length - 1) - loop.index0 %}{%- if m.role == 'user' and m.content is string %}"
        "{%- set ns.last = at %}{% break %}{%- endif %}{%- endfor %}{%- for m in messages %}"
        "{%- set ns.text = ns.text ~ m.content.split('</think>')[-1].lstrip('\n') %}"
        "{{ m.content.replace('a', 'bb') }}{{ loop.previtem.role if loop.previtem is defined else '' }}{% endfor %}"
        "{{ ns.last }}{{ ns.text }}",
        # Mistral: macros, generation, filters, a dictionary's items, join by attribute, formats
        "{%- macro say(m) %}{% generation %}[{{ m.role|upper }}]{{ m.content|indent(2) }}{% endgeneration %}"
        "{% endmacro %}{% for m in messages if m.role != 'system' %}{{ say(m) }}"
        "{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
        "{{ ', '.join(messages|map(attribute='role')) }}{{ messages|join('/', attribute='role') }}"
        "{{ '%-9s|%s'|format('a', 3) }}{{ '{:>5}'.format('b') }}"
        "{{ '%05d' % 7 }}{% for k, v in {'a': 1, 'b': [2, 'x']}.items() %}{{ k ~ v }}{% endfor %}{{ 'ab'.center(9) }}"
        "{{ messages|map(attribute='role')|list|reverse|list }}{{ [1, 2] + [3] }}{{ 'x' * 3 }}{{ 2 ** 10 % 7 }}",
    ],
)  # fmt: skip
def test_bounds_change_no_text(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain(template, monkeypatch)
    assert renderer(template)(CHAT) == expected and len(expected) > 50
    assert chat_template_utils.ImmutableSandboxedEnvironment is BoundedEnvironment


def test_a_long_chat_is_within_the_bounds() -> None:
    template = (
        "{% for m in messages %}{% if loop.index0 == messages|length - 1 %}end{% endif %}"
        "{{ messages[loop.index0 - 1].role ~ m.content }}{% endfor %}"
    )
    long = [{"role": "user", "content": "word " * 200}] * 2000
    assert renderer(template)(long) == "".join(
        ("end" if i == 1999 else "") + "user" + "word " * 200 for i in range(2000)
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{{ 'a' * 4000000000 }}",
        "{{ [0] * 4000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"
        "{% endfor %}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
        "{{ ns.x|tojson }}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
        "{{ 'a' ~ ns.x }}",
        "{{ 'a'|center(4000000000) }}",
        "{{ 'a'.ljust(4000000000) }}",
        "{{ '%4000000000d' % 1 }}",
        "{{ '%*d' % (4000000000, 1) }}",
        "{{ '{:4000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=4000000000) }}",
        "{{ ('a' * 5000).replace('a', 'b' * 5000) }}",
        "{{ ('a' * 5000)|replace('a', 'b' * 5000) }}",
        "{{ (['a'] * 5000)|join('b' * 5000) }}",
        "{{ ('b' * 5000).join(['a'] * 5000) }}",
    ],
)  # fmt: skip
def test_a_template_without_end_or_measure_is_refused(template: str) -> None:
    begun = time.process_time()
    with pytest.raises(
        InputError, match=r"the chat template of .* cannot be run on a chat of 4 messages: .*text_field"
    ):
        renderer(template)(CHAT)
    assert time.process_time() - begun < 10


def test_such_a_template_ends_the_corpus_and_another_fault_skips_the_chat(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"chat": CHAT[1:n]}) + "\n" for n in (2, 3, 4)))
    config = CorpusConfig(source=str(path), chat_field="chat", max_skipped_share=0.5)
    endless = renderer("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(InputError, match="1,000,000 steps"):
        list(read_documents(config, CorpusReport(), endless))
    report = CorpusReport()
    odd = renderer("{{ 1 / (messages|length - 2) }}{{ messages[0].content * 9 }}")
    assert [d.name for d in read_documents(config, report, odd)] == ["chats.jsonl:0", "chats.jsonl:2"]
    assert report.n_skipped == {"chat_template": 1}
