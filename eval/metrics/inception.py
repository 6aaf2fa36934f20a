"""Fidelity in Inception's feature space, which FID was defined in."""

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
            "the same in Inception's features",
            f"{SPACE}.{key}",
        )
        for key, title, form, _ in COLUMNS
    ],
    name="inception",
    position=20,
    default=False,
    doc="""torch-fidelity's extractor, where its weights are installed; `--feature-space inception`
    chooses it. Features are not scaled, so FID and KID do not compare with those in the
    classifier's features.""",
)
