"""The picture of a fidelity report: error and loss by dictionary, and how often features fire."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.fidelity import CrossEntropy, DictionaryFidelity, FidelityReport
from graphs.figure_style import KIND_STYLES, SIGN_STYLES

__all__ = ["fidelity_figure"]

_PANELS = (
    "Reconstruction: FVU (0 is perfect, 1 predicts the mean)",
    "In the model: CE recovered (1 is the model, 0 the ablation named)",
    "Density: share of a dictionary's features by how often they are active",
)
_PANEL_HEIGHT, _ROW_HEIGHT, _WIDTH = 250, 24, 1000


def fidelity_figure(report: FidelityReport, *, template: str = "plotly_white") -> go.Figure:
    """FVU, CE recovered against both ablations, and density histograms of every dictionary.

    Args:
        report: of one dictionary or many.
        template: name of a Plotly template.

    Returns:
        A figure sized for its content, in pixels. A density histogram is one row of a heat map, on
        the report's own bins; dead features are in none of them and stand beside the name.
    """
    n = len(report.dictionaries)
    heights = [_PANEL_HEIGHT, _PANEL_HEIGHT, max(_PANEL_HEIGHT, _ROW_HEIGHT * n)]
    figure = make_subplots(
        rows=3,
        row_heights=[height / sum(heights) for height in heights],
        subplot_titles=_PANELS,
        vertical_spacing=110 / (sum(heights) + 220),
    )
    figure.add_trace(_fvu_bars(report.dictionaries), row=1, col=1)
    for trace in _recovered_points(report):
        figure.add_trace(trace, row=2, col=1)
    figure.add_trace(_density_map(report.dictionaries), row=3, col=1)
    figure.update_yaxes(title="FVU", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="CE recovered", row=2, col=1)
    figure.update_xaxes(title="log10 of the share of tokens a feature is active on", row=3, col=1)
    figure.update_yaxes(autorange="reversed", row=3, col=1)
    figure.update_layout(
        template=template,
        title={"text": _finding(report), "x": 0, "xref": "paper"},
        legend={"y": 0.64, "title": {"text": "CE recovered against"}},
        width=_WIDTH,
        height=sum(heights) + 220,
        margin={"t": 110},
    )
    return figure


def _finding(report: FidelityReport) -> str:
    recovered = [d.cross_entropy.recovered_mean for d in report.dictionaries]
    spans = [
        _span("FVU", [d.fvu for d in report.dictionaries]),
        _span("CE recovered (mean ablation)", [r for r in recovered if r is not None]),
        _span("L0", [d.l0 for d in report.dictionaries], decimals=1),
    ]
    return (
        f"<b>{report.model}: {', '.join(s for s in spans if s)}</b><br>{len(report.dictionaries)} "
        f"dictionaries, each alone in the model; {report.n_tokens:,} tokens"
    )


def _span(name: str, values: Sequence[float], decimals: int = 3) -> str:
    if not values:
        return ""
    low, high = (f"{value:.{decimals}f}" for value in (min(values), max(values)))
    return f"{name} {low}" if low == high else f"{name} {low} to {high}"


def _fvu_bars(dictionaries: Sequence[DictionaryFidelity]) -> go.Bar:
    return go.Bar(
        x=[d.name for d in dictionaries],
        y=[d.fvu for d in dictionaries],
        marker={"color": KIND_STYLES["feature"].color},
        customdata=[(d.l0, d.n_features, d.cosine, d.l2_ratio) for d in dictionaries],
        hovertemplate="%{x}: FVU %{y:.4f}<br>L0 %{customdata[0]:.1f} of %{customdata[1]:,} features"
        "<br>cosine %{customdata[2]:.3f}, |ŷ|/|y| %{customdata[3]:.3f}<extra></extra>",
        showlegend=False,
        name="FVU",
    )


def _recovered_points(report: FidelityReport) -> list[go.Scatter]:
    losses: dict[str, CrossEntropy] = {d.name: d.cross_entropy for d in report.dictionaries}
    losses |= {f"all {site}": together for site, together in report.together.items()}
    kinds = (
        ("mean ablation", "recovered_mean", "circle", SIGN_STYLES[1].color),
        ("zero ablation", "recovered_zero", "diamond", SIGN_STYLES[-1].color),
    )
    return [
        go.Scatter(
            x=list(losses),
            y=[getattr(each, field) for each in losses.values()],
            mode="markers",
            marker={"symbol": symbol, "color": color, "size": 9},
            name=name,
            hovertemplate=f"%{{x}}: CE recovered against {name} %{{y:.4f}}<extra></extra>",
        )
        for name, field, symbol, color in kinds
    ]


def _density_map(dictionaries: Sequence[DictionaryFidelity]) -> go.Heatmap:
    edges = dictionaries[0].density.log10_edges
    used = [i for d in dictionaries for i, n in enumerate(d.density.counts) if n]
    bins = range(min(used, default=0), len(edges) - 1)
    return go.Heatmap(
        x=[edges[i] for i in (*bins, len(edges) - 1)],
        y=[f"{d.name} ({d.dead_share:.1%} dead)" for d in dictionaries],
        z=[[d.density.counts[i] / d.n_features for i in bins] for d in dictionaries],
        customdata=[[d.density.counts[i] for i in bins] for d in dictionaries],
        colorscale="Cividis",
        zmin=0,
        colorbar={"title": "share of<br>features", "len": 0.3, "y": 0, "yanchor": "bottom"},
        hovertemplate="%{y}<br>log10 density %{x:.3f}: %{customdata:,} features (%{z:.1%})"
        "<extra></extra>",
    )
