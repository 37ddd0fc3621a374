/* Images with their true and predicted boxes: cards, and one image enlarged with the list of its boxes. */
const IMAGE_FIELDS =
  "kind p t said truth score error_proba miss_proba iou code diagnosis category suspicion suggested action gt_idx".split(
    " ",
  );
const KINDS_2D = ["right", "false", "not judged", "missed"];
/* Truths are solid lines, predictions dashed; what is wrong is thicker and carries its number and code. */
const STYLES_2D = [
  { key: "truth", title: "True box, found" },
  { key: "missed", title: "True box, missed" },
  { key: "right", title: "Prediction, right" },
  { key: "wrong", title: "Prediction, false" },
  { key: "open", title: "Prediction, not judged" },
];
const viewer = { row: null, group: null, picked: -1, off: new Set() };

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {}))
    if (value !== null && value !== undefined) node.setAttribute(name, String(value));
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const className = (number) =>
  number === null || number === undefined
    ? "–"
    : number < 0
      ? "background"
      : DATA.class_names && number < DATA.class_names.length
        ? DATA.class_names[number]
        : String(number);

function boxesOf(card) {
  if (!card.named)
    card.named = card.boxes.map((values) =>
      Object.fromEntries(IMAGE_FIELDS.map((name, place) => [name, values[place]])),
    );
  return card.named;
}

const isWrong = (box) => box.kind === 1 || box.kind === 3;
function isMarked(box, key) {
  if (box.changed) return box.changed === key;
  if (key === "all") return isWrong(box);
  if (key === "sure") return box.kind === 1 && box.score >= 0.9;
  return box.diagnosis.includes(key) || box.category === key || (isWrong(box) && box.code === key);
}

/** What is drawn of an image: {box, place, at, style}; truths first, what is wrong last. */
function shapesOf(card) {
  const made = [];
  boxesOf(card).forEach((box, place) => {
    if (box.t) made.push({ box, place, at: box.t, style: box.kind === 3 ? "missed" : "truth" });
    if (box.p) made.push({ box, place, at: box.p, style: ["right", "wrong", "open"][box.kind] });
  });
  const rank = ["truth", "open", "right", "missed", "wrong"];
  return made.sort((a, b) => rank.indexOf(a.style) - rank.indexOf(b.style));
}

/** What stands at a box: its number in the list, what is wrong with it, what was said. */
function boxTag({ box, place, style }, long) {
  const event = box.code === "no_prediction" ? "missed" : (box.code || "").split(":")[1] || "";
  const room = long ? 22 : 12;
  const confused = box.kind === 1 && box.truth !== null && box.truth !== box.said;
  const name = confused
    ? `${short(className(box.truth), room)}→${short(className(box.said), room)}`
    : short(className(style === "missed" || style === "truth" ? box.truth : box.said), room);
  const score = box.p && style !== "truth" && long ? ` ${decimal(box.score, 2)}` : "";
  return `${place + 1}: ${isWrong(box) ? `${event} ` : ""}${name}${score}`;
}

/** One image; `pixel` is how many canvas pixels a pixel of the screen is. */
function imageDrawing(card, { marked, pixel, long = false, off = new Set(), picked = -1, tag = boxTag }) {
  const shapes = shapesOf(card).filter(({ style }) => !off.has(style));
  const wrong = boxesOf(card).filter(isWrong).length;
  const node = svg("svg", {
    class: "boxes",
    viewBox: `0 0 ${card.width} ${card.height}`,
    role: "img",
    "aria-label": `Image ${card.id}: ${plural(card.n_gt ?? 0, "true box", "true boxes")}, ${plural(card.n_pred ?? 0, "predicted box", "predicted boxes")}, ${plural(wrong, "error")}`,
  });
  node.append(svg("rect", { class: "canvas", width: card.width, height: card.height }));
  if (card.picture)
    node.append(
      svg("image", {
        href: `data:image/${card.picture.type};base64,${card.picture.data}`,
        width: card.picture.width,
        height: card.picture.height,
        preserveAspectRatio: "none",
        class: card.width <= 160 ? "coarse" : null,
      }),
    );
  for (const shape of shapes) {
    const [x1, y1, x2, y2] = shape.at;
    const place = { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) };
    const faded = picked >= 0 ? picked !== shape.place : !marked(shape.box);
    const classes = `${shape.style}${faded ? " faded" : ""}${picked === shape.place ? " picked" : ""}`;
    node.append(
      svg(
        "g",
        { class: classes, "data-place": shape.place },
        svg("rect", { ...place, class: "halo" }),
        svg("rect", { ...place, class: "line" }),
      ),
    );
  }
  if (!off.has("tags")) node.append(...boxTags(card, shapes, { marked, pixel, long, picked, tag }));
  return node;
}

