"""A run's generator writes a synthetic set: its description, its images, its folder."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from synth.base.errors import UsageError
from synth.base.files import portable, sha256
from synth.base.locks import scratch_folder
from synth.base.progress import progress_bar
from synth.environment import describe_environment
from synth.generation import (
    DEFAULTS,
    Classify,
    Sampling,
    check_count,
    generate,
    generate_labelled,
)
from synth.ops.parallel import from_first, is_first, processes
from synth.ops.policies import POLICIES, Policy
from synth.provenance import Manifest, Provenance
from synth.runs import Run, load_generator
from synth.synthetic_set import write_synthetic

LABEL_WITH = ("classifier", "random")  # labels that an unconditional generator's images can get


def generate_set(
    run: Run,
    provenance: Provenance,
    per_class: int,
    root: Path,
    device: torch.device,
    classify: Classify | None = None,
    format: str = "npz",
) -> Path:
    """Writes the synthetic set that `provenance` describes into `root`. Returns its folder.

    provenance: from `describe_provenance`. classify: the classifier that gives the labels or
    rejects images, if one does. format: a name in `FORMATS`. Raises `UsageError` for a wrong
    argument.

    In `parallel.joined` the processes share the work, and the first one writes the set.
    """
    check_count(per_class)
    if processes() > 1 and provenance.labels == "classifier":
        raise UsageError(
            "torchrun: a classifier gives labels in one process; start synth generate without "
            "torchrun"
        )
    config, labels, seed = run.config, provenance.labels, provenance.generation_seed or 0
    sampling = sampling_of(provenance)
    weights = run.mixture(provenance.chosen, sampling.mix)
    samplers = [load_generator(path, device) for path in weights]
    assert (classify is not None) == needs_classifier(provenance)
    environment = describe_environment(device)
    slug = f"{config.slug}-{labels}" if labels in LABEL_WITH else config.slug
    count, title = per_class * len(config.classes), f"generate from {run.folder.name}"
    with progress_bar(title, count, "images") as advance, ExitStack() as stack:
        if labels == "classifier" and classify is not None:
            made = generate_labelled(
                samplers, classify, config.classes, per_class, seed, advance, sampling
            )
        else:
            parts = None
            if processes() > 1:
                scratch = stack.enter_context(scratch_folder(root)) if is_first() else root
                parts = from_first(scratch)
            classes = len(config.classes)
            made = generate(samplers, classes, per_class, seed, advance, sampling, classify, parts)
            if not is_first():
                return from_first(root)  # waits until it is written
        if labels == "random":
            made = replace(made, labels=np.repeat(np.arange(len(config.classes)), per_class))
        manifest = Manifest(
            **provenance.description(),
            config=config.to_json(),
            training_environment=run.read_environment(),
            generation_environment=environment,
            training_log=run.read_log(),
            format=format,
            sha256="",  # `write_synthetic` fills it in
            classes=config.classes,
            dataset=config.dataset,
            dataset_key=config.dataset_key,
            commit=environment["commit"],
            command=environment["command"],
        )
        return from_first(write_synthetic(root, slug, made, manifest))


def sampling_of(provenance: Provenance) -> Sampling:
    """How the images of a set were sampled."""
    return Sampling(
        provenance.augmentation or "none",
        provenance.rejection or 0.0,
        provenance.latent_scale or 1.0,
        len(provenance.mixture or [""]),
    )


def needs_classifier(provenance: Provenance) -> bool:
    """True if a classifier labels or rejects the images."""
    return provenance.labels == "classifier" or provenance.rejection is not None


def describe_provenance(
    run: Run,
    seed: int,
    labels: str | None = None,
    classifier: str | None = None,
    checkpoint: str | None = None,
    sampling: Sampling = DEFAULTS,
) -> Provenance:
    """What is known of a synthetic set before it is generated.

    labels: None keeps the generator's labels, if any. `random` gives random labels. `classifier`
    gives those of a classifier. classifier: the protocol that trains the classifier that labels or
    rejects images. checkpoint: see `Run.find_checkpoint`. Raises `UsageError` if the run has labels
    of its own, no such checkpoint, or no labels that a teacher could check.

    A run that selects its checkpoint learned from fewer images. So its sets say how the checkpoint
    was chosen, and the length of the run.
    """
    config, conditional = run.config, run.config.recipe.conditional
    if conditional and labels in LABEL_WITH:
        raise UsageError(f"--label-with {labels}: {run.folder} is conditional")
    if sampling.reject and not conditional:
        raise UsageError(f"--reject {sampling.reject}: {run.folder} is unconditional")
    policy = sampling.augment or config.recipe.augment
    *others, weights = run.mixture(checkpoint, sampling.mix)
    return Provenance(
        recipe=config.recipe.name,
        conditional=conditional,
        labels=labels or ("conditional" if conditional else "none"),
        labeller=classifier if labels == "classifier" else None,
        teacher=config.teacher,
        images_shown=run.images_shown(weights),
        training_seed=config.seed,
        generation_seed=seed,
        augmentation=policy if POLICIES.find(policy) != Policy() else None,
        rejection=sampling.reject or None,
        rejecter=classifier if sampling.reject else None,
        latent_scale=sampling.latent_scale if sampling.latent_scale != 1 else None,
        mixture=[sha256(path) for path in (*others, weights)] if others else None,
        trained_on=config.fingerprint,
        run=portable(run.folder),
        checkpoint=sha256(weights),
        chosen=(checkpoint or run.default_checkpoint) if config.select else None,
        run_length=config.total_images if config.select else None,
    )
