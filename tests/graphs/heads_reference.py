"""GPT-2 and Llama written out head by head in float64, each reader with a stream of its own."""

from collections.abc import Callable
from functools import cache

import torch
import transformers
from torch import Tensor
from torch.nn import functional

from circuits import SubjectModel, load_model
from graphs.heads import EdgeRunner, HeadEdges
from tests import models

N_HEADS, N_LAYERS = 4, models.N_LAYERS
EDGES = HeadEdges(N_LAYERS, N_HEADS)
Mix = Callable[[int, list[Tensor], Tensor], Tensor]
"""The stream of a reader, from what each writer before it writes and the biases before it."""


def plain(reader: int, writers: list[Tensor], bias: Tensor) -> Tensor:
    """Every edge there."""
    return torch.stack(writers).sum(0) + bias


class Reference:
    """A model by its architecture, straight from the weights of transformers."""

    def __init__(self, architecture: str) -> None:
        hf = models.hf_model(architecture, torch.float64)
        self.llama = architecture == "llama_gqa"
        self.weights = {name: value.detach() for name, value in hf.named_parameters()}
        self.W_U = hf.get_output_embeddings().weight.detach().T

    def embed(self, tokens: Tensor) -> Tensor:
        if self.llama:
            return self.weights["model.embed_tokens.weight"][tokens]
        positions = self.weights["transformer.wpe.weight"][: tokens.shape[1]]
        return self.weights["transformer.wte.weight"][tokens] + positions

    def norm(self, x: Tensor, name: str) -> Tensor:
        gain = self.weights[f"{name}.weight"]
        if self.llama:
            return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
        x = x - x.mean(-1, keepdim=True)
        return (
            x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain
            + self.weights[f"{name}.bias"]
        )

    def side(self, layer: int, head: int, side: str, stream: Tensor) -> Tensor:
        """Query, key or value of one head."""
        if self.llama:
            x = self.norm(stream, f"model.layers.{layer}.input_layernorm")
            width = models.D_MODEL // N_HEADS
            head = head if side == "q" else head // 2
            W = self.weights[f"model.layers.{layer}.self_attn.{side}_proj.weight"]
            found = x @ W[head * width : (head + 1) * width].T
            return found if side == "v" else turn(found)
        width, at = models.D_MODEL // N_HEADS, "qkv".index(side)
        x = self.norm(stream, f"transformer.h.{layer}.ln_1")
        columns = slice(
            at * models.D_MODEL + head * width, at * models.D_MODEL + (head + 1) * width
        )
        name = f"transformer.h.{layer}.attn.c_attn"
        return (
            x @ self.weights[f"{name}.weight"][:, columns] + self.weights[f"{name}.bias"][columns]
        )

    def write(self, layer: int, head: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What one head adds to the stream."""
        n, width = q.shape[1], q.shape[2]
        scores = q @ k.mT / width**0.5
        ahead = torch.ones(n, n, dtype=torch.bool).triu(1)
        z = scores.masked_fill(ahead, -torch.inf).softmax(-1) @ v
        rows = slice(head * width, (head + 1) * width)
        if self.llama:
            return z @ self.weights[f"model.layers.{layer}.self_attn.o_proj.weight"][:, rows].T
        return z @ self.weights[f"transformer.h.{layer}.attn.c_proj.weight"][rows]

    def attention_bias(self, layer: int) -> Tensor:
        name = f"transformer.h.{layer}.attn.c_proj.bias"
        return torch.zeros(models.D_MODEL).double() if self.llama else self.weights[name]

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        if self.llama:
            name = f"model.layers.{layer}.mlp"
            x = self.norm(stream, f"model.layers.{layer}.post_attention_layernorm")
            gate, up, down = (
                self.weights[f"{name}.{p}_proj.weight"] for p in ("gate", "up", "down")
            )
            return (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
        name = f"transformer.h.{layer}"
        x = self.norm(stream, f"{name}.ln_2") @ self.weights[f"{name}.mlp.c_fc.weight"]
        x = functional.gelu(x + self.weights[f"{name}.mlp.c_fc.bias"], approximate="tanh")
        return (
            x @ self.weights[f"{name}.mlp.c_proj.weight"] + self.weights[f"{name}.mlp.c_proj.bias"]
        )

    def run(self, embed: Tensor, mix: Mix = plain) -> tuple[list[Tensor], Tensor]:
        """What every writer writes, and the logits at the last position."""
        writers, bias = [embed], torch.zeros(models.D_MODEL).double()
        for layer in range(N_LAYERS):
            before = list(writers)
            for head in range(N_HEADS):
                readers = [EDGES.head_reader(layer, head, side) for side in ("q", "k", "v")]
                streams = [mix(reader, before, bias) for reader in readers]
                sides = [self.side(layer, head, s, x) for s, x in zip("qkv", streams, strict=True)]
                writers.append(self.write(layer, head, *sides))
            bias = bias + self.attention_bias(layer)
            writers.append(self.mlp(layer, mix(EDGES.mlp_reader(layer), list(writers), bias)))
        name = "model.norm" if self.llama else "transformer.ln_f"
        return writers, self.norm(mix(EDGES.output, writers, bias)[:, -1], name) @ self.W_U


def turn(x: Tensor) -> Tensor:
    """Rotary positions of base 10,000."""
    half = x.shape[-1] // 2
    # transformers computes frequencies in float32
    frequencies = 1.0 / 10_000 ** (torch.arange(0, 2 * half, 2).float() / (2 * half))
    angles = torch.arange(x.shape[-2]).float()[:, None] * frequencies
    cos, sin = angles.cos().double(), angles.sin().double()
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


def pairs(n_prompts: int = 3, n_pos: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clean and corrupted prompts, which share their first token."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted = torch.randint(1, models.D_VOCAB, (2, n_prompts, n_pos), generator=generator)
    corrupted[:, 0] = clean[:, 0]
    return clean, corrupted


def runner(architecture: str, clean: Tensor, corrupted: Tensor) -> tuple[SubjectModel, EdgeRunner]:
    model = models.subject(architecture, torch.float64)
    return model, EdgeRunner.on_prompts(model, clean, corrupted)


@cache
def two_layers(architecture: str) -> SubjectModel:
    """A random model of two layers, of 110 edges."""
    config = models.hf_model(architecture, torch.float64).config
    config.num_hidden_layers = 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in hf.parameters():
        parameter.data.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return load_model(hf, models.word_tokenizer(), dtype=torch.float64)


def random_circuits(edges: HeadEdges, n: int, share: float, seed: int = 0) -> Tensor:
    """Flags of about a `share` of the edges."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(n, edges.n_readers, edges.n_writers, generator=generator) < share
    return drawn & edges.exists
