"""What two processes do in the tests: `python -m tests.circuits.training_processes FOLDER`.

Environment variables are those of torchrun.
"""

import sys
import weakref
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

from circuits.training import TrainingConfig, fit, train
from circuits.training.learner import Learner
from circuits.training.processes import ALONE, Processes, joined
from tests.circuits.training_models import random_rows, small_gpt2

ARCHITECTURES = ("topk", "jumprelu", "relu", "gated")
N_STEPS, BATCH = 60, 64
ROWS = random_rows(40)
CONFIG = TrainingConfig(
    model="small",
    architecture="topk",
    sites=("mlp", "resid_post"),
    n_features=48,
    k=4,
    n_tokens=40 * 64,
    batch_size=64,
    context=12,
    n_eval_rows=8,
    model_batch_rows=3,
    buffer_tokens=150,
    activation_cache_gb=0.0,
    lr=1e-2,
    dead_after_tokens=300,
    checkpoint_every=7,
)


def activations() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 16, generator=generator)
    return x, torch.tanh(x @ torch.randn(16, 12, generator=generator))


def learned(architecture: str, processes: Processes = ALONE) -> dict[str, torch.Tensor]:
    """Loss, L0 and number of dead features at each step, and what is left at the end."""
    config = TrainingConfig.model_validate(
        {
            **CONFIG.model_dump(),
            "architecture": architecture,
            "sites": ("mlp",),
            "n_features": 200,
            "n_tokens": N_STEPS * BATCH,
            "clip_norm": 1.0,
            "dead_after_tokens": 64 * 5,
            "skip": True,
        }
    )
    x, y = activations()
    learner = Learner.start(config, "mlp", x, y, seed=0, processes=processes)
    numbers = []
    for step in range(N_STEPS):
        batch = torch.arange(step * BATCH, (step + 1) * BATCH) % len(x)
        mine = batch[processes.share(BATCH)]
        result = learner.learn(x[mine], y[mine], step)
        numbers.append([result.loss, result.l0, len(learner.dead)])
    return {"numbers": torch.tensor(numbers), **learner.state()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name in [name for name in sys.modules if name.startswith("torch.distributed.nn")]:
        del sys.modules[name]  # as in a process that has not loaded a model yet
    with joined("cpu") as processes:
        group = weakref.ref(dist.distributed_c10d._get_default_group())
        import_module("torch.distributed.nn")  # as loading some models does
        results = {name: learned(name, processes) for name in ARCHITECTURES}
        torch.save(results, folder / f"learned{processes.rank}.pt")
        model = small_gpt2()
        train(CONFIG, model, out=folder / "whole", tokens=ROWS, progress=False)
        train(CONFIG, model, out=folder / "parts", tokens=ROWS, progress=False, stop_after=20)
        train(CONFIG, model, out=folder / "parts", tokens=ROWS, progress=False)
        x, y = activations()
        config = CONFIG.model_copy(update={"n_tokens": 16 * 64})
        dictionary = fit(
            config, lambda step: [(x[step * 64 :], y[step * 64 :])], out=folder / "fit"
        )
        torch.save(dictionary.W_dec, folder / f"fitted{processes.rank}.pt")
    (folder / f"ended{processes.rank}").write_text(str(group() is None))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
