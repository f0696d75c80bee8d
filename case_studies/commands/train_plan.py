"""How `circuits train --dry-run` shows a plan."""

from case_studies.commands.display import print_table
from circuits.training.plan import Plan

__all__ = ["duration", "print_plan", "size"]


def print_plan(plan: Plan) -> None:
    """What would be trained; what memory, disk and time that takes."""
    print_table(
        f"{plan.model} on {plan.device}: {plan.steps:,} steps, {plan.tokens:,} tokens presented, "
        f"of a text of {plan.text_tokens:,}",
        ("configuration", "dictionaries", "parameters"),
        [
            (name or "this run", str(number), f"{plan.parameters[name]:,}")
            for name, number in plan.dictionaries.items()
        ],
    )
    kept = "of the whole text" if plan.activations_kept else "of a part, read again every epoch"
    print_table(
        "Memory, besides the model",
        ("for", "size"),
        [
            ("parameters, gradients and optimiser", size(plan.optimiser_bytes)),
            (f"activations {kept}", size(plan.activation_bytes)),
            ("pre-activations of a step", size(plan.step_bytes)),
            ("checkpoints, on disk", size(plan.checkpoint_bytes)),
        ],
    )
    seconds = plan.seconds
    print_table(
        "Expected time on this machine as busy as it is now",
        ("for", "time"),
        [
            ("sampling the text", duration(seconds.text)),
            ("running the model", duration(seconds.model)),
            ("training", duration(seconds.training)),
            ("measuring fidelity", duration(seconds.fidelity)),
            ("all", duration(plan.seconds_total)),
        ],
    )


def size(n_bytes: int) -> str:
    """Bytes as people say them.

    Example:
        >>> size(250_000), size(3_400_000_000)
        ('0.2 MB', '3.4 GB')
    """
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(4.2), duration(150.0), duration(7300.0)
        ('4 s', '2 min 30 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
