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
    entries: the built-in ones. Or `modules`, a package whose every public module holds one, as
    `attribute`: a new entry is then a new module.
    """

    def __init__(
        self,
        option: str,
        group: str,
        entries: Mapping[str, Entry] | None = None,
        *,
        modules: str = "",
        attribute: str = "",
    ) -> None:
        self.option, self.group = option, group
        self.entries = dict(entries or {})
        self.modules, self.attribute = modules, attribute
        self._loaded: dict[str, Entry] = {}  # from modules and plug-ins

    def names(self) -> list[str]:
        """All names: built-in ones first, then plug-ins'."""
        return list(dict.fromkeys([*self.entries, *self._module_names(), *self._plugins()]))

    def find(self, name: str) -> Entry:
        """The entry of this name. Raises `UsageError` that names the nearest right ones."""
        if name in self.entries:
            return self.entries[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> Any:
        if name in self._module_names():
            module = import_module(f"{self.modules}.{name.replace('-', '_')}")
            return getattr(module, self.attribute)
        plugin = self._plugins().get(name)
        if plugin is None:
            names = self.names()
            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"{self.option} {name}: unknown; {hint}choose {', '.join(names)}")
        try:
            return plugin.load()
        except (ImportError, AttributeError) as error:
            raise SynthError(
                f"{self.option} {name}: its plug-in {plugin.value} cannot be loaded ({error})"
            ) from error

    def _module_names(self) -> list[str]:
        spec = find_spec(self.modules) if self.modules else None
        places = (spec and spec.submodule_search_locations) or []
        found = sorted(module.name for module in iter_modules(places))
        return [name.replace("_", "-") for name in found if not name.startswith("_")]

    def _plugins(self) -> dict[str, metadata.EntryPoint]:
        return {point.name: point for point in metadata.entry_points(group=self.group)}

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
