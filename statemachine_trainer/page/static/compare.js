// Several runs: a table of what differs, and the curves of those that are ticked, over one another.
// Whatever comes from the runs is set as text.
import { ask, element, make, tell } from "./asking.js";
import { Curve, swatch } from "./curves.js";

const [BUSY, IDLE] = [2000, 10000]; // ms from an answer to the next question
const COLOURS = 8;
const DASHES = ["none", "7 4", "2 3"];
const MOST = COLOURS * DASHES.length; // lines that can be told apart
const AT_FIRST = COLOURS;

const places = new Map(); // of the runs that are ticked: key to the number of its colour
const figures = new Map();
let sorting = { name: null, isUp: true };
let shown = ""; // what the table was drawn from
let runs = null; // what the server told last
let curves = {};
let marks = []; // where two runs part

function styleOf(key) {
  const place = places.get(key);
  return { "--shade": `var(--line-${place % COLOURS})`, "stroke-dasharray": DASHES[Math.floor(place / COLOURS)] };
}

function tick(key, isOn) {
  if (!isOn) return places.delete(key);
  const taken = new Set(places.values());
  if (taken.size < MOST) places.set(key, [...Array(MOST).keys()].find((one) => !taken.has(one)));
}

// -- the table --------------------------------------------------------------------------------------

function inOrder() {
  const all = runs.runs.map((run, row) => ({ ...run, row }));
  const column = runs.columns.find((one) => `${one.kind} ${one.name}` === sorting.name);
  const key = ({ row, name }) => (column ? column.numbers[row] ?? column.cells[row] : name);
  const isEmpty = (one) => column && ["", "-"].includes(column.cells[one.row]);
  // Numbers before words, what is missing last, whichever way.
  const rank = (one) => (isEmpty(one) ? 2 : typeof key(one) === "number" ? 0 : 1);
  const compare = (one, other) => {
    if (rank(one) !== rank(other)) return rank(one) - rank(other);
    const [mine, its] = [key(one), key(other)];
    const found = typeof mine === "number" ? mine - its : mine.localeCompare(its, undefined, { numeric: true });
    return sorting.isUp ? found : -found;
  };
  return column || !sorting.isUp ? all.sort(compare) : all;
}

function head(text, name, kind) {
  const [cell, button] = [make("th", undefined, kind), make("button", text)];
  cell.scope = "col";
  button.id = `sort-${name ?? "run"}`;
  button.title = `sort by ${text}`;
  if (sorting.name === name) cell.setAttribute("aria-sort", sorting.isUp ? "ascending" : "descending");
  button.addEventListener("click", () => {
    sorting = { name, isUp: sorting.name === name ? !sorting.isUp : true };
    showTable();
  });
  cell.append(button);
  return cell;
}

function row(run) {
  const [made, name, label, box, link] = [make("tr"), make("th"), make("label"), make("input"), make("a", run.name)];
  name.scope = "row";
  Object.assign(box, { type: "checkbox", id: `show-${run.key}`, checked: places.has(run.key) });
  box.disabled = !box.checked && places.size >= MOST;
  box.title = box.disabled ? `${MOST} runs are drawn at most: untick another one` : "draw its curves";
  box.setAttribute("aria-label", `draw ${run.name}`);
  box.addEventListener("change", () => {
    tick(run.key, box.checked);
    location.replace(`#${[...places.keys()].join()}`);
    showTable();
    askForCurves();
  });
  link.href = `/run/${run.key}/`;
  label.append(box, ...(box.checked ? [swatch({ style: styleOf(run.key) })] : []));
  name.append(label, " ", link);
  made.append(name, ...runs.columns.map((column) => {
    const cell = make("td", column.cells[run.row], column.kind);
    cell.title = `${column.name}: ${column.cells[run.row]}`;
    return cell;
  }));
  if (places.has(run.key)) pointAt(made, run.key);
  return made;
}

