"""Says what a data set is worth; reads from `synth` nothing but the data types.

    import eval
    result = eval.score(images, labels, dataset="svhn", name="my generator")
    result.accuracy, result.interval, result.ratio_to_real
    eval.leaderboard([result])  # a pandas DataFrame

`Metric`, `Column` and `Protocol` are what plug-ins are made of. All names are imported at their
first use. `import eval` hides Python's own `eval`; `import eval as cas` does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.interface import Result, leaderboard, score
    from eval.metrics import Column, Metric
    from eval.protocols import Protocol

__all__ = ["Column", "Metric", "Protocol", "Result", "leaderboard", "score"]
_MODULES = {
    "Column": "eval.metrics",
    "Metric": "eval.metrics",
    "Protocol": "eval.protocols",
    "Result": "eval.interface",
    "leaderboard": "eval.interface",
    "score": "eval.interface",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
