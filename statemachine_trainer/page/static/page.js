// Asks for the state of the run a few times a second and shows it. Whatever comes from the run is
// set as text; only the picture of the graph, which the server has escaped, comes in as markup.
"use strict";

const INTERVAL = 250;
const SVG = "http://www.w3.org/2000/svg";
const element = (id) => document.getElementById(id);
let drawn = null; // the graph that is shown
let order = []; // names of the buttons

function make(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// A problem, or what became of a button that was pressed.
function tell(text, isProblem = true) {
  const message = element("message");
  message.textContent = text;
  message.hidden = !text;
  message.classList.toggle("told", !isProblem);
}

async function ask(path, options) {
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer;
}

async function press(name) {
  try {
    const run = await (await ask(`/press/${name}`, { method: "POST" })).json();
    show(run);
    tell(run.told, false);
  } catch (error) {
    tell(error.message);
  }
}

function showButtons(buttons) {
  const names = Object.keys(buttons);
  if (names.join() !== order.join()) {
    order = names;
    element("buttons").replaceChildren(...names.map((name) => {
      const button = make("button", name);
      button.id = `button-${name}`;
      button.addEventListener("click", () => press(name));
      return button;
    }));
  }
  for (const [name, refusal] of Object.entries(buttons)) {
    const button = element(`button-${name}`);
    button.disabled = refusal !== null;
    button.title = refusal ?? "";
  }
  // Where nothing can be pressed for one reason, that is said without being pointed at.
  const reasons = new Set(Object.values(buttons));
  const [reason] = reasons;
  const why = reasons.size === 1 && reason !== null ? reason : "";
  element("why").textContent = why;
  if (why && element("message").classList.contains("told")) tell("");
}

function mood(run) {
  if (run.outcome) return `ended: ${run.outcome}`;
  if (run.held) return "held before this state";
  const posted = run.posted.length ? `, posted: ${run.posted.join(", ")}` : "";
  return (run.mood ?? (run.running ? "running" : "standing still")) + posted;
}

async function showGraph(run) {
  if (drawn !== run.graph) {
    drawn = run.graph;
    element("graph").innerHTML = await (await ask("/graph")).text();
  }
  const graph = element("graph");
  const path = run.state ?? "";
  for (const one of graph.querySelectorAll("[data-path]")) {
    const mine = one.dataset.path;
    one.classList.toggle("lit", mine === path || path.startsWith(`${mine}.`));
    one.classList.toggle("running", mine === path);
  }
  const total = Object.values(run.states).reduce((sum, one) => sum + one.seconds, 0);
  for (const [name, one] of Object.entries(run.states)) {
    const shown = graph.querySelector(`[data-path="${CSS.escape(name)}"]`);
    shown?.classList.add("hot");
    shown?.style.setProperty("--heat", total ? Math.sqrt(one.seconds / total) : 0);
  }
  for (const edge of run.edges) {
    const where = `[data-source="${CSS.escape(edge.source)}"][data-event="${CSS.escape(edge.event)}"]`;
    for (const shown of graph.querySelectorAll(where)) count(shown, edge.count);
  }
}

function count(shown, number) {
  let label = shown.querySelector(".count");
  if (!label) {
    const text = shown.querySelector("text");
    label = text ? document.createElementNS(SVG, "tspan") : make("span");
    label.setAttribute("class", "count");
    if (text) { // below the event: beside it there may be another
      label.setAttribute("x", text.getAttribute("x"));
      label.setAttribute("dy", "1.05em");
    }
    (text ?? shown).append(label);
  }
  label.textContent = `${label.namespaceURI === SVG ? "" : " "}×${number.toLocaleString("en")}`;
}

function showTimes(states) {
  const total = Object.values(states).reduce((sum, one) => sum + one.seconds, 0) || 1;
  const rows = Object.entries(states).sort((a, b) => b[1].seconds - a[1].seconds).slice(0, 12);
  element("times").tBodies[0].replaceChildren(...rows.map(([path, one]) => {
    const row = make("tr");
    const bar = make("div", undefined, "bar");
    bar.style.width = `${(100 * one.seconds) / total}%`;
    const share = make("td", undefined, "share");
    share.append(bar);
    const mean = (1e6 * one.seconds) / one.calls;
    row.append(
      make("td", path.split(".").slice(-2).join(".")), make("td", `×${one.calls.toLocaleString("en")}`),
      make("td", mean >= 1000 ? `${(mean / 1000).toFixed(1)} ms` : `${mean.toFixed(0)} µs`), share,
    );
    row.title = path;
    return row;
  }));
}

function showRecent(recent) {
  element("recent").replaceChildren(...recent.slice().reverse().map((one) => {
    const line = make("li");
    line.append(one.state, make("span", ` → ${one.event}`));
    return line;
  }));
}

const short = (value) => (value === null ? "not finite" : Number(value.toPrecision(4)).toString());

function curve(name, points) {
  const finite = points.filter(([, value]) => value !== null);
  const figure = make("figure");
  const caption = make("figcaption", name);
  figure.append(caption);
  if (!finite.length) return figure;
  caption.append(make("b", short(points.at(-1)[1])));
  const [left, right] = [finite[0][0], finite.at(-1)[0]];
  const low = Math.min(...finite.map(([, value]) => value));
  const high = Math.max(...finite.map(([, value]) => value));
  const across = (step) => (right > left ? (100 * (step - left)) / (right - left) : 50);
  const down = (value) => (high > low ? 96 - (92 * (value - low)) / (high - low) : 50);
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("class", "curve");
  picture.setAttribute("viewBox", "0 0 100 100");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `${name}, from ${short(low)} to ${short(high)}`);
  const line = document.createElementNS(SVG, "polyline");
  const shown = finite.length > 1 ? finite : [...finite, [finite[0][0] + 1, finite[0][1]]];
  line.setAttribute("points", shown.map(([step, value]) => `${across(step)},${down(value)}`).join(" "));
  picture.append(line);
  figure.append(picture, make("div", `${short(low)} to ${short(high)}, steps ${left} to ${right}`, "range"));
  return figure;
}

function show(run) {
  element("state").textContent = run.state ?? "(none)";
  element("mood").textContent = mood(run);
  element("counts").textContent = Object.entries(run.counts)
    .map(([name, number]) => `${name === "batch" ? "batches" : `${name}s`} ${number.toLocaleString("en")}`).join("   ");
  document.title = `${run.state ?? "ended"} · statemachine_trainer`;
  showButtons(run.buttons);
  showTimes(run.states);
  showRecent(run.recent);
  element("curves").replaceChildren(...Object.entries(run.curves).map(([name, points]) => curve(name, points)));
  if (element("subscribers").textContent !== run.subscribers) element("subscribers").textContent = run.subscribers;
  return showGraph(run);
}

async function watch() {
  try {
    await show(await (await ask("/state")).json());
    if (element("message").textContent.startsWith("The run's process")) tell("");
  } catch (error) {
    tell(error instanceof TypeError ? "The run's process does not answer; it has ended, or it hangs." : error.message);
  }
  setTimeout(watch, INTERVAL);
}

watch();
