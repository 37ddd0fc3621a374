/* Frames of a 3D detection from above: the worst frames of each group, one of them large, its boxes one by one. */
const KIND_NAMES = ["Right prediction", "False prediction", "Prediction that is not judged", "Missed truth"];
const BOX_FIELDS =
  "kind p t said truth score error_proba miss_proba range n_points speed code diagnosis detail suspicion category ate ase aoe ave moves suggested gt_idx".split(
    " ",
  );
const STYLES_3D = [
  { key: "truth", title: "True box that was found", colour: "right", dash: null, width: 1.5 },
  { key: "missed", title: "Missed truth", colour: "wrong", dash: "6 4", width: 2.4 },
  { key: "right", title: "Right prediction", colour: "accent", dash: null, width: 1.5 },
  { key: "wrong", title: "False prediction", colour: "hotspot", dash: "9 3 2 3", width: 2.4 },
  { key: "open", title: "Prediction that is not judged", colour: "muted", dash: "2 3", width: 1.5 },
];
const STYLE_OF = Object.fromEntries(STYLES_3D.map((style) => [style.key, style]));
const bev = {
  group: "all",
  frame: null,
  view: null,
  picked: -1,
  off: new Set(),
  paint: null,
  thumbs: [],
  solid: false,
};
const scenes = () => detail().scenes;
const hasScenes = (key) => Boolean(scenes() && scenes().groups.some((group) => group.key === key));
const classNamed = (number) =>
  number === null || number === undefined
    ? "–"
    : DATA.class_names && number < DATA.class_names.length
      ? DATA.class_names[number]
      : String(number);
function svgNode(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {}))
    if (value !== null && value !== undefined) node.setAttribute(name, String(value));
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Show the frames of a group (a diagnosis, a category) from elsewhere on the page. */
function showScenes(key) {
  bev.group = key;
  bev.frame = null;
  drawBev();
  document.getElementById("bev").scrollIntoView();
  document.getElementById("scene-group").focus({ preventScroll: true });
}

/** The units of a frame; boxes in metres and radians. */
function unitsOf(card) {
  if (!card.units3d)
    card.units3d = card.boxes.map((values) => {
      const unit = Object.fromEntries(BOX_FIELDS.map((name, place) => [name, values[place]]));
      for (const name of ["p", "t"])
        unit[name] = unit[name] && unit[name].map((value, place) => value / (place === 6 ? 1000 : 100));
      return unit;
    });
  return card.units3d;
}

/** The boxes that are drawn: {unit, place, box, style}; truths first, so that predictions lie above them. */
function shapes3d(card) {
  const made = [];
  unitsOf(card).forEach((unit, place) => {
    if (unit.t)
      made.push({
        unit,
        place,
        box: unit.t,
        style: STYLE_OF[unit.kind === 0 || unit.p ? "truth" : "missed"],
      });
  });
  unitsOf(card).forEach((unit, place) => {
    if (unit.p)
      made.push({ unit, place, box: unit.p, style: STYLE_OF[["right", "wrong", "open"][unit.kind]] });
  });
  return made;
}

const isMarked3d = (unit) =>
  unit.changed
    ? unit.changed === bev.group
    : bev.group === "swapped"
      ? unit.detail === "swapped"
      : unit.diagnosis.includes(bev.group) || unit.category === bev.group;
const labelOf = (unit) =>
  DATA.kind === "comparison"
    ? isMarked3d(unit) && unit.number
    : unit.diagnosis.includes(bev.group)
      ? bev.group
      : bev.group === "swapped" && isMarked3d(unit)
        ? "T04"
        : unit.diagnosis[0];

