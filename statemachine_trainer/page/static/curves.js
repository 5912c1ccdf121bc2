// Curves of metrics: axes, the value under the pointer, and a logarithmic scale on request.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [300, 130, 44, 18, 6, 8];
const NEAR = 4; // how far from a mark the pointer may be

export const short = (value) => (value === null ? "not finite" : Number(value.toPrecision(4)).toString());

function draw(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Round numbers between two ends: 1, 2 or 5 times a power of ten apart, or powers of ten.
export function ticks(low, high, most, isLog) {
  if (low === high) return [low];
  if (isLog) {
    const [first, last] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
    const every = Math.max(1, Math.ceil((last - first + 1) / most));
    const found = [];
    for (let power = first; power <= last; power += every) found.push(10 ** power);
    return found.length > 1 ? found : [low, high];
  }
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const apart = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / apart); at * apart <= high * (1 + 1e-12); at++) found.push(at * apart);
  return found;
}

// A line is `{points}`, or, where there are several, `{points, key, name, style}`.
export const paint = (made, { style }) => style && Object.entries(style).forEach(([name, value]) => made.style.setProperty(name, value));

// What stands for a line beside its name.
export function swatch(line) {
  const made = draw("svg", { class: "swatch", viewBox: "0 0 24 10", "aria-hidden": "true" });
  made.append(draw("line", { x1: 1, x2: 23, y1: 5, y2: 5 }));
  paint(made, line);
  return made;
}

