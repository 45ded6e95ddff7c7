"""The decoder: reads a question with each retrieved entry, looks at the picture, and writes or copies words.

Blocks are read one by one and written from together (fusion in the decoder, Izacard & Grave 2021, arXiv:2007.01282);
the output is a mixture of generating and copying (See et al. 2017, arXiv:1704.04368). Pointer and attention are told
where a copy would go on, so that one that has begun is followed, and its end is seen. Readers are told what stands
beside what: an answer begins after "stands for", whatever it is made of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edge_ravlm.runtime.fusion.layout import EMPTY, FEATURES, LONGEST_BLOCK, PAD, ROLES

NEVER = -1e4
"""Added to the score of what must not be attended to; small enough for float16."""

_READS, _WRITES = 2, 4
"""Times that the feed-forward parts are wider than the rest: of all that is read there is much, of an answer little."""

_BESIDE, _REACH = 2, 8
"""Tokens on either side that a token is read together with, and from which on a distance is just far."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        vocab: words.
        width, heads, readers, writers: see ``FusionSettings``.
        kind: how the picture comes in.
        dim: of an image embedding.
        channels: of a cell of the picture's grid.
        longest: tokens of an answer, at most.
        dropout: in training.
    """

    vocab: int
    width: int = 192
    heads: int = 6
    readers: int = 2
    writers: int = 2
    kind: Literal["attention", "concat", "add"] = "attention"
    dim: int = 256
    channels: int = 320
    longest: int = 24
    dropout: float = 0.0


@dataclass
class Read:
    """What was read, of n questions; see ``FusionDecoder.read``.

    Attributes:
        keys, values: float32 [writers, n, heads, m, width / heads], for the writers' attention.
        pointers: float32 [n, m, width], for copying.
        mask: float32 [n, m], 0 where there is something to read, NEVER elsewhere.
        copyable: the same for copying, which cells are not for.
    """

    keys: Tensor
    values: Tensor
    pointers: Tensor
    mask: Tensor
    copyable: Tensor


class FusionDecoder(nn.Module):
    """See the module.

    Args:
        shape: its sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, width = shape, shape.width
        self.words = nn.Embedding(shape.vocab, width)
        self.roles = nn.Embedding(ROLES, width)
        self.places = nn.Embedding(LONGEST_BLOCK, width)
        self.steps = nn.Embedding(shape.longest + 1, width)
        self.features = nn.Linear(len(FEATURES), width)
        self.product = nn.Sequential(nn.Linear(shape.dim, 64), nn.GELU(), nn.Linear(64, width))
        self.cell_norm = nn.LayerNorm(shape.channels)
        self.cell = nn.Linear(shape.channels, width)
        self.joined = nn.Linear(2 * width, width) if shape.kind == "concat" else None
        self.beside = _Beside(width)
        self.readers = nn.ModuleList(_Reader(width, shape.heads, shape.dropout) for _ in range(shape.readers))
        self.read_norm = nn.LayerNorm(width)
        self.writers = nn.ModuleList(_Writer(width, shape.heads, shape.dropout) for _ in range(shape.writers))
        self.write_norm = nn.LayerNorm(width)
        self.sought, self.pointer = nn.Linear(width, width), nn.Linear(width, width)
        self.going_on = nn.Linear(width, 2)
        self.gate = nn.Linear(width, 1)
        self.marks = nn.Linear(width, 2)  # for training alone, see ``marked``
        for table in (self.words, self.roles, self.places, self.steps):
            nn.init.normal_(table.weight, std=0.05)
        with torch.no_grad():
            self.going_on.bias.fill_(3.0)  # a copy that has begun goes on, until something better is known

    def read(
        self,
        tokens: Tensor,
        roles: Tensor,
        features: Tensor,
        products: Tensor,
        cells: Tensor,
        places: Tensor | None = None,
    ) -> Read:
        """Read n questions of b blocks each (see ``layout.Prompt``).

        Args:
            tokens: int64 [n, b, t]; the first block is the question alone.
            roles: int64 [n, b, t].
            features: float32 [n, b, len(FEATURES)].
            products: float32 [n, b, dim].
            cells: float32 [n, cells, channels].
            places: int64 [n, m], those of the b t + cells places that are filled, -1 after the last; None takes them
                all. In a batch most are empty, and reading takes half the time without them.
        """
        n, b, t = tokens.shape
        width = self.shape.width
        known = self.features(features) + self.product(products * self.shape.dim)
        seen = self.cell(self.cell_norm(cells))
        x = self.words(tokens) + self.roles(roles) + self.places.weight[:t] + known[:, :, None]
        x = self.beside(self._with_picture(x, seen.mean(1)), roles != EMPTY)
        mask = (roles == EMPTY).to(x.dtype) * NEVER
        # The question alone is read together with the picture, the entries each for themselves.
        unseen = 0.0 if self.shape.kind == "attention" else NEVER
        q = t if places is None else int((roles[:, 0] != EMPTY).sum(1).max())
        asked = torch.cat([x[:, 0, :q], seen], dim=1)
        asked_mask = torch.cat([mask[:, 0, :q], torch.full_like(seen[..., 0], unseen)], dim=1)
        told, told_mask = x[:, 1:].reshape(-1, t, width), mask[:, 1:].reshape(-1, t)
        told = self._through(told, told_mask) if places is None else self._by_length(told, told_mask)
        asked = self._through(asked, asked_mask, seen.shape[1])
        question = asked[:, :q] if places is None else nn.functional.pad(asked[:, :q], (0, 0, 0, t - q))
        memory = torch.cat([question, told.reshape(n, -1, width), asked[:, q:]], dim=1)
        whole = torch.cat([mask[:, 0], told_mask.reshape(n, -1), asked_mask[:, q:]], dim=1)
        copyable = torch.cat([whole[:, : b * t], torch.full_like(seen[..., 0], NEVER)], dim=1)
        if places is not None:
            at, nothing = places.clamp(min=0), (places < 0).to(x.dtype) * NEVER
            memory = memory.gather(1, at[:, :, None].expand(-1, -1, width))
            whole, copyable = whole.gather(1, at) + nothing, copyable.gather(1, at) + nothing
        memory = self.read_norm(memory)
        taken = [writer.attended(memory) for writer in self.writers]  # type: ignore[operator]  # a ModuleList's
        return Read(
            torch.stack([keys for keys, _ in taken]),
            torch.stack([values for _, values in taken]),
            self.pointer(memory),
            whole,
            copyable,
        )

    def write(
        self, last: Tensor, position: Tensor, past_keys: Tensor, past_values: Tensor, read: Read, continues: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The distributions of the next words.

        Args:
            last: int64 [n, a], the words so far that are not in the past.
            position: int64 [a], their places in the answer.
            past_keys: float32 [writers, n, heads, p, width / heads], of the p words before.
            past_values: the same.
            read: of as many questions, or of one for all n.
            continues: float32 [n, a, m, 2], see ``layout.continues``.

        Returns:
            ``words`` float32 [n, a, vocab] and ``copies`` [n, a, m], which sum to 1 together; keys and values [writers,
            n, heads, p + a, width / heads].
        """
        x = self.words(last) + self.steps(position)
        a, p = last.shape[1], past_keys.shape[3]
        causal = torch.full((a, p + a), NEVER, dtype=x.dtype, device=x.device).triu(p + 1) if a > 1 else None
        keys, values = [], []
        for row, writer in enumerate(self.writers):
            x, own_keys, own_values = writer(
                x, past_keys[row], past_values[row], causal, read.keys[row], read.values[row], read.mask, continues
            )
            keys.append(own_keys)
            values.append(own_values)
        x = self.write_norm(x)
        scores = self.sought(x) @ read.pointers.transpose(1, 2) / math.sqrt(self.shape.width)
        scores = scores + (self.going_on(x)[:, :, None] * continues).sum(3) + read.copyable[:, None]
        gate = torch.sigmoid(self.gate(x))
        words = torch.softmax(x @ self.words.weight.T, dim=2) * (1 - gate)
        return words, torch.softmax(scores, dim=2) * gate, torch.stack(keys), torch.stack(values)

    def _through(self, x: Tensor, mask: Tensor, cells: int = 0) -> Tensor:
        """Rows [n, t, width] and their mask [n, t] through the readers; the last ``cells`` stand beside nothing."""
        for reader in self.readers:
            x = reader(x, mask, cells)
        return x

    def _by_length(self, x: Tensor, mask: Tensor, groups: int = 4) -> Tensor:
        """The same, rows of alike length together and without their empty ends."""
        lengths = (mask == 0).sum(1)
        order = torch.argsort(lengths)
        order = order[lengths[order] > 0]
        found = []
        for rows in order.chunk(groups):
            longest = int(lengths[rows].max())
            part = self._through(x[rows, :longest], mask[rows, :longest])
            found.append(nn.functional.pad(part, (0, 0, 0, x.shape[1] - longest)))
        return x.index_copy(0, order, torch.cat(found)) if found else x

    def nothing(self, n: int) -> Tensor:
        """The past of an answer without words, float32 [writers, n, heads, 0, width / heads]."""
        shape = self.shape
        return self.gate.weight.new_zeros(shape.writers, n, shape.heads, 0, shape.width // shape.heads)

    def _with_picture(self, x: Tensor, mean: Tensor) -> Tensor:
        """Tokens [n, b, t, width] with the picture's mean [n, width], for the kinds that take it so."""
        spread = mean[:, None, None]
        if self.joined is not None:
            joined: Tensor = self.joined(torch.cat([x, spread.expand_as(x)], dim=3))
            return joined
        return x + spread if self.shape.kind == "add" else x


class _Attention(nn.Module):
    """Of queries to keys, both given; ``heads`` of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """[n, a, width] -> [n, heads, a, width / heads]."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """X [n, a, width], keys and values [n, heads, m, width / heads], mask that is added to scores [n, h, a, m]."""
        queries = self.split(self.query(x))
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
        weights = torch.softmax(scores if mask is None else scores + mask, dim=3)
        found: Tensor = self.out((weights @ values).transpose(1, 2).flatten(2))
        return found


class _Beside(nn.Module):
    """Adds to each token what its neighbours are (a depthwise convolution over them; So et al. 2021, arXiv:2109.08668).

    It begins as nothing.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(2 * _BESIDE + 1, width) / math.sqrt(2 * _BESIDE + 1))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """X [n, b, t, width], there [n, b, t]: what is a token."""
        t = x.shape[2]
        kept = x * there[..., None].to(x.dtype)
        around = nn.functional.pad(kept, (0, 0, _BESIDE, _BESIDE))
        mixed = torch.zeros_like(x)
        for tap in range(2 * _BESIDE + 1):
            mixed = mixed + around[:, :, tap : tap + t] * self.taps[tap]
        found: Tensor = x + self.out(mixed)
        return found


