"""What can be chosen in a graph: classes of sites, and the forms that each may take.

Sites of one class have one answer: the attentions of equal heads and mask; all linear layers; all residual norms.
Which form is the fastest differs by machine, length and batch, so that it is measured (`--tune`); the first form of a
class is the default: what is known to be no slower on any machine, or the standard op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from ...spec import Lowering
from ..lift.values import dim, rank
from .causal import CAUSAL, MarkCausal

LINEAR, NORM = "linear", "residual norm"
ATTENTION_FORMS = ("standard", "multihead", "packed", "grouped", "primitive")
CAUSAL_FORMS = ("grouped", "standard", "multihead", "packed", "primitive")
LINEAR_FORMS = ("rows", "matmul", "packed")
NORM_FORMS = ("plain", "skip")

_CAUSAL = ", causal"

Chosen = Callable[[str | None], str]  # class -> form; "" for no class


def chosen(lowering: Lowering) -> Chosen:
    """The form of each class: what the user set, else what was measured, else the default."""
    settings, choices = lowering.settings, lowering.choices
    kinds = {LINEAR: (settings.linear, LINEAR_FORMS), NORM: (settings.norm, NORM_FORMS)}

    def form(name: str | None) -> str:
        if name is None:
            return ""
        asked, forms = kinds.get(name, (settings.attention, _forms(name)))
        return str(asked) if asked != "auto" else choices.get(name, forms[0])

    return form


def alternatives(model: ir.Model) -> Mapping[str, tuple[str, ...]]:
    """The classes of a lifted graph, each with the forms to choose among; the first is the default."""
    model = model.clone()
    MarkCausal()(model)
    names = [attention_class(node) for node in model.graph.all_nodes()]
    found = {name: _forms(name) for name in names if name is not None}
    return {LINEAR: LINEAR_FORMS, **found, NORM: NORM_FORMS}


def _forms(name: str) -> tuple[str, ...]:
    return CAUSAL_FORMS if name.endswith(_CAUSAL) else ATTENTION_FORMS


def attention_class(node: ir.Node) -> str | None:
    """The class of an attention, as `attention 12 x 64, masked`; None if the node is none, or of unknown sizes."""
    if node.domain != "" or node.op_type != "Attention":
        return None
    query, key = node.inputs[:2]
    if rank(query) == 4:
        heads, groups, size = dim(query, 1), dim(key, 1), dim(query, 3)
    else:
        heads, groups = node.attributes.get_int("q_num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
        width = dim(query, 2)
        size = width // heads if isinstance(width, int) and heads else None
    if not isinstance(heads, int) or not isinstance(groups, int) or not isinstance(size, int):
        return None
    grouped = f" over {groups}" if groups != heads else ""
    masked = ", masked" if len(node.inputs) > 3 and node.inputs[3] is not None else ""
    causal = _CAUSAL if node.attributes.get_int("is_causal", 0) or CAUSAL in node.metadata_props else ""
    return f"attention {heads} x {size}{grouped}{masked}{causal}"
