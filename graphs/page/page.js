// The page of a circuit. Reads the record beside it; text from it goes into text nodes only.
"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const record = JSON.parse($("record").textContent);
const { axes, style, groups } = record;

// ---- the record, unpacked -------------------------------------------------------------------
function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Type(bytes.buffer);
}
const node = {
  ...record.nodes,
  activation: unpack(record.nodes.activation, Float64Array),
  influence: unpack(record.nodes.influence, Float64Array),
  size: unpack(record.nodes.size, Float32Array),
  x: unpack(record.nodes.x, Float32Array),
  y: unpack(record.nodes.y, Float32Array),
};
const edge = {
  source: unpack(record.edges.source, Uint32Array),
  target: unpack(record.edges.target, Uint32Array),
  attribution: unpack(record.edges.attribution, Float32Array),
  influence: unpack(record.edges.influence, Float32Array),
  factors: record.edges.factors,
};
const total = unpack(record.edges.total, Float64Array);
const nNodes = node.id.length, nEdges = edge.source.length, nUnits = nNodes + groups.length;
const rowOf = new Map(node.id.map((id, i) => [id, i]));
const KINDS = style.kinds.map((k) => k.kind);
const ALWAYS = new Set(["token", "error", "output"]); // whatever the threshold is

// Shares of every row, as `normalise_rows` of graphs/influence.py: N[t, s] = |A[t, s]| / total[t].
const share = edge.attribution.map((a, e) => Math.abs(a) / Math.max(total[edge.target[e]], 1e-10));

// Kahn's order: sources before their targets.
function topologicalRank() {
  const waiting = new Uint32Array(nNodes), out = Array.from({ length: nNodes }, () => []);
  for (let e = 0; e < nEdges; e++) { waiting[edge.target[e]]++; out[edge.source[e]].push(edge.target[e]); }
  const queue = [], rank = new Uint32Array(nNodes);
  for (let i = 0; i < nNodes; i++) if (!waiting[i]) queue.push(i);
  for (let q = 0; q < queue.length; q++) {
    rank[queue[q]] = q;
    for (const t of out[queue[q]]) if (!--waiting[t]) queue.push(t);
  }
  return rank;
}
const rank = topologicalRank();
const everyEdge = Array.from({ length: nEdges }, (_, e) => e);
const bySource = Uint32Array.from(everyEdge).sort((a, b) => rank[edge.source[a]] - rank[edge.source[b]] || a - b);
const byTarget = Uint32Array.from(everyEdge).sort((a, b) => rank[edge.target[b]] - rank[edge.target[a]] || a - b);

// Share of the summed score that comes before each item, strongest first: kept while < threshold.
function before(score) {
  const order = Array.from(score.keys()).sort((a, b) => score[b] - score[a] || a - b);
  const sum = order.reduce((s, i) => s + score[i], 0), cut = new Float64Array(score.length);
  let passed = 0;
  for (const i of order) { cut[i] = sum > 0 ? passed / sum : 0; passed += score[i]; }
  return cut;
}
// All of it includes what carries nothing.
const isWithin = (cut) => chosen.share >= 1 || cut < chosen.share - 1e-12;
const nodeCut = before(node.influence), edgeCut = before(edge.influence);

// ---- what the reader chose, and what follows from it ------------------------------------------
const START = () => ({
  share: record.stops ? record.stops[record.stops.length - 1].share : 1,
  hidden: new Set(), signs: new Set([1, -1]),
  layer: [-1, axes.n_layers], pos: [0, axes.tokens.length - 1],
  query: "", folded: new Set(),
});
let chosen = START();
let selected = null, cursor = null; // units: a node's row, or nNodes + a group's number
let view = null, lit = null;

const isGroup = (unit) => unit >= nNodes;
const members = (unit) => (isGroup(unit) ? groups[unit - nNodes].rows : [unit]);
const isInput = (unit) => !isGroup(unit) && ["token", "position"].includes(node.kind[unit]);
function nameOf(unit) {
  if (isGroup(unit)) return groups[unit - nNodes].name;
  return isInput(unit) ? `${node.kind[unit]} ${tokenAt(node.pos[unit])}` : node.name[unit];
}
const idOf = (unit) => (isGroup(unit) ? `group ${groups[unit - nNodes].name}` : node.id[unit]);
const mean = (rows, column) => rows.reduce((s, i) => s + column[i], 0) / rows.length;

