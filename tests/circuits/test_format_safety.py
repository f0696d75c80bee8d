"""Damaged and malicious checkpoints: a clear error, nothing run, nothing outside touched."""

import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from circuits.formats.entry import Given
from circuits.formats.pickles import StandIn, check_records, pickle_globals, read_pickle
from circuits.formats.reading import inside
from tests.circuits.attacked_files import (
    CONFIG_CLASS,
    PICKLED,
    SAFETENSORS,
    TARGETS,
    Call,
    RunnerConfig,
    names_of_tensors,
    outcome,
    payloads,
    place,
    read_all,
    refused,
    stand_for_the_papers_package,
    tensors_of,
    write_tensors,
)

stand_for_the_papers_package()
EVERY_TENSOR = [(name, tensor) for name in TARGETS for tensor in names_of_tensors(name)]


@pytest.fixture
def sentinel(tmp_path: Path):
    """A file that payloads would make; it must not be there in the end."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "a payload ran"


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=PICKLED)
def pickled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """Name, folder and weights of a checkpoint that is a pickle."""
    folder = place(request.param, tmp_path)
    return request.param, folder, folder / TARGETS[request.param].weights


def test_all_are_sound_before(target: str, tmp_path: Path):
    folder = place(target, tmp_path)
    assert TARGETS[target].format.recognises(folder)
    assert all(tensor.isfinite().all() for tensor in read_all(target, folder))


# --- pickles: what they would run ----------------------------------------------------------------


@pytest.mark.parametrize("attack", payloads(Path("x")))
@pytest.mark.parametrize("where", ["beside", "nested"])
def test_a_pickle_that_calls_a_function(
    pickled: tuple[str, Path, Path], sentinel: Path, attack: str, where: str
):
    name, folder, path = pickled
    payload, called = payloads(sentinel)[attack]
    found = torch.load(path, weights_only=False)
    if where == "beside":
        found["extra"] = payload
    elif "cfg" in found:
        found["cfg"].feature_sampling_method = ["Anthropic", {"deep": (1, payload)}]
    else:
        found = {"k": {"deep": (1, [payload])}}
    torch.save(found, path)
    refused(name, folder, rf"{re.escape(path.name)} asks to run .*{called}.*nothing was executed")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_payload_of_any_pickle_protocol(
    pickled: tuple[str, Path, Path], sentinel: Path, protocol: int
):
    name, folder, path = pickled
    payload = Call(os.system, f"touch {sentinel}")
    torch.save({"a": torch.zeros(2), "b": payload}, path, pickle_protocol=protocol)
    refused(name, folder, re.escape(path.name))


@pytest.mark.parametrize("kind", ["legacy", "pickle", "tar"])
def test_a_payload_in_an_old_layout(pickled: tuple[str, Path, Path], sentinel: Path, kind: str):
    name, folder, path = pickled
    payload = {"b": Call(os.system, f"touch {sentinel}")}
    if kind == "legacy":
        torch.save(payload, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(b"ustar" * (kind == "tar") + pickle.dumps(payload))
    refused(name, folder, "is not a complete PyTorch file of the zip kind")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"(S'touch {}'\nios\nsystem\n.", id="INST"),
        pytest.param(b"\x80\x02cos\nsystem\n(U\x01xo.", id="no such opcode order"),
        pytest.param(b"(cos\nsystem\nS'touch {}'\no.", id="OBJ"),
        pytest.param(
            b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x08touch {}\x85R.", id="STACK_GLOBAL"
        ),
        pytest.param(b"\x80\x02\x82\x01.", id="extension registry"),
        pytest.param(b"\x80\x02cos\nsystem\nU\x01x\x85R.", id="GLOBAL"),
        pytest.param(b"cos\nsystem\nP0\n.", id="PERSID"),
        pytest.param(b"\x80\x02]r\xff\xff\xff\x7fa.", id="a memo of 2 billion entries"),
        pytest.param(b"\x80\x02(" + b"(" * 100_000 + b".", id="100,000 marks"),
        pytest.param(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", id="50,000 nested lists"),
        pytest.param(b"\x80\x02\x8b\xff\xff\xff\x7f.", id="an int of 2 GB"),
        pytest.param(b"\x80\x02X\xff\xff\xff\x7f.", id="a string of 2 GB"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\x80\x02}", id="no end"),
        pytest.param(b"\x80\x63}.", id="protocol 99"),
    ],
)
def test_pickles_made_by_hand(pickled: tuple[str, Path, Path], sentinel: Path, raw: bytes):
    name, folder, path = pickled
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", raw.replace(b"{}", str(sentinel).encode()))
        archive.writestr("x/version", "3\n")
    refused(name, folder, re.escape(path.name))


@pytest.mark.parametrize("raw", [b"(ios\nsystem\n.", b"(cos\nsystem\no.", b"\x8c\x02os\x93."])
def test_names_put_together_at_run_time_are_refused_before(tmp_path: Path, raw: bytes):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x04" + raw)
    with pytest.raises(ValueError, match=r"x\.pt .*opcode (INST|OBJ|STACK_GLOBAL), which no Py"):
        pickle_globals(path)


def test_a_call_of_a_stand_in_makes_nothing(sentinel: Path, tmp_path: Path):
    """A stand-in takes no arguments and has no methods; its state is only kept."""
    state = {"__class__": "x", "__setstate__": "y", "d_in": 3}
    called = tmp_path / "called.pt"
    torch.save(Call(RunnerConfig), called)
    assert vars(read_pickle(called, [CONFIG_CLASS])) == {}
    config = RunnerConfig()
    vars(config).update(state)
    torch.save(config, called)
    found = read_pickle(called, [CONFIG_CLASS])
    assert type(found) is StandIn
    assert vars(found) == state
    torch.save(Call(RunnerConfig, f"touch {sentinel}"), called)
    with pytest.raises(ValueError, match=r"called\.pt is not a sound PyTorch file"):
        read_pickle(called, [CONFIG_CLASS])
    with pytest.raises(ValueError, match=rf"asks to run {CONFIG_CLASS}; only tensors"):
        read_pickle(called)


def test_names_that_only_look_like_the_stand_in(tmp_path: Path):
    path = tmp_path / "x.pt"
    for name in (f"{CONFIG_CLASS}.__subclasses__", "sae_training.config.os", "torch._utils.os"):
        module, _, attribute = name.rpartition(".")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", f"\x80\x02c{module}\n{attribute}\n.".encode("latin-1"))
        assert pickle_globals(path) == {name}
        with pytest.raises(ValueError, match=f"asks to run {name}"):
            read_pickle(path, [CONFIG_CLASS])


def test_what_others_allowed_in_this_process_stays_refused(tmp_path: Path, sentinel: Path):
    """A list of the process lets `weights_only` run more; and ours is gone after reading."""
    path = tmp_path / "x.pt"
    torch.save({"b": Call(os.mkdir, str(sentinel))}, path)
    before = set(torch.serialization.get_safe_globals())
    with (
        torch.serialization.safe_globals([(os.mkdir, "posix.mkdir")]),
        pytest.raises(ValueError, match=r"asks to run posix\.mkdir"),
    ):
        read_pickle(path)
    torch.save({"cfg": RunnerConfig()}, path)
    read_pickle(path, [CONFIG_CLASS])
    assert set(torch.serialization.get_safe_globals()) == before


# --- archives ------------------------------------------------------------------------------------


def rewritten(path: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> None:
    """The same archive with its records changed: `change(name, data)`."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records:
            archive.writestr(name, change(name, data))


