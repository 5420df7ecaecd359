"""The site log: what was found, in order, under the module's path; and what a site's ops are in a graph."""

from __future__ import annotations

import onnx_ir as ir

from graphwright.passes.sites import Site, SiteLog, inherit, lowered_to, path_of
from graphwright.spec import PATH, SITE


def node(op_type: str, path: str = "", name: str | None = None, domain: str = "") -> ir.Node:
    return ir.node(op_type, [], domain=domain, name=name, metadata_props={PATH: path} if path else None)


def test_the_log_keeps_the_order_and_marks_what_was_lifted() -> None:
    log = SiteLog()
    softmax, attention, gelu = node("Softmax", "encoder.0"), node("Attention", "encoder.1"), node("Gelu", "mlp")
    log.missed("attention", softmax, "softmax", "softmax is over axis 1")
    log.lifted("attention", attention, "softmax(QK)V")
    log.lifted("gelu", gelu, "Erf form")
    missed = Site("attention", "encoder.0", "missed", "softmax", "softmax is over axis 1")
    lifted = Site("attention", "encoder.1", "lifted", "softmax(QK)V", became="Attention")
    assert log.sites == [missed, lifted, Site("gelu", "mlp", "lifted", "Erf form", became="Gelu")]
    assert log.kinds() == {"attention": [missed, lifted], "gelu": [log.sites[2]]}
    assert [item.metadata_props.get(SITE) for item in (softmax, attention, gelu)] == [None, "attention", "gelu"]


def test_two_logs_share_nothing() -> None:
    log = SiteLog()
    log.lifted("gelu", node("Gelu"), "Gelu")
    assert SiteLog().sites == []
    assert SiteLog().kinds() == {}


def test_the_path_is_the_modules_else_the_nodes_name_else_the_op() -> None:
    assert path_of(node("Gelu", "mlp.act", "node_3")) == "mlp.act"
    assert path_of(node("Gelu", name="node_3")) == "node_3"
    assert path_of(node("Gelu")) == "Gelu"


def test_a_new_node_inherits_the_path_alone() -> None:
    old, new = node("Softmax", "encoder.0"), node("Attention")
    old.metadata_props["other"] = "kept by the old one"
    assert inherit(new, old) is new
    assert dict(new.metadata_props) == {PATH: "encoder.0"}
    assert dict(inherit(node("Cast"), node("Mul")).metadata_props) == {}


def test_what_the_sites_of_a_kind_are_in_a_graph() -> None:
    nodes = [node("Attention"), node("Attention"), node("MultiHeadAttention", domain="com.microsoft"), node("Gelu")]
    for item in nodes:
        item.metadata_props[SITE] = "gelu" if item.op_type == "Gelu" else "attention"
    graph = ir.Graph([], [], nodes=[*nodes, node("Attention")], opset_imports={"": 23, "com.microsoft": 1})
    model = ir.Model(graph, ir_version=10)
    assert lowered_to(model, "attention") == {"Attention": 2, "com.microsoft.MultiHeadAttention": 1}
    assert lowered_to(model, "gelu") == {"Gelu": 1}
    assert lowered_to(model, "layer_norm") == {}
