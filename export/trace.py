"""ModelSpec -> golden graph, by torch.export; dynamic dims keep the user's names."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, OutputKind
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import BuildError, InputError, UsageError
from ..runtimes.reference import evaluating, name_outputs, nest, to_tensor
from ..spec import PATH, RANGES, ModelSpec, flatten, of_cache, parts_of, size_of
from .front_end import front_end
from .repairs import repair

OPSETS = range(18, 24)  # what torch.onnx.export writes without going down a version, which may fail

# Before each dim's name that torch is told: it reads the names as formulas, and there `sequence` or `N` mean something.
_DIM = "dim_"
_BOUND = re.compile(rf"^\s*{_DIM}(\w+) = Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)", re.MULTILINE)
_CONSTANT = re.compile(rf"^\s*{_DIM}(\w+) = (\d+)\s*$", re.MULTILINE)
_EQUAL = re.compile(rf"^\s*{_DIM}(\w+) = {_DIM}(\w+)\s*$", re.MULTILINE)
_FORMULA = re.compile(rf"^\s*{_DIM}(\w+) = (?!Dim\()(.*\S)\s*$", re.MULTILINE)


def trace(spec: ModelSpec) -> ExportedProgram:
    """The traced program. Raises InputError where a dynamic dim was specialised, BuildError where tracing fails."""
    tensors = {name: to_tensor(value) for name, value in spec.tensors.items()}
    inputs = nest(spec.inputs, _enlarge(spec, tensors))
    bounds: dict[str, tuple[int, int | None]] = dict.fromkeys(spec.sizes, (1, None))
    bounds |= {dim: (low, high) for dim, (low, _, high) in spec.ranges.items()}
    deferred, front = False, front_end(spec.module)
    # Each round can only narrow a dim's range, and torch names all the dims that it can at once.
    for _ in range(len(bounds) + 3):
        try:
            with _quiet(), evaluating(spec.module), front.active():
                program = torch.export.export(
                    spec.module,
                    (),
                    inputs,
                    dynamic_shapes=_shapes(spec, bounds),
                    prefer_deferred_runtime_asserts_over_guards=deferred,
                )
            front.repair(program)
            return program
        except Exception as error:
            if "Suggested fixes" in str(error):
                bounds = _narrow(spec, bounds, inputs, error)
            elif "Constraints violated" in str(error) and not deferred:
                deferred = True  # one size is a special case, as in x[:, 1:]; whether the graph holds there is proved
            elif not ("register a pytree" in str(error) and _register_results(spec, inputs)):
                raise BuildError(f"torch.export could not trace {spec.name!r}: {_first_lines(error)}") from error
    raise BuildError(f"torch.export kept narrowing the dynamic dims of {spec.name!r}; last: {bounds}.")


def convert(spec: ModelSpec, program: ExportedProgram, opset: int) -> ir.Model:
    """The golden graph of a traced program: named inputs, outputs and dims, module paths on every node."""
    if opset not in OPSETS:
        raise UsageError(f"Opset {opset} is not one that can be exported: take {OPSETS[0]} to {OPSETS[-1]}.")
    names = _output_names(spec, program)
    front = front_end(spec.module)
    try:
        repair(program, opset)
        with _quiet(), evaluating(spec.module), front.active():
            exported = torch.onnx.export(
                program,
                opset_version=opset,
                dynamo=True,
                verbose=False,
                custom_translation_table=dict(front.translations),
            )
    except Exception as error:
        raise BuildError(f"{spec.name!r} has no ONNX form at opset {opset}: {_first_lines(error)}") from error
    assert exported is not None
    assert exported.exported_program is not None
    _check_state(spec, exported.exported_program)
    model = exported.model
    model.graph.name = spec.name
    _name_dims(spec, program, model)
    _name_inputs(spec, model)
    _name_outputs(model, names)
    _check_borders(spec, model)
    _keep_paths(model)
    model.metadata_props.clear()
    model.metadata_props[RANGES] = json.dumps(_proved_ranges(spec, program))
    return model


def digest(spec: ModelSpec, program: ExportedProgram) -> str:
    """SHA-256 of all that a golden graph is made from: traced code with module paths, weights, names, dims."""
    total = hashlib.sha256()
    total.update(program.graph_module.print_readable(print_output=False).encode())
    total.update(repr([list(node.meta.get("nn_module_stack", ())) for node in program.graph.nodes]).encode())
    total.update(repr((spec.name, list(spec.tensors), spec.dynamic, spec.ranges)).encode())
    total.update(repr((program.graph_signature, str(program.range_constraints), program.module_call_graph[0])).encode())
    for name, tensor in [*program.state_dict.items(), *program.constants.items()]:
        if isinstance(tensor, torch.Tensor):
            plain = tensor.detach().cpu().contiguous()
            total.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            total.update(plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")
    return total.hexdigest()


def _enlarge(spec: ModelSpec, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sizes of 1 in dynamic dims become 2 by repetition: torch.export takes a size of 1 for a constant."""
    enlarged, sizes = dict(tensors), {dim: max(2, size) for dim, size in spec.sizes.items()}
    for name, axes in spec.dynamic.items():
        for axis, dim in axes.items():
            places = torch.arange(size_of(dim, sizes)) % enlarged[name].shape[axis]
            if len(places) != enlarged[name].shape[axis]:
                enlarged[name] = enlarged[name].index_select(axis, places)
    return enlarged


