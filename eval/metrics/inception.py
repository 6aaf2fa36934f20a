"""Fidelity in the feature space of Inception, for which FID was defined."""

from eval.metrics import Column
from eval.metrics.fidelity import COLUMNS, metric_in

SPACE = "inception"  # in eval.features.FEATURE_SPACES

METRIC = metric_in(
    SPACE,
    [
        Column(
            f"inception_{key}",
            title.replace("KID", "Inception KID") if "KID" in title else f"Inception {title}",
            "{:.4f}" if "kid" in key else form,
            "the same in the features of Inception",
            f"{SPACE}.{key}",
        )
        for key, title, form, _ in COLUMNS
    ],
    name="inception",
    position=20,
    default=False,
    doc="""The extractor of torch-fidelity; its weights must be installed. `--feature-space
    inception` chooses it. Features have another scale than those of the classifier, so FID and KID
    in the two feature spaces can not be compared.""",
)
