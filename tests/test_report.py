"""report.html: what stands in it, and that people can read and use it, in a real browser."""

from __future__ import annotations

import io
import math
import re
import shutil
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from eval.aggregate import build_tables
from eval.metrics import Column
from eval.records import Record, plot_path, read_records
from eval.report import class_names, grids, mistakes, samples, write_report
from eval.report.charts import (
    accuracy_axis,
    log_axis,
    loss_charts,
    percent_axis,
    reference_lines,
    scatter_plots,
    short,
)
from eval.report.samples import encode_samples, first_of_each
from synth.visuals import save_grid
from tests.conftest import ROOT, Ran
from tests.test_leaderboard import CEILING, record, synthetic

RESULTS = ROOT / "results"
SHOWN = {
    "copier",
    "real",
    "real, same size",
    "dcgan + pseudo-labels",
    "PCA + Gaussian per class",
    "cdcgan",
    "dcgan + random labels",
}
WIDTHS = (400, 800, 1400)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def report_of(folder: Path, records: list[Record]) -> str:
    return write_report(folder, build_tables(records)).read_text(encoding="utf-8")


# What stands in it


def test_nothing_that_a_record_says_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"
    made = record(replace(synthetic(evil), config={"classes": [evil] * 10}), 0.7)
    made = replace(made, environment={"command": evil, "device": evil})
    page = report_of(tmp_path, [made, record(CEILING, 0.8)])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;{{ 7 * 7 }}" in page


def test_it_names_no_other_place(tmp_path: Path) -> None:
    page = report_of(tmp_path, read_records(RESULTS))
    assert not re.findall(r"https?:|@import|\bsrc=\"(?!data:)|<link", page)
    assert "default-src 'none'; img-src data:" in page


def test_the_lines_that_scores_are_read_by(tmp_path: Path) -> None:
    augmented = replace(CEILING, kind="real-augmented", name="real, augmented", sha256="a")
    known = [record(synthetic(), 0.7), record(CEILING, 0.8), record(augmented, 0.9)]

    def lines(records: list[Record]) -> list[tuple[str, str]]:
        page = report_of(tmp_path, records)
        return re.findall(r"<li><span>([^<]*)</span><b>([\d.]+) %</b>", page)

    chance = ("chance", "10.00")
    assert lines(known) == [("real + augmentation", "90.00"), ("real", "80.00"), chance]
    assert lines(known[:1]) == [chance]


def test_every_run_of_a_row_is_there(tmp_path: Path) -> None:
    made = [record(synthetic(digest=str(run)), 0.5 + run / 10, 0.6) for run in range(3)]
    for run, each in enumerate(made):
        picture = torch.full((100, 3, 32, 32), 40 * run, dtype=torch.uint8)
        save_grid(picture, plot_path(tmp_path, each, "samples"), columns=10)
    page = report_of(tmp_path, made)
    for run, each in enumerate(made):
        assert page.count(f"<code>{each.id}</code>") == 1
        assert f'data-picture="{run}"' in page
    plot_path(tmp_path, made[1], "samples").write_bytes(b"no picture")
    plot_path(tmp_path, made[2], "samples").unlink()
    page = report_of(tmp_path, made)
    assert 'data-picture="0"' in page
    assert 'data-picture="1"' not in page


def test_classes_have_the_names_of_the_first_generator_that_has_some() -> None:
    named = replace(synthetic("named", digest="n"), config={"classes": list("abcdefghij")})
    others = [
        replace(synthetic("a", digest="a"), config=None),
        replace(synthetic("b", digest="b"), config={"classes": 10}),
        replace(synthetic("c", digest="c"), config={"classes": ["one", "two"]}),
    ]
    (table,) = build_tables([record(entry, 0.9) for entry in others])
    assert class_names(table) == [str(number) for number in range(10)]
    (table,) = build_tables([record(entry, 0.9) for entry in others] + [record(named, 0.2)])
    assert class_names(table) == list("abcdefghij")


def test_the_most_frequent_confusions_by_hand() -> None:
    shares = np.array([[0.4, 0.35, 0.25], [0.02, 0.88, 0.1], [0.3, 0.05, 0.65]])
    found = mistakes(shares, ["a", "b", "c"])
    assert found == [  # five of the six
        ("a", "b", 0.35),
        ("c", "a", 0.3),
        ("a", "c", 0.25),
        ("b", "c", 0.1),
        ("c", "b", 0.05),
    ]
    assert mistakes(np.eye(3), ["a", "b", "c"]) == []


