"""A Jinja2 environment for templates that come from somebody else: they choose words, and can do nothing more.

Jinja's sandbox alone does not bound what a template takes: a macro that calls itself twice, or a text that is doubled
forty times, fills any memory. So only statements that cannot multiply text are allowed, and what they do is counted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 100_000
"""Passes through loops, and calls of filters, in one block."""
MOST_CHARACTERS = 10_000_000
"""The longest text of one block, and of what a filter makes."""

_STATEMENTS: tuple[type[nodes.Node], ...] = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Block, nodes.For, nodes.If, nodes.Name, nodes.Const,
    nodes.Tuple, nodes.List, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Compare,
    nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.CondExpr, nodes.Neg, nodes.Add, nodes.Sub, nodes.Call,
    nodes.Keyword,
)  # fmt: skip
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "join", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort",
    "string", "title", "tojson", "trim", "truncate", "unique", "upper",
)  # fmt: skip
_LOOP = ("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem")


class _Steps:
    def __init__(self) -> None:
        self._left = MOST_STEPS

    def take(self, n: int = 1) -> None:
        self._left -= n
        if self._left < 0:
            raise SecurityError(f"more than {MOST_STEPS:,} steps through loops and filters")


_steps: ContextVar[_Steps] = ContextVar("_steps")
"""What the block that is being rendered may still do."""


def render(pieces: Callable[[], Iterable[str]]) -> str:
    """The text of one block from its pieces. Raises SecurityError past the limits."""
    token = _steps.set(_Steps())
    try:
        found, length = [], 0
        for piece in pieces():
            length += len(piece)
            if length > MOST_CHARACTERS:
                raise SecurityError(f"the text is longer than {MOST_CHARACTERS:,} characters")
            found.append(piece)
        return "".join(found)
    finally:
        _steps.reset(token)


def template_line(template: jinja2.Template | None, error: BaseException) -> int | None:
    """The line of the template at which `error` was raised, or None where it is not known."""
    line = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else None
    if template is None:
        return line
    traceback, line_of = error.__traceback__, template.get_corresponding_lineno
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__jinja_template__") is template:
            line = line_of(traceback.tb_lineno)
        traceback = traceback.tb_next
    return line


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment of the prompt templates. Of a value, a template reaches the items, never the attributes."""

    intercepted_binops = frozenset(["+", "-"])

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined,
            autoescape=False,  # plain text, not HTML
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self.globals = {"range": self.globals["range"]}  # the sandbox's, which has a limit
        self.filters = {name: _counted(FILTERS[name]) for name in _FILTERS}
        self.filters |= {"join": _counted(_join), "tojson": _counted(_tojson)}
        self.filters["counted"] = _counted_loop

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in _all_nodes(tree):
            _refuse(node)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in _LOOP:
            return getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        try:
            return obj[argument]
        except (TypeError, LookupError, AttributeError):
            return self.undefined(obj=obj, name=argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
            raise SecurityError(f"{operator} is for numbers; write texts one after the other")
        return super().call_binop(context, operator, left, right)


def _all_nodes(tree: nodes.Node) -> Iterator[nodes.Node]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.iter_child_nodes()


def _refuse(node: nodes.Node) -> None:
    """Raises TemplateSyntaxError for what a prompt template may not do."""
    what = None
    if not isinstance(node, _STATEMENTS):
        what = type(node).__name__.lower()
    elif isinstance(node, nodes.Call) and not (isinstance(node.node, nodes.Name) and node.node.name == "range"):
        what = "a call of anything but range()"
    elif isinstance(node, nodes.For) and node.recursive:
        what = "a recursive loop"
    elif isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        what = f"the filter {node.name!r} (there are {', '.join(_FILTERS)})"
    elif isinstance(node, (nodes.List, nodes.Tuple)) and node.find(nodes.Name) and _is_read(node):
        what = "a list with names in it"
    if what is not None:
        raise jinja2.TemplateSyntaxError(f"a prompt template may not use {what}", node.lineno)


def _is_read(node: nodes.List | nodes.Tuple) -> bool:
    """Whether the list is a value; the names that a `for` sets are a tuple too."""
    return getattr(node, "ctx", "load") == "load"


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose work and whose result are bounded. functools.wraps keeps Jinja's marks on the function."""
    at = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def counted(*args: Any, **named: Any) -> Any:
        value = args[at] if len(args) > at else None
        steps = _steps.get(None)
        if steps is not None:
            is_missing = isinstance(value, jinja2.Undefined)  # it refuses len()
            steps.take(1 + (len(value) // 16 if isinstance(value, Sized) and not is_missing else 0))
        result = function(*args, **named)
        if isinstance(result, str):
            if len(result) > MOST_CHARACTERS:
                raise SecurityError(f"a text is longer than {MOST_CHARACTERS:,} characters")
            if steps is not None:
                steps.take(len(result) // 1024)
        return result

    return counted


@jinja2.pass_eval_context
def _tojson(context: nodes.EvalContext, value: Any) -> Any:
    """Jinja's own, without its `indent`, which multiplies text."""
    return FILTERS["tojson"](context, value)


def _join(value: Iterable[Any], d: str = "") -> str:
    def pieces() -> Iterator[str]:
        for i, item in enumerate(value):
            yield str(d) + str(item) if i else str(item)

    found, length = [], 0
    for piece in pieces():
        length += len(piece)
        if length > MOST_CHARACTERS:
            raise SecurityError(f"a text is longer than {MOST_CHARACTERS:,} characters")
        found.append(piece)
    return "".join(found)


def _counted_loop(values: Iterable[Any]) -> Iterator[Any]:
    steps = _steps.get(None) or _Steps()
    for value in values:
        steps.take()
        yield value
