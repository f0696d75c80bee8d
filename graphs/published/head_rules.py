"""The rules by which published head circuits of GPT-2 small become lists of edges.

Two encodings a task: the wiring of the ACDC repository (`acdc/ioi/utils.py`,
`acdc/greaterthan/utils.py`; Conmy et al. 2023) and that of auto-circuit (`official_circuits`;
Miller et al. 2024). Edges are named as in EAP-IG: `a9.h9->logits`, `input->a0.h1<q>`, `m3->m5`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from circuits.files import write_json

__all__ = ["RULES", "edge_exists", "wire", "write_published"]

_N_LAYERS, _N_HEADS = 12, 12
_Groups = Mapping[str, tuple[str, ...]]


def _heads(*names: str) -> tuple[str, ...]:
    """`9.6` as EAP-IG's `a9.h6`."""
    return tuple("a{}.h{}".format(*name.split(".")) for name in names)


def _mlps(first: int, last: int) -> tuple[str, ...]:
    """MLPs `first` to `last`, both included."""
    return tuple(f"m{layer}" for layer in range(first, last + 1))


IOI_HEADS: _Groups = {
    "name mover": _heads("9.9", "10.0", "9.6"),
    "backup name mover": _heads("9.0", "9.7", "10.1", "10.2", "10.6", "10.10", "11.2", "11.9"),
    "negative name mover": _heads("10.7", "11.10"),
    "s-inhibition": _heads("7.3", "7.9", "8.6", "8.10"),
    "induction": _heads("5.5", "5.8", "5.9", "6.9"),
    "duplicate token": _heads("0.1", "0.10", "3.0"),
    "previous token": _heads("2.2", "4.11"),
}
"""Wang et al. 2022, figure 2, as both encodings have it."""

_MOVERS = ("name mover", "backup name mover", "negative name mover")
_IOI_WIRING: tuple[tuple[str, str, str], ...] = (
    ("input", "previous token", "qkv"),
    ("input", "duplicate token", "qkv"),
    ("input", "s-inhibition", "q"),
    *(("input", mover, "kv") for mover in _MOVERS),
    ("previous token", "induction", "kv"),
    ("induction", "s-inhibition", "kv"),
    ("duplicate token", "s-inhibition", "kv"),
    *(("s-inhibition", mover, "q") for mover in _MOVERS),
    *((mover, "logits", "") for mover in _MOVERS),
)
"""Which group writes to which, and through which inputs of its heads."""

GREATER_THAN_GROUPS: _Groups = {
    "0.3 and 0.5": _heads("0.3", "0.5"),
    "0.1": _heads("0.1"),
    "early MLPs": _mlps(0, 3),
    "middle heads": _heads("5.5", "6.1", "6.9", "7.10", "8.11", "9.1"),
    "late MLPs": _mlps(8, 11),
}
"""As both encodings have it."""

HANNA_MIDDLE_HEADS = _heads("5.1", "5.5", "6.9", "7.10", "8.8", "8.11", "9.1")
"""The middle heads that Hanna et al. 2023 themselves name; the encodings have others."""

_GREATER_THAN_WIRING = (
    ("0.1", "early MLPs"),
    ("0.1", "middle heads"),
    ("0.3 and 0.5", "middle heads"),
    ("early MLPs", "middle heads"),
    ("middle heads", "late MLPs"),
)


def edge_exists(sender: str, receiver: str) -> bool:
    """Whether the model has the edge: attention comes before the MLP of its layer.

    Example:
        >>> edge_exists("a3.h1", "m3"), edge_exists("m3", "a3.h1<q>"), edge_exists("m2", "a3.h1<q>")
        (True, False, True)
    """
    return _moment(sender) < _moment(receiver)


def _moment(node: str) -> int:
    if node in ("input", "logits"):
        return -1 if node == "input" else 2 * _N_LAYERS
    layer = int(node[1:].split(".")[0])
    return 2 * layer + (node[0] == "m")


def wire(senders: Iterable[str], receivers: Iterable[str], inputs: str = "qkv") -> set[str]:
    """Every edge that exists from one set of nodes to another, heads read through `inputs`.

    Example:
        >>> sorted(wire(["input", "m1"], ["a1.h2"], "kv"))
        ['input->a1.h2<k>', 'input->a1.h2<v>']
    """
    read = [
        f"{node}<{side}>" if node[0] == "a" else node
        for node in receivers
        for side in (inputs if node[0] == "a" else "-")
    ]
    return {f"{s}->{r}" for s in senders for r in read if edge_exists(s, r)}


def _ioi_members(group: str) -> tuple[str, ...]:
    return IOI_HEADS.get(group, (group,))


def _ioi_acdc() -> set[str]:
    """A backbone of all MLPs, input and output; each circuit head reads and writes every MLP; and
    the wiring by group.
    """
    heads, mlps = [head for group in IOI_HEADS.values() for head in group], _mlps(0, 11)
    edges = wire(["input", *mlps], [*mlps, "logits"]) | wire(mlps, heads) | wire(heads, mlps)
    for sender, receiver, inputs in _IOI_WIRING:
        edges |= wire(_ioi_members(sender), _ioi_members(receiver), inputs)
    return edges


def _ioi_auto_circuit() -> set[str]:
    """For each wiring of two groups, the MLPs from the earliest sender's layer up to below the
    latest receiver's, wired to both and among themselves.
    """
    edges: set[str] = set()
    for sender, receiver, inputs in _IOI_WIRING:
        senders, receivers = _ioi_members(sender), _ioi_members(receiver)
        first = max(0, min(_moment(node) for node in senders) // 2)
        between = _mlps(first, max(_moment(node) for node in receivers) // 2 - 1)
        edges |= wire([*senders, *between], [*receivers, *between], inputs)
    return edges


def _greater_than() -> set[str]:
    """Groups as wired, MLPs 0 to 8 and 8 to 11 among themselves, every MLP below a middle head to
    its query. Both encodings are this set.
    """
    groups = GREATER_THAN_GROUPS
    middle, early, late = groups["middle heads"], _mlps(0, 8), groups["late MLPs"]
    first = [*groups["0.3 and 0.5"], *groups["0.1"], *groups["early MLPs"]]
    edges = wire(["input"], first) | wire([*middle, *late], ["logits"])
    edges |= wire(early, early) | wire(late, late) | wire(_mlps(0, 11), middle, "q")
    for sender, receiver in _GREATER_THAN_WIRING:
        edges |= wire(groups[sender], groups[receiver])
    return edges


RULES = {
    "ioi": {"acdc": _ioi_acdc, "auto-circuit": _ioi_auto_circuit},
    "greater-than": {"acdc": _greater_than, "auto-circuit": _greater_than},
}
"""By task and encoding: what makes the edges."""


def write_published(folder: Path) -> None:
    """Write the data files of this package, one a task."""
    for task, encodings in RULES.items():
        groups = dict(IOI_HEADS if task == "ioi" else GREATER_THAN_GROUPS)
        n_heads = sum(node[0] == "a" for group in groups.values() for node in group)
        other = {} if task == "ioi" else {"middle heads of Hanna et al.": HANNA_MIDDLE_HEADS}
        record = {
            "version": 1,
            "model": "gpt2",
            "n_layers": _N_LAYERS,
            "n_heads": _N_HEADS,
            "task": task,
            "groups": groups,
            "other_groups": other,
            "n_direct": {name: 3 * n_heads if name == "acdc" else 0 for name in encodings},
            "edges": {name: sorted(rule()) for name, rule in encodings.items()},
        }
        write_json(folder / f"{task.replace('-', '_')}.json", record)