def _register_results(spec: ModelSpec, inputs: Any) -> bool:
    """Make the dataclasses that forward returns known to torch.export; whether there was one that was not."""
    with evaluating(spec.module), torch.inference_mode():
        kinds = set(_dataclasses(spec.module(**inputs)))
    for kind in kinds:
        torch.export.register_dataclass(kind)
    return bool(kinds)


def _dataclasses(value: Any) -> Iterator[type]:
    """The types of dataclasses within `value` that torch does not know yet."""
    if dataclasses.is_dataclass(value) and type(value) not in torch.utils._pytree.SUPPORTED_NODES:
        yield type(value)
        items: Iterable[Any] = vars(value).values()
    else:
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    for item in items:
        yield from _dataclasses(item)


def _shapes(spec: ModelSpec, bounds: dict[str, tuple[int, int | None]]) -> Any:
    dims = {name: Dim(f"{_DIM}{name}", min=low, max=high) for name, (low, high) in bounds.items()}
    axes = {  # torch is not told of sums: it finds what is equal to one, and the proof runs where the sum holds
        name: {axis: dims.get(dim, Dim.AUTO) for axis, dim in spec.dynamic.get(name, {}).items()} or None
        for name in spec.tensors
    }
    return _axes_like(spec.inputs, axes)


def _axes_like(inputs: Any, axes: Mapping[str, Any]) -> Any:
    """`axes`, by dotted name, in the structure that torch.export wants: a cache is the list of its leaves."""
    return {
        name: nest(value, axes, name) if of_cache(value) is value else [axes[leaf] for leaf, _ in flatten(value, name)]
        for name, value in inputs.items()
    }


def _narrow(
    spec: ModelSpec, bounds: dict[str, tuple[int, int | None]], inputs: Any, error: Exception
) -> dict[str, tuple[int, int | None]]:
    """The bounds that torch suggests, where the user named none; else the error that says what is wrong."""
    fixes = str(error).split("Suggested fixes:")[1]
    for dim, size in _CONSTANT.findall(fixes):
        raise InputError(
            f"Dynamic dim {dim!r} is not dynamic: the model specialised it to {size}{_cause(spec, inputs)}. Compute "
            f"with the tensor's own size there (x.shape[axis], without int() or .item()), or leave {dim!r} static."
        ) from error
    for dim, other in _EQUAL.findall(fixes):
        raise UsageError(f"Dynamic dims {dim!r} and {other!r} are always equal: give both axes one name.") from error
    for dim, formula in _FORMULA.findall(fixes):
        raise InputError(
            f"Dynamic dim {dim!r} is not free: the model takes only {dim} = {_readable(formula)}"
            f"{_cause(spec, inputs)}. Leave {dim!r} static, or make what has that size inside of forward."
        ) from error
    narrowed = dict(bounds)
    for dim, low, high in _BOUND.findall(fixes):
        old_low, old_high = bounds[dim]
        new_low, new_high = max(old_low, int(low or 1)), int(high) if high else old_high
        if dim in spec.ranges:
            raise UsageError(
                f"Range of {dim!r} is {old_low} to {old_high}, but the model takes {new_low} to {new_high} only"
                f"{_cause(spec, inputs)}: narrow ModelSpec.ranges[{dim!r}]."
            ) from error
        narrowed[dim] = (new_low, new_high)
    if narrowed == bounds:
        raise BuildError(f"torch.export rejects the dynamic dims of {spec.name!r}: {_first_lines(error, 6)}") from error
    return narrowed


