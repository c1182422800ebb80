// The timeline: both clocks, one above the other, on a canvas that zooms and pans.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("timeline");
  const tip = document.getElementById("tip");
  const frame = document.getElementById("frame");
  const pick = document.getElementById("window");
  const critical = document.getElementById("critical");
  const draw2d = canvas.getContext("2d");
  const LEFT = 92, ROW = 26, GAP = 4, HEAD = 25, AXIS = 26, FONT = "system-ui, 'Segoe UI', Roboto, Arial, sans-serif";

  const column = (text, type) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new type(bytes.buffer);
  };
  const types = { start: Float64Array, duration: Float32Array, row: Uint16Array, op: Uint16Array, task: Float64Array, step: Int32Array,
    layer: Int16Array, microbatch: Int16Array, critical: Uint8Array, done: Uint8Array };
  const clocks = data.clocks.map((c) => {
    for (const name in types) c[name] = column(c[name], types[name]);
    c.rows = c.lanes.reduce((n, lane) => n + lane.rows, 0);
    c.at = new Map();
    c.task.forEach((task, i) => c.at.set(task, i));
    return c;
  });

  let chosen = data.windows[data.first], from = 0, to = 1, hover = null, focus = null, queued = false;
  const longest = () => Math.max(...chosen.spans.map(([a, b]) => b - a));
  const reset = () => { from = 0; to = longest() * 1.01; redraw(); };
  // A stretch with too many bars to tell apart opens at its beginning.
  const open = () => {
    const bars = Math.max(...clocks.map((c, k) => {
      const [a, b] = chosen.spans[k];
      return c.start.reduce((n, s, i) => n + (s < b && s + c.duration[i] > a), 0);
    }));
    from = 0; to = bars > 2 * data.few ? (longest() * data.few) / bars : longest() * 1.01;
    redraw();
  };
  const width = () => canvas.clientWidth;
  const scale = () => (width() - LEFT - 8) / (to - from);

  const text = (us) => {
    const size = Math.abs(us);
    for (const [unit, by] of [["s", 1e6], ["ms", 1e3], ["µs", 1]]) if (size >= by) return `${Number((us / by).toPrecision(4))} ${unit}`;
    return size === 0 ? "0" : `${Number((us * 1e3).toPrecision(4))} ns`;
  };

  // Where each clock's rows begin, from the top of the canvas.
  const layout = () => {
    let y = AXIS;
    for (const c of clocks) {
      c.top = y + HEAD;
      c.height = c.rows * ROW + (c.lanes.length - 1) * GAP;
      c.lineOf = [];
      let line = c.top;
      for (const lane of c.lanes) {
        lane.top = line;
        for (let r = 0; r < lane.rows; r++) c.lineOf.push(line + r * ROW);
        line += lane.rows * ROW + GAP;
      }
      y = c.top + c.height + 14;
    }
    return y - 4;
  };
  const height = layout();

  const redraw = () => {
    if (!queued) { queued = true; requestAnimationFrame(paint); }
  };

  const paint = () => {
    queued = false;
    const ratio = window.devicePixelRatio || 1, w = width();
    if (canvas.width !== Math.round(w * ratio)) canvas.width = Math.round(w * ratio);
    if (canvas.height !== Math.round(height * ratio)) { canvas.height = Math.round(height * ratio); canvas.style.height = height + "px"; }
    draw2d.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw2d.fillStyle = "#fff";
    draw2d.fillRect(0, 0, w, height);
    clocks.forEach((c, k) => paintLanes(c, k, w));
    paintAxis(w);
    draw2d.save();
    draw2d.beginPath(); draw2d.rect(LEFT, AXIS, w - LEFT, height - AXIS); draw2d.clip();
    clocks.forEach((c, k) => paintBars(c, k, w));
    draw2d.restore();
  };

  const paintLanes = (c, k, w) => {
    const [a, b] = chosen.spans[k];
    draw2d.fillStyle = c.colour;
    draw2d.fillRect(0, c.top - HEAD + 6, 4, 14);
    draw2d.font = `600 13.5px ${FONT}`; draw2d.textBaseline = "middle"; draw2d.textAlign = "left"; draw2d.fillStyle = "#1b1f24";
    draw2d.fillText(c.name, 10, c.top - HEAD + 13);
    const at = 10 + draw2d.measureText(c.name).width;
    draw2d.font = `13px ${FONT}`; draw2d.fillStyle = "#5a6370";
    draw2d.fillText(`  ${text(b - a)}`, at, c.top - HEAD + 13);
    for (const lane of c.lanes) {
      const h = lane.rows * ROW;
      draw2d.fillStyle = "#f4f5f7";
      draw2d.fillRect(LEFT, lane.top, w - LEFT, h - 2);
      draw2d.fillStyle = "#3b424c"; draw2d.textAlign = "right"; draw2d.font = `13px ${FONT}`;
      draw2d.fillText(lane.label, LEFT - 8, lane.top + h / 2 - 1);
    }
    draw2d.textAlign = "left";
  };

  const paintAxis = (w) => {
    const rough = (to - from) / Math.max(3, (w - LEFT) / 130), power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    draw2d.font = `12px ${FONT}`; draw2d.fillStyle = "#5a6370"; draw2d.textAlign = "center"; draw2d.textBaseline = "middle";
    draw2d.lineWidth = 1;
    for (let i = Math.ceil(from / step); i * step <= to; i++) {
      const x = Math.round(LEFT + (i * step - from) * scale()) + 0.5;
      draw2d.strokeStyle = "#e3e6ea";
      draw2d.beginPath(); draw2d.moveTo(x, AXIS - 5); draw2d.lineTo(x, height); draw2d.stroke();
      draw2d.fillText(text(i * step), Math.min(x, w - 26), AXIS - 14);
    }
    draw2d.textAlign = "left";
  };

  // Bars of the step before or after are there for the eye only.
  const outside = (c, i, span) => c.start[i] >= span[1] || c.start[i] + c.duration[i] <= span[0];
  const faint = (c, i) => (critical.checked && !c.critical[i]) || (focus !== null && c.ops[c.op[i]] !== focus);

  const paintBars = (c, k, w) => {
    const base = chosen.spans[k][0], s = scale(), edge = to + base;
    for (let i = 0; i < c.count; i++) {
      const start = c.start[i], end = start + c.duration[i];
      if (end < from + base || start > edge) continue;
      const x = LEFT + (start - base - from) * s, real = c.duration[i] * s, wide = Math.max(0.8, real);
      const y = c.lineOf[c.row[i]], op = c.ops[c.op[i]], pale = faint(c, i);
      // A bar narrower than a pixel is paler instead, so that a lane looks as busy as it is.
      draw2d.globalAlpha = (pale ? 0.16 : outside(c, i, chosen.spans[k]) ? 0.4 : 1) * Math.max(0.12, Math.min(1, real / 0.8));
      draw2d.fillStyle = data.colours[op][0];
      draw2d.fillRect(x, y, wide > 3 ? wide - 0.6 : wide, ROW - 2);
      if (!c.done[i]) { draw2d.fillStyle = "#1b1f24"; draw2d.fillRect(x, y + ROW - 5, wide, 3); }
      if (wide > 18 && !pale) label(c, i, op, Math.max(x, LEFT), y, x + wide - Math.max(x, LEFT));
    }
    draw2d.globalAlpha = 1;
    if (hover) outline(c, k, s);
  };

  const label = (c, i, op, x, y, room) => {
    const place = c.microbatch[i] >= 0 ? `${c.layer[i] >= 0 ? c.layer[i] + "." : ""}${c.microbatch[i]}` : c.layer[i] >= 0 ? `${c.layer[i]}` : "";
    draw2d.font = `11.5px ${FONT}`; draw2d.fillStyle = data.colours[op][1]; draw2d.textBaseline = "middle";
    for (const words of [`${op} ${place}`.trim(), op, place]) {
      if (words && draw2d.measureText(words).width + 7 <= room) { draw2d.fillText(words, x + 4, y + ROW / 2 - 1); return; }
    }
  };

  // The task under the pointer, on both clocks.
  const outline = (c, k, s) => {
    const i = clocks[hover.clock] === c ? hover.bar : c.at.get(clocks[hover.clock].task[hover.bar]);
    if (i === undefined) return;
    const x = LEFT + (c.start[i] - chosen.spans[k][0] - from) * s;
    draw2d.strokeStyle = "#1b1f24"; draw2d.lineWidth = 2;
    draw2d.strokeRect(x - 1, c.lineOf[c.row[i]] - 1, Math.max(2, c.duration[i] * s) + 1, ROW);
  };

  const find = (px, py) => {
    for (let k = 0; k < clocks.length; k++) {
      const c = clocks[k], row = c.lineOf.findIndex((y) => py >= y && py < y + ROW - 1);
      if (row < 0 || px < LEFT) continue;
      const at = (px - LEFT) / scale() + from + chosen.spans[k][0], slop = 2 / scale();
      let best = null, distance = Infinity;
      for (let i = 0; i < c.count; i++) {
        if (c.row[i] !== row) continue;
        const off = Math.max(0, c.start[i] - at, at - c.start[i] - c.duration[i]);
        if (off <= slop && off < distance) { best = { clock: k, bar: i }; distance = off; }
      }
      if (best) return best;
    }
    return null;
  };

  const cells = (rows) => rows.map(([a, b]) => `<tr><td>${a}</td><td>${b}</td></tr>`).join("");
  const escape = (s) => s.replace(/[&<>"]/g, (ch) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[ch]);

  const describe = () => {
    const c = clocks[hover.clock], i = hover.bar, rows = [];
    if (c.step[i] >= 0) rows.push(["step", c.step[i] === 0 ? "prefill" : `decode ${c.step[i]}`]);
    if (c.layer[i] >= 0) rows.push(["layer", c.layer[i]]);
    if (c.microbatch[i] >= 0) rows.push(["micro-batch", c.microbatch[i]]);
    rows.push(["starts at", text(c.start[i] - chosen.spans[hover.clock][0])]);
    clocks.forEach((other, k) => {
      const j = k === hover.clock ? i : other.at.get(c.task[i]);
      if (j !== undefined) rows.push([other.name.toLowerCase(), `<b>${text(other.duration[j])}</b>`]);
    });
    if (c.critical[i]) rows.push(["", "on the critical path"]);
    if (!c.done[i]) rows.push(["", "did not end well"]);
    return `<b>${escape(c.ops[c.op[i]])}</b> <span style="color:#5a6370">task ${c.task[i]}</span><table>${cells(rows)}</table>`;
  };

  const showTip = (px, py) => {
    tip.style.display = hover ? "block" : "none";
    if (!hover) return;
    tip.innerHTML = describe();
    const w = tip.offsetWidth, h = tip.offsetHeight;
    tip.style.left = `${Math.max(0, px + 16 + w > width() ? px - w - 12 : px + 16)}px`;
    tip.style.top = `${Math.max(0, py + 16 + h > height ? py - h - 10 : py + 16)}px`;
  };

  const zoom = (by, px) => {
    const at = from + (px - LEFT) / scale(), span = Math.min(longest() * 1.5, Math.max(longest() * 1e-6, (to - from) * by));
    const left = at - ((at - from) * span) / (to - from);
    from = left; to = left + span;
    clamp();
  };
  const pan = (us) => { from += us; to += us; clamp(); };
  const clamp = () => {
    const span = to - from, low = -span * 0.5, high = longest() + span * 0.5;
    if (from < low) { from = low; to = low + span; }
    if (to > high) { to = high; from = high - span; }
    redraw();
  };

  const middle = () => LEFT + (width() - LEFT) / 2;
  let held = null;
  canvas.addEventListener("wheel", (e) => {
    if (e.ctrlKey || e.metaKey) { e.preventDefault(); zoom(Math.exp(e.deltaY * (e.deltaMode ? 0.05 : 0.0022)), e.offsetX); }
    else if (Math.abs(e.deltaX) > Math.abs(e.deltaY) || e.shiftKey) { e.preventDefault(); pan((e.deltaX || e.deltaY) / scale()); }
  }, { passive: false });
  canvas.addEventListener("pointerdown", (e) => { held = e.offsetX; canvas.setPointerCapture(e.pointerId); canvas.classList.add("drag"); });
  canvas.addEventListener("pointerup", () => { held = null; canvas.classList.remove("drag"); });
  canvas.addEventListener("pointercancel", () => { held = null; canvas.classList.remove("drag"); });
  canvas.addEventListener("pointermove", (e) => {
    if (held !== null) { pan((held - e.offsetX) / scale()); held = e.offsetX; hover = null; showTip(); return; }
    hover = find(e.offsetX, e.offsetY);
    showTip(e.offsetX, e.offsetY);
    redraw();
  });
  canvas.addEventListener("pointerleave", () => { hover = null; showTip(); redraw(); });
  canvas.addEventListener("dblclick", (e) => zoom(0.4, e.offsetX));
  canvas.addEventListener("keydown", (e) => {
    const acts = { "+": () => zoom(0.7, middle()), "=": () => zoom(0.7, middle()), "-": () => zoom(1.4, middle()), "0": reset,
      ArrowLeft: () => pan((from - to) * 0.15), ArrowRight: () => pan((to - from) * 0.15) };
    if (acts[e.key] && !e.ctrlKey && !e.metaKey) { e.preventDefault(); acts[e.key](); }
  });
  document.getElementById("in").addEventListener("click", () => zoom(0.6, middle()));
  document.getElementById("out").addEventListener("click", () => zoom(1 / 0.6, middle()));
  document.getElementById("all").addEventListener("click", reset);
  critical.addEventListener("change", redraw);
  data.windows.forEach((w, i) => pick.add(new Option(w.label, i)));
  pick.addEventListener("change", () => { chosen = data.windows[pick.value]; hover = null; open(); });
  pick.value = data.first;

  const legend = document.getElementById("legend"), used = new Set();
  for (const c of clocks) c.op.forEach((o) => used.add(c.ops[o]));
  for (const op of Object.keys(data.colours).filter((o) => used.has(o))) {
    const b = document.createElement("button");
    b.type = "button"; b.setAttribute("aria-pressed", "false");
    b.innerHTML = `<span class="swatch" style="background:${data.colours[op][0]}"></span>${escape(op)}`;
    b.addEventListener("click", () => {
      focus = focus === op ? null : op;
      legend.querySelectorAll("button").forEach((o) => o.setAttribute("aria-pressed", String(o === b && focus !== null)));
      redraw();
    });
    legend.append(b);
  }
  new ResizeObserver(redraw).observe(frame);
  canvas.style.height = height + "px";
  open();

  for (const [id, spec] of Object.entries(data.charts)) window.vegaEmbed(`#${id}`, spec, { actions: false, renderer: "svg" });
})();
