"""Attention as papers and their code write it, each a small torch module: what lift must understand beside the
architectures of a library.

Each row of `RESEARCH` names a module, its inputs with their dynamic dims, and the ops that its attentions become:
`Attention` where the standard can say it, else a function of domain `graphwright`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import graphwright as gw

WIDTH, HEADS, SIZE = 32, 4, 8
TOKENS = {0: "batch", 1: "sequence"}
KEYS = {0: "batch", 1: "keys"}
PAST = {0: "batch", 1: "past"}

Inputs = dict[str, Tensor]
Dims = dict[str, dict[int, str]]


class Projected(nn.Module):
    """Projections to Q, K, V and back; heads are [batch, heads, length, size]."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return split(self.q(x)), split(self.k(x)), split(self.v(x))

    def join(self, heads: Tensor) -> Tensor:
        joined: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return joined


def split(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)


def later(x: Tensor) -> Tensor:
    """[length, length]: True where the key comes after the query."""
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)


class TalkingHeads(Projected):
    """Heads are mixed before and after softmax (arXiv:2003.02436)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.Linear(HEADS, HEADS, bias=False), nn.Linear(HEADS, HEADS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)
        scores = q @ k.transpose(-1, -2) / math.sqrt(SIZE)
        scores = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = self.behind(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.join(weights @ v)


class Cosine(Projected):
    """Cosines, by a temperature that each head has learned (arXiv:2111.09883)."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.full((HEADS, 1, 1), 2.3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)
        scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(self.temperature, max=math.log(100)).exp()
        return self.join(scores.softmax(-1) @ v)


class Relative(Projected):
    """Q meets a learned vector for each distance (arXiv:1803.02155)."""

    def __init__(self) -> None:
        super().__init__()
        self.distances = nn.Embedding(17, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)
        place = torch.arange(x.shape[1])
        vectors = self.distances((place[None] - place[:, None]).clamp(-8, 8) + 8)
        scores = q @ k.transpose(-1, -2) + torch.einsum("bhid,ijd->bhij", q, vectors)
        return self.join((scores / math.sqrt(SIZE)).softmax(-1) @ v)


class TransformerXL(Projected):
    """Content and position have a bias each, and scores of distances are shifted into place (arXiv:1901.02860)."""

    def __init__(self) -> None:
        super().__init__()
        self.content, self.position = nn.Parameter(torch.randn(HEADS, SIZE)), nn.Parameter(torch.randn(HEADS, SIZE))
        self.r = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (linear(x).view(batch, length, HEADS, SIZE) for linear in (self.q, self.k, self.v))
        angles = torch.arange(length - 1, -length, -1.0)[:, None] / 10000 ** (torch.arange(0, WIDTH, 2.0) / WIDTH)
        r = self.r(torch.cat([angles.sin(), angles.cos()], -1)).view(-1, HEADS, SIZE)
        content = torch.einsum("bihd,bjhd->bhij", q + self.content, k)
        shifted = functional.pad(torch.einsum("bihd,jhd->bhij", q + self.position, r), (1, 0))
        heads, queries, keys = shifted.shape[1:]
        position = shifted.view(batch, heads, keys, queries)[:, :, 1:].view(batch, heads, queries, keys - 1)
        weights = ((content + position[..., :length]) / math.sqrt(SIZE)).softmax(-1)
        return self.join(torch.einsum("bhij,bjhd->bhid", weights, v))


class Alibi(Projected):
    """A slope over distance for each head, and a causal mask of -inf, both added (arXiv:2108.12409)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)
        slopes = torch.tensor([2 ** (-8 * (head + 1) / HEADS) for head in range(HEADS)])
        place = torch.arange(x.shape[1])
        bias = -(place[:, None] - place[None]).abs().float() * slopes[:, None, None]
        future = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        return self.join((q @ k.transpose(-1, -2) * SIZE**-0.5 + bias + future).softmax(-1) @ v)


class Axial(nn.Module):
    """Rows of an image, then its columns, [batch, height, width, channels] throughout (arXiv:1912.12180)."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.column = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def attend(self, x: Tensor, packed: nn.Linear) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, SIZE)).transpose(-3, -2) for part in packed(x).chunk(3, -1))
        heads: Tensor = (q @ k.mT * SIZE**-0.5).softmax(-1) @ v
        return heads.transpose(-3, -2).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x, self.row)
        return x + self.attend(x.transpose(1, 2), self.column).transpose(1, 2)


