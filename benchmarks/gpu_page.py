"""results/gpu.md, from what `gpu_check` measured."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

import pandas as pd

from benchmarks.peers import BATCH
from eval.metrics import wrap
from eval.study_file import BASE
from eval.tables import to_markdown

TARGET_SECONDS, TARGET_TIMES = 60, 10
Rates = list[float]


def to_page(report: dict[str, Any]) -> str:
    about = report["environment"]
    small = "\n\n**Small lengths: the figures below mean nothing.**" if report["small"] else ""
    driver = report["driver"] or "unknown"
    made = f"""Made by `make gpu-check` on {about["device"]}, driver {driver}, torch
    {about["torch"]}, CUDA {report["cuda"]}, commit {about["commit"]}, {report["date"]}. Data:
    {report["data"]}. The tests that need a CUDA device came first."""
    return f"""# On a GPU

{wrap(made)}{small}

## The pipeline

{pipeline_part(report["pipeline"], report["lengths"])}

## Training

{training_part(report["training_images_per_second"], report["lengths"])}

## The largest batch

{batches_part(report["batches"], report["pipeline"]["recipe"], report["lengths"])}
"""


def pipeline_part(measured: dict[str, Any], lengths: dict[str, Any]) -> str:
    seconds = measured["seconds"]
    total = sum(seconds.values())
    stages = {
        f"train {lengths['images']:,} images": seconds["train"],
        f"generate {measured['images_generated']:,} images": seconds["generate"],
        f"evaluate, {lengths['classifiers']} classifier(s)": seconds["evaluate"],
        "total": total,
    }
    rows = [{"stage": stage, "seconds": f"{value:.1f}"} for stage, value in stages.items()]
    text = f"""`{measured["recipe"]}` was trained in {measured["precision"]}. The classifiers of
    {lengths["protocol"]} were trained in {measured["classifier_precision"]}. The seconds include
    reading the data, choosing the precisions and writing all files, and leave out the start of
    Python. Accuracy on the test split: {100 * mean(measured["accuracies"]):.2f} %."""
    reached = verdict(f"{total:.1f} s", total <= TARGET_SECONDS, f"{TARGET_SECONDS} s")
    return f"{to_markdown(pd.DataFrame(rows))}\n\n{reached}\n\n{wrap(text)}"


def training_part(rates: dict[str, Rates], lengths: dict[str, Any]) -> str:
    rows = [
        {
            "loop": name,
            "images/s": f"{median(own):,.0f}",
            "range": f"{min(own):,.0f} to {max(own):,.0f}",
            "synth is": "{:.2f}× ({:.2f} to {:.2f})".format(*ratio(rates["synth"], own)),
        }
        for name, own in rates.items()
    ]
    examples = [own for name, own in rates.items() if name.startswith("examples")]
    times = min(ratio(rates["synth"], own)[0] for own in examples)
    found = f"{times:.1f} times the examples loop (the faster one)"
    text = f"""Images per second of training `cdcgan` in batches of {BATCH}: median and range of
    {lengths["windows"]} windows, taken in turns in one process. The ratios are those of the
    windows. synth trains in the precision that its probe chooses."""
    reached = verdict(found, times >= TARGET_TIMES, f"{TARGET_TIMES} times")
    return f"{wrap(text)}\n\n{to_markdown(pd.DataFrame(rows))}\n\n{reached}"


def batches_part(rows: list[dict[str, Any]], recipe: str, lengths: dict[str, Any]) -> str:
    first = str(lengths["batches"][0])
    shown = [
        {
            "batch": f"{row['batch']}, the recipe's" if row["variant"] == BASE else row["variant"],
            "accuracy %": f"{100 * row['accuracy']:.2f}",
            f"difference from {first}": f"{100 * row['difference']:+.2f}",
            "95 % interval": f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}",
            "training images/s": f"{row['images_per_second']:,.0f}",
        }
        for row in rows
    ]
    largest = max(row["batch"] for row in rows if row["high"] >= 0)
    text = f"""`{recipe}`, {lengths["runs"]} run(s) of {lengths["images"]:,} images for each row.
    {lengths["protocol"]} scored on the last fifth of the training split; the test split took no
    part. Scaled rates are those of the recipe times the square root of the batch over its own
    (arXiv:2205.10287, without its change of Adam's betas)."""
    found = f"""**The largest batch whose score is not below that of batch {first} by more than the
    interval: {largest}.** Few runs make a wide interval: read the differences too."""
    return f"{wrap(text)}\n\n{to_markdown(pd.DataFrame(shown))}\n\n{wrap(found)}"


def ratio(own: Rates, other: Rates) -> tuple[float, float, float]:
    """The median, the smallest and the largest of the ratios of the windows."""
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    return median(ratios), min(ratios), max(ratios)


def verdict(found: str, reached: bool, target: str) -> str:
    return f"**{found}. The target of {target} is {'reached' if reached else 'missed'}.**"
