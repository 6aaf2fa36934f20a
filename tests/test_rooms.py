"""The house: which room imports which, what a wheel installs, and what a newcomer can add to it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from functools import cache
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

from synth.base.errors import DISTRIBUTION
from synth.recipes import read_toml

ROOT = Path(__file__).parent.parent
ROOMS = ("synth.base", "synth.data", "synth.ops", "synth", "eval.metrics", "eval")
NEWCOMER = ROOT / "tests" / "newcomer"


# Imports


@cache
def graph() -> dict[str, set[str]]:
    """Module → modules of synth, eval and cli that it imports, at any depth of its code. What is
    imported for type checking alone does not count."""
    files = [*ROOT.glob("synth/**/*.py"), *ROOT.glob("eval/**/*.py"), ROOT / "cli.py"]
    names = {module_name(path): path for path in files}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]
        imported: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                imported |= {each if each in names else node.module for each in whole}
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        found[name] = (imported & names.keys()) - {name}
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    found = [name for name in ROOMS if module == name or module.startswith(f"{name}.")]
    return max(found, key=len, default=module)


def test_no_module_imports_itself_through_others() -> None:
    assert len(graph()) > 40
    tuple(TopologicalSorter(graph()).static_order())  # raises CycleError


def test_rooms_are_five_layers_without_a_cycle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, imported in graph().items():
        others = {room(other) for other in imported} - {room(module)}
        rooms.setdefault(room(module), set()).update(others)
    layers: dict[str, int] = {}
    for name in TopologicalSorter(rooms).static_order():
        layers[name] = 1 + max((layers[other] for other in rooms.get(name, ())), default=0)
    assert set(layers) == {*ROOMS, "cli"}
    assert max(layers.values()) <= 5, layers


def test_synth_never_imports_eval() -> None:
    for module, imported in graph().items():
        if module.startswith("synth"):
            assert not [name for name in imported if name.split(".")[0] in ("eval", "cli")], module


def test_what_is_imported_is_declared() -> None:
    project = read_toml(ROOT / "pyproject.toml")["project"]
    lines = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[<>=; \[]", line)[0].lower() for line in chain(*lines)}
    renamed = {"sklearn": "scikit-learn", "PIL": "pillow", "tomllib": "tomli", "tomli_w": "tomli-w"}
    renamed["pydantic_core"] = "pydantic"  # pydantic pins the one version that fits it
    optional = {"torch_fidelity": "torch-fidelity", "huggingface_hub": "huggingface-hub"}
    for path in [*ROOT.glob("synth/**/*.py"), *ROOT.glob("eval/**/*.py"), ROOT / "cli.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            plain = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else plain
            for name in {name.split(".")[0] for name in names}:
                if name not in {*sys.stdlib_module_names, "synth", "eval", "cli"}:
                    package = {**renamed, **optional}.get(name, name).lower()
                    assert package in declared, f"{path}: {name}"


def test_messages_say_what_pip_calls_synth() -> None:
    assert read_toml(ROOT / "pyproject.toml")["project"]["name"] == DISTRIBUTION
    for path in [*ROOT.glob("synth/**/*.py"), *ROOT.glob("eval/**/*.py"), ROOT / "cli.py"]:
        assert not re.search(r"pip install '?synth\b(?!-cas)", path.read_text()), path


# The wheel, and a package of one's own beside it


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git tracks, as a clone of it would be."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "synth", "eval", "cli.py", "pyproject.toml", "*.md"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in [*tracked, "LICENSE"]:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", folder, folder / "source")
    (made,) = folder.glob("*.whl")
    return made


def pip(python: object, command: str, *arguments: object) -> None:
    words = [python, "-m", "pip", command, "--quiet", "--no-build-isolation", *arguments]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def test_the_wheel_installs_synth_eval_and_cli_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"synth", "eval", "cli.py"}
    assert {"synth/ops/kernels.c", "synth/ops/tiles.c"} <= set(names)
    page = ("page.html", "parts.html", "style.css", "script.js")
    assert {f"eval/report/{name}" for name in page} <= set(names)


@pytest.fixture(scope="module")
def synth_elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment outside the checkout, which holds the wheel and the newcomer's
    package. Their dependencies are read from the environment of the tests."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    scripts = folder / "env" / "bin"
    (site,) = (folder / "env" / "lib").glob("*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    for package in (wheel, NEWCOMER):
        source = package
        if package is NEWCOMER:  # setuptools builds in the folder itself
            source = folder / "newcomer"
            source.mkdir()
            for name in ("pyproject.toml", "newcomer.py"):
                (source / name).write_bytes((NEWCOMER / name).read_bytes())
        pip(scripts / "python", "install", "--no-deps", source)
    return scripts / "synth"


def test_a_newcomers_package_adds_one_of_everything(synth_elsewhere: Path, tmp_path: Path) -> None:
    """The newcomer's table, from outside: a data set, a format, a family that is no GAN with its
    recipe, a metric, a baseline and a protocol, through all commands."""

    def synth(*arguments: object) -> str:
        ran = subprocess.run(
            [str(synth_elsewhere), *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    where = subprocess.run(
        [synth_elsewhere.parent / "python", "-c", "import synth, cli; print(cli.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(synth_elsewhere.parent.parent) in where  # and not the checkout
    assert "stripes" in synth("train", "--help")
    assert "stripes that lie or stand" in synth("datasets")
    assert "pca-small" in synth("recipes")
    trained = ("--recipe", "pca-small", "--set", "components=6", "--dataset", "stripes")
    synth("train", *trained, "--precision", "fp32")
    synth("generate", "--per-class", "12", "--format", "npy")
    scored = ("--protocol", "tiny-v1", "--metrics", "brightness", "--precision", "fp32")
    synth("evaluate", *scored)
    rows = {row["entry"]: row for row in json.loads(synth("leaderboard", "--json"))}
    ours = rows["pca-small, components=6"]
    assert ours["rank"] == 1
    assert ours["training_images"] == 24
    assert 0 < ours["brightness"] < 1
    assert rows["grey"]["rank"] is None
    assert rows["grey"]["brightness"] == pytest.approx(128 / 255)
    (record,) = (tmp_path / "results" / "records").glob("*-pca-small-components-6-tiny-v1.json")
    assert json.loads(record.read_text())["entry"]["config"]["family"] == "pca"
    for stage in ("evaluate", "generate", "train"):
        assert "holds, bit for bit" in synth("verify", record, "--from", stage)
