/* What the comparison of two detections shows beyond that of any two results; the drawings are elsewhere. */
const FIRST_PAIRS = 8;
const SIDE_NAMES = ["before", "after"];
const readySplits = new Set();
const nameOfClass = (number) => (SOLID ? classNamed : className)(number);

function compareBoxTiles() {
  const { metrics, boxes } = splitNow();
  const made = ["nds", "auprc", "recall"].map((name) => {
    const text = DATA.metric_texts.find((one) => one.name === name),
      row = metrics.find((one) => one.metric === name);
    if (!text || !row) return null;
    return tile(text.title, shownMetric(text, row.b), [
      change(text, row.delta),
      h("br"),
      `${shownMetric(text, row.a)} before`,
    ]);
  });
  return [...made, boxes.false.includes(null) ? null : falseTile(boxes.false)];
}
const sidesOf = ({ a, b }, text) => [
  h("span", { class: "was" }, h("span", { class: "sr" }, "before "), text(a)),
  h("span", { class: "arrow", "aria-hidden": "true" }, " → "),
  h("span", { class: "nowrap" }, h("span", { class: "sr" }, "after "), text(b)),
];
const falseTile = ([a, b]) =>
  tile("False boxes", count(b), [
    change({ name: "n_fp", unit: "samples", better: "down" }, b - a),
    h("br"),
    `${count(a)} before`,
  ]);

function drawCompareRecall() {
  const rows = splitNow().classes;
  if (!rows.length) {
    fill("compare-classes", notice("No true box is known on both sides."));
    return;
  }
  const metric = { name: "recall", title: "Recall", unit: "share", better: "up" },
    precision = { name: "auprc", title: "AP", unit: "0 to 1", better: "up" };
  const columns = [
    { title: "Class", cell: (row) => row.name },
    { title: "True boxes", num: true, cell: (row) => count(row.n) },
    { title: "Recall before", num: true, cell: (row) => percent(row.a) },
    { title: "Recall after", num: true, cell: (row) => percent(row.b) },
    { title: "Change", num: true, cell: (row) => change(metric, row.delta, row.sig === false) },
    { title: "Fixed", num: true, cell: (row) => count(row.fixed) },
    { title: "Regressed", num: true, cell: (row) => count(row.regressed) },
    {
      title: "McNemar p",
      num: true,
      cell: (row) => (row.p === null ? "–" : row.p < 0.001 ? "< 0.001" : row.p.toFixed(3)),
    },
  ];
  if (rows.some((row) => row.ap[0] !== null || row.ap[1] !== null))
    columns.push({
      title: "AP before and after",
      num: true,
      cell: (row) => [
        h("span", { class: "nowrap" }, sidesOf({ a: row.ap[0], b: row.ap[1] }, (value) => decimal(value))),
        row.ap.includes(null) ? null : h("div", { class: "range" }, change(precision, row.ap[1] - row.ap[0])),
      ],
    });
  fill(
    "compare-classes",
    h(
      "p",
      { class: "lead" },
      "Recall is of the true boxes both results hold. A change is within chance where the exact test, corrected for the number of classes, does not tell it from luck.",
    ),
    h(
      "div",
      { class: "panel" },
      table("Recall of each class, largest change first", columns, rows, { tight: true, stack: true }),
    ),
  );
}

