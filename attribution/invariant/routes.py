"""Which weights-only routes lead from one place to another: direct, or through one head.

Input-invariant: the order of places in a block and what cuts the residual stream, no tensors.
"""

from circuits.sites import Site
from circuits.spliced import Placement, SplicedModel
from circuits.subject import SubjectModel

__all__ = ["Head", "check_head", "check_reads_stream", "check_route", "slots_on_route"]

Head = tuple[int, int]
"""Layer, and query head in it."""

_Height = tuple[int, int]
_WRITES = {"resid_pre": 0, "attn_out": 2, "mlp_raw_out": 4, "mlp_out": 4, "resid_post": 5}
"""Order of writing places inside a block; heads read at 1 and write at 2."""
_READS = {"resid_pre": 0, "resid_mid": 3, "mlp_in": 3, "resid_post": 5}


def check_route(spliced: SplicedModel, target: Site, source: Site, head: Head | None) -> None:
    """Raise ValueError unless the residual stream leads from `source` to `target`.

    Directly, or to `head` and from there to the target: then the head's output must not be
    replaced on its way.

    Args:
        spliced: holds both dictionaries; others cut the stream where they replace it.
        target: write site of the dictionary that reads.
        source: write site of the dictionary that writes.
        head: the head on the way, or None.
    """
    if head is None:
        _check_direct(spliced, target, source)
    else:
        _check_through_head(spliced, target, source, head)


def _check_direct(spliced: SplicedModel, target: Site, source: Site) -> None:
    reader, writer = spliced.placements[target], spliced.placements[source]
    check_reads_stream(reader)
    beside = source.kind == "attn_out" and reader.read == Site("mlp_in", source.layer)
    if beside and spliced.model.parallel:
        raise ValueError(
            f"in a parallel block {reader.name} does not read what {writer.name} writes"
        )
    if not _written(source) < _read(spliced.model, reader.read):
        raise ValueError(f"{writer.name} does not write below what {reader.name} reads; swap them?")
    _check_post_norm(spliced.model, writer)
    _check_whole(spliced, reader, writer, _written(source), _read(spliced.model, reader.read))


def _check_through_head(spliced: SplicedModel, target: Site, source: Site, head: Head) -> None:
    model, layer = spliced.model, head[0]
    reader, writer = spliced.placements[target], spliced.placements[source]
    check_head(model, reader, head)
    if not _written(source) < (layer, 1):
        raise ValueError(f"{writer.name} does not write below what {_call(head)} reads")
    _check_post_norm(model, writer)
    _check_whole(spliced, reader, writer, _written(source), (layer, 1))
    if reader.read == Site("attn_out", layer):
        return
    if Site("attn_out", layer) in spliced.placements:
        raise ValueError(
            f"the SAE at attn_out.{layer} replaces what {_call(head)} writes; take it out, or make "
            "it the target"
        )
    _check_whole(spliced, reader, writer, (layer, 2), _read(model, reader.read))


def slots_on_route(spliced: SplicedModel, target: Site, source: Site, head: Head | None) -> range:
    """The slots of the source's decoder that write below what `target` (or `head`) reads.

    More than one only for a cross-layer transcoder; the route is one that `check_route` passes.
    """
    high = (head[0], 1) if head else _read(spliced.model, spliced.placements[target].read)
    slots = range(spliced.placements[source].dictionary.n_writes)
    written = (_written(source._replace(layer=source.layer + slot)) for slot in slots)
    return range(sum(height < high for height in written))


def check_head(model: SubjectModel, reader: Placement, head: Head) -> None:
    """Raise ValueError unless there is such a head and it writes below what `reader` reads."""
    layer, index = head
    if not (0 <= layer < model.n_layers and 0 <= index < model.n_heads):
        raise ValueError(
            f"want a head (layer, head) with layer in [0, {model.n_layers}) and head in "
            f"[0, {model.n_heads}), got {head}"
        )
    if model.norm("ln1_post", layer) is not None:
        raise ValueError(
            f"{model.name!r} normalises what {_call(head)} writes, with an input-dependent "
            "denominator; no weights-only path leads through it"
        )
    if reader.read.kind == "attn_out":
        if reader.read.layer != layer:
            raise ValueError(
                f"the SAE at {reader.read} reads the heads of layer {reader.read.layer}, "
                f"got {_call(head)}"
            )
        return
    check_reads_stream(reader)
    if not (layer, 2) < _read(model, reader.read):
        raise ValueError(f"{_call(head)} does not write below what {reader.name} reads")


def check_reads_stream(reader: Placement) -> None:
    """Raise ValueError if `reader` reads a sublayer's output: no stream leads straight there."""
    if reader.read.kind in ("attn_out", "mlp_out"):
        raise ValueError(
            f"the SAE at {reader.read} reads a sublayer's output, not the residual stream, so "
            "no direct path ends there; use a transcoder or a residual SAE"
        )


def _check_post_norm(model: SubjectModel, writer: Placement) -> None:
    write = writer.write
    if write.kind == "mlp_raw_out" and model.norm("ln2_post", write.layer) is not None:
        raise ValueError(
            f"{model.name!r} normalises what {writer.name} writes, with an input-dependent "
            "denominator; no weights-only direct path exists"
        )


def _check_whole(
    spliced: SplicedModel, reader: Placement, writer: Placement, low: _Height, high: _Height
) -> None:
    for site in spliced.placements:
        if site.kind in ("resid_pre", "resid_post") and low < _written(site) < high:
            raise ValueError(
                f"{site} replaces the residual stream between {writer.name} and {reader.name}"
            )


def _written(site: Site) -> _Height:
    return site.layer, _WRITES[site.kind]


def _read(model: SubjectModel, site: Site) -> _Height:
    """In a parallel block attention and MLP read the same stream."""
    if model.parallel and site.kind == "mlp_in":
        return site.layer, 1
    return site.layer, _READS[site.kind]


def _call(head: Head) -> str:
    return f"head {head[0]}.{head[1]}"
