"""Generators to take along, and what `synth push` sends: to a hub on this machine."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin

import eval as cas
import synth as library
from eval.push import to_push
from synth.base.errors import SynthError, UsageError
from synth.base.files import read_json
from synth.networks import Generator as Network
from synth.recipes import GeneratorRecipe
from synth.runs import RunConfig
from tests.conftest import ROOT, SCORE, TRAIN, Ran, tamper
from tests.hub_stub import TOKEN, Hub, running

Synth = Callable[..., Ran]
LABELS = np.arange(30) % 10


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def world(tiny_names: None, synth: Synth, mats: Path, made: Path) -> Path:
    """A folder with a run, its set, and records of the set and of the real images."""
    if not any(made.iterdir()):
        data = ("--data-root", mats)
        score = (*SCORE, "--metrics", "cas", "--no-baselines", *data)
        copy = ("generate", "--per-class", "20", *data)
        for words in (("train", "--recipe", "tiny", *TRAIN, *data), copy, ("evaluate", *score)):
            ran = synth(*words)
            assert ran.code == 0, ran.err
        noise = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3)).astype(np.uint8)
        cas.score(noise, LABELS, protocol="tiny-v1", precision="fp32", data_root=mats)
        shutil.copytree(mats.parent, made, dirs_exist_ok=True)
    shutil.copytree(made, mats.parent, dirs_exist_ok=True)
    return mats.parent


@pytest.fixture
def run(world: Path) -> Path:
    return next((world / "runs").glob("0*"))


@pytest.fixture
def dataset(world: Path) -> Path:
    return next((world / "datasets").glob("0*"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stub instead of the real hub, with its token, and an empty cache."""
    with running() as found:
        constants = huggingface_hub.constants
        template = found.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# A folder with a generator


def test_a_saved_generator_is_the_one_of_the_run(run: Path, tmp_path: Path) -> None:
    trained = library.load(run)
    trained.save_pretrained(tmp_path / "there")
    loaded = library.Generator.from_pretrained(tmp_path / "there")
    assert loaded.classes == trained.classes
    assert loaded.run.config == trained.run.config
    for seed in (0, 3):
        assert np.array_equal(loaded.sample(LABELS, seed), trained.sample(LABELS, seed))
    saved = contents(tmp_path / "there")
    assert set(saved) == {"config.json", "model.safetensors", "README.md", "samples.png"}
    assert saved["model.safetensors"] == (run / "generator.safetensors").read_bytes()
    loaded.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == saved


def test_a_chosen_checkpoint_is_the_one_that_is_saved(run: Path, tmp_path: Path) -> None:
    (kept,) = (run / "checkpoints").iterdir()
    shutil.copyfile(kept, run / "checkpoints" / "0000001k.safetensors")
    chosen = library.load(run, "0000001k")
    (run / "generator.safetensors").unlink()
    chosen.save_pretrained(tmp_path / "there")
    assert (tmp_path / "there" / "model.safetensors").read_bytes() == kept.read_bytes()


class Mixed(torch.nn.Module, PyTorchModelHubMixin):  # type: ignore[misc]
    """What somebody without synth's `Generator` would write to load the weights."""

    def __init__(self, recipe: dict[str, object], classes: list[str]) -> None:
        super().__init__()
        plan = GeneratorRecipe(**recipe["generator"])  # type: ignore[arg-type]
        self.network = Network(plan, len(classes))

    def load_state_dict(self, state: dict[str, torch.Tensor], strict: bool = True) -> object:  # type: ignore[override]
        return self.network.load_state_dict(state, strict)


def test_the_layout_is_that_of_the_hubs_own_class(run: Path, tmp_path: Path) -> None:
    generator = library.load(run)
    generator.save_pretrained(tmp_path / "there")
    mixed = Mixed.from_pretrained(tmp_path / "there").network.state_dict()
    ours = generator.sampler.tensors()
    assert mixed.keys() == ours.keys()
    assert all(torch.equal(mixed[key], ours[key]) for key in ours)


def test_what_cannot_be_loaded_is_told(
    run: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = library.Generator.from_pretrained
    with pytest.raises(SynthError, match=r"no model.safetensors.*load a run with synth.load"):
        load(run)
    with pytest.raises(SynthError, match=r"holds no generator \(no model.safetensors\)$"):
        load(tmp_path)
    with pytest.raises(UsageError, match="no/such/folder: is no folder, and no OWNER/NAME"):
        load("no/such/folder")
    with pytest.raises(SynthError, match="ann/none: there is no such repository"):
        load("ann/none")
    library.load(run).save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SynthError, match="is damaged"):
        load(tmp_path / "cut")
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(SynthError, match=r"pip install 'synth-cas\[hub\]'"):
        load("ann/none")


