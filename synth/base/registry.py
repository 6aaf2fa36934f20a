"""Named things that a user chooses from: built-in ones, and those of installed plug-ins.

A plug-in is a package that declares an entry point in the registry's group:

    [project.entry-points."eval.metrics"]
    sharpness = "my_package.sharpness:METRIC"

Names are listed without importing anything, so that `synth --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module, metadata
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from synth.base.errors import SynthError, UsageError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Name → entry. Names have dashes where modules have underscores.

    option: how the command line names the choice, for errors, e.g. `--dataset`.
    group: of the plug-ins' entry points, e.g. `synth.datasets`.
    entries: the built-in ones.
    later: built-in ones as `module:attribute`, which is imported when it is asked for.
    modules: a package whose every public module holds one, as `attribute`. A new entry is then a
    new module.
    """

    def __init__(
        self,
        option: str,
        group: str,
        entries: Mapping[str, Entry] | None = None,
        *,
        later: Mapping[str, str] | None = None,
        modules: str = "",
        attribute: str = "",
    ) -> None:
        self.option, self.group = option, group
        self.entries = dict(entries or {})
        self.later = dict(later or {})
        self.modules, self.attribute = modules, attribute
        self._loaded: dict[str, Entry] = {}  # from modules and plug-ins

    def names(self) -> list[str]:
        """All names: built-in ones first, then plug-ins'."""
        listed = names_of(self.group, self.modules)
        return list(dict.fromkeys([*self.entries, *self.later, *listed]))

    def find(self, name: str) -> Entry:
        """The entry of this name. Raises `UsageError` that names the nearest right ones."""
        if name in self.entries:
            return self.entries[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> Any:
        if name in self.later:
            module, _, attribute = self.later[name].partition(":")
            return getattr(import_module(module), attribute)
        if name in _module_names(self.modules):
            module = f"{self.modules}.{name.replace('-', '_')}"
            return getattr(import_module(module), self.attribute)
        plugin = _plugins(self.group).get(name)
        if plugin is None:
            names = self.names()
            near = get_close_matches(name.lower(), names, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"{self.option} {name}: unknown; {hint}choose {', '.join(names)}")
        try:
            return plugin.load()
        except (ImportError, AttributeError) as error:
            raise SynthError(
                f"{self.option} {name}: its plug-in {plugin.value} cannot be loaded ({error})"
            ) from error

    def __getitem__(self, name: str) -> Entry:
        try:
            return self.find(name)
        except UsageError as error:
            raise KeyError(name) from error

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())


def names_of(group: str, modules: str = "") -> list[str]:
    """The names that a registry's package and plug-ins give, without importing either."""
    return list(dict.fromkeys([*_module_names(modules), *_plugins(group)]))


def _module_names(package: str) -> list[str]:
    spec = find_spec(package) if package else None
    places = (spec and spec.submodule_search_locations) or []
    found = sorted(module.name for module in iter_modules(places))
    return [name.replace("_", "-") for name in found if not name.startswith("_")]


def _plugins(group: str) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=group)}
