"""Time dictionary_learning's training step on batches from a file, beside the dense products.

    PEER/bin/python dictionary_learning_step.py FOLDER ARCHITECTURE N_FEATURES STEPS CHECKOUT

Runs under an environment of its own on a checkout of the repository (60ec6bf), so it imports
nothing of the project. One thread, float32, its own defaults. Prints one JSON object.
"""

import sys
import types

from stepping import report


def make_step(architecture: str, n_features: int, d_in: int):
    """`trainer.update`, as its own loop calls it."""
    stub = types.ModuleType("nnsight")  # imported at package level, unused by the trainers
    stub.LanguageModel = object
    sys.modules["nnsight"] = stub
    sys.path.insert(0, sys.argv[5])
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer_class, settings = {
        "standard": (StandardTrainer, {"sparsity_warmup_steps": None}),
        "topk": (TopKTrainer, {"k": 32}),
        "jumprelu": (JumpReluTrainer, {"sparsity_warmup_steps": None, "target_l0": 32.0}),
        "gated": (GatedSAETrainer, {"sparsity_warmup_steps": None}),
        "batchtopk": (BatchTopKTrainer, {"k": 32}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainer,
            {"k": 32, "group_fractions": [1 / 16, 3 / 16, 3 / 4]},
        ),
    }[architecture]
    trainer = trainer_class(
        steps=10**6,
        activation_dim=d_in,
        dict_size=n_features,
        layer=0,
        lm_name="none",
        warmup_steps=1,
        device="cpu",
        seed=0,
        **settings,
    )
    done = [0]

    def step(x):
        trainer.update(done[0], x)
        done[0] += 1

    return step


if __name__ == "__main__":
    report(make_step, sys.argv)
