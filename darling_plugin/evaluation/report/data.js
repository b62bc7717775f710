"use strict";
// What the page holds: an index that is read at once, and parts of groups that are unpacked when they are shown.

const index = JSON.parse(document.getElementById("index").textContent);
const SPLITS = ["train", "eval"];

// The groups' columns as typed arrays: sorting and filtering ten thousand takes milliseconds.
const column = {};
for (const [name, values] of Object.entries(index.groups)) {
  column[name] = Float64Array.from(values, (value) => (value === null ? NaN : value));
}
const groupCount = column.step.length;
const promptsLower = index.prompts.map((prompt) => prompt.toLowerCase());

const unpacked = new Map(); // part -> promise of its groups; the oldest leave
const KEPT = 64;

function part(number) {
  if (!unpacked.has(number)) {
    if (unpacked.size >= KEPT) unpacked.delete(unpacked.keys().next().value);
    unpacked.set(number, unpack(number));
  }
  return unpacked.get(number);
}

// Most parts stand behind this script: the first groups are drawn while the browser reads the rest.
const read = new Promise((done) => document.addEventListener("DOMContentLoaded", done));

async function unpack(number) {
  const element = () => document.getElementById("part" + number);
  if (!element()) await read;
  const bytes = Uint8Array.from(atob(element().textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

async function group(number) {
  return (await part(Math.floor(number / index.part)))[number % index.part];
}

// An element with attributes, properties for functions, and children; text is never read as HTML.
function el(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "g", "title", "rect"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made[key] = value;
    else if (key === "style") for (const [property, set] of Object.entries(value)) made.style.setProperty(property, set);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

function fill(id, ...children) {
  document.getElementById(id).replaceChildren(...children);
}

function number(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const said = size >= 5e-5 && size < 0.01 ? size.toPrecision(2) : size.toFixed(size >= 1000 ? 0 : size >= 100 ? Math.min(1, digits) : digits);
  return (value < 0 && size >= 5e-5 ? "−" : "") + said;
}

const COLOURS = 10; // then they come again: of runs and of classes, which have their names beside them

function runColour(run) {
  return `var(--c${run % COLOURS})`;
}
