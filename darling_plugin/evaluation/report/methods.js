// What each method would have made of the groups: rank correlations, and the groups on which the methods disagree most.

function drawMethods() {
  const shown = [...index.runs.entries()].filter(([place]) => shownRuns.has(place));
  fill("compared", ...shown.flatMap(([place, run]) => {
    const name = index.runs.length > 1 && el("h3", {}, el("span", { class: "swatch", style: { background: runColour(place) } }), " " + run.name);
    if (!run.methods.names) return [name || "", el("p", { class: "quiet" }, run.methods.missing)];
    return [name || "", correlations(run.methods), el("h4", {}, "Groups on which they disagree most"),
      ...run.methods.groups.map((one) => disagreement(one, run.methods.names))];
  }));
}

function correlations({ names, correlation, silent, count, of_classes: ofClasses }) {
  const head = el("tr", {}, el("th"), ...names.map((_, k) => el("th", {}, String(k + 1))), el("th", {}, "silent"));
  const caption = `Rank correlation of the advantages within a group, mean of ${count.toLocaleString("en")} training groups`
    + (ofClasses ? "; similarities, which were not logged of all, are taken as 1 within a class and 0 between" : "");
  return el("div", {}, el("div", { class: "quiet" }, caption), el("div", { class: "scrolls" }, el("table", { class: "heat", "aria-label": caption },
    head, ...names.map((name, row) => el("tr", {}, el("th", {}, `${row + 1} ${name}`),
      ...correlation[row].map((value, k) => el("td", { title: `${name} and ${names[k]}`, style: { background: shade(value) } }, number(value))),
      el("td", {}, silent[row].toLocaleString("en")))))));
}

function shade(value) {
  return value === null ? "none" : `color-mix(in srgb, var(--${value < 0 ? "c1" : "c0"}) ${Math.round(45 * Math.abs(value))}%, transparent)`;
}

function disagreement({ group: g, agreement, rewards, advantages }, names) {
  const asked = el("button", { type: "button", class: "more", onclick: () => pickGroup(g) }, index.prompts[column.prompt[g]] || "(empty)");
  const made = el("details", {}, el("summary", {}, "each method's reward / advantage"));
  made.ontoggle = async () => {
    if (made.childElementCount > 1) return;
    const table = el("table", { class: "advantages" });
    made.append(el("div", { class: "scrolls" }, table));
    const data = await group(g);
    const both = (reward, value) => el("td", { class: value > 0.005 ? "up" : value < -0.005 ? "down" : null },
      `${number(reward)} / ${value >= 5e-5 ? "+" : ""}${number(value)}`);
    table.append(el("tr", {}, ...["response", "class", "quality", ...names.map((name, k) => `${k + 1} ${name}`)].map((name) => el("th", {}, name))),
      ...data.responses.map((text, k) => el("tr", {},
        el("td", {}, el("div", { class: "clamp" }, text.trim().slice(0, 400) || "(empty)")),
        el("td", {}, String(data.labels[k])), el("td", {}, number(data.quality[k])),
        ...names.map((_, m) => both(rewards[m][k], advantages[m][k])))));
  };
  return el("div", { class: "pick still" }, asked, el("div", { class: "quiet" }, `step ${column.step[g]}, mean correlation ${number(agreement)}`), made);
}