/** Corners of a box in the ground plane, then the middle of its front and a point ahead of it. */
function footprint([x, y, , w, l, , yaw]) {
  const c = Math.cos(yaw),
    s = Math.sin(yaw);
  const at = (along, across) => [x + along * c - across * s, y + along * s + across * c];
  return {
    corners: [at(l / 2, w / 2), at(l / 2, -w / 2), at(-l / 2, -w / 2), at(-l / 2, w / 2)],
    tick: [at(0, 0), at(l / 2 + Math.min(1, 0.35 * l), 0)],
  };
}

/** A view that holds every box of some frames and the sensor. */
function fittedView(cards, width, height) {
  let [low, high, left, right] = [0, 0, 0, 0];
  for (const { box } of [cards].flat().flatMap(shapes3d))
    for (const [x, y] of footprint(box).corners) {
      low = Math.min(low, x);
      high = Math.max(high, x);
      left = Math.max(left, y);
      right = Math.min(right, y);
    }
  const across = Math.max(left - right, 12),
    along = Math.max(high - low, 12);
  return {
    x: (low + high) / 2,
    y: (left + right) / 2,
    k: 0.92 * Math.min(width / across, height / along),
  };
}
/** Pixels of a place on the ground: x (ahead) goes up, y goes left. */
const toPixel = (view, size, [x, y]) => [
  size.w / 2 - (y - view.y) * view.k,
  size.h / 2 - (x - view.x) * view.k,
];
const toGround = (view, size, [px, py]) => [
  view.x - (py - size.h / 2) / view.k,
  view.y - (px - size.w / 2) / view.k,
];

function pointsOf(card) {
  if (!card.points) return null;
  if (!card.points.values) {
    const raw = atob(card.points.xyz);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
    card.points.values = new Int16Array(bytes.buffer);
  }
  return card.points.values;
}

function fitCanvas(canvas, width, height) {
  const ratio = Math.min(devicePixelRatio || 1, 2);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}
function paintPoints(pen, card, view, size, dot) {
  const values = pointsOf(card);
  if (!values || bev.off.has("points")) return;
  pen.fillStyle = cssColour("point");
  for (let i = 0; i < values.length; i += 3) {
    const px = size.w / 2 - (values[i + 1] / 100 - view.y) * view.k,
      py = size.h / 2 - (values[i] / 100 - view.x) * view.k;
    if (px > -2 && py > -2 && px < size.w + 2 && py < size.h + 2)
      pen.fillRect(px - dot / 2, py - dot / 2, dot, dot);
  }
}

/** A small picture of a frame for its button. */
function thumbnail(card) {
  const canvas = h("canvas", { class: "bev-thumb", "aria-hidden": "true" });
  bev.thumbs.push(() => {
    const size = { w: 92, h: 92 },
      view = fittedView(card, size.w, size.h),
      pen = fitCanvas(canvas, size.w, size.h);
    paintPoints(pen, card, view, size, 0.7);
    for (const { box, style, unit } of shapes3d(card)) {
      pen.beginPath();
      footprint(box).corners.forEach((corner, place) => {
        const [x, y] = toPixel(view, size, corner);
        if (place) pen.lineTo(x, y);
        else pen.moveTo(x, y);
      });
      pen.closePath();
      pen.strokeStyle = cssColour(style.colour);
      pen.setLineDash(style.dash && style.key === "missed" ? [2, 2] : []);
      pen.lineWidth = unit.kind === 1 || unit.kind === 3 ? 1.8 : 0.9;
      pen.stroke();
    }
  });
  return canvas;
}

