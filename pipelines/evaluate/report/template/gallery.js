"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 24;
const form = document.getElementById("controls");
const cards = document.getElementById("cards");
const more = document.getElementById("more");
const large = document.getElementById("large");
let found = [];
let shown = 0;

function element(name, properties, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties || {});
  made.append(...children.filter((child) => child !== null));
  return made;
}

function fill(select, pairs) {
  for (const [value, text] of pairs) select.append(element("option", { value, textContent: text }));
}

function number(value, measure) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  return (value * measure.factor).toFixed(measure.digits);
}

function picture(code, kind, title) {
  if (!code) return null;
  const image = element("img", { src: `data:image/${kind};base64,${code}`, alt: title, loading: "lazy", decoding: "async" });
  image.addEventListener("click", () => {
    large.querySelector("img").src = image.src;
    large.querySelector("p").textContent = title;
    large.showModal();
  });
  return image;
}

function figure(code, kind, caption, title, instead) {
  const shownPicture = picture(code, kind, title) || element("div", { className: "none", textContent: instead });
  return element("figure", {}, shownPicture, element("figcaption", { textContent: caption }));
}

// The words that differ, by the longest common subsequence.
function difference(before, after) {
  const [left, right] = [before.split(/\s+/), after.split(/\s+/)];
  const table = Array.from({ length: left.length + 1 }, () => new Array(right.length + 1).fill(0));
  for (let i = left.length - 1; i >= 0; i--)
    for (let j = right.length - 1; j >= 0; j--)
      table[i][j] = left[i] === right[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  const [old, fresh] = [[], []];
  for (let i = 0, j = 0; i < left.length || j < right.length; ) {
    if (i < left.length && j < right.length && left[i] === right[j]) {
      old.push(left[i++], " ");
      fresh.push(right[j++], " ");
    } else if (j >= right.length || (i < left.length && table[i + 1][j] >= table[i][j + 1])) {
      old.push(element("del", { textContent: left[i++] }), " ");
    } else {
      fresh.push(element("ins", { textContent: right[j++] }), " ");
    }
  }
  return element("p", { className: "prompts" }, ...old, element("br"), ...fresh);
}

function values(result, state, all) {
  const list = element("dl");
  data.measures.forEach((measure, index) => {
    const value = result.values[index];
    if (value === null || value === undefined || !(all || measure.key === state.sort)) return;
    const name = measure.key === state.sort ? "sorted" : "";
    list.append(
      element("dt", { textContent: measure.title, className: name }),
      element("dd", { textContent: number(value, measure), className: name })
    );
  });
  return list;
}

function methodBlocks(sample, state) {
  const single = data.methods.length === 1;
  return data.methods.flatMap((method, index) => {
    const result = sample.results[index];
    if (!result) return [element("div", { className: "block" }, figure(null, "", method, "", "no row"))];
    const title = `${sample.id}, ${method}`;
    const instead = result.status === "ok" ? "none" : `${result.status}: ${result.message || ""}`;
    const edited = figure(result.edited, "webp", single ? "edited" : method, `${title}: ${sample.target}`, instead);
    const named = single ? "mask" : `${method}, mask`;
    // One method has no cell of its own for the reference mask.
    const mask = single && !result.mask && sample.reference
      ? figure(sample.reference, "png", "no mask; the reference", `${title}: reference mask`, "")
      : figure(result.mask, "png", named, `${title}: mask`, "no mask");
    const said = result.warnings.length ? element("p", { className: "said", textContent: result.warnings.join("; ") }) : null;
    if (single) return [element("div", { className: "block" }, mask), element("div", { className: "block" }, edited, said)];
    return [element("div", { className: "block" }, edited, mask, values(result, state, false), said)];
  });
}

// Methods side by side, one line for every measure.
function comparison(sample, state) {
  const table = element("table");
  table.append(element("tr", {}, element("th"), ...data.methods.map((method) => element("th", { textContent: method }))));
  data.measures.forEach((measure, index) => {
    const all = sample.results.map((result) => (result ? result.values[index] : null));
    if (all.every((value) => value === null)) return;
    const cells = all.map((value) => element("td", { textContent: number(value, measure) }));
    const row = element("tr", { className: measure.key === state.sort ? "sorted" : "" }, element("td", { textContent: measure.title }), ...cells);
    table.append(row);
  });
  return element("details", {}, element("summary", { textContent: "all values" }), element("div", { className: "scroll" }, table));
}

function card(sample, state) {
  const source = figure(sample.source, "webp", "source", `${sample.id}: ${sample.before}`, "no source");
  const reference = sample.reference ? figure(sample.reference, "png", "reference mask", `${sample.id}: reference mask`, "") : null;
  const several = data.methods.length > 1;
  const row = element("div", { className: "row" }, element("div", { className: "block" }, source, several ? reference : null));
  row.append(...methodBlocks(sample, state));
  if (sample.picture) row.append(element("div", { className: "block" }, figure(sample.picture, "webp", "target", `${sample.id}: target`, "")));
  if (!several && sample.results[0]) row.append(element("div", { className: "block" }, values(sample.results[0], state, true)));
  const header = element("header", {}, element("b", { textContent: sample.id }), element("span", { textContent: sample.category }));
  if (sample.instruction) header.append(element("span", { textContent: sample.instruction }));
  const made = element("article", { className: "card" }, header, difference(sample.before, sample.target), row, several ? comparison(sample, state) : null);
  made.dataset.id = sample.id;
  return made;
}

// NaN and infinite values travel as text; they have no place in an order and come last, like absent ones.
function key(sample, state) {
  const index = data.measures.findIndex((measure) => measure.key === state.sort);
  const all = sample.results.map((result) => (result ? result.values[index] : null)).filter((value) => typeof value === "number");
  if (state.method === "spread") return all.length > 1 ? Math.max(...all) - Math.min(...all) : null;
  const result = sample.results[data.methods.indexOf(state.method)];
  const value = result ? result.values[index] : null;
  return typeof value === "number" ? value : null;
}

function read() {
  return Object.fromEntries(new FormData(form).entries());
}

function matches(sample, state) {
  if (state.category && sample.category !== state.category) return false;
  if (state.status && !sample.results.some((result) => result && result.status === state.status)) return false;
  const text = `${sample.id} ${sample.before} ${sample.target} ${sample.instruction || ""}`.toLowerCase();
  return text.includes(state.q.trim().toLowerCase());
}

function show() {
  const state = read();
  const next = found.slice(shown, shown + PAGE);
  cards.append(...next.map((sample) => card(sample, state)));
  shown += next.length;
  more.hidden = shown >= found.length;
  document.getElementById("count").textContent = `${found.length} of ${data.samples.length} records, ${shown} shown`;
}

function update() {
  const state = read();
  const measure = data.measures.find((each) => each.key === state.sort);
  found = data.samples.filter((sample) => matches(sample, state));
  if (measure) {
    // Where neither direction is better, and for spreads, the largest come first.
    const up = state.method !== "spread" && measure.better > 0;
    const sign = (up ? 1 : -1) * (state.order === "best" ? -1 : 1);
    const keyed = found.map((sample) => [key(sample, state), sample]);
    keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * (a - b)));
    found = keyed.map(([, sample]) => sample);
  }
  cards.replaceChildren();
  shown = 0;
  show();
  const query = new URLSearchParams(Object.entries(state).filter(([name, value]) => value && value !== initial[name]));
  history.replaceState(null, "", query.size ? `#${query}` : location.pathname + location.search);
}

fill(form.sort, [["", "order of the benchmark"], ...data.measures.map((measure) => [measure.key, measure.title])]);
fill(form.method, [...data.methods.map((method) => [method, method]), ...(data.methods.length > 1 ? [["spread", "largest spread between methods"]] : [])]);
fill(form.category, [["", "all"], ...data.categories.map((name) => [name, name])]);
fill(form.status, [["", "all"], ...data.statuses.map((name) => [name, name])]);
const initial = read();
for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (form.elements[name]) form.elements[name].value = value;
form.addEventListener("input", update);
form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", show);
large.addEventListener("click", () => large.close());
new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && shown > 0 && show(), { rootMargin: "600px" }).observe(more);
if (new URLSearchParams(location.hash.slice(1)).size && location.hash.includes("=")) {
  update();
} else {
  found = data.samples;
  show();
}
document.body.dataset.ready = String(Math.round(performance.now()));
