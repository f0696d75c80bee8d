"""A scanned store against a direct computation of everything it holds, and damaged stores."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from circuits import SplicedModel
from circuits.feature_store import Context, CorpusSettings, FeatureStore, ScanSettings
from circuits.feature_store.keys import mixed
from circuits.feature_store.layout import histogram_edges
from circuits.feature_store.scan import scan
from tests.circuits.feature_stores import (
    CORPUS,
    SETTINGS,
    F,
    corpus_rows,
    example_spliced,
    example_store,
)

CONTEXT = 12
COUNTED = [
    (row, pos)
    for row, ids in enumerate(corpus_rows().tolist())
    for pos, token in enumerate(ids)
    if pos > 0 and token not in (0, -1)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return example_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def direct() -> dict[str, torch.Tensor]:
    """Activations [row, pos, feature] of every dictionary, 0 where positions do not count."""
    spliced, rows = example_spliced(), corpus_rows().clamp_min(0).long()
    found = {}
    for placement in spliced.placements.values():
        _, values = spliced.model.run(rows, capture=[placement.read])
        a = placement.dictionary.encode(values[placement.read])
        counted = torch.zeros(rows.shape, dtype=torch.bool)
        for row, pos in COUNTED:
            counted[row, pos] = True
        found[placement.name] = torch.where(counted[:, :, None], a, 0.0)
    return found


def every(store: FeatureStore) -> list[tuple[str, int]]:
    return [(name, index) for name in store.names for index in range(F)]


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-5, abs=1e-5)  # sums of float32 terms up to 40


def check_context(context: Context, a: torch.Tensor) -> None:
    """A context of the feature with activations `a` [row, pos] says what is there."""
    first = max(context.pos - SETTINGS.before, 0)
    ids = corpus_rows()[context.row].tolist()
    last = context.pos + SETTINGS.after + 1
    wanted = [pos for pos in range(first, min(last, CONTEXT)) if ids[pos] != -1]
    assert list(context.tokens) == [ids[pos] for pos in wanted]
    assert list(context.values) == [close(float(a[context.row, pos])) for pos in wanted]
    assert wanted[context.peak] == context.pos
    assert context.values[context.peak] == context.value


def test_there_is_something_to_compare(store: FeatureStore, direct: dict[str, torch.Tensor]):
    assert store.names == ["mlp.0", "mlp.1", "resid_post.0"]
    assert store.n_tokens == len(COUNTED) == 20 * 11 - 5 - 1
    assert store.n_features("mlp.1") == F
    counts = [int((a > 0).sum(dim=(0, 1)).min()) for a in direct.values()]
    assert counts[0] == 0
    assert min(counts[1:]) > 5


def test_statistics(store: FeatureStore, direct: dict[str, torch.Tensor]):
    for name, index in every(store):
        a = direct[name][:, :, index]
        active = a[a > 0]
        found = store.feature(name, index)
        assert (found.name, found.index, found.n_active) == (name, index, len(active))
        assert found.density == len(active) / len(COUNTED)
        assert found.maximum == close(float(a.max()))
        assert found.mean_active == close(float(active.sum()) / max(len(active), 1))
        assert found.density == float(store.densities(name)[index])
        assert found.maximum == float(store.maxima(name)[index])


def test_histograms(store: FeatureStore, direct: dict[str, torch.Tensor]):
    for name, index in every(store):
        a = direct[name][:, :, index]
        histogram = store.feature(name, index).histogram
        wanted = [0] * 48
        for value in a[a > 0].tolist():
            wanted[math.floor(2 * math.log2(value)) + 24] += 1
        assert histogram.counts == tuple(wanted)
        assert histogram.edges == tuple(histogram_edges().tolist())


def test_top_contexts(store: FeatureStore, direct: dict[str, torch.Tensor]):
    for name, index in every(store):
        a = direct[name][:, :, index]
        places = [(row, pos) for row, pos in COUNTED if a[row, pos] > 0]
        places.sort(key=lambda place: -float(a[place]))
        top = store.feature(name, index).top
        assert [(c.row, c.pos) for c in top] == places[: SETTINGS.top_k]
        for context in top:
            check_context(context, a)


def test_samples(store: FeatureStore, direct: dict[str, torch.Tensor]):
    for number, (name, index) in enumerate(every(store)):
        a = direct[name][:, :, index]
        found = store.feature(name, index)
        if not found.n_active:
            assert found.samples == ()
            continue
        octave = math.floor(math.log2(float(a.max())))
        assert len(found.samples) == SETTINGS.bands
        for band, (low, high, contexts) in enumerate(found.samples):
            lowest = band == SETTINGS.bands - 1
            assert low == (0 if lowest else 2.0 ** (octave - band))
            assert high == (found.maximum if band == 0 else 2.0 ** (octave - band + 1))
            inside = [
                (row, pos)
                for row, pos in COUNTED
                if (a[row, pos] > 0) and low <= a[row, pos] and (a[row, pos] < high or band == 0)
            ]
            ranks = {p: rank(number, p[0] * CONTEXT + p[1]) for p in inside}
            wanted = sorted(inside, key=lambda p: -ranks[p])[: SETTINGS.per_band]
            assert sorted((c.row, c.pos) for c in contexts) == sorted(wanted)
            assert [c.value for c in contexts] == sorted((c.value for c in contexts), reverse=True)
            for context in contexts:
                check_context(context, a)


def rank(owner: int, place: int) -> int:
    return int(mixed(torch.tensor([(owner << 32) ^ place])))


def test_partners(store: FeatureStore, direct: dict[str, torch.Tensor]):
    names = every(store)
    on = torch.cat([(a > 0).flatten(0, 1) for a in direct.values()], dim=1).double()
    together, n_active = on.T @ on, on.sum(0)
    for number, (name, index) in enumerate(names):
        found = store.feature(name, index)
        assert found.partners_exact
        cosine = together[number] / (n_active[number] * n_active).clamp_min(1).sqrt()
        cosine[number] = 0
        order = cosine.round(decimals=12).argsort(descending=True, stable=True).tolist()
        wanted = [j for j in order if cosine[j] > 0][: SETTINGS.partners]
        assert [(p.name, p.index) for p in found.partners] == [names[j] for j in wanted]
        for partner, j in zip(found.partners, wanted, strict=True):
            count = float(together[number, j])
            share = count / float(n_active[number])
            assert (partner.n_together, partner.share) == (count, close(share))
            assert partner.lift == close(share / (float(n_active[j]) / len(COUNTED)))


def test_a_feature_that_is_never_active(store: FeatureStore):
    silent = store.feature("mlp.0", 9)
    assert (silent.n_active, silent.density, silent.maximum, silent.mean_active) == (0, 0, 0, 0)
    assert (silent.top, silent.samples, silent.partners) == ((), (), ())
    assert sum(silent.histogram.counts) == 0


def test_windows_longer_than_rows(tmp_path: Path):
    settings = SETTINGS.model_copy(update={"before": 30, "after": 40})
    rows = corpus_rows()
    store = scan(example_spliced(), CORPUS, tmp_path, rows=rows, settings=settings)
    for context in store.feature("resid_post.0", 0).top:
        ids = [token for token in rows[context.row].tolist() if token >= 0]
        assert list(context.tokens) == ids
        assert context.peak == context.pos


def test_every_position_left_out(tmp_path: Path):
    """BOS everywhere: a batch, and here a text, of which nothing counts."""
    rows = torch.zeros(5, CONTEXT, dtype=torch.int32)
    store = scan(example_spliced(), CORPUS, tmp_path, rows=rows, settings=SETTINGS)
    assert store.n_tokens == 0
    assert store.feature("mlp.1", 0).density == 0
    assert float(store.densities("mlp.1").sum()) == 0


def test_rows_of_tokens(store: FeatureStore):
    assert store.row(1).tolist() == corpus_rows()[1].tolist()
    with pytest.raises(ValueError, match="the corpus has rows 0 to 19, got 20"):
        store.row(20)


@pytest.mark.parametrize(
    ("name", "index", "message"),
    [
        ("mlp.7", 0, "has no 'mlp.7'; it has mlp.0, mlp.1, resid_post.0"),
        ("mlp.1", F, "mlp.1 has features 0 to 9, got 10"),
        ("mlp.1", -1, "mlp.1 has features 0 to 9, got -1"),
    ],
)
def test_what_is_not_there(store: FeatureStore, name: str, index: int, message: str):
    with pytest.raises(ValueError, match=message):
        store.feature(name, index)


def test_dictionaries_are_those_of_the_scan(store: FeatureStore):
    store.check(example_spliced())
    with pytest.raises(ValueError, match=r"is a scan of another dictionary mlp\.0 than this one"):
        store.check(example_spliced(seed=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    example_store(tmp_path)
    return tmp_path


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sound_store_verifies(folder: Path):
    FeatureStore.open(folder).verify()
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "manifest.json", "tokens.safetensors"),
        *("mlp.0.safetensors", "mlp.1.safetensors", "resid_post.0.safetensors"),
    }


@pytest.mark.parametrize("name", ["mlp.1.safetensors", "tokens.safetensors"])
def test_a_changed_byte_is_found(folder: Path, name: str):
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} has changed since the scan"):
        FeatureStore.open(folder).verify()


@pytest.mark.parametrize("name", ["mlp.1.safetensors", "tokens.safetensors"])
def test_truncated_and_missing_files(folder: Path, name: str):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-8])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        FeatureStore.open(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        FeatureStore.open(folder)


def test_tables_that_are_not_what_the_manifest_says(folder: Path):
    path = folder / "mlp.0.safetensors"
    tables = load_file(path)
    save_file({**tables, "sum": tables["sum"].float()}, path)
    with pytest.raises(ValueError, match="sum must be F64, got F32"):
        FeatureStore.open(folder)
    save_file({**tables, "sum": tables["sum"][:-1]}, path)
    with pytest.raises(ValueError, match=r"sum must have shape \(10,\), got \(9,\)"):
        FeatureStore.open(folder)
    del tables["sum"]
    save_file(tables, path)
    with pytest.raises(ValueError, match="has no table 'sum'"):
        FeatureStore.open(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 9}, "has version 9, this reads 1"),
        ({"n_rows": "many"}, "is damaged: 1 validation error"),
        ({"names": ["mlp.0"]}, "its names are not those of its dictionaries"),
        ({"more": 1}, "is damaged"),
    ],
)
def test_damaged_manifests(folder: Path, changes: dict[str, object], message: str):
    edit_manifest(folder, **changes)
    with pytest.raises(ValueError, match=message):
        FeatureStore.open(folder)


def test_a_manifest_cannot_name_files_outside(folder: Path):
    record = json.loads((folder / "manifest.json").read_text())
    record["dictionaries"]["../mlp.0"] = record["dictionaries"].pop("mlp.0")
    edit_manifest(
        folder, dictionaries=record["dictionaries"], names=["../mlp.0", "mlp.1", "resid_post.0"]
    )
    with pytest.raises(ValueError, match="lies outside it; refused"):
        FeatureStore.open(folder)


def test_no_store(tmp_path: Path):
    with pytest.raises(ValueError, match="no finished feature store at"):
        FeatureStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable JSON"):
        FeatureStore.open(tmp_path)


def test_bad_input_to_a_scan(tmp_path: Path, unchecked: None):
    spliced, rows = example_spliced(), corpus_rows()
    with pytest.raises(ValueError, match=r"rows must have 12 tokens .*got \(20, 11\)"):
        scan(spliced, CORPUS, tmp_path / "a", rows=rows[:, 1:])
    with pytest.raises(ValueError, match="want a text of one row to"):
        scan(spliced, CORPUS, tmp_path / "b", rows=rows[:0])
    empty = SplicedModel(spliced.model, {})
    with pytest.raises(ValueError, match="there is no dictionary to scan"):
        scan(empty, CORPUS, tmp_path / "c", rows=rows)


def test_text_is_read_as_training_reads_it(tmp_path: Path):
    corpus = CorpusSettings(text="sample", n_tokens=4 * 16, context=16, seed=3)
    store = scan(example_spliced(), corpus, tmp_path, settings=SETTINGS)
    assert store.manifest.n_rows == 4
    assert store.row(0)[0] == 0
    assert store.manifest.settings == SETTINGS
    assert store.manifest.settings != ScanSettings()
