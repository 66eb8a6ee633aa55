"use strict";
// Draws memory maps: steps across, addresses up; copies, what steps leave of the bus, and stalls below.
// One pair of canvases per picture; both halves (ours, production's) share the steps shown and the
// tensor that is followed.

const COLOURS = { produced: "#4c78a8", copied: "#54a24b", carried: "#b279a2" };
const PREFETCH = "#54a24b", EVICTION = "#f58518", STALL = "#e45756", IDLE = "#bab0ac";
const MEMORY = 300, COPIES = 78, BUS = 56, GAP = 8, LEFT = 64, RIGHT = 8, TOP = 6;
const HEIGHT = TOP + MEMORY + GAP + COPIES + GAP + BUS + 18;
const ROWS = 13;
// In the order of drawing: where steps are narrower than their ticks, the slow ones are on top.
const COLOUR_OF_USE = { copied: "#7b9acc", fast: "#222", slow: "#e45756" };
const VEIL = "rgba(244, 244, 242, 0.75)";
const FEWEST_STEPS = 8;
const ACCESSES_TOLD = 6;
const HINT = "Point at a tensor to follow it in both maps, click to hold on to it.";

function timesText(repeat) {
  return repeat < 1 ? `with probability ${Number(repeat.toPrecision(3))}` : `${Number(repeat.toPrecision(6))} times`;
}

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

// One map on its canvas: draws it, and tells what is where.
class MapView {
  constructor(picture, map, canvas) {
    Object.assign(this, { picture, program: picture.program, map, canvas });
    this.lanes = copyLanes(map.copies);
    this.replaced = new Set(map.replaced);
    this.longestStall = Math.max(1, ...map.stalls.map(([, ticks]) => ticks));
  }

  get range() { return this.picture.range; }

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
    this.drawPieces(() => true);
    this.drawCopies(() => true);
    this.drawBus();
    this.drawFollowed();
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