def _readable(formula: str) -> str:
    """torch's formula with the user's names, and n for any whole number: 2*_dim_sequence is 2*n."""
    return re.sub(rf"\b_{_DIM}\w+", "n", formula).replace(_DIM, "")


def _cause(spec: ModelSpec, inputs: Any) -> str:
    """' by `line` (file:number)', from the report of a draft export, which alone tells it; '' if it does not either."""
    automatic = {name: dict.fromkeys(spec.dynamic.get(name, {}), Dim.DYNAMIC) or None for name in spec.tensors}
    try:
        with _quiet(), evaluating(spec.module):
            draft = torch.export.draft_export(
                spec.module, (), inputs, dynamic_shapes=_axes_like(spec.inputs, automatic)
            )
    except Exception as error:  # noqa: BLE001 - the error being explained is raised all the same
        logging.getLogger(__name__).debug("draft export failed: %s", error)
        return ""
    files = {number: name for name, number in torch._logging.structured.INTERN_TABLE.items()}
    for failure in getattr(draft, "_report", None).failures:  # type: ignore[union-attr]
        frames = failure.data.get("user_stack") or failure.data.get("stack") or []
        for frame in reversed(frames):
            file = files.get(frame["filename"], str(frame["filename"]))
            if "/torch/" not in file:
                return f" by `{frame['loc'].strip()}` ({file}:{frame['line']})"
    return ""


def _symbols(spec: ModelSpec, program: ExportedProgram) -> dict[str, str]:
    """torch's symbol -> the user's name or sum, for each dynamic dim that is one symbol."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    names = dict(zip(spec.tensors, program.graph_signature.user_inputs, strict=True))
    found = {
        str(values[names[name]].shape[axis]): dim for name, axes in spec.dynamic.items() for axis, dim in axes.items()
    }
    return {symbol: dim for symbol, dim in found.items() if symbol.isidentifier()}


def _proved_ranges(spec: ModelSpec, program: ExportedProgram) -> dict[str, tuple[int, int | None]]:
    ranges: dict[str, tuple[int, int | None]] = dict.fromkeys(spec.sizes, (1, None))
    symbols = _symbols(spec, program)
    for symbol, bounds in program.range_constraints.items():
        if symbols.get(str(symbol)) in ranges:
            high = None if "oo" in str(bounds.upper) else int(bounds.upper)
            ranges[symbols[str(symbol)]] = (max(1, int(bounds.lower)), high)
    return ranges


def _name_dims(spec: ModelSpec, program: ExportedProgram, model: ir.Model) -> None:
    """torch's symbols in every shape, also inside expressions such as s43*s53, become the user's names."""
    symbols = _symbols(spec, program)
    sums = {tuple(sorted(parts_of(dim))): dim for axes in spec.dynamic.values() for dim in axes.values()}
    words = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b") if symbols else None
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values if words else []:
        if value.shape is not None:
            named = [_rename(dim, words, symbols) for dim in value.shape]
            # torch has its own order in a sum
            value.shape = ir.Shape([sums.get(tuple(sorted(parts_of(str(dim)))), dim) for dim in named])


def _rename(dim: int | ir.SymbolicDim, words: re.Pattern[str] | None, symbols: dict[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    if dim.value is None or words is None:
        return dim.value
    if dim.value in symbols:
        return symbols[dim.value]
    named = {symbol: name if name.isidentifier() else f"({name})" for symbol, name in symbols.items()}
    return words.sub(lambda match: named[match[0]], dim.value)


def _name_inputs(spec: ModelSpec, model: ir.Model) -> None:
    names = list(spec.tensors)
    if len(names) != len(model.graph.inputs):
        raise BuildError(
            f"{spec.name!r} has {len(names)} input tensors, but its graph has {len(model.graph.inputs)}: "
            f"{', '.join(str(value.name) for value in model.graph.inputs)}."
        )
    _free(model, names)
    for name, value in zip(names, model.graph.inputs, strict=True):
        value.name = name
        dims = spec.dynamic.get(name, {})
        assert value.shape is not None
        value.shape = ir.Shape([dims.get(axis, size) for axis, size in enumerate(value.shape)])


def _output_names(spec: ModelSpec, program: ExportedProgram) -> list[str]:
    """The keys of what forward returns; None among it is no output."""
    tree = program.module_call_graph[0].signature
    assert tree is not None
    assert tree.out_spec is not None
    outputs = [item.arg for item in program.graph_signature.output_specs if item.kind is OutputKind.USER_OUTPUT]
    values = [item.value if isinstance(item, ConstantArgument) else item for item in outputs]
    leaves = [None if value is None else index for index, value in enumerate(values)]
    names = name_outputs(torch.utils._pytree.tree_unflatten(leaves, tree.out_spec), spec.tensors)
    forward = f"{type(spec.module).__name__}.forward"
    for name, index in names.items():
        if isinstance(outputs[index], ConstantArgument):
            raise InputError(f"{forward} returns {values[index]!r} as {name!r}: return tensors only.")
        if name in spec.tensors:
            raise InputError(
                f"{forward} returns {name!r}, which is the name of an input too: return it under another key, such as "
                f"'new_{name}'."
            )
    if not names:
        raise InputError(f"{forward} returns no tensor, so there is nothing to export.")
    return list(names)


def _name_outputs(model: ir.Model, names: list[str]) -> None:
    if len(names) != len(model.graph.outputs):
        raise BuildError(f"forward returns {', '.join(names)}, but the graph has {len(model.graph.outputs)} outputs.")
    _free(model, names)
    for name, value in zip(names, list(model.graph.outputs), strict=True):
        value.name = name


def _free(model: ir.Model, names: list[str]) -> None:
    """Rename whatever bears one of `names`: torch calls the result of an embedding `embedding`."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph.all_nodes() for v in node.outputs)]
    taken = {*names, *(value.name for value in values)}
    for value in values:
        if value.name in names:
            fresh = f"{value.name}.inner"
            while fresh in taken:
                fresh += ".inner"
            taken.add(fresh)
            value.name = fresh


