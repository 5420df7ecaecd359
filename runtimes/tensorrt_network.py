"""A target graph on its way into TensorRT: the parser's network, strongly typed, and refusals with the node's path."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..errors import BuildError
from ..spec import PATH
from .base import Ranges
from .inspector import Layer, nodes_of
from .tensorrt_versions import needs_typed_flag, version_of

Shapes = dict[str, list[tuple[int, ...]]]
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "ATTENTION_OUTPUT")
_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT4": "int4", "FP4": "nvfp4"}
# Head sizes that fused kernels exist for, in half precision alone: measured for 7.5, 8.6, 8.9 and 12.0, where 16, 64
# and 256 build without the permission to decompose, and 8, 320, 512 and every size in float32 do not
FUSED_HEADS = range(16, 257)


@dataclass(frozen=True)
class TargetGraph:
    """An ONNX file's inputs and nodes, by name."""

    inputs: dict[str, list[int | str]]  # dims: a size, or the name of a dynamic dim
    paths: dict[str, str]  # node -> its module's path
    ops: dict[str, list[str]]  # op type -> its nodes

    @classmethod
    def of(cls, path: Path) -> TargetGraph:
        """Read from a file; weights beside it are not touched."""
        graph = ir.load(path).graph
        nodes = {str(node.name): node for node in graph.all_nodes()}
        ops: dict[str, list[str]] = {}
        for name, node in nodes.items():
            ops.setdefault(node.op_type, []).append(name)
        paths = {name: node.metadata_props.get(PATH, "") for name, node in nodes.items()}
        return cls({str(value.name): _dims(value) for value in graph.inputs}, paths, ops)

    def shapes(self, ranges: Ranges) -> Shapes:
        """(min, opt, max) shape of each input. Raises BuildError where a dynamic dim has no range."""
        return {name: [_sizes(name, dims, ranges, end) for end in range(3)] for name, dims in self.inputs.items()}

    def call(self, node: str) -> str:
        """A node as messages name it: with its module's path, where it has one."""
        path = self.paths.get(node)
        return f"{path} ({node})" if path else node


def _dims(value: ir.Value) -> list[int | str]:
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]


def _sizes(name: str, dims: list[int | str], ranges: Ranges, end: int) -> tuple[int, ...]:
    unknown = [dim for dim in dims if isinstance(dim, str) and dim not in ranges]
    if unknown:
        raise BuildError(
            f"TensorRT needs a range for each dynamic dim; input {name!r} has {', '.join(map(str, unknown))} without "
            "one: give ModelSpec.ranges as (min, opt, max)."
        )
    return tuple(dim if isinstance(dim, int) else ranges[dim][end] for dim in dims)


@dataclass(frozen=True)
class Network:
    """A parsed network with its builder, and what its layers' types ask the engine for."""

    builder: Any
    network: Any
    products: list[Layer]  # by ONNX node, each with the precision that it must compute in
    fused: list[str]  # ONNX nodes of the attentions that a fused kernel exists for

    @property
    def precisions(self) -> dict[str, int]:
        """In which precision the products are typed -> how many."""
        return dict(Counter(layer.precision for layer in self.products).most_common())


def parse(trt: Any, path: Path, graph: TargetGraph) -> Network:
    """The network of an ONNX file. Raises BuildError that names each refused node by its module's path."""
    from polygraphy.backend.trt import create_network, set_decomposable_attentions
    from polygraphy.backend.trt import util as trt_util
    from polygraphy.logger import G_LOGGER

    # the network and its parser are for one logger; what it would print of refusals is in the error below
    builder, network = create_network(strongly_typed=needs_typed_flag(version_of(trt.__version__)))
    trt.init_libnvinfer_plugins(trt_util.get_trt_logger(), "")
    parser = trt.OnnxParser(network, trt_util.get_trt_logger())
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        parsed = parser.parse_from_file(str(path))
    if not parsed or parser.num_errors:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        refused = list(dict.fromkeys(_refusal(error, graph) for error in errors)) or ["it gives no reason"]
        raise BuildError(f"TensorRT's parser refuses the graph: {'; '.join(refused)}.")
    if hasattr(trt, "IAttentionInputLayer"):
        # Without it the build fails where no fused kernel exists (float32; head sizes of 8 or 512)
        set_decomposable_attentions((builder, network))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return Network(builder, network, _products(layers), _fused(layers))


def _refusal(error: Any, graph: TargetGraph) -> str:
    reason = f"{error.code().name}: {error.desc()}"
    if name := error.node_name():
        return f"{error.node_operator()} at {graph.call(name)} ({reason})"
    # an importer's own check names no node, but its function is named for the operator
    op_type = error.node_operator() or error.func().removeprefix("import")
    nodes = graph.ops.get(op_type, [])
    if not nodes:
        return f"{reason} (in {error.func()})"
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    one_of = "one of " if len(nodes) > 1 else ""
    return f"{op_type} at {one_of}{', '.join(map(graph.call, nodes[:3]))}{more} ({reason})"


def _products(layers: list[Any]) -> list[Layer]:
    makers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    found = []
    for layer in layers:
        precision = _precision(layer, makers) if layer.type.name in _PRODUCTS else ""
        if precision:  # products of whole numbers are of shapes
            found.append(Layer(layer.name, layer.type.name, "", nodes_of(layer.metadata), precision))
    return found


def _precision(layer: Any, makers: dict[str, Any]) -> str:
    """That of the layer's first input, as it was before it was dequantized for it."""
    tensor = layer.get_input(0)
    maker = makers.get(tensor.name)
    if maker is not None and maker.type.name == "DEQUANTIZE":
        tensor = maker.get_input(0)
    return _TYPES.get(tensor.dtype.name, "")


def _fused(layers: list[Any]) -> list[str]:
    """Attentions of a type and head size that fused kernels exist for."""
    wanted: list[str] = []
    kernel = False
    for layer in layers:  # an attention is a pair of layers, input and output, one behind the other
        if layer.type.name == "ATTENTION_INPUT":
            query = layer.get_input(0)
            kernel = query.dtype.name in ("HALF", "BF16") and query.shape[-1] in FUSED_HEADS
        elif layer.type.name == "ATTENTION_OUTPUT" and kernel:
            wanted += nodes_of(layer.metadata)
    return wanted
