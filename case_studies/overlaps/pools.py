"""What circuits could have been chosen from: every node that a study's prompts put to use."""

from collections.abc import Sequence

import torch

from attribution.nodes import Node
from case_studies.overlaps.aligning import Alignment, name_prompt
from case_studies.study_config import StudyConfig
from case_studies.tasks import TaskPrompt
from case_studies.tasks.named import named_task
from circuits import SplicedModel

__all__ = ["active_nodes", "study_pool"]


def study_pool(
    study: StudyConfig, group: str | None, spliced: SplicedModel, alignment: Alignment
) -> list[Node]:
    """Every feature, error and unreplaced MLP in use on the prompts that chose a circuit.

    Args:
        study: its settings; the prompts are drawn again from its seed.
        group: of the aligned prompts; None for the first.
        spliced: the study's model with its dictionaries.
        alignment: the positions the nodes are to have.

    Raises:
        ValueError: if the prompts have a position that the circuits have not.
    """
    task = named_task(study.task, frames=study.frames)
    own = group if group is not None else task.groups(spliced.model)[0]
    prompts = task.prompts(spliced.model, study.n_discovery, seed=study.seed + 1, aligned_group=own)
    names = name_prompt(alignment.by, prompts[0].roles, len(prompts[0].clean_tokens))
    if not set(names) <= set(alignment.columns):
        raise ValueError(
            f"the prompts of group {own!r} have positions {list(names)}, the circuits "
            f"{list(alignment.columns)}; is config.json of the study that made graph.json? If not, "
            "compare with --no-chance"
        )
    return active_nodes(spliced, prompts, [alignment.columns.index(name) for name in names])


def active_nodes(
    spliced: SplicedModel, prompts: Sequence[TaskPrompt], columns: Sequence[int]
) -> list[Node]:
    """Nodes in use on any of some aligned prompts, each once.

    Args:
        spliced: the model with its dictionaries.
        prompts: of one length.
        columns: the position that each token's nodes get.
    """
    with torch.no_grad():
        state = spliced.state(torch.stack([prompt.clean_tokens for prompt in prompts]))
    where = torch.tensor(columns)
    found: list[Node] = []
    for write, placement in spliced.placements.items():
        active = (state.activations[write] != 0).any(0).cpu()
        pairs = torch.zeros(max(columns) + 1, active.shape[1], dtype=torch.bool)
        for column, row in zip(where.tolist(), active, strict=True):
            pairs[column] |= row
        found += [
            Node(kind="feature", layer=write.layer, site=placement.site, pos=pos, feature=feature)
            for pos, feature in pairs.nonzero().tolist()
        ]
        found += _at_each("error", write.layer, placement.site, columns)
    for site in spliced.held_mlps():
        found += _at_each("sublayer", site.layer, "mlp", columns)
    return found


def _at_each(kind: str, layer: int, site: str, columns: Sequence[int]) -> list[Node]:
    nodes = {"kind": kind, "layer": layer, "site": site}
    return [Node.model_validate(nodes | {"pos": pos}) for pos in sorted(set(columns))]