function computeView() {
  const isShown = new Uint8Array(nNodes), unitOf = Int32Array.from({ length: nNodes }, (_, i) => i);
  for (let i = 0; i < nNodes; i++) {
    const kind = node.kind[i], pos = node.pos[i];
    isShown[i] = !chosen.hidden.has(kind)
      && (ALWAYS.has(kind) || isWithin(nodeCut[i]))
      && node.layer[i] >= chosen.layer[0] && node.layer[i] <= chosen.layer[1]
      && (pos < 0 || (pos >= chosen.pos[0] && pos <= chosen.pos[1]));
  }
  for (const g of chosen.folded) for (const i of groups[g].rows) unitOf[i] = nNodes + g;
  const passes = new Uint8Array(nEdges), drawnOf = new Int32Array(nEdges).fill(-1), seen = new Map();
  let drawn = { source: [], target: [], attribution: [], influence: [], rows: [] };
  for (let e = 0; e < nEdges; e++) {
    if (!isWithin(edgeCut[e]) || !isShown[edge.source[e]] || !isShown[edge.target[e]]) continue;
    passes[e] = 1;
    const s = unitOf[edge.source[e]], t = unitOf[edge.target[e]];
    if (s === t) continue; // inside a folded group
    const key = s * nUnits + t;
    let d = chosen.folded.size ? seen.get(key) : undefined;
    if (d === undefined) {
      d = drawn.source.length;
      seen.set(key, d);
      drawn.source.push(s); drawn.target.push(t); drawn.attribution.push(0); drawn.influence.push(0); drawn.rows.push([]);
    }
    drawn.attribution[d] += edge.attribution[e];
    drawn.influence[d] += edge.influence[e];
    drawn.rows[d].push(e);
    drawnOf[e] = d;
  }
  const wanted = drawn.attribution.map((a) => chosen.signs.has(a < 0 ? -1 : 1));
  const place = new Int32Array(wanted.length).fill(-1);
  let n = 0;
  wanted.forEach((keep, d) => { if (keep) place[d] = n++; });
  for (let e = 0; e < nEdges; e++) {
    if (drawnOf[e] < 0) continue;
    drawnOf[e] = place[drawnOf[e]];
    if (drawnOf[e] < 0) passes[e] = 0;
  }
  drawn = Object.fromEntries(Object.entries(drawn).map(([k, v]) => [k, v.filter((_, d) => wanted[d])]));
  const units = [], x = new Float64Array(nUnits), y = new Float64Array(nUnits), influence = new Float64Array(nUnits);
  for (let i = 0; i < nNodes; i++) {
    if (isShown[i] && unitOf[i] === i) units.push(i);
    x[i] = node.x[i]; y[i] = node.y[i]; influence[i] = node.influence[i];
  }
  groups.forEach((group, g) => {
    x[nNodes + g] = mean(group.rows, node.x); y[nNodes + g] = mean(group.rows, node.y);
    influence[nNodes + g] = group.rows.reduce((s, i) => s + node.influence[i], 0);
    if (chosen.folded.has(g) && group.rows.some((i) => isShown[i])) units.push(nNodes + g);
  });
  const maxInfluence = drawn.influence.reduce((m, v) => Math.max(m, v), 0);
  return { isShown, unitOf, passes, drawn, drawnOf, units, x, y, influence, maxInfluence, isUnit: new Set(units) };
}

// What feeds a unit and what it feeds, over all shown paths: w N + w N^2 + ... both ways, with w
// spread evenly over the unit's members. A folded group has the sum of its members' strengths.
function computeLit(unit) {
  const rows = members(unit).filter((i) => view.isShown[i]);
  const up = new Float64Array(nNodes), down = new Float64Array(nNodes), w = new Float64Array(nNodes);
  const onEdge = new Float64Array(view.drawn.source.length);
  for (const i of rows) w[i] = 1 / rows.length;
  const add = (e, flow) => { if (view.drawnOf[e] >= 0) onEdge[view.drawnOf[e]] += flow; };
  for (const e of byTarget) {
    if (!view.passes[e]) continue;
    const flow = share[e] * (up[edge.target[e]] + w[edge.target[e]]);
    if (flow > 0) { up[edge.source[e]] += flow; add(e, flow); }
  }
  for (const e of bySource) {
    if (!view.passes[e]) continue;
    const flow = share[e] * (down[edge.source[e]] + w[edge.source[e]]);
    if (flow > 0) { down[edge.target[e]] += flow; add(e, flow); }
  }
  const feeds = new Float64Array(nUnits), fed = new Float64Array(nUnits);
  for (let i = 0; i < nNodes; i++) {
    if (!view.isShown[i] || view.unitOf[i] === unit) continue;
    feeds[view.unitOf[i]] += up[i]; fed[view.unitOf[i]] += down[i];
  }
  return { feeds, fed, onEdge, strength: feeds.map((v, i) => Math.max(v, fed[i])) };
}

function textOf(i) {
  const notes = node.notes[i] || {};
  const lists = [notes.deembedding, notes.promoted, notes.suppressed].flatMap((list) => list || []);
  const token = node.pos[i] >= 0 ? axes.tokens[node.pos[i]] : "";
  return [node.id[i], node.name[i], token, ...lists].join("\n").toLowerCase();
}
const texts = node.id.map((_, i) => textOf(i));
function findMatches() {
  const query = chosen.query.toLowerCase();
  if (!query.trim()) return null;
  return view.units.filter((u) =>
    (isGroup(u) && nameOf(u).toLowerCase().includes(query)) || members(u).some((i) => view.isShown[i] && texts[i].includes(query)));
}
let matches = null;

// ---- the picture --------------------------------------------------------------------------------
const plot = $("plot");
const isDark = () => document.documentElement.dataset.theme === "dark";
const tint = (of) => (isDark() && of.on_dark) || of.color;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const GROUP = { kind: "group", legend: "folded group", symbol: "hexagon2", color: "#CC79A7", border: "white" };
const DASH = { 1: "solid", "-1": "5px,3px" };

