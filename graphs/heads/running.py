"""Run circuits of edges: every absent edge carries its writer's output on corrupted prompts.

A reader of a circuit sees

    sum over kept writers of their current output + sum over the others of the corrupted one
      = corrupted stream + sum over kept writers of (current - corrupted)

so only the differences from the corrupted run are carried along ("edge patching", as in ACDC and
auto-circuit; downstream of a removed edge everything is recomputed).
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.subject import SubjectModel
from graphs.heads.decomposed import DecomposedModel, decompose
from graphs.heads.edges import HeadEdges

__all__ = ["EdgeRunner", "check_keep", "check_pairs", "run_edges"]


@dataclass(frozen=True, eq=False)
class EdgeRunner:
    """Runs circuits on clean prompts, with the rest of the model at corrupted ones.

    Holds what each writer writes on the corrupted prompts, and the streams these add up to.
    """

    parts: DecomposedModel
    edges: HeadEdges
    embed: Float[Tensor, "batch pos d_model"] = field(repr=False)
    corrupted: Float[Tensor, "writer batch pos d_model"] = field(repr=False)
    streams: Float[Tensor, "place batch pos d_model"] = field(repr=False)
    """The corrupted stream: before attention and MLP of each layer in turn, and at the end."""

    @classmethod
    def on_prompts(
        cls,
        model: SubjectModel,
        clean: Int[Tensor, "batch pos"],
        corrupted: Int[Tensor, "batch pos"],
    ) -> "EdgeRunner":
        """Hold both sets of prompts, which must line up token by token.

        Raises:
            ValueError: if they do not, or if the model cannot be taken apart (`decompose`).
        """
        check_pairs(clean, corrupted)
        with torch.no_grad():
            parts = decompose(model, clean)
            edges = HeadEdges(model.n_layers, model.n_heads, model.parallel)
            stream = parts.embed(corrupted)
            written, streams = [stream[None]], []
            for block in parts.blocks:
                z = block.attend(*block.read(block.normalise(stream[None]), slice(None)).chunk(3))
                heads = block.write(z)
                middle = stream + heads.sum(0) + block.b_O
                streams += [stream, stream if parts.parallel else middle]
                mlp = block.mlp(streams[-1])
                written += [heads, mlp[None]]
                stream = middle + mlp
            streams = torch.stack([*streams, stream])
            return cls(parts, edges, parts.embed(clean), torch.cat(written), streams)

    @cached_property
    def n_differing(self) -> int:
        """Positions from the first at which some pair of prompts differs, at least 1."""
        differs = (self.embed != self.corrupted[0]).any(-1).any(0).nonzero()
        return self.embed.shape[1] - int(differs[0]) if len(differs) else 1

    def stream(self, reader: int) -> Float[Tensor, "batch pos d_model"]:
        """What a reader sees on the corrupted prompts."""
        layer, at = divmod(reader, 3 * self.edges.n_heads + 1)
        return self.streams[2 * layer + (at == 3 * self.edges.n_heads)]

    @property
    def full_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """The model's logits at the last position of the clean prompts."""
        return self.logits(self.edges.exists[None])[0]

    def logits(
        self, keep: Bool[Tensor, "circuit reader writer"]
    ) -> Float[Tensor, "circuit batch d_vocab"]:
        """Last-position logits of each circuit, as `run_edges`."""
        return self.output(keep[:, -1], self.run(keep)[..., -1, :])

    def output(
        self,
        keep: Bool[Tensor, "circuit writer"],
        added: Float[Tensor, "writer circuit batch d_model"],
    ) -> Float[Tensor, "circuit batch d_vocab"]:
        """Logits from the edges into the output and what each writer adds there."""
        with torch.no_grad():
            last = torch.einsum("cw,wcbd->cbd", keep.to(added), added)
            logits = self.parts.unembed((last + self.streams[-1, :, -1]).flatten(0, 1))
            return logits.unflatten(0, last.shape[:2])

    def run(
        self, keep: Bool[Tensor, "circuit reader writer"]
    ) -> Float[Tensor, "writer circuit batch pos d_model"]:
        """What each writer adds over its corrupted output, circuit by circuit.

        Takes about `n_writers + 4 * n_heads` residual streams of memory a circuit and prompt.

        Raises:
            ValueError: if `keep` is not of the model's shape, or keeps pairs that are no edges.
        """
        check_keep(self.edges, keep)
        edges, n_circuits, flags = self.edges, len(keep), keep.to(self.embed)
        added = self.embed.new_empty(edges.n_writers, n_circuits, *self.embed.shape)

        def see(first: int, last: int) -> Tensor:
            """What the readers from one index up to another see: [reader, row, pos, d_model]."""
            before = edges.n_before(first)
            mix = torch.einsum("crw,wcbpd->rcbpd", flags[:, first:last, :before], added[:before])
            return (mix + self.stream(first)).flatten(1, 2)

        def put(first: int, values: Tensor) -> None:
            rows = slice(first, first + len(values))
            values = values.unflatten(1, (n_circuits, -1))
            torch.sub(values, self.corrupted[rows, None], out=added[rows])

        with torch.no_grad():
            put(0, self.embed.repeat(n_circuits, 1, 1)[None])
            for layer, block in enumerate(self.parts.blocks):
                mlp = edges.mlp_reader(layer)
                seen = see(edges.head_reader(layer, 0, "q"), mlp)
                put(
                    edges.head(layer, 0),
                    block.write(
                        block.attend(*block.read(block.normalise(seen), slice(None)).chunk(3))
                    ),
                )
                put(edges.mlp(layer), block.mlp(see(mlp, mlp + 1)[0])[None])
        return added


def run_edges(
    model: SubjectModel,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    keep: Bool[Tensor, "circuit reader writer"],
) -> Float[Tensor, "circuit batch d_vocab"]:
    """Last-position logits of circuits; an absent edge carries its writer's corrupted output.

    With every edge (`HeadEdges.exists`) these are the model's logits on the clean prompts, with
    none its logits on the corrupted ones. For several calls hold the prompts in an `EdgeRunner`.

    Args:
        model: the whole model, without dictionaries.
        clean: prompts of one length.
        corrupted: their counterparts, row by row and token by token.
        keep: flags of the edges of each circuit, in the order of `HeadEdges`.

    Raises:
        ValueError: if the prompts do not line up, the model cannot be taken apart (`decompose`),
            or `keep` is not of the model's shape or keeps pairs that are no edges.
    """
    return EdgeRunner.on_prompts(model, clean, corrupted).logits(keep)


def check_pairs(clean: Tensor, corrupted: Tensor) -> None:
    """Two sets of prompts line up, or a ValueError says how they do not."""
    if clean.shape != corrupted.shape or clean.numel() == 0:
        raise ValueError(
            f"clean and corrupted prompts must line up token by token, got shapes "
            f"{tuple(clean.shape)} and {tuple(corrupted.shape)}"
        )


def check_keep(edges: HeadEdges, keep: Tensor) -> None:
    """Flags are over pairs that are edges, or a ValueError says what is wrong."""
    shape = (edges.n_readers, edges.n_writers)
    if keep.shape[-2:] != shape:
        raise ValueError(
            f"want flags of shape [reader, writer] = {shape} at the end, got {tuple(keep.shape)}"
        )
    wrong = (keep & ~edges.exists).nonzero()
    if len(wrong):
        reader, writer = wrong[0, -2:].tolist()
        raise ValueError(
            f"{len(wrong)} kept pairs are no edges, the first {edges.writer_names[writer]}->"
            f"{edges.reader_names[reader]}: a writer must come before the reader; start from "
            "HeadEdges.exists"
        )
