"""One attention, spelled at random: whatever the choices, it is lifted, and its numbers stay.

Each seed chooses where Q, K and V come from, how their heads lie and are repeated, which side of the product is
transposed, where scales, a soft-cap and masks of which kind stand, how softmax is written and what is done to the
weights: all of it among the legal cases of passes/lift/attention.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]

# float32, rows of at most 9 keys of 8 numbers each of size 1: the products are summed in another order; scores up to 30
RTOL, ATOL = 2e-5, 2e-5
SIZES = ({"B": 1, "S": 1, "T": 1}, {"B": 1, "S": 1, "T": 6}, {"B": 2, "S": 5, "T": 7}, {"B": 3, "S": 4, "T": 9})
MANY = 2000
CHUNK = 100

CONSTANTS = {
    **{f"n{number}": f"int64[1] n{number} = {{{number}}}" for number in (-1, 0, 1, 2, 3, 4, 5, 8)},
    "zero": "float zero = {0.0}",
    "one": "float one = {1.0}",
    "half": "float half = {0.5}",
    "fourth_root": "float[1] fourth_root = {1.6817928}",
    "root": "float[1, 1, 1, 1] root = {2.8284271}",
    "cap": "float cap = {5.0}",
    "off": "bool off = {0}",
    "i0": "int64 i0 = {0}",
    "i1": "int64 i1 = {1}",
    "lowest": "float lowest = {-3.4e38}",
    "inf": "float inf = {-inf}",
    "low": "float low = {-1e9}",
    "slopes": "float[4, 1, 1] slopes = {0.5, 0.25, 0.125, 0.0625}",
    "temperatures": "float[4, 1, 1] temperatures = {0.5, 1.5, 0.25, 0.75}",
    "twice": "int64[4] twice = {0, 0, 1, 1}",
}


@dataclass
class Speller:
    """Writes one attention of four heads of 8 numbers; every choice is drawn from `random`."""

    random: random.Random
    lines: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    used: dict[str, None] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)  # boolean masks [.., T] that were applied, True where allowed
    read: str = ""  # what a Softmax reads

    def __post_init__(self) -> None:
        self.keys = self.pick("T", "T", "S")
        self.key_heads = self.pick(4, 4, 4, 2, 1)
        self.merged = self.key_heads != 1 and self.chance(0.3)
        self.swapped = not self.merged and self.chance(0.2)  # K Qt instead of Q Kt
        self.width = self.pick(8, 8, 5)  # of V

    def pick(self, *choices: str | int) -> str | int:
        return self.random.choice(choices)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def emit(self, op: str, *operands: str, **attributes: object) -> str:
        name = f"v{len(self.lines)}"
        said = ", ".join(f"{key} = {value}" for key, value in attributes.items())
        self.used |= dict.fromkeys(operand for operand in operands if operand in CONSTANTS)
        self.lines.append(f"{name} = {op}{f'<{said}>' if said else ''}({', '.join(operands)})")
        return name

    def take(self, name: str, kind: str, *dims: object) -> str:
        self.inputs.append(f"{kind}[{', '.join(map(str, dims))}] {name}")
        return name

    def size(self, name: str) -> str:
        """The vector of one element that holds a length, read off q or k."""
        source, axis = self.places["q" if name in ("B", "S") else "k"]
        place = axis["BSHD".index("S" if name == "T" else name)]
        return self.emit("Shape", source, start=place, end=place + 1)

    places: dict[str, tuple[str, list[int]]] = field(default_factory=dict)

    def operand(self, name: str, length: str, heads: int, width: int) -> str:
        """An input in one of four layouts, as [B, heads, length, width]."""
        layout = self.pick("bhsd", "bshd", "bse", "sbe")
        if layout == "bhsd":
            value = self.take(name, "float", "B", heads, length, width)
            self.places[name] = value, [0, 2, 1, 3]
            return value
        if layout == "bshd":
            value = self.take(name, "float", "B", length, heads, width)
            self.places[name] = value, [0, 1, 2, 3]
            return self.emit("Transpose", value, perm=[0, 2, 1, 3])
        first, second = ("B", length) if layout == "bse" else (length, "B")
        value = self.take(name, "float", first, second, heads * width)
        self.places[name] = value, [0, 1, 2, 3] if layout == "bse" else [1, 0, 2, 3]
        shape = self.emit("Concat", "n0", "n0", f"n{heads}", "n-1", axis=0)
        split = self.emit("Reshape", value, shape)
        return self.emit("Transpose", split, perm=[0, 2, 1, 3] if layout == "bse" else [1, 2, 0, 3])

    def repeated(self, value: str, width: int) -> str:
        """Two heads as four; a single one is left to the products, or not."""
        if self.key_heads == 4 or (self.key_heads == 1 and self.chance(0.7)):
            return value
        if self.key_heads == 1:
            return self.emit("Expand", value, self.emit("Concat", "n1", "n4", "n1", "n1", axis=0))
        if self.chance(0.3):
            return self.emit("Gather", value, "twice", axis=1)
        five = self.emit("Unsqueeze", value, "n2")
        times = self.emit("Concat", "n1", "n1", "n2", "n1", "n1", axis=0)
        wide = self.emit("Expand", five, times)
        shape = self.emit("Concat", self.size("B"), "n4", self.size(str(self.keys)), f"n{width}", axis=0)
        return self.emit("Reshape", wide, shape)

    def flat(self, value: str, length: str, width: int) -> str:
        """[B, H, length, width] -> [B * H, length, width]."""
        return self.emit("Reshape", value, self.emit("Concat", "n-1", self.size(length), f"n{width}", axis=0))

    def scaled(self, value: str, probability: float) -> str:
        if not self.chance(probability):
            return value
        op, number = self.random.choice([("Mul", "half"), ("Div", "fourth_root"), ("Div", "root")])
        number = "half" if number == "root" and self.merged else number
        sides = (number, value) if op == "Mul" and self.chance(0.5) else (value, number)
        return self.emit(op, *sides)

    def turned(self, value: str, merged: bool) -> str:
        return self.emit("Transpose", value, perm=[0, 2, 1] if merged else [0, 1, 3, 2])

    # masks

    def range_of(self, length: str, axis: str) -> str:
        numbers = self.emit("Range", "i0", self.emit("Squeeze", self.size(length)), "i1")
        return self.emit("Unsqueeze", numbers, axis)

    def allowed(self, *joined: str) -> str:
        """A boolean mask of rank 2 or 4; it always allows the first key."""
        kind = self.pick("input", "input", "range", "tril", *joined)
        if kind == "and":
            return self.emit("And", self.allowed(), self.allowed())
        if kind == "range":
            return self.emit("LessOrEqual", self.range_of(str(self.keys), "n0"), self.range_of("S", "n1"))
        if kind == "tril":
            square = self.emit("Concat", self.size("S"), self.size(str(self.keys)), axis=0)
            return self.emit("Cast", self.emit("Trilu", self.emit("Expand", "one", square), upper=0), to=9)
        forms = [("B", 1, "S", self.keys), ("B", 1, 1, self.keys), (1, 1, "S", self.keys), ("S", self.keys)]
        return self.take(f"allowed{len(self.inputs)}", "bool", *self.random.choice([*forms, ("B", 4, "S", self.keys)]))

    def added(self) -> str:
        """A mask to be added: a bias, or one that says which keys are allowed."""
        kind = self.pick("bias", "where", "where", "times", "alibi")
        if kind == "bias":
            forms = [("B", 4, "S", self.keys), ("B", 1, 1, self.keys), (4, "S", self.keys), ("S", self.keys), (4, 1, 1)]
            return self.take(f"bias{len(self.inputs)}", "float", *self.random.choice(forms))
        if kind == "alibi":
            distance = self.emit("Sub", self.range_of(str(self.keys), "n0"), self.range_of("S", "n1"))
            return self.emit("Mul", "slopes", self.emit("Cast", self.emit("Abs", distance), to=1))
        self.flags.append(self.allowed("and"))
        if kind == "where":
            if self.chance(0.5):
                return self.emit("Where", self.flags[-1], "zero", str(self.pick("lowest", "inf", "low")))
            return self.emit("Where", self.emit("Not", self.flags[-1]), str(self.pick("lowest", "inf", "low")), "zero")
        rest = self.emit("Sub", "one", self.emit("Cast", self.flags[-1], to=1))
        return self.emit("Mul", rest, str(self.pick("low", "lowest")))

    def masked(self, scores: str) -> str:
        if not self.swapped and not self.flags and self.chance(0.15):  # scores * mask + (1 - mask) * low
            self.flags.append(self.allowed("and"))
            kept = self.emit("Cast", self.flags[-1], to=1)
            rest = self.emit("Mul", self.emit("Sub", "one", kept), "low")
            return self.emit("Add", self.emit("Mul", scores, kept), rest)
        if self.chance(0.4):
            self.flags.append(self.allowed("and"))
            mask = self.as_scores(self.flags[-1])
            low = str(self.pick("lowest", "inf", "low"))
            if self.chance(0.5):
                return self.emit("Where", mask, scores, low)
            return self.emit("Where", self.emit("Not", mask), low, scores)
        mask = self.added()
        if self.chance(0.25):
            mask = self.emit("Add", mask, self.added())
        mask = self.as_scores(mask)
        return self.emit("Add", *((mask, scores) if self.chance(0.5) else (scores, mask)))

    def as_scores(self, mask: str) -> str:
        """A mask of any rank with its last two axes as the scores have them."""
        if not self.swapped:
            return mask
        full = self.emit("Concat", "n1", "n1", self.size("S"), self.size(str(self.keys)), axis=0)
        kind = "Expand" if mask not in self.flags else "And"
        if kind == "And":
            ones = self.emit("Cast", self.emit("Expand", "one", full), to=9)
            return self.turned(self.emit("And", mask, ones), merged=False)
        return self.turned(self.emit("Expand", mask, full), merged=False)

    # from the product to the result

    def scores(self, q: str, k: str) -> str:
        q, k = self.scaled(q, 0.25), self.scaled(k, 0.25)
        if self.swapped:
            product = self.emit("MatMul", k, self.scaled(self.turned(q, self.merged), 0.1))
        elif not self.merged and self.key_heads != 1 and self.chance(0.15):
            product = self.emit("Einsum", q, k, equation='"bhid,bhjd->bhij"')
        else:
            product = self.emit("MatMul", q, self.scaled(self.turned(k, self.merged), 0.2))
        self.split = self.merged and self.chance(0.7)
        if self.split:
            shape = self.emit("Concat", self.size("B"), "n4", self.size("S"), self.size(str(self.keys)), axis=0)
            product = self.emit("Reshape", product, shape)
        if (not self.merged or self.split) and self.chance(0.15):
            temperature = self.pick("temperatures", self.take("temperature", "float", 1))
            product = self.emit("Mul", product, str(temperature))
        product = self.scaled(product, 0.5)
        if self.chance(0.15):
            product = self.emit("Mul", "cap", self.emit("Tanh", self.emit("Div", product, "cap")))
        masks = 0 if self.merged and not self.split else int(self.pick(0, 1, 1, 2, 3))
        for _ in range(masks):
            product = self.scaled(self.masked(product), 0.1)
        return product

    def softmax(self, scores: str) -> str:
        scores = self.emit("Cast", scores, to=1) if self.chance(0.1) else scores
        axis = -2 if self.swapped else -1
        if self.chance(0.1):
            along = self.emit("Reshape", f"n{axis}", "n1") if axis == -1 else self.emit("Sub", "n-1", "n1")
            shifted = self.emit("Sub", scores, self.emit("ReduceMax", scores, along))
            power = self.emit("Exp", shifted)
            return self.emit("Div", power, self.emit("ReduceSum", power, along))
        self.read = scores
        weights = self.emit("Softmax", scores, axis=axis)
        return self.emit("Cast", weights, to=1) if self.chance(0.1) else weights

    def weighted(self, weights: str, v: str) -> str:
        """The product with V, as [B, H, S, width] or merged."""
        whole = not self.merged or self.split
        for _ in range(int(self.pick(0, 0, 1, 2))):
            kind = self.pick("guard", "judged", "idle", "same", "scale", "gate", "zeroed", "zeroed")
            if kind == "guard":
                weights = self.emit("Where", self.emit("IsNaN", weights), "zero", weights)
            elif kind == "judged" and self.read and not self.swapped:  # all scores of a row are -inf
                none = self.emit("Cast", self.emit("Equal", self.read, "inf"), to=7)
                none = self.emit("Cast", self.emit("ReduceMin", none, "n-1"), to=9)
                weights = self.emit("Where", none, "zero", weights)
            elif kind == "idle":
                weights = self.emit("Dropout", weights, "zero", "off")
            elif kind == "same":
                weights = self.emit("Identity", weights)
            elif kind == "scale":
                weights = self.scaled(weights, 1)
            elif kind == "gate" and whole and not self.swapped:
                gate = self.pick("temperatures", self.take(f"gate{len(self.inputs)}", "float", "B", 4, "S", 1))
                weights = self.emit("Mul", weights, str(gate))
            elif kind == "zeroed" and self.flags and not self.swapped:
                if self.chance(0.5):
                    weights = self.emit("Where", self.flags[-1], weights, "zero")
                else:
                    weights = self.emit("Mul", weights, self.emit("Cast", self.flags[-1], to=1))
        if self.merged and self.split:
            shape = self.emit("Concat", "n-1", self.size("S"), self.size(str(self.keys)), axis=0)
            weights = self.emit("Reshape", weights, shape)
        if self.swapped and self.chance(0.5):
            return self.turned(self.emit("MatMul", self.turned(v, merged=False), weights), merged=False)
        return self.emit("MatMul", self.turned(weights, self.merged) if self.swapped else weights, v)

    def text(self) -> str:
        keys = str(self.keys)
        q = self.operand("q", "S", 4, 8)
        k = self.operand("k", keys, int(self.key_heads), 8)
        v = self.operand("v", keys, int(self.key_heads), int(self.width))
        k, v = self.repeated(k, 8), self.repeated(v, int(self.width))
        if self.merged:
            q, k, v = self.flat(q, "S", 8), self.flat(k, keys, 8), self.flat(v, keys, int(self.width))
        result = self.weighted(self.softmax(self.scores(q, k)), v)
        if not self.merged and self.chance(0.5):
            result = self.emit("Transpose", result, perm=[0, 2, 1, 3])
        self.emit("Identity", result)
        self.lines[-1] = self.lines[-1].replace(self.lines[-1].split()[0], "y", 1)
        constants = ", ".join(CONSTANTS[name] for name in self.used).replace("n-1", "minus1").replace("n-2", "minus2")
        dims = "P, S, W" if self.merged else "B, X, Y, W"
        lines = "\n    ".join(self.lines).replace("n-1", "minus1").replace("n-2", "minus2")
        return f"""<ir_version: 10, opset_import: ["": 23]>