// Cubic curves that leave a source upwards and reach a target from below, as `edge_curves`.
function handles(d) {
  const s = view.drawn.source[d], t = view.drawn.target[d];
  const x0 = view.x[s], y0 = view.y[s], x3 = view.x[t], y3 = view.y[t], rise = y3 - y0;
  const swing = style.bow * rise * Math.exp(-Math.abs(x3 - x0) / 40);
  return [x0, y0, x0 - swing, y0 + rise / 2, x3 - swing, y3 - rise / 2, x3, y3];
}
function along([x0, y0, x1, y1, x2, y2, x3, y3], t) {
  const u = 1 - t, a = u * u * u, b = 3 * u * u * t, c = 3 * u * t * t, d = t * t * t;
  return [a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3];
}
const pointOf = (d, k, n) => along(handles(d), k / (n - 1));
function bucketOf(value, most) {
  if (!(most > 0)) return 0;
  let b = 0;
  style.buckets.forEach((bucket, k) => { if (value / most >= bucket.floor) b = k; });
  return b;
}
// The same edges as Plotly traces, for the picture files.
function edgeTraces(strengths, most, dim, floor) {
  return bucketed(strengths, most).flatMap((bySign, b) => bySign.map((drawn, s) => {
    const x = [], y = [], bucket = style.buckets[b], sign = style.signs[s];
    for (const d of drawn) {
      for (let k = 0; k < style.points; k++) {
        const [px, py] = style.points > 2 ? pointOf(d, k, style.points) : handles(d).slice(6 * k, 6 * k + 2);
        x.push(px); y.push(py);
      }
      x.push(null); y.push(null);
    }
    return {
      type: "scatter", mode: "lines", x, y, hoverinfo: "skip", name: sign.legend, legendgroup: `edges${sign.sign}`,
      line: { color: tint(sign), width: bucket.width, dash: DASH[sign.sign] }, opacity: Math.max(floor, bucket.opacity) * dim,
      legendrank: 2000 - sign.sign,
    };
  }));
}
const FADED = 0.12;
// Full where nothing is chosen; else by strength over all paths, or whether the search found it.
function opacities(units) {
  const most = lit ? lit.strength.reduce((m, v) => Math.max(m, v), 0) : 0;
  const found = matches && new Set(matches);
  return units.map((u) => {
    if (lit) return u === selected ? 1 : lit.strength[u] > 0 ? 0.5 + 0.5 * Math.sqrt(lit.strength[u] / most) : FADED;
    return found && !found.has(u) ? FADED : 1;
  });
}
const sizeOf = (u) => (isGroup(u) ? 22 : node.size[u]);
function nodeTrace(kind, units) {
  return {
    type: "scatter", mode: "markers", hoverinfo: "skip", cliponaxis: false, meta: "nodes",
    name: kind.legend, legendgroup: kind.kind, showlegend: false,
    x: units.map((u) => view.x[u]), y: units.map((u) => view.y[u]), customdata: units.map(idOf),
    marker: {
      symbol: kind.symbol, color: tint(kind), opacity: opacities(units), size: units.map(sizeOf),
      line: { color: kind.border === "white" ? css("--paper") : kind.border, width: 1 },
    },
  };
}
// Plotly reads a few tags in its texts; what comes from data must not be one.
const escapeForPlotly = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const kindOf = (u) => (isGroup(u) ? "group" : node.kind[u]);
const nodeTraces = () => [...style.kinds, GROUP].map((k) => nodeTrace(k, view.units.filter((u) => kindOf(u) === k.kind)));
const labelled = () => view.units.filter((u) => isGroup(u) || node.label[u]);
const inkOf = (opacity) => opacity.map((o) => (o < 0.3 ? "rgba(128,128,128,0.35)" : css("--ink")));
function labelTrace() {
  const units = labelled();
  return {
    type: "scatter", mode: "text", hoverinfo: "skip", cliponaxis: false, meta: "labels", showlegend: false,
    x: units.map((u) => view.x[u]), y: units.map((u) => view.y[u]),
    text: units.map((u) => "\u00a0".repeat(1 + Math.round(sizeOf(u) / 6)) + escapeForPlotly(isGroup(u) ? nameOf(u) : node.label[u])),
    textposition: "middle right", textfont: { size: 11, color: inkOf(opacities(units)) },
  };
}
const faded = () => (lit ? 0.15 : matches ? 0.4 : 1);
const strongest = (values) => values.reduce((m, v) => Math.max(m, v), 0);

