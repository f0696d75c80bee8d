"""What computes: subject models, dictionaries, splicing, training and fidelity.

Names load on first use, so that `import circuits` is free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.dictionaries import SAE, CrossLayerTranscoder, Dictionary, Transcoder
    from circuits.interventions import Intervention
    from circuits.loading import load_dictionaries, load_model
    from circuits.sites import Site
    from circuits.spliced import FrozenState, SplicedModel, SplicedRun
    from circuits.subject import SubjectModel

__all__ = [
    "SAE",
    "CrossLayerTranscoder",
    "Dictionary",
    "FrozenState",
    "Intervention",
    "Site",
    "SplicedModel",
    "SplicedRun",
    "SubjectModel",
    "Transcoder",
    "load_dictionaries",
    "load_model",
]

_HOME = {
    "SAE": "dictionaries",
    "CrossLayerTranscoder": "dictionaries",
    "Dictionary": "dictionaries",
    "FrozenState": "spliced",
    "Intervention": "interventions",
    "Site": "sites",
    "SplicedModel": "spliced",
    "SplicedRun": "spliced",
    "SubjectModel": "subject",
    "Transcoder": "dictionaries",
    "load_dictionaries": "loading",
    "load_model": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuits' has no attribute {name!r}")
    return getattr(importlib.import_module(f"circuits.{_HOME[name]}"), name)
