"""Says what a data set is worth; reads from `synth` nothing but the data types.

    import eval
    result = eval.score(images, labels, dataset="svhn", name="my generator")
    result.accuracy, result.interval, result.ratio_to_real
    eval.leaderboard([result])  # a pandas DataFrame
    eval.train(recipe)  # as synth.train, also with a teacher

`Metric`, `Column` and `Protocol` are what plug-ins are made of. All names are imported at their
first use. `import eval` hides Python's own `eval`; `import eval as cas` does not.
"""

from typing import TYPE_CHECKING

from synth.base.lazy import lazily

if TYPE_CHECKING:
    from eval.interface import Result, leaderboard, score, train
    from eval.metrics import Column, Metric
    from eval.protocols import Protocol

__all__ = ["Column", "Metric", "Protocol", "Result", "leaderboard", "score", "train"]
_MODULES = {
    "Column": "eval.metrics",
    "Metric": "eval.metrics",
    "Protocol": "eval.protocols",
    "Result": "eval.interface",
    "leaderboard": "eval.interface",
    "score": "eval.interface",
    "train": "eval.interface",
}
__getattr__, __dir__ = lazily(__name__, _MODULES)