function showTable() {
  const focused = document.activeElement?.id;
  const table = element("runs");
  table.tHead.rows[0].replaceChildren(head("run", null), ...runs.columns.map((one) => head(one.name, `${one.kind} ${one.name}`, one.kind)));
  table.tBodies[0].replaceChildren(...inOrder().map(row));
  element("same").textContent = runs.same;
  element("troubles").replaceChildren(...runs.runs.filter((one) => one.trouble).map((one) => make("li", `${one.name}: ${one.trouble}`)));
  element("folders").textContent = runs.folders;
  const going = runs.runs.filter((one) => one.status === "running").length;
  element("counts").textContent = `${runs.runs.length} run${runs.runs.length === 1 ? "" : "s"}${going ? `, ${going} running` : ""}`;
  document.title = `${runs.folders} · runs`;
  element("legend").replaceChildren(...runs.runs.filter((one) => places.has(one.key)).map((one) => {
    const made = make("li");
    made.append(swatch({ style: styleOf(one.key) }), one.name);
    pointAt(made, one.key);
    return made;
  }));
  if (focused) element(focused)?.focus();
}

// -- the curves -------------------------------------------------------------------------------------

// Where the pointer rests on a run, the lines of the others fade.
function pointAt(made, key) {
  const fade = (isOn) => {
    element("curves").classList.toggle("curves-faded", isOn);
    document.querySelectorAll("[data-line]").forEach((one) => one.classList.toggle("kept", isOn && one.dataset.line === String(key)));
  };
  made.addEventListener("pointerenter", ({ pointerType }) => pointerType === "mouse" && fade(true));
  made.addEventListener("pointerleave", () => fade(false));
}

function showCurves() {
  const isLog = element("log").checked;
  for (const [name, figure] of figures) {
    if (name in curves) continue;
    figure.element.remove();
    figures.delete(name);
  }
  for (const [name, byRun] of Object.entries(curves)) {
    if (!figures.has(name)) {
      figures.set(name, new Curve(name));
      element("curves").append(figures.get(name).element);
    }
    const lines = runs.runs.filter(({ key }) => key in byRun && places.has(key));
    figures.get(name).show(lines.map((run) => ({ key: run.key, name: run.name, points: byRun[run.key], style: styleOf(run.key) })), isLog, marks);
  }
}

async function askForCurves() {
  const ticked = () => [...places.keys()].map((key) => `run=${key}`).join("&");
  const wanted = ticked();
  try {
    const [found, difference] = await Promise.all([(await ask(`curves?${wanted}`)).json(), askForDifference()]);
    if (wanted !== ticked()) return;
    curves = found;
    showDifference(difference);
  } catch (error) {
    tell(error.message);
  }
  showCurves();
}

// Of two runs, where they part: `smt diff` on the page.
async function askForDifference() {
  const pair = runs.runs.filter(({ key }) => places.has(key));
  if (pair.length !== 2) return null;
  try {
    return await (await ask(`difference/${pair[0].key}/${pair[1].key}`)).json();
  } catch (error) {
    return { verdict: error.message, text: "", steps: null };
  }
}

function showDifference(difference) {
  element("parting").hidden = !difference;
  element("verdict").textContent = difference?.verdict ?? "";
  element("differs").textContent = difference?.text ?? "";
  element("differs").parentElement.hidden = !difference?.text;
  marks = difference?.steps ? [{ from: difference.steps[0], to: difference.steps[1], text: difference.verdict }] : [];
}

// -- all of it --------------------------------------------------------------------------------------

function tickFirst() {
  const asked = location.hash.slice(1).split(",").filter(Boolean).map(Number);
  const known = runs.runs.map(({ key }) => key);
  const found = asked.filter((key) => known.includes(key));
  for (const key of found.length ? found : known.slice(0, AT_FIRST)) tick(key, true);
}

let timer = null;

async function watch() {
  timer = null;
  if (!document.hidden) {
    try {
      const told = await (await ask("state")).json();
      const isFirst = runs === null;
      runs = told;
      if (isFirst) tickFirst();
      if (JSON.stringify(told) !== shown) {
        shown = JSON.stringify(told);
        showTable();
        await askForCurves();
      }
      tell("");
    } catch (error) {
      tell(error instanceof TypeError ? "The server of this page does not answer; it has ended." : error.message);
    }
  }
  timer = setTimeout(watch, runs?.runs.some((one) => one.status === "running") ? BUSY : IDLE);
}

document.addEventListener("visibilitychange", () => {
  if (timer === null || document.hidden) return;
  clearTimeout(timer);
  watch();
});
element("log").addEventListener("change", () => runs && showCurves());
watch();