// Edges lie on a canvas below Plotly's nodes: tens of thousands of them are then drawn at once.
const canvas = $("edges");
function drawEdges() {
  const { xaxis, yaxis, width, height } = plot._fullLayout, ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.save();
  pen.beginPath(); pen.rect(xaxis._offset, yaxis._offset, xaxis._length, yaxis._length); pen.clip();
  strokeEdges(pen, bucketed(view.drawn.influence, view.maxInfluence), faded(), 0);
  if (lit) strokeEdges(pen, bucketed(lit.onEdge, strongest(lit.onEdge)), 1, LIT_FLOOR);
  pen.restore();
  pen.globalAlpha = 1;
  if (cursor !== null && cursor !== selected) ring(pen, cursor, [3, 3]);
  if (selected !== null) ring(pen, selected, []);
}
// Drawn edges by strength and sign; what has no strength is left out where others have some.
function bucketed(strengths, most) {
  const found = style.buckets.map(() => style.signs.map(() => []));
  view.drawn.attribution.forEach((a, d) => {
    if (most > 0 && !(strengths[d] > 0) && strengths === (lit && lit.onEdge)) return;
    found[bucketOf(strengths[d], most)][style.signs.findIndex((k) => k.sign < 0 === a < 0)].push(d);
  });
  return found;
}
const LIT_FLOOR = 0.2, CHUNK = 40;
function strokeEdges(pen, found, dim, floor) {
  const { xaxis, yaxis } = plot._fullLayout;
  const sx = (x) => xaxis._offset + xaxis.l2p(x), sy = (y) => yaxis._offset + yaxis.l2p(y);
  found.forEach((bySign, b) => bySign.forEach((drawn, s) => {
    const bucket = style.buckets[b], sign = style.signs[s];
    pen.strokeStyle = tint(sign); pen.lineWidth = bucket.width;
    pen.globalAlpha = Math.max(floor, bucket.opacity) * dim;
    pen.setLineDash(sign.sign < 0 ? [5, 3] : []);
    drawn.forEach((d, k) => {
      if (k % CHUNK === 0) pen.beginPath();
      const [x0, y0, x1, y1, x2, y2, x3, y3] = handles(d);
      pen.moveTo(sx(x0), sy(y0));
      if (style.points > 2) pen.bezierCurveTo(sx(x1), sy(y1), sx(x2), sy(y2), sx(x3), sy(y3));
      else pen.lineTo(sx(x3), sy(y3));
      if (k % CHUNK === CHUNK - 1 || k === drawn.length - 1) pen.stroke();
    });
  }));
  pen.setLineDash([]);
}
function ring(pen, u, dash) {
  const { xaxis, yaxis } = plot._fullLayout;
  pen.strokeStyle = css("--mark"); pen.lineWidth = 2.5; pen.setLineDash(dash);
  pen.beginPath();
  pen.arc(xaxis._offset + xaxis.l2p(view.x[u]), yaxis._offset + yaxis.l2p(view.y[u]), sizeOf(u) / 2 + 5, 0, 2 * Math.PI);
  pen.stroke(); pen.setLineDash([]);
}
const MARGIN = { l: 74, r: 14, t: 34, b: 58 };
let isFit = Math.min(...room()) >= 0.6; // a large circuit keeps its size, and is scrolled
function room() {
  const wide = $("scroll").clientWidth - MARGIN.l - MARGIN.r - 4, high = Math.max(420, innerHeight - 190) - MARGIN.t - MARGIN.b;
  return [Math.min(1, wide / axes.width), Math.min(1, high / axes.height)];
}
function frame() {
  const ink = css("--ink"), [wide, high] = isFit ? room() : [1, 1];
  const layout = structuredClone(axes.frame);
  layout.width = Math.round(axes.width * wide) + MARGIN.l + MARGIN.r;
  layout.height = Math.round(axes.height * high) + MARGIN.t + MARGIN.b;
  Object.assign(layout, {
    margin: MARGIN, showlegend: false, dragmode: "pan", hovermode: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: ink }, uirevision: `fit ${isFit}`,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12 },
  });
  layout.xaxis.linecolor = layout.yaxis.linecolor = css("--line");
  return layout;
}
const CONFIG = { displaylogo: false, scrollZoom: false, doubleClick: "reset", plotlyServerURL: "", showSendToCloud: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "toImage"] };
function draw() {
  return Plotly.react(plot, [...nodeTraces(), labelTrace()], frame(), CONFIG).then(drawEdges);
}
// Only what a choice changes. Plotly's own restyle lays everything out again, which takes long with
// thousands of nodes; its points carry their numbers, so they can be faded in place.
function relight() {
  drawEdges();
  const kinds = [...style.kinds, GROUP].map((k) => opacities(view.units.filter((u) => kindOf(u) === k.kind)));
  kinds.forEach((values, k) => { plot.data[k].marker.opacity = values; });
  for (const path of plot.querySelectorAll(".scatterlayer path.point")) {
    const point = path.__data__, { index } = path.closest("g.trace").__data__[0].trace;
    point.mo = kinds[index][point.i];
    path.style.opacity = point.mo;
  }
  const inks = inkOf(opacities(labelled()));
  plot.data[kinds.length].textfont.color = inks;
  for (const text of plot.querySelectorAll(".scatterlayer .textpoint text")) {
    const point = text.__data__ ?? text.parentNode.__data__;
    point.tc = text.style.fill = inks[point.i];
  }
  return Promise.resolve();
}

// ---- words ------------------------------------------------------------------------------------
function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}
const visible = (token) => token.replaceAll("\r", "").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
const number = (value) => Number(value).toPrecision(4).replace("-", "−");
const signed = (value) => (value < 0 ? "" : "+") + number(value);
const percent = (value) => (value > 0 && value < 0.0005 ? "<0.1 %" : `${(100 * value).toFixed(1)} %`);
const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const tokenAt = (pos) => (pos >= 0 && pos < axes.tokens.length ? `“${visible(axes.tokens[pos])}”` : "all tokens");