function drawCompareCosts() {
  const rows = splitNow().costs;
  if (!rows.length) {
    fill("compare-costs", notice("What errors cost is not known of both results."));
    return;
  }
  const metric = { name: "dap", unit: "0 to 1", better: "down" };
  const shown = [...rows].reverse();
  const bars = (side) => ({
    type: "bar",
    orientation: "h",
    name: SIDE_NAMES[side],
    y: shown.map((row) => row.title),
    x: shown.map((row) => row.dap[side]),
    customdata: shown.map((row) => row.n[side]),
    marker: { color: cssColour(side ? "accent" : "muted") },
    hovertemplate: `%{y}, ${SIDE_NAMES[side]}: %{x:.3f} AP lost<br>%{customdata:,} boxes<extra></extra>`,
  });
  fill(
    "compare-costs",
    h(
      "p",
      { class: "lead" },
      `Every false box and missed object is of one kind (TIDE). Its cost is the AP the model would gain ${SOLID ? "" : "at IoU 0.50 "}if that kind alone were mended: shorter is better.`,
    ),
    chart("costs", {
      title: "AP lost to each kind of error, before and after",
      how: "The gains do not add up: mending one kind changes what the others cost.",
      height: 330,
      describe: "Bars of the AP lost to each kind of error before and after; the table below holds the values.",
      draw: () => ({
        traces: [bars(1), bars(0)],
        look: {
          barmode: "group",
          showlegend: true,
          legend: { orientation: "h", traceorder: "reversed", y: 1.14 },
          margin: { l: 8, r: 24, t: 30, b: 8 },
          xaxis: { title: "AP gained if mended", rangemode: "tozero", fixedrange: true },
          yaxis: { fixedrange: true },
        },
      }),
    }),
    h(
      "div",
      { class: "panel" },
      table(
        "Kinds of error, before and after",
        [
          { title: "Kind", cell: (row) => row.title },
          { title: "Boxes before", num: true, cell: (row) => count(row.n[0]) },
          { title: "Boxes after", num: true, cell: (row) => count(row.n[1]) },
          { title: "AP lost before", num: true, cell: (row) => decimal(row.dap[0]) },
          { title: "AP lost after", num: true, cell: (row) => decimal(row.dap[1]) },
          {
            title: "Change",
            num: true,
            cell: (row) => (row.dap.includes(null) ? "–" : change(metric, row.dap[1] - row.dap[0])),
          },
          { title: "What it is", wide: true, cell: (row) => row.means },
        ],
        rows,
        { tight: true, stack: true },
      ),
    ),
  );
}

function drawCompareErrors() {
  const rows = splitNow().errors;
  if (!rows.length) {
    fill("compare-errors", notice("Neither result has an error on this split."));
    return;
  }
  const metric = { name: "n", unit: "samples", better: "down" };
  fill(
    "compare-errors",
    h(
      "div",
      { class: "panel" },
      table(
        "Boxes with each error code, the largest change first",
        [
          { title: "Code", cell: (row) => h("code", {}, row.code) },
          { title: "Label", cell: (row) => row.truth },
          { title: "Predicted", cell: (row) => row.said },
          { title: "What happened", cell: (row) => row.event },
          { title: "Before", num: true, cell: (row) => count(row.a) },
          { title: "After", num: true, cell: (row) => count(row.b) },
          { title: "Change", num: true, cell: (row) => change(metric, row.b - row.a) },
        ],
        rows,
        { tight: true, stack: true },
      ),
    ),
  );
}

// --- what was fixed and what regressed ------------------------------------------------------------------------

/** Mark the boxes that changed, and let the image before have the picture it shares with the one after. */
function readySplit(split) {
  if (readySplits.has(split)) return;
  readySplits.add(split);
  for (const kind of ["regressed", "fixed"])
    for (const entry of split[kind].cards) {
      const [before, after] = pairOf(split, entry);
      Object.assign(before, { side: "before" });
      Object.assign(after, { side: "after" });
      if (before.picture && before.picture.as)
        before.picture = { ...split.cards[before.picture.as].picture, ...ownSize(before.picture) };
      if (after.points) before.points = after.points;
      for (const boxes of changedOf(split, entry)) for (const box of boxes) if (box) box.changed = kind;
    }
}
const ownSize = ({ width, height }) => ({ width, height });
const pairOf = (split, entry) => [split.cards[entry.a], split.cards[entry.b]];
/** Of each changed truth of an image the unit that stands for it, before and after. */
function changedOf(split, entry) {
  const units = pairOf(split, entry).map(SOLID ? unitsOf : boxesOf);
  return entry.truths.map((numbers) =>
    numbers.map((number, side) => units[side].find((unit) => unit.t && unit.gt_idx === number) || null),
  );
}

