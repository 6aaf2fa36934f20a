"""Named things that a user chooses from. Some are built in, and installed plug-ins add more.

A plug-in is a package that declares an entry point in the registry's group:

    [project.entry-points."eval.metrics"]
    sharpness = "my_package.sharpness:METRIC"

Names are listed without importing anything, so that `synth --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pkgutil import iter_modules, resolve_name
from typing import Generic, TypeVar, cast

from synth.base.errors import SynthError, UsageError

Entry = TypeVar("Entry")


@dataclass(eq=False, repr=False)
class Registry(Mapping[str, Entry], Generic[Entry]):
    """Name → entry. A dash in a name is an underscore in the name of a module."""

    option: str  # the option that takes a name, such as `--dataset`; for error messages
    group: str  # of the plug-ins' entry points, such as `synth.datasets`
    entries: dict[str, Entry] = field(default_factory=dict)  # built-in entries
    later: dict[str, str] = field(default_factory=dict)  # `module:attribute`, imported when needed
    modules: str = ""  # a package; each public module in it holds one entry, as `attribute`
    attribute: str = ""

    def names(self) -> list[str]:
        """All names. Those of plug-ins come last."""
        listed = names_of(self.group, self.modules)
        return list(dict.fromkeys([*self.entries, *self.later, *listed]))

    def find(self, name: str) -> Entry:
        """The entry of this name. Raises `UsageError` with the nearest name if there is none, and
        `SynthError` if a plug-in has the name of a built-in entry."""
        place, plugin = self.later.get(name), _plugins(self.group).get(name)
        if place is None and name in _module_names(self.modules):
            place = f"{self.modules}.{name.replace('-', '_')}:{self.attribute}"
        if plugin is not None and (name in self.entries or place is not None):
            raise SynthError(
                f"{self.option} {name}: the plug-in {plugin.value} has the name of a built-in "
                "entry; rename it"
            )
        if name in self.entries:
            return self.entries[name]
        if place is not None:
            return cast(Entry, resolve_name(place))
        if plugin is None:
            names = self.names()
            near = get_close_matches(name.lower(), names, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"{self.option} {name}: unknown; {hint}choose {', '.join(names)}")
        try:
            return cast(Entry, plugin.load())
        except (ImportError, AttributeError) as error:
            raise SynthError(
                f"{self.option} {name}: its plug-in {plugin.value} cannot be loaded ({error})"
            ) from error

    def __getitem__(self, name: str) -> Entry:
        try:
            return self.find(name)
        except UsageError as error:
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())


def names_of(group: str, modules: str = "") -> list[str]:
    """The names from the modules of a package and from plug-ins. Imports none of them."""
    return list(dict.fromkeys([*_module_names(modules), *_plugins(group)]))


@cache
def _module_names(package: str) -> list[str]:
    spec = find_spec(package) if package else None
    found = iter_modules(spec.submodule_search_locations if spec else [])
    names = sorted(module.name for module in found)
    return [name.replace("_", "-") for name in names if not name.startswith("_")]


def _plugins(group: str) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=group)}