class Sliding(Projected):
    """Each query has five keys of its own around it, unfolded (arXiv:1906.05909)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)
        k, v = (functional.pad(heads, (0, 0, 2, 2)).unfold(2, 5, 1) for heads in (k, v))
        scores = torch.einsum("bhsd,bhsdw->bhsw", q, k) * SIZE**-0.5
        return self.join(torch.einsum("bhsw,bhsdw->bhsd", scores.softmax(-1), v))


class MultiQuery(nn.Module):
    """One head of K and V for all of Q by einsum, causal by masked_fill (arXiv:1911.02150)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * SIZE), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q = split(self.q(x)) * SIZE**-0.5
        k, v = self.kv(x).chunk(2, -1)
        scores = torch.einsum("b h i d, b j d -> b h i j", q, k).masked_fill(later(x), -torch.finfo(x.dtype).max)
        result: Tensor = self.out(
            torch.einsum("b h i j, b j d -> b h i d", scores.softmax(-1), v).transpose(1, 2).flatten(2)
        )
        return result


class Cached(nn.Module):
    """Grouped queries behind a cache of keys and values [batch, past, heads, size], as in Llama's reference code."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4 * SIZE), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        k, v = self.kv(x).view(batch, length, 2, 2, SIZE).unbind(2)
        keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        wide = (t[:, :, :, None].expand(-1, -1, -1, 2, -1).flatten(2, 3).transpose(1, 2) for t in (keys, values))
        k, v = wide
        past = torch.zeros(length, keys.shape[1] - length)
        mask = torch.cat([past, torch.full((length, length), float("-inf")).triu(1)], 1)
        scores = torch.matmul(split(self.q(x)), k.transpose(2, 3)) / math.sqrt(SIZE) + mask
        weights = functional.softmax(scores.float(), -1).type_as(x)
        return self.out(torch.matmul(weights, v).transpose(1, 2).flatten(2)), keys, values


class Latent(nn.Module):
    """Keys from a narrow latent, and a part that rotates with position: two products summed (arXiv:2405.04434)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.down = nn.Linear(WIDTH, HEADS * (SIZE + 4)), nn.Linear(WIDTH, 16)
        self.norm, self.up, self.out = nn.RMSNorm(12), nn.Linear(12, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[-2]).float(), 1 / 10000 ** (torch.arange(0, 4, 2.0) / 4))
        angles = torch.cat([angles, angles], -1)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        q, q_rotating = torch.split(split(self.q(x)), [SIZE, 4], -1)
        latent, k_rotating = torch.split(self.down(x), [12, 4], -1)
        k, v = split(self.up(self.norm(latent))).chunk(2, -1)
        scores = q @ k.mT + self.rotate(q_rotating) @ self.rotate(k_rotating[:, None]).mT
        weights = (scores / math.sqrt(SIZE + 4)).masked_fill(later(x), float("-inf")).softmax(-1)
        result: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return result


class Differential(Projected):
    """The weights of one half of the heads, less a part of the other half's (arXiv:2410.05258)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.part = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k = (linear(x).view(batch, length, 2 * HEADS, SIZE).transpose(1, 2) for linear in (self.q, self.k))
        weights = (q * SIZE**-0.5 @ k.mT).softmax(-1).view(batch, HEADS, 2, length, length)
        return self.join((weights[:, :, 0] - self.part * weights[:, :, 1]) @ split(self.v(x)))


class Slots(nn.Module):
    """Slots compete for tokens: softmax over the queries, then a mean (arXiv:2006.15055)."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(self.slots).expand(x.shape[0], -1, -1)
        weights = (torch.einsum("bid,bjd->bij", q, self.k(x)) * WIDTH**-0.5).softmax(1)
        return torch.einsum("bjd,bij->bid", self.v(x), weights / math.sqrt(WIDTH))


class Latents(nn.Module):
    """Learned latents read a padded memory of another width, values narrower than keys (arXiv:2103.03206)."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(5, WIDTH))
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(24, WIDTH)
        self.v, self.out = nn.Linear(24, HEADS * 5), nn.Linear(HEADS * 5, WIDTH)

    def forward(self, memory: Tensor, mask: Tensor) -> Tensor:
        q = split(self.q(self.latents[None].repeat(memory.shape[0], 1, 1)))
        k, v = split(self.k(memory)), split(self.v(memory))
        scores = (q / SIZE**0.25) @ (k / SIZE**0.25).transpose(2, 3) + (1 - mask[:, None, None].float()) * -1e9
        result: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return result


class Windows(nn.Module):
    """Windows of a rolled image, with a bias for each offset and a mask for each window (arXiv:2103.14030)."""

    def __init__(self) -> None:
        super().__init__()
        self.packed, self.table = nn.Linear(WIDTH, 3 * WIDTH), nn.Parameter(torch.randn(49, HEADS))
        cell = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        offsets = (cell[:, :, None] - cell[:, None]).permute(1, 2, 0) + 3
        self.register_buffer("index", (offsets[..., 0] * 7 + offsets[..., 1]).view(-1))
        region = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
        image = (3 * region[:, None] + region).view(2, 4, 2, 4).transpose(1, 2).reshape(4, 16)
        self.register_buffer("apart", (image[:, None] != image[:, :, None]).float() * -1e4)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = torch.roll(x, (-2, -2), (1, 2)).view(batch, 2, 4, 2, 4, WIDTH).transpose(2, 3).reshape(-1, 16, WIDTH)
        q, k, v = self.packed(x).view(-1, 16, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].view(16, 16, HEADS).permute(2, 0, 1)  # type: ignore[index]
        scores = (q * SIZE**-0.5 @ k.mT + bias).view(batch, 4, HEADS, 16, 16) + self.apart[None, :, None]  # type: ignore[index]
        x = (scores.view(-1, HEADS, 16, 16).softmax(-1) @ v).transpose(1, 2).reshape(batch, 2, 2, 4, 4, WIDTH)
        return torch.roll(x.transpose(2, 3).reshape(batch, 8, 8, WIDTH), (2, 2), (1, 2))


class MaskedExponentials(Projected):
    """Softmax written out, its exponentials multiplied by the mask."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x)
        scores = q @ k.mT * SIZE**-0.5
        powers = (scores - scores.amax(-1, keepdim=True)).exp() * mask[:, None, None].float()
        return self.join(powers / powers.sum(-1, keepdim=True) @ v)


