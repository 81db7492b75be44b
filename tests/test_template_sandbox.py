"""A folder of prompts from somebody else: it runs no code, ends soon, and every error of it is told with its line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from autointerp.ask.prompts import PromptTemplate, load_template
from autointerp.errors import InputError


class Value:
    """What no template is to reach into."""

    secret = "hunter2"

    def method(self) -> str:
        return "hunter2"


def rendered(tmp_path: Path, source: str, **values: object) -> str:
    (tmp_path / "t.md").write_text("{% block user %}\n" + source + "\n{% endblock %}", "utf-8")
    return load_template("t", tmp_path).block("user", **values)


@pytest.mark.parametrize(
    "source",
    [
        "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{{ value.__class__ }}",
        "{{ value.secret }}",
        "{{ value.method() }}",
        "{{ value['secret'] }}",
        "{{ text.__class__.__mro__ }}",
        "{{ text['__class__'] }}",
        "{{ text.upper() }}",
        "{{ text|attr('__class__') }}",
        "{{ [1]|map(attribute='__class__')|join }}",
        "{{ words|map('attr', '__class__')|list }}",
        "{{ words|sort(attribute='__class__') }}",
        "{{ '{0.__class__}'.format(text) }}",
        "{{ '%s'|format(text) }}",
        "{{ self.user() }}",
        "{{ self.__init__ }}",
        "{% for w in words %}{{ loop.__class__ }}{% endfor %}",
        "{% for w in words %}{{ loop._iterator }}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% set x = text %}",
        "{{ range.__self__ }}",
    ],
)
def test_a_template_reaches_no_attribute_and_no_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"prompt template t \(.*t\.md:2\)") as raised:
        rendered(tmp_path, source, value=Value(), text="abc", words=["a", "b"])
    assert "hunter2" not in str(raised.value) and not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(90000) %}{{ range(90000)|sort|last }}{% endfor %}",
        "{% for i in range(90000) %}{{ long }}{% endfor %}",
        "{% for i in range(90000) %}{{ (long|join(long))|length }}{% endfor %}",
        "{% for i in range(90000) %}{{ ('ab'|join(long))|length }}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in words recursive %}{{ loop(words) }}{{ loop(words) }}{% endfor %}",
        "{% set a = 'x' %}" + "{% set a = a ~ a %}" * 60,
        "{{ 9**9**9**9 }}",
        "{{ 'x' * 1000000000000 }}",
        "{{ long + long }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ long|center(1000000000000) }}",
        "{{ words|tojson(indent=1000000000) }}",
        "{% for a in [words, words] %}{% for b in [a, a] %}{{ b }}{% endfor %}{% endfor %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "9" * 5000 + " }}",
        "{{ " + "-" * 3000 + "1 }}",
        "{% if words %}" * 400 + "{% endif %}" * 400,
    ],
)
def test_a_template_without_end_is_ended(tmp_path: Path, source: str) -> None:
    begun = time.process_time()
    with pytest.raises(InputError, match=r"prompt template t \("):
        rendered(tmp_path, source, long="y" * 5000, words=["a", "b"])
    assert time.process_time() - begun < 20


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for w in words %}{{ loop.index }}/{{ loop.length }} {{ w|upper }}{% if not loop.last %}, {% endif %}"
         "{% endfor %}", "1/2 A, 2/2 B"),
        ("{{ words|join(', ') }} {{ words|length + 1 }} {{ pair.key }} {{ pair['key'] }}", "a, b 3 v v"),
        ("{{ words|tojson }} {{ words[:1]|first }} {{ missing|default('-') }}", '["a", "b"] a -'),
        ("{% for k, v in pair|dictsort if v %}{{ k }}={{ v }}{% else %}none{% endfor %}", "key=v"),
        ("{{ 'many' if words|length > 1 else 'one' }}{{ range(3)|list }}", "many[0, 1, 2]"),
    ],
)  # fmt: skip
def test_what_a_template_may_do(tmp_path: Path, source: str, text: str) -> None:
    assert rendered(tmp_path, source, words=["a", "b"], pair={"key": "v"}) == text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{{ missing }}", r"t\.md:3\), block user: 'missing' is undefined"),
        ("a\n\n{{ words|nofilter }}", r"t\.md:4\): a prompt template may not use the filter 'nofilter'"),
        ("{{ 1 - words }}", r"t\.md:2\), block user: - is for numbers"),
        ("{{ words < 3 }}", r"t\.md:2\), block user: TypeError"),
        ("a\n{% if %}", r"t\.md:3\): Expected an expression"),
        ("{{ words is nosuchtest }}", r"t\.md:2\): No test named 'nosuchtest'"),
    ],
)
def test_every_error_of_a_template_names_file_and_line(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rendered(tmp_path, source, words=["a"])


def test_a_template_that_is_no_file_and_bad_examples_are_told(tmp_path: Path) -> None:
    (tmp_path / "t.md").mkdir()
    with pytest.raises(InputError, match="t.md cannot be read: Is a directory"):
        load_template("t", tmp_path)
    (tmp_path / "u.md").write_text("x")
    for bad in ("example = " + "9" * 5000, "example = " + "[" * 5000, "example = 3", "example = [1, 2]"):
        (tmp_path / "e.toml").write_text(bad)
        with pytest.raises(InputError, match=r"e\.toml"):
            load_template("u", tmp_path, "e.toml")


def test_a_template_without_a_file_is_named() -> None:
    with pytest.raises(InputError, match="prompt template inline, line 1, block user: 'x' is undefined"):
        PromptTemplate("inline", "{% block user %}{{ x }}{% endblock %}", "").block("user")
