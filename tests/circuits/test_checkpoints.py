"""Dictionary files: what goes in comes out, and damage is named, never loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from circuits import SAE, Dictionary, load_dictionaries
from circuits.checkpoints import load_dictionary, load_folder, read_record, save_dictionary
from circuits.checksums import RECORD, sha256_of_record, sha256_of_tensors
from circuits.files import write_atomically, write_json
from tests import models
from tests.limits import files_no_larger_than

TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip")
ALL = {
    "relu": models.transcoder("relu"),
    "jumprelu": models.transcoder("jumprelu", skip=True),
    "topk": models.transcoder("topk"),
    **{site: models.sae(site) for site in ("resid_pre", "resid_post", "attn_out", "mlp_out")},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.0.safetensors"
    save_dictionary(models.transcoder(), path, layer=0, model="toy")
    return path


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(str(path), framework="pt") as file:
        return {n: file.get_tensor(n) for n in file.keys()}, json.loads(  # noqa: SIM118
            file.metadata()["circuitloom"]
        )


def rewrite(path: Path, tensors: dict[str, torch.Tensor], record: Any) -> None:
    """Another file with checksums of its own: what is wrong with it is not a flipped bit."""
    if isinstance(record, dict):
        sums = {RECORD: sha256_of_record(record), **sha256_of_tensors(tensors)}
        record = record | {"sha256": sums}
    text = record if isinstance(record, str) else json.dumps(record)
    save_file(tensors, str(path), metadata={"circuitloom": text})


@pytest.mark.parametrize("name", ALL)
def test_round_trip(name: str, tmp_path: Path):
    original = ALL[name]
    path = tmp_path / "x.safetensors"
    save_dictionary(original, path, layer=3, model="toy", notes={"L0": 4.5})
    layer, loaded = load_dictionary(path)
    assert layer == 3
    assert type(loaded) is type(original)
    assert (loaded.activation, loaded.k) == (original.activation, original.k)
    assert getattr(loaded, "site", None) == getattr(original, "site", None)
    for tensor in TENSORS:
        want, got = getattr(original, tensor), getattr(loaded, tensor)
        assert (want is None) == (got is None)
        assert want is None or torch.equal(want, got)
    assert contents(path)[1]["notes"] == {"L0": 4.5}


def test_half_precision_files_keep_thresholds_whole(tmp_path: Path):
    path, original = tmp_path / "x.safetensors", models.transcoder("jumprelu")
    original = Dictionary.to(original, dtype=torch.float32)
    original.threshold.mul_(1.0 + 1e-6)  # type: ignore[union-attr]
    save_dictionary(original, path, layer=0, model="toy", dtype=torch.float16)
    _, loaded = load_dictionary(path)
    assert contents(path)[0]["W_enc"].dtype == torch.float16
    assert loaded.W_enc.dtype == torch.float32
    assert torch.equal(loaded.threshold, original.threshold)  # type: ignore[arg-type]
    assert torch.allclose(loaded.W_enc, original.W_enc, rtol=1e-3, atol=1e-4)


def test_what_overflows_a_narrow_dtype_is_not_written(tmp_path: Path):
    big = models.transcoder("relu")
    big.W_enc[0, 0] = 1e6
    try:
        with pytest.raises(ValueError, match=r"W_enc is not finite in torch.float16"):
            save_dictionary(
                big, tmp_path / "x.safetensors", layer=0, model="toy", dtype=torch.float16
            )
    finally:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_named(saved: Path, share: float):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"mlp.0.safetensors is not a complete safetensors file"):
        load_dictionary(saved)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no dictionary at .*mlp.9.safetensors; check the path"):
        load_dictionary(tmp_path / "mlp.9.safetensors")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0.0, 1.0, exclude_max=True), bit=st.integers(0, 7), head=st.booleans())
def test_a_flipped_bit_is_an_error(saved: Path, place: float, bit: int, head: bool):
    """In the header or in a value: an error that names the file, never a dictionary."""
    data = bytearray(saved.read_bytes())
    original = bytes(data)
    at = int(place * (min(2400, len(data)) if head else len(data)))
    data[at] ^= 1 << bit
    saved.write_bytes(bytes(data))
    try:
        with pytest.raises(ValueError, match=r"mlp\.0\.safetensors"):
            load_dictionary(saved)
    finally:
        saved.write_bytes(original)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_a_flipped_bit_of_a_value_names_the_tensor(tmp_path: Path, name: str, dtype: torch.dtype):
    path = tmp_path / "x.safetensors"
    save_dictionary(models.transcoder("jumprelu"), path, layer=0, model="toy", dtype=dtype)
    tensors, record = contents(path)
    flat = tensors[name].view(torch.uint8).reshape(-1)
    flat[len(flat) // 2] ^= 1
    save_file(tensors, str(path), metadata={"circuitloom": json.dumps(record)})
    with pytest.raises(ValueError, match=rf"x.safetensors: {name} differs from its checksum"):
        load_dictionary(path)


def test_a_changed_record_is_found_out_without_reading_weights(saved: Path):
    tensors, record = contents(saved)
    text = json.dumps(record | {"layer": 1})
    save_file(tensors, str(saved), metadata={"circuitloom": text})
    with pytest.raises(ValueError, match="its record differs from its checksum"):
        read_record(saved)


def test_a_tensor_without_a_checksum_is_found_out(saved: Path):
    tensors, record = contents(saved)
    del record["sha256"]["W_dec"]
    save_file(tensors, str(saved), metadata={"circuitloom": json.dumps(record)})
    with pytest.raises(ValueError, match="W_dec differs from its checksum"):
        load_dictionary(saved)


def test_files_of_version_1_have_no_checksums(saved: Path):
    tensors, record = contents(saved)
    del record["sha256"], record["convention"]
    text = json.dumps(record | {"version": 1})
    save_file(tensors, str(saved), metadata={"circuitloom": text})
    layer, loaded = load_dictionary(saved)
    assert layer == 0
    assert torch.equal(loaded.W_enc, tensors["W_enc"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["W_enc", "b_dec", "threshold"])
def test_what_is_not_finite_is_named(saved: Path, name: str, value: float):
    tensors, record = contents(saved)
    tensors[name].view(-1)[3] = value
    rewrite(saved, tensors, record)
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity; the file is damaged"):
        load_dictionary(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "format version 3, this reads 2 and older; upgrade"),
        ({"version": None}, "format version None, this reads 2"),
        ({"kind": "crosscoder"}, "damaged `circuitloom` record"),
        ({"input": "bare normalised"}, "'transcoder' that reads 'bare normalised'; want"),
        ({"layer": -1}, "damaged `circuitloom` record"),
        ({"layer": "low"}, "damaged `circuitloom` record"),
        ({"activation": "gelu"}, "damaged `circuitloom` record"),
        ({"activation": "topk"}, "mlp.0.safetensors: activation 'topk' needs k >= 1, got None"),
        ({"activation": "topk", "k": -2}, "needs k >= 1, got -2"),
        ({"surprise": 1}, "damaged `circuitloom` record"),
        ({"kind": "sae", "input": "the activation itself", "site": "mlp"}, "an SAE sits at one of"),
    ],
)
def test_a_record_that_cannot_be_true_is_named(saved: Path, change: dict, message: str):
    tensors, record = contents(saved)
    rewrite(saved, tensors, record | change)
    with pytest.raises(ValueError, match=message):
        load_dictionary(saved)


@pytest.mark.parametrize("header", ["", "{", "[]", "3", "{}", '{"version": 1}'])
def test_a_damaged_header_is_named(saved: Path, header: str):
    tensors, _ = contents(saved)
    rewrite(saved, tensors, header)
    with pytest.raises(ValueError, match="damaged `circuitloom` record"):
        load_dictionary(saved)


def test_a_missing_header_is_named(saved: Path):
    tensors, _ = contents(saved)
    save_file(tensors, str(saved))
    with pytest.raises(ValueError, match="no `circuitloom` record in its header"):
        load_dictionary(saved)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("W_dec", (40, 31), "b_dec must have shape"),
        ("W_dec", (39, 32), "W_dec must have shape"),
        ("b_enc", (39,), "b_enc must have shape"),
        ("b_dec", (1, 32), "b_dec must have shape"),
        ("threshold", (1,), "threshold must have shape"),
        ("W_enc", (40,), r"W_enc must be \[d_in, feature\]"),
        ("W_enc", (32, 40, 1), r"W_enc must be \[d_in, feature\]"),
        ("extra", (1,), "holds tensors .*'extra'.*; want"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_tensors_that_do_not_fit_are_named(saved: Path, name: str, shape: tuple, message: str):
    tensors, record = contents(saved)
    rewrite(saved, tensors | {name: torch.zeros(shape)}, record)
    with pytest.raises(ValueError, match=message):
        load_dictionary(saved)


def test_a_missing_tensor_is_named(saved: Path):
    tensors, record = contents(saved)
    del tensors["b_enc"]
    rewrite(saved, tensors, record)
    with pytest.raises(ValueError, match=r"holds tensors \['W_dec'"):
        load_dictionary(saved)


# --- full disks ---------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(tmp_path: Path):
    wanted = r"could not write the file .*too large.*mlp.0.safetens"
    with files_no_larger_than(4096), pytest.raises(OSError, match=wanted):
        save_dictionary(models.transcoder(), tmp_path / "mlp.0.safetensors", layer=0, model="toy")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = saved.read_bytes()

    def fail(tensors: Any, path: str, metadata: Any) -> None:
        Path(path).write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_dictionary(models.transcoder("relu"), saved, layer=0, model="toy")
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_an_interrupt_leaves_nothing(tmp_path: Path):
    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x.json", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_json_is_sorted_and_refuses_nan(tmp_path: Path):
    write_json(tmp_path / "x.json", {"b": 1, "a": 2})
    assert (tmp_path / "x.json").read_text() == '{\n "a": 2,\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "y.json", {"a": float("nan")})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


# --- folders ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for layer in (0, 2, 10):
        path = tmp_path / f"mlp.{layer}.safetensors"
        save_dictionary(models.transcoder(), path, layer=layer, model="toy")
    path = tmp_path / "resid_post.2.safetensors"
    save_dictionary(models.sae("resid_post"), path, layer=2, model="toy")
    for other in ("model.safetensors", "a.b.safetensors", "mlp.x.safetensors", "mlp.0.json"):
        (tmp_path / other).write_text("not a dictionary")
    return tmp_path


def test_a_folder_is_read_in_the_order_of_layers(folder: Path):
    assert list(load_folder(folder)) == ["mlp.0", "mlp.2", "resid_post.2", "mlp.10"]
    assert list(load_folder(folder, sites=["mlp"])) == ["mlp.0", "mlp.2", "mlp.10"]
    assert list(load_folder(folder, layers=[2])) == ["mlp.2", "resid_post.2"]
    assert list(load_dictionaries(folder)) == ["mlp.0", "mlp.2", "mlp.10"]
    loaded = load_dictionaries(str(folder), sites=["mlp", "resid_post"], layers=[2])
    assert isinstance(loaded["resid_post.2"], SAE)


def test_nothing_found_is_an_error(folder: Path):
    with pytest.raises(ValueError, match=r"holds no dictionary for sites .*attn_out.*layers any"):
        load_folder(folder, sites=["attn_out"])
    with pytest.raises(ValueError, match=r"no dictionaries called .*nowhere.*: want `tiny`"):
        load_dictionaries(folder / "nowhere")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mlp.0", "mlp.1"),
        ("resid_post.2", "resid_pre.2"),
        ("resid_post.2", "mlp.2"),
        ("mlp.0", "a.b.0"),
    ],
)
def test_a_renamed_file_is_found_out(folder: Path, old: str, new: str):
    (folder / f"{old}.safetensors").rename(folder / f"{new}.safetensors")
    with pytest.raises(ValueError, match=f"says it holds {old}; rename the file"):
        load_folder(folder)