function drawBev() {
  if (!part("bev")) return;
  const now = scenes();
  bev.thumbs = [];
  bev.paint = null;
  if (!now || !now.groups.length) {
    fill("bev", noScenes());
    return;
  }
  const group = now.groups.find((one) => one.key === bev.group) || now.groups[0];
  bev.group = group.key;
  if (!group.rows.includes(bev.frame)) bev.frame = group.rows[0];
  const kinds = [...new Set(now.groups.map((one) => one.kind))];
  const select = h(
    "select",
    {
      id: "scene-group",
      onchange: (event) => {
        bev.group = event.target.value;
        bev.frame = null;
        drawBev();
        document.getElementById("scene-group").focus();
        announce(event.target.selectedOptions[0].textContent);
      },
    },
    kinds.map((kind) =>
      h(
        "optgroup",
        { label: kind },
        now.groups
          .filter((one) => one.kind === kind)
          .map((one) => option(one.key, `${one.title} (${plural(one.n, "frame")})`, one === group)),
      ),
    ),
  );
  const code = now.codes[group.key === "swapped" ? "T04" : group.key];
  fill(
    "bev",
    h(
      "p",
      { class: "lead" },
      `Frames seen from above, worst first: x (ahead) up, y to the left, the sensor at the arrow. ${group.rows.length < group.n ? `The worst ${count(group.rows.length)} of ${count(group.n)}.` : ""}`,
    ),
    now.points
      ? null
      : notice(
          "There are no points on this page: records hold boxes, not point clouds. Write the page with ",
          h("code", {}, "result.report(path, image_fn=…)"),
          " and let the function return the points of a frame, (N, 3 or more) floats in the model’s frame.",
        ),
    h("div", { class: "tools" }, h("label", {}, "Frames of ", select)),
    code ? notice(h("b", {}, "Why: "), `${code.why}. `, h("b", {}, "What to do: "), code.action) : null,
    h("div", { class: "bev" }, frameStrip(group), h("div", { id: "bev-main" })),
  );
  bev.thumbs.forEach((paint) => paint());
  drawFrame();
}

function noScenes() {
  const last = DATA.passes.map((one) => one.dataset).lastIndexOf(DATA.passes[state.pass].dataset);
  if (last !== state.pass)
    return notice(
      "Frames are shown for the last epoch of each split. ",
      h("button", { type: "button", onclick: () => choosePass(last) }, `Show ${passName(last)}`),
    );
  return scenes().repeated
    ? notice(
        `${plural(scenes().repeated, "frame has", "frames have")} an id that occurs more than once in this pass: their boxes cannot be told apart and are not drawn.`,
      )
    : notice("No frame of this pass holds an error or a diagnosis.");
}

function frameStrip(group) {
  return h(
    "ol",
    { class: "bev-strip", "aria-label": "Frames of the group, worst first" },
    group.rows.map((row) => {
      const card = scenes().frames[String(row)];
      return h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            "data-frame": row,
            "aria-pressed": String(row === bev.frame),
            onclick: () => chooseFrame(row),
          },
          thumbnail(card),
          h("span", { class: "bev-name" }, short(card.id, 22)),
          h("span", { class: "bev-sum" }, frameSum(card)),
        ),
      );
    }),
  );
}
const frameSum = (card) => `${count(card.n_fp)} false, ${count(card.n_fn)} missed`;

function chooseFrame(row) {
  bev.frame = row;
  for (const button of document.querySelectorAll(".bev-strip button"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.frame) === row));
  drawFrame();
  announce(`Frame ${scenes().frames[String(row)].id}`);
}

