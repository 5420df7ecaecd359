"""lift: from what the exporter spelled to what is meant, in standard ops; the same graph for every target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from ..base import Trail, run
from ..prover import Prover
from ..sites import SiteLog
from .attention import LiftAttention
from .einsum import UnfoldEinsum
from .embedding import LiftEmbedding
from .fold import Fold
from .gated import LiftGated
from .gelu import LiftGelu
from .group_norm import LiftGroupNorm
from .index_grid import LiftIndexGrid
from .infer import InferSymbols
from .layer_norm import LiftLayerNorm
from .linear_attention import LiftLinearAttention
from .opset import ConvertOpset
from .reshapes import FoldReshapes
from .residual import LiftResidual
from .rms_norm import LiftRmsNorm
from .rotary import LiftRotary
from .shapes import ResolveShapes
from .silu import LiftSilu
from .softmax import UnifySoftmax
from .tidy import Tidy
from .tied_weights import LiftTiedWeights


@dataclass(frozen=True)
class Lifted:
    """A lifted graph, the log of its sites, and the passes that ran."""

    model: ir.Model
    log: SiteLog
    trail: Trail
    prover: Prover


def lift(golden: ir.Model | str | Path) -> Lifted:
    """Lift a golden graph (or an ONNX file), which is not changed; of an input with a default value, as old exporters
    write every weight, the default is taken for good.

    Raises BuildError if a pass fails, InputError if the file is unreadable.
    """
    model = _take(golden)
    log, trail, prover = SiteLog(), Trail(), Prover(model.functions)
    passes = [
        RemoveInitializersFromInputsPass(),
        ConvertOpset(),  # first: every rule below speaks opset 23
        Fold(),  # constants and shapes, so that scalars can be seen and ranks are known
        ResolveShapes(),  # and the dims that are computed at run time
        InferSymbols(),  # where that left something unknown
        UnfoldEinsum(log, prover),
        UnifySoftmax(log, prover),
        LiftGroupNorm(log, prover),  # before that of layers, which would take a group's axes for a layer's
        FoldReshapes(),  # so that rules see one view where the exporter made several; a view in groups is one of them
        LiftLayerNorm(log, prover),
        LiftRmsNorm(log, prover),
        LiftGelu(log, prover),
        LiftSilu(log, prover),
        LiftGated(log, prover),  # of the activations that the two before it made
        LiftEmbedding(log, prover),
        LiftRotary(log, prover),
        LiftIndexGrid(log, prover),  # of masks, before the attentions ask what these say
        LiftAttention(log, prover),
        LiftLinearAttention(log, prover),
        LiftTiedWeights(log, prover),
        LiftResidual(log, prover),  # of the norms, whoever made them; the sum's other readers are sorted by Tidy
        ResolveShapes(),  # of what the rules made
        FoldReshapes(),
        Tidy(),  # last: what the rules left without a reader, and masks made twice
    ]
    run(model, passes, trail)
    return Lifted(model, log, trail, prover)


def _take(golden: ir.Model | str | Path) -> ir.Model:
    if isinstance(golden, ir.Model):
        return golden.clone()
    from ...export.onnx_file import read_onnx

    return read_onnx(Path(golden))


__all__ = ["Lifted", "lift"]