# Cards


def card_of(text: str) -> ModelCard:
    card = ModelCard(text)
    assert isinstance(card.data, ModelCardData)
    assert yaml.safe_load(str(card.data)) == card.data.to_dict()
    return card


def test_the_card_of_a_run_has_its_score(run: Path, hub: Hub, synth: Synth) -> None:
    """The score and that of the real images are those in the leaderboard."""
    ran = synth("push", run, "--to", "ann/digits")
    assert ran.code == 0, ran.err
    card = card_of(hub.repositories["ann/digits"].files["README.md"].decode())
    rows = {row["entry"]: row for row in json.loads(synth("leaderboard", "--json").out)}
    (found,) = card.data.eval_results
    assert found.metric_value == round(100 * rows["tiny"]["accuracy"], 2)
    assert (found.dataset_name, found.dataset_type) == ("small-svhn", "svhn")
    assert (found.metric_type, found.task_type) == ("accuracy", "unconditional-image-generation")
    front = card.data.to_dict()
    told = [front[key] for key in ("license", "license_name", "library_name")]
    assert told == ["other", "terms-of-small-svhn", "synth-cas"]
    text = " ".join(card.text.split())
    for words in (
        "Its recipe is tiny (seed 0). It was trained on small-svhn, until 64 real images were",
        f"**{100 * rows['tiny']['accuracy']:.2f} %** for tiny on small-svhn",
        "under the protocol tiny-v1, with 200 images and 2 classifiers.",
        f"The real images reach {100 * rows['real']['accuracy']:.2f} %.",
        "the terms of small-svhn go on to apply to what it makes",
        'synth.Generator.from_pretrained("ann/digits")',
        "![samples, one class a row](samples.png)",
    ):
        assert words in text, text


def test_the_card_without_a_record_says_so(run: Path, tmp_path: Path) -> None:
    library.load(run).save_pretrained(tmp_path / "there")
    card = card_of((tmp_path / "there" / "README.md").read_text())
    assert card.data.eval_results is None
    assert "It was not scored, or no record" in card.text


def test_the_code_on_the_card_runs(run: Path, tmp_path: Path) -> None:
    library.load(run).save_pretrained(tmp_path / "there")
    text = (tmp_path / "there" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, np.ndarray] = {}
    exec(code.replace("FOLDER", str(tmp_path / "there")), names)
    assert names["images"].shape == (2, 32, 32, 3)
    assert names["images"].dtype == np.uint8


# Pushing


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's calls
@pytest.mark.parametrize("large", [r"$^", r"safetensors|png$"])
def test_a_pushed_generator_comes_back(run: Path, hub: Hub, synth: Synth, large: str) -> None:
    hub.large = large
    ran = synth("push", run, "--to", "ann/digits")
    assert (ran.code, ran.out) == (0, f"{hub.endpoint}/ann/digits\n"), ran.err
    repository = hub.repositories["ann/digits"]
    assert not repository.private
    assert set(repository.files) == {"README.md", "config.json", "model.safetensors", "samples.png"}
    weights = (run / "generator.safetensors").read_bytes()
    assert repository.files["model.safetensors"] == weights
    assert json.loads(repository.files["config.json"]) == read_json(run / "config.json")
    assert repository.messages == [f"{run.name}, by synth {library.__version__}"]
    assert bool(hub.stored) == (large != r"$^")
    loaded = library.Generator.from_pretrained("ann/digits")
    expected = library.load(run).sample(LABELS, seed=1)
    assert np.array_equal(loaded.sample(LABELS, seed=1), expected)


def test_a_pushed_set_is_the_folder_byte_for_byte(dataset: Path, hub: Hub, synth: Synth) -> None:
    (dataset / ".lock").touch()
    ran = synth("push", dataset, "--to", "ann/set", "--private", "--json")
    assert ran.code == 0, ran.err
    repository = hub.repositories["datasets/ann/set"]
    assert repository.private
    shown = {name: data for name, data in contents(dataset).items() if name != ".lock"}
    assert repository.files == shown
    told = json.loads(ran.out)
    assert told["address"] == f"{hub.endpoint}/datasets/ann/set"
    assert told["files"] == {name: len(data) for name, data in shown.items()}


def test_a_saved_folder_is_sent_as_it_is(run: Path, tmp_path: Path, hub: Hub, synth: Synth) -> None:
    folder = tmp_path / "there"
    library.load(run).save_pretrained(folder)
    (folder / "README.md").write_text("mine")
    assert synth("push", folder, "--to", "ann/digits").code == 0
    assert hub.repositories["ann/digits"].files == contents(folder)


