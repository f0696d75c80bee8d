"""Sets of dictionaries that are read when asked for."""

import gc
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from circuits import SplicedModel, load_dictionaries
from circuits.checkpoints import save_dictionary
from circuits.conventions import NATIVE, Convention
from circuits.dictionaries import Dictionary
from circuits.dictionary_set import DictionarySet
from circuits.formats.entry import Entry, FeatureRows
from tests import models


class _Counted:
    """An entry whose reads are counted."""

    def __init__(self, name: str, dictionary: Dictionary) -> None:
        self.dictionary, self.n_reads, self.asked = dictionary, 0, list[int]()
        self.entry = Entry(
            name=name,
            kind="transcoder",
            d_in=dictionary.d_in,
            d_out=dictionary.d_out,
            n_features=dictionary.n_features,
            convention=NATIVE,
            model="toy",
            path=Path(name),
            read=self.read,
            read_rows=self.read_rows,
        )

    def read(self) -> Dictionary:
        self.n_reads += 1
        return self.dictionary.to(dtype=torch.float32)

    def read_rows(self, features: Sequence[int]) -> FeatureRows:
        self.asked = list(features)
        whole, chosen = self.dictionary, self.asked
        return FeatureRows(whole.W_enc.T[chosen], whole.W_dec[chosen], whole.b_enc[chosen], None)


def test_nothing_is_read_before_it_is_used() -> None:
    counted = _Counted("mlp.0", models.transcoder("relu"))
    found = DictionarySet([counted.entry])
    assert list(found) == ["mlp.0"]
    assert len(found) == 1
    assert "mlp.0" in found
    assert "mlp.1" not in found
    assert repr(found) == "DictionarySet(mlp.0)"
    assert counted.n_reads == 0
    held = found["mlp.0"]
    assert found["mlp.0"] is held
    assert counted.n_reads == 1
    del held
    gc.collect()
    assert found["mlp.0"].n_features == counted.dictionary.n_features
    assert counted.n_reads == 2


def test_entries_are_in_the_order_of_layers() -> None:
    made = [_Counted(f"mlp.{i}", models.transcoder("relu")).entry for i in (10, 2, 0)]
    assert list(DictionarySet(made)) == ["mlp.0", "mlp.2", "mlp.10"]


def test_two_entries_for_one_place_are_refused() -> None:
    made = [_Counted("mlp.1", models.transcoder("relu")).entry for _ in range(2)]
    with pytest.raises(ValueError, match=r"both mlp.1 and mlp.1 hold mlp.1; name the folder"):
        DictionarySet(made)


def test_rows_go_to_the_format() -> None:
    counted = _Counted("mlp.0", models.transcoder("relu"))
    found = DictionarySet([counted.entry])
    rows = found.rows("mlp.0", [2, 0])
    assert counted.asked == [2, 0]
    assert counted.n_reads == 0
    torch.testing.assert_close(rows.encoder, counted.dictionary.W_enc.T[[2, 0]])
    n = counted.dictionary.n_features
    for wrong in (n, -1):
        with pytest.raises(ValueError, match=rf"mlp.0 has features 0 to {n - 1}, got {wrong}"):
            found.rows("mlp.0", [0, wrong])
    with pytest.raises(KeyError, match=r"no dictionary 'mlp.3'; there are mlp.0"):
        found["mlp.3"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for layer in range(2):
        path = tmp_path / f"mlp.{layer}.safetensors"
        save_dictionary(models.transcoder(seed=layer), path, layer=layer, model="toy")
    for site in ("resid_post", "attn_out"):
        path = tmp_path / f"{site}.1.safetensors"
        save_dictionary(models.sae(site), path, layer=1, model="toy")
    return tmp_path


def test_transcoders_go_before_saes(folder: Path) -> None:
    assert list(load_dictionaries(folder)) == ["mlp.0", "mlp.1"]
    assert list(load_dictionaries(folder, sites=["attn_out"])) == ["attn_out.1"]
    for path in folder.glob("mlp.*"):
        path.unlink()
    assert set(load_dictionaries(folder)) == {"attn_out.1", "resid_post.1"}


def test_what_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"sites \['mlp'\] and layers \[7\]; it holds none"):
        load_dictionaries(folder, sites=["mlp"], layers=[7])
    with pytest.raises(ValueError, match=r"for sites \['embed'\].*it holds .*mlp.0"):
        load_dictionaries(folder, sites=["embed"])
    with pytest.raises(ValueError, match=r"did you mean gpt2-transcoders"):
        load_dictionaries("gpt2-transcoder")
    with pytest.raises(ValueError, match=r"no format called 'pickle'; want one of circuitloom"):
        load_dictionaries(folder, format="pickle")
    with pytest.raises(ValueError, match=r"is of no format known here"):
        load_dictionaries(Path(__file__).parent / "__init__.py")


def test_native_rows_and_single_files(folder: Path) -> None:
    found = load_dictionaries(folder)
    whole, rows = found["mlp.1"], found.rows("mlp.1", [3, 1])
    torch.testing.assert_close(rows.encoder, whole.W_enc.T[[3, 1]])
    torch.testing.assert_close(rows.decoder, whole.W_dec[[3, 1]])
    torch.testing.assert_close(rows.b_enc, whole.b_enc[[3, 1]])
    assert whole.threshold is not None
    torch.testing.assert_close(rows.threshold, whole.threshold[[3, 1]])
    (one,) = load_dictionaries(folder / "mlp.1.safetensors").values()
    torch.testing.assert_close(one.W_dec, whole.W_dec)


def test_a_convention_survives_our_own_files(tmp_path: Path) -> None:
    bare = Convention(norm="bare", bos="in front", subtracted="b_dec")
    made = models.transcoder("relu")
    kept = type(made)(made.W_enc, made.W_dec, made.b_enc, made.b_dec, convention=bare)
    save_dictionary(kept, tmp_path / "mlp.0.safetensors", layer=0, model="toy")
    found = load_dictionaries(tmp_path)
    assert found["mlp.0"].convention == bare
    assert found.entries["mlp.0"].convention == bare


def test_a_set_can_be_spliced(folder: Path) -> None:
    spliced = SplicedModel(models.subject("gpt2"), load_dictionaries(folder))
    assert [site.layer for site in spliced.placements] == [0, 1]
