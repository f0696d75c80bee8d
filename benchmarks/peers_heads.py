"""Head circuits beside AutoCircuit and EAP-IG: same model, prompts and edges, answers and costs.

    python -m benchmarks.pruning_heads --peers PYTHON [--eap-ig CHECKOUT]

A small GPT-2 in float64, where the answers must be the same, and GPT-2 small's shape in float32,
where costs are compared. Weights are random and large enough that edges matter; they go to the
peers through a folder. Conventions: ours is the change of the metric (a mean over prompts) when an
edge is corrupted; AutoCircuit's mask gradient is that of *minus* the metric; EAP-IG's too, divided
once more by the number of prompts. Each tool runs in a process of its own on one thread, its peak
memory counted from after one forward pass.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.peers.costs import costs
from benchmarks.processes import run_json
from circuits import SubjectModel
from circuits.precision import fast_float32
from graphs.heads import EdgeRunner, HeadEdges, edge_attribution, logit_difference, mean_kl
from graphs.heads.acdc import prune_readers

__all__ = ["beside_peers", "names_swapped", "random_gpt2", "spread_readers"]

SLOTS = (2, 4, 10)
N_TOKENS, N_STEPS = 15, 5
SMALL = {
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 64,
    "vocab_size": 300,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SCRIPTS = Path(__file__).parent / "peers"


def random_gpt2(**shape: Any) -> GPT2LMHeadModel:
    """A GPT-2 with weights of standard deviation 2 / sqrt(d_model), and random biases and gains."""
    torch.manual_seed(0)
    config = GPT2Config(**shape)
    config._attn_implementation = "eager"
    hf_model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=2 / hf_model.config.n_embd**0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return hf_model


def names_swapped(batch: int, d_vocab: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean and corrupted prompts, and the tokens of indirect object and subject."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randperm(d_vocab, generator=generator)
    filler, names = drawn[:N_TOKENS], drawn[N_TOKENS : N_TOKENS + 100]
    clean, corrupted = filler.repeat(batch, 1), filler.repeat(batch, 1)
    chosen = torch.stack([names[torch.randperm(100, generator=generator)[:5]] for _ in clean])
    clean[:, SLOTS] = chosen[:, [0, 1, 1]]
    corrupted[:, SLOTS] = chosen[:, 2:]
    return clean, corrupted, chosen[:, 0], chosen[:, 1]


def spread_readers(edges: HeadEdges, n: int) -> list[int]:
    """Readers that hold the middle edges of `n` equal parts of all edges."""
    n_edges = edges.exists.sum(1).cumsum(0)
    at = (torch.arange(n) + 0.5) / n * edges.n_edges
    return torch.searchsorted(n_edges, at.long(), right=True).tolist()


def last_writers(edges: HeadEdges, readers: list[int], n: int) -> list[tuple[int, int]]:
    """Of each reader its last `n` edges, in the order of the search."""
    return [
        (reader, writer)
        for reader in sorted(readers, reverse=True)
        for writer in reversed(range(max(0, edges.n_before(reader) - n), edges.n_before(reader)))
    ]


def prepare(
    folder: Path, hf_model: GPT2LMHeadModel, batch: int, asked: list[tuple[int, int]], **rest: Any
) -> None:
    """Write the model, prompts and setting that every tool reads."""
    config = hf_model.config
    edges = HeadEdges(config.n_layer, config.n_head)
    hf_model.save_pretrained(folder)
    clean, corrupted, correct, wrong = names_swapped(batch, config.vocab_size)
    prompts = {"clean": clean, "corrupted": corrupted, "correct": correct, "wrong": wrong}
    own = {name: tensor.contiguous().clone() for name, tensor in prompts.items()}  # columns of one
    save_file(own, folder / "prompts.safetensors")
    names = {"readers": edges.reader_names, "writers": edges.writer_names}
    (folder / "setting.json").write_text(json.dumps(rest | names | {"asked": asked}))


def measure(folder: Path) -> dict[str, Any]:
    """Our scores, kept edges and costs, in this process; tensors go to a file."""
    torch.set_num_threads(1)
    setting = json.loads((folder / "setting.json").read_text())
    prompts = load_file(folder / "prompts.safetensors")
    hf_model = GPT2LMHeadModel.from_pretrained(
        folder, dtype=getattr(torch, setting["dtype"]), attn_implementation="eager"
    )
    model = SubjectModel.from_transformers(hf_model, name="random gpt2")
    clean, corrupted = prompts["clean"], prompts["corrupted"]
    metric = logit_difference(prompts["correct"], prompts["wrong"])
    with torch.no_grad():
        model.run(clean[:1])
    record, tensors = {"acdc": {}}, {}
    record["eap"], tensors["eap"] = costs(
        lambda: edge_attribution(model, clean, corrupted, metric), setting["repeats"]
    )
    if setting["steps"]:
        record["eap_ig"], tensors["eap_ig"] = costs(
            lambda: edge_attribution(model, clean, corrupted, metric, steps=setting["steps"]), 1
        )
    runner = EdgeRunner.on_prompts(model, clean, corrupted)
    candidates = torch.zeros_like(runner.edges.exists)
    candidates[tuple(zip(*setting["asked"], strict=True))] = True
    readers = sorted({reader for reader, _ in setting["asked"]}, reverse=True)
    score = mean_kl(runner.full_logits)
    for number, threshold in enumerate(setting["thresholds"]):

        def search(readers: list[int], threshold: float = threshold) -> Tensor:
            keep = runner.edges.exists
            options = {"threshold": threshold, "candidates": candidates}
            return prune_readers(runner, keep, readers, score, **options)

        setup, _ = costs(lambda search=search: search([]), 1)
        whole, kept = costs(lambda search=search: search(readers), 1)
        record["acdc"][str(threshold)] = {
            clock: (whole[clock] - setup[clock]) / len(setting["asked"]) for clock in ("cpu_s", "s")
        }
        tensors[f"kept{number}"] = kept
    save_file(tensors, folder / "ours.safetensors")
    return record


def relative_difference(found: Tensor, want: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - want).abs().max() / want.abs().max())


def compare(folder: Path, peer: str) -> dict[str, Any]:
    """Our scores and kept edges against a peer's."""
    setting = json.loads((folder / "setting.json").read_text())
    ours, theirs = load_file(folder / "ours.safetensors"), load_file(folder / f"{peer}.safetensors")
    n_prompts = len(load_file(folder / "prompts.safetensors")["clean"])
    unit = -n_prompts if peer.startswith("eap_ig") else -1
    found: dict[str, Any] = {
        f"{name}_relative_difference": relative_difference(ours[name], unit * theirs[name])
        for name in ("eap", "eap_ig")
        if name in ours and name in theirs
    }
    for number, threshold in enumerate(setting["thresholds"]):
        if f"kept{number}" in theirs:
            asked = tuple(zip(*setting["asked"], strict=True))
            mine, other = ours[f"kept{number}"][asked], theirs[f"kept{number}"][asked]
            found[f"acdc {threshold:g}"] = {
                "asked": len(mine),
                "kept": int(mine.sum()),
                "kept_by_peer": int(other.sum()),
                "differ": [
                    f"{setting['writers'][writer]}->{setting['readers'][reader]}"
                    for (reader, writer), one in zip(
                        setting["asked"], (mine != other).tolist(), strict=True
                    )
                    if one
                ],
            }
    return found