def in_pickle(old: bytes, new: bytes) -> Any:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        assert data.count(old) == 1, data.count(old)
        return data.replace(old, new)

    return change


def simple(path: Path) -> None:
    torch.save({"a": torch.zeros(4, 3)}, path)


def test_a_zip_bomb(pickled: tuple[str, Path, Path]):
    name, folder, path = pickled
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/99", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    refused(name, folder, rf"{re.escape(path.name)} holds compressed records")


def test_records_that_claim_to_be_larger_than_the_file(tmp_path: Path):
    path = tmp_path / "x.pt"
    simple(path)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.index(b"x/data/0", data.index(b"PK\x01\x02")))
    data[at + 24 : at + 28] = struct.pack("<I", 2**31)
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="records that are together larger than the file"):
        read_pickle(path)


def test_two_records_of_one_name(tmp_path: Path):
    path = tmp_path / "x.pt"
    simple(path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data/0", bytes(48))
    with pytest.raises(ValueError, match="holds two records of one name"):
        read_pickle(path)


def test_a_record_marked_as_a_folder(tmp_path: Path):
    """PyTorch's reader then hands out memory that was never written, without an error."""
    path = tmp_path / "x.pt"
    simple(path)
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0x10 if name.endswith("data/0") else 0
            archive.writestr(info, data)
    with pytest.raises(ValueError, match=r"x\.pt holds encrypted records or folders"):
        read_pickle(path)


@pytest.mark.parametrize("count", [0, 2])
def test_no_pickle_and_two(tmp_path: Path, count: int):
    path = tmp_path / "x.pt"
    simple(path)
    with zipfile.ZipFile(path, "a" if count else "w") as archive:
        archive.writestr("y/data.pkl" if count else "y/version", b"\x80\x02}.")
    with pytest.raises(ValueError, match=r"must hold one data\.pkl"):
        read_pickle(path)


def test_a_torchscript_program(pickled: tuple[str, Path, Path]):
    name, folder, path = pickled
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/code/__torch__.py", "import os")
        archive.writestr("x/constants.pkl", b"\x80\x02).")
    refused(name, folder, "holds a TorchScript program")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"K\x0ct", b"J\x00\x00\x00\x10t", id="a storage of a GB in 48 bytes"),
        pytest.param(b"K\x0ct", b"J\xff\xff\xff\xfft", id="a storage of -1"),
        pytest.param(b"K\x04K\x03\x86", b"K\x04J\x00\x00\x00\x10\x86", id="a shape of GBs"),
        pytest.param(
            b"K\x04K\x03\x86q\x08K\x03K\x01\x86",
            b"J\x00\x00\x00\x10J\x00\x00\x00\x10\x86q\x08K\x00K\x00\x86",
            id="one number, repeated 7e16 times",
        ),
        pytest.param(
            b"K\x04K\x03\x86q\x08K\x03K\x01\x86", b"K\x04K\x03\x86q\x08K\x7fK\x01\x86", id="strides"
        ),
        pytest.param(b"QK\x00K\x04", b"QK\x7fK\x04", id="an offset out of range"),
        pytest.param(b"X\x01\x00\x00\x000", b"X\x0a\x00\x00\x00../version", id="another record"),
        pytest.param(b"X\x01\x00\x00\x000", b"X\x0b\x00\x00\x00/etc/passwd", id="another file"),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_tensors_that_their_storages_do_not_hold(
    tmp_path: Path, old: bytes, new: bytes, mapped: bool
):
    path = tmp_path / "x.pt"
    simple(path)
    rewritten(path, lambda name, data: data)
    assert torch.equal(read_pickle(path, mapped=mapped)["a"], torch.zeros(4, 3))
    rewritten(path, in_pickle(old, new))
    with pytest.raises(ValueError, match=r"x\.pt (is not a sound PyTorch file|declares a tensor)"):
        read_pickle(path, mapped=mapped)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place_=st.floats(0.0, 1.0, exclude_max=True), bit=st.integers(0, 7))
