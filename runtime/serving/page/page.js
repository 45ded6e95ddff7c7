"use strict";
// The page of a served app: what cameras show, what watches say, teaching and asking. Whatever people wrote is put in as
// text, never as markup.

const STATE_MS = 700, PICTURE_MS = 300, AGAIN_MS = 3000, EVENTS_SHOWN = 50, MEMORIES_SHOWN = 50;
const id = (name) => document.getElementById(name);
let camera = "", state = null, memoryVersion = null, dragged = null;

function make(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

async function call(path, options = {}) {
  const reply = await fetch(path, { headers: { "Content-Type": "application/json" }, ...options });
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error);
  return found;
}

// -- answers --------------------------------------------------------------------------------------------------

function answerNodes(answer) {
  const said = make("div", answer.text, answer.abstained ? "said unknown" : "said");
  const met = answer.latency.met;
  const cost = make("small", `confidence ${answer.confidence.toFixed(2)}, ${answer.level}, `);
  cost.append(make("span", `${answer.latency.total_ms.toFixed(1)} of ${answer.latency.budget_ms} ms`, met ? "met" : "missed"));
  const nodes = [said, cost];
  if (answer.reason) nodes.push(make("div", answer.reason, "hint"));
  if (answer.evidence.length) {
    const row = make("div", "", "evidence");
    for (const one of answer.evidence) {
      const figure = make("figure");
      const image = make("img");
      image.src = `/api/memories/${one.id}/thumbnail.jpg`;
      image.alt = "";
      image.onerror = () => image.remove();
      figure.append(image, make("figcaption", `${one.text} (${one.score.toFixed(2)})`));
      row.append(figure);
    }
    nodes.push(row);
  }
  return nodes;
}

function showWatches() {
  const shown = state.watches.map((watch) => {
    const card = make("div", "", "watch");
    card.append(make("div", `${watch.question} `), make("small", `${watch.name}, camera ${watch.camera}`));
    card.append(...(watch.answer ? answerNodes(watch.answer) : [make("div", "not asked yet", "none")]));
    return card;
  });
  // What did not change stays, so that pictures do not flicker and text can be selected.
  const now = id("watches");
  shown.forEach((card, place) => {
    const old = now.children[place];
    if (!old) now.append(card);
    else if (old.textContent !== card.textContent) old.replaceWith(card);
  });
  while (now.children.length > shown.length) now.lastChild.remove();
}

// -- camera and regions ---------------------------------------------------------------------------------------

function shape(points, name, kind) {
  const space = "http://www.w3.org/2000/svg";
  const box = points.length === 2;
  const drawn = document.createElementNS(space, box ? "rect" : "polygon");
  if (box) {
    const [[x0, y0], [x1, y1]] = points;
    const place = { x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0) };
    Object.entries(place).forEach(([key, value]) => drawn.setAttribute(key, value));
  } else drawn.setAttribute("points", points.map((point) => point.join(",")).join(" "));
  drawn.setAttribute("class", kind);
  const label = document.createElementNS(space, "text");
  label.textContent = name;
  const size = Math.max(10, current().width / 45);
  label.setAttribute("x", points[0][0]);
  label.setAttribute("y", Math.max(size, points[0][1] - 4));
  label.setAttribute("font-size", size);
  return [drawn, label];
}

function parsed(text) {
  const at = text.lastIndexOf("=");
  const numbers = (text.slice(at + 1).match(/-?\d+/g) || []).map(Number);
  const points = [];
  for (let n = 0; n + 1 < numbers.length; n += 2) points.push([numbers[n], numbers[n + 1]]);
  return { name: at < 0 ? "" : text.slice(0, at), points };
}

const current = () => state.cameras.find((one) => one.name === camera) || { width: 0, height: 0 };

function showRegions() {
  const { width, height } = current();
  const drawing = id("regions");
  drawing.replaceChildren();
  if (!width) return;
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const regions = [...new Set(state.watches.filter((one) => one.camera === camera && one.region).map((one) => one.region))];
  for (const text of regions) {
    const { name, points } = parsed(text);
    if (points.length > 1) drawing.append(...shape(points, name, "watched"));
  }
  const chosen = parsed(id("region").value);
  if (chosen.points.length > 1) drawing.append(...shape(chosen.points, "", "chosen"));
  const known = id("known-regions");
  if ([...known.children].map((one) => one.value).join("\n") !== regions.join("\n")) {
    known.replaceChildren(...regions.map((text) => Object.assign(make("option"), { value: text })));
  }
}

function at(event) {
  const { width, height } = current();
  const box = id("picture").getBoundingClientRect();
  const limit = (value, most) => Math.min(most, Math.max(0, Math.round(value)));
  return [
    limit(((event.clientX - box.left) / box.width) * width, width),
    limit(((event.clientY - box.top) / box.height) * height, height),
  ];
}

id("stage").addEventListener("pointerdown", (event) => {
  if (!state || !current().width) return;
  dragged = at(event);
  id("stage").setPointerCapture(event.pointerId);
});
id("stage").addEventListener("pointermove", (event) => {
  if (!dragged) return;
  const [x, y] = at(event), [x0, y0] = dragged;
  if (Math.abs(x - x0) < 4 || Math.abs(y - y0) < 4) return;
  id("region").value = [Math.min(x, x0), Math.min(y, y0), Math.max(x, x0), Math.max(y, y0)].join(",");
  showRegions();
});
for (const end of ["pointerup", "pointercancel"]) id("stage").addEventListener(end, () => { dragged = null; });
id("region").addEventListener("input", showRegions);
id("whole").addEventListener("click", () => { id("region").value = ""; showRegions(); });

