"""Named things that a user chooses from. Some are built in, and installed plug-ins add more.

A plug-in is a package that declares an entry point in the registry's group:

    [project.entry-points."eval.metrics"]
    sharpness = "my_package.sharpness:METRIC"

Names are listed without importing anything, so that `synth --help` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pkgutil import iter_modules, resolve_name
from typing import Any, Generic, TypeVar, cast

from synth.base.errors import SynthError, UsageError

Entry = TypeVar("Entry")


@dataclass(eq=False, repr=False)
class Registry(Mapping[str, Entry], Generic[Entry]):
    """Name → entry. A dash in a name is an underscore in the name of a module."""

    option: str  # the option that takes a name, such as `--dataset`; for error messages
    group: str  # of the plug-ins' entry points, such as `synth.datasets`
    kind: type[Any] = object  # of every entry
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
        `SynthError` that names the plug-in if it cannot be used."""
        place, plugins = self.later.get(name), _plugins(self.group).get(name, [])
        if place is None and name in _module_names(self.modules):
            place = f"{self.modules}.{name.replace('-', '_')}:{self.attribute}"
        if plugins and (name in self.entries or place is not None):
            raise SynthError(
                f"{self.option} {name}: {_describe(plugins[0])} has the name of a built-in "
                "entry; rename it"
            )
        if name in self.entries:
            return self.entries[name]
        if place is not None:
            return cast(Entry, resolve_name(place))
        if len(plugins) > 1:
            both = " and ".join(map(_describe, plugins))
            raise SynthError(f"{self.option} {name}: {both} have the same name; uninstall one")
        if plugins:
            return self._load(plugins[0])
        names = self.names()
        near = get_close_matches(name.lower(), names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{self.option} {name}: unknown; {hint}choose {', '.join(names)}")

    def _load(self, plugin: metadata.EntryPoint) -> Entry:
        what = f"{self.option} {plugin.name}: {_describe(plugin)}"
        try:
            entry = plugin.load()
        except Exception as error:  # of somebody else's code
            reason = f"{type(error).__name__}: {error}"
            raise SynthError(f"{what} cannot be loaded ({reason}); mend or uninstall it") from error
        if not isinstance(entry, self.kind):
            found, wanted = type(entry).__name__, self.kind.__name__
            raise SynthError(f"{what} is a {found}, and not a {wanted}; mend or uninstall it")
        return cast(Entry, entry)

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


def plugin_at_fault(error: BaseException) -> str | None:
    """The package of the plug-in whose code raised this error; None if no plug-in's code did."""
    points = (point for package in metadata.distributions() for point in package.entry_points)
    ours = (point for point in points if point.group.startswith(("synth.", "eval.")))
    plugins = {re.split(r"[.:]", point.value)[0]: point for point in ours}
    step, found = error.__traceback__, None
    while step is not None:
        module = str(step.tb_frame.f_globals.get("__name__"))
        found = plugins.get(module.split(".")[0], found)
        step = step.tb_next
    return None if found is None else _package(found)


def _plugins(group: str) -> dict[str, list[metadata.EntryPoint]]:
    """Name → the entry points that have it; one is what it should be."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def _describe(plugin: metadata.EntryPoint) -> str:
    return f"the plug-in {plugin.value} of the package {_package(plugin)}"


def _package(plugin: metadata.EntryPoint) -> str:
    return plugin.dist.name if plugin.dist is not None else plugin.value