@pytest.mark.parametrize("name", [n for n in TARGETS if TARGETS[n].weights[-3:] in (".pt", "npz")])
def test_a_flipped_bit_in_an_archive_is_an_error_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, place_: float, bit: int
):
    """Zip archives keep a checksum of every record; a flip beside them may be without effect."""
    folder = place(name, tmp_path_factory.mktemp("flip"))
    path = folder / TARGETS[name].weights
    before = read_all(name, folder)
    data = bytearray(path.read_bytes())
    data[int(place_ * len(data))] ^= 1 << bit
    path.write_bytes(bytes(data))
    after, message = outcome(name, folder)
    if message:
        assert path.name in message
    else:
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_flipped_bit_of_a_value_is_found_out(pickled: tuple[str, Path, Path]):
    name, folder, path = pickled
    with zipfile.ZipFile(path) as archive:
        largest = max(
            archive.infolist(), key=lambda record: record.file_size * ("/data/" in record.filename)
        )
        value = archive.read(largest)[:16]
    data = path.read_bytes()
    at = data.index(value)
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(ValueError, match="differs from its checksum; download the file again"):
        check_records(path)
    refused(name, folder, rf"{re.escape(path.name)}: .* differs from its checksum")


def test_pickled_objects_in_npz(tmp_path: Path, sentinel: Path):
    folder = place("gemma-scope", tmp_path)
    path = folder / "params.npz"
    arrays: dict[str, Any] = {n: t.numpy() for n, t in tensors_of(path).items()}
    arrays["b_enc"] = np.array([Call(os.system, f"touch {sentinel}")] * 6, dtype=object)
    np.savez(path, **arrays)
    refused("gemma-scope", folder, r"params\.npz")