class _Reader(nn.Module):
    """A pre-norm encoder layer whose attention knows how far apart two tokens are (Shaw et al. 2018, arXiv:1803.02155).

    It is told by one number for each head and distance, added to the scores (Raffel et al. 2020, arXiv:1910.10683).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.distances = nn.Embedding(2 * _REACH + 1, heads)
        nn.init.zeros_(self.distances.weight)
        self.norm, self.attention = nn.LayerNorm(width), _Attention(width, heads)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.feed = _feed_forward(width, _READS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, cells: int) -> Tensor:
        """X [n, t + cells, width], mask [n, t + cells]."""
        y, split = self.norm(x), self.attention.split
        place = torch.arange(x.shape[1] - cells, device=x.device)
        apart = (place[None] - place[:, None]).clamp(-_REACH, _REACH) + _REACH
        near = nn.functional.pad(self.distances(apart).permute(2, 0, 1), (0, cells, 0, cells))
        scores = mask[:, None, None] + near
        x = x + self.dropout(self.attention(y, split(self.key(y)), split(self.value(y)), scores))
        found: Tensor = x + self.dropout(self.feed(x))
        return found


class _Writer(nn.Module):
    """A pre-norm decoder layer."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.own_norm, self.own = nn.LayerNorm(width), _Attention(width, heads)
        self.own_key, self.own_value = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.attention = nn.LayerNorm(width), _Attention(width, heads)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.follows = nn.Linear(2, heads, bias=False)
        with torch.no_grad():  # half of the heads begin where a copy would go on
            self.follows.weight.copy_(torch.tensor([3.0, 0.0]).repeat(heads)[:heads, None].expand(-1, 2))
        self.feed = _feed_forward(width, _WRITES)
        self.dropout = nn.Dropout(dropout)

    def attended(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of what was read, [n, heads, m, width / heads] each."""
        split = self.attention.split
        return split(self.key(memory)), split(self.value(memory))

    def forward(
        self,
        x: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        causal: Tensor | None,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        continues: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X [n, a, width]; returns it with the own keys and values so far."""
        y, split = self.own_norm(x), self.own.split
        own_keys = torch.cat([past_keys, split(self.own_key(y))], dim=2)
        own_values = torch.cat([past_values, split(self.own_value(y))], dim=2)
        x = x + self.dropout(self.own(y, own_keys, own_values, causal))
        followed = self.follows(continues).permute(0, 3, 1, 2) + mask[:, None, None]
        x = x + self.dropout(self.attention(self.norm(x), keys, values, followed))
        return x + self.dropout(self.feed(x)), own_keys, own_values


def _feed_forward(width: int, times: int) -> nn.Module:
    wide = times * width
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))