function placeOf(i) {
  const where = node.pos[i] >= 0 ? `token ${node.pos[i]} ${tokenAt(node.pos[i])}` : "all tokens";
  if (node.kind[i] === "feature") return `feature ${node.feature[i]} of ${node.site[i]} in layer ${node.layer[i]}, ${where}`;
  return `${style.kinds[KINDS.indexOf(node.kind[i])].legend}, ${where}`;
}
function tokenList(name, list) {
  return list && list.length ? [el("dt", {}, name), el("dd", {}, ...list.map((t) => el("span", { class: "token" }, visible(t))))] : [];
}
function contextLine(context) {
  const most = Math.max(...context.values, 1e-12);
  return el("div", { class: "context" }, ...context.tokens.map((t, k) => {
    const weight = Math.max(0, context.values[k]) / most;
    const mark = el("span", { title: `activation ${number(context.values[k])}` }, visible(t));
    if (weight > 0) mark.style.background = `rgba(var(--shade), ${(0.1 + 0.5 * weight).toFixed(2)})`;
    if (weight === 1) mark.style.textDecoration = "underline";
    return mark;
  }));
}
function factorTable(e) {
  const found = edge.factors[e];
  if (!found) return null;
  const rows = found.paths.slice(0, 8).map((p) => el("tr", {}, el("td", {}, p.through),
    el("td", {}, number(p.dependent)), el("td", {}, signed(p.weight) + (p.invariant ? "" : " *")), el("td", {}, signed(p.value))));
  const others = found.paths.slice(8);
  if (others.length) rows.push(el("tr", {}, el("td", {}, `${others.length} more`), el("td"), el("td"),
    el("td", {}, signed(others.reduce((s, p) => s + p.value, 0)))));
  rows.push(el("tr", {}, el("td", {}, "several heads, skips"), el("td"), el("td"), el("td", {}, signed(found.remainder))));
  return el("table", {}, el("tr", {}, ...["path", "this prompt ×", "weights", "= value"].map((h) => el("th", {}, h))), ...rows);
}
function edgeWords(d) {
  const s = view.drawn.source[d], t = view.drawn.target[d], rows = view.drawn.rows[d];
  return [
    el("b", {}, `${nameOf(s)} → ${nameOf(t)}`), el("div", {}, `${idOf(s)} → ${idOf(t)}`),
    el("div", {}, `attribution ${signed(view.drawn.attribution[d])} (${view.drawn.attribution[d] < 0 ? "lowers" : "raises"} its target)`),
    el("div", {}, `influence ${percent(view.drawn.influence[d])} of the output`),
    lit && lit.onEdge[d] > 0 ? el("div", {}, `on the paths of ${nameOf(selected)}: ${percent(lit.onEdge[d])}`) : null,
    rows.length > 1 ? el("div", {}, `sum of ${rows.length} edges`) : factorTable(rows[0]),
  ];
}
function nodeWords(u) {
  if (isGroup(u)) return [el("b", {}, nameOf(u)), el("div", {}, `group of ${count(members(u).length, "node")}`), el("div", {}, `influence ${percent(view.influence[u])} (summed)`)];
  const notes = node.notes[u] || {};
  const line = (name, list) => (list && list.length ? el("div", {}, `${name}: ${list.map((t) => `“${visible(t)}”`).join(" ")}`) : null);
  return [
    el("b", {}, nameOf(u)), el("div", {}, placeOf(u)),
    ["feature", "output"].includes(node.kind[u]) ? el("div", {}, `${node.kind[u] === "feature" ? "activation" : "value"} ${number(node.activation[u])}`) : null,
    node.kind[u] === "output" ? null : el("div", {}, `influence ${percent(node.influence[u])} of the output`),
    lit && lit.feeds[u] > 0 ? el("div", {}, `${percent(lit.feeds[u])} of what feeds ${nameOf(selected)}`) : null,
    lit && lit.fed[u] > 0 ? el("div", {}, `${percent(lit.fed[u])} of its input comes from ${nameOf(selected)}`) : null,
    line("reads (de-embedding)", notes.deembedding), line("promotes", notes.promoted), line("suppresses", notes.suppressed),
  ];
}
const N_LISTED = 12;
function edgesOf(u, end) {
  const found = [];
  view.drawn[end].forEach((unit, d) => { if (unit === u) found.push(d); });
  return found.sort((a, b) => Math.abs(view.drawn.attribution[b]) - Math.abs(view.drawn.attribution[a]) || a - b);
}
function edgeList(u, end) {
  const other = end === "target" ? "source" : "target", all = edgesOf(u, end);
  const items = all.slice(0, N_LISTED).map((d) => {
    const to = view.drawn[other][d], details = view.drawn.rows[d].length === 1 ? factorTable(view.drawn.rows[d][0]) : null;
    return el("li", {},
      el("button", { type: "button", "data-unit": idOf(to), onclick: () => select(to) }, nameOf(to),
        isGroup(to) || isInput(to) ? "" : ` ${tokenAt(node.pos[to])}`, el("span", { class: "number" }, signed(view.drawn.attribution[d]))),
      details && el("details", {}, el("summary", {}, "factors"), details));
  });
  const more = all.length > N_LISTED ? `, strongest ${N_LISTED}` : "";
  return [el("h2", {}, `${end === "target" ? "In" : "Out"}: ${count(all.length, "edge")}${more} (attribution)`),
    el("ul", { class: "links", id: end === "target" ? "edges-in" : "edges-out" }, ...items)];
}
function fillSelected() {
  const box = $("selected");
  if (selected === null) {
    box.replaceChildren(el("h2", {}, "No node selected"), el("p", {}, "Click a node to light what feeds it and what it feeds, over all paths. Click it again, or press Escape, to clear."));
    return;
  }
  const u = selected, fields = [];
  const add = (name, value) => fields.push(el("dt", {}, name), el("dd", {}, value));
  if (isGroup(u)) {
    add("group", count(members(u).length, "node"));
    add("members", members(u).map((i) => node.id[i]).join(", "));
    add("influence", `${percent(view.influence[u])} of the output, summed`);
  } else {
    add("id", node.id[u]); add("what", placeOf(u));
    if (["feature", "output"].includes(node.kind[u])) add(node.kind[u] === "feature" ? "activation" : "value", number(node.activation[u]));
    if (node.kind[u] !== "output") add("influence", `${percent(node.influence[u])} of the output`);
    const notes = node.notes[u] || {};
    fields.push(...tokenList("reads (de-embedding)", notes.deembedding), ...tokenList("promotes", notes.promoted), ...tokenList("suppresses", notes.suppressed));
  }
  const contexts = (!isGroup(u) && node.contexts[u]) || [];
  box.replaceChildren(el("h2", {}, nameOf(u)), el("dl", {}, ...fields),
    ...(contexts.length ? [el("h2", {}, "Active in"), ...contexts.map(contextLine)] : []),
    ...edgeList(u, "target"), ...edgeList(u, "source"));
}
function fillProof() {
  const rows = [["model", record.model], ["output", record.target], ...record.proof.filter(([k]) => k !== "model")];
  $("proof").replaceChildren(el("h2", {}, record.proof.length ? "Proof" : "Not proved: no proof came with this graph"),
    el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    ...(record.command ? [el("h2", {}, "Made by"), el("code", { class: "command" }, record.command)] : []));
}
function fillCounts() {
  const all = {}, now = {};
  for (let i = 0; i < nNodes; i++) {
    all[node.kind[i]] = (all[node.kind[i]] || 0) + 1;
    now[node.kind[i]] = (now[node.kind[i]] || 0) + view.isShown[i];
  }
  for (const kind of KINDS) if ($(`count-${kind}`)) $(`count-${kind}`).textContent = now[kind] === all[kind] ? `${all[kind]}` : `${now[kind]} of ${all[kind]}`;
  const bySign = { 1: 0, "-1": 0 };
  for (const a of view.drawn.attribution) bySign[a < 0 ? -1 : 1]++;
  for (const s of [1, -1]) $(`count-sign${s}`).textContent = bySign[s].toLocaleString("en");
  const nShown = view.isShown.reduce((s, v) => s + v, 0);
  let words = `${nShown.toLocaleString("en")} of ${count(nNodes, "node")}, ${view.drawn.source.length.toLocaleString("en")} of ${count(nEdges, "edge")} shown`;
  if (lit) {
    const n = (strengths) => view.units.filter((u) => strengths[u] > 0).length;
    words += `; ${nameOf(selected)}: ${count(n(lit.feeds), "node")} ${n(lit.feeds) === 1 ? "feeds" : "feed"} it, it feeds ${n(lit.fed)}`;
  } else if (cursor !== null) words += `; at ${nameOf(cursor)} (${idOf(cursor)}), Enter selects`;
  $("status").textContent = words;
  const hidden = chosen.hidden.has("error") ? ", hidden by you" : "";
  $("errors").textContent = all.error || record.error_share > 0
    ? `Errors, what the dictionaries missed, carry ${percent(record.error_share)} of the influence${hidden}; the threshold never hides them.`
    : "No error nodes in this graph.";
}
function fillMatches() {
  $("matches").textContent = matches ? `${matches.length} found` : "";
  $("match-list").replaceChildren(...(matches || []).slice(0, 8).map((u) => el("li", {},
    el("button", { type: "button", onclick: () => select(u) }, nameOf(u), el("span", { class: "number" }, isGroup(u) || isInput(u) ? "" : tokenAt(node.pos[u]))))));
}
function fillThreshold() {
  const stop = record.stops && record.stops[$("threshold").value];
  const nFree = view.units.length;
  $("threshold-text").textContent = stop
    ? `${percent(stop.share)}: faithfulness ${stop.value.toFixed(3)} [${stop.low.toFixed(3)}, ${stop.high.toFixed(3)}]`
    : `${percent(chosen.share)}: ${count(nFree, "node")}`;
  $("threshold").setAttribute("aria-valuetext", $("threshold-text").textContent);
}

