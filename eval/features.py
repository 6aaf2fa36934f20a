"""Feature spaces: the features that a network extracts from images.

`FEATURE_SPACES` holds those of networks other than the fixed classifier.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from eval.classifier_training import predict
from eval.classifiers import Classifier, FixedClassifier
from eval.metrics import Extractor
from synth.base.errors import NotInstalled, SynthError
from synth.base.files import sha256

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"  # the first digits of the file's hash
BATCH = 100


def features(classifier: Classifier, images: Tensor) -> Tensor:
    """The inputs of the classifier's last layer: float32 (N, 64) in [0, ∞), on the CPU.

    images: uint8 (N, 3, 32, 32). The classifier must be in evaluation mode.
    """
    seen: list[Tensor] = []
    hook = classifier.head[-1].register_forward_pre_hook(lambda _, read: seen.append(read[0]))
    try:
        predict(classifier, images)
    finally:
        hook.remove()
    return torch.cat(seen).cpu()


def label(classifier: FixedClassifier, seen: Tensor) -> Tensor:
    """The classifier's predictions, int64 (N,) on the CPU, from its features (N, 64)."""
    last = classifier.head[-1]
    with torch.inference_mode():
        classes: Tensor = last(seen.to(next(last.parameters()).device)).argmax(1).cpu()
    return classes


def load_inception(device: torch.device) -> Extractor:
    """Images uint8 (N, 3, 32, 32) → features float32 (N, 2048) on the CPU; nothing is downloaded.

    The network of Szegedy et al. 2016 (arXiv:1512.00567) with the weights of 2015-12-05, and the
    resizing of TensorFlow 1, as in Heusel et al. 2017 (arXiv:1706.08500). Raises `SynthError` if
    torch-fidelity or its weights are missing, or if the weights are not the published ones.
    """
    option = "--feature-space inception"
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise NotInstalled(option, "torch-fidelity", "inception") from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS  # where torch-fidelity keeps them
    if not path.exists():
        raise SynthError(f"{option}: {path} is not there; download {URL_INCEPTION_V3} to it")
    if not sha256(path).startswith(SHA256):
        raise SynthError(f"{option}: {path} is damaged; download {URL_INCEPTION_V3} again")
    try:
        # torch-fidelity unpickles any content. This load fails unless the file holds only tensors.
        torch.load(path, map_location="cpu", weights_only=True)
        network = FeatureExtractorInceptionV3("inception", ["2048"], str(path)).to(device)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise SynthError(f"{option}: {path} holds no weights of Inception") from error

    def extract(images: Tensor) -> Tensor:
        with torch.inference_mode():
            parts = [network(part.to(device))[0].cpu() for part in images.split(BATCH)]
        return torch.cat(parts)

    return extract


# name → loader, which raises `SynthError` if the weights are missing
FEATURE_SPACES: dict[str, Callable[[torch.device], Extractor]] = {"inception": load_inception}
