"""Runtime checks of every annotation in our packages, and no network, before anything is imported.

Wants pytest to load this file first: `testpaths` begins with `tests`.
"""

import os
from collections.abc import Iterator

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


@pytest.fixture(autouse=True)
def _no_check_on_load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random dictionaries fit no model; tests of the check on load are marked `check_on_load`."""
    if "check_on_load" not in request.keywords:
        from circuits import spliced

        monkeypatch.setattr(spliced, "try_out", lambda model, dictionaries: None)
