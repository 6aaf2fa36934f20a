"""The checkpoint scorer: the accuracy of a run's weights on its validation part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from eval.protocols import Protocol
from eval.scoring import MakeBatches, score, stream_batches
from synth.base.errors import SynthError
from synth.data import ImageSet
from synth.generation import fresh_batch
from synth.runs import Run, load_generator
from synth.training import ScoreCheckpoint

# Scores the checkpoints of a run on the validation part of the training split. It is in no table,
# for it is never used on the test split.
SELECTION = Protocol("select-v1", "stream", steps=200, batch=256, seeds=1)


def checkpoint_scorer(run: Run, device: torch.device) -> ScoreCheckpoint:
    """CAS of a run's weights on a labelled part, by the protocol `SELECTION`.

    It follows from the weights and the part: the classifier's seed and the samples' are fixed,
    and the precision is the run's.
    """

    if run.config.select not in (None, SELECTION.name):
        raise SynthError(
            f"{run.folder}: selects its checkpoint by {run.config.select}, and this version of "
            f"synth by {SELECTION.name}; train it anew"
        )

    def score_checkpoint(weights: Path, validation: ImageSet) -> float:
        protocol = replace(SELECTION, side=validation.side)
        batches = sample_batches(protocol, weights, len(validation.classes), device)
        result = score(protocol, batches, validation, device, run.config.precision)
        return result.seeds[0].accuracy

    return score_checkpoint


def sample_batches(
    protocol: Protocol, weights: Path, classes: int, device: torch.device
) -> MakeBatches:
    """Fresh samples of a generator, for a streaming protocol."""
    generator = load_generator(weights, device)
    return stream_batches(
        protocol, lambda count, random: fresh_batch(generator, classes, count, random)
    )