def test_a_damaged_generator_is_not_sent(run: Path, tmp_path: Path) -> None:
    library.load(run).save_pretrained(tmp_path / "there")
    weights = tmp_path / "there" / "model.safetensors"
    assert to_push(tmp_path / "there", "ann/model", tmp_path, tmp_path)[0] == "model"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SynthError, match="is damaged"):
        to_push(tmp_path / "there", "ann/model", tmp_path, tmp_path)


def test_a_dry_run_lists_the_files_and_asks_nobody(
    run: Path, hub: Hub, synth: Synth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ran = synth("push", run, "--to", "ann/digits", "--dry-run")
    assert ran.code == 0, ran.err
    first, *files = ran.out.splitlines()
    assert first == "would be sent to the model repository ann/digits:"
    names = ["README.md", "config.json", "model.safetensors", "samples.png"]
    assert [line.split()[1] for line in files] == names
    size = (run / "generator.safetensors").stat().st_size
    assert f"{size:,}" in ran.out
    assert hub.asked == []


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"": (401, "Invalid credentials")}, "refuses the token (Invalid credentials); log in"),
        ({"": (403, "no write token")}, "the token may not do this (no write token); use a token"),
        ({"/preupload/": (403, "read only")}, "the token may not do this (read only); use a token"),
        ({"": (404, "no such user")}, "there is no such repository or owner"),
        ({"/commit/": (413, "too large")}, "answered 413 (too large)"),
        ({"/preupload/": (404, "gone")}, "there is no such repository or owner"),
    ],
)
def test_a_refusal_is_one_line(
    answers: dict[str, tuple[int, str]], words: str, dataset: Path, hub: Hub, synth: Synth
) -> None:
    hub.answers = answers
    refused(synth("push", dataset, "--to", "ann/set"), words)


def refused(ran: Ran, words: str, code: int = 1) -> None:
    *before, line = ran.err.splitlines()
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert line.startswith("error: ") and words in line, line
    assert TOKEN not in ran.err
    assert all(each.startswith(("push: starts", "sends ")) for each in before), ran.err


def test_what_hinders_a_push_is_told(dataset: Path, tmp_path: Path, hub: Hub, synth: Synth) -> None:
    to = ("--to", "ann/set")
    assert synth("push", dataset, *to).code == 0
    refused(synth("push", dataset, *to, "--private"), "ann/set is there already, and is public", 2)
    refused(synth("push", dataset, "--to", "set"), "--to set: is no OWNER/NAME", 2)
    refused(synth("push", dataset, "--to", "a/b/c"), "--to a/b/c: is no OWNER/NAME", 2)
    refused(synth("push", tmp_path, *to), "is no synthetic set, no run and no folder", 2)
    asked = len(hub.asked)
    tamper(dataset / "manifest.json", lambda value: value.update(sha256="0" * 64))
    refused(synth("push", dataset, *to), "do not match manifest.json")
    assert len(hub.asked) == asked


def test_without_a_token_or_a_network(
    dataset: Path, hub: Hub, synth: Synth, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:  # nothing listens there
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        ran = synth("push", dataset, "--to", "ann/set")
    refused(ran, f"--to ann/set: {address} cannot be reached")
    monkeypatch.delenv("HF_TOKEN")
    refused(synth("push", dataset, "--to", "ann/set"), "there is no token of the Hugging Face hub")
    assert hub.asked == []


def test_without_the_extra_the_mend_is_told(
    dataset: Path, synth: Synth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    ran = synth("push", dataset, "--to", "ann/set")
    refused(ran, "synth push: needs huggingface_hub; install it with: pip install 'synth-cas[hub]'")


def test_huggingface_hub_is_imported_in_functions_of_one_module_alone() -> None:
    for path in [*ROOT.glob("synth/**/*.py"), *ROOT.glob("eval/**/*.py"), ROOT / "cli.py"]:
        found = re.findall(r"^( *)(?:from|import) huggingface_hub", path.read_text(), re.MULTILINE)
        assert not found or (path.name == "hub.py" and all(found)), path


def test_a_configuration_is_that_of_the_weights(run: Path, tmp_path: Path) -> None:
    """config.json is for the hub and for people: nothing is loaded by it."""
    library.load(run).save_pretrained(tmp_path / "there")
    config = library.Generator.from_pretrained(tmp_path / "there").run.config
    told = RunConfig.from_json(read_json(tmp_path / "there" / "config.json"), "config.json")
    assert told == config
