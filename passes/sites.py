"""The site log: every attention, norm and gelu that was found, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from ..spec import PATH, SITE


@dataclass(frozen=True)
class Site:
    """One site.

    `reason` says why it was not lifted: the first edge that did not fit; of a lifted one why it became a function of
    domain `graphwright` and not the standard op.
    """

    kind: str
    path: str
    status: Literal["lifted", "declined", "missed"]
    spelling: str = ""
    reason: str = ""
    became: str = ""  # of a lifted one: the op that stands for it now
    proof: str = ""  # and what was seen to be equal, in words


@dataclass
class SiteLog:
    """Sites in the order found."""

    sites: list[Site] = field(default_factory=list)

    def lifted(self, kind: str, node: ir.Node, spelling: str, reason: str = "", proof: str = "") -> None:
        """`node` is now the standard op of its kind, or, for `reason`, a function of domain `graphwright`."""
        node.metadata_props[SITE] = kind
        self.sites.append(Site(kind, path_of(node), "lifted", spelling, reason, name_of(node), proof))

    def declined(self, kind: str, node: ir.Node, spelling: str, reason: str) -> None:
        """The site at `node` fitted, but its rewrite was not made."""
        self.sites.append(Site(kind, path_of(node), "declined", spelling, reason))

    def missed(self, kind: str, node: ir.Node, spelling: str, reason: str) -> None:
        """The site at `node` did not fit."""
        self.sites.append(Site(kind, path_of(node), "missed", spelling, reason))

    def kinds(self) -> dict[str, list[Site]]:
        """Sites by kind."""
        found: dict[str, list[Site]] = {}
        for site in self.sites:
            found.setdefault(site.kind, []).append(site)
        return found


def path_of(node: ir.Node) -> str:
    """Module path of a node; its own name where the source has no paths (an ONNX file)."""
    return node.metadata_props.get(PATH) or node.name or node.op_type


def name_of(node: ir.Node) -> str:
    """The op of a node, with its domain where that is not ONNX's own."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def inherit(new: ir.Node, old: ir.Node) -> ir.Node:
    """`new` stands for `old`: the same module path."""
    if PATH in old.metadata_props:
        new.metadata_props[PATH] = old.metadata_props[PATH]
    return new


def lowered_to(model: ir.Model, kind: str) -> dict[str, int]:
    """Op types that the sites of `kind` are in `model`."""
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        if node.metadata_props.get(SITE) == kind:
            counts[name_of(node)] = counts.get(name_of(node), 0) + 1
    return counts
