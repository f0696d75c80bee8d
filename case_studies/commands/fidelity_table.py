"""How `circuits train` and `circuits evaluate` show fidelity: two tables of at most 100 columns."""

from case_studies.commands.display import print_table
from circuits.fidelity import CrossEntropy, DictionaryFidelity, FidelityReport, KLDivergence

__all__ = ["print_fidelity"]

_RECONSTRUCTION = (
    *("dictionary", "features", "L0", "FVU", "cosine", "|ŷ|/|y|", "bias"),
    *("dead", "> 1 %", "> 10 %"),
)
_LOSSES = (
    *("dictionary", "CE\nspliced", "CE mean-\nablated", "CE zero-\nablated"),
    *("CE recov.\nvs mean", "CE recov.\nvs zero", "KL\nspliced", "KL recov.\nvs mean"),
)


def print_fidelity(report: FidelityReport) -> None:
    """Every dictionary on its own activations; then alone, and all of a site, in the model."""
    print_table(
        f"{report.model}: reconstruction on {report.n_tokens:,} tokens. FVU = 1 - explained "
        "variance;\nbias = E|ŷ|²/E[y·ŷ]; > 1 %: share of features active on more of the tokens",
        _RECONSTRUCTION,
        [_reconstruction(each) for each in report.dictionaries],
    )
    clean = report.dictionaries[0].cross_entropy.clean
    rows = [_losses(d.name, d.cross_entropy, d.kl) for d in report.dictionaries]
    rows += [
        _losses(f"all {site}", losses, report.together_kl[site])
        for site, losses in report.together.items()
    ]
    print_table(
        f"{report.model} with dictionaries spliced in, nats over {report.n_predictions:,} tokens; "
        f"its own CE is {clean:.3f}.\nRecovered: 1 is the model, 0 is the site ablated to its mean "
        "(or to zero)",
        _LOSSES,
        rows,
    )


def _reconstruction(each: DictionaryFidelity) -> list[str]:
    shares = (each.dead_share, each.density.above_1_percent, each.density.above_10_percent)
    return [
        each.name,
        str(each.n_features),
        f"{each.l0:.1f}",
        f"{each.fvu:.3f}",
        f"{each.cosine:.3f}",
        f"{each.l2_ratio:.3f}",
        _or_dash(each.reconstruction_bias),
        *(f"{share:.1%}" for share in shares),
    ]


def _losses(name: str, losses: CrossEntropy, divergences: KLDivergence) -> list[str]:
    return [
        name,
        f"{losses.spliced:.3f}",
        f"{losses.mean_ablated:.3f}",
        f"{losses.zero_ablated:.3f}",
        _or_dash(losses.recovered_mean),
        _or_dash(losses.recovered_zero),
        f"{divergences.spliced:.3f}",
        _or_dash(divergences.recovered_mean),
    ]


def _or_dash(value: float | None) -> str:
    """Three decimals, or a dash where there is no such number."""
    return "-" if value is None else f"{value:.3f}"
