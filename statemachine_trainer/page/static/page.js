// Asks for the state of the run a few times a second and shows it. Whatever comes from the run is
// set as text; only the picture of the graph, which the server has escaped, comes in as markup.
import { ask, element, make, tell } from "./asking.js";
import { Canvas } from "./canvas.js";
import { Curve } from "./curves.js";
import { showSettings, when } from "./settings.js";

const INTERVAL = 250;
const closed = new Set(); // paths of the loops that are closed
const opened = new Set(); // and of those that are open although they look as another one
const curves = new Map();
let drawn = null; // what the picture was drawn from
let order = []; // names of the buttons
let chosen = null; // path of the state that was clicked
let latest = null; // what the run told last
const canvas = new Canvas(element("graph"), { chosen: choose, toggled: toggle });

async function press(name) {
  try {
    const run = await (await ask(`press/${encodeURIComponent(name)}`, { method: "POST" })).json();
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
  const until = run.until ? `, until ${run.until}` : "";
  return (run.mood ?? (run.running ? "running" : "standing still")) + posted + until;
}

// A length of time with its units, as the terminal writes it.
function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  const hours = Math.round(seconds / 3600);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

// The mean time of one call.
function mean(seconds, count) {
  const micros = (1e6 * seconds) / count;
  if (micros >= 1e6) return `${(micros / 1e6).toPrecision(3)} s`;
  return micros >= 1000 ? `${(micros / 1000).toPrecision(3)} ms` : `${micros.toFixed(0)} µs`;
}

// A number in at most five characters: 123, 12.3k, 1.23M.
function brief(number) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (number >= size) return `${Number((number / (size === 1e4 ? 1e3 : size)).toPrecision(3))}${unit}`;
  }
  return `${number}`;
}

function showProgress(run) {
  const { name, epoch, epochs, batch, batches, seconds, left, share } = run.progress;
  const parts = [];
  if (epoch !== undefined) parts.push(epochs ? `epoch ${Math.min(epoch + 1, epochs)} of ${epochs}` : `epochs ${epoch}`);
  if (batches) parts.push(`batch ${batch} of ${batches}`);
  if (run.counts.step !== undefined) parts.push(`steps ${run.counts.step.toLocaleString("en")}`);
  if (seconds) parts.push(`${duration(seconds)} elapsed`);
  if (left && !run.outcome && run.running) parts.push(`about ${duration(left)} left`);
  element("name").textContent = name;
  element("counts").textContent = parts.join(" · ");
  element("progress").hidden = share === null || share === undefined;
  element("progress").value = share ?? 0;
}

async function showGraph(run) {
  const asked = Object.entries({ closed, opened })
    .flatMap(([name, paths]) => [...paths].sort().map((path) => `${name}=${encodeURIComponent(path)}`)).join("&");
  if (drawn !== `${run.graph}?${asked}`) {
    drawn = `${run.graph}?${asked}`;
    canvas.show(await (await ask(`graph?${asked}`)).text());
    const paths = [...element("graph").querySelectorAll("[data-path]")].map((one) => one.dataset.path);
    element("paths").replaceChildren(...paths.map((path) => Object.assign(make("option"), { value: path })));
  }
  mark(latest ?? run);
}

// Light what runs, warm what takes time, count what was taken.
function mark(run) {
  const graph = element("graph");
  const path = run.state ?? "";
  const running = canvas.visible(path); // the state, or the closed loop that it is in
  for (const one of graph.querySelectorAll("[data-path]")) {
    const mine = one.dataset.path;
    one.classList.toggle("lit", mine === path || path.startsWith(`${mine}.`));
    one.classList.toggle("running", one === running && !one.matches("[data-path]:has(> [data-path])"));
    one.classList.toggle("chosen", mine === chosen);
    one.classList.toggle("breaks", Boolean(run.breaks?.some((at) => at === mine)));
  }
  const total = Object.values(run.states).reduce((sum, one) => sum + one.seconds, 0);
  const warmth = new Map();
  for (const [name, one] of Object.entries(run.states)) {
    const shown = canvas.visible(name);
    if (shown) warmth.set(shown, (warmth.get(shown) ?? 0) + one.seconds);
  }
  for (const [shown, seconds] of warmth) {
    shown.classList.add("hot");
    shown.style.setProperty("--heat", total ? Math.sqrt(seconds / total) : 0);
  }
  for (const edge of run.edges) {
    const where = `[data-source="${CSS.escape(edge.source)}"][data-event="${CSS.escape(edge.event)}"]`;
    for (const shown of graph.querySelectorAll(where)) count(shown, edge);
  }
  if (element("follow").checked && path) canvas.bring(path);
}

