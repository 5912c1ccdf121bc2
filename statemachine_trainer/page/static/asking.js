// What both pages need: elements, a message to whoever looks, and questions to the server.

export const element = (id) => document.getElementById(id);

export function make(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// A problem, or what became of a button that was pressed.
export function tell(text, isProblem = true) {
  const message = element("message");
  message.textContent = text;
  message.hidden = !text;
  message.classList.toggle("told", !isProblem);
}

export async function ask(path, options) {
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer;
}
