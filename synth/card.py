"""Cards: README.md with front matter that the Hugging Face hub and its `datasets` read. This module
makes the data set card of a synthetic set; `synth.pretrained` makes the card of a generator."""

from __future__ import annotations

import json
from typing import Any

from synth.base.files import slug
from synth.base.names import in_markdown
from synth.formats import Format

# The hub's own words for the number of rows: https://huggingface.co/docs/hub/datasets-cards
SIZES = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")),
    *((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B")),
)
HOMES = {"svhn": "http://ufldl.stanford.edu/housenumbers/"}  # of real data, with their terms

BODY = """
# {title}

{count:,} synthetic {side}×{side} images{per_class} of {classes} classes, made by synth
with the generator {recipe} (seed {seed}) that was trained on {dataset}. {labels}
The classes from label 0 on are: {names}.

{terms}

{loading}

`manifest.json` holds the counts, the hashes and where every image comes from.
"""
TERMS = """The generator learned from {dataset}, so the terms of {dataset} go on to apply to what it
makes (SVHN, for one, is for non-commercial research)."""
LABELS = {
    "conditional": "The generator was told the labels.",
    "classifier": "A classifier trained on the real training split gave the labels.",
    "random": "The labels are random: this set is a chance floor.",
    "none": "The images have no labels.",
}
LOADABLE = "`datasets.load_dataset` of Hugging Face loads this folder."
NOT_LOADABLE = """`datasets.load_dataset` of Hugging Face does not read {data}. `synth generate
--format parquet` makes a set that it reads."""


def card(title: str, form: Format, manifest: dict[str, Any], side: int) -> str:
    """The text of README.md. manifest: as in manifest.json."""
    shown = {key: in_markdown(manifest[key]) for key in ("recipe", "dataset")}
    count, per_class = manifest["count"], manifest["per_class"]
    body = BODY.format_map(
        {
            **{"title": title, "side": side, "count": count, "seed": manifest["seed"], **shown},
            "classes": len(manifest["classes"]),
            "names": in_markdown(", ".join(manifest["classes"])),
            "per_class": f", {per_class[0]:,} of each" if per_class else "",
            "labels": LABELS[manifest["labels"]],
            "terms": TERMS.format_map(shown),
            "loading": LOADABLE if form.builder else NOT_LOADABLE.format(data=form.data),
        }
    )
    return page(_front_matter(form, manifest), body)


def page(front_matter: dict[str, Any], body: str) -> str:
    """A card: the front matter as YAML, then the text."""
    lines = [f"{key}: {_yaml(value)}" for key, value in front_matter.items()]
    return "\n".join(["---", *lines, "---"]) + "\n" + body


def licence(dataset: str) -> dict[str, str]:
    """The keys of a front matter that say under which terms something made from real data is."""
    real = slug(dataset)
    link = {"license_link": HOMES[real]} if real in HOMES else {}
    return {"license": "other", "license_name": f"terms-of-{real}", **link}


def _yaml(value: Any) -> str:
    """A single word as it is, and all else as JSON, which is YAML."""
    simple = isinstance(value, str) and value.replace("-", "").isalpha()
    return str(value) if simple else json.dumps(value, ensure_ascii=False)


def _front_matter(form: Format, manifest: dict[str, Any]) -> dict[str, Any]:
    """`configs` names the files with the images alone, so that no loader takes the preview for
    one. Names of classes are told where the loader has a column for them."""
    count, classes = manifest["count"], manifest["classes"]
    values: dict[str, Any] = {
        **licence(manifest["dataset"]),
        "task_categories": ["image-classification"],
        "tags": ["synthetic", manifest["recipe"]],
        "size_categories": [next((name for most, name in SIZES if count < most), "n>1T")],
    }
    if form.data:
        files = [{"split": "train", "path": form.data}]
        values["configs"] = [{"config_name": "default", "data_files": files}]
    if form.builder in ("parquet", "imagefolder"):
        features: list[dict[str, Any]] = [{"name": "image", "dtype": "image"}]
        if manifest["per_class"] is not None:
            names = {str(label): name for label, name in enumerate(classes)}
            features.append({"name": "label", "dtype": {"class_label": {"names": names}}})
        values["dataset_info"] = {"features": features}
    return values
