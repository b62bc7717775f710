// Curves: small multiples, each with the raw points behind a smoothed line, runs over each other, evaluation dashed.

const WIDTH = 340, HEIGHT = 190, LEFT = 44, RIGHT = 10, TOP = 8, BOTTOM = 24;
const shownRuns = new Set(index.runs.keys());

const TITLES = {
  quality: "Quality", diversity: "Diversity", classes_per_group: "Classes a group", reward: "Reward",
  signal: "Signal of diversity in the reward", response_length: "Length, tokens",
  one_class_share: "Share of groups of one class", flat_share: "Share of flat groups",
  "monitor/diversity_with_length": "Diversity with length, correlation",
  "monitor/diversity_with_quality": "Diversity with quality, correlation",
  "monitor/other_class_length": "Length outside the largest class ÷ in it",
  "monitor/repetition": "Repetition, share of 4-grams", "monitor/compression": "Compression ratio",
  "monitor/other_language": "Share in another language", "monitor/after_answer": "Share of text after the answer",
};

// All series of one figure: { run, split, steps, values }, without the steps that have none.
function seriesOf(figure) {
  const found = [];
  index.runs.forEach((run, place) => {
    for (const split of SPLITS) {
      const curve = run.curves[split];
      const values = curve && curve.figures[figure];
      if (!values || !shownRuns.has(place)) continue;
      const kept = curve.steps.map((step, k) => [step, values[k]]).filter((point) => point[1] !== null);
      if (kept.length) found.push({ run: place, split, steps: kept.map((p) => p[0]), values: kept.map((p) => p[1]) });
    }
  });
  return found;
}

// Mean of the points within the window, weighted by (1 - distance³)³: the local mean, whose ends do not lag behind.
function smooth(values, window) {
  const half = window / 2;
  if (half < 1) return values;
  const reach = Math.floor(half);
  const weights = Float64Array.from({ length: reach + 1 }, (_, distance) => (1 - (distance / (half + 1)) ** 3) ** 3);
  return values.map((_, k) => {
    let total = 0, sum = 0;
    for (let j = Math.max(0, k - reach); j <= Math.min(values.length - 1, k + reach); j++) {
      const weight = weights[Math.abs(j - k)];
      total += weight * values[j];
      sum += weight;
    }
    return total / sum;
  });
}

function ticks(low, high, count) {
  const step = 10 ** Math.floor(Math.log10((high - low) / count || 1));
  const wide = [1, 2, 5, 10].map((factor) => factor * step).find((size) => (high - low) / size <= count) || 10 * step;
  const found = [];
  for (let k = Math.ceil(low / wide - 1e-9); k * wide <= high + 1e-9 * wide; k++) found.push(+(k * wide).toPrecision(12));
  return found;
}

function stepRange() {
  const steps = index.runs.flatMap((run, place) =>
    shownRuns.has(place) ? SPLITS.flatMap((split) => (run.curves[split] ? run.curves[split].steps : [])) : []);
  const low = steps.reduce((a, b) => Math.min(a, b), Infinity), high = steps.reduce((a, b) => Math.max(a, b), -Infinity);
  return steps.length ? [low, Math.max(high, low + 1)] : [0, 1];
}

// Evaluation has few steps: it is never smoothed.
function chart(figure, window, [first, last], onStep) {
  const series = seriesOf(figure);
  if (!series.length) return null;
  const lines = series.map((one) => (one.split === "train" ? smooth(one.values, window) : one.values));
  const every = series.flatMap((one) => one.values);
  let low = Math.min(...quantiles(every, 0.005), ...lines.flat()), high = Math.max(...quantiles(every, 0.995), ...lines.flat());
  if (high - low < 1e-6) [low, high] = [low - 0.5, high + 0.5];
  const pad = 0.06 * (high - low);
  // Shares and the like have no room below 0.
  [low, high] = [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
  const x = (step) => LEFT + ((step - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (Math.min(Math.max(value, low), high) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const svg = el("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": describe(figure, series) });
  for (const tick of ticks(low, high, 5)) {
    svg.append(el("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
    svg.append(el("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, String(+tick.toPrecision(4))));
  }
  for (const tick of ticks(first, last, 6).filter(Number.isInteger)) {
    svg.append(el("text", { x: x(tick), y: HEIGHT - 7, "text-anchor": "middle" }, String(tick)));
  }
  series.forEach((one, k) => {
    const drawn = el("g", { class: one.split });
    const point = (value, j) => `${x(one.steps[j]).toFixed(1)} ${y(value).toFixed(1)}`;
    drawn.append(el("path", { class: "points", stroke: runColour(one.run), d: one.values.map((v, j) => `M${point(v, j)}h0`).join("") }));
    drawn.append(el("path", { class: "smooth", stroke: runColour(one.run), d: "M" + lines[k].map(point).join("L") }));
    svg.append(drawn);
  });
  const of = figure.replace("monitor/", "");
  if (of !== figure) {
    for (const [place, run] of index.runs.entries()) {
      for (const [step, name, said] of run.warnings) {
        if (name !== of || !shownRuns.has(place)) continue;
        const at = x(step);
        svg.append(el("path", { class: "moved", d: `M${at} ${TOP}l-5 -8h10z` }, el("title", {}, `step ${step}: ${said}`)));
      }
    }
  }
  const cursor = el("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  const read = el("span", { class: "read" }, "");
  const stepAt = (event) => {
    const box = svg.getBoundingClientRect();
    const at = first + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (last - first);
    const all = series.flatMap((one) => one.steps);
    return all.reduce((a, b) => (Math.abs(b - at) < Math.abs(a - at) ? b : a));
  };
  svg.onpointermove = (event) => {
    const step = stepAt(event);
    for (const side of ["x1", "x2"]) cursor.setAttribute(side, x(step));
    cursor.setAttribute("visibility", "visible");
    const here = series.filter((one) => one.steps.includes(step));
    read.replaceChildren(`step ${step}`, ...here.map((one) => el("span", { style: { color: runColour(one.run) } },
      ` ${one.split === "eval" ? "eval " : ""}${number(one.values[one.steps.indexOf(step)], 3)}`)));
  };
  svg.onpointerleave = () => { cursor.setAttribute("visibility", "hidden"); read.replaceChildren(); };
  svg.onclick = (event) => onStep(stepAt(event));
  const means = index.moves[of] && el("span", { class: "means" }, "A move may be a sign that " + index.moves[of]);
  return el("figure", { class: "chart", id: "chart-" + figure.replace("/", "-") },
    el("figcaption", {}, TITLES[figure] || figure, read, means), svg);
}

// So that one outlier among the raw points does not flatten the curve; it is drawn at the edge.
function quantiles(values, share) {
  const sorted = Float64Array.from(values).sort();
  return [sorted[Math.round(share * (sorted.length - 1))]];
}

function describe(figure, series) {
  const said = series.map((one) =>
    `${index.runs[one.run].name}, ${one.split}: from ${number(one.values[0])} to ${number(one.values.at(-1))}`);
  return `${TITLES[figure] || figure}. ${said.join(". ")}`;
}

function drawCharts(window, onStep) {
  const figures = new Set(index.runs.flatMap((run) => SPLITS.flatMap((split) =>
    run.curves[split] ? Object.keys(run.curves[split].figures) : [])));
  const order = Object.keys(TITLES).filter((name) => figures.has(name));
  const range = stepRange();
  const drawn = (names) => names.map((name) => chart(name, window, range, onStep)).filter(Boolean);
  fill("charts", ...drawn(order.filter((name) => !name.includes("/"))));
  fill("signs", ...drawn(order.filter((name) => name.includes("/"))));
}
