"use strict";
/* The page's data, the state of its controls, and small helpers. Texts of records only ever become text nodes. */
const DATA = JSON.parse(document.getElementById("data").textContent);
/* What is counted: samples of a classification, boxes of a detection. */
const SOLID = DATA.task === "detection3d",
  BOXES = SOLID || DATA.task === "detection";
const ONE = BOXES ? "box" : "sample",
  MANY = BOXES ? "boxes" : "samples",
  TITLE = BOXES ? "Boxes" : "Samples";
const CATEGORY = Object.fromEntries(DATA.category_texts.map((text) => [text.name, text]));
const LETTER = {
  stable_coverage: "S",
  operational_coverage: "O",
  recessive_hotspot: "R",
  hotspot: "H",
  critical_hotspot: "C",
  aleatoric_hotspot: "A",
};
const SYMBOL = {
  stable_coverage: "circle",
  operational_coverage: "circle-open",
  recessive_hotspot: "diamond",
  hotspot: "square",
  critical_hotspot: "x",
  aleatoric_hotspot: "triangle-up",
  right: "circle-open",
  wrong: "x",
  unlabelled: "square-open",
};
const state = {
  pass: DATA.kind === "report" ? DATA.first : 0,
  split: DATA.kind === "report" ? 0 : DATA.first,
  group: "all",
  metric: null,
  confusion: "share",
  sort: { key: "n", down: true },
  filter: "",
  allCodes: false,
};

/** Make an element: h("p", {class: "lead"}, "text", child, [children]). Attributes named on* take functions. */
function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(
    ...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return node;
}

const part = (name) => document.querySelector(`[data-part="${name}"]`);
const fill = (name, ...children) => part(name).replaceChildren(...children.flat(2).filter(Boolean));

const whole = new Intl.NumberFormat("en");
const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));
const decimal = (value, digits = 3) =>
  value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");
function percent(value) {
  if (value === null || value === undefined) return "–";
  const shown = 100 * value;
  if (shown === 0 || shown === 100) return `${shown} %`;
  if (shown < 0.1) return "<0.1 %";
  return `${shown > 99.9 ? ">99.9" : shown.toFixed(1)} %`;
}
const isShare = (metric) => metric.unit === "share";
const shownMetric = (metric, value) =>
  value === null || value === undefined
    ? "–"
    : metric.unit === "samples"
      ? count(value)
      : isShare(metric)
        ? percent(value)
        : decimal(value);
function range(row, metric) {
  const low = row[`${metric.name}_lo`],
    high = row[`${metric.name}_hi`];
  if (low === null || low === undefined || high === null || high === undefined) return null;
  return isShare(metric)
    ? `[${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]`
    : `[${decimal(low)}, ${decimal(high)}]`;
}
const short = (text, length = 16) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many || `${one}s`}`;
const mark = (name) => h("span", { class: `mark ${name}`, "aria-hidden": "true" }, LETTER[name]);
const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const kindColour = (name) =>
  cssColour(
    {
      stable_coverage: "stable",
      operational_coverage: "operational",
      recessive_hotspot: "recessive",
      hotspot: "hotspot",
      critical_hotspot: "critical",
      aleatoric_hotspot: "aleatoric",
      right: "right",
      wrong: "wrong",
    }[name] || "muted",
  );
const kindTitle = (name) => (CATEGORY[name] ? CATEGORY[name].title : name[0].toUpperCase() + name.slice(1));
const notice = (...text) => h("p", { class: "notice" }, ...text);

/** A table in a box that scrolls by itself: columns are {title, num, cell(row), head} objects. */
function table(caption, columns, rows, options = {}) {
  // The roles are written out because stacked tables (narrow windows) are no longer laid out as tables.
  const head = h(
    "tr",
    { role: "row" },
    columns.map((column) =>
      h(
        "th",
        {
          scope: "col",
          role: "columnheader",
          class: column.num ? "num" : null,
          "aria-sort": options.sorted ? options.sorted(column) : null,
        },
        options.head ? options.head(column) : column.title,
      ),
    ),
  );
  const body = rows.map((row) =>
    h(
      "tr",
      { role: "row" },
      columns.map((column, place) => {
        const content = column.cell(row);
        const classes = [column.num && "num", column.wide && "wide"].filter(Boolean).join(" ") || null;
        const label = options.stack && column.title ? column.title : null;
        return place === 0
          ? h("th", { scope: "row", role: "rowheader", class: classes }, content)
          : h("td", { role: "cell", class: classes, "data-label": label }, h("div", {}, content));
      }),
    ),
  );
  const made = h(
    "table",
    { role: "table" },
    h("caption", { class: options.hideCaption ? "sr" : null }, caption),
    h("thead", { role: "rowgroup" }, head),
    h("tbody", { role: "rowgroup" }, body),
  );
  const classes = [
    "scroll",
    options.tight && "tight",
    options.stack && "stacked",
    options.sorted && "sortable",
  ]
    .filter(Boolean)
    .join(" ");
  return h(
    "div",
    { class: classes, role: "region", tabindex: "0", "aria-label": `${caption} (scrolls sideways)` },
    made,
  );
}

function announce(text) {
  document.getElementById("live").textContent = text;
}

/** Theme: the reader's choice, else the system's; charts are drawn again because their colours are read here. */
function setUpTheme(redraw) {
  const select = document.getElementById("theme");
  const apply = () => {
    if (select.value === "system") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", select.value);
    redraw();
  };
  select.addEventListener("change", apply);
  matchMedia("(prefers-color-scheme: dark)").addEventListener(
    "change",
    () => select.value === "system" && redraw(),
  );
}

function option(value, text, chosen) {
  return h("option", { value, selected: chosen || null }, text);
}

/** Mark the section in view in the list of sections. */
function setUpNavigation() {
  const links = [...document.querySelectorAll("#nav a")];
  const sections = links.map((link) => document.querySelector(link.getAttribute("href")));
  const update = () => {
    const line = Math.min(innerHeight * 0.3, 260);
    let now = 0;
    sections.forEach((section, place) => {
      if (section.getBoundingClientRect().top <= line) now = place;
    });
    if (innerHeight + scrollY >= document.documentElement.scrollHeight - 4) now = sections.length - 1;
    links.forEach((link, place) =>
      place === now ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"),
    );
    // Where the list is one line (narrow windows), the current entry is kept in sight.
    const bar = links[now].closest("nav");
    if (bar.scrollWidth > bar.clientWidth) bar.scrollLeft = links[now].offsetLeft - 0.3 * bar.clientWidth;
  };
  let waiting = false;
  addEventListener(
    "scroll",
    () => {
      if (!waiting) {
        waiting = true;
        requestAnimationFrame(() => {
          waiting = false;
          update();
        });
      }
    },
    { passive: true },
  );
  update();
}
