"""The table of wrong conventions: what each does to FVU, and whether the check on load says so.

    python -m benchmarks.conventions [--quick] [--more MODEL DICTIONARIES]

Dictionaries of known conventions (those of `tiny`, and some trained here on random models of the
shapes of GPT-2 and Gemma 2, whose norm gains and biases are far from 1 and 0) are declared wrongly,
one convention at a time: FVU as it is and as declared, whether the check refuses, and whether the
message names the true convention. Every dictionary is also checked as it is: none may be refused.
`--more` adds dictionaries of your own to those checked as they are. The last line is one JSON
object.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

from circuits import SAE, Dictionary, SubjectModel, Transcoder, load_dictionaries, load_model
from circuits.conventions import NATIVE, Convention
from circuits.folding import fold_convention, fold_error
from circuits.plausibility import Fit, measure_fits
from circuits.plausibility.hypotheses import written
from circuits.plausibility.readings import reread
from circuits.sites import Site
from circuits.subject import Norm
from circuits.training import DictionaryConfig, fit

VOCABULARY, CONTEXT, D_MODEL = 300, 32, 64
SITES = ("mlp", "resid_pre", "resid_post", "attn_out", "mlp_out")
BARE = Convention(norm="bare")


@dataclass(frozen=True)
class Trial:
    """A dictionary of a known convention, and what tries it."""

    model: SubjectModel
    name: str
    dictionary: Dictionary
    prompts: Int[Tensor, "row pos"] | None
    declared: tuple[Convention, ...]
    """Wrongly, each differing from the dictionary's own."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    dictionary: str
    true: str
    declared: str
    fvu_right: float
    fvu_wrong: float
    harmful: bool
    refused: bool
    named: bool
    reason: str


def words(convention: Convention) -> str:
    """What differs from the native convention."""
    given = convention.model_dump(exclude_defaults=True)
    return ", ".join(f"{name}={value}" for name, value in given.items()) or "native"


def fit_of(trial: Trial, dictionary: Dictionary) -> Fit:
    """The check's verdict on one dictionary."""
    (found,) = measure_fits(trial.model, {trial.name: dictionary}, trial.prompts)
    return found


def harmful(true: Convention, declared: Convention, fvu_right: float, fvu_wrong: float) -> bool:
    """Whether a wrong convention costs anything.

    Where the first position is left out the true value goes on, so nothing is lost there (and FVU
    is of other tokens). BOS is a matter of the prompts: the wrong ones are never run here.
    """
    if declared.first_position == "left out" != true.first_position:
        return False
    return declared.bos != true.bos or fvu_wrong > 1.01 * fvu_right


def rows_of(trial: Trial) -> Iterator[Row]:
    """The table's lines of one dictionary."""
    right = fit_of(trial, trial.dictionary)
    for convention in trial.declared:
        wrong = fit_of(trial, reread(trial.dictionary, convention))
        yield Row(
            trial.model.name,
            trial.name,
            words(trial.dictionary.convention),
            words(convention),
            right.fvu,
            wrong.fvu,
            harmful(trial.dictionary.convention, convention, right.fvu, wrong.fvu),
            wrong.verdict == "refused",
            f"pass convention={written(trial.dictionary.convention)}" in wrong.reason,
            wrong.reason,
        )


def wrongly(true: Convention, *fields: str) -> tuple[Convention, ...]:
    """Every other value of some fields, one at a time."""
    found = []
    for field in fields:
        options = get_args(Convention.model_fields[field].annotation) or (False, True)
        for option in options:
            if option not in (getattr(true, field), "unknown", "own vector"):
                found.append(true.model_copy(update={field: option}))
    return tuple(found)


def tiny(layers: Iterable[int] | None) -> Iterator[Trial]:
    """The shipped transcoders and SAEs: native, trained with BOS in front and read so."""
    model = load_model("tiny")
    for name, dictionary in load_dictionaries("tiny", sites=SITES, layers=layers).items():
        true = Convention(bos="in front")
        fields = ("norm", "subtracted", "centred", "bos")
        fields = fields[isinstance(dictionary, SAE) :]
        yield Trial(model, name, reread(dictionary, true), None, wrongly(true, *fields))


