"""GAN-test: are the labels of a set right?"""

from __future__ import annotations

from eval.metrics import Column, Metric, Subject


def gan_test(subject: Subject) -> float:
    """Share of images whose label the classifier predicts, in [0, 1]."""
    guesses = subject.real.label(subject.features())
    return float((guesses == subject.images.require_labels()).double().mean())


DOC = "accuracy on the set of the classifier that was trained on real images"

METRIC = Metric(
    name="gan-test",
    key="gan_test",
    doc="""Shmelkov et al. 2018 (arXiv:1807.09499). It shows whether labels are right. Sets
    with pseudo-labels lack it, because the same classifier made those labels.""",
    columns=(Column("gan_test", "GAN-test %", "%", DOC),),
    compute=gan_test,
    position=30,
    applies_to=lambda entry: entry.labels != "classifier",
)
