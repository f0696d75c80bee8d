"""What computes: subject models, dictionaries, splicing, training and fidelity.

Names load on first use, so that `import circuits` is free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.conventions import Convention
    from circuits.dictionaries import SAE, CrossLayerTranscoder, Dictionary, Transcoder
    from circuits.dictionary_set import DictionarySet
    from circuits.interventions import Intervention
    from circuits.loading import load_model
    from circuits.sites import Site
    from circuits.sources import load_dictionaries, save_dictionaries
    from circuits.spliced import FrozenState, SplicedModel, SplicedRun
    from circuits.subject import SubjectModel

__all__ = [
    "SAE",
    "Convention",
    "CrossLayerTranscoder",
    "Dictionary",
    "DictionarySet",
    "FrozenState",
    "Intervention",
    "Site",
    "SplicedModel",
    "SplicedRun",
    "SubjectModel",
    "Transcoder",
    "load_dictionaries",
    "load_model",
    "save_dictionaries",
]

_HOME = {
    "SAE": "dictionaries",
    "CrossLayerTranscoder": "dictionaries",
    "Convention": "conventions",
    "Dictionary": "dictionaries",
    "DictionarySet": "dictionary_set",
    "FrozenState": "spliced",
    "Intervention": "interventions",
    "Site": "sites",
    "SplicedModel": "spliced",
    "SplicedRun": "spliced",
    "SubjectModel": "subject",
    "Transcoder": "dictionaries",
    "load_dictionaries": "sources",
    "load_model": "loading",
    "save_dictionaries": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuits' has no attribute {name!r}")
    return getattr(importlib.import_module(f"circuits.{_HOME[name]}"), name)
