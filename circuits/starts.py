"""Forward passes without some of their parts: what they begin with, and what stands in.

Blocks below the layer where a pass begins pass on what they are given, and the stream that is to
enter the layer is put in where it enters; tables of rotation and masks are made by the model
itself, as ever. So do MLPs whose output is not wanted.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from circuits.sites import Site

__all__ = ["Start", "check_replaced", "check_start", "passing_on"]

Start = tuple[int, Float[Tensor, "batch pos d_model"]]
"""A layer, and the residual stream that enters it."""

_ABOVE = ("final_scale", "unembed_in")  # outside the blocks, whatever their layer says


def check_start(
    start: Start, tokens: Int[Tensor, "batch pos"], sites: Iterable[Site], *, n_layers: int
) -> None:
    """Refuse a start that the pass cannot have.

    Args:
        start: where the pass begins, and with what.
        tokens: of the pass.
        sites: everything that is edited or captured in it.
        n_layers: of the model.

    Raises:
        ValueError: if there is no such layer, the stream is not one vector a token, or a site
            comes before the layer.
    """
    layer, stream = start
    if not 0 <= layer < n_layers:
        raise ValueError(f"a pass begins at a layer from 0 to {n_layers - 1}, got {layer}")
    if stream.shape[:-1] != tokens.shape:
        raise ValueError(
            f"the stream that enters layer {layer} must have one vector a token, for tokens "
            f"{tuple(tokens.shape)} [batch, pos]; got shape {tuple(stream.shape)}"
        )
    early = [s for s in sites if s.kind == "embed" or (s.layer < layer and s.kind not in _ABOVE)]
    if early:
        names = ", ".join(map(str, sorted(early, key=lambda site: site.layer)))
        raise ValueError(
            f"a pass that begins at layer {layer} does not come by {names}; begin lower, or edit "
            f"the stream that enters (resid_pre{layer})"
        )


def check_replaced(replaced: Iterable[int], edits: Iterable[Site], capture: Iterable[Site]) -> None:
    """Refuse to leave out an MLP whose output no edit replaces, or whose inside is asked for.

    Raises:
        ValueError: names the layers or sites.
    """
    replaced, edits = set(replaced), set(edits)
    outputs = {site.layer for site in edits if site.kind in ("mlp_raw_out", "mlp_out")}
    if replaced - outputs:
        raise ValueError(
            f"no edit replaces the output of the MLPs of layers {sorted(replaced - outputs)}; edit "
            "mlp_raw_out or mlp_out there, or let them run"
        )
    inside = {s for s in edits | set(capture) if s.kind == "mlp_post" and s.layer in replaced}
    if inside:
        names = ", ".join(map(str, sorted(inside)))
        raise ValueError(f"{names} are inside MLPs that are not run; let them run")


@contextmanager
def passing_on(modules: Sequence[Any], *, in_tuple: bool = False) -> Iterator[None]:
    """While this lasts, `modules` give back the hidden states they are called with.

    Args:
        modules: blocks or MLPs; they are as they were when it ends, however it ends.
        in_tuple: whether the caller takes the output out of a tuple.
    """

    def pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        return (hidden_states,) if in_tuple else hidden_states

    # In the module's own dictionary: a bridge's `setattr` reaches through to what it wraps.
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        vars(module)["forward"] = pass_on
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own
