"""export: from a source to the golden graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError
from ..spec import ModelSpec
from .sources import Source, load_source

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..runtimes.base import Session

OPSET = 23


def to_onnx(spec: ModelSpec | str, opset: int = OPSET) -> ir.Model:
    """The golden graph of `spec`: standard ONNX ops, named dynamic dims, module paths on its nodes.

    Its dynamic dims are proved: the graph is run at two other sizes of each and agrees with the module. Raises
    InputError for a dim that is not dynamic, UsageError for a bad range or opset, BuildError if it cannot be traced.
    """
    if isinstance(spec, str):
        spec = load_source(spec).spec
    graph = onnx_graph(spec, opset)
    if graph is not None:
        return graph.clone()
    from .prove import prove_dynamic
    from .trace import convert, trace

    golden = convert(spec, trace(spec), opset)
    prove_dynamic(spec, golden)
    return golden


def onnx_graph(spec: ModelSpec, opset: int = OPSET) -> ir.Model | None:
    """The graph of a spec that was read from an ONNX file; None for a torch module.

    Such a graph is of the file's opset until it is lifted: UsageError where another one than the default is asked for.
    """
    from .onnx_source import OnnxModule

    if not isinstance(spec.module, OnnxModule):
        return None
    given = spec.module.model.opset_imports.get("", 0)
    if opset not in (OPSET, given):
        raise UsageError(f"{spec.name!r} is an ONNX file of opset {given}: opset {opset} cannot be had. Leave it out.")
    return spec.module.model


def open_reference(spec: ModelSpec) -> Session:
    """The module itself as a session: torch, eager, float32; of an ONNX file the file's graph on ONNX Runtime's CPU."""
    from .onnx_source import OnnxModule

    if isinstance(spec.module, OnnxModule):
        return spec.module.session()
    try:
        from ..runtimes.reference import TorchSession
    except ModuleNotFoundError as error:
        raise UsageError(f"torch is needed to run a module: `pip install graphwright[export]` ({error}).") from error

    return TorchSession(spec)


__all__ = ["OPSET", "Source", "load_source", "onnx_graph", "open_reference", "to_onnx"]
