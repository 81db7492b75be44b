"""A Jinja2 environment for templates that come from somebody else: they choose words, and can do nothing more.

Jinja's sandbox alone does not bound what a template takes: a macro that calls itself twice, or a text that is doubled
forty times, fills any memory. So only statements that cannot multiply text are allowed, and what they do is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from autointerp.template_limits import counted, counted_loop, counting, joined

MOST_STEPS = 100_000
"""Passes through loops, and calls of filters, in one block."""

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


def render(pieces: Callable[[], Iterable[str]]) -> str:
    """The text of one block from its pieces. Raises SecurityError past the limits."""
    with counting(MOST_STEPS):
        return joined(pieces())


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
        self.filters = {name: counted(FILTERS[name]) for name in _FILTERS}
        self.filters |= {"join": counted(_join), "tojson": counted(_tojson)}
        self.filters["counted"] = counted_loop

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


@jinja2.pass_eval_context
def _tojson(context: nodes.EvalContext, value: Any) -> Any:
    """Jinja's own, without its `indent`, which multiplies text."""
    return FILTERS["tojson"](context, value)


def _join(value: Iterable[Any], d: str = "") -> str:
    return joined(value, str(d))