function showCameras() {
  if (!state.cameras.some((one) => one.name === camera)) {
    if (camera) id("region").value = "";  // it was of one that is gone
    camera = state.cameras[0].name;
  }
  const tabs = state.cameras.length > 1 ? state.cameras.map((one) => one.name) : [];
  const places = id("cameras");
  if ([...places.children].map((tab) => tab.textContent).join("\n") !== tabs.join("\n")) {
    places.replaceChildren(...tabs.map((name) => {
      const tab = make("button", name);
      tab.type = "button";
      tab.onclick = () => { camera = name; id("region").value = ""; show(); };
      return tab;
    }));
  }
  for (const tab of places.children) {  // which stay themselves, for who is about to press one
    tab.className = tab.textContent === camera ? "on" : "";
    tab.setAttribute("aria-pressed", tab.textContent === camera);
  }
  const now = current();
  id("camera-state").textContent = `${camera} is ${now.state}${now.reason ? ` (${now.reason})` : ""}.`;
  showRegions();
}

function nextPicture() {
  const image = id("picture");
  if (camera && current().width && !document.hidden) {
    image.onload = image.onerror = () => setTimeout(nextPicture, PICTURE_MS);
    image.src = `/api/cameras/${encodeURIComponent(camera)}/frame.jpg?at=${Date.now()}`;
  } else setTimeout(nextPicture, PICTURE_MS);
}

// -- teaching and asking --------------------------------------------------------------------------------------

const shown = () => ({ camera, region: id("region").value || null });

function sends(form, place, send) {
  id(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = event.target.querySelector("button");
    button.disabled = true;
    try {
      place.replaceChildren(...(await send()));
    } catch (error) {
      place.replaceChildren(make("span", error.message, "error"));
    }
    button.disabled = false;
  });
}

sends("teach", id("taught"), async () => {
  const lesson = { ...shown(), text: id("text").value, answer: id("answer").value || null };
  const made = await call("/api/memories", { method: "POST", body: JSON.stringify(lesson) });
  await refresh();
  return [make("span", `Remembered as memory ${made.id}.`, "met")];
});

sends("ask", id("answered"), async () => {
  const question = { ...shown(), question: id("question").value, budget_ms: 1000 };
  return answerNodes(await call("/api/ask", { method: "POST", body: JSON.stringify(question) }));
});

// -- memory ---------------------------------------------------------------------------------------------------

async function showMemories() {
  const query = new URLSearchParams({ text: id("sought").value, limit: MEMORIES_SHOWN });
  let found;
  try {
    found = (await call(`/api/memories?${query}`)).shown;
  } catch (error) {
    id("memories").replaceChildren(make("li", error.message, "error"));
    return;
  }
  id("memories").replaceChildren(...found.map((entry) => {
    const row = make("li");
    const image = make(entry.pictured ? "img" : "span");
    if (entry.pictured) Object.assign(image, { src: `/api/memories/${entry.id}/thumbnail.jpg`, alt: "", loading: "lazy" });
    const said = make("div", entry.text);
    const tags = Object.entries(entry.tags).map(([name, value]) => `${name}=${value}`);
    said.append(make("br"), make("small", [`memory ${entry.id}`, entry.answer, ...tags].filter(Boolean).join(", ")));
    const forget = make("button", "Forget");
    forget.type = "button";
    forget.onclick = async () => {
      if (!window.confirm(`Forget “${entry.text}”?`)) return;
      try { await call(`/api/memories/${entry.id}`, { method: "DELETE" }); } catch (error) { window.alert(error.message); }
      await refresh();
    };
    row.append(image, said, forget);
    return row;
  }));
}

id("find").addEventListener("submit", (event) => { event.preventDefault(); showMemories(); });
id("sought").addEventListener("change", showMemories);

// -- what happens ---------------------------------------------------------------------------------------------

function addEvent(event) {
  const list = id("events");
  list.querySelector(".none")?.remove();
  const before = event.before ? ` (before: ${event.before})` : "";
  const row = make("li", `${event.question} ${event.text}${before}`);
  row.append(make("br"), make("small", `${event.camera}, frame ${event.frame}`));
  list.prepend(row);
  while (list.children.length > EVENTS_SHOWN) list.lastChild.remove();
}

function listen() {
  const events = new EventSource("/api/events");
  events.onopen = () => id("events").replaceChildren(make("li", "nothing changed yet", "none"));
  events.onmessage = (message) => addEvent(JSON.parse(message.data));
  // A browser comes back by itself where nobody answers, but not where a proxy says that nobody does.
  events.onerror = () => { if (events.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS); };
}

function show() {
  showCameras();
  showWatches();
  const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
  const misses = state.deadline_misses ? `, ${state.deadline_misses} late` : "";
  const memories = state.memory.entries === 1 ? "1 memory" : `${state.memory.entries} memories`;
  id("standing").textContent = `${memories}, ${many(state.answers, "answer")}${misses}`;
}

async function refresh() {
  try {
    state = await call("/api/state");
    show();
    if (state.memory.version !== memoryVersion) {
      memoryVersion = state.memory.version;
      await showMemories();
    }
  } catch (error) {
    id("standing").textContent = `no answer from the server: ${error.message}`;
  }
}

async function again() {
  if (!document.hidden) await refresh();
  setTimeout(again, STATE_MS);
}

again();
listen();
setTimeout(nextPicture, STATE_MS);
