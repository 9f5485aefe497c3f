// What every page does with scripts: send changes, say what came of them, and keep what is live up to date.
"use strict";

const csrf = document.querySelector('meta[name="csrf-token"]');

/** Show a sentence to the person, and read it to those who cannot see it. */
function say(text) {
  const said = document.getElementById("said");
  said.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { said.textContent = ""; }, 8000);
}

/** Send a request of the HTTP API with a JSON body, and return the answer. Throws an Error with the problem's text. */
async function send(method, url, body, more = {}) {
  const headers = { Accept: "application/json", [csrf.dataset.header]: csrf.content, ...more };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const text = body === undefined ? undefined : JSON.stringify(body);
  const answer = await fetch(url, { method, headers, body: text, keepalive: (text ?? "").length < 60000 });
  if (!answer.ok) throw Object.assign(new Error(problemIn(await answer.text(), answer.status)), { status: answer.status });
  return answer.status === 204 ? null : answer.json();
}

function problemIn(text, status) {
  try {
    return JSON.parse(text).detail;
  } catch {
    return `The server answered ${status}.`;
  }
}

/** Return what was done, and what the API says about it: the gate's sentence, or what a correction changes. */
function outcomeOf(done, found) {
  return [done, found?.reason, found?.effect].filter(Boolean).join(" ");
}

/** Replace the live part of the page by the one that the server has now. */
function refresh() {
  document.querySelectorAll("[data-live]").forEach((part) => htmx.trigger(part, "refresh"));
}

document.addEventListener("htmx:config:request", (event) => {
  const request = event.detail.ctx.request;
  if (csrf && request.method !== "GET") request.headers[csrf.dataset.header] = csrf.content;
});

// A button with data-json sends that as the body.
document.addEventListener("htmx:before:request", (event) => {
  const { request, sourceElement } = event.detail.ctx;
  if (!sourceElement.dataset.json) return;
  request.body = sourceElement.dataset.json;
  request.headers["Content-Type"] = "application/json";
});

document.addEventListener("htmx:finally:request", (event) => {
  const { response, request, text, sourceElement } = event.detail.ctx;
  if (request.method === "GET" || !response) return;
  if (response.status >= 400) {
    say(problemIn(text, response.status));
    return;
  }
  const found = text ? JSON.parse(text) : {};
  const words = outcomeOf(sourceElement.dataset.done, found);
  if (words) say(words);
  if (sourceElement.dataset.then && found.promoted !== false) {
    location.assign(sourceElement.dataset.then.replace("{id}", encodeURIComponent(found.id ?? "")));
  } else {
    refresh();
  }
});

document.addEventListener("htmx:error", () => say("The server cannot be reached."));

// A form with data-send sends its fields as the JSON of an API request.
document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-send]");
  if (!form) return;
  event.preventDefault();
  const said = (name) => form.getAttribute(`data-${name}`); // form.dataset may be a field of that name
  const body = {};
  for (const field of form.elements) {
    if (!field.name || field.value === "" || (field.type === "checkbox" && !field.checked)) continue;
    body[field.name] = field.type === "number" ? Number(field.value) : field.type === "checkbox" ? true : field.value;
  }
  try {
    const found = await send(said("method") ?? "POST", said("send"), body);
    if (said("then")) location.assign(said("then").replace("{id}", encodeURIComponent(found.id)));
    if (said("done")) say(outcomeOf(said("done"), found));
    refresh();
  } catch (error) {
    say(error.message);
  }
});

// Parts with data-every are read again after so many seconds, unless nobody sees the page.
const startedAt = Date.now();
const readAt = new Map(); // when each part was read, by its id
setInterval(() => {
  if (document.hidden) return;
  document.querySelectorAll("[data-every]").forEach((part) => {
    const now = Date.now();
    if (now - (readAt.get(part.id) ?? startedAt) < 1000 * part.dataset.every) return;
    readAt.set(part.id, now);
    htmx.trigger(part, "refresh");
  });
}, 500);

// Who speaks to the computer types single keys by accident, so these can be switched off.
const shortcuts = document.getElementById("shortcuts");
const SHORTCUTS = "labelmill-shortcuts";
if (shortcuts) {
  shortcuts.checked = localStorage.getItem(SHORTCUTS) !== "off";
  shortcuts.addEventListener("change", () => localStorage.setItem(SHORTCUTS, shortcuts.checked ? "on" : "off"));
}

// "/" begins a search, as on many sites.
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || !shortcuts?.checked || event.target.closest("input, textarea, select")) return;
  const search = document.querySelector('input[type="search"]');
  if (!search) return;
  event.preventDefault();
  search.focus();
});
