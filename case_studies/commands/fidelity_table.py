"""How `circuits train` and `circuits evaluate` show fidelity."""

from case_studies.commands.display import print_table
from circuits.fidelity import FidelityReport

__all__ = ["print_fidelity"]


def print_fidelity(report: FidelityReport) -> None:
    """Every dictionary alone, then all of each site at once; CE recovered against the mean."""
    columns = ["dictionary", "features", "L0", "FVU", "dead", "CE recovered (mean-ablated)"]
    rows = [
        [
            each.name,
            str(each.n_features),
            f"{each.l0:.1f}",
            f"{each.fvu:.3f}",
            f"{each.dead_share:.1%}",
            f"{each.cross_entropy.recovered_mean:.3f}",
        ]
        for each in report.dictionaries
    ]
    rows += [
        [f"all {site}", "", "", "", "", f"{losses.recovered_mean:.3f}"]
        for site, losses in report.together.items()
    ]
    print_table(f"{report.model}: fidelity on {report.n_tokens:,} tokens", columns, rows)