  drawPieces(isDrawn) {
    const pen = this.pen;
    for (const [buffer, start, end, low, high, source, ready] of this.map.pieces) {
      if (!isDrawn(buffer)) continue;
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

  drawCopies(isDrawn) {
    const [, [top]] = this.panels(), height = COPIES / ROWS;
    this.map.copies.forEach((copy, index) => {
      const [buffer, issue, deadline, inward] = copy, replaces = copy[7];
      if (!isDrawn(buffer)) return;
      this.pen.fillStyle = replaces !== null ? COLOUR_OF_USE.copied : inward ? PREFETCH : EVICTION;
      const left = this.x(issue), width = Math.max(this.x(deadline) - left, 1.5);
      this.pen.fillRect(left, top + this.lanes[index] * height + 1, width, height - 2);
    });
  }

  // The tensor that is followed, on top of all others veiled.
  drawFollowed() {
    const { followed } = this.picture;
    if (followed === null) return;
    this.pen.fillStyle = VEIL;
    for (const [top, height] of this.panels().slice(0, 2)) this.pen.fillRect(LEFT, top, this.width, height);
    this.drawPieces((buffer) => buffer === followed);
    this.drawCopies((buffer) => buffer === followed);
    this.drawUses(followed);
  }

  // Between memory and copies: each step that uses the tensor that is followed.
  drawUses(followed) {
    for (const [use, colour] of Object.entries(COLOUR_OF_USE)) {
      this.pen.fillStyle = colour;
      for (const step of this.picture.uses) {
        if (this.use(step, followed) !== use) continue;
        const width = Math.max(this.x(step + 1) - this.x(step) - 0.5, 2);
        this.pen.fillRect(this.x(step), TOP + MEMORY + 1, width, GAP - 2);
      }
    }
  }

  // How a step that uses a buffer finds it. A replaced step does not run: the copy engine does its work.
  use(step, buffer) {
    if (this.replaced.has(step)) return "copied";
    return this.map.fast[step].includes(buffer) ? "fast" : "slow";
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

  // The step under a point of the canvas; null beside the drawing.
  stepAt(px) {
    const step = Math.floor(this.step(px));
    const isDrawn = LEFT <= px && px < this.width - RIGHT && 0 <= step && step <= this.program.steps.length;
    return isDrawn ? step : null;
  }

  pieceAt(step, py) {
    const address = ((TOP + MEMORY - py) / MEMORY) * this.program.capacity;
    return this.map.pieces.find(([, start, end, low, high]) =>
      start <= step && step < end && low <= address && address < high);
  }

  copyAt(step, py) {
    const top = this.panels()[1][0], lane = Math.floor((py - top) / (COPIES / ROWS));
    return this.map.copies.find(([, issue, deadline], index) =>
      this.lanes[index] === lane && issue <= step && (step < deadline || step === issue));
  }

  // Index of the tensor under a point, or null.
  bufferAt(px, py) {
    const step = this.stepAt(px);
    if (step === null) return null;
    const found = py < TOP + MEMORY ? this.pieceAt(step, py) : this.copyAt(step, py);
    return found ? found[0] : null;
  }

  // Lines about a point, or null beside the drawing.
  describe(px, py) {
    const step = this.stepAt(px);
    if (step === null) return null;
    const lines = py < TOP + MEMORY ? this.describePiece(step, py) : this.describeCopy(step, py);
    return [...lines, ...this.describeStep(step)];
  }

  describeStep(step) {
    const tick = this.program.tick, stall = this.map.stalls.find(([at]) => at === step);
    const instruction = this.program.steps[step];
    if (!instruction) {
      const end = `step ${step}: the end`;
      return stall ? [end, `stalls ${timeText(stall[1] * tick)} before it`] : [end];
    }
    const [name, opcode, shape, repeat] = instruction;
    const lines = [`step ${step}: ${opcode} ${name}${repeat === 1 ? "" : `, ${timesText(repeat)}`}`, shape];
    lines.push(`takes ${timeText(this.map.elapsed[step] * tick)}, leaves copies ${timeText(this.map.idle[step] * tick)} of the bus`);
    lines.push(`fast memory held: ${sizeText(this.map.held[step])}`);
    if (stall) lines.push(`stalls ${timeText(stall[1] * tick)} before it${repeat === 1 ? "" : ", all trips"}`);
    return [...lines, ...this.describeAccesses(step)];
  }

  // The largest tensors the step uses, and whether they are fast then.
  describeAccesses(step) {
    if (this.replaced.has(step)) return ["done by the copy engine in its stead"];
    const sorted = [...this.program.accesses[step]].sort(([a], [b]) =>
      this.program.buffers[b][2] - this.program.buffers[a][2]);
    const lines = sorted.slice(0, ACCESSES_TOLD).map(([buffer, kind]) => {
      const [name, , bytes] = this.program.buffers[buffer];
      return `${this.use(step, buffer)}  ${kind} of ${name}, ${sizeText(bytes)}`;
    });
    if (sorted.length > ACCESSES_TOLD) lines.push(`and ${sorted.length - ACCESSES_TOLD} more`);
    return lines.length ? ["", ...lines] : [];
  }

  describePiece(step, py) {
    const piece = this.pieceAt(step, py);
    if (!piece) return [];
    const [buffer, start, end, low, , source, ready, saves] = piece;
    const [name, shape, bytes] = this.program.buffers[buffer];
    const copied = source === "copied" ? `, copied before ${ready}` : "";
    return [name, `${shape}  ${sizeText(bytes)} at ${sizeText(low)}`,
      `${source}, steps ${start} to ${end - 1}${copied}`, `saves ${timeText(saves)}`, ""];
  }

  describeCopy(step, py) {
    const copy = this.copyAt(step, py);
    if (!copy) return [];
    const [buffer, issue, deadline, inward, bytes, stall, trips, replaces] = copy;
    const kind = replaces !== null ? `step ${replaces} by the copy engine, filling` : inward ? "prefetch of" : "eviction of";
    const lines = [`${kind} ${this.program.buffers[buffer][0]}`,
      `${sizeText(bytes)}, issued at ${issue}, due before ${deadline}`];
    if (stall) lines.push(`stalls ${timeText(stall * trips * this.program.tick)}${trips === 1 ? "" : ", all trips"}`);
    return [...lines, ""];
  }
}

// The maps over one program: the steps they show, and the tensor they follow.
class Picture {
  constructor(place, tip, { program, maps }) {
    Object.assign(this, { program, tip, followed: null, isHeld: false, uses: [] });
    tip.hidden = true;
    this.all = [0, program.steps.length + 1];
    this.range = this.all;
    place.replaceChildren();
    this.told = place.appendChild(document.createElement("p"));
    this.told.className = "note";
    this.told.setAttribute("role", "status");
    this.views = maps.map((map) => this.addView(place, map));
    for (const map of maps) {
      const details = place.appendChild(document.createElement("details"));
      details.appendChild(document.createElement("summary")).textContent =
        `${map.heading}: the accesses that stay slow and cost most`;
      details.appendChild(this.slowTable(map));
    }
    this.follow(null, false);
  }

  addView(place, map) {
    const title = `${map.heading}: ${timeText(map.latency)}, of which stalls ${timeText(map.stall)}`;
    place.appendChild(document.createElement("h4")).textContent = title;
    const frame = place.appendChild(document.createElement("div"));
    frame.className = "frame";
    const canvas = frame.appendChild(document.createElement("canvas"));
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `Memory map of ${title}. Keys: plus, minus, arrows, 0, Escape.`);
    const view = new MapView(this, map, canvas);
    new Gestures(this, view);
    return view;
  }

  redraw() { this.views.forEach((view) => view.draw()); }

  // Veils all tensors but this one (null: none); held, it stays whatever is pointed at.
  follow(buffer, isHeld) {
    this.followed = buffer;
    this.isHeld = isHeld && buffer !== null;
    this.uses = this.program.accesses.flatMap((accesses, step) =>
      accesses.some(([used]) => used === buffer) ? [step] : []);
    const told = this.isHeld ? this.describeHeld() : HINT;
    if (this.told.textContent !== told) this.told.textContent = told;
    this.redraw();
  }

  describeHeld() {
    const [name, shape, bytes] = this.program.buffers[this.followed];
    const shares = this.views.map((view) => {
      const found = this.uses.map((step) => view.use(step, this.followed));
      const counts = Object.keys(COLOUR_OF_USE).reverse().map((use) => [use, found.filter((f) => f === use).length]);
      return `${view.map.heading} ${counts.filter(([, n]) => n).map(([use, n]) => `${n} ${use}`).join(", ")}`;
    });
    return `${name}, ${shape}, ${sizeText(bytes)}; steps that use it: ${shares.join("; ")}. Click it again or press Escape to let go.`;
  }

  point(view, px, py) {
    const buffer = view.bufferAt(px, py);
    if (!this.isHeld && buffer !== this.followed) this.follow(buffer, false);
  }

  click(view, px, py) {
    const buffer = view.bufferAt(px, py);
    this.follow(buffer, !(this.isHeld && buffer === this.followed));
  }

  // How many steps are shown if so many are asked for.
  widthShown(width) {
    const last = this.all[1];
    return Math.min(Math.max(width, Math.min(FEWEST_STEPS, last)), last);
  }

  // Shows about `width` steps, `low` the first if it can be; false if nothing changes.
  show(low, width) {
    const last = this.all[1], shown = this.widthShown(width);
    const first = Math.min(Math.max(low, 0), last - shown);
    if (first === this.range[0] && first + shown === this.range[1]) return false;
    this.range = [first, first + shown];
    this.redraw();
    return true;
  }

  pan(steps) { return this.show(this.range[0] + steps, this.range[1] - this.range[0]); }

  // `centre` stays where it is on the canvas.
  zoom(factor, centre = (this.range[0] + this.range[1]) / 2) {
    const [low, high] = this.range, width = this.widthShown((high - low) * factor);
    return this.show(centre - ((centre - low) / (high - low)) * width, width);
  }

  slowTable(map) {
    const table = document.createElement("table");
    const titles = ["step", "instruction", "access", "tensor", "size", "costs", "why slow"];
    const head = table.insertRow();
    for (const title of titles) head.appendChild(document.createElement("th")).textContent = title;
    for (const [step, buffer, kind, bytes, cost, reason] of map.slow) {
      const line = table.insertRow();
      const [instruction] = this.program.steps[step], [name] = this.program.buffers[buffer];
      for (const cell of [step, instruction, kind, name, sizeText(bytes), timeText(cost), reason]) {
        line.insertCell().textContent = cell;
      }
      const link = document.createElement("button");
      link.textContent = name;
      link.title = "follow it in the maps";
      link.onclick = () => this.lookAt(step, buffer);
      line.cells[titles.indexOf("tensor")].replaceChildren(link);
    }
    return table;
  }

  lookAt(step, buffer) {
    const width = this.range[1] - this.range[0];
    this.show(step - width / 2, width);
    this.follow(buffer, true);
    this.told.scrollIntoView({ block: "start" });
    this.views[0]?.canvas.focus({ preventScroll: true });
  }
}

// What mouse, touch and keys do on one map's canvas.
class Gestures {
  constructor(picture, view) {
    // pointers: where each finger, or the mouse with its button down, was last.
    Object.assign(this, { picture, view, pointers: new Map(), hasMoved: false, before: null });
    const { canvas } = view;
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("dblclick", (event) => this.reset(event));
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "lostpointercapture"]) {
      canvas.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    canvas.addEventListener("pointerleave", (event) => this.leave(event));
    canvas.addEventListener("click", (event) => this.click(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  place(event) {
    const box = this.view.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  // At the ends of pan and zoom the wheel is the page's.
  wheel(event) {
    if (!event.cancelable || (event.deltaX === 0 && event.deltaY === 0)) return;
    const isSideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    const delta = isSideways ? event.deltaX || event.deltaY : event.deltaY;
    const pixels = delta * [1, 16, 400][event.deltaMode];
    const notches = Math.min(Math.max(pixels / 100, -1), 1);
    const width = this.picture.range[1] - this.picture.range[0];
    const hasChanged = isSideways
      ? this.picture.pan((notches * width) / 20)
      : this.picture.zoom(1.25 ** notches, this.view.step(this.place(event)[0]));
    if (!hasChanged) return;
    event.preventDefault();
    this.hover(event);
  }

  press(event) {
    if (event.button !== 0) return;
    this.picture.tip.hidden = true;
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    this.hasMoved = this.pointers.size > 1;
    this.view.canvas.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (event.buttons === 0) this.pointers.delete(event.pointerId);
    const before = this.pointers.get(event.pointerId), now = [event.clientX, event.clientY];
    if (before === undefined) { this.hover(event); return; }
    if (!this.hasMoved && Math.hypot(now[0] - before[0], now[1] - before[1]) < 4) return;
    this.hasMoved = true;
    this.picture.tip.hidden = true;
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    if (others.length === 0) this.picture.pan(this.view.step(before[0]) - this.view.step(now[0]));
    if (others.length === 1) this.pinch(before[0], now[0], others[0][1][0]);
    this.pointers.set(event.pointerId, now);
  }

  pinch(before, now, other) {
    const left = this.view.canvas.getBoundingClientRect().left;
    const factor = Math.max(Math.abs(before - other), 10) / Math.max(Math.abs(now - other), 10);
    this.picture.zoom(factor, this.view.step(other - left));
  }

  click(event) {
    if (this.hasMoved || event.detail > 1) return;
    this.before = [this.picture.followed, this.picture.isHeld];
    this.picture.click(this.view, ...this.place(event));
    if (event.pointerType === "touch") this.tell(event);
  }

  // A double click only resets the steps shown: what its first click followed is undone.
  reset(event) {
    this.picture.show(...this.picture.all);
    if (this.before !== null) this.picture.follow(...this.before);
    this.hover(event);
  }

  leave(event) {
    // A finger leaves whenever it is lifted.
    if (event.pointerType === "touch") return;
    this.picture.tip.hidden = true;
    if (!this.picture.isHeld && this.picture.followed !== null) this.picture.follow(null, false);
  }

  key(event) {
    const tenth = (this.picture.range[1] - this.picture.range[0]) / 10;
    const actions = {
      ArrowLeft: () => this.picture.pan(-tenth),
      ArrowRight: () => this.picture.pan(tenth),
      "+": () => this.picture.zoom(0.8),
      "=": () => this.picture.zoom(0.8),
      "-": () => this.picture.zoom(1.25),
      0: () => this.picture.show(...this.picture.all),
      Escape: () => this.picture.follow(null, false),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in actions)) return;
    this.picture.tip.hidden = true;
    actions[event.key]();
    event.preventDefault();
  }

  hover(event) {
    this.picture.point(this.view, ...this.place(event));
    this.tell(event);
  }

  // The tip beside a point: what is there.
  tell(event) {
    const [px, py] = this.place(event), { tip } = this.picture;
    const lines = this.view.describe(px, py);
    tip.hidden = lines === null;
    if (lines === null) return;
    tip.textContent = lines.join("\n");
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 14, above = event.clientY - 14 - tip.offsetHeight;
    const fits = below + tip.offsetHeight <= window.innerHeight || above < 0;
    tip.style.left = `${Math.max(left, 8) + window.scrollX}px`;
    tip.style.top = `${(fits ? below : above) + window.scrollY}px`;
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

function showPicture(place, data) {
  const picture = new Picture(place, document.getElementById("tip"), data);
  window.onresize = () => {
    picture.tip.hidden = true;
    picture.redraw();
  };
  return picture;
}