// ---- what the reader does -----------------------------------------------------------------------
function refresh(isNewView) {
  if (isNewView) view = computeView();
  if (selected !== null && !view.isUnit.has(selected)) selected = null;
  if (cursor !== null && !view.isUnit.has(cursor)) cursor = null;
  lit = selected === null ? null : computeLit(selected);
  matches = findMatches();
  fillSelected(); fillCounts(); fillMatches(); fillThreshold();
  $("tip").hidden = true;
  return isNewView ? draw() : relight();
}
function select(unit) {
  selected = unit !== null && unit === selected ? null : unit;
  cursor = selected === null ? cursor : selected;
  return refresh(false);
}
function moveTo(unit) {
  cursor = unit;
  if (selected !== null) selected = unit;
  refresh(false);
}
function move(key) {
  const vertical = { ArrowUp: ["source", "target"], ArrowDown: ["target", "source"] }[key];
  if (cursor === null) {
    const first = view.units.find((u) => !isGroup(u) && node.kind[u] === "output") ?? view.units[0];
    if (first !== undefined) moveTo(first);
  } else if (vertical) {
    const [along] = edgesOf(cursor, vertical[0]);
    if (along !== undefined) moveTo(view.drawn[vertical[1]][along]);
  } else {
    const layer = (u) => node.layer[members(u)[0]];
    const row = view.units.filter((u) => layer(u) === layer(cursor)).sort((a, b) => view.x[a] - view.x[b] || view.y[b] - view.y[a] || a - b);
    const next = row[row.indexOf(cursor) + (key === "ArrowRight" ? 1 : -1)];
    if (next !== undefined) moveTo(next);
  }
}

