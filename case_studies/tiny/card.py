"""Measure `tiny` on what it never saw, and write its model card."""

from pathlib import Path
from typing import Any

import torch

from case_studies.tasks import GreaterThanTask, IoiTask, measure_behaviour
from case_studies.tiny.bigram import bigram_log_probabilities, bigram_loss
from case_studies.tiny.corpus import read_prose
from circuits import load_model
from circuits.fidelity import FidelityReport, cross_entropy
from circuits.files import write_json, write_text
from circuits.subject import SubjectModel
from circuits.training.text import pack_documents

__all__ = ["measure_tiny", "write_card"]


def _prose_losses(model: SubjectModel, prose: Path) -> dict[str, float]:
    """Loss of `tiny` and of a bigram model on wikitext-2's validation split, nats a token."""
    tokenizer = model.tokenizer
    assert tokenizer is not None, "tiny comes with its tokenizer"

    def rows(split: str) -> torch.Tensor:
        ids = tokenizer(read_prose(prose, split), add_special_tokens=False).input_ids
        return pack_documents(ids, model.n_ctx, model.bos_token, n_rows=10**6)

    held_out = rows("valid")
    total, count = 0.0, 0
    for batch in held_out.split(32):
        with torch.no_grad():
            logits, _ = model.run(batch)
        loss, n = cross_entropy(logits, batch.long(), torch.ones_like(batch, dtype=torch.bool))
        total, count = total + loss, count + n
    log_p = bigram_log_probabilities(rows("train"), model.d_vocab)
    return {"tiny": total / count, "bigram": bigram_loss(log_p, held_out), "n_tokens": count}


def measure_tiny(folder: Path, prose: Path, *, seed: int) -> dict[str, Any]:
    """Behaviour on held-out words and years, prose loss, and the dictionaries' fidelity."""
    model = load_model(str(folder))
    report = (folder / "dictionaries" / "metrics.json").read_text()
    return {
        "ioi": measure_behaviour(model, IoiTask(), 1000, seed).model_dump(),
        "greater_than": measure_behaviour(model, GreaterThanTask(), 970, seed).model_dump(),
        "prose": _prose_losses(model, prose),
        "fidelity": FidelityReport.model_validate_json(report).model_dump(),
    }


def write_card(folder: Path, prose: Path, *, seed: int) -> None:
    """Write `measurements.json` and `README.md` beside the model."""
    measured = measure_tiny(folder, prose, seed=seed)
    write_json(folder / "measurements.json", measured)
    write_text(folder / "README.md", _card(measured))


def _fidelity_table(fidelity: dict[str, Any]) -> str:
    lines = [
        "| dictionary | L0 | FVU | dead | CE recovered (mean ablation) |",
        "|---|---|---|---|---|",
    ]
    for record in fidelity["dictionaries"]:
        recovered = record["cross_entropy"]["recovered_mean"]
        lines.append(
            f"| {record['name']} | {record['l0']:.1f} | {record['fvu']:.3f} "
            f"| {record['dead_share']:.1%} | {recovered:.3f} |"
        )
    for site, losses in fidelity["together"].items():
        lines.append(f"| all {site} at once | | | | {losses['recovered_mean']:.3f} |")
    return "\n".join(lines)


def _card(measured: dict[str, Any]) -> str:
    ioi, greater, prose = measured["ioi"], measured["greater_than"], measured["prose"]
    return f"""# tiny

A GPT-2 of four layers (d_model 128, 4 heads, vocabulary 4,096, context 128) that does two tasks and
some English, with a transcoder on every MLP and an SAE on every residual stream. It exists so that
first runs, tests and documentation work at once, offline. It is a toy: nothing found in it is a
finding about larger models.

Trained on wikitext-2 (CC BY-SA 3.0) and on documents of both tasks, with names, nouns and start years
held out of the documents (`case_studies/tasks/word_lists.py`, `is_held_out_year`). A quarter of the
indirect-object documents are about random words in place of names, so that copying is general.

| held-out behaviour | value | 95 % interval | prompts |
|---|---|---|---|
| IOI, indirect object over subject | {ioi["success_rate"]:.3f} | {_interval(ioi["success_interval"])} | {ioi["n_prompts"]} |
| IOI, logit difference | {ioi["metric"]:.2f} | {_interval(ioi["metric_interval"])} | {ioi["n_prompts"]} |
| greater-than, probability difference | {greater["metric"]:.3f} | {_interval(greater["metric_interval"])} | {greater["n_prompts"]} |

Prose (wikitext-2 validation, {prose["n_tokens"]:,} tokens): {prose["tiny"]:.3f} nats a token; a bigram
model of the same training text has {prose["bigram"]:.3f}.

{_fidelity_table(measured["fidelity"])}

Made by `make tiny`; `measurements.json` and `dictionaries/config.json` hold the numbers and settings.
"""


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:.3f} to {high:.3f}"