def settings() -> dict[str, tuple[dict[str, int], int, list[tuple[int, int]], dict[str, Any]]]:
    """Of each shape: its sizes, prompts, edges to search and the rest of the setting.

    The whole search of the small one; of the large one 8 edges of each of 4 readers.
    """
    small, large = HeadEdges(SMALL["n_layer"], SMALL["n_head"]), HeadEdges(12, 12)
    thresholds = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    return {
        "small": (
            SMALL,
            6,
            last_writers(small, list(range(small.n_readers)), small.n_writers),
            {"dtype": "float64", "thresholds": thresholds, "steps": N_STEPS, "repeats": 2},
        ),
        "gpt2": (
            {},
            16,
            last_writers(large, spread_readers(large, 4), 8),
            {"dtype": "float32", "thresholds": [1e-4], "steps": N_STEPS, "repeats": 2},
        ),
    }


def beside_peers(python: str, eap_ig: str | None) -> dict[str, Any]:
    """Both shapes, ours and the peers: costs, and where the answers differ."""
    found: dict[str, Any] = {}
    commands = {"auto_circuit_heads": [], "eap_ig_heads": [eap_ig]}
    for name, (shape, batch, asked, rest) in settings().items():
        with tempfile.TemporaryDirectory() as path:
            folder = Path(path)
            prepare(folder, random_gpt2(**shape), batch, asked, **rest)
            ours = run_json([sys.executable, "-m", "benchmarks.peers_heads", path])
            found[name] = {"ours": ours}
            for peer, more in commands.items():
                if None in more:
                    continue
                record = run_json([python, str(SCRIPTS / f"{peer}.py"), path, *more])
                found[name][peer] = record | {"against_ours": compare(folder, peer)}
                times = {"eap_times_less_cpu": record["eap"]["cpu_s"] / ours["eap"]["cpu_s"]}
                for threshold, each in record.get("acdc", {}).items():
                    mine = ours["acdc"][threshold]
                    times[f"acdc_times_less_cpu {threshold}"] = each["cpu_s"] / mine["cpu_s"]
                found[name][peer]["times"] = times
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="what `prepare` wrote")
    with fast_float32(torch.device("cpu")):
        print(json.dumps(measure(parser.parse_args().folder)))