/** The large picture of the chosen frame with everything around it. */
function drawFrame() {
  const card = scenes().frames[String(bev.frame)];
  const first = unitsOf(card).findIndex(isMarked3d);
  bev.picked = first >= 0 ? first : 0;
  bev.view = null;
  purgeSolid();
  const canvas = h("canvas", { "aria-hidden": "true" }),
    drawing = svgNode("svg", { "aria-hidden": "true" });
  const view = h(
    "div",
    {
      class: "bev-view",
      id: "bev-view",
      tabindex: "0",
      role: "application",
      "aria-label": `Frame ${card.id} from above. Plus and minus zoom, arrows move, 0 shows all, N and P go from box to box, Z goes near.`,
    },
    canvas,
    drawing,
  );
  const press = (label, name, action) =>
    h(
      "button",
      { type: "button", "aria-label": label, title: label, "data-act": name, onclick: action },
      name,
    );
  const zoomBy = (factor) => zoomView(factor);
  const buttons = h(
    "div",
    { class: "bev-buttons" },
    press("Zoom in", "+", () => zoomBy(1.35)),
    press("Zoom out", "−", () => zoomBy(1 / 1.35)),
    press("Show all", "⤢", () => resetView()),
  );
  const main = document.getElementById("bev-main");
  main.replaceChildren(
    h(
      "div",
      { class: "panel bev-panel" },
      h("div", { class: "bev-head" }, h("h3", {}, card.id), h("p", { class: "how" }, frameFacts(card))),
      h("div", { class: "bev-stage" }, view, buttons),
      h(
        "p",
        { class: "bev-hint" },
        "Drag to move; click the picture or reach it with Tab, then the wheel, + and −, the arrows and a pinch work in it. Click a box for its facts.",
      ),
      layerChoice(card),
      h(
        "div",
        { class: "bev-step" },
        h("button", { type: "button", id: "bev-previous", onclick: () => stepBox(-1) }, "Previous box"),
        h("button", { type: "button", id: "bev-next", onclick: () => stepBox(1) }, "Next box"),
        h("button", { type: "button", id: "bev-zoom", onclick: zoomToBox }, "Zoom to box"),
        solidButton(card),
      ),
      h("div", { id: "bev-facts", role: "status", "aria-live": "polite" }),
      h("div", { id: "bev-solid" }),
      card.picture
        ? h("img", {
            class: "bev-picture",
            src: `data:image/png;base64,${card.picture}`,
            alt: `Picture of frame ${card.id}`,
          })
        : null,
      boxList(card),
    ),
  );
  bev.paint = () => paintFrame(card, view, canvas, drawing);
  setUpView(card, view);
  new ResizeObserver(() => bev.paint && view.isConnected && bev.paint()).observe(view);
  bev.paint();
  drawFacts(card);
  if (bev.solid) openSolid(card);
}

function frameFacts(card) {
  const shown =
    card.boxes.length < card.units ? ` The ${card.boxes.length} worst of ${card.units} are drawn.` : "";
  const points = card.points ? ` ${count(card.points.n)} of ${plural(card.points.of, "point")}.` : "";
  const risk =
    card.frame_error_proba === null ? "" : ` Probability of an error ${decimal(card.frame_error_proba, 2)}.`;
  return `${plural(card.n_gt ?? 0, "true box", "true boxes")}, ${plural(card.n_pred ?? 0, "prediction")}: ${count(card.n_tp)} right, ${frameSum(card)}.${risk}${points}${shown}`;
}

function lineSample(style) {
  return svgNode(
    "svg",
    { class: "bev-key", viewBox: "0 0 34 12", "aria-hidden": "true" },
    svgNode("line", { x1: 1, y1: 6, x2: 33, y2: 6, class: `stroke-${style.key}` }),
  );
}

/** The legend; each entry can be switched off. */
function layerChoice(card) {
  const used = new Set(shapes3d(card).map(({ style }) => style.key));
  const layers = [
    ...STYLES_3D.filter((style) => used.has(style.key)).map((style) => [
      style.key,
      style.title,
      lineSample(style),
    ]),
    ["codes", "Codes", null],
    ...(unitsOf(card).some((unit) => unit.moves)
      ? [["moves", "True motion, 1 s", lineSample({ key: "motion" })]]
      : []),
    ...(card.points ? [["points", "Points", null]] : []),
  ];
  return h(
    "fieldset",
    { class: "choice bev-layers" },
    h("legend", {}, "Show"),
    layers.map(([key, title, picture]) =>
      h(
        "label",
        {},
        h("input", {
          type: "checkbox",
          checked: !bev.off.has(key),
          onchange: (event) => {
            if (event.target.checked) bev.off.delete(key);
            else bev.off.add(key);
            bev.paint();
          },
        }),
        picture,
        title,
      ),
    ),
  );
}