def test_only_numbers_have_a_value_to_sort_by() -> None:
    column = Column("share", "share", "%")
    assert grids.number(column, 0.5) == grids.Cell("50.00", 0.5)
    assert grids.number(column, 1) == grids.Cell("100.00", 1)
    assert grids.number(column, math.nan) == grids.Cell("–", None)
    assert grids.number(column, None) == grids.Cell("–", None)
    assert grids.number(Column("entry", "entry"), "a name") == grids.Cell("a name", None)


def test_metrics_that_have_a_value_and_a_title_are_shown() -> None:
    measured = {"seconds": {}, "gan_test": 0.9, "diversity": {"mean": 30.0, "real": 20.0}}
    (table,) = build_tables([replace(record(synthetic(), 0.7), metrics=measured)])
    shown = grids.metrics(table)
    assert [title for title, _ in shown.heads] == ["GAN-test %", "diversity", "real's diversity"]
    ((_, cells),) = shown.rows
    noted = [(cell.value, cell.note) for cell in cells]
    assert noted == [(0.9, ""), (30.0, "1.50 × real"), (20.0, "")]


def test_pictures_get_the_best_quality_that_fits() -> None:
    found = [samples._quality(10_000, most) for most in (18_000, 17_999, 3_401, 3_399, 2_099, 1)]
    assert found == [100, 90, 90, 80, 60, 10]


def test_diversity_is_read_against_that_of_real_images(tmp_path: Path) -> None:
    measured = {"seconds": {}, "diversity": {"mean": 30.0, "real": 20.0}}
    page = report_of(tmp_path, [replace(record(synthetic(), 0.7), metrics=measured)])
    assert "30.0 <small>1.50 × real</small>" in page
    assert "not of a better set" in page


def test_odd_results_are_still_a_report(tmp_path: Path) -> None:
    """Scores and figures at the ends of what is possible, one class, logs of another family."""
    log = [{"images": 0, "loss": 1e300}, {"images": 0, "loss": -1.0}, {"images": 0}]
    odd = {"seconds": {}, "fidelity": {"classifier": {"fid": 1e300, "kid": -0.0}}}
    entry = replace(synthetic(), training_log=log, images_shown=0)
    seed = record(entry, 0.0).scores[0]
    one = replace(seed, accuracy=1.0, recalls=[1.0], confusion=[[5]])
    for made in (
        [],
        [replace(record(entry), error="it broke")],
        [replace(record(entry, 0.0, 1.0), metrics=odd)],
        [replace(record(entry, 1.0), scores=[one])],
        [
            record(replace(entry, training_log=None, config={"classes": 3}), 0.0),
            record(CEILING, 0.0),
        ],
    ):
        assert "</html>" in report_of(tmp_path, made)


