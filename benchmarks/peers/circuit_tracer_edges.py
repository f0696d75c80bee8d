"""Run circuit-tracer on weights and a prompt from files; its edges and costs back into files.

    PEER/bin/python circuit_tracer_edges.py FOLDER BATCH_SIZE [MAX_FEATURE_NODES]

Runs under circuit-tracer's own environment (0.5.0, with transformer-lens 3), so it imports nothing
of the project. FOLDER holds `model.safetensors` (a Hugging Face GPT-2), `transcoders.safetensors`,
and `setting.json`. Prints one JSON object; writes `peer_edges.safetensors`.
"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def tokenizer(d_vocab: int):
    """One word a token, an end token, and no BOS: all that circuit-tracer asks for offline."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {f"w{i}": i for i in range(d_vocab - 1)} | {"<|endoftext|>": d_vocab - 1}
    words = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>")


def transcoders(folder: Path, setting: dict):
    """The transcoders of the files, as circuit-tracer's own."""
    from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
    from circuit_tracer.transcoder.activation_functions import JumpReLU

    tensors, layers = load_file(folder / "transcoders.safetensors"), {}
    for layer in range(setting["n_layers"]):
        threshold = tensors[f"{layer}.threshold"]
        one = SingleLayerTranscoder(
            setting["d_model"],
            len(threshold),
            JumpReLU(threshold, 0.1),
            layer,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        one.W_enc.data.copy_(tensors[f"{layer}.W_enc"].T)
        one.W_dec.data.copy_(tensors[f"{layer}.W_dec"])
        one.b_enc.data.copy_(tensors[f"{layer}.b_enc"])
        one.b_dec.data.copy_(tensors[f"{layer}.b_dec"])
        layers[layer] = one
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
    return TranscoderSet(layers, scan="benchmark", **hooks)


def load_weights(model, folder: Path, setting: dict) -> None:
    """Copy a Hugging Face GPT-2 into a HookedTransformer, nothing folded."""
    source = load_file(folder / "model.safetensors")
    n_heads, d_model = setting["n_heads"], setting["d_model"]
    d_head = d_model // n_heads
    tensors = {
        "embed.W_E": source["wte.weight"],
        "pos_embed.W_pos": source["wpe.weight"][: setting["n_ctx"]],
        "ln_final.w": source["ln_f.weight"],
        "ln_final.b": source["ln_f.bias"],
        "unembed.old_unembed.W_U": source["wte.weight"].T,
    }
    for i in range(setting["n_layers"]):
        ours, theirs = f"h.{i}.", f"blocks.{i}."
        weights = source[ours + "attn.c_attn.weight"].split(d_model, 1)
        biases = source[ours + "attn.c_attn.bias"].split(d_model)
        for name, weight, bias in zip("QKV", weights, biases, strict=True):
            by_head = weight.view(d_model, n_heads, d_head).transpose(0, 1)
            tensors[f"{theirs}attn.W_{name}"] = by_head
            tensors[f"{theirs}attn.b_{name}"] = bias.view(n_heads, d_head)
        output = source[ours + "attn.c_proj.weight"].view(n_heads, d_head, d_model)
        tensors[theirs + "attn.W_O"] = output
        tensors[theirs + "attn.b_O"] = source[ours + "attn.c_proj.bias"]
        for name in ("ln1", "ln2"):
            norm = ours + name.replace("ln", "ln_")
            tensors[f"{theirs}{name}.w"] = source[norm + ".weight"]
            tensors[f"{theirs}{name}.b"] = source[norm + ".bias"]
        for name, layer in (("in", "c_fc"), ("out", "c_proj")):
            tensors[f"{theirs}mlp.old_mlp.W_{name}"] = source[f"{ours}mlp.{layer}.weight"]
            tensors[f"{theirs}mlp.old_mlp.b_{name}"] = source[f"{ours}mlp.{layer}.bias"]
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        assert parameters[name].shape == tensor.shape, name
        parameters[name].data.copy_(tensor)


def resident_mib(*, reset_peak: bool = False) -> tuple[float, float]:
    """Memory in use now, and at most since the last reset (Linux)."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024


def main() -> None:
    """Attribute once and report."""
    folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
    max_nodes = int(sys.argv[3]) if len(sys.argv) > 3 else None
    setting = json.loads((folder / "setting.json").read_text())
    torch.set_num_threads(1)

    from circuit_tracer import ReplacementModel, attribute
    from transformer_lens import HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=setting["n_layers"],
        d_model=setting["d_model"],
        n_heads=setting["n_heads"],
        d_head=setting["d_model"] // setting["n_heads"],
        d_mlp=4 * setting["d_model"],
        d_vocab=setting["d_vocab"],
        n_ctx=setting["n_ctx"],
        act_fn="gelu_new",
        normalization_type="LN",
        positional_embedding_type="standard",
        model_name="random-gpt2",
        tokenizer_name="none",
        original_architecture="GPT2LMHeadModel",
        device="cpu",
        dtype=torch.float32,
    )
    model = ReplacementModel.from_config(
        cfg, transcoders(folder, setting), tokenizer=tokenizer(setting["d_vocab"])
    )
    load_weights(model, folder, setting)
    tokens = torch.tensor(setting["tokens"])
    model(tokens)
    before, _ = resident_mib(reset_peak=True)
    start = time.process_time()
    graph = attribute(
        tokens, model, max_n_logits=10, batch_size=batch_size, max_feature_nodes=max_nodes
    )
    cpu = time.process_time() - start
    added = resident_mib()[1] - before
    n_rows = len(graph.selected_features) + len(graph.logit_targets)
    save_file(
        {
            "adjacency": graph.adjacency_matrix.contiguous(),
            "features": graph.active_features[graph.selected_features].contiguous(),
            "logits": torch.tensor([target.vocab_idx for target in graph.logit_targets]),
        },
        folder / "peer_edges.safetensors",
    )
    print(
        json.dumps(
            {
                "batch_size": batch_size,
                "rows": n_rows,
                "cpu_s": cpu,
                "cpu_s_per_1000_rows": 1000 * cpu / n_rows,
                "peak_added_mib": added,
            }
        )
    )


if __name__ == "__main__":
    main()
