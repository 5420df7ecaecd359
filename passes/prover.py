"""Translation validation: at a rewritten site the old subgraph and its replacement are run on the same random inputs.

Both are still in the graph when they are proved: the region between `leaves` (what both read) and the two results is
extracted, its dims are bound to a few small sizes, and ONNX Runtime runs it with all its optimizations off. Sites of
one structure share one proof: twelve equal layers cost one. Half precisions are proved in float32, to one rounding of
theirs: a spelling's constants (the root of two in a Gelu, say) hold no more.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ..errors import GraphwrightError
from ..runtimes.base import Session
from .base import GraphPass
from .region import TRUST, Functions, Region, Rows, UnprovableError
from .sites import SiteLog

# One batch and length 1; several, all different, so that no two axes can be confused; odd lengths.
SIZES = ((2, 5, 3, 7, 4, 6), (1, 1, 1, 1, 1, 1), (3, 4, 9, 2, 8, 5))
# float32 sums of a few dozen terms in another order differ by about 1e-6 of the largest result; a wrong scale, mask or
# axis by more than 1e-2
TOLERANCE = 2e-5
MULTIPLES = (1, 4, 12)  # of the sizes, where a region cannot be run at these: windows and groups must fit

VIEWS = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Identity", "Flatten", "Not"})


@dataclass(frozen=True)
class Proof:
    """`equal`, or not, with the reason in words; `worst` is the largest difference, of results of size `scale`."""

    equal: bool
    reason: str = ""
    worst: float = 0.0
    scale: float = 1.0
    shapes: int = 0
    undefined: int = 0  # rows of queries with no allowed key, left out

    def __str__(self) -> str:
        if not self.equal:
            return self.reason
        left_out = f"; {self.undefined} rows of queries with no allowed key left out" if self.undefined else ""
        return f"equal at {self.shapes} shapes, largest difference {self.worst:.1e} of {self.scale:.2g}{left_out}"


@dataclass
class Prover:
    """Proofs of one lift, shared by equal sites."""

    functions: Functions = field(default_factory=dict)  # of the model whose rewrites are proved
    proofs: dict[str, Proof] = field(default_factory=dict)
    asked: int = 0
    seconds: float = 0.0

    def cost(self) -> dict[str, float]:
        """Proofs asked for, those that were run since no equal site had one, and the seconds they took."""
        return {"asked": self.asked, "run": len(self.proofs), "seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        """What proving cost, in words."""
        shared = f", {len(self.proofs)} of them run: equal sites share one" if self.asked > len(self.proofs) else ""
        return f"{self.asked} proofs{shared}; {self.seconds:.1f} s."

    def prove(
        self,
        old: ir.Value,
        new: ir.Value,
        leaves: Iterable[ir.Value],
        rows: Rows | None = None,
        kept: Iterable[ir.Value] = (),
    ) -> Proof:
        """Whether `new` computes what `old` does, both being functions of `leaves`. Never raises for a bad rewrite.

        `rows` of an attention: which of its rows are undefined; they are left out and counted. `kept`: constants whose
        numbers count; what is computed from them is computed, and not any value that both sides read.
        """
        start = time.perf_counter()
        self.asked += 1
        try:
            return self._prove(old, new, list(dict.fromkeys(leaves)), rows, list(kept))
        except UnprovableError as error:
            return Proof(equal=False, reason=f"could not be proved: {error}")
        finally:
            self.seconds += time.perf_counter() - start

    def _prove(
        self, old: ir.Value, new: ir.Value, leaves: list[ir.Value], rows: Rows | None, kept: list[ir.Value]
    ) -> Proof:
        failed: UnprovableError | None = None
        for trust in TRUST:
            try:
                region = Region(old, new, leaves, rows, trust, kept)
                digest = region.digest()
                if digest not in self.proofs:
                    self.proofs[digest] = _run(region, self.functions)
                return self.proofs[digest]
            except UnprovableError as error:
                failed = failed or error
        assert failed is not None
        raise failed


class ProvedPass(GraphPass):
    """A pass whose rewrites are proved before they are made; with `prover` None they are made as they are."""

    def __init__(self, log: SiteLog | None = None, prover: Prover | None = None) -> None:
        super().__init__(log)
        self.prover = prover

    def replace(
        self,
        kind: str,
        end: ir.Node,
        new: ir.Node,
        spelling: str,
        leaves: Iterable[ir.Value] = (),
        others: Sequence[ir.Node] = (),
        quiet: bool = False,
        reason: str = "",
        kept: Sequence[ir.Value] = (),
    ) -> bool:
        """Put `new`, which stands nowhere yet, in the place of `end`, if both compute the same; log the site.

        `leaves`: what both are computed from, where that is not the inputs of `new` themselves; constants among them
        may be anything. `others`: nodes of one output in whose place the further outputs of `new` come. What these and
        `end` need and `new` does not stays behind without a reader. With `quiet` nothing is logged: it is no site.
        `reason`: why `new` is a function and not the standard op. `kept`: see `Prover.prove`.
        """
        nodes = [end, *others]
        olds = [node.outputs[0] for node in nodes]
        for old, made in zip(olds, new.outputs, strict=True):
            made.shape, made.type = old.shape, old.type
        read = list(leaves) or [
            operand for operand in new.inputs if operand is not None and operand.const_value is None
        ]
        said = ""
        for old, made in zip(olds, new.outputs, strict=True):
            proof = Proof(equal=True)
            if self.prover is not None:
                proof = self.prover.prove(old, made, map(root, read), kept=kept)
                said = said or str(proof)
            if not proof.equal:
                if not quiet:
                    self.log.declined(kind, end, spelling, proof.reason)
                for index in range(len(new.inputs)):  # it must not stay a reader of what it will not compute
                    new.replace_input_with(index, None)
                return False
        assert end.graph is not None
        ir.convenience.replace_nodes_and_values(end.graph, end, nodes, [new], olds, new.outputs)
        if not quiet:
            self.log.lifted(kind, new, spelling, reason, said)
        return True

    def swap(
        self,
        kind: str,
        end: ir.Node,
        new: ir.Value,
        core: ir.Node,
        spelling: str,
        leaves: Iterable[ir.Value],
        rows: Rows | None = None,
        quiet: bool = False,
        kept: Sequence[ir.Value] = (),
    ) -> bool:
        """Let `new`, whose nodes stand in front of `end` already, take the place of `end`'s result, if both are equal.

        `core` is the node that the site has become. If they differ, what was made stays without a reader. With `quiet`
        nothing is logged: it is no site, or one that is logged all the same. `kept`: see `Prover.prove`.
        """
        old = end.outputs[0]
        read = [leaf for leaf in map(root, leaves) if leaf.const_value is None]  # a constant is what it is
        proof = self.prover.prove(old, new, read, rows, kept) if self.prover is not None else Proof(equal=True)
        assert end.graph is not None
        if not proof.equal:
            if not quiet:
                self.log.declined(kind, end, spelling, proof.reason)
            return False
        if old.is_graph_output():
            new.name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        end.graph.remove(end, safe=True)
        if not quiet:
            self.log.lifted(kind, core, spelling, proof=str(proof) if self.prover is not None else "")
        return True


def root(value: ir.Value) -> ir.Value:
    """What `value` is a mere view of: both sides of a rewrite may look at it in ways of their own."""
    node = value.producer()
    while node is not None and node.domain == "" and node.op_type in VIEWS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _run(region: Region, functions: Functions) -> Proof:
    """Both results on random inputs at each of the sizes. Raises UnprovableError where the region cannot be run."""
    random, allowed = np.random.default_rng(0), max(TOLERANCE, region.rounding())
    found = Proof(equal=True)
    defined = 0
    with region.open(functions) as session:
        for sizes in SIZES:
            results = _results(session, region, sizes, random)
            old, new = results["old"].astype(np.float64), results["new"].astype(np.float64)
            if old.shape != new.shape:
                return Proof(False, f"not equal: shape {list(new.shape)} instead of {list(old.shape)}")
            # what is no number before and after is undefined too: 0 / 0 where nothing is allowed
            left_out = region.rows.undefined(results) if region.rows is not None else np.isnan(old) & np.isnan(new)
            old, new = np.where(left_out, 0, old), np.where(left_out, 0, new)
            defined += int((~left_out).sum())
            difference = float(np.max(np.abs(old - new), initial=0.0))
            found = replace(
                found,
                worst=max(found.worst, difference),
                scale=max(found.scale, float(np.max(np.abs(old), initial=0.0))),
                shapes=found.shapes + 1,
                undefined=found.undefined + (int(left_out.sum()) if region.rows is not None else 0),
            )
            if not difference <= allowed * found.scale:  # also where it is NaN
                reason = f"not equal: differs by {difference:.3g} (results up to {found.scale:.3g})"
                return replace(found, equal=False, reason=reason)
    if not defined:
        raise UnprovableError("its mask allows no row any key")
    return found


def _results(
    session: Session, region: Region, sizes: tuple[int, ...], random: np.random.Generator
) -> dict[str, np.ndarray]:
    """The region's results with its dims bound to `sizes`, or to multiples: some are cut into windows inside."""
    bound = region.bind(dict(zip(region.names(), itertools.cycle(sizes))))
    for factor in MULTIPLES:
        try:
            return session.run(region.feeds({name: size * factor for name, size in bound.items()}, random))
        except GraphwrightError as error:
            failed = error
    raise UnprovableError(str(failed)) from failed
