"use strict";
// Draws memory maps: steps across, addresses up; copies, what steps leave of the bus, and stalls below.
// One pair of canvases per picture; both halves (ours, production's) share the zoom.

const COLOURS = { produced: "#4c78a8", copied: "#54a24b", carried: "#b279a2" };
const PREFETCH = "#54a24b", EVICTION = "#f58518", STALL = "#e45756", IDLE = "#bab0ac";
const MEMORY = 300, COPIES = 78, BUS = 56, GAP = 8, LEFT = 64, RIGHT = 8, TOP = 6;
const HEIGHT = TOP + MEMORY + GAP + COPIES + GAP + BUS + 18;
const ROWS = 13;

function sizeText(bytes) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (bytes < 1024) return `${unit === "B" ? bytes : Number(bytes.toPrecision(3))} ${unit}`;
    bytes /= 1024;
  }
  return `${Number(bytes.toPrecision(3))} GiB`;
}

function timeText(seconds) {
  return seconds >= 1e-3 ? `${(seconds * 1e3).toFixed(3)} ms` : `${(seconds * 1e6).toFixed(2)} µs`;
}

class MapView {
  constructor(program, map, canvas, tip, range) {
    Object.assign(this, { program, map, canvas, tip, range });
    this.lanes = copyLanes(map.copies);
    this.longestStall = Math.max(1, ...map.stalls.map(([, ticks]) => ticks));
    canvas.addEventListener("mousemove", (event) => this.hover(event));
    canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
  }

  x(step) {
    const [low, high] = this.range;
    return LEFT + ((step - low) / (high - low)) * (this.width - LEFT - RIGHT);
  }

  step(x) {
    const [low, high] = this.range;
    return low + ((x - LEFT) / (this.width - LEFT - RIGHT)) * (high - low);
  }

