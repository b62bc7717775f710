// The groups: filtered and sorted by the index, twenty of them unpacked and drawn at a time.

const PAGE = 20, LONG = 700; // groups; characters of a response that are shown before "more"
const filters = { run: "", split: "", from: "", to: "", prompt: "", one: false, flat: false, sort: "logged", only: null };
let matching = [], page = 0, drawing = 0;

const SORTS = {
  logged: ["as logged", null],
  latest: ["latest first", (a, b) => column.step[b] - column.step[a] || a - b],
  high: ["highest reward", (a, b) => column.reward[b] - column.reward[a] || a - b],
  low: ["lowest reward", (a, b) => column.reward[a] - column.reward[b] || a - b],
  gained: ["most gained by diversity", (a, b) => column.gained[b] - column.gained[a] || a - b],
  lost: ["most lost by diversity", (a, b) => column.lost[a] - column.lost[b] || a - b],
  many: ["most classes", (a, b) => column.classes[b] - column.classes[a] || a - b],
  few: ["fewest classes", (a, b) => column.classes[a] - column.classes[b] || a - b],
};

function select() {
  const words = filters.prompt.toLowerCase().split(/\s+/).filter(Boolean);
  const prompts = words.length && promptsLower.map((prompt) => words.every((word) => prompt.includes(word)));
  const from = filters.from === "" ? -Infinity : +filters.from, to = filters.to === "" ? Infinity : +filters.to;
  matching = [];
  for (let g = 0; g < groupCount; g++) {
    if (filters.only !== null && filters.only !== g) continue;
    if (!shownRuns.has(column.run[g]) || (filters.run !== "" && column.run[g] !== +filters.run)) continue;
    if (filters.split !== "" && column.split[g] !== +filters.split) continue;
    if (column.step[g] < from || column.step[g] > to) continue;
    if (words.length && !prompts[column.prompt[g]]) continue;
    if ((filters.one && !column.one[g]) || (filters.flat && !column.flat[g])) continue;
    const gain = { gained: column.gained, lost: column.lost }[filters.sort];
    if (gain && Number.isNaN(gain[g])) continue;
    matching.push(g);
  }
  const order = SORTS[filters.sort][1];
  if (order) matching.sort(order);
}

async function showGroups(at = 0, mark = null) {
  select();
  page = Math.min(at, Math.max(0, Math.ceil(matching.length / PAGE) - 1));
  const these = matching.slice(page * PAGE, (page + 1) * PAGE), mine = ++drawing;
  const all = el("button", { type: "button", class: "more", onclick: () => change({ only: null }) }, "show all");
  fill("count", `${matching.length.toLocaleString("en")} of ${groupCount.toLocaleString("en")} groups`, ...(filters.only === null ? [] : [all]));
  drawPager();
  try {
    const loaded = await Promise.all(these.map(group));
    if (mine !== drawing) return; // another choice was made meanwhile
    fill("list", ...loaded.map((one, k) => card(these[k], one, mark)));
    requestAnimationFrame(() => performance.mark("groups"));
  } catch (error) {
    const problem = document.getElementById("problem");
    problem.hidden = false;
    problem.textContent = `The groups cannot be unpacked: ${error}. A browser of 2023 or later is needed.`;
  }
}

function drawPager() {
  const pages = Math.max(1, Math.ceil(matching.length / PAGE));
  const go = (to) => () => showGroups(to).then(() => document.getElementById("groups").scrollIntoView());
  const button = (text, to, off) => el("button", { type: "button", disabled: off, onclick: go(to) }, text);
  fill("pager", button("First", 0, page === 0), button("Previous", page - 1, page === 0),
    el("span", {}, `page ${page + 1} of ${pages}`),
    button("Next", page + 1, page >= pages - 1), button("Last", pages - 1, page >= pages - 1));
}

function change(changed) {
  Object.assign(filters, changed);
  for (const input of document.getElementById("filters").elements) {
    if (!(input.name in changed)) continue;
    if (input.type === "checkbox") input.checked = filters[input.name];
    else input.value = filters[input.name];
  }
  return showGroups();
}

function pickGroup(number, response) {
  Object.assign(filters, { only: number });
  return showGroups(0, response).then(() => document.getElementById("groups").scrollIntoView());
}

