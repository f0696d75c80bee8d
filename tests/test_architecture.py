"""Who imports whom, read from the source: the table of the design, section 1."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "circuits": set(),
    "attribution": {"circuits"},
    "graphs": {"circuits", "attribution"},
    "case_studies": {"circuits", "attribution", "graphs"},
}
OURS = set(MAY_IMPORT) | {"tests", "benchmarks"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports, wherever in it: at the top, in functions, by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the arrows"
            yield node.module or "", node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__", "find_spec")
        ):
            name = node.args[0]
            text = name.value if isinstance(name, ast.Constant) else ast.unparse(name)
            yield str(text).removeprefix("f").strip("'\""), node.lineno


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_to_the_left(package: str):
    assert modules(package), f"{package} is empty"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for name, line in imported(path)
        if (top := name.split(".")[0]) in OURS and top != package and top not in MAY_IMPORT[package]
    ]
    assert wrong == []


def test_one_module_touches_transformer_lens():
    touching = {
        str(path.relative_to(ROOT))
        for package in MAY_IMPORT
        for path in modules(package)
        for name, _ in imported(path)
        if name.split(".")[0] == "transformer_lens"
    }
    assert touching == {"circuits/subject.py"}


@pytest.mark.parametrize("package", ["attribution", "graphs"])
def test_models_and_their_libraries_stay_in_circuits(package: str):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for name, line in imported(path)
        if name.split(".")[0] in ("transformers", "datasets", "tokenizers", "safetensors", "gguf")
    ]
    assert wrong == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_postponed_annotations(package: str):
    """They fight runtime checks."""
    found = [p for p in modules(package) if "__future__" in {name for name, _ in imported(p)}]
    assert found == []


def test_the_reader_of_imports_sees_lazy_ones(tmp_path: Path):
    source = tmp_path / "x.py"
    source.write_text(
        "import a.b\nfrom c import d\ndef f():\n    import e\n    importlib.import_module('g.h')\n"
        "    importlib.import_module(f'i.{x}')\n"
    )
    assert {name.split(".")[0] for name, _ in imported(source)} == {"a", "c", "e", "g", "i"}


HEAVY = ("transformers", "transformer_lens", "plotly", "datasets", "pandas")


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import circuits, attribution", ("torch", *HEAVY)),
        ("import circuits, attribution, graphs, case_studies", HEAVY),
        ("from circuits import SplicedModel, Transcoder, load_model", HEAVY),
        ("from attribution import attribute, deembed, virtual_weights", HEAVY),
    ],
)
def test_import_is_free(statement: str, forbidden: tuple[str, ...], tmp_path: Path):
    report = f"import sys; {statement}; print([m for m in {forbidden} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", report],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == [], "importing made files"


@pytest.mark.parametrize("package", ["circuits", "attribution", "graphs"])
def test_every_public_name_exists(package: str):
    module = __import__(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize("package", ["circuits", "attribution"])
def test_all_lists_what_is_defined(package: str):
    """Each module says what is public, and what it says is there."""
    for path in modules(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        listed = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        if path.name == "__main__.py" or (path.name == "__init__.py" and not listed):
            continue
        assert len(listed) == 1, f"{path.relative_to(ROOT)} has no __all__"
        names = {
            n.name
            for n in tree.body
            if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
        }
        missing = names - set(listed[0])
        assert not missing, f"{path.relative_to(ROOT)}: {sorted(missing)} not in __all__"