function count(shown, { count: number, seconds }) {
  let label = shown.querySelector(".count");
  if (!label) {
    label = make("span", "", "count"); // the picture has room for it, the outline has not
    shown.append(" ", label);
  }
  label.textContent = `×${brief(number)} ${mean(seconds, number)}`;
  const about = `taken ${number.toLocaleString("en")} times; the state before it took ${mean(seconds, number)} each`;
  const title = shown.querySelector("title");
  if (title) title.textContent = `${title.textContent.split("\n")[0]}\n${about}`;
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
    row.append(
      make("td", path.split(".").slice(-2).join(".")), make("td", `×${one.calls.toLocaleString("en")}`),
      make("td", mean(one.seconds, one.calls)), share,
    );
    row.title = path;
    return row;
  }));
}

// The black boxes of all ranks: which is where, since when, and whom it waits for.
function showRanks(ranks) {
  element("ranks").hidden = !ranks.length;
  const percent = (share) => (share === null ? "" : `${Math.round(100 * share)} %`);
  element("ranks").querySelector("tbody").replaceChildren(...ranks.map((one) => {
    const row = make("tr");
    const where = one.receiver ? `${one.receiver} (after ${one.state})` : one.state ?? "";
    const state = make("td", one.receiver ?? (one.state ?? "").split(".").slice(-2).join("."));
    state.title = where;
    if (one.status !== "running") state.append(make("span", ` (${one.status})`));
    row.append(
      make("td", String(one.rank)), state, make("td", one.seconds === null ? "" : `${one.seconds.toFixed(1)} s`),
      make("td", one.waits_for.join(", ")), make("td", percent(one.waited)), make("td", percent(one.waited_for)),
    );
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

// Who listens, those of this package folded: they are the same in every run.
function showReceivers(text) {
  if (showReceivers.shown === text) return;
  showReceivers.shown = text;
  const signals = text.split(/\n(?! )/);
  const isInner = (signal) => signal.split("\n").slice(1).every((line) => line.includes(". statemachine_trainer."));
  const inner = signals.filter((one) => one.includes("\n") && isInner(one));
  const own = signals.filter((one) => !inner.includes(one));
  element("subscribers").textContent = own.join("\n") || "(none of yours)";
  const folded = element("inner");
  folded.hidden = !inner.length;
  folded.querySelector("summary").textContent = `${inner.length} of statemachine_trainer itself`;
  folded.querySelector("pre").textContent = inner.join("\n");
}

function showCurves({ curves: all, marks }) {
  const happened = (marks ?? []).map(({ step, at, text }) => ({ from: step, to: step, text: `step ${step.toLocaleString("en")}, ${when(at)}: ${text}` }));
  const isLog = element("log").checked;
  for (const [name, points] of Object.entries(all)) {
    if (!curves.has(name)) {
      curves.set(name, new Curve(name));
      element("curves").append(curves.get(name).element);
    }
    curves.get(name).show([{ points }], isLog, happened);
  }
}

// -- one state --------------------------------------------------------------------------------------

async function choose(path) {
  chosen = path;
  element("about").hidden = !path;
  if (!path) return;
  element("about-path").textContent = path;
  element("about-doc").textContent = canvas.find(path)?.querySelector("title")?.textContent.split("\n").slice(1).join(" ") ?? "";
  element("about-source").textContent = element("about-receivers").textContent = "";
  showAbout(latest);
  element("about").scrollIntoView({ block: "nearest" });
  try {
    const about = await (await ask(`about?path=${encodeURIComponent(path)}`)).json();
    if (chosen !== path) return;
    element("about-source").textContent = about.source ?? "";
    element("about-receivers").textContent = Object.entries(about.receivers)
      .map(([signal, labels]) => `${signal}: ${labels.join(", ")}`).join("\n");
  } catch (error) {
    tell(error.message);
  }
}

function showAbout(run) {
  if (!chosen || !run) return;
  const total = Object.values(run.states).reduce((sum, one) => sum + one.seconds, 0) || 1;
  const mine = Object.entries(run.states).filter(([path]) => path === chosen || path.startsWith(`${chosen}.`));
  const seconds = mine.reduce((sum, [, one]) => sum + one.seconds, 0);
  const worked = run.states[chosen];
  element("about-time").textContent = worked
    ? `worked ${worked.calls.toLocaleString("en")} times, ${mean(worked.seconds, worked.calls)} each, ${((100 * seconds) / total).toFixed(1)} % of the time`
    : mine.length ? `${((100 * seconds) / total).toFixed(1)} % of the time` : "has not worked yet";
  const isLoop = element("about").isLoop = canvas.find(chosen)?.matches(".cluster, .loop") ?? false;
  const breaks = run.breaks?.includes(chosen);
  const wanted = isLoop
    ? [[canvas.find(chosen).matches(".closed") ? "open" : "close", () => toggle(chosen)]]
    : [[breaks ? "do not break here" : "break here", () => press(`${breaks ? "clear" : "break"} ${chosen}`)],
      ["run to here", () => press(`until ${chosen}`)]];
  const bar = element("about-buttons");
  if (bar.dataset.key === `${chosen} ${wanted.map(([text]) => text)}`) return enable(bar, run, isLoop);
  bar.dataset.key = `${chosen} ${wanted.map(([text]) => text)}`;
  bar.replaceChildren(...wanted.map(([text, does]) => {
    const button = make("button", text);
    button.addEventListener("click", does);
    return button;
  }));
  enable(bar, run, isLoop);
}

// A run that cannot be paused or continued, because it has ended, cannot be held at a state.
function enable(bar, run, isLoop) {
  const { pause, continue: goesOn } = run.buttons;
  const why = !isLoop && pause !== null && goesOn !== null ? pause : null;
  for (const button of bar.children) {
    button.disabled = why !== null;
    button.title = why ?? "";
  }
}

function toggle(path) {
  const shown = path && canvas.find(path);
  if (!shown?.matches(".cluster, .loop")) return;
  const isClosed = shown.matches(".closed");
  (isClosed ? closed : opened).delete(path);
  if (isClosed) opened.add(path);
  else closed.add(path);
  element("open-all").hidden = !closed.size;
  if (latest) show(latest);
}

function search() {
  const wanted = element("search").value.trim().toLowerCase();
  const all = [...element("graph").querySelectorAll("[data-path]")];
  const found = wanted ? all.filter((one) => one.dataset.path.toLowerCase().includes(wanted)) : [];
  for (const one of all) one.classList.toggle("found", found.includes(one));
  const ends = found.find((one) => one.dataset.path.toLowerCase().endsWith(wanted)) ?? found[0];
  if (ends) canvas.bring(ends.dataset.path, true);
  element("search").setAttribute("aria-invalid", String(Boolean(wanted) && !found.length));
}

// -- all of it --------------------------------------------------------------------------------------

function show(run) {
  latest = run;
  element("state").textContent = run.state ?? "(none)";
  element("mood").textContent = mood(run);
  document.title = `${run.state ?? "ended"} · ${run.progress.name}`;
  showProgress(run);
  showButtons(run.buttons);
  showRanks(run.ranks ?? []);
  showTimes(run.states);
  showRecent(run.recent);
  showCurves(run);
  showSettings(run, show);
  showReceivers(run.subscribers);
  showAbout(run);
  return showGraph(run);
}

async function watch() {
  try {
    await show(await (await ask("state")).json());
    if (element("message").textContent.startsWith("The run's process")) tell("");
  } catch (error) {
    tell(error instanceof TypeError ? "The run's process does not answer; it has ended, or it hangs." : error.message);
  }
  setTimeout(watch, INTERVAL);
}

element("all-runs").hidden = location.pathname === "/"; // one of several
element("zoom-in").addEventListener("click", () => canvas.zoom(1.25));
element("zoom-out").addEventListener("click", () => canvas.zoom(0.8));
element("fit").addEventListener("click", () => canvas.fit());
element("open-all").addEventListener("click", () => {
  closed.clear();
  element("open-all").hidden = true;
  if (latest) show(latest);
});
element("search").addEventListener("input", search);
element("log").addEventListener("change", () => latest && showCurves(latest));
element("about-close").addEventListener("click", () => choose(null));
element("follow").addEventListener("change", () => latest?.state && element("follow").checked && canvas.bring(latest.state, true));
watch();