function drawFilters() {
  const choice = (name, options) => el("select", { name }, ...options.map(([value, text]) => el("option", { value }, text)));
  const range = (name) => el("input", { name, type: "number", inputmode: "numeric" });
  const labelled = (text, input, cls) => el("label", { class: cls }, text, input);
  const tick = (name, text) => el("label", { class: "tick" }, el("input", { type: "checkbox", name }), text);
  const gains = index.runs.some((run) => run.gain);
  const sorts = Object.entries(SORTS).filter(([name]) => gains || (name !== "gained" && name !== "lost"));
  fill("filters",
    labelled("prompt contains", el("input", { name: "prompt", type: "search" }), "wide"),
    index.runs.length > 1 ? labelled("run", choice("run", [["", "all"], ...index.runs.map((run, k) => [k, run.name])])) : "",
    labelled("split", choice("split", [["", "both"], [0, "training"], [1, "evaluation"]])),
    labelled("from step", range("from")), labelled("to step", range("to")),
    tick("one", "one class"), tick("flat", "flat: one diversity"),
    labelled("order", choice("sort", sorts.map(([name, [text]]) => [name, text]))),
    el("button", { type: "reset" }, "Reset"));
  const form = document.getElementById("filters");
  form.onsubmit = (event) => event.preventDefault();
  form.oninput = (event) => {
    filters.only = null;
    filters[event.target.name] = event.target.type === "checkbox" ? event.target.checked : event.target.value;
    showGroups();
  };
  form.onreset = () => {
    Object.assign(filters, { run: "", split: "", from: "", to: "", prompt: "", one: false, flat: false, sort: "logged", only: null });
    showGroups();
  };
}

// ── One group ──

const COLUMNS = [["quality", "quality"], ["diversity", "diversity"], ["reward", "reward"], ["gain", "by diversity"],
  ["advantage", "advantage"], ["tokens", "tokens"]];
const SIGNED = ["gain", "advantage"];

function card(number_, data, mark) {
  const g = number_, run = index.runs[column.run[g]], n = data.responses.length;
  const columns = COLUMNS.filter(([key]) => data[key]);
  const rows = el("div", { class: "rows", style: { "--numbers": columns.length } });
  rows.append(el("span", { class: "column" }), ...columns.map(([, name]) => el("span", { class: "column" }, name)));
  for (const [label, members] of classesOf(data)) {
    const colour = label === null || label < 0 ? "var(--quiet)" : `var(--c${label % COLOURS})`;
    const single = members.length === 1;
    if (!single) rows.append(classRow(label, members, data, colour));
    for (const same of folded(members, data)) rows.append(...responseRow(same, data, colour, columns, mark, single && className(label)));
  }
  const classes = data.labels ? `${column.classes[g]} ${column.classes[g] === 1 ? "class" : "classes"} of ${n} responses` : "not partitioned";
  const many = index.runs.length > 1 && el("span", {}, el("span", { class: "swatch", style: { background: runColour(column.run[g]) } }), " " + run.name);
  return el("article", { class: "group", id: "group" + g },
    el("header", {},
      el("h3", {}, index.prompts[column.prompt[g]] || "(empty)"),
      el("p", { class: "meta" }, many, el("span", {}, `step ${column.step[g]}, ${column.split[g] ? "evaluation" : "training"}`),
        el("span", {}, classes), el("span", {}, `mean quality ${number(column.quality[g])}`),
        column.split[g] ? "" : el("span", {}, `mean reward ${number(column.reward[g])}`)),
      data.prompt === index.prompts[column.prompt[g]] ? "" : el("details", {}, el("summary", {}, "whole prompt"), el("pre", {}, data.prompt))),
    rows,
    el("footer", {}, data.similarity ? matrix(data) : ""));
}

// Classes by size, largest first; what the gate left out last.
function classesOf(data) {
  const found = new Map();
  data.responses.forEach((_, k) => {
    const label = data.labels ? data.labels[k] : null;
    found.set(label, [...(found.get(label) || []), k]);
  });
  return [...found].sort((a, b) => (a[0] < 0) - (b[0] < 0) || b[1].length - a[1].length || a[0] - b[0]);
}

function folded(members, data) {
  const found = new Map();
  for (const k of members) {
    const text = data.responses[k], key = text === index.notLogged ? k : text; // of those nobody knows
    found.set(key, [...(found.get(key) || []), k]);
  }
  return [...found.values()].sort((a, b) => b.length - a.length || data.reward[b[0]] - data.reward[a[0]]);
}

