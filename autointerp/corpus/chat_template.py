"""Renders chats as text by the chat template that comes with a tokenizer, with bounds on its work.

transformers runs chat templates in Jinja's sandbox, which keeps them from reaching anything, but not from running for
years or filling the memory. So the environment in which transformers compiles them is given counted loops, calls and
filters, and operations that check how long their result will be (template_limits.py). What a template makes of a chat
is otherwise what `apply_chat_template` makes of it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, nodes, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from autointerp.corpus.sources import ChatRenderer
from autointerp.errors import InputError
from autointerp.template_limits import check_length, counted, counted_loop, counting, joined, take, weigh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_STEPS = 1_000_000
"""Passes through loops (a call counts as ten) of one chat: a template that looks at each message once for each other
one can render a thousand messages."""
WIDEST = 10_000
"""The largest number that a filter or a method that pads or indents text may be given."""
_PADDING_FILTERS = ("center", "indent", "wordwrap", "batch", "slice", "tojson", "truncate")
_ITEM_FILTERS = (
    "length", "count", "first", "last", "list", "map", "select", "selectattr", "reject", "rejectattr", "items",
    "reverse", "sort", "unique", "default", "d", "dictsort", "groupby", "min", "max", "sum", "random", "attr",
)  # fmt: skip
"""Filters that look at the items of a list or mapping and never make it a text."""
_PADDING_METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs")
_WIDE_FIELD = re.compile(r"%(\([^)]*\))?[-+ #0]*\d*\.?(\d{5}|\*)|\{[^{}]*:[^{}]*(\d{5}|\{)")
"""In a format string: a width of five digits, or one that is given beside it."""
MOST_BITS = 4096
"""Of a whole number that a multiplication makes."""


def chat_renderer(tokenizer: PreTrainedTokenizerBase) -> ChatRenderer | None:
    """Renders chats as text by the model's own chat template, for `read_documents`; None where there is no template.

    A BOS that the template writes is removed, since windows get theirs by `prepend_bos`. The renderer raises InputError
    for a template without end or measure, and ValueError for whatever else a template raises.
    """
    if not tokenizer.chat_template:
        return None
    _bound_transformers()
    bos = tokenizer.bos_token

    def render(messages: list[dict[str, str]]) -> str:
        try:
            with counting(MOST_STEPS):
                text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        except (SecurityError, RecursionError, MemoryError) as error:
            what = str(error) or type(error).__name__
            raise InputError(
                f"the chat template of {tokenizer.name_or_path!r} cannot be run on a chat of {len(messages)} messages: "
                f"{what}. Use another tokenizer's model, or render the chats yourself and set corpus.text_field"
            ) from None
        except Exception as error:  # whatever a template provokes in Jinja is the template's fault
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return text.removeprefix(str(bos)) if bos else text

    return render


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounds."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(joined)

    def from_string(self, *args: Any, **named: Any) -> Any:
        for name, function in self.filters.items():
            if name not in _ITEM_FILTERS:
                function = _weighed(function, name in _PADDING_FILTERS)
            self.filters[name] = counted(function)
        # Those that put one text between, or in place of, others: longer than the sum of what they are given.
        self.filters |= {"join": _bounded_join, "replace": _bounded_replace, "format": _bounded_format}
        self.filters |= {"_loop": counted_loop, "_concat": joined}
        self.finalize = _weighed(lambda value: value, False)
        return super().from_string(*args, **named)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **named: Any) -> Any:  # noqa: B902, N805
        take(10)  # about as long as ten passes through a loop
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            if method.__name__ == "join":
                args = tuple(list(counted_loop(arg)) for arg in args)  # what is looked at may be read only once
            _check_method(owner, method.__name__, args, named)
        result = super().call(__context, __obj, *args, **named)
        if isinstance(result, str):
            check_length(len(result))
            take(len(result) // 1024)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        take()
        if operator == "**":
            if abs(left) > WIDEST or abs(right) > 64:
                raise SecurityError(f"{left} ** {right} is too large a number")
        elif operator == "*":
            _check_repeated(left, right)
            _check_repeated(right, left)
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            check_length(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


class _Counting(NodeTransformer):
    """Sends the values of every loop, and the pieces of every `a ~ b`, through a filter that counts them."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_loop", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        pieces = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(pieces, "_concat", [], [], None, None, lineno=node.lineno)


def _bound_transformers() -> None:
    """Make transformers compile chat templates in a BoundedEnvironment, in this process."""
    from transformers.utils import chat_template_utils

    held = getattr(chat_template_utils, "ImmutableSandboxedEnvironment", None)
    if held is None:
        raise InputError(
            "this version of transformers compiles chat templates in another way than the ones this program knows, so "
            "their work cannot be bounded; install transformers 5.20 to 5.23, or set corpus.text_field"
        )
    if held is not BoundedEnvironment:
        chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment  # type: ignore[misc]
        chat_template_utils._compile_jinja_template.cache_clear()


def _check_repeated(values: Any, times: Any) -> None:
    if not isinstance(times, int):
        return
    if isinstance(values, (str, list, tuple)):
        check_length(len(values) * max(0, times))
    elif isinstance(values, int) and values.bit_length() + times.bit_length() > MOST_BITS:
        raise SecurityError(f"a number has more than {MOST_BITS:,} bits")


def _check_method(owner: str, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Raise SecurityError for a call of a text's method whose result would be too long."""
    if name in _PADDING_METHODS:
        _check_width(args, named)
    elif name == "replace":
        _check_replaced(owner, *args[:2])
    elif name == "join":
        joined(args[0] if args else (), owner)
    elif name in ("format", "format_map"):
        _check_format(owner)
        _check_width(args, named)
    elif name == "translate":
        raise SecurityError("translate is not for chat templates")


def _check_width(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    for value in (*args, *named.values()):
        if isinstance(value, int) and abs(value) > WIDEST:
            raise SecurityError(f"{value} characters are too wide (at most {WIDEST:,})")


def _check_format(text: str) -> None:
    if _WIDE_FIELD.search(text):
        raise SecurityError(f"a format string may set no width of more than {WIDEST:,}")


def _check_replaced(text: str, old: Any = "", new: Any = "", *_: Any) -> None:
    check_length(len(text) + text.count(str(old)) * len(str(new)))


def _weighed(function: Callable[..., Any], is_padding: bool) -> Callable[..., Any]:
    """A filter that makes a text of what it is given, which is weighed first."""

    @functools.wraps(function)
    def weighed(*args: Any, **named: Any) -> Any:
        weigh([*args, *named.values()])
        if is_padding:
            _check_width(args, named)
        return function(*args, **named)

    return weighed


@pass_environment
def _bounded_join(environment: Environment, value: Any, d: Any = "", attribute: Any = None) -> str:
    parts = counted_loop(value)
    return joined(parts if attribute is None else map(make_attrgetter(environment, attribute), parts), str(d))


def _bounded_replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    take(1 + len(str(text)) // 16)
    _check_replaced(str(text), old, new)
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _bounded_format(value: Any, *args: Any, **named: Any) -> str:
    _check_format(str(value))
    return str(str(value) % (named or args))
