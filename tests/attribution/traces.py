"""Traces written by hand, and random layered ones whose paths can be listed one by one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attribution import Node, NodeTable, Trace
from attribution.edges import EdgeBlock, Edges

N_LAYERS = 4


def spell(name: str, activation: float) -> Node:
    """A node from a short name: t1 (token at 1), b0 e0 (layer 0), f0.5 (feature), o.logit."""
    kind, rest = name[0], name[1:]
    match kind:
        case "t":
            return Node(kind="token", layer=-1, site="embed", pos=int(rest), activation=1.0)
        case "e":
            return Node(kind="error", layer=int(rest), site="mlp", pos=1)
        case "b":
            return Node(kind="bias", layer=int(rest), site="mlp", pos=-1)
        case "f":
            layer, feature = (int(part) for part in rest.split("."))
            return Node(
                kind="feature",
                layer=layer,
                site="mlp",
                pos=1,
                feature=feature,
                activation=activation,
            )
        case "o":
            site = rest.removeprefix(".")
            return Node(kind="output", layer=N_LAYERS, site=site, pos=1, activation=activation)
    raise KeyError(name)


def trace_of(
    sources: Sequence[Node], targets: Sequence[Node], blocks: Edges, values: Tensor
) -> Trace:
    return Trace(
        targets=NodeTable(targets),
        sources=NodeTable(sources),
        blocks=blocks,
        target_values=values,
        tokens=torch.tensor([3, 4]),
        token_strings=("a", "b"),
        model_name="hand",
        n_layers=N_LAYERS,
    )


def hand_trace(
    sources: str,
    targets: str,
    values: Mapping[str, float],
    edges: Mapping[tuple[str, str], float],
) -> Trace:
    """Nodes by name in order, values (activations) by name, `{(source, target): edge}`."""
    rows, columns = targets.split(), sources.split()
    matrix = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for (source, target), edge in edges.items():
        matrix[rows.index(target), columns.index(source)] = edge
    return trace_of(
        [spell(name, values.get(name, 0.0)) for name in columns],
        [spell(name, values[name]) for name in rows],
        Edges.from_dense(matrix),
        torch.tensor([values[name] for name in rows], dtype=torch.float64),
    )


def cut_up(matrix: Tensor, generator: torch.Generator) -> Edges:
    """The same matrix as blocks over random groups of rows and columns, empty ones left out."""
    n_rows, n_columns = matrix.shape
    row_group = torch.randint(3, (n_rows,), generator=generator)
    column_group = torch.randint(3, (n_columns,), generator=generator)
    blocks = []
    for i in range(3):
        for j in range(3):
            rows = (row_group == i).nonzero()[:, 0]
            columns = (column_group == j).nonzero()[:, 0]
            if matrix[rows[:, None], columns].any():
                rows = rows[torch.randperm(len(rows), generator=generator)]
                blocks.append(EdgeBlock(rows, columns, matrix[rows[:, None], columns]))
    if not blocks:
        return Edges.from_dense(matrix)
    return Edges((n_rows, n_columns), tuple(blocks))


def random_trace(seed: int, *, ties: bool = False, n_outputs: int = 2) -> Trace:
    """Up to 3 features in each of 3 layers, both signs, absent edges, one feature without a row.

    Every row sums to its value. `ties` draws edges and activations from a few powers of two, so
    that many paths are exactly as strong as one another.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*choices: float) -> float:
        if ties:
            return choices[int(torch.randint(len(choices), (), generator=generator))]
        number = float(torch.randn((), generator=generator, dtype=torch.float64))
        return number + 0.1 if number > 0 else number - 0.1

    sizes = [int(torch.randint(1, 4, (), generator=generator)) for _ in range(3)]
    features = [f"f{layer}.{i}" for layer, size in enumerate(sizes) for i in range(size)]
    unexplained = "f1.7"
    rows = [f"o.{i}" for i in range(n_outputs)] + features
    columns = ["t0", "t1", *sorted([*features, unexplained]), "e0", "e2", "b3"]
    # Negative ones as well: a JumpReLU threshold may be negative.
    activation = {name: draw(0.5, 1.0, 2.0, -1.0) for name in columns}
    matrix = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for i, row in enumerate(rows):
        top = N_LAYERS if row[0] == "o" else int(row[1])
        for j, column in enumerate(columns):
            below = column[0] in "tb" or int(column[1]) < top
            if below and float(torch.rand((), generator=generator)) < 0.6:
                matrix[i, j] = draw(-2.0, -1.0, 1.0, 2.0)
    values = matrix.sum(1)
    for i, row in enumerate(rows):
        if row[0] == "f":  # the bias takes up what is missing
            matrix[i, columns.index("b3")] += activation[row] - values[i]
            values[i] = activation[row]
    return trace_of(
        [spell(name, activation[name]) for name in columns],
        [spell(row, float(value)) for row, value in zip(rows, values, strict=True)],
        cut_up(matrix, generator),
        values,
    )
