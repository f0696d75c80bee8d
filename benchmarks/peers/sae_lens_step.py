"""Time SAELens' training step on batches from a file, beside the dense products it needs.

    PEER/bin/python sae_lens_step.py FOLDER ARCHITECTURE N_FEATURES STEPS

Runs under SAELens' own environment (6.54.12), so it imports nothing of the project. One thread,
float32, its own defaults. FOLDER holds `batches.safetensors`. Prints one JSON object.
"""

import sys

from stepping import report


def make_step(architecture: str, n_features: int, d_in: int):
    """The seam that its own `fit` calls, without a language model."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    widths = [n_features // 16, n_features // 4, n_features]
    settings = {
        "standard": {"l1_coefficient": 1.0},
        "topk": {"k": 32, "use_sparse_activations": False},
        "jumprelu": {"l0_coefficient": 1.0},
        "gated": {"l1_coefficient": 1.0},
        "batchtopk": {"k": 32.0},
        "matryoshka": {"k": 32.0, "matryoshka_widths": widths},
    }[architecture]
    name = "matryoshka_batchtopk" if architecture == "matryoshka" else architecture
    sae_class, config_class = get_sae_training_class(name)
    sae = sae_class(config_class(d_in=d_in, d_sae=n_features, **settings))
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**9,
        device="cpu",
        autocast=False,
        lr=3e-4,
        lr_end=3e-5,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=4096,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, iter(()))

    def step(x):
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


if __name__ == "__main__":
    report(make_step, sys.argv)
