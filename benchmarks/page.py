"""The page of a circuit of 2,000 nodes and 20,000 edges: file size and time to first interaction.

    python -m benchmarks.page [--quick] [--nodes N --edges E] [--seed S]

A synthetic graph in the shape of a real one, every node with a token list and some with contexts,
opened in headless Chromium with nothing cached. Seconds from opening the file until a click on a
node has been answered (its neighbours lit and drawn), and of later clicks, fades and filters. One
JSON object in the last line. Needs Playwright and a Chromium.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Page, sync_playwright

from graphs.circuit_graph import CircuitGraph
from graphs.figure_order import count_crossings
from graphs.figure_place import place_shown
from graphs.figure_select import choose_labels, select_shown
from graphs.node_notes import NodeNotes
from graphs.page import CircuitPage, circuit_page
from tests.graphs.large_graphs import large_graph

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FULL, QUICK = (2000, 20_000), (1000, 4000)


def synthetic_graph(n_nodes: int, n_edges: int, *, seed: int) -> CircuitGraph:
    """`large_graph` with one token a position."""
    made = large_graph(n_nodes, n_edges, seed=seed)
    tokens = tuple(f" word{i}" for i in range(1 + max(node.pos for node in made.nodes)))
    metadata = made.metadata.model_copy(update={"tokens": tokens})
    return CircuitGraph(
        made.nodes, made.edge_target, made.edge_source, made.edge_attribution, metadata
    )


def synthetic_page(graph: CircuitGraph) -> CircuitPage:
    """The page with notes on every feature."""
    notes = {
        node.id: NodeNotes(
            label=f"reads {i % 97}",
            deembedding=tuple(f" token{i + k}" for k in range(6)),
            promoted=tuple(f" up{i + k}" for k in range(6)),
            suppressed=tuple(f" down{i + k}" for k in range(6)),
        )
        for i, node in enumerate(graph.nodes)
        if node.kind == "feature"
    }
    return circuit_page(graph, notes=notes, title="A large synthetic graph")


def crossings(graph: CircuitGraph, *, n_strongest: int) -> dict[str, int]:
    """Crossings among the strongest edges, with nodes of a cell by influence and by barycentre."""
    shown = select_shown(graph, graph.n_nodes, graph.n_edges)
    strongest = shown.edge_influence.argsort(descending=True, stable=True)[:n_strongest]
    source, target = graph.edge_source[strongest], graph.edge_target[strongest]
    labels, counts = choose_labels(shown, {}), {}
    for name, sweeps in (("by_influence", 0), ("by_barycentre", 8)):
        layout = place_shown(shown, labels, 640.0, 480.0, n_sweeps=sweeps)
        x, y = torch.tensor(layout.x), torch.tensor(layout.y)
        ends = torch.stack([x[source], y[source], x[target], y[target]], dim=-1)
        counts[name] = count_crossings(ends.numpy().astype(np.float64))
    return counts


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller graph, once")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--edges", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if asked.quick else FULL
    graph = synthetic_graph(asked.nodes or size[0], asked.edges or size[1], seed=asked.seed)
    start = time.perf_counter()
    page = synthetic_page(graph)
    made_in = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        page.write_html(path)
        n_bytes = path.stat().st_size
        runs = [_timed(path) for _ in range(asked.repeats or (1 if asked.quick else 3))]
    record = {
        "n_nodes": graph.n_nodes,
        "n_edges": graph.n_edges,
        "seed": asked.seed,
        "file_mb": round(n_bytes / 1e6, 2),
        "page_made_in_s": round(made_in, 2),
        "seconds": {k: round(statistics.median(run[k] for run in runs), 2) for k in runs[0]},
        "slowest": {k: round(max(run[k] for run in runs), 2) for k in runs[0]},
        "crossings": crossings(graph, n_strongest=2000),
        "load": [round(x, 1) for x in os.getloadavg()],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(record))


def _timed(path: Path) -> dict[str, float]:
    """Seconds of the first things a reader does, each until it has been painted."""
    found = next((name for name in map(shutil.which, BROWSERS) if name), None)
    if found is None:
        raise SystemExit(f"needs one of {', '.join(BROWSERS)} on the path")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto("about:blank")
        start = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        drawn = time.perf_counter() - start
        _click(page)
        first = time.perf_counter() - start
        seconds = {"drawn": drawn, "first_interaction": first}
        for name, action in {
            "clear": lambda: page.keyboard.press("Escape"),
            "threshold": lambda: page.locator("#threshold").press("ArrowLeft"),
            "search": lambda: page.fill("#search", "token12"),
        }.items():
            begin = time.perf_counter()
            action()
            _painted(page)
            seconds[name] = time.perf_counter() - begin
        browser.close()
    return seconds


def _click(page: Page) -> None:
    """Click the first node in sight that is a feature, and wait until it is lit and painted."""
    where: Any = page.evaluate(
        """() => {
            const box = document.getElementById("scroll").getBoundingClientRect();
            return window.circuit.shown().filter((id) => id.startsWith("mlp"))
                .map((id) => window.circuit.place(id))
                .find(([x, y]) => x > box.left + 90 && x < box.right - 20
                    && y > box.top + 20 && y < Math.min(box.bottom, innerHeight) - 20);
        }"""
    )
    page.mouse.click(*where)
    page.wait_for_selector("#edges-in", state="attached")
    _painted(page)


def _painted(page: Page) -> None:
    page.evaluate("new Promise((f) => requestAnimationFrame(() => setTimeout(f)))")


if __name__ == "__main__":
    main()