def test_npz_that_unpacks_to_far_more(tmp_path: Path):
    """All shapes go together, so only its size on disk gives it away."""
    folder = place("gemma-scope", tmp_path)
    path, d, n_features = folder / "params.npz", 4, 500_000
    shapes = {"W_enc": (d, n_features), "W_dec": (n_features, d), "b_dec": (d,)}
    shapes |= {"b_enc": (n_features,), "threshold": (n_features,)}
    np.savez_compressed(path, **{n: np.zeros(shape, np.float32) for n, shape in shapes.items()})
    assert path.stat().st_size < 200_000
    refused("gemma-scope", folder, r"params\.npz .* unpack to over 100 times its size")


# --- whole files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(target: str, tmp_path: Path, share: float):
    folder = place(target, tmp_path)
    path = folder / TARGETS[target].weights
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(target, folder, re.escape(path.name))


@pytest.mark.parametrize("what", ["missing", "folder", "garbage", "dangling link"])
def test_something_else_instead_of_the_file(target: str, tmp_path: Path, what: str):
    folder = place(target, tmp_path)
    path = folder / TARGETS[target].weights
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "garbage":
        path.write_bytes(bytes(range(256)) * 20)
    elif what == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    _, message = outcome(target, folder)
    if message:
        assert any(part in message for part in (path.name, path.suffix, str(folder)))
    else:  # it was one file of many, and the others are sound
        assert what in ("missing", "folder")
        assert not path.is_file()


@pytest.mark.parametrize("name", [n for n in TARGETS if TARGETS[n].config])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="truncated"),
        pytest.param("[1, 2]", id="a list"),
        pytest.param("[" * 100_000, id="nested 100,000 deep"),
        pytest.param('{"a":' * 100_000 + "1" + "}" * 100_000, id="objects nested 100,000 deep"),
        pytest.param("\x00\x01\x02", id="binary"),
        pytest.param("!!python/object/apply:os.system ['touch SENTINEL']", id="a YAML object"),
        pytest.param("!!python/name:os.system", id="a YAML name"),
        pytest.param("{}", id="nothing in it"),
        pytest.param(None, id="not UTF-8"),
    ],
)
def test_a_damaged_config(name: str, tmp_path: Path, sentinel: Path, text: str | None):
    folder = place(name, tmp_path)
    path = folder / str(TARGETS[name].config)
    content = b"\xff\xfe{}" if text is None else text.encode()
    path.write_bytes(content.replace(b"SENTINEL", str(sentinel).encode()))
    assert TARGETS[name].format.recognises(folder) in (True, False)
    refused(name, folder, re.escape(path.name))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dictionary-learning", "activation_dim"),
        ("dictionary-learning", "dict_size"),
        ("dictionary-learning", "k"),
        ("sparsify", "d_in"),
        ("sparsify", "k"),
        ("sparsify", "num_latents"),
        ("saelens", "d_in"),
        ("saelens", "d_sae"),
    ],
)
@pytest.mark.parametrize(
    "value",
    ["-3", "1.5", "true", '"6"', "[6]", "1e999", "NaN", "97", "9" * 300, "9" * 5000, "4294967302"],
)
def test_sizes_that_cannot_be(name: str, key: str, value: str, tmp_path: Path):
    folder = place(name, tmp_path)
    path = folder / str(TARGETS[name].config)
    config = json.loads(path.read_text())
    part = config.get("trainer", config)
    part[key] = "VALUE"
    path.write_text(json.dumps(config).replace('"VALUE"', value))
    weights = TARGETS[name].weights
    refused(name, folder, f"({re.escape(path.name)}|{re.escape(weights)})")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("dictionary-learning", "dict_class", "IdentityDict"),
        ("dictionary-learning", "dict_class", ["AutoEncoderTopK"]),
        ("sparsify", "activation", "softmax"),
        ("saelens", "architecture", "quantum"),
        ("gemma-scope-2", "architecture", "quantum"),
    ],
)
def test_activations_that_nobody_knows(name: str, key: str, value: Any, tmp_path: Path):
    folder = place(name, tmp_path)
    path = folder / str(TARGETS[name].config)
    config = json.loads(path.read_text())
    config.get("trainer", config)[key] = value
    path.write_text(json.dumps(config))
    config_name = re.escape(path.name)
    refused(name, folder, f"{config_name}|{key} must be jump_relu, got 'quantum'")


