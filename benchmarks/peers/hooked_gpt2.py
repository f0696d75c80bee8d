"""What the scripts that run AutoCircuit and EAP-IG share: the model, the prompts, the report."""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformer_lens
from safetensors.torch import load_file, save_file
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel


def load(folder):
    """The model as transformer-lens has it, nothing folded; prompts and answers; the setting."""
    setting = json.loads((folder / "setting.json").read_text())
    dtype = getattr(torch, setting["dtype"])
    source = GPT2LMHeadModel.from_pretrained(folder, torch_dtype=dtype)
    shape = source.config
    cfg = transformer_lens.HookedTransformerConfig(
        n_layers=shape.n_layer,
        d_model=shape.n_embd,
        n_heads=shape.n_head,
        d_head=shape.n_embd // shape.n_head,
        d_mlp=4 * shape.n_embd,
        d_vocab=shape.vocab_size,
        n_ctx=shape.n_positions,
        act_fn="gelu_new",
        normalization_type="LN",
        model_name="gpt2",
        device="cpu",
        dtype=dtype,
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
    )
    model = transformer_lens.HookedTransformer(cfg)
    missing = model.load_state_dict(convert_gpt2_weights(source, cfg), strict=False).missing_keys
    assert all(key.endswith(("mask", "IGNORE", "unembed.b_U")) for key in missing), missing
    assert not model.unembed.b_U.any()
    model.eval().requires_grad_(False)
    return model, load_file(folder / "prompts.safetensors"), setting


def report(measure):
    """Run `measure(model, prompts, setting)` on the folder of the command line, one thread.

    Its record goes to the last line, its tensors to a file named after the script.
    """
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    model, prompts, setting = load(folder)
    with torch.no_grad():
        model(prompts["clean"][:1])
    record, tensors = measure(model, prompts, setting)
    save_file(tensors, folder / f"{Path(sys.argv[0]).stem}.safetensors")
    print(json.dumps(record))
    sys.stdout.flush()