function classRow(label, members, data, colour) {
  const mean = data.tokens && members.reduce((sum, k) => sum + data.tokens[k], 0) / members.length;
  return el("div", { class: "class", style: { "--of-class": colour } }, el("b", {}, className(label)),
    el("span", { class: "quiet" }, ` · ${members.length} responses${data.tokens ? `, ${number(mean, 0)} tokens each` : ""}`));
}

function className(label) {
  return label === null ? "not partitioned" : label < 0 ? "left out by the gate" : `class ${label}`;
}

function responseRow(same, data, colour, columns, mark, of) {
  const k = same[0], whole = data.responses[k].trimEnd(), text = el("div", { class: "text", style: { "--of-class": colour } });
  if (same.includes(mark)) text.classList.add("marked");
  if (of) text.append(el("b", { class: "tag" }, of), " ");
  const long = whole.length > LONG, shown = document.createTextNode(long ? whole.slice(0, LONG) + "…" : whole);
  text.append(whole.trim() ? shown : el("span", { class: "empty" }, "(empty)"));
  if (long) {
    const more = el("button", { type: "button", class: "more", "aria-expanded": "false" }, `more (${whole.length.toLocaleString("en")} characters)`);
    more.onclick = () => {
      const open = more.getAttribute("aria-expanded") === "true";
      shown.data = open ? whole.slice(0, LONG) + "…" : whole;
      more.setAttribute("aria-expanded", String(!open));
      more.textContent = open ? `more (${whole.length.toLocaleString("en")} characters)` : "less";
    };
    text.append(more);
  }
  text.append(...badges(same, data));
  if (data.compared && data.compared[k] !== null) {
    text.append(el("details", {}, el("summary", {}, "what was compared"), el("pre", {}, data.compared[k] || "(nothing)")));
  }
  const numbers = columns.map(([key, name]) => {
    const values = same.map((j) => data[key][j]).filter((value) => value !== null);
    const low = Math.min(...values), high = Math.max(...values), digits = key === "tokens" ? 0 : 2;
    const signed = (v) => (SIGNED.includes(key) && v >= 5e-5 ? "+" : "") + number(v, digits);
    const said = !values.length ? "–" : signed(low) === signed(high) ? signed(low) : `${signed(low)} to ${signed(high)}`;
    const sign = !SIGNED.includes(key) || !values.length ? "" : low > 0.005 ? " up" : high < -0.005 ? " down" : "";
    return el("div", { class: "number" + sign, "data-name": name }, said);
  });
  if (of) text.classList.add("starts");
  return [text, el("div", { class: of ? "numbers starts" : "numbers", style: { "--of-class": colour } }, ...numbers)];
}

function badges(same, data) {
  const k = same[0], found = [], sign = (name) => data.signs[name] && data.signs[name][k];
  if (same.length > 1) found.push(el("span", { class: "badge", title: "identical responses" }, `× ${same.length}`));
  if (data.truncated && data.truncated[k]) found.push(el("span", { class: "badge" }, "cut off"));
  if (sign("other_language") === 1) found.push(el("span", { class: "badge sign" }, "another language"));
  if (sign("repetition") > 0.3) found.push(el("span", { class: "badge sign" }, `${Math.round(100 * sign("repetition"))} % repeats`));
  if (sign("after_answer") > 0.1) found.push(el("span", { class: "badge sign" }, `${Math.round(100 * sign("after_answer"))} % after the answer`));
  return found;
}

function matrix(data) {
  const order = classesOf(data).flatMap(([, members]) => members);
  const name = (k) => `${k + 1}${data.labels && data.labels[k] >= 0 ? ` (${data.labels[k]})` : ""}`;
  const made = el("details", {}, el("summary", {}, "similarity of each two responses, by number (class)"));
  made.ontoggle = () => {
    if (made.childElementCount > 1) return;
    const cell = (i, j) => el("td", { title: `${name(i)} and ${name(j)}`, style: {
      background: `color-mix(in srgb, var(--c0) ${Math.round(45 * Math.min(1, Math.max(0, data.similarity[i][j])))}%, transparent)` } },
      number(data.similarity[i][j]));
    made.append(el("div", { class: "scrolls" }, el("table", { class: "matrix" },
      el("tr", {}, el("th"), ...order.map((k) => el("th", {}, name(k)))),
      ...order.map((i) => el("tr", {}, el("th", {}, name(i)), ...order.map((j) => cell(i, j)))))));
  };
  return made;
}
