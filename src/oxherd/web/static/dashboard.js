// What the dashboard does beyond plain pages: it stays up to date, follows runs, and shows values under the pointer.
// Everything works without it, except these.
"use strict";

const pulse = document.getElementById("pulse");
const QUIET = 2000; // ms between refreshes however much happens
const AGAIN = 3000; // ms after which a page is asked for again that a service was away for
const PERIOD = 15000; // ms after which a page is refreshed though nothing happened: times go on

function tell(state, words) {
  if (pulse.dataset.state === state) return;
  pulse.dataset.state = state;
  pulse.querySelector(".words").textContent = words;
}

// -- staying up to date

let refreshing = false, again = false, last = 0, timer = 0;

function busy(part) {
  const at = document.activeElement;
  return part.contains(at) || part.querySelector("details[open], :checked") !== null || document.hidden
    || String(getSelection()) !== "";
}

async function refresh() {
  const parts = [...document.querySelectorAll("[data-live]")];
  if (refreshing) { again = true; return; }
  if (parts.every(busy)) return;
  refreshing = true;
  last = Date.now();
  try {
    const answer = await fetch(location.href, { headers: { "x-refresh": "1" } });
    if (answer.redirected) { location.reload(); return; }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of parts) {
      const fresh = page.getElementById(part.id);
      if (!fresh || busy(part) || fresh.innerHTML === part.dataset.shown) continue;
      part.dataset.shown = fresh.innerHTML;
      part.replaceChildren(...fresh.childNodes);
      drawCursors(part);
    }
  } catch { tell("away", "no connection"); } finally {
    refreshing = false;
    if (again) { again = false; soon(); }
  }
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(refresh, Math.max(0, last + QUIET - Date.now()));
}

function watch() {
  const feed = new EventSource("/api/v1/feed");
  let first = true;
  feed.addEventListener("queue", () => {
    tell("live", "live");
    if (!first) soon();
    first = false;
  });
  feed.addEventListener("away", () => tell("away", "Redis is away"));
  feed.addEventListener("error", () => tell("away", "connecting"));
  setInterval(() => { if (Date.now() - last > PERIOD) refresh(); }, 1000);
  addEventListener("pagehide", () => feed.close());
}

// -- following a run: piece n comes after the first n pieces and takes the place of what was there from n on

function follow(section) {
  const words = section.querySelector("[data-words]"), status = section.querySelector("[data-status]");
  const texts = new Map();
  const source = new EventSource(section.dataset.stream);
  function place(step) {
    if (!texts.has(step)) {
      const block = document.createElement("div"), title = document.createElement("h3"), text = document.createElement("div");
      title.textContent = step;
      text.className = "words now";
      block.append(title, text);
      words.append(block);
      texts.set(step, { pieces: [], text });
    }
    section.hidden = false;
    return texts.get(step);
  }
  function on(type, act) { source.addEventListener(type, (event) => act(JSON.parse(event.data))); }
  on("attempt", (told) => { section.hidden = false; status.textContent = `attempt ${told.attempt ?? ""} ${told.state}`; });
  on("step", (told) => {
    section.hidden = false;
    status.textContent = `${told.step} ${told.state}`;
    if (told.state === "started" && texts.has(told.step)) texts.get(told.step).pieces = [];
    if (told.state !== "started" && texts.has(told.step)) texts.get(told.step).text.classList.remove("now");
    if (told.state === "finished") soon();
  });
  on("text", (told) => {
    const at = place(told.step);
    at.pieces.length = told.n;
    at.pieces.push(told.text);
    at.text.textContent = at.pieces.join("");
  });
  on("whole", (told) => { const at = place(told.step); at.text.textContent = told.text; at.text.classList.remove("now"); });
  on("reset", (told) => { const at = place(told.step); at.pieces = []; at.text.textContent = ""; });
  on("log", (told) => { const at = place("log"); at.pieces.push(`${told.text}\n`); at.text.textContent = at.pieces.join(""); });
  for (const type of ["end", "gone"]) {
    source.addEventListener(type, () => { source.close(); section.hidden = true; soon(); });
  }
  addEventListener("pagehide", () => source.close());
}

// -- charts

function drawCursors(root) {
  for (const figure of root.querySelectorAll("[data-chart]")) {
    const area = figure.querySelector(".area");
    if (!area) continue;
    const { labels, lines } = JSON.parse(figure.dataset.chart);
    const cursor = document.createElement("div"), tip = document.createElement("div");
    cursor.className = "cursor"; tip.className = "tip"; cursor.hidden = tip.hidden = true;
    area.append(cursor, tip);
    area.addEventListener("pointermove", (event) => {
      const box = area.getBoundingClientRect();
      const at = Math.min(Math.max(Math.round((event.clientX - box.left) / box.width * (labels.length - 1)), 0), labels.length - 1);
      const left = at / Math.max(labels.length - 1, 1) * box.width;
      cursor.hidden = tip.hidden = false;
      cursor.style.left = `${left}px`;
      tip.style.left = left < box.width / 2 ? `${left + 10}px` : "auto";
      tip.style.right = left < box.width / 2 ? "auto" : `${box.width - left + 10}px`;
      tip.replaceChildren(...[labels[at], ...lines.map(([name, cells]) => `${cells[at]} ${name}`)].map((text) => {
        const row = document.createElement("p");
        row.textContent = text;
        return row;
      }));
    });
    area.addEventListener("pointerleave", () => { cursor.hidden = tip.hidden = true; });
  }
}

// -- small things

function themes(button) {
  const root = document.documentElement, names = { "": "automatic", light: "light", dark: "dark" };
  const show = () => { button.querySelector("span").textContent = names[root.dataset.theme ?? ""]; };
  button.hidden = false;
  show();
  button.addEventListener("click", () => {
    const order = ["", "light", "dark"], next = order[(order.indexOf(root.dataset.theme ?? "") + 1) % 3];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    document.cookie = `oxherd_theme=${next}; path=/; max-age=${next ? 31536000 : 0}; samesite=lax`;
    show();
  });
}

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-all]")) {
    for (const box of document.querySelectorAll('input[name="each"]')) box.checked = event.target.checked;
  }
  const chosen = document.querySelectorAll('input[name="each"]:checked').length;
  const words = document.querySelector("[data-chosen]");
  if (words) words.textContent = chosen ? `With ${chosen} chosen:` : "With the chosen ones:";
});
document.addEventListener("keydown", (event) => {
  const field = document.querySelector(`[data-focus="${CSS.escape(event.key)}"]`);
  if (field && !event.target.matches("input, textarea") && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    field.focus();
  }
  if (event.key === "Escape") for (const open of document.querySelectorAll("details.sure[open]")) open.open = false;
});

themes(document.getElementById("theme"));
drawCursors(document);
watch();
if (document.querySelector("[data-again]")) setTimeout(() => location.reload(), AGAIN);
const stream = document.getElementById("stream");
if (stream) follow(stream);