// Nearest thing under the pointer: a node, else the nearest edge within a few pixels.
function under(event) {
  const box = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout;
  const px = event.clientX - box.left - xaxis._offset, py = event.clientY - box.top - yaxis._offset;
  if (px < -12 || py < -12 || px > xaxis._length + 12 || py > yaxis._length + 12) return null;
  const sx = (x) => xaxis.l2p(x), sy = (y) => yaxis.l2p(y);
  let best = null, near = Infinity;
  for (const u of view.units) {
    const reach = sizeOf(u) / 2 + 4, gap = Math.hypot(sx(view.x[u]) - px, sy(view.y[u]) - py);
    if (gap < reach && gap < near) { near = gap; best = { unit: u }; }
  }
  if (best) return best;
  near = 5;
  view.drawn.source.forEach((s, d) => {
    if (lit && !(lit.onEdge[d] > 0)) return;
    const t = view.drawn.target[d];
    const x0 = sx(view.x[s]), y0 = sy(view.y[s]), x3 = sx(view.x[t]), y3 = sy(view.y[t]);
    const reach = 6 + style.bow * Math.abs(y3 - y0);
    if (px < Math.min(x0, x3) - reach || px > Math.max(x0, x3) + reach || py < Math.min(y0, y3) - 6 || py > Math.max(y0, y3) + 6) return;
    const n = style.points > 2 ? 16 : 2;
    let from = [x0, y0];
    for (let k = 1; k < n; k++) {
      const [x, y] = pointOf(d, k, n), to = [sx(x), sy(y)], gap = distance(px, py, from, to);
      if (gap < near) { near = gap; best = { edge: d }; }
      from = to;
    }
  });
  return best;
}
function distance(px, py, [ax, ay], [bx, by]) {
  const dx = bx - ax, dy = by - ay, t = Math.max(0, Math.min(1, ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy || 1)));
  return Math.hypot(ax + t * dx - px, ay + t * dy - py);
}
function showTip(event) {
  const at = under(event), tip = $("tip");
  tip.hidden = !at;
  if (!at) return;
  tip.replaceChildren(...(at.unit !== undefined ? nodeWords(at.unit) : edgeWords(at.edge)).filter(Boolean));
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
}
let pressed = null, waiting = false;
plot.addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; $("tip").hidden = true; }, true);
window.addEventListener("pointerup", (event) => {
  const from = pressed;
  pressed = null;
  if (!from || event.button !== 0 || Math.hypot(event.clientX - from[0], event.clientY - from[1]) > 4) return;
  if (event.target.closest && event.target.closest(".modebar")) return;
  const at = under(event);
  plot.focus({ preventScroll: true });
  if (at && at.unit !== undefined) setTimeout(() => select(at.unit));
}, true);
plot.addEventListener("pointermove", (event) => {
  if (pressed || waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; if (!pressed) showTip(event); });
}, true);
plot.addEventListener("pointerleave", () => { $("tip").hidden = true; });
plot.addEventListener("keydown", (event) => {
  if (event.key.startsWith("Arrow")) { event.preventDefault(); move(event.key); }
  if (event.key === "Enter" && cursor !== null) select(cursor);
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input[type=search], select");
  if (event.key === "/" && !isTyping) { event.preventDefault(); $("search").focus(); }
  if (event.key === "Escape") {
    if (isTyping && chosen.query) { $("search").value = chosen.query = ""; }
    selected = null;
    refresh(false);
  }
});

// ---- controls ---------------------------------------------------------------------------------
const SHAPES = {
  circle: "M7 2a5 5 0 1 0 .01 0z", square: "M2 2h10v10H2z", "square-open": "M2 2h10v10H2z", star: "M7 1l1.8 4.2 4.4.4-3.4 2.9 1 4.4L7 10.600l-3.800 2.300 1-4.400L.8 5.600l4.400-.4z",
  pentagon: "M7 1l6 4.500-2.300 7H3.300L1 5.500z", "diamond-x": "M7 1l6 6-6 6-6-6zM4 4l6 6M10 4l-6 6", "triangle-up": "M7 1l6 11H1z",
};
function icon(of) {
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg"), path = document.createElementNS(ns, "path");
  svg.setAttribute("width", 14); svg.setAttribute("height", 14); svg.setAttribute("aria-hidden", "true");
  const isOpen = of.symbol.endsWith("-open");
  path.setAttribute("d", SHAPES[of.symbol] || SHAPES.circle);
  path.setAttribute("fill", isOpen ? "none" : tint(of));
  path.setAttribute("stroke", isOpen ? tint(of) : of.border === "white" ? "none" : of.border);
  svg.append(path);
  return svg;
}
function dashIcon(sign) {
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg"), line = document.createElementNS(ns, "path");
  svg.setAttribute("width", 26); svg.setAttribute("height", 8); svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", "M0 4h26"); line.setAttribute("stroke", tint(sign)); line.setAttribute("stroke-width", 3);
  if (sign.sign < 0) line.setAttribute("stroke-dasharray", "5 3");
  svg.append(line);
  return svg;
}
function tick(id, isOn, change, ...children) {
  const box = el("input", { type: "checkbox", id, onchange: () => { change(box.checked); refresh(true); } });
  box.checked = isOn;
  return el("label", {}, box, ...children);
}
const toggle = (set, item, isIn) => { if (isIn) set.add(item); else set.delete(item); };
function fillControls() {
  const present = new Set(node.kind);
  $("kinds").replaceChildren(...[...style.kinds].reverse().filter((k) => present.has(k.kind)).map((k) =>
    tick(`kind-${k.kind}`, !chosen.hidden.has(k.kind), (on) => toggle(chosen.hidden, k.kind, !on), icon(k), el("span", {}, k.legend), el("span", { class: "count", id: `count-${k.kind}` }))));
  $("signs").replaceChildren(...style.signs.map((s) =>
    tick(`sign${s.sign}`, chosen.signs.has(s.sign), (on) => toggle(chosen.signs, s.sign, on), dashIcon(s), el("span", {}, s.legend), el("span", { class: "count", id: `count-sign${s.sign}` }))));
  const layers = Array.from({ length: axes.n_layers + 2 }, (_, i) => [i - 1, i === 0 ? "inputs" : i > axes.n_layers ? "output" : `layer ${i - 1}`]);
  const tokens = axes.tokens.map((t, i) => [i, `${i} ${visible(t)}`]);
  for (const [name, options] of [["layer", layers], ["pos", tokens]]) {
    [["from", 0], ["to", 1]].forEach(([end, which]) => {
      const list = $(`${name}-${end}`);
      list.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
      list.value = chosen[name][which];
      list.onchange = () => { chosen[name][which] = Number(list.value); refresh(true); };
    });
  }
  $("groups-box").hidden = !groups.length;
  $("groups").replaceChildren(...groups.map((group, g) =>
    tick(`group-${g}`, chosen.folded.has(g), (on) => toggle(chosen.folded, g, on), el("span", {}, group.name), el("span", { class: "count" }, `${group.rows.length}`))));
  const slider = $("threshold"), { stops } = record;
  Object.assign(slider, stops ? { min: 0, max: stops.length - 1, step: 1 } : { min: 1, max: 100, step: 1 });
  slider.value = stops ? stops.findIndex((s) => s.share === chosen.share) : 100 * chosen.share;
  $("search").value = chosen.query;
}
$("threshold").addEventListener("input", (event) => {
  const at = Number(event.target.value);
  chosen.share = record.stops ? record.stops[at].share : at / 100;
  refresh(true);
});
$("search").addEventListener("input", (event) => { chosen.query = event.target.value; refresh(false); });
$("search").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  if (matches && matches.length) { select(matches[0]); plot.focus(); }
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("reset").addEventListener("click", () => { chosen = START(); selected = cursor = null; fillControls(); refresh(true); });
$("fit").addEventListener("click", () => { isFit = !isFit; $("fit").setAttribute("aria-pressed", isFit); draw(); });