// One figure. It keeps its element, so that the pointer stays where it is when points come.
export class Curve {
  constructor(name) {
    this.name = name;
    this.element = document.createElement("figure");
    this.value = document.createElement("b");
    const caption = document.createElement("figcaption");
    this.label = document.createElement("span");
    this.label.textContent = name;
    caption.append(this.label, this.value);
    this.picture = draw("svg", { class: "curve", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    for (const moved of ["pointermove", "pointerdown"]) this.picture.addEventListener(moved, (event) => this.point(event));
    this.picture.addEventListener("pointerleave", () => this.point(null));
    this.values = document.createElement("ul");
    this.values.className = "values";
    this.values.hidden = true;
    this.told = document.createElement("p");
    this.told.className = "told-mark";
    this.element.append(caption, this.picture, this.values, this.told);
    this.drawn = "";
    this.pointer = null;
  }

  // A mark is `{from, to, text}`: something that happened between two steps, or at one.
  show(lines, wantsLog, marks = []) {
    const key = [wantsLog, JSON.stringify(marks), ...lines.map(({ key, name, points }) => [key, name, points.length, ...(points.at(-1) ?? [])])].join(" ");
    if (key === this.drawn) return;
    this.drawn = key;
    this.lines = lines;
    this.marks = marks;
    this.redraw(wantsLog);
    this.point(undefined);
  }

  redraw(wantsLog) {
    const all = this.lines.flatMap(({ points }) => points.filter(([, value]) => value !== null));
    if (!all.length) {
      this.across = null;
      this.picture.replaceChildren();
      this.picture.setAttribute("aria-label", `${this.name}, no finite value`);
      return;
    }
    const isLog = wantsLog && all.every(([, value]) => value > 0);
    this.label.textContent = wantsLog && !isLog ? `${this.name} (linear: not all above 0)` : this.name;
    const scale = isLog ? Math.log10 : (value) => value;
    const ends = (numbers) => numbers.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [Infinity, -Infinity]);
    const [low, high] = ends(all.map(([, value]) => value));
    const [first, last] = ends([...all.map(([step]) => step), ...this.marks.flatMap(({ from, to }) => [from, to])]);
    this.across = (step) => LEFT + (last > first ? ((step - first) / (last - first)) * (WIDTH - LEFT - RIGHT) : (WIDTH - LEFT) / 2);
    this.down = (value) => TOP + (high > low ? (scale(high) - scale(value)) / (scale(high) - scale(low)) : 0.5) * (HEIGHT - TOP - BOTTOM);
    const parts = [];
    for (const value of ticks(low, high, 3, isLog)) {
      const y = this.down(value);
      parts.push(draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
      parts.push(draw("text", { x: LEFT - 4, y: y + 3, "text-anchor": "end" }, short(value)));
    }
    const steps = ticks(first, last, 4, false).filter(Number.isInteger);
    for (const step of steps) {
      const anchor = this.across(step) > WIDTH - 25 ? "end" : "middle";
      parts.push(draw("text", { x: this.across(step), y: HEIGHT - 4, "text-anchor": anchor }, step.toLocaleString("en")));
    }
    parts.push(draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
    for (const mark of this.marks) parts.push(this.drawMark(mark));
    for (const line of this.lines) parts.push(...this.drawLine(line));
    this.picture.replaceChildren(...parts);
    const named = this.lines.length > 1 ? `${this.lines.length} runs, ` : "";
    this.picture.setAttribute("aria-label", `${this.name}, ${named}from ${short(low)} to ${short(high)}, steps ${first} to ${last}`);
  }

  drawMark({ from, to }) {
    const [left, right] = [this.across(from), this.across(to)];
    return draw("rect", { class: "mark", x: left - 0.5, width: right - left + 1, y: TOP, height: HEIGHT - BOTTOM - TOP });
  }

  // What happened where the pointer is, or less than a few pixels away.
  marksAt(x) {
    return this.marks.filter(({ from, to }) => this.across(from) - NEAR <= x && x <= this.across(to) + NEAR);
  }

  // A value that is not finite leaves a gap.
  drawLine(line) {
    const pieces = [[]];
    for (const point of line.points) {
      if (point[1] === null) pieces.push([]);
      else pieces.at(-1).push(point);
    }
    return pieces.filter((piece) => piece.length).map((piece) => {
      const points = piece.map(([step, value]) => `${this.across(step)},${this.down(value)}`).join(" ");
      const [[step, value]] = piece;
      const made = piece.length > 1 ? draw("polyline", { points }) : draw("circle", { cx: this.across(step), cy: this.down(value), r: 2.5 });
      made.dataset.line = line.key ?? "";
      paint(made, line);
      return made;
    });
  }

  // The values nearest to the pointer; null where it has left, undefined where it rests.
  point(event) {
    if (event !== undefined) this.pointer = event && { x: event.clientX };
    this.picture.querySelectorAll(".cursor").forEach((one) => one.remove());
    const lines = this.across ? this.lines.filter(({ points }) => points.length) : [];
    this.values.hidden = !this.pointer || !lines.length || !lines[0].name;
    this.told.textContent = "";
    if (!this.pointer || !lines.length) {
      const [only] = this.lines?.length === 1 ? this.lines : [];
      this.value.textContent = only?.points.length ? short(only.points.at(-1)[1]) : "";
      return;
    }
    const box = this.picture.getBoundingClientRect();
    const x = ((this.pointer.x - box.left) / box.width) * WIDTH;
    this.told.textContent = this.marksAt(x).map(({ text }) => text).join("\n");
    const nearest = (points) => points.reduce((best, one) => (Math.abs(this.across(one[0]) - x) < Math.abs(this.across(best[0]) - x) ? one : best));
    const read = lines.map((line) => ({ line, at: nearest(line.points) }));
    const [step] = nearest(read.map(({ at }) => at));
    this.value.textContent = `step ${step.toLocaleString("en")}${this.values.hidden ? `: ${short(read[0].at[1])}` : ""}`;
    this.picture.append(draw("line", { class: "cursor", x1: this.across(step), x2: this.across(step), y1: TOP, y2: HEIGHT - BOTTOM }));
    for (const { line, at } of read.filter(({ at: [, value] }) => value !== null)) {
      const dot = draw("circle", { class: "cursor", cx: this.across(at[0]), cy: this.down(at[1]), r: 3 });
      paint(dot, line);
      this.picture.append(dot);
    }
    if (!this.values.hidden) this.tellValues(read, step, x > WIDTH / 2);
  }

  // In the order in which the lines lie over one another. A run that has no value there is told with the step of its own.
  tellValues(read, step, isRight) {
    read.sort((one, other) => (other.at[1] ?? -Infinity) - (one.at[1] ?? -Infinity));
    this.values.replaceChildren(...read.map(({ line, at }) => {
      const [row, name, value, away] = ["li", "span", "b", "i"].map((tag) => document.createElement(tag));
      [name.textContent, value.textContent] = [line.name, short(at[1])];
      away.textContent = at[0] === step ? "" : `at ${at[0].toLocaleString("en")}`;
      row.append(swatch(line), name, value, away);
      return row;
    }));
    Object.assign(this.values.style, isRight ? { left: "0", right: "auto" } : { left: "auto", right: "0" });
  }
}
