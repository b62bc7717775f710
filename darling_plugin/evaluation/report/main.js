// What to look at first, settings, and how the parts of the page act on each other.

const SUMMARY = ["quality", "diversity", "classes_per_group", "reward", "signal", "response_length"];

function drawRuns() {
  fill("runs", ...index.runs.map((run, place) => {
    const swatch = el("span", { class: "swatch", style: { background: runColour(place) } });
    const box = el("input", { type: "checkbox", onchange: () => {
      if (box.checked) shownRuns.add(place); else shownRuns.delete(place);
      redraw();
    } });
    box.checked = true;
    return el("li", {}, el("label", {}, index.runs.length > 1 && box, swatch, run.name));
  }));
}

function drawWarnings() {
  const found = index.runs.flatMap((run) => run.warnings.map(([step, name, said]) => {
    const chart = "#chart-monitor-" + name;
    return el("p", { class: "warning" }, el("b", {}, `${run.name}, step ${step}: `), said + ". ", el("a", { href: chart }, "Its curve"));
  }));
  const enough = index.runs.some((run) => run.curves.train && run.curves.train.steps.length >= 2 * index.watched);
  fill("warnings", ...(found.length ? found : [el("p", { class: "quiet" }, enough
    ? "No sign of gaming has moved far enough to be warned of. That proves nothing: read some of the last groups."
    : `Signs of gaming are warned of from ${2 * index.watched} training steps on; no run here has as many.`)]));
}

// Means of the first and the last fifth of the steps.
function drawSummary() {
  const fifth = (values, last) => {
    const size = Math.max(1, Math.round(values.length / 5)), picked = (last ? values.slice(-size) : values.slice(0, size)).filter((v) => v !== null);
    return picked.length ? picked.reduce((a, b) => a + b) / picked.length : null;
  };
  const rows = index.runs.flatMap((run, place) => SPLITS.filter((split) => run.curves[split]).map((split) => {
    const { steps, figures } = run.curves[split];
    const cells = SUMMARY.map((name) => figures[name]
      ? `${number(fifth(figures[name], false))} → ${number(fifth(figures[name], true))}` : "–");
    return el("tr", {}, el("td", {}, el("span", { class: "swatch", style: { background: runColour(place) } }),
      ` ${run.name}, ${split === "train" ? "training" : "evaluation"}`), el("td", {}, String(steps.length)), ...cells.map((cell) => el("td", {}, cell)));
  }));
  fill("summary", el("table", {}, el("caption", { class: "quiet" }, "Means of the first and the last fifth of the steps"),
    el("tr", {}, el("th", {}, "run"), el("th", {}, "steps"), ...SUMMARY.map((name) => el("th", {}, TITLES[name].replace(" of diversity in the reward", "")))), ...rows));
}

async function drawHighlights(name) {
  const picks = await Promise.all(index.highlights[name].map(async ([g, k]) => {
    const data = await group(g);
    return el("button", { type: "button", class: "pick", onclick: () => pickGroup(g, k) },
      el("span", { class: "asked clamp" }, index.prompts[column.prompt[g]]),
      el("span", { class: "clamp" }, data.responses[k].trim().slice(0, 400) || "(empty)"),
      el("span", { class: "quiet" }, `quality ${number(data.quality[k])}, diversity ${number(data.diversity && data.diversity[k])}, reward ${number(data.reward[k])}: `,
        el("b", { class: data.gain[k] > 0 ? "up" : "down" }, `${data.gain[k] > 0 ? "+" : ""}${number(data.gain[k])} by diversity`),
        ` · step ${column.step[g]}${index.runs.length > 1 ? ", " + index.runs[column.run[g]].name : ""}`));
  }));
  const why = index.runs.some((run) => run.gain)
    ? "Diversity changed no reward."
    : "Not known: it needs training groups, the run.json beside the log, and a reward that comes with the package.";
  fill(name, ...(picks.length ? picks : [el("p", { class: "quiet" }, why)]));
}

function drawSettings() {
  const names = [...new Set(index.runs.flatMap((run) => Object.keys(run.settings)))];
  const said = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  const rows = names.map((name) => {
    const values = index.runs.map((run) => said(run.settings[name]));
    const differ = new Set(values).size > 1;
    return [differ, el("tr", {}, el("th", {}, differ ? "≠ " + name : name), ...values.map((value) => el("td", {}, value)))];
  });
  rows.sort((a, b) => b[0] - a[0]);
  fill("flags", names.length
    ? el("details", { open: rows.some(([differ]) => differ) || null }, el("summary", {}, "Flags and versions, as run.json has them; those that differ first"),
      el("table", {}, el("tr", {}, el("th"), ...index.runs.map((run) => el("th", {}, run.name))), ...rows.map((row) => row[1])))
    : el("p", { class: "quiet" }, "No run.json beside the logs."));
}

function showStep(step) {
  change({ from: String(step), to: String(step), only: null });
  document.getElementById("groups").scrollIntoView();
}

const slider = document.getElementById("smooth");

function redraw() {
  document.getElementById("smooth-value").textContent = `${slider.value} step${slider.value === "1" ? "" : "s"}`;
  drawCharts(+slider.value, showStep);
  drawMethods();
  showGroups(page);
}

function start() {
  const steps = Math.max(1, ...index.runs.map((run) => (run.curves.train ? run.curves.train.steps.length : 1)));
  slider.max = Math.max(2, Math.min(100, Math.round(steps / 2)));
  slider.value = Math.max(1, Math.round(steps / 10));
  slider.oninput = () => { document.getElementById("smooth-value").textContent = slider.value; drawCharts(+slider.value, showStep); };
  const dash = (split) => el("svg", { viewBox: "0 0 30 8", width: 30, height: 8, "aria-hidden": "true" },
    el("line", { class: split, x1: 1, x2: 29, y1: 4, y2: 4, stroke: "currentColor", "stroke-width": 2 }));
  const has = (split) => index.runs.some((run) => run.curves[split]);
  fill("keys", ...SPLITS.filter(has).flatMap((split) => [dash(split), split === "train" ? " training  " : " evaluation"]));
  drawRuns();
  drawFilters();
  drawWarnings();
  drawSummary();
  redraw();
  drawSettings();
  drawHighlights("gained");
  drawHighlights("lost");
}

start();