window.addEventListener("resize", () => { if (isFit) draw(); });

function setTheme(isDarkNow) {
  document.documentElement.dataset.theme = isDarkNow ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", isDarkNow);
  $("theme").textContent = isDarkNow ? "Light theme" : "Dark theme";
}
$("theme").addEventListener("click", () => { setTheme(!isDark()); fillControls(); refresh(true); });
const preference = matchMedia("(prefers-color-scheme: dark)");
preference.addEventListener("change", () => { setTheme(preference.matches); fillControls(); refresh(true); });

function download(format) {
  const layout = frame(), legend = new Set();
  const onTop = lit ? edgeTraces(lit.onEdge, strongest(lit.onEdge), 1, LIT_FLOOR) : [];
  const edges = [...onTop, ...edgeTraces(view.drawn.influence, view.maxInfluence, faded(), 0)].reverse();
  const data = [...edges, ...nodeTraces(), labelTrace()].map((t) => {
    const isFirst = t.x.length > 0 && t.meta !== "labels" && !legend.has(t.legendgroup);
    if (isFirst) legend.add(t.legendgroup);
    return { ...t, showlegend: isFirst };
  });
  layout.paper_bgcolor = layout.plot_bgcolor = css("--paper");
  Object.assign(layout, { showlegend: true, legend: { orientation: "h", y: -0.02, yanchor: "top", yref: "paper", itemsizing: "constant" } });
  layout.title = { text: `<b>${escapeForPlotly(record.title)}</b>`, subtitle: { text: escapeForPlotly(`${record.model} reads: ${record.prompt}`) }, x: 0, xanchor: "left", pad: { l: 12 } };
  layout.margin = { ...MARGIN, t: 70, b: 150 };
  layout.height += 62 + 92;
  layout.legend.y = -58 / (layout.height - 220);
  return Plotly.downloadImage({ data, layout }, { format, filename: "circuit", width: layout.width, height: layout.height, scale: format === "png" ? 2 : 1 });
}
$("png").addEventListener("click", () => download("png"));
$("svg").addEventListener("click", () => download("svg"));

// For scripts in the page's console, and tests: what is shown and lit, by id.
window.circuit = {
  shown: () => view.units.map(idOf),
  edges: () => view.drawn.source.map((s, d) => [idOf(s), idOf(view.drawn.target[d]), view.drawn.attribution[d], view.drawn.influence[d]]),
  selected: () => (selected === null ? null : idOf(selected)),
  cursor: () => (cursor === null ? null : idOf(cursor)),
  feeds: () => (lit ? Object.fromEntries(view.units.filter((u) => lit.feeds[u] > 0).map((u) => [idOf(u), lit.feeds[u]])) : {}),
  fed: () => (lit ? Object.fromEntries(view.units.filter((u) => lit.fed[u] > 0).map((u) => [idOf(u), lit.fed[u]])) : {}),
  litEdges: () => (lit ? view.drawn.source.flatMap((s, d) => (lit.onEdge[d] > 0 ? [[idOf(s), idOf(view.drawn.target[d]), lit.onEdge[d]]] : [])) : []),
  found: () => (matches || []).map(idOf),
  place: (id) => {
    const u = rowOf.get(id) ?? nNodes + groups.findIndex((g) => `group ${g.name}` === id);
    const box = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout;
    return [box.left + xaxis._offset + xaxis.l2p(view.x[u]), box.top + yaxis._offset + yaxis.l2p(view.y[u])];
  },
};

setTheme(preference.matches);
$("prompt").textContent = `${record.model} reads: “${record.prompt}”`;
$("caption").textContent = record.caption;
fillControls(); fillProof();
$("fit").setAttribute("aria-pressed", isFit);
refresh(true).then(() => {
  plot.on("plotly_relayouting", drawEdges);
  plot.on("plotly_relayout", drawEdges);
  document.body.dataset.ready = "true";
});
})();
