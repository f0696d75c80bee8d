"""Run the EAP-IG repository on a GPT-2 and prompts from files; scores and costs back into files.

    PEER/bin/python eap_ig_heads.py FOLDER CHECKOUT

Runs under an environment with transformer-lens 2.18, so it imports nothing of the project; CHECKOUT
is the repository (commit 795f560). To run at all on a CPU and offline, three things are changed in
memory: `device="cuda"` is the CPU, token ids stand for strings, and the weights are frozen, with
the embedding as the leaf (upstream takes gradients of the weights too, at half the cost again).
"""

import sys
from pathlib import Path

import torch
from costs import costs
from hooked_gpt2 import report

sys.path.insert(0, str(Path(sys.argv[2]) / "src"))

import eap.attribute
import eap.evaluate
import eap.utils
from eap.graph import Graph


class TorchOnCpu:
    """The module `torch`, with zeros on the CPU wherever they are asked for."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def zeros(self, *sizes, **options):
        return torch.zeros(*sizes, **(options | {"device": "cpu"}))


def as_tokens(model, prompts, max_length=None):
    """What upstream's tokenisation gives: ids, mask, lengths, number of positions."""
    mask = torch.ones_like(prompts)
    return prompts, mask, mask.sum(1), prompts.shape[1]


def negative_difference(logits, clean_logits, lengths, answers):
    """Upstream's loss for IOI: minus the mean logit difference."""
    rows = torch.arange(len(answers))
    last = logits[rows, lengths - 1]
    return (last[rows, answers[:, 1]] - last[rows, answers[:, 0]]).mean()


def measure(model, prompts, setting):
    """EAP and EAP-IG over every edge."""
    for module in (eap.attribute, eap.evaluate, eap.utils):
        module.torch, module.tokenize_plus = TorchOnCpu(), as_tokens
    model.add_perma_hook("hook_embed", lambda x, hook: x.detach().requires_grad_())
    answers = torch.stack([prompts["correct"], prompts["wrong"]], 1)
    loader = [(prompts["clean"], prompts["corrupted"], answers)]
    graph = Graph.from_model(model)

    def attribute(method, **options):
        eap.attribute.attribute(
            model, graph, loader, negative_difference, method=method, quiet=True, **options
        )

    def table():
        found = torch.zeros(len(setting["readers"]), len(setting["writers"]), dtype=torch.float64)
        for name, edge in graph.edges.items():
            writer, _, reader = name.partition("->")
            place = setting["readers"].index(reader), setting["writers"].index(writer)
            found[place] = float(edge.score)
        return found

    record, tensors = {"n_edges": len(graph.edges)}, {}
    record["eap"], _ = costs(lambda: attribute("EAP"), setting["repeats"])
    tensors["eap"] = table()
    if setting["steps"]:
        steps = setting["steps"]
        record["eap_ig"], _ = costs(lambda: attribute("EAP-IG-inputs", ig_steps=steps), 1)
        tensors["eap_ig"] = table()
    return record, tensors


if __name__ == "__main__":
    report(measure)
