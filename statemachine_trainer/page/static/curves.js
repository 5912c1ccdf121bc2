// Curves of metrics: axes, the value under the pointer, and a logarithmic scale on request.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [300, 130, 44, 18, 6, 8];

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

// One figure. It keeps its element, so that the pointer stays where it is when points come.
export class Curve {
  constructor(name) {
    this.name = name;
    this.element = document.createElement("figure");
    this.value = document.createElement("b");
    const [caption, label] = [document.createElement("figcaption"), document.createElement("span")];
    label.textContent = name;
    caption.append(label, this.value);
    this.picture = draw("svg", { class: "curve", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    this.picture.addEventListener("pointermove", (event) => this.point(event));
    this.picture.addEventListener("pointerleave", () => this.point(null));
    this.element.append(caption, this.picture);
    this.drawn = "";
    this.pointer = null;
  }

  show(points, wantsLog) {
    const key = `${wantsLog} ${points.length} ${points.at(-1)}`;
    if (key === this.drawn) return;
    this.drawn = key;
    this.points = points.filter(([, value]) => value !== null);
    this.last = points.at(-1);
    if (this.points.length) this.redraw(wantsLog && this.points.every(([, value]) => value > 0));
    this.point(undefined);
  }

  redraw(isLog) {
    const scale = isLog ? Math.log10 : (value) => value;
    const values = this.points.map(([, value]) => value);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const [first, last] = [this.points[0][0], this.points.at(-1)[0]];
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
    const line = this.points.map(([step, value]) => `${this.across(step)},${this.down(value)}`).join(" ");
    if (this.points.length > 1) parts.push(draw("polyline", { points: line }));
    else parts.push(draw("circle", { cx: this.across(first), cy: this.down(values[0]), r: 2.5 }));
    this.picture.replaceChildren(...parts);
    this.picture.setAttribute("aria-label", `${this.name}, from ${short(low)} to ${short(high)}, steps ${first} to ${last}`);
  }

  // The value nearest to the pointer; null where it has left, undefined where it rests.
  point(event) {
    if (event !== undefined) this.pointer = event && { x: event.clientX };
    this.picture.querySelectorAll(".cursor").forEach((one) => one.remove());
    if (!this.pointer || !this.points?.length) {
      this.value.textContent = this.last ? short(this.last[1]) : "";
      return;
    }
    const box = this.picture.getBoundingClientRect();
    const x = ((this.pointer.x - box.left) / box.width) * WIDTH;
    const far = ([step]) => Math.abs(this.across(step) - x);
    const [step, value] = this.points.reduce((best, one) => (far(one) < far(best) ? one : best));
    this.value.textContent = `step ${step.toLocaleString("en")}: ${short(value)}`;
    const at = this.across(step);
    this.picture.append(
      draw("line", { class: "cursor", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }),
      draw("circle", { class: "cursor", cx: at, cy: this.down(value), r: 3 }),
    );
  }
}
