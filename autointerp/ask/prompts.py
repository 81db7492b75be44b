"""Prompt templates: loading, rendering, and the two ways in which recorded text is kept from being read as orders.

A template is a Jinja2 file of named blocks (system, user, ...), rendered one by one with StrictUndefined and in a
sandbox, since a folder of prompts may come from somebody else (template_sandbox.py). Text from a
corpus, a model or an LLM goes into it as JSON on one line, so that it can neither end a line nor forge a marker. Long
evidence also stands between two lines with a mark that depends on the evidence itself, so that no text can contain the
mark of the request it appears in.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from autointerp.ask.template_sandbox import TemplateSandbox, render, template_line
from autointerp.errors import InputError
from autointerp.resources import prompts_folder

_INCLUDE = re.compile(r'^\{% include "([a-z_]+/[a-z_]+)" %\}$', re.MULTILINE)


@dataclass(frozen=True)
class PromptTemplate:
    """One template file. `sha256` is of everything that shapes the prompt: the file, what it includes, and its worked
    examples."""

    name: str
    source: str
    sha256: str
    examples: tuple[dict[str, Any], ...] = ()
    file: str = ""

    @cached_property
    def _template(self) -> jinja2.Template:
        try:
            return TemplateSandbox().from_string(self.source)
        except Exception as error:  # whatever a template provokes in Jinja or in a filter is the template's fault
            raise self._error(error) from None

    def compile(self) -> None:
        """Find the faults of the template that need no values. Raises InputError."""
        _ = self._template

    def block(self, name: str, **values: Any) -> str:
        """The named block, without the line break before its end. InputError: no such block, or a value it lacks."""
        template = self._template
        if name not in template.blocks:
            raise InputError(f"prompt template {self._place()} has no block {name!r}; it needs {{% block {name} %}}")
        try:
            context = template.new_context(values)
            return render(lambda: template.blocks[name](context)).removesuffix("\n")
        except Exception as error:  # see _template
            raise self._error(error, template, f", block {name}") from None

    def _place(self, line: int | None = None) -> str:
        """The template's name, with its file and the line where they are known."""
        at = self.file + (f":{line}" if self.file and line is not None else "")
        return f"{self.name} ({at})" if at else self.name + (f", line {line}" if line is not None else "")

    def _error(self, error: Exception, template: jinja2.Template | None = None, block: str = "") -> InputError:
        what = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
        return InputError(f"prompt template {self._place(template_line(template, error))}{block}: {what}")


def load_template(name: str, folder: Path | None = None, examples: str | None = None) -> PromptTemplate:
    """The template `name` (as in "explain/contexts") of the program's prompts, or of those in `folder`.

    A line `{% include "explain/rule_language" %}` stands for the text of that file, so that several templates can share
    it. `examples` names a TOML file beside the template, whose [[example]] tables come with it. InputError: no such
    file, or one that is no template.
    """
    root = prompts_folder(folder)
    source = _INCLUDE.sub(lambda line: _read(root / f"{line[1]}.md").rstrip("\n"), _read(root / f"{name}.md"))
    digest = hashlib.sha256(source.encode())
    found: tuple[dict[str, Any], ...] = ()
    if examples is not None:
        path = root / Path(name).parent / examples
        text = _read(path)
        digest.update(b"\0" + text.encode())
        try:
            found = tuple(tomllib.loads(text).get("example", ()))
        except (ValueError, RecursionError, TypeError) as error:  # numbers of 5,000 digits and deep nests too
            raise InputError(f"{path} is not valid TOML: {error}") from None
        if not all(isinstance(example, dict) for example in found):
            raise InputError(f"{path}: every example must be a table, [[example]]")
    template = PromptTemplate(name, source, digest.hexdigest(), found, str(root / f"{name}.md"))
    template.compile()
    return template


def _read(path: Path) -> str:
    """The file's text with Linux line ends, so that a checkout on Windows has the same hashes."""
    try:
        return path.read_text(encoding="utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        raise InputError(f"no prompt template at {path}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8") from None
    except OSError as error:
        raise InputError(f"the prompt template {path} cannot be read: {error.strerror}") from None


def one_line(value: Any) -> str:
    """`value` as JSON on one line, readable in any script: only what could break a line or a display is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def mark(*parts: Any) -> str:
    """16 hex digits that depend on all parts: the fence of one request, which none of its parts can contain."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:16]
