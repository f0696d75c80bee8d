"""Runtime checks of every annotation in our packages, and no network, before anything is imported.

Wants pytest to load this file first: `testpaths` begins with `tests`.
"""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from jaxtyping import config, install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
torch.set_num_threads(1)
install_import_hook(["circuits", "attribution", "graphs", "case_studies"], "beartype.beartype")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No runtime checks of annotations, as for a user: our own errors speak."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session", autouse=True)
def _no_check_on_load() -> Iterator[Callable[..., None]]:
    """Random dictionaries fit no model; gives the check that is otherwise made on load."""
    from circuits import spliced

    real, spliced.try_out = spliced.try_out, lambda model, dictionaries: None
    yield real
    spliced.try_out = real


@pytest.fixture(autouse=True)
def _check_on_load(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    _no_check_on_load: Callable[..., None],
) -> None:
    """In tests marked `check_on_load` dictionaries are tried as outside of tests."""
    if "check_on_load" in request.keywords:
        from circuits import spliced

        monkeypatch.setattr(spliced, "try_out", _no_check_on_load)