def spread(words: Tensor, copies: Tensor, source: Tensor) -> Tensor:
    """The probability of each word, float32 [n, a, vocab].

    Args:
        words: float32 [n, a, vocab].
        copies: float32 [n, a, m].
        source: int64 [n, m], the word at each place.
    """
    return words.scatter_add(2, source[:, None].expand_as(copies), copies)


def likelihood(words: Tensor, copies: Tensor, source: Tensor, wanted: Tensor) -> Tensor:
    """The probability of the wanted words, float32 [n, a]; see ``spread``.

    Args:
        words: see there.
        copies: see there.
        source: see there.
        wanted: int64 [n, a].
    """
    copied = (copies * (source[:, None] == wanted[:, :, None])).sum(2)
    return words.gather(2, wanted[:, :, None])[:, :, 0] + copied


def marked(decoder: FusionDecoder, read: Read, marks: Tensor) -> Tensor:
    """How badly the places show what an entry answers, whichever entry is the right one.

    Every entry of a memory teaches to read by it, not only the one that the answer is copied from.

    Args:
        decoder: whose ``marks`` tell.
        read: of a batch.
        marks: float32 [n, m, 2], 1 where an entry's answer begins, and where what follows it begins.

    Returns:
        The mean of the binary cross-entropy over the ones plus that over the zeros.
    """
    told = decoder.marks(read.pointers)
    each = nn.functional.binary_cross_entropy_with_logits(told, marks, reduction="none")
    there = (read.copyable == 0)[:, :, None].to(each.dtype)
    ones, zeros = marks * there, (1 - marks) * there
    return (each * ones).sum() / ones.sum().clamp(min=1) + (each * zeros).sum() / zeros.sum().clamp(min=1)


def loss(
    words: Tensor, copies: Tensor, source: Tensor, wanted: Tensor, right: Tensor, smoothing: float, spots: float
) -> Tensor:
    """Mean over words of the negative log-likelihood, smoothed, and of that of the places to copy from.

    Args:
        words: see ``spread``.
        copies: see there.
        source: see there.
        wanted: int64 [n, a], PAD after the end.
        right: float32 [n, a, m], 1 at the places that each word should be copied from; none for what is generated.
        smoothing: share of the target that is spread over all words.
        spots: weight of the places.
    """
    real = wanted != PAD
    said = -likelihood(words, copies, source, wanted).clamp(min=1e-8).log()
    level = -words.clamp(min=1e-8).log().mean(2)
    total = ((1 - smoothing) * said + smoothing * level)[real].mean()
    copied = right.amax(2) > 0
    if spots and copied.any():
        placed = -(copies * right).sum(2).clamp(min=1e-8).log()
        total = total + spots * placed[copied].mean()
    return total