def test_forty_entries_take_less_than_three_megabytes(tmp_path: Path) -> None:
    """Each with other samples: the committed ones, and these turned."""
    figures = sorted((RESULTS / "figures").glob("*-samples.png"))
    made = [record(synthetic(f"entry {number}", digest=f"{number}"), 0.5) for number in range(40)]
    for number, each in enumerate(made):
        pixels = np.asarray(Image.open(figures[number % len(figures)]))
        path = plot_path(tmp_path, each, "samples")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.rot90(pixels, number // len(figures))).save(path)
    assert len(report_of(tmp_path, made)) < 3_000_000


def test_few_samples_keep_their_pixels(tmp_path: Path) -> None:
    images = torch.randint(256, (30, 3, 28, 28), dtype=torch.uint8)
    paths = [tmp_path / name for name in ("a.png", "same.png", "absent.png")]
    for path in paths[:2]:
        save_grid(images, path, columns=10)
    found = encode_samples([(path, 3) for path in paths])
    assert found.place == {paths[0]: 0, paths[1]: 0}
    assert found.lossless
    for uri, expected in (
        (found.full[0], np.asarray(Image.open(paths[0]))),
        (found.small[0], first_of_each(np.asarray(Image.open(paths[0])), 3)),
    ):
        shown = Image.open(io.BytesIO(b64decode(uri.split(",")[1])))
        assert np.array_equal(np.asarray(shown)[..., :3], expected[..., :3])


def test_a_picture_that_was_drawn_otherwise_stays_as_it_is() -> None:
    for shape in ((31, 10, 3), (30, 40, 3), (4, 40, 3)):  # too narrow, too low, no room for images
        grid = np.zeros(shape, np.uint8)
        assert first_of_each(grid, 3) is grid


def test_the_more_pixels_the_lower_the_quality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.8 bytes for a pixel without loss, 0.34 at quality 90: room for one picture, or for two."""
    asked: list[tuple[int, int]] = []

    def encode(picture: np.ndarray, quality: int) -> str:
        asked.append((picture.shape[0] * picture.shape[1], quality))
        return ""

    monkeypatch.setattr("eval.report.samples._encode", encode)
    for number in range(2):  # each 3 × 20 × 41 × 41 pixels with gaps; a small one 10 × 41 × 41
        images = torch.full((60, 3, 40, 40), number, dtype=torch.uint8)
        save_grid(images, tmp_path / f"{number}.png", columns=20)
    pixels = 124 * 821
    monkeypatch.setattr("eval.report.samples.MOST_FULL", 1.8 * pixels)
    monkeypatch.setattr("eval.report.samples.MOST_SMALL", 1.8 * (10 * 41 * 41))
    found = encode_samples([(tmp_path / "0.png", 3)])
    assert found.lossless
    assert [quality for _, quality in asked] == [100, 100]
    asked.clear()
    found = encode_samples([(tmp_path / f"{number}.png", 3) for number in range(2)])
    assert not found.lossless
    assert asked[2:] == [(pixels, 90), (pixels, 90)]
    assert [quality for _, quality in asked[:2]] == [90, 90]
    monkeypatch.setattr("eval.report.samples.MOST_SIDE", 820)
    assert encode_samples([(tmp_path / "0.png", 3)]).place == {}
    monkeypatch.setattr("eval.report.samples.MOST_SIDE", 821)
    assert encode_samples([(tmp_path / "0.png", 3)]).place == {tmp_path / "0.png": 0}


@given(st.integers(1, 12), st.integers(1, 12), st.integers(2, 9))
def test_a_small_picture_has_the_first_image_of_each_class(
    classes: int, columns: int, side: int
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (classes, columns, side, side, 3), np.uint8)
    padded = np.pad(images, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=255)
    rows = padded.swapaxes(1, 2).reshape(classes * (side + 1), columns * (side + 1), 3)
    grid = np.pad(rows, [(1, 0), (1, 0), (0, 0)], constant_values=255)
    drawn = first_of_each(grid, classes)
    for label in range(min(classes, 10)):
        top, left = (side + 2) * (label // 5), (side + 2) * (label % 5)
        shown = drawn[top : top + side, left : left + side]
        assert np.array_equal(shown[..., :3], images[label, 0])
        assert (shown[..., 3] == 255).all()


@given(st.lists(st.floats(1e-9, 1e15), min_size=1))
def test_a_logarithmic_axis_holds_its_values_in_order(values: list[float]) -> None:
    axis = log_axis(values)
    places = [axis.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] <= 100
    assert all(0 <= place <= 100 + 1e-9 for place, _ in axis.ticks)


SHARES = st.lists(st.integers(0, 100_000), min_size=2, unique=True)  # in 1/100,000


@given(st.lists(st.floats(-0.3, 1.3), min_size=1, max_size=3))
def test_an_axis_of_shares_holds_all_values(values: list[float]) -> None:
    """It ends at the multiples of ten around them, and is at least ten wide."""
    axis = percent_axis(values)
    assert all(0 <= axis.place(value) <= 100 for value in values)
    (at, low), (then, second) = ((x, int(label.removesuffix(" %"))) for x, label in axis.ticks[:2])
    high = low + round(100 * (second - low) / (then - at))
    least, most = (100 * min(max(end, 0), 1) for end in (min(values), max(values)))
    assert at == 0 and low % 10 == high % 10 == 0
    assert low <= least + 1e-9 and most <= high + 1e-9
    assert least - 10 < low + 1e-9 or low == 90
    assert high - 10 < most + 1e-9 or high == low + 10


@given(SHARES, st.lists(st.floats(-5, 5)))
def test_an_axis_of_shares_is_linear_in_what_is_possible(
    shares: list[int], others: list[float]
) -> None:
    values = [*(share / 100_000 for share in shares), *others]
    axis = percent_axis(values)
    assert all(0 <= axis.place(value) <= 100 for value in values)
    possible = [value for value in values if 0 <= value <= 1]
    low, high = min(possible), max(possible)
    assert axis.place(low) < axis.place(high)
    assert math.isclose(axis.place((low + high) / 2), (axis.place(low) + axis.place(high)) / 2)


def test_axes_by_hand() -> None:
    axis = percent_axis([0.123, 0.45])
    assert axis.ticks == [(0, "10 %"), (25, "20 %"), (50, "30 %"), (75, "40 %"), (100, "50 %")]
    assert [axis.place(value) for value in (0.0, 0.2, 0.9)] == [0, 25, 100]
    assert [place for place, _ in percent_axis([0.05, 0.95]).ticks] == [0, 20, 40, 60, 80, 100]
    assert percent_axis([1.0]).ticks == [(0, "90 %"), (100, "100 %")]
    assert percent_axis([0.5]).ticks == [(0, "50 %"), (100, "60 %")]
    assert percent_axis([0.55]).ticks == [(0, "50 %"), (100, "60 %")]
    assert percent_axis([-5, 5]).ticks[0] == (0, "0 %")
    axis = log_axis([3, 40])
    assert [label for _, label in axis.ticks] == ["2", "5", "10", "20", "50"]
    assert [axis.place(value) for value in (2, 10, 50)] == pytest.approx([0, 50, 100])
    powers = [label for _, label in log_axis([2e3, 3e7]).ticks]
    assert powers == ["1000", "10k", "100k", "1M", "10M"]
    assert [label for _, label in log_axis([0.03]).ticks] == ["0.02", "0.05"]
    seven = [label for _, label in log_axis([3, 150]).ticks]
    assert seven == ["2", "5", "10", "20", "50", "100", "200"]
    assert [label for _, label in log_axis([3, 300]).ticks] == ["10", "100"]  # of eight
    assert [short(value) for value in (9999, 25_000, 2_500_000)] == ["9999", "25k", "2.5M"]


def test_charts_by_hand() -> None:
    """Two runs of one entry that was shown 100 k images, one of 1 M, and real images."""
    far = replace(synthetic(digest="far"), images_shown=100_000)
    runs = [record(far, 0.2, 0.3), record(replace(far, sha256="2"), 0.4)]
    fid = {"seconds": {}, "fidelity": {"classifier": {"fid": 10.0, "kid": 0.1}}}
    made = [replace(each, metrics=fid) for each in (*runs, record(synthetic(), 0.6))]
    (table,) = build_tables([*made, record(CEILING, 0.8, 0.9)])
    axis = accuracy_axis(table)
    lines = reference_lines(table, axis)
    assert [(line["name"], line["value"]) for line in lines] == [
        ("chance", 0.1),
        ("real", pytest.approx(0.85)),
    ]
    assert lines[0]["about"] == "a guess among 10 classes"
    assert lines[1]["units"] == [axis.place(0.8), axis.place(0.9)]
    low, high = lines[1]["range"]
    assert low < axis.place(0.85) <= high
    quality, length = scatter_plots(table, axis)
    assert [point["value"] for point in quality["points"]] == [10.0, 10.0]
    assert quality["joined"] == []
    by_value = {point["value"]: point for point in length["points"]}
    assert by_value[100_000]["units"] == pytest.approx([axis.place(0.25), axis.place(0.4)])
    assert by_value[1_000_000]["units"] == []
    assert by_value[1_000_000]["range"] is None
    assert length["joined"] == [(by_value[100_000], by_value[1_000_000])]
    assert all(point["label"] for point in length["points"])
    assert length["note"] == ""
    equal = [record(synthetic("a", "a"), 0.5), record(synthetic("b", "b"), 0.5)]
    (plot,) = scatter_plots(build_tables(equal)[0], axis)
    assert plot["title"] == "Score over images shown"
    assert plot["note"].startswith("All of these were shown about the same number")
    assert [point["label"] for point in plot["points"]] == [True, False]  # one upon the other
    apart = [record(synthetic("a", "a"), 0.2), record(synthetic("b", "b"), 0.9)]
    (plot,) = scatter_plots(build_tables(apart)[0], accuracy_axis(build_tables(apart)[0]))
    assert [point["label"] for point in plot["points"]] == [True, True]  # one above the other
    longer = [replace(synthetic(name, name), images_shown=n) for name, n in (("a", 10), ("b", 12))]
    (plot,) = scatter_plots(build_tables([record(each, 0.5) for each in longer])[0], axis)
    assert plot["note"] == ""


def test_lengths_of_one_recipe_are_joined_in_their_order() -> None:
    lengths = (("a", 300), ("b", 20), ("a", 100), ("b", 10), ("a", 200))
    made = [
        record(replace(synthetic(name, f"{name}{shown}"), images_shown=shown), 0.5)
        for name, shown in lengths
    ]
    (table,) = build_tables(made)
    (plot,) = scatter_plots(table, accuracy_axis(table))
    joined = [(first["value"], then["value"]) for first, then in plot["joined"]]
    assert joined == [(100, 200), (200, 300), (10, 20)]


def test_what_a_logarithmic_axis_cannot_hold_is_no_point() -> None:
    values = (1e-9, 1.0, 2.0, 1e15)
    fid = [{"seconds": {}, "fidelity": {"classifier": {"fid": value}}} for value in values]
    made = [
        replace(record(synthetic(str(n), str(n)), 0.5), metrics=each) for n, each in enumerate(fid)
    ]
    (table,) = build_tables(made)
    quality = scatter_plots(table, accuracy_axis(table))[0]
    assert sorted(point["value"] for point in quality["points"]) == [1.0, 2.0]


def test_losses_by_hand() -> None:
    log: list[dict[str, object]] = [
        {"images": 1000, "d_loss": 2.0, "g_loss": 0.5, "d_real": 0.75},
        {"images": 2000, "d_loss": 1.0},
    ]
    losses, outputs = loss_charts(record(replace(synthetic(), training_log=log), 0.5))
    assert (losses["low"], losses["high"], losses["last"]) == ("0", "2", "2000")
    first, second = losses["lines"]
    assert first["places"] == [(50.0, 0.0), (100.0, 50.0)]
    assert first["ends"] == ("2.000", "1.000")
    assert second["places"] == [(50.0, 75.0)]
    assert losses["numbers"] == [("1,000", ["2.000", "0.500"]), ("2,000", ["1.000", "–"])]
    assert [line["places"] for line in outputs["lines"]] == [[(50.0, 25.0)]]


def test_the_command_prints_its_path_and_opens_it(
    synth: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(RESULTS / "records", tmp_path / "results" / "records")
    assert synth("report").out == "results/report.html\n"
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert synth("report", "--open", "--json").code == 0
    assert opened == [(tmp_path / "results" / "report.html").as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    failed = synth("report", "--open")
    assert (failed.code, failed.err.count("\n")) == (1, 1)
    assert "error: --open: found no browser" in failed.err


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=[*FLAGS]) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report on some committed records: seven entries under fixed-v1, two under another."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "figures").symlink_to(RESULTS / "figures")
    names: dict[str, set[str]] = {"fixed-v1": SHOWN, "fixed-resnet-v1": {"real", "cdcgan"}}
    chosen = [
        each
        for each in read_records(RESULTS)
        if each.entry.name in names.get(each.protocol["name"], ())
    ]
    return write_report(folder, build_tables(chosen)).as_uri()


@pytest.fixture
def show(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens the report; fails where it asks for anything else, or a script fails."""
    pages: list[Page] = []
    faults: list[str] = []

    def opened(width: int = 1400, scheme: str = "light") -> Page:
        page = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
        )
        page.set_default_timeout(120_000)
        page.on("request", lambda request: faults.append(request.url[:80]))
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert [fault for fault in faults if fault != address and not fault.startswith("data:")] == []


