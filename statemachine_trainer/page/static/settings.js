// Fields for the settings that may be changed while the run goes on, and what was changed.
import { ask, element, make, tell } from "./asking.js";

const rows = new Map(); // the fields, by name of the setting
let names = "";

// How a value is written, and read again: JSON, but for none.
const written = (value) => (value === null ? "none" : `${value}`);

// The time of day, with the day if it was another one.
export function when(at) {
  const time = new Date(at);
  return time.toDateString() === new Date().toDateString() ? time.toLocaleTimeString() : time.toLocaleString();
}

function read(text) {
  const trimmed = text.trim();
  if (trimmed.toLowerCase() === "none") return null;
  const number = trimmed === "" ? NaN : Number(trimmed);
  return Number.isFinite(number) ? number : undefined;
}

// Show the settings of a run. A field that somebody has begun to fill in is left alone.
export function showSettings(run, shown) {
  const settings = run.settings ?? {};
  element("settings-section").hidden = !Object.keys(settings).length && !run.changes?.length;
  if (Object.keys(settings).join() !== names) {
    names = Object.keys(settings).join();
    rows.clear();
    element("settings").replaceChildren(...Object.keys(settings).map((name) => row(name, shown)));
  }
  for (const [name, { value, kind, unit, refusal }] of Object.entries(settings)) {
    const { field, button, hint } = rows.get(name);
    const why = refusal || (run.buttons.stop !== null && !run.running ? "The run stands still." : "");
    if (field.dataset.value !== written(value)) {
      const touched = field.value !== (field.dataset.value ?? "");
      field.dataset.value = written(value);
      if (!touched) field.value = written(value);
    }
    field.disabled = button.disabled = Boolean(why);
    field.title = button.title = why;
    hint.textContent = unit ? `${kind} (${unit})` : kind;
    hint.dataset.kind = kind;
  }
  element("changes").replaceChildren(...(run.changes ?? []).slice().reverse().map((one) =>
    make("li", `step ${one.step.toLocaleString("en")}: ${one.name} ${written(one.from)} → ${written(one.to)}, ${when(one.at)}, by ${one.by || "the program"}`)));
}

function row(name, shown) {
  const form = make("form");
  const label = make("label", name);
  const field = make("input");
  field.id = `setting-${name}`;
  label.htmlFor = field.id;
  field.autocomplete = "off";
  field.inputMode = "decimal";
  const button = make("button", "set");
  const hint = make("small");
  hint.id = `about-${field.id}`;
  field.setAttribute("aria-describedby", hint.id);
  form.append(label, field, button, hint);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const value = read(field.value);
    if (value === undefined) return tell(`${name} is ${hint.dataset.kind}, and not “${field.value}”.`);
    try {
      const body = JSON.stringify({ [name]: value });
      const run = await (await ask("set", { method: "POST", body })).json();
      field.value = field.dataset.value = written(value);
      shown(run);
      tell(run.told, false);
    } catch (error) {
      tell(error.message);
    }
  });
  rows.set(name, { field, button, hint });
  return form;
}