# --- tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tensor"), EVERY_TENSOR)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite(name: str, tensor: str, value: float, tmp_path: Path):
    folder = place(name, tmp_path)
    path = folder / TARGETS[name].weights
    tensors = tensors_of(path)
    tensors[tensor] = tensors[tensor].detach().clone(memory_format=torch.contiguous_format)
    tensors[tensor].view(-1)[-1] = value
    write_tensors(path, tensors)
    refused(name, folder, re.escape(path.name))


@pytest.mark.parametrize(("name", "tensor"), EVERY_TENSOR)
@pytest.mark.parametrize("change", ["longer", "shorter", "an axis more", "empty"])
@pytest.mark.usefixtures("unchecked")
def test_another_shape(name: str, tensor: str, change: str, tmp_path: Path):
    folder = place(name, tmp_path)
    path = folder / TARGETS[name].weights
    tensors = tensors_of(path)
    there = tensors[tensor].detach().clone()
    flat = there.reshape(1) if there.ndim == 0 else there
    if name == "gemma-scope" and tensor == "W_enc" and change in ("longer", "shorter"):
        return  # a transcoder of another d_in: nothing else in the file says it
    tensors[tensor] = {
        "longer": torch.cat([flat, flat[-1:]]),
        "shorter": flat[:-1],
        "an axis more": there[None],
        "empty": there.flatten()[:0],
    }[change].contiguous()
    write_tensors(path, tensors)
    refused(name, folder, re.escape(path.name))


# --- safetensors ---------------------------------------------------------------------------------


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header: Any, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def lies(data: bytes) -> dict[str, bytes]:
    """Files whose header says what is not so."""
    header, rest = header_of(data)
    first, second = [name for name in header if name != "__metadata__"][:2]
    begin, end = header[first]["data_offsets"]

    def changed(**facts: Any) -> bytes:
        return with_header(header | {first: header[first] | facts}, rest)

    return {
        "length of a header of 2^63": (2**63 - 1).to_bytes(8, "little") + data[8:],
        "length of a header that is short": (3).to_bytes(8, "little") + data[8:],
        "length of a header that is long": (len(data) * 2).to_bytes(8, "little") + data[8:],
        "offsets that overlap": changed(data_offsets=header[second]["data_offsets"]),
        "offsets out of range": changed(data_offsets=[begin + 2**40, end + 2**40]),
        "offsets that run back": changed(data_offsets=[end, begin]),
        "offsets below zero": changed(data_offsets=[begin - 4, end - 4]),
        "a shape of 2^80": changed(shape=[2**40, 2**40]),
        "a shape below zero": changed(shape=[-1, -4]),
        "another dtype": changed(dtype="F64"),
        "no such dtype": changed(dtype="PYOBJECT"),
        "no JSON": with_header(b"{" * 50, rest),
        "nested JSON": with_header(b"[" * 100_000, rest),
        "a list": with_header(b"[]", rest),
        "a name twice": with_header(
            json.dumps(header).encode()[:-1]
            + b","
            + json.dumps({first: header[first]}).encode()[1:],
            rest + rest,
        ),
        "bytes that no tensor owns": data + bytes(64),
    }


LIES = list(
    lies(
        with_header(
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
            },
            bytes(8),
        )
    )
)


@pytest.mark.parametrize("name", SAFETENSORS)
@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_header_that_lies(name: str, lie: str, tmp_path: Path):
    folder = place(name, tmp_path)
    path = folder / TARGETS[name].weights
    path.write_bytes(lies(path.read_bytes())[lie])
    refused(name, folder, re.escape(path.name))


