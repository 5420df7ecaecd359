"""The pass contract: graph -> (graph, modified), in memory; and the loop around a list of passes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from ..errors import BuildError, GraphwrightError
from .sites import SiteLog


class MisfitError(GraphwrightError):
    """The first edge of a site that did not fit; a lift rule logs it and goes on."""


class UnsayableError(MisfitError):
    """The site is one, but the standard op has no words for it; `name` is the function that has."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


class GraphPass(ir.passes.InPlacePass):
    """A pass that may write to the site log. Subclasses fill in `call(model) -> ir.passes.PassResult`."""

    def __init__(self, log: SiteLog | None = None) -> None:
        super().__init__()
        self.log = log if log is not None else SiteLog()
        self.notes: list[str] = []  # what a user should know of what it did

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class Step:
    """What one pass did."""

    name: str
    modified: bool
    seconds: float
    nodes: int


@dataclass
class Trail:
    """The passes that ran, in order."""

    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what the passes told of their work


# what these say of a graph on its way is nothing that a user can mend
_CHATTER = ("onnx_ir", "onnxscript", "onnxruntime.tools.symbolic_shape_infer")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside the block the libraries that passes are built on log errors alone."""
    loggers = [logging.getLogger(name) for name in _CHATTER]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def run(model: ir.Model, passes: Sequence[ir.passes.InPlacePass], trail: Trail | None = None) -> ir.Model:
    """Run `passes` on `model`, in place. A pass that raises is named, with those that ran before it."""
    done: list[str] = []
    for step in passes:
        name = type(step).__name__
        start = time.perf_counter()
        try:
            with quiet():
                modified = step(model).modified
        except GraphwrightError:
            raise
        except Exception as error:
            cause = error.__cause__ or error
            after = f" after {', '.join(done)}" if done else ""
            raise BuildError(f"Pass {name} failed{after}: {type(cause).__name__}: {cause}") from error
        done.append(name)
        if trail is not None:
            trail.steps.append(Step(name, modified, time.perf_counter() - start, len(model.graph)))
            trail.notes += step.notes if isinstance(step, GraphPass) else []
    return model
