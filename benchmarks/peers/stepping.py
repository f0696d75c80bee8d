"""What the scripts that time a peer's training step share: batches, products, least times."""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file


def report(make_step, arguments):
    """Time steps of `make_step(architecture, n_features, d_in)` and print one JSON object."""
    folder, architecture, n_features, steps = arguments[1:5]
    torch.set_num_threads(1)
    batches = load_file(Path(folder) / "batches.safetensors")["x"].split(4096)
    n_tokens, d_in = batches[0].shape
    f = int(n_features)
    step = make_step(architecture, f, d_in)
    W_enc, W_dec, h = torch.randn(d_in, f), torch.randn(f, d_in), torch.empty(n_tokens, f)
    out, g = torch.empty(n_tokens, d_in), torch.empty(f, d_in)
    g_enc = torch.empty(d_in, f)
    least = {"step": float("inf"), "encode": float("inf"), "rest": float("inf")}

    def clock(name, call):
        start = time.process_time()
        call()
        if number >= 1:
            least[name] = min(least[name], time.process_time() - start)

    def rest(x):
        torch.mm(h, W_dec, out=out)
        torch.mm(h.T, x, out=g)
        torch.mm(x, W_dec.T, out=h)
        torch.mm(x.T, h, out=g_enc)

    for number in range(1 + int(steps)):
        x = batches[number % len(batches)]
        clock("step", lambda x=x: step(x))
        clock("encode", lambda x=x: torch.mm(x, W_enc, out=h))
        clock("rest", lambda x=x: rest(x))
    result = {
        "cpu_s_per_step": least["step"],
        "tokens_per_cpu_s": n_tokens / least["step"],
        "ratio_to_dense_limit": (least["encode"] + least["rest"]) / least["step"],
        "ratio_to_encoder_limit": least["encode"] / least["step"],
    }
    print(json.dumps(result))
    sys.stdout.flush()
