"""What a checkpoint says of one dictionary before its weights are read, and how to read them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from circuits.conventions import Convention
from circuits.dictionaries import Dictionary

__all__ = ["Entry", "FeatureRows", "Format", "Given", "Kind"]

Kind = Literal["transcoder", "cross-layer transcoder", "sae"]


@dataclass(frozen=True)
class FeatureRows:
    """Some features of a dictionary, as the file's convention has them.

    Args:
        encoder: what each reads, one row a feature.
        decoder: what each writes, [feature, d_out], or [feature, write, d_out] for a cross-layer
            transcoder.
        b_enc: encoder bias, with any subtracted input folded in.
        threshold: JumpReLU thresholds, None for other activations.
    """

    encoder: Float[Tensor, "feature d_in"]
    decoder: Float[Tensor, "feature *write d_out"]
    b_enc: Float[Tensor, " feature"]
    threshold: Float[Tensor, " feature"] | None


@dataclass(frozen=True)
class Entry:
    """One dictionary of a checkpoint.

    Opening a checkpoint reads headers and configs only; `read` and `read_rows` read weights.

    Args:
        name: `SITE.LAYER`, such as `mlp.3` for a transcoder or `resid_post.7` for an SAE.
        kind: what it is.
        d_in: width of what it reads.
        d_out: width of what it writes.
        n_features: how many features it has.
        convention: what it expects of its input and was taught to write.
        model: the model as the files name it; empty if they do not.
        path: its file, for messages.
        read: the whole dictionary, float32, its `convention` set.
        read_rows: some features of it, in the order asked for, without reading the others where
            the layout of the file allows.
        n_writes: to how many layers it writes (cross-layer transcoders).
    """

    name: str
    kind: Kind
    d_in: int
    d_out: int
    n_features: int
    convention: Convention
    model: str
    path: Path
    read: Callable[[], Dictionary]
    read_rows: Callable[[Sequence[int]], FeatureRows]
    n_writes: int = 1

    @property
    def site(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def layer(self) -> int:
        return int(self.name.rpartition(".")[2])


@dataclass(frozen=True)
class Given:
    """What the caller says of a checkpoint, for files that do not say it, or say it wrongly.

    None leaves it to the file.

    Args:
        site: `mlp` for a transcoder, else where the SAE sits.
        layer: of the only dictionary in the checkpoint.
        convention: taken instead of the file's.
        input_norm: mean L2 norm of the inputs in training, for files whose input scale was not
            folded into the weights.
        layers: only entries of these layers need be made (for checkpoints of many files).
    """

    site: str | None = None
    layer: int | None = None
    convention: Convention | None = None
    input_norm: float | None = None
    layers: frozenset[int] | None = None


@dataclass(frozen=True)
class Format:
    """One checkpoint format.

    Args:
        name: as users give it, lower case.
        what: a line for lists.
        recognises: whether the path (a file or a folder) is a checkpoint of this format, told by
            names of files and keys of configs; reads no weights and raises nothing.
        open: the entries in a path, in the order of layers. Raises ValueError, naming the file, for
            whatever is damaged, of other sizes than declared, or not expressible here.
        write: writes dictionaries (`{"mlp.0": ...}`, of a named model) to a folder; None if it
            cannot. All or nothing a file; refuses what the format cannot hold.
    """

    name: str
    what: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path, Given], list[Entry]]
    write: Callable[[dict[str, Dictionary], Path, str], None] | None = None
