"""Gemma Scope 1 (Lieberum et al. 2024): JumpReLU SAEs and transcoders of Gemma 2, `params.npz`.

One folder, or a tree such as `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz`:
the layer and what is read stand in the path, nothing in the file. The transcoders read the bare
output of the norm before the MLP (its gain was folded into the MLP) and write what the MLP adds to
the residual stream, after its post-norm; rows began with BOS, and special tokens were left out of
training (appendix, "Language model technical details").
"""

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from circuits.conventions import NATIVE
from circuits.formats.building import (
    check_layout,
    make_entry,
    open_layers,
    select_features,
)
from circuits.formats.entry import Entry, Format, Given
from circuits.formats.reading import check_finite, npz_shapes, read_npz
from circuits.sites import DICTIONARY_SITES

__all__ = ["FORMAT"]

_SITES = {"res": "resid_post", "mlp": "mlp_out", "transcoders": "mlp"}
_TRAINING = NATIVE.model_copy(update={"bos": "in front", "first_position": "left out"})
_BY_ROW = ("W_dec", "b_enc", "threshold")


def _files(path: Path) -> list[Path]:
    if path.name == "params.npz":
        return [path] if path.is_file() else []
    return sorted(path.rglob("params.npz")) if path.is_dir() else []


def _recognises(path: Path) -> bool:
    return bool(_files(path))


def _open(path: Path, given: Given) -> list[Entry]:
    files = _files(path)
    if not files:
        raise ValueError(f"{path} holds no params.npz")
    return open_layers(path, files, given, _layer, _entry)


def _layer(path: Path, given: Given) -> int:
    if given.layer is not None:
        return given.layer
    parts = path.absolute().parts[:-1]
    if "embedding" in parts:
        raise ValueError(f"{path} is an SAE of the token embeddings, which has no site here")
    for part in reversed(parts):
        if found := re.fullmatch(r"layer_(\d{1,4})", part):
            return int(found[1])
    raise ValueError(f"{path} has no layer_N in its path; give `layer`")


def _site(path: Path, given: Given) -> str:
    for part in path.absolute().parts:
        if re.search(r"gemma-scope-.*-att$", part):
            raise ValueError(
                f"{path} is an attention SAE of Gemma Scope, which reads the heads' outputs "
                "before W_O (n_heads * d_head wide); here attention SAEs read attn_out"
            )
    if given.site is not None:
        if given.site not in ("mlp", *DICTIONARY_SITES):
            raise ValueError(
                f"{path}: `site` must be mlp for a transcoder or one of {DICTIONARY_SITES} for an "
                f"SAE, got {given.site!r}"
            )
        return given.site
    for part in reversed(path.absolute().parts):
        if found := re.search(r"gemma-scope-.*-(res|mlp|transcoders)$", part):
            return _SITES[found[1]]
    raise ValueError(
        f"{path} has no folder in its path such as gemma-scope-2b-pt-res that says what it reads; "
        f"give `site`: mlp for a transcoder, or one of {DICTIONARY_SITES} for an SAE"
    )


def _model(path: Path) -> str:
    """`gemma-2-2b` for a path with `gemma-scope-2b-pt-res`; empty if there is no such part."""
    for part in reversed(path.absolute().parts):
        if found := re.search(r"gemma-scope-(\d+b)-(pt|it)-", part):
            return f"google/gemma-2-{found[1]}{'-it' if found[2] == 'it' else ''}"
    return ""


def _entry(path: Path, layer: int, given: Given) -> Entry:
    site = _site(path, given)
    transcodes = site == "mlp"
    got = npz_shapes(path)
    if len(got.get("W_enc", ())) != 2 or len(got.get("W_dec", ())) != 2:
        raise ValueError(f"{path} must hold W_enc [d_in, F] and W_dec [F, d_out], got {got}")
    (d_in, n_features), d_out = got["W_enc"], got["W_dec"][1]
    want = {
        "W_enc": (d_in, n_features),
        "W_dec": (n_features, d_out if transcodes else d_in),
        "b_enc": (n_features,),
        "b_dec": (d_out,),
        "threshold": (n_features,),
    }
    check_layout(path, got, want)
    if unknown := sorted(set(got) - set(want)):
        raise ValueError(f"{path} holds {', '.join(unknown)}, which Gemma Scope does not have")

    def load(rows: Sequence[int] | None) -> dict[str, Tensor]:
        tensors = read_npz(path)
        found = select_features(tensors, rows, by_row=_BY_ROW, by_column=("W_enc",))
        weights = {name: tensor.float() for name, tensor in found.items()}
        check_finite(path, weights)
        # a = relu(z) where z exceeds the threshold: a negative one lets nothing more through
        return weights | {"threshold": weights["threshold"].clamp_min(0)}

    between = {"norm": "bare", "output": "after post-norm"} if transcodes else {}
    return make_entry(
        kind="transcoder" if transcodes else "sae",
        site=site,
        layer=layer,
        sizes=(d_in, d_out, n_features),
        convention=given.convention or _TRAINING.model_copy(update=between),
        model=_model(path),
        path=path,
        load=load,
        activation="jumprelu",
    )


FORMAT = Format(
    name="gemma-scope",
    what="Gemma Scope 1 SAEs and transcoders: params.npz",
    recognises=_recognises,
    open=_open,
)