# --- paths and places ----------------------------------------------------------------------------


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """A folder of the paper's authors, whose config names its weights, and weights outside it."""
    folder = tmp_path / "here" / "gpt2-small-dun-chl-mlp-tc0"
    folder.mkdir(parents=True)
    tensors = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,)}
    weights = {name: torch.ones(shape) for name, shape in tensors.items()}
    for where in (folder, tmp_path):
        save_file(weights, where / "sae.safetensors")
    config = {"d_in": 4, "num_features": 6, "tensors_filename": "sae.safetensors"}
    (folder / "sae.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "way",
    ["../../sae.safetensors", "ABSOLUTE", "a/../../../sae.safetensors", "LINK", "FOLDER LINK"],
)
def test_a_config_that_names_a_file_outside(later: Path, tmp_path: Path, way: str):
    outside = tmp_path / "sae.safetensors"
    (later / "link.safetensors").symlink_to(outside)
    (later / "inner").symlink_to(tmp_path)
    named = {
        "ABSOLUTE": str(outside),
        "LINK": "link.safetensors",
        "FOLDER LINK": "inner/sae.safetensors",
    }.get(way, way)
    read_all("transcoder-circuits", later)
    config = json.loads((later / "sae.json").read_text()) | {"tensors_filename": named}
    (later / "sae.json").write_text(json.dumps(config))
    refused("transcoder-circuits", later, r"lies outside it; refused")


@pytest.mark.parametrize("name", ["..", "../x", "/etc/passwd", "a/../../x"])
def test_inside(tmp_path: Path, name: str):
    (tmp_path / "f").mkdir()
    assert inside(tmp_path / "f", "a/../b") == tmp_path / "f" / "a/../b"
    with pytest.raises(ValueError, match=r"names the file .* which lies outside it; refused"):
        inside(tmp_path / "f", name)


def test_links_of_the_hubs_cache_are_inside_it(tmp_path: Path):
    repository = tmp_path / "models--owner--name"
    blob, folder = repository / "blobs" / "ab12", repository / "snapshots" / "rev" / "layer_0"
    for file in (blob, tmp_path / "other"):
        file.parent.mkdir(exist_ok=True, parents=True)
        file.touch()
    folder.mkdir(parents=True)
    (folder / "x.safetensors").symlink_to(blob)
    (folder / "y.safetensors").symlink_to(tmp_path / "other")
    assert inside(folder, "x.safetensors") == folder / "x.safetensors"
    for name in ("y.safetensors", "../../../blobs/ab12", str(blob)):
        with pytest.raises(ValueError, match=r"lies outside it; refused"):
            inside(folder, name)


def test_a_name_with_a_null_byte(later: Path):
    config = json.loads((later / "sae.json").read_text()) | {"tensors_filename": "a\0b"}
    (later / "sae.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"null|lies outside|no weights"):
        read_all("transcoder-circuits", later)


@pytest.mark.parametrize(
    "name", ["dictionary-learning", "sparsify", "saelens", "transcoder-circuits"]
)
def test_one_place_twice(name: str, tmp_path: Path):
    folder = place(name, tmp_path)
    if name == "transcoder-circuits":
        path = folder / TARGETS[name].weights
        (folder / f"again_{path.name}").write_bytes(path.read_bytes())
        whole = folder
    else:
        whole = tmp_path / "both"
        for inner in ("seed0", "seed1"):
            folder_ = whole / "h.1.mlp" / inner if name == "sparsify" else whole / inner
            folder_.mkdir(parents=True)
            for file in folder.iterdir():
                (folder_ / file.name).write_bytes(file.read_bytes())
    refused(name, whole, "several dictionaries for")


def test_weights_are_only_read_when_they_are_asked_for(tmp_path: Path):
    """Opening reads headers: a NaN is found out by reading, not before."""
    folder = place("sparsify", tmp_path)
    path = folder / "sae.safetensors"
    tensors = load_file(path)
    tensors["W_dec"][0, 0] = float("nan")
    save_file(tensors, path)
    (entry,) = TARGETS["sparsify"].format.open(folder, Given())
    with pytest.raises(ValueError, match="W_dec holds NaN"):
        entry.read()