class Watched(Projected):
    """Attention whose weights are an output, as for a heat map, padded keys forbidden."""

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        weights = (q @ k.mT * SIZE**-0.5).masked_fill((mask == 0)[:, None, None], -1e9).softmax(-1)
        return self.join(weights @ v), weights.mean(1)


class Linear(Projected):
    """elu + 1 as feature map, the normaliser in the same einsum (arXiv:2006.16236)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        state = torch.einsum("bhsd,bhse->bhde", k, v)
        normaliser = 1 / (torch.einsum("bhsd,bhd->bhs", q, k.sum(2)) + 1e-6)
        return self.join(torch.einsum("bhsd,bhde,bhs->bhse", q, state, normaliser))


def tokens() -> tuple[Inputs, Dims]:
    return {"x": torch.randn(2, 6, WIDTH)}, {"x": TOKENS}


def padded() -> tuple[Inputs, Dims]:
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1, -2:] = 0
    return {"x": torch.randn(2, 6, WIDTH), "mask": mask}, {"x": TOKENS, "mask": TOKENS}


def memory() -> tuple[Inputs, Dims]:
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, -2:] = 0
    return {"memory": torch.randn(2, 7, 24), "mask": mask}, {"memory": KEYS, "mask": KEYS}


def cache() -> tuple[Inputs, Dims]:
    inputs = {"x": torch.randn(2, 3, WIDTH), "keys": torch.randn(2, 5, 2, SIZE), "values": torch.randn(2, 5, 2, SIZE)}
    return inputs, {"x": TOKENS, "keys": PAST, "values": PAST}


def image() -> tuple[Inputs, Dims]:
    return {"x": torch.randn(2, 5, 6, WIDTH)}, {"x": {0: "batch", 1: "height", 2: "width"}}


def square() -> tuple[Inputs, Dims]:
    return {"x": torch.randn(2, 8, 8, WIDTH)}, {"x": {0: "batch"}}


@dataclass(frozen=True)
class Row:
    """One module, its inputs, and what each of its attentions becomes."""

    module: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Inputs, Dims]]
    sites: tuple[str, ...]

    def spec(self, name: str) -> gw.ModelSpec:
        """The module with random weights (seeded)."""
        torch.manual_seed(0)
        inputs, dims = self.inputs()
        return gw.ModelSpec(self.module().eval(), inputs, dims, name=name)


ONE = ("Attention",)
CUSTOM = ("graphwright.CustomAttention",)

RESEARCH = {
    "talking_heads": Row(TalkingHeads, tokens, CUSTOM),
    "cosine": Row(Cosine, tokens, ONE),
    "relative": Row(Relative, tokens, ONE),
    "transformer_xl": Row(TransformerXL, tokens, ONE),
    "alibi": Row(Alibi, tokens, ONE),
    "axial": Row(Axial, image, ONE * 2),
    "sliding": Row(Sliding, tokens, CUSTOM),
    "multi_query": Row(MultiQuery, tokens, ONE),
    "cached": Row(Cached, cache, ONE),
    "latent": Row(Latent, tokens, ONE),
    "differential": Row(Differential, tokens, CUSTOM),
    "slots": Row(Slots, tokens, ("graphwright.QueryAttention",)),
    "latents": Row(Latents, memory, ONE),
    "windows": Row(Windows, square, ONE),
    "masked_exponentials": Row(MaskedExponentials, padded, ONE),
    "watched": Row(Watched, padded, CUSTOM),
    "linear": Row(Linear, tokens, ("graphwright.LinearAttention",)),
}