  y(address) {
    return TOP + MEMORY - (address / this.program.capacity) * MEMORY;
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    this.width = this.canvas.parentElement.clientWidth;
    this.canvas.width = this.width * ratio;
    this.canvas.height = HEIGHT * ratio;
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${HEIGHT}px`;
    const pen = this.pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "11px system-ui, sans-serif";
    this.drawFrame();
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, this.width - LEFT - RIGHT, HEIGHT);
    pen.clip();
    this.drawLoops();
    this.drawPieces();
    this.drawCopies();
    this.drawBus();
    pen.restore();
  }

  drawFrame() {
    const pen = this.pen, bottom = TOP + MEMORY;
    pen.fillStyle = "#f4f4f2";
    for (const [top, height] of this.panels()) {
      pen.fillRect(LEFT, top, this.width - LEFT - RIGHT, height);
    }
    pen.fillStyle = "#555";
    pen.textAlign = "right";
    for (let part = 0; part <= 4; part++) {
      pen.fillText(sizeText((this.program.capacity * part) / 4), LEFT - 6, bottom - (MEMORY * part) / 4 + 4);
    }
    pen.fillText("copies", LEFT - 6, bottom + GAP + COPIES / 2);
    pen.fillText("bus left", LEFT - 6, bottom + 2 * GAP + COPIES + BUS / 2);
    pen.textAlign = "center";
    const [low, high] = this.range, stride = niceStride((high - low) / 10);
    for (let step = Math.ceil(low / stride) * stride; step <= high; step += stride) {
      pen.fillText(String(step), this.x(step), HEIGHT - 4);
    }
  }

  panels() {
    const copies = TOP + MEMORY + GAP, bus = copies + COPIES + GAP;
    return [[TOP, MEMORY], [copies, COPIES], [bus, BUS]];
  }

  drawLoops() {
    this.pen.fillStyle = "rgba(0, 0, 0, 0.05)";
    for (const [start, end] of this.program.loops) {
      this.pen.fillRect(this.x(start), TOP, this.x(end) - this.x(start), HEIGHT - TOP - 18);
    }
  }

  drawPieces() {
    const pen = this.pen;
    for (const [, start, end, low, high, source, ready] of this.map.pieces) {
      const top = this.y(high), height = Math.max(this.y(low) - top - 0.4, 0.6);
      pen.fillStyle = COLOURS[source];
      pen.globalAlpha = 0.35;
      pen.fillRect(this.x(start), top, this.x(end) - this.x(start), height);
      pen.globalAlpha = 0.85;
      const from = Math.max(start, ready);
      if (from < end) pen.fillRect(this.x(from), top, this.x(end) - this.x(from) - 0.4, height);
      pen.globalAlpha = 1;
    }
  }

  drawCopies() {
    const [, [top]] = this.panels(), height = COPIES / ROWS;
    this.map.copies.forEach(([, issue, deadline, inward], index) => {
      this.pen.fillStyle = inward ? PREFETCH : EVICTION;
      const left = this.x(issue), width = Math.max(this.x(deadline) - left, 1.5);
      this.pen.fillRect(left, top + this.lanes[index] * height + 1, width, height - 2);
    });
  }

  drawBus() {
    const pen = this.pen, top = this.panels()[2][0];
    pen.fillStyle = IDLE;
    const [low, high] = this.range.map(Math.floor);
    for (let step = Math.max(low, 0); step < Math.min(high + 1, this.map.elapsed.length); step++) {
      const share = this.map.elapsed[step] ? this.map.idle[step] / this.map.elapsed[step] : 0;
      const width = Math.max(this.x(step + 1) - this.x(step), 0.5);
      pen.fillRect(this.x(step), top + BUS * (1 - share), width, BUS * share);
    }
    pen.fillStyle = STALL;
    for (const [step, ticks] of this.map.stalls) {
      const height = 4 + (BUS - 4) * (ticks / this.longestStall);
      pen.fillRect(this.x(step) - 1, top + BUS - height, 2.5, height);
    }
  }

  hover(event) {
    const box = this.canvas.getBoundingClientRect();
    const px = event.clientX - box.left, py = event.clientY - box.top;
    const step = Math.floor(this.step(px));
    if (px < LEFT || step < 0 || step > this.program.steps.length) { this.tip.hidden = true; return; }
    this.tip.textContent = this.describe(step, px, py).join("\n");
    this.tip.hidden = false;
    const left = Math.min(event.clientX + 14, window.innerWidth - this.tip.offsetWidth - 8);
    const below = event.clientY + 14, above = event.clientY - 14 - this.tip.offsetHeight;
    const fits = below + this.tip.offsetHeight <= window.innerHeight || above < 0;
    this.tip.style.left = `${Math.max(left, 8) + window.scrollX}px`;
    this.tip.style.top = `${(fits ? below : above) + window.scrollY}px`;
  }

  describe(step, px, py) {
    const lines = py < TOP + MEMORY ? this.describePiece(step, py) : this.describeCopy(step, py);
    const tick = this.program.tick, stall = this.map.stalls.find(([at]) => at === step);
    const instruction = this.program.steps[step];
    if (!instruction) {
      lines.push(`step ${step}: the end`);
      return stall ? [...lines, `stalls ${timeText(stall[1] * tick)} before it`] : lines;
    }
    const [name, opcode, shape, repeat] = instruction;
    lines.push(`step ${step}: ${opcode} ${name}${repeat === 1 ? "" : `, ${repeat} times`}`, shape);
    lines.push(`takes ${timeText(this.map.elapsed[step] * tick)}, leaves copies ${timeText(this.map.idle[step] * tick)} of the bus`);
    lines.push(`fast memory held: ${sizeText(this.map.held[step])}`);
    if (stall) lines.push(`stalls ${timeText(stall[1] * tick)} before it${repeat === 1 ? "" : ", all trips"}`);
    return lines;
  }

  describePiece(step, py) {
    const address = ((TOP + MEMORY - py) / MEMORY) * this.program.capacity;
    const piece = this.map.pieces.find(([, start, end, low, high]) =>
      start <= step && step < end && low <= address && address < high);
    if (!piece) return [];
    const [buffer, start, end, low, , source, ready, saves] = piece;
    const [name, shape, bytes] = this.program.buffers[buffer];
    const copied = source === "copied" ? `, copied until ${ready}` : "";
    return [name, `${shape}  ${sizeText(bytes)} at ${sizeText(low)}`,
      `${source}, steps ${start} to ${end}${copied}`, `saves ${timeText(saves)}`, ""];
  }

  describeCopy(step, py) {
    const top = this.panels()[1][0], lane = Math.floor((py - top) / (COPIES / ROWS));
    const index = this.map.copies.findIndex(([, issue, deadline], i) =>
      this.lanes[i] === lane && issue <= step && (step < deadline || step === issue));
    if (index < 0) return [];
    const [buffer, issue, deadline, inward, bytes, stall, trips] = this.map.copies[index];
    const lines = [`${inward ? "prefetch" : "eviction"} of ${this.program.buffers[buffer][0]}`,
      `${sizeText(bytes)}, issued at ${issue}, due before ${deadline}`];
    if (stall) lines.push(`stalls ${timeText(stall * trips * this.program.tick)}${trips === 1 ? "" : ", all trips"}`);
    return [...lines, ""];
  }
}

function niceStride(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return Math.max(1, [1, 2, 5, 10].map((n) => n * power).find((n) => n >= least));
}

// Copies in the first lane that is free; those that find none share the last.
function copyLanes(copies) {
  const free = new Array(ROWS).fill(-1);
  const order = copies.map((_, i) => i).sort((a, b) => copies[a][1] - copies[b][1]);
  const lanes = new Array(copies.length);
  for (const i of order) {
    const [, issue, deadline] = copies[i];
    let lane = free.findIndex((end) => end <= issue);
    if (lane < 0) lane = ROWS - 1;
    free[lane] = Math.max(free[lane], deadline, issue + 0.5);
    lanes[i] = lane;
  }
  return lanes;
}

function slowTable(program, map) {
  const table = document.createElement("table");
  const rows = map.slow.map(([step, buffer, kind, bytes, cost, reason]) => [
    step, program.steps[step][0], kind, program.buffers[buffer][0], sizeText(bytes), timeText(cost), reason]);
  for (const cells of [["step", "instruction", "access", "tensor", "size", "costs", "why slow"], ...rows]) {
    const line = table.insertRow();
    for (const cell of cells) {
      const tag = cells[0] === "step" ? "th" : "td";
      line.appendChild(document.createElement(tag)).textContent = cell;
    }
  }
  return table;
}

function showPicture(place, picture) {
  const { program, maps } = picture;
  place.replaceChildren();
  const tip = document.getElementById("tip");
  const range = [0, program.steps.length + 1];
  const views = [];
  for (const map of maps) {
    const title = place.appendChild(document.createElement("h4"));
    title.textContent = `${map.heading}: ${timeText(map.latency)}, of which stalls ${timeText(map.stall)}`;
    const frame = place.appendChild(document.createElement("div"));
    frame.className = "frame";
    views.push(new MapView(program, map, frame.appendChild(document.createElement("canvas")), tip, range));
  }
  for (const map of maps) {
    const details = place.appendChild(document.createElement("details"));
    details.appendChild(document.createElement("summary")).textContent =
      `${map.heading}: the accesses that stay slow and cost most`;
    details.appendChild(slowTable(program, map));
  }
  const redraw = () => views.forEach((view) => view.draw());
  for (const view of views) {
    view.canvas.addEventListener("wheel", (event) => { zoom(view, event); redraw(); }, { passive: false });
    view.canvas.addEventListener("dblclick", () => { range.splice(0, 2, 0, program.steps.length + 1); redraw(); });
  }
  window.onresize = redraw;
  redraw();
}

function zoom(view, event) {
  event.preventDefault();
  const box = view.canvas.getBoundingClientRect();
  const centre = view.step(event.clientX - box.left), last = view.program.steps.length + 1;
  const factor = event.deltaY < 0 ? 0.8 : 1.25;
  const width = Math.min(Math.max((view.range[1] - view.range[0]) * factor, 8), last);
  const share = (centre - view.range[0]) / (view.range[1] - view.range[0]);
  const low = Math.min(Math.max(centre - share * width, 0), last - width);
  view.range.splice(0, 2, low, low + width);
}