function drawChangedBoxes(kind) {
  const split = splitNow(),
    { n, images, cards } = split[kind];
  readySplit(split);
  if (SOLID && kind === "regressed") bev.thumbs = [];
  const noun = SOLID ? "frame" : "image";
  if (!cards.length) {
    fill(
      `compare-${kind}`,
      n
        ? notice(`${plural(n, `${kind} true box`, `${kind} true boxes`)} are on no ${noun} that can be drawn.`)
        : h("p", { class: "lead" }, `No ${kind} boxes.`),
    );
    return;
  }
  const list = h("ol", { class: "pairs" });
  const add = (from, to) =>
    cards.slice(from, to).forEach((entry) => list.append(h("li", {}, pairCard(kind, entry))));
  const more = cards.length - FIRST_PAIRS;
  const button = h(
    "button",
    {
      type: "button",
      onclick: () => {
        add(FIRST_PAIRS, cards.length);
        button.remove();
        list.children[FIRST_PAIRS].querySelector("button").focus();
        announce(`${plural(more, `more ${noun}`)} shown`);
      },
    },
    `Show ${plural(more, `more ${noun}`)}`,
  );
  const said = `${CHANGE_MEANS[kind].slice(0, -1)}: ${plural(n, ...PAIRED)} in ${plural(images, noun)}, those with the most first.`;
  fill(
    `compare-${kind}`,
    h(
      "p",
      { class: "lead" },
      said,
      cards.length < images ? ` The first ${count(cards.length)} are shown.` : "",
      SOLID
        ? " What changed is numbered. Both pictures have one scale: x (ahead) up, y to the left, the sensor at the arrow."
        : " What changed is bright and numbered; press an image to enlarge it.",
    ),
    SOLID ? frameLegend() : boxLegend(),
    list,
    more > 0 ? button : null,
  );
  add(0, FIRST_PAIRS);
}

function pairCard(kind, entry) {
  const split = splitNow(),
    cards = pairOf(split, entry),
    changed = changedOf(split, entry);
  const [before, after] = cards;
  const drawing = SOLID ? framePair(kind, cards, changed) : imagePair(kind, cards, changed, entry);
  return h(
    "article",
    { class: "card pair-card" },
    h(
      "div",
      { class: "pair-head" },
      h("h3", {}, before.id === after.id ? after.id : `${before.id} → ${after.id}`),
      h("p", { class: "pair-facts" }, pairFacts(kind, before, after, changed.length)),
    ),
    h("div", { class: "pair-sides" }, drawing.sides),
    h(
      "ol",
      { class: "pair-list", "aria-label": `${kind} boxes of ${after.id}` },
      changed.map((boxes, number) =>
        h(
          "li",
          {},
          h(
            "h4",
            {},
            h("span", { class: "pair-number" }, String(number + 1)),
            nameOfClass((boxes[0] || boxes[1] || { truth: null }).truth),
            drawing.press ? drawing.press(number) : null,
          ),
          h(
            "dl",
            { class: "facts" },
            boxes.map((box, side) => [h("dt", {}, side ? "After" : "Before"), h("dd", {}, whatWasSaid(box))]),
          ),
        ),
      ),
    ),
  );
}

function pairFacts(kind, before, after, changed) {
  const moved = (name, noun) =>
    before[name] === after[name]
      ? `${count(after[name])} ${noun}`
      : `${count(before[name])} → ${count(after[name])} ${noun}`;
  return [
    h("b", { class: kind === "fixed" ? "rightmark" : "wrongmark" }, `${count(changed)} ${kind}`),
    ` · ${moved("n_tp", "right")} · ${moved("n_fp", "false")} · ${moved("n_fn", "not found")}`,
  ];
}

/** What a side made of a true box: found, taken for another class, or missed. */
function whatWasSaid(box) {
  if (!box) return "not drawn";
  const mark = (right) =>
    h("span", { class: right ? "rightmark" : "wrongmark", "aria-hidden": "true" }, right ? "✓ " : "✕ ");
  const score = box.score === null ? "" : ` at ${decimal(box.score, 2)}`;
  const near =
    box.iou > 0.005
      ? `IoU ${decimal(box.iou, 2)}`
      : box.ate !== undefined && box.ate !== null
        ? `${decimal(box.ate, 2)} m off`
        : "";
  if (box.kind === 3) return [mark(false), "missed", near ? `, best ${near}` : "", codesOf(box)];
  if (box.kind === 1)
    return [
      mark(false),
      box.said === box.truth ? `not found, said${score}` : `taken for ${nameOfClass(box.said)}${score}`,
      near ? `, ${near}` : "",
      codesOf(box),
    ];
  return [mark(true), `found${score}`, near ? `, ${near}` : "", codesOf(box)];
}
const codesOf = (box) =>
  box.diagnosis.length
    ? h(
        "span",
        { class: "codes-line" },
        box.diagnosis.map((code) => [" ", h("code", { title: codeTitle(code) }, code)]),
      )
    : null;
