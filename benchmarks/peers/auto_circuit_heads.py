"""Run AutoCircuit on a GPT-2 and prompts from files; scores, kept edges and costs back into files.

    PEER/bin/python auto_circuit_heads.py FOLDER

Runs under AutoCircuit's own environment (auto-circuit 1.0.1, transformer-lens 2.18, numpy 1.26), so
it imports nothing of the project. FOLDER holds a Hugging Face GPT-2, `prompts.safetensors` and
`setting.json`, which names writers, readers and the edges to search, in order. AutoCircuit sorts a
*set* of edges by layer alone, so that the order within a layer is that of hashes, which change from
run to run; given a list it keeps ours. Nothing of it is changed otherwise.
"""

import re

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.utils.graph_utils import patchable_model
from costs import costs
from hooked_gpt2 import report


def writer_name(node):
    """AutoCircuit's `A5.2`, `MLP 3`, `Resid Start` as `a5.h2`, `m3`, `input`."""
    if node.name == "Resid Start":
        return "input"
    return re.sub(r"^A(\d+)\.(\d+)$", r"a\1.h\2", node.name).replace("MLP ", "m")


def reader_name(node):
    """AutoCircuit's `A5.2.K`, `MLP 3`, `Resid End` as `a5.h2<k>`, `m3`, `logits`."""
    if node.name == "Resid End":
        return "logits"
    name = re.sub(r"^A(\d+)\.(\d+)\.([QKV])$", r"a\1.h\2<\3>", node.name)
    return name.lower().replace("mlp ", "m")


def table(scores, places, shape):
    """Scores by edge as one matrix [reader, writer]."""
    found = torch.zeros(shape, dtype=torch.float64)
    for edge, (reader, writer) in places.items():
        found[reader, writer] = float(edge.prune_score(scores))
    return found


def measure(model, prompts, setting):
    """Attribution over every edge, then ACDC over the edges asked for, once a threshold."""
    data = PromptDataset(
        prompts["clean"],
        prompts["corrupted"],
        list(prompts["correct"][:, None]),
        list(prompts["wrong"][:, None]),
    )
    loader = PromptDataLoader(
        data, seq_len=None, diverge_idx=0, batch_size=len(prompts["clean"]), shuffle=False
    )
    patchable = patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True)
    readers = {name: i for i, name in enumerate(setting["readers"])}
    writers = {name: i for i, name in enumerate(setting["writers"])}
    shape = len(readers), len(writers)
    places = {
        e: (readers[reader_name(e.dest)], writers[writer_name(e.src)]) for e in patchable.edges
    }
    by_place = {place: edge for edge, place in places.items()}

    def attribution():
        return mask_gradient_prune_scores(
            patchable, loader, None, grad_function="logit", answer_function="avg_diff", mask_val=0.0
        )

    record, tensors = {"n_edges": patchable.n_edges, "acdc": {}}, {}
    eap, scores = costs(attribution, setting["repeats"])
    record["eap"], tensors["eap"] = eap, table(scores, places, shape)
    asked = [by_place[tuple(pair)] for pair in setting["asked"]]
    for number, threshold in enumerate(setting["thresholds"]):

        def search(edges, threshold=threshold):
            patchable.edges = edges
            return acdc_prune_scores(patchable, loader, None, tao_exps=[0], tao_bases=[threshold])

        setup, _ = costs(lambda search=search: search(asked[:1]), 1)
        whole, scores = costs(lambda search=search: search(asked), 1)
        record["acdc"][str(threshold)] = {
            clock: (whole[clock] - setup[clock]) / (len(asked) - 1) for clock in ("cpu_s", "s")
        }
        kept = torch.isinf(table(scores, places, shape))
        tensors[f"kept{number}"] = kept
    return record, tensors


if __name__ == "__main__":
    report(measure)