def violations(page: Page, part: str = "body") -> list[tuple[str, str]]:
    """What axe-core calls serious or critical in a part of the page: rule, first element."""
    options = {"resultTypes": ["violations"]}  # it takes half the time without the others
    found = Axe().run(page, part, options).response["violations"]
    return [
        (each["id"], each["nodes"][0]["html"])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def overflows(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read(show: Callable[..., Page], width: int, scheme: str) -> None:
    page = show(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert not overflows(page)
    assert page.locator("h2").first.inner_text() == "svhn-part, fixed-v1"
    first = page.locator("section.table").first
    assert first.locator(".dots ol li").count() == 7
    assert first.locator(".names text").all_text_contents() == ["chance 10.00 %", "real 81.52 %"]
    titles = first.locator(".scatter strong").all_inner_texts()
    assert titles == ["FID against score", "Score over images shown"]
    charts = first.locator(".track, .scatter svg[role=img]")
    boxes = charts.evaluate_all("all => all.map(each => each.getBoundingClientRect().toJSON())")
    assert len(boxes) == 9
    assert all(box["width"] > 200 and box["right"] <= width for box in boxes)
    assert page.locator(".gallery img").first.evaluate("image => image.naturalWidth") > 100
    heads, legends = page.locator("th .sort").count(), page.locator("th .why").count()
    assert heads == legends > 50
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 400) is (scheme == "light")
    assert violations(page) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_gallery_opens_and_closes_by_keyboard(show: Callable[..., Page], width: int) -> None:
    page = show(width, "dark")
    button = page.locator(".gallery button", has_text="cdcgan").first
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    assert dialog.locator("h2").inner_text().split() == ["1", "cdcgan"]
    assert dialog.locator(".samples").count() == 3  # runs, side by side
    assert dialog.locator(".samples").first.evaluate("image => image.decode().then(() => 1)")
    assert dialog.locator(".confusion td").count() == 101
    assert not overflows(page)
    assert dialog.evaluate("each => each.scrollWidth <= each.clientWidth")
    assert violations(page, "dialog[open]") == []
    dialog.get_by_role("button", name="Next").press("Enter")
    assert dialog.locator("h2").inner_text() == "f dcgan + random labels"
    page.keyboard.press("Escape")
    assert dialog.count() == 0
    page.locator(".dots button", has_text="copier").first.click()
    assert "near copies" in dialog.inner_text()


def test_tables_are_sorted_and_filtered_by_keyboard(show: Callable[..., Page]) -> None:
    page = show()
    table = page.locator("table:has(.sort)").first

    def column(number: int) -> list[str]:
        return table.locator(f"tbody tr:not(.out) > :nth-child({number})").all_inner_texts()

    heads = table.locator("thead th").all_inner_texts()

    def named(name: str) -> list[str]:
        return column(1 + next(i for i, head in enumerate(heads) if name in head))

    before = column(2)
    head = table.get_by_role("button", name="ECE %", exact=True)
    head.focus()
    page.keyboard.press("Enter")
    values = [float(text) for text in named("ECE %")]
    assert values == sorted(values, reverse=True)
    assert head.locator("xpath=ancestor::th").get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert [float(text) for text in named("ECE %")] == values[::-1]
    table.get_by_role("button", name="GAN images shown", exact=True).press("Enter")
    assert named("GAN images shown")[-4:] == ["–"] * 4  # absent values stay last
    table.get_by_role("button", name="accuracy %", exact=True).press("Enter")
    assert column(2) == before

    page.get_by_label("Filter").first.focus()
    page.keyboard.type("DCGAN")
    section = page.locator("section.table").first
    assert section.get_by_role("status").inner_text() == "3 of 7 entries"
    assert len(column(1)) == 3
    assert section.locator(".dots ol li:visible").count() == 3
    assert section.locator(".gallery li:visible").count() == 3
    section.locator(".filter select").select_option("ranked")
    assert len(column(1)) == 1
    assert page.locator("section.table").nth(1).locator(".out").count() == 0


def test_a_legend_stands_behind_every_column_head(show: Callable[..., Page]) -> None:
    page = show()
    why = page.get_by_role("button", name="what ECE % means").first
    why.focus()
    page.keyboard.press("Enter")
    legend = page.locator(".legend:popover-open")
    assert legend.inner_text() == "ECE %: expected calibration error."
    page.keyboard.press("Escape")
    assert legend.count() == 0


def test_colours_can_be_chosen(show: Callable[..., Page]) -> None:
    page = show(scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_label("Colours").select_option("dark")
    assert page.evaluate(paper) != light
    page.reload()
    assert page.evaluate(paper) != light  # remembered
