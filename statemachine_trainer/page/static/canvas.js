// The picture of the graph: moved, zoomed, searched. It shows a part of itself by its viewBox, so it stays sharp.

const STEP = 1.25;

export class Canvas {
  constructor(element, { chosen, toggled }) {
    this.element = element;
    this.whole = null; // the viewBox that shows all of it: x, y, width, height
    this.view = null;
    this.pointers = new Map();
    this.moved = false;
    element.addEventListener("pointerdown", (event) => this.press(event));
    element.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, (event) => this.release(event));
    element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    element.addEventListener("keydown", (event) => this.key(event));
    element.addEventListener("click", (event) => this.moved || chosen(this.pathAt(event)));
    element.addEventListener("dblclick", (event) => toggled(this.pathAt(event)));
  }

  get svg() {
    return this.element.querySelector("svg");
  }

  pathAt(event) {
    return event.target.closest?.("[data-path]")?.dataset.path ?? null;
  }

  // Show another picture, and as much of it as of the one before.
  show(markup) {
    const kept = this.whole && this.view.width < this.whole.width ? this.view : null;
    this.element.innerHTML = markup;
    if (!this.svg) return;
    const [x, y, width, height] = this.svg.getAttribute("viewBox").split(" ").map(Number);
    this.whole = { x, y, width, height };
    this.look(kept && kept.width < width ? kept : this.whole);
  }

  look(view) {
    this.view = view;
    this.svg?.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
  }

  fit() {
    if (this.whole) this.look(this.whole);
  }

  // Make what is at a point of the window larger, or smaller; the point stays where it is.
  zoom(factor, clientX, clientY) {
    if (!this.svg) return;
    const box = this.svg.getBoundingClientRect();
    const at = this.inside(clientX ?? box.left + box.width / 2, clientY ?? box.top + box.height / 2);
    const width = Math.min(Math.max(this.view.width / factor, 60), this.whole.width * 2);
    const share = width / this.view.width;
    this.look({
      x: at.x - (at.x - this.view.x) * share, y: at.y - (at.y - this.view.y) * share,
      width, height: this.view.height * share,
    });
  }

  inside(clientX, clientY) {
    return new DOMPoint(clientX, clientY).matrixTransform(this.svg.getScreenCTM().inverse());
  }

  pan(dx, dy) {
    if (this.svg) this.look({ ...this.view, x: this.view.x - dx, y: this.view.y - dy });
  }

  // Where a state is, in units of the picture; null if it is not drawn.
  place(path) {
    const shown = this.find(path)?.querySelector("path, polygon, ellipse");
    if (!shown || !this.svg) return null;
    const box = shown.getBoundingClientRect();
    const [from, to] = [this.inside(box.left, box.top), this.inside(box.right, box.bottom)];
    return { x: from.x, y: from.y, width: to.x - from.x, height: to.y - from.y };
  }

  find(path) {
    return this.element.querySelector(`[data-path="${CSS.escape(path)}"]`);
  }

  // The state as it is drawn, or the innermost closed loop around it.
  visible(path) {
    for (let at = path; at; at = at.slice(0, Math.max(0, at.lastIndexOf(".")))) {
      const found = this.find(at);
      if (found) return found;
    }
    return null;
  }

  // Bring a state into view, if it is not; `near` also makes it large enough to be read.
  bring(path, near = false) {
    const shown = this.visible(path);
    if (!this.svg) return shown?.scrollIntoView({ block: "nearest" });
    const box = shown && this.place(shown.dataset.path);
    if (!box) return;
    const width = near ? Math.min(this.view.width, Math.max(this.whole.width / 2, 400)) : this.view.width;
    const height = (this.view.height * width) / this.view.width;
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    const { view } = this;
    const isIn = x > view.x && x < view.x + view.width && y > view.y && y < view.y + view.height;
    if (near || !isIn) this.look({ x: x - width / 2, y: y - height / 2, width, height });
  }

  press(event) {
    if (!this.svg || event.button > 0) return;
    this.pointers.set(event.pointerId, event);
    this.moved = false;
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (!this.moved && Math.hypot(dx, dy) < 4) return; // a click that trembles
    if (!this.moved) this.element.setPointerCapture(event.pointerId); // it may leave the picture
    this.moved = true;
    this.svg.classList.add("moving");
    const other = [...this.pointers.values()].find((one) => one.pointerId !== event.pointerId);
    const scale = this.svg.getScreenCTM().a;
    if (other) {
      const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      this.zoom(apart(event) / (apart(before) || 1), other.clientX, other.clientY);
    } else {
      this.pan(dx / scale, dy / scale);
    }
    this.pointers.set(event.pointerId, event);
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    this.svg?.classList.remove("moving");
  }

  wheel(event) {
    if (!this.svg) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
  }

  key(event) {
    const far = (this.view?.width ?? 0) / 10;
    const does = {
      "+": () => this.zoom(STEP), "=": () => this.zoom(STEP), "-": () => this.zoom(1 / STEP), 0: () => this.fit(),
      ArrowLeft: () => this.pan(far, 0), ArrowRight: () => this.pan(-far, 0),
      ArrowUp: () => this.pan(0, far), ArrowDown: () => this.pan(0, -far),
    }[event.key];
    if (!does || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    does();
  }
}
