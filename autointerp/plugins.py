"""Adds scorers, evidence methods and explainers from other installed packages.

A package names its objects under an entry point group, as plugins of pytest and setuptools do:

    [project.entry-points."autointerp.scorers"]
    longest = "my_package.longest:LONGEST"

A configuration file cannot name an object to load, so only installed code can run.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Literal, Protocol, TypeVar

from autointerp.errors import InputError

Group = Literal["scorers", "methods", "explainers"]


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


def with_plugins(built_in: Iterable[T], group: Group) -> tuple[T, ...]:
    """`built_in`, then the objects that installed packages add to `group`, ordered by the names of their entry points.

    Raises InputError when an entry point cannot be loaded, or when its object has no `name` or one that is taken.
    """
    found = list(built_in)
    taken = {one.name for one in found}
    for entry in sorted(entry_points(group=f"autointerp.{group}"), key=lambda entry: entry.name):
        brought_by = f"{entry.value} (of the installed package {entry.dist.name if entry.dist else 'unknown'})"
        try:
            one: T = entry.load()
        except Exception as error:  # another package's module may raise anything when it is imported
            raise InputError(
                f"the entry point {entry.name!r} of autointerp.{group} cannot be loaded from {brought_by}: {error!r}; "
                "mend or uninstall that package"
            ) from error
        name = getattr(one, "name", None)
        if not isinstance(name, str) or not name:
            raise InputError(f"{brought_by} has no `name`, so it cannot be one of autointerp.{group}")
        if name in taken:
            raise InputError(f"{brought_by} is called {name!r}, and autointerp.{group} has one of that name already")
        taken.add(name)
        found.append(one)
    return tuple(found)
