"""Training a dictionary on activations from anywhere: no language model, tokenizer or dataset."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from circuits.checkpoints import load_dictionary, save_dictionary
from circuits.dictionaries import Dictionary
from circuits.precision import fast_float32
from circuits.training.checkpoint import CHECKPOINT_NAME
from circuits.training.config import DictionaryConfig, TrainedSite
from circuits.training.display import Watcher, watching
from circuits.training.folder import claim
from circuits.training.loop import Batch, learn, open_run
from circuits.training.processes import Processes, joined
from circuits.training.step import Workspace

__all__ = ["Pair", "fit", "recut"]

Pair = tuple[Tensor, Tensor]
"""Inputs [token, d_in] and targets [token, d_out]."""
_SCALING_TOKENS = 32_768


def fit(
    config: DictionaryConfig,
    batches: Iterable[Pair] | Callable[[int], Iterable[Pair]],
    *,
    site: TrainedSite = "mlp",
    layer: int = 0,
    model: str = "unnamed",
    out: Path | None = None,
    checkpoint_every: int = 500,
    progress: bool | Watcher = True,
) -> Dictionary:
    """Train one dictionary on raw activations, for `n_tokens // batch_size` steps.

    Means and scales come from the first 32,768 tokens. Started by torchrun, every process is given
    the same batches and learns from its share of each.

    Args:
        config: settings.
        batches: inputs x and targets y in the order to learn from; for an SAE both are the same.
            They may have any number of tokens: they are joined and cut to `batch_size`. Or a
            function that gives them from a step on: from token number `step * batch_size`.
        site: `mlp` for a transcoder, else where the SAE sits.
        layer: where the activations are from, for the file.
        model: likewise, the model's name.
        out: folder for `SITE.LAYER.safetensors`, `config.json` and, until the run is complete, its
            checkpoint: the same call goes on where an interrupted one stopped. `batches` must be a
            function then.
        checkpoint_every: steps between checkpoints.
        progress: True for a bar on stderr, False for none, or a function to call.

    Returns:
        The dictionary, for raw activations.

    Raises:
        ValueError: if batches do not fit each other or end too early, or `out` holds another run.

    Example:
        >>> x = torch.randn(256, 8)
        >>> config = DictionaryConfig(n_features=16, k=2, n_tokens=512, batch_size=64)
        >>> sae = fit(config, [(x, x), (x, x)], site="resid_post", progress=False)
        >>> tuple(sae.encode(x).shape)
        (256, 16)
    """
    key = f"{site}.{layer}"
    first, from_step = _opened(batches, config, resumable=out is not None)
    if site != "mlp" and first[0].shape != first[1].shape:
        raise ValueError(
            f"an SAE reconstructs what it reads, so at site {site} x and y are the same; got "
            f"{tuple(first[0].shape)} and {tuple(first[1].shape)}"
        )
    device = first[0].device
    with (
        joined(device.type) as processes,
        watching(processes.first and progress) as watch,
        torch.no_grad(),
        fast_float32(device),
    ):

        def trained() -> Dictionary:
            return _train(config, key, first, from_step, out, checkpoint_every, watch, processes)

        if out is None:
            return trained()
        path = out / f"{key}.safetensors"
        if processes.first:
            claim(out, {**config.model_dump(mode="json"), "dictionary": key, "model": model})
        missing = not path.exists()
        processes.wait()  # nobody looks for the file once somebody may write it
        if missing:
            dictionary = trained()
            if processes.first:
                save_dictionary(dictionary, path, layer=layer, model=model)
        if processes.first:
            (out / CHECKPOINT_NAME).unlink(missing_ok=True)
        processes.wait()
        return load_dictionary(path)[1].to(device=device)


def _train(
    config: DictionaryConfig,
    key: str,
    first: Pair,
    from_step: Callable[[int], Iterator[Pair]],
    out: Path | None,
    checkpoint_every: int,
    watch: Watcher,
    processes: Processes,
) -> Dictionary:
    share = processes.share(config.batch_size)

    def batches(step: int) -> Iterator[Batch]:
        return (lambda key, x=x[share], y=y[share]: (x, y) for x, y in from_step(step))

    run = open_run(
        "",
        config,
        {key: config.seed},
        lambda key: first,
        folder=out,
        device=first[0].device,
        work=Workspace(),
        processes=processes,
    )
    processes.wait()  # all have read the checkpoint before it is replaced
    learn(
        [run],
        batches,
        last=config.n_steps,
        checkpoint_every=checkpoint_every,
        watch=watch,
        saves=processes.first,
    )
    return run.learners[key].dictionary()


def _opened(
    batches: Iterable[Pair] | Callable[[int], Iterable[Pair]],
    config: DictionaryConfig,
    *,
    resumable: bool,
) -> tuple[Pair, Callable[[int], Iterator[Pair]]]:
    """The first tokens, and a function from a step to the batches from there on."""
    n_tokens = min(_SCALING_TOKENS, config.n_steps * config.batch_size)
    size = config.batch_size
    if callable(batches):
        return _joined(_beginning(iter(batches(0)), n_tokens)), lambda step: recut(
            batches(step), size
        )
    if resumable:
        raise ValueError(
            "with `out` a run can be resumed, so batches must be a function of the number of a "
            "step; for a list of batches of batch_size tokens: lambda step: batches[step:]"
        )
    rest = iter(batches)
    taken = _beginning(rest, n_tokens)
    return _joined(taken), lambda step: recut(chain(taken, rest), size)


def _beginning(pairs: Iterator[Pair], n_tokens: int) -> list[Pair]:
    """Pairs from `pairs` until there are `n_tokens`, or no more."""
    taken: list[Pair] = []
    while sum(len(x) for x, _ in taken) < n_tokens and (pair := next(pairs, None)) is not None:
        taken.append(_checked(pair, taken[0] if taken else pair))
    if not taken:
        raise ValueError("there are no batches to train on; give pairs (x, y) of activations")
    return taken


def _checked(pair: Pair, first: Pair) -> Pair:
    """`pair`, if it is one and has the widths of the first."""
    x, y = pair
    widths = tuple(each.shape[1] for each in first if each.ndim == 2)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or (x.shape[1], y.shape[1]) != widths:
        raise ValueError(
            "want x [token, d_in] and y [token, d_out] with as many tokens, and widths as in the "
            f"first batch; got {tuple(x.shape)} and {tuple(y.shape)}, the first had "
            f"{tuple(first[0].shape)} and {tuple(first[1].shape)}"
        )
    return pair


def _joined(pairs: list[Pair]) -> Pair:
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def recut(pairs: Iterable[Pair], size: int) -> Iterator[Pair]:
    """The same tokens in pairs of `size`; what is left at the end is dropped.

    Example:
        >>> x = torch.arange(5.0)[:, None]
        >>> [a.flatten().tolist() for a, _ in recut([(x, x), (x, x)], 4)]
        [[0.0, 1.0, 2.0, 3.0], [4.0, 0.0, 1.0, 2.0]]
    """
    pending: list[Pair] = []
    first: Pair | None = None
    for pair in pairs:
        first = pair if first is None else first
        pending.append(_checked(pair, first))
        if sum(len(x) for x, _ in pending) < size:
            continue
        x, y = _joined(pending)
        whole = len(x) - len(x) % size
        yield from zip(x[:whole].split(size), y[:whole].split(size), strict=True)
        pending = [(x[whole:], y[whole:])] if whole < len(x) else []