function boxTags(card, shapes, { marked, pixel, long, picked, tag }) {
  const size = (long ? 13 : 11) * pixel;
  const used = [];
  const wanted = shapes.filter(
    ({ box, place, style }) =>
      (style !== "truth" || !box.p) && (picked === place || (picked < 0 && marked(box))),
  );
  return wanted.slice(-(long ? 60 : 6)).map((shape) => {
    const text = tag(shape, long);
    const width = 0.66 * size * text.length;
    const x = Math.max(0, Math.min(shape.at[0], card.width - width));
    // Above its box where there is room, then below other labels, so that none hides another.
    let y = shape.at[1] - 0.35 * size;
    if (y < size) y = Math.min(shape.at[3] + size, card.height - 0.3 * size);
    const clash = () =>
      used.some((one) => Math.abs(one.y - y) < size && x < one.x + one.width && one.x < x + width);
    for (let tries = 0; tries < 6 && clash(); tries += 1) y += 1.05 * size;
    y = Math.min(y, card.height - 0.2 * size);
    used.push({ x, y, width });
    return svg("text", { x, y, "font-size": size, class: `tag-${shape.style}` }, text);
  });
}

function boxLegend() {
  return h(
    "ul",
    { class: "box-legend", "aria-label": "What the lines mean" },
    STYLES_2D.slice(0, 4).map((style) =>
      h("li", {}, boxSample(style.key), style.title),
    ),
  );
}
const boxSample = (key) =>
  svg(
    "svg",
    { class: "boxes sample", viewBox: "0 0 34 20", "aria-hidden": "true" },
    svg("rect", { class: "canvas", width: 34, height: 20 }),
    svg("g", { class: key }, svg("rect", { x: 5, y: 4, width: 24, height: 12, class: "line" })),
  );

function imageCard(row, group) {
  const card = detail().cards[String(row)];
  const marked = (box) => isMarked(box, group.key);
  const pixel = Math.max(card.width / Math.min(330, innerWidth - 70), card.height / 300);
  const own = boxesOf(card)
    .map((box, place) => ({ box, place }))
    .filter(({ box }) => marked(box));
  return h(
    "article",
    { class: "card imagecard" },
    h(
      "button",
      {
        type: "button",
        class: "enlarge",
        "aria-haspopup": "dialog",
        "aria-label": `Enlarge image ${card.id}`,
        onclick: () => openViewer(row, group),
      },
      imageDrawing(card, { marked, pixel }),
    ),
    h("h3", {}, card.id),
    h("p", { class: "imagefacts" }, imageFacts(card)),
    h(
      "ul",
      { class: "boxlines" },
      own.slice(0, 3).map(({ box, place }) => h("li", {}, boxLine(box, place))),
      own.length > 3 ? h("li", { class: "minor" }, `and ${plural(own.length - 3, "more box", "more boxes")}`) : null,
    ),
  );
}

const imageFacts = (card) =>
  [
    card.frame_error_proba === null ? null : `${percent(card.frame_error_proba)} likely to hold an error`,
    `${count(card.n_tp)} right`,
    `${count(card.n_fp)} false`,
    `${count(card.n_fn)} not found`,
  ]
    .filter(Boolean)
    .join(" · ");

function boxLine(box, place) {
  const said =
    box.kind === 3
      ? `missed ${className(box.truth)}`
      : `${className(box.said)} at ${decimal(box.score, 2)}${box.kind === 1 ? `, label ${box.truth === null ? "background" : className(box.truth)}` : ""}`;
  return [
    h("b", {}, `${place + 1}: `),
    said,
    box.suggested === null ? null : [". Suggested: ", h("b", {}, className(box.suggested))],
    " ",
    h(
      "span",
      { class: "codes-line" },
      [box.code, ...box.diagnosis].filter(Boolean).map((code, number) => [
        number ? " · " : "",
        h("code", { title: codeTitle(code) }, code),
      ]),
    ),
    box.action ? h("div", { class: "codes-line" }, box.action) : null,
  ];
}

function worstImages() {
  const rows = detail().worst;
  if (!rows.length) return null;
  const cell = (name) => (row) => count(row[name]);
  return h(
    "div",
    { class: "panel" },
    table(
      `The ${plural(rows.length, "image")} of ${passName(state.pass)} most likely to hold an error, of those that do`,
      [
        {
          title: "Image",
          cell: (row) =>
            row.row === null
              ? row.id
              : h(
                  "button",
                  {
                    type: "button",
                    class: "link",
                    "aria-haspopup": "dialog",
                    onclick: () => openViewer(row.row, groupsOf()[0]),
                  },
                  row.id,
                ),
        },
        { title: "Holds an error", num: true, cell: (row) => percent(row.frame_error_proba) },
        { title: "True boxes", num: true, cell: cell("n_gt") },
        { title: "Predicted", num: true, cell: cell("n_pred") },
        { title: "Right", num: true, cell: cell("n_tp") },
        { title: "False", num: true, cell: cell("n_fp") },
        { title: "Not found", num: true, cell: cell("n_fn") },
      ],
      rows,
      { stack: true },
    ),
  );
}