def _check_state(spec: ModelSpec, program: ExportedProgram) -> None:
    """Raise InputError where forward writes into a buffer of its module."""
    signature = program.graph_signature
    for result, name in signature.buffers_to_mutate.items():
        if signature.inputs_to_buffers.get(result) == name:
            continue  # it is set to itself, as by `self.table = self.table.to(x.device)`
        raise InputError(
            f"{type(spec.module).__name__}.forward changes the buffer {name!r}, but a graph keeps nothing from one run "
            "to the next: take it as an input, and return its new value."
        )


def _check_borders(spec: ModelSpec, model: ir.Model) -> None:
    """Raise InputError for an input or output of a type that numpy lacks."""
    for kind, values in {"Input": model.graph.inputs, "Output": model.graph.outputs}.items():
        for value in values:
            if value.dtype is not None and value.dtype.numpy().isbuiltin != 1:
                raise InputError(
                    f"{kind} {value.name!r} of {spec.name!r} is {value.dtype.name.lower()}, which numpy arrays cannot "
                    "hold: take and return float32, and cast inside of forward."
                )


def _keep_paths(model: ir.Model) -> None:
    """Of the exporter's metadata only the module path stays: the rest would double the size of a small graph."""
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        path = ast.literal_eval(scopes)[-2:-1] if scopes else []
        node.metadata_props.clear()
        # a node that several modules share bears a marker of torch's instead of a path
        if path and path[0] and not path[0].startswith("_empty_nn_module_stack"):
            node.metadata_props[PATH] = path[0]
        for value in node.outputs:
            value.metadata_props.clear()
    for value in model.graph.inputs:
        value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing under the math kernel of SDPA, without the exporter's chatter.

    The CPU flash kernel fixes a transposed stride in its shape function, so that a later reshape is traced as a view
    and cannot be decomposed (T5, BEiT); the math kernel traces to the same op.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    # where a trace ends at a size that depends on data, torch prints all of it
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _first_lines(error: Exception, count: int = 3) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {' '.join(lines[:count])}".replace(f" {_DIM}", " ")
