"""The scoring pipelines by name, loaded only when an edition asks for one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from ..data_specs.errors import UnknownName

if TYPE_CHECKING:
    from ..data_specs.sources import Source
    from ..data_specs.spec_models import Edition, Profile
    from .score_options import ScoreOptions
    from .scorecard import ScoreResult

# One line per pipeline: the name editions use, then "module:function".
PIPELINES = {
    "core": "vcbench.evaluator.core.pipeline:score_core",
    "celleval": "vcbench.evaluator.celleval.pipeline:score_celleval",
    "vcc2026": "vcbench.evaluator.vcc2026.pipeline:score_vcc2026",
    "openproblems": "vcbench.evaluator.openproblems.pipeline:score_openproblems",
}
Progress = Callable[[int, int, str], None]


class Pipeline(Protocol):
    """Scores an opened prediction against an opened truth; neither is modified or closed."""

    def __call__(
        self,
        pred: Source,
        truth: Source,
        *,
        edition: Edition,
        profile: Profile,
        options: ScoreOptions,
        progress: Progress,
    ) -> ScoreResult: ...


def load_pipeline(name: str) -> Pipeline:
    """The pipeline of this name. Raises `UnknownName` when there is none."""
    if name not in PIPELINES:
        raise UnknownName("pipeline", name, sorted(PIPELINES), "vcbench list editions")
    module, function = PIPELINES[name].split(":")
    return getattr(import_module(module), function)