def random_tokens(n_rows: int, seed: int, bos: int | None) -> Int[Tensor, "row pos"]:
    """Rows of tokens by Zipf's law, with BOS in front or not."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, VOCABULARY)
    n = n_rows * CONTEXT
    rows = 1 + torch.multinomial(weights, n, True, generator=generator).view(n_rows, CONTEXT)
    if bos is not None:
        rows[:, 0] = bos
    return rows


def random_model(shape: str) -> SubjectModel:
    """A random model whose norms are far from plain, whose writing weights are far from centred
    (with LayerNorm, where that matters), and whose first position is an outlier, as in GPT-2.
    """
    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    config: Any
    if shape == "gpt2":
        config = GPT2Config(n_embd=D_MODEL, n_layer=3, n_head=4, n_positions=CONTEXT, **common)
    else:
        config = Gemma2Config(
            hidden_size=D_MODEL,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=4 * D_MODEL,
            max_position_embeddings=CONTEXT,
            **common,
        )
    config._attn_implementation = "eager"
    hf: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim == 1 and name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif parameter.ndim == 1:  # a norm's gain, of which Gemma keeps what is above 1
                parameter.copy_(torch.randn_like(parameter).mul(0.7).exp() - float(shape != "gpt2"))
            else:
                parameter.mul_(5)
                if shape == "gpt2" and ("c_proj" in name or "wte" in name or "wpe" in name):
                    parameter.add_(0.03 * torch.randn(len(parameter), 1))
        if shape == "gpt2":
            hf.transformer.wpe.weight[0].mul_(8)
    model = load_model(hf, load_model("tiny").tokenizer)
    model.name = f"{shape}-shaped"
    return model


def activations_of(
    model: SubjectModel, name: str, convention: Convention, tokens: Int[Tensor, "row pos"]
) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
    """Inputs and targets of a dictionary that is trained under a convention."""
    kind, layer = name.split(".")[0], int(name.split(".")[1])
    if kind == "mlp":
        read = "resid_mid" if convention.norm == "none" else "mlp_in"
        write = "mlp_out" if convention.output == "after post-norm" else "mlp_raw_out"
    else:
        read = write = kind
    values = model.read(tokens, [Site(read, layer), Site(write, layer)])  # type: ignore[arg-type]
    keep = tokens != model.bos_token
    if convention.first_position == "left out":
        keep[:, 0] = False
    x, y = (values[Site(kind, layer)][keep] for kind in (read, write))  # type: ignore[arg-type]
    if kind == "mlp" and convention.norm == "bare":
        norm = model.norm("ln2", layer)
        assert norm is not None
        x = (x - norm.bias) / norm.gain
    if convention.centred:
        x = x - x.mean(-1, keepdim=True) if kind != "mlp" or convention.norm == "none" else x
        y = y - y.mean(-1, keepdim=True)
    return x, y


TRUTHS: dict[str, tuple[tuple[str, Convention, tuple[str, ...]], ...]] = {
    "gpt2": (
        ("mlp.1", Convention(bos="in front"), ("norm", "subtracted", "centred", "bos")),
        ("mlp.1", Convention(norm="bare"), ("norm",)),
        ("mlp.1", Convention(norm="none"), ("norm",)),
        ("mlp.1", Convention(subtracted="b_dec"), ("subtracted",)),
        ("mlp.1", Convention(norm="bare", centred=True), ("norm", "centred")),
        ("mlp.1", Convention(first_position="left out", bos="none"), ("first_position", "bos")),
        ("resid_post.1", Convention(first_position="left out", bos="none"), ("first_position",)),
        ("resid_post.1", Convention(first_position="read", bos="none"), ("first_position",)),
        ("resid_post.1", NATIVE, ("subtracted", "centred")),
        ("resid_post.1", Convention(centred=True), ("centred",)),
        ("resid_post.1", Convention(subtracted="b_dec"), ("subtracted",)),
        ("mlp_out.1", Convention(centred=True), ("centred",)),
    ),
    "gemma2": (
        ("mlp.1", NATIVE, ("norm", "output")),
        ("mlp.1", Convention(output="after post-norm"), ("norm", "output")),
        ("mlp.1", Convention(norm="none", output="after post-norm"), ("norm", "output")),
        ("mlp.1", Convention(norm="bare"), ("norm",)),
    ),
}
"""What is trained, under which convention, and what is declared wrongly of it."""


def trained(shape: str, n_tokens: int) -> Iterator[Trial]:
    """Dictionaries trained on a random model, each under its true convention."""
    model = random_model(shape)
    settings = DictionaryConfig(n_features=512, k=24, n_tokens=n_tokens, batch_size=512, lr=3e-3)
    cache: dict[str, Dictionary] = {}
    for name, true, fields in TRUTHS[shape]:
        bos = None if true.bos == "none" else model.bos_token
        taught = true.model_copy(update={"subtracted": "nothing", "bos": "unknown"})
        key = f"{name} {taught} {bos}"
        if key not in cache:
            n_rows = min(n_tokens, 60_000) // CONTEXT
            pairs = [
                activations_of(model, name, true, rows)
                for rows in random_tokens(n_rows, 1, bos).split(64)
            ]
            n_passes = -(-n_tokens // (n_rows * (CONTEXT - 1))) + 1
            kind: Any = name.split(".")[0]
            cache[key] = fit(settings, pairs * n_passes, site=kind, layer=1, progress=False)
        dictionary = replace(cache[key], convention=true)
        yield Trial(model, name, dictionary, random_tokens(16, 2, bos), wrongly(true, *fields))


def quiet(model: str, dictionaries: str) -> list[dict[str, Any]]:
    """False alarms among dictionaries that are as they are declared."""
    fits = measure_fits(load_model(model), load_dictionaries(dictionaries, sites=SITES))
    return [{"name": f.name, "fvu": f.fvu, "refused": f.verdict == "refused"} for f in fits]


def rounding(gain: float) -> dict[str, float]:
    """What folding a small gain does in float32: error of activations, relative to their size."""
    generator = torch.Generator().manual_seed(0)
    d, n = 768, 3072
    x = torch.randn(200, d, generator=generator)
    norm = Norm(torch.rand(d, generator=generator) + 0.5, torch.randn(d, generator=generator), True)
    norm.gain[0] = gain
    W_enc = torch.randn(d, n, generator=generator) / d**0.5
    bare = Transcoder(W_enc, W_enc.T, torch.zeros(n), torch.zeros(d), convention=BARE)
    folded = fold_convention(bare, norm)
    got = folded.encode(x * norm.gain + norm.bias)
    want = bare.to(dtype=torch.float64).encode(x.double())
    plain = bare.encode(x)
    size = want.abs().max()
    return {
        "gain": gain,
        "predicted": float(fold_error(norm).max()),
        "folded": float((got - want).abs().max() / size),
        "unfolded": float((plain - want).abs().max() / size),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter trainings, one layer")
    parser.add_argument("--more", nargs=2, action="append", default=[], help="MODEL DICTIONARIES")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n_tokens = 60_000 if options.quick else 200_000
    trials = [
        *tiny([2] if options.quick else None),
        *trained("gpt2", n_tokens),
        *trained("gemma2", n_tokens),
    ]
    right = [fit_of(trial, trial.dictionary) for trial in trials]
    rows = [row for trial in trials for row in rows_of(trial)]
    for row in rows:
        print(
            f"{row.model:14} {row.dictionary:13} {row.true:32} as {row.declared:40} "
            f"{row.fvu_right:6.3f} {row.fvu_wrong:8.3f} {'refused' if row.refused else '-':8}"
            f"{'named' if row.named else '-'}"
        )
    false_alarms = [f.reason for f in right if f.verdict == "refused"]
    more = {f"{m} {d}": quiet(m, d) for m, d in options.more}
    false_alarms += [f"{k} {f['name']}" for k, found in more.items() for f in found if f["refused"]]
    print(f"right ones refused: {len(false_alarms)} of {len(right) + sum(map(len, more.values()))}")
    summary = {
        "rows": [{k: v for k, v in asdict(row).items() if k != "reason"} for row in rows],
        "n_wrong": len(rows),
        "n_harmful": sum(row.harmful for row in rows),
        "n_harmful_refused": sum(row.harmful and row.refused for row in rows),
        "n_refused": sum(row.refused for row in rows),
        "n_named": sum(row.named for row in rows),
        "false_alarms": false_alarms,
        "more": more,
        "rounding": [rounding(gain) for gain in (1.0, 2.6e-4, 1e-5)],
    }
    print(json.dumps(summary, sort_keys=True))


if __name__ == "__main__":
    main()