spelled ({", ".join(self.inputs)}) => (float[{dims}] y) <{constants}> {{
    {lines} }}"""


def cases(model: ir.Model) -> Iterator[Arrays]:
    """Random inputs at several sizes; every mask allows every query its first key."""
    drawn = np.random.default_rng(0)
    for size in SIZES:
        feeds: Arrays = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            array: np.ndarray = drawn.standard_normal(shape).astype(np.float32)
            if value.dtype == ir.DataType.BOOL:
                array = array > 0
                array[..., 0] = True
            feeds[str(value.name)] = array
        yield feeds


def check(seed: int, compare: Compare) -> None:
    text = Speller(random.Random(seed)).text()
    model = ir.from_onnx_text(text)
    lifted = lift(model)
    said = f"seed {seed}: {lifted.log.sites}\n{text}"
    assert [site.status for site in lifted.log.sites] == ["lifted"], said
    assert lifted.log.sites[0].became == "Attention", said
    try:
        compare(model, lifted.model, cases(model), RTOL, ATOL)
    except AssertionError as error:
        raise AssertionError(said) from error


@pytest.mark.parametrize("seed", range(CHUNK))
def test_any_spelling_is_lifted_and_keeps_its_numbers(seed: int, compare: Compare) -> None:
    check(seed, compare)


@pytest.mark.full
@pytest.mark.parametrize("first", range(CHUNK, MANY, CHUNK))
def test_many_spellings_are_lifted_and_keep_their_numbers(first: int, compare: Compare) -> None:
    for seed in range(first, first + CHUNK):
        check(seed, compare)
