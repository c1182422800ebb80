// Heat maps of a placement: load of every GPU in every layer, and which GPUs serve a token together.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip"), pick = document.getElementById("policy");
  const LEFT = 44, TOP = 6, BOTTOM = 34, INK = "#3B424C", SOFT = "#5A6370";
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  for (const p of data.placements) p.load = bytes(p.load);

  const mix = (a, b, t) => `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * t)).join(",")})`;
  const WHITE = [255, 255, 255], BLUE = [0, 114, 178], RED = [190, 60, 0], DARK = [60, 10, 0];
  // 0: idle, 1: the ideal, 2: twice as much, 3.5 and above: darkest.
  const warmth = (v) => v <= 1 ? mix(BLUE, WHITE, v) : v <= 2 ? mix(WHITE, RED, v - 1) : mix(RED, DARK, Math.min(1, (v - 2) / 1.5));
  const share = (v, most) => mix(WHITE, BLUE, Math.min(1, v / most));

  const ticks = (n, room) => {
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((s) => (n / s) * 26 <= room) || 1000;
    return Array.from({ length: Math.ceil(n / step) }, (_, i) => i * step);
  };
  // Draws rows x columns cells into the canvas and tells what is under the pointer; `across`: what to write into a square's cells.
  const grid = (id, rows, columns, colour, text, named, across) => {
    const canvas = document.getElementById(id), scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, cell = (width - LEFT - 4) / columns;
    const high = across ? Math.min(cell, 44) : Math.max(5, Math.min(18, 420 / rows)), height = TOP + BOTTOM + rows * high;
    canvas.style.height = `${height}px`;
    canvas.width = width * scale; canvas.height = height * scale;
    const c = canvas.getContext("2d");
    c.scale(scale, scale);
    const gap = cell > 8 && high > 8 ? 1 : 0;
    for (let r = 0; r < rows; r++) for (let k = 0; k < columns; k++) {
      c.fillStyle = colour(r, k);
      c.fillRect(LEFT + k * cell, TOP + r * high, cell - gap + (gap ? 0 : 0.6), high - gap + (gap ? 0 : 0.6));
    }
    if (across && cell > 36) {
      c.font = "12px system-ui, sans-serif"; c.textAlign = "center"; c.textBaseline = "middle";
      for (let r = 0; r < rows; r++) for (let k = 0; k < columns; k++) {
        c.fillStyle = r !== k && across(r, k) > 0.6 * across.most ? "#FFFFFF" : INK;
        c.fillText(`${Math.round(100 * across(r, k))} %`, LEFT + (k + 0.5) * cell, TOP + (r + 0.5) * high);
      }
    }
    c.strokeStyle = "#C4C8CF"; c.strokeRect(LEFT - 0.5, TOP - 0.5, columns * cell + 1, rows * high + 1);
    c.fillStyle = INK; c.font = "12px system-ui, sans-serif"; c.textBaseline = "middle"; c.textAlign = "right";
    for (const r of ticks(rows, rows * high)) c.fillText(r, LEFT - 6, TOP + (r + 0.5) * high);
    c.textAlign = "center";
    for (const k of ticks(columns, columns * cell)) c.fillText(k, LEFT + (k + 0.5) * cell, TOP + rows * high + 10);
    c.fillStyle = SOFT; c.fillText(named[0], LEFT + (columns * cell) / 2, TOP + rows * high + 26);
    c.save(); c.translate(9, TOP + (rows * high) / 2); c.rotate(-Math.PI / 2); c.fillText(named[1], 0, 0); c.restore();
    canvas.onmousemove = (event) => {
      const k = Math.floor((event.offsetX - LEFT) / cell), r = Math.floor((event.offsetY - TOP) / high);
      if (k < 0 || k >= columns || r < 0 || r >= rows) { tip.style.display = "none"; return; }
      tip.innerHTML = text(r, k);
      tip.style.display = "block";
      tip.style.left = `${Math.min(event.pageX + 14, window.innerWidth - 340)}px`; tip.style.top = `${event.pageY + 14}px`;
    };
    canvas.onmouseleave = () => { tip.style.display = "none"; };
  };

  const heat = (id, p) => {
    const at = (layer, gpu) => layer * data.gpus.length + gpu, value = (layer, gpu) => p.load[at(layer, gpu)] / data.steps;
    const most = p.load.reduce((a, b) => Math.max(a, b), 0) / data.steps;
    grid(id, data.layers, data.gpus.length, (r, k) => warmth(value(r, k)), (r, k) => {
      const held = p.experts ? `<br>experts ${p.experts[r][k].join(", ") || "none"}` : "";
      return `<b>${data.gpus[k]}</b>, layer ${r}<br>${value(r, k).toFixed(2)} of the ideal load${held}`;
    }, ["GPU", "layer"], null);
    document.getElementById(`${id}-title`).textContent = `${p.name}: balancedness ${p.balancedness.toFixed(3)}, worst ${most.toFixed(2)}`;
  };
  const pairs = (id, p) => {
    if (!p.together) return;
    const n = p.together.length, most = Math.max(...data.placements.flatMap((q) => q.together.flatMap((row, a) => row.filter((_, b) => a !== b))));
    grid(id, n, n, (r, k) => r === k ? "#EEF0F3" : share(p.together[r][k], most), (r, k) => {
      const said = `${(100 * p.together[r][k]).toFixed(1)} % of tokens`;
      return r === k ? `${data.unit} ${r} serves ${said}` : `${data.unit}s ${r} and ${k} serve ${said} together`;
    }, [data.unit, data.unit], Object.assign((r, k) => p.together[r][k], { most }));
    document.getElementById(`${id}-title`).textContent = `${p.name}: ${p.touched.toFixed(2)} ${data.unit}s a token`;
  };
  const legend = () => {
    const canvas = document.getElementById("scale"), c = canvas.getContext("2d"), scale = window.devicePixelRatio || 1;
    canvas.width = 260 * scale; canvas.height = 30 * scale; c.scale(scale, scale);
    for (let x = 0; x < 240; x++) { c.fillStyle = warmth((x / 240) * 3.5); c.fillRect(10 + x, 0, 1.5, 11); }
    c.fillStyle = INK; c.font = "12px system-ui, sans-serif"; c.textAlign = "center";
    for (const v of [0, 1, 2, 3]) c.fillText(v, 10 + (v / 3.5) * 240, 25);
  };
  const draw = () => {
    const before = data.placements[0], after = data.placements[Number(pick.value)];
    heat("before", before); heat("after", after);
    if (before.together) { pairs("pairs-before", before); pairs("pairs-after", after); }
    legend();
  };
  data.placements.slice(1).forEach((p, i) => pick.add(new Option(p.name, i + 1)));
  pick.value = data.first;
  pick.onchange = draw;
  window.onresize = draw;
  draw();
  for (const [id, spec] of Object.entries(data.charts)) window.vegaEmbed(`#${id}`, spec, { actions: false, renderer: "svg" });
})();
