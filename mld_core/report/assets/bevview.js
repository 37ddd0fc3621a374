/* The large picture from above: drawing it, moving in it, choosing a box in it. */
const RING_STEPS = [5, 10, 20, 50, 100];

function paintFrame(card, view, canvas, drawing) {
  const size = { w: view.clientWidth, h: view.clientHeight };
  if (!size.w || !size.h) return;
  if (!bev.view) bev.view = fittedView(card, size.w, size.h);
  bev.size = size;
  const now = bev.view;
  const pen = fitCanvas(canvas, size.w, size.h);
  paintPoints(pen, card, now, size, Math.max(1.1, Math.min(3, now.k / 9)));
  drawing.setAttribute("viewBox", `0 0 ${size.w} ${size.h}`);
  const under = svgNode("g", {}),
    boxes = svgNode("g", {}),
    labels = svgNode("g", {});
  under.append(...rangeRings(now, size), ...silentSectors(card, now, size), sensorMark(now, size));
  const labelled = new Set();
  shapes3d(card).forEach((shape) => {
    if (bev.off.has(shape.style.key)) return;
    const chosen = shape.place === bev.picked;
    boxes.append(drawnBox(shape, now, size, chosen));
    const text = labelOf(shape.unit);
    if (!text || bev.off.has("codes") || labelled.has(shape.place)) return;
    labelled.add(shape.place);
    labels.append(codeLabel(shape, text, now, size));
  });
  if (!bev.off.has("moves"))
    unitsOf(card).forEach((unit) => unit.moves && unit.t && boxes.append(motionArrow(unit, now, size)));
  drawing.replaceChildren(under, boxes, labels);
}

function rangeRings(now, size) {
  const far = Math.hypot(size.w, size.h) / now.k + Math.hypot(now.x, now.y);
  const apart = RING_STEPS.find((one) => one * now.k >= 42) || 200;
  const [cx, cy] = toPixel(now, size, [0, 0]);
  const made = [];
  for (let r = apart; r < far && made.length < 60; r += apart) {
    made.push(svgNode("circle", { cx, cy, r: r * now.k, class: "ring" }));
    made.push(svgNode("text", { x: cx + 3, y: cy - r * now.k - 3, class: "ring-text" }, `${r} m`));
  }
  return made;
}

function sensorMark(now, size) {
  const [x, y] = toPixel(now, size, [0, 0]);
  return svgNode("path", {
    d: `M${x} ${y - 8} L${x + 6} ${y + 6} L${x} ${y + 3} L${x - 6} ${y + 6} Z`,
    class: "sensor",
  });
}

/** Sectors of the frame that fell silent (T12). */
function silentSectors(card, now, size) {
  const own = scenes() ? scenes().sensor.sectors.filter((one) => one.input_id === card.id) : [];
  const reach = 200;
  return own.flatMap((one) => {
    const steps = Math.max(2, Math.ceil(one.degrees / 5));
    const arc = Array.from({ length: steps + 1 }, (_, place) => {
      const turn = ((one.azimuth + (one.degrees * place) / steps) * Math.PI) / 180;
      return toPixel(now, size, [reach * Math.cos(turn), reach * Math.sin(turn)]);
    });
    const middle = ((one.azimuth + one.degrees / 2) * Math.PI) / 180;
    const [tx, ty] = toPixel(now, size, [18 * Math.cos(middle), 18 * Math.sin(middle)]);
    const text = [toPixel(now, size, [0, 0]), ...arc]
      .map((xy) => xy.map((v) => v.toFixed(1)).join(" "))
      .join(" L");
    return [
      svgNode("path", { d: `M${text} Z`, class: "silent" }),
      svgNode("text", { x: tx, y: ty, class: "silent-text" }, "T12 silent"),
    ];
  });
}

const pointList = (places) => places.map((xy) => xy.map((value) => value.toFixed(2)).join(",")).join(" ");

function drawnBox({ unit, place, box, style }, now, size, chosen) {
  const { corners, tick } = footprint(box);
  const points = pointList(corners.map((corner) => toPixel(now, size, corner)));
  const [a, b] = tick.map((one) => toPixel(now, size, one));
  // The marks stand around one of the two boxes of a unit.
  const first = box === (unit.p || unit.t);
  return svgNode(
    "g",
    { "data-place": place, "data-kind": style.key },
    first && isMarked3d(unit) ? svgNode("polygon", { points, class: "halo" }) : null,
    first && chosen ? svgNode("polygon", { points: chosenOutline(box, now, size), class: "chosen" }) : null,
    svgNode("polygon", { points, class: `box stroke-${style.key}` }),
    svgNode("line", { x1: a[0], y1: a[1], x2: b[0], y2: b[1], class: `stroke-${style.key} heading` }),
  );
}

/** A line five pixels around a box, so that it hides nothing. */
function chosenOutline(box, now, size) {
  const more = 10 / now.k;
  const [x, y, z, w, l, height, yaw] = box;
  return pointList(
    footprint([x, y, z, w + more, l + more, height, yaw]).corners.map((corner) => toPixel(now, size, corner)),
  );
}

function codeLabel({ unit, box, place }, text, now, size) {
  const places = footprint(box).corners.map((corner) => toPixel(now, size, corner));
  const right = Math.max(...places.map(([px]) => px)) + 4;
  const turned = right + 30 > size.w;
  const x = turned ? Math.min(...places.map(([px]) => px)) - 4 : right,
    y = Math.max(12, Math.min(...places.map(([, py]) => py)) + 6);
  const strong = isMarked3d(unit) || place === bev.picked;
  const attributes = { x, y, "text-anchor": turned ? "end" : "start" };
  return svgNode("text", { ...attributes, class: strong ? "code-text strong" : "code-text" }, text);
}

function motionArrow(unit, now, size) {
  const [vx, vy] = unit.moves.map((value) => value / 100);
  const [a, b] = [
    [unit.t[0], unit.t[1]],
    [unit.t[0] + vx, unit.t[1] + vy],
  ].map((one) => toPixel(now, size, one));
  const turn = Math.atan2(b[1] - a[1], b[0] - a[0]);
  const wing = (side) => [b[0] - 7 * Math.cos(turn + side), b[1] - 7 * Math.sin(turn + side)];
  return svgNode("path", {
    d: `M${a[0]} ${a[1]} L${b[0]} ${b[1]} M${wing(0.45).join(" ")} L${b[0]} ${b[1]} L${wing(-0.45).join(" ")}`,
    class: "motion",
  });
}

// --- moving ---------------------------------------------------------------------------------------------------

let bevWaiting = false;
function repaintView() {
  if (bevWaiting) return;
  bevWaiting = true;
  requestAnimationFrame(() => {
    bevWaiting = false;
    if (bev.paint) bev.paint();
  });
}

/** Zoom by a factor about a pixel (default: the middle). */
function zoomView(factor, at) {
  const { view, size } = bev;
  const place = at || [size.w / 2, size.h / 2];
  const before = toGround(view, size, place);
  view.k = Math.min(400, Math.max(0.5, view.k * factor));
  const after = toGround(view, size, place);
  view.x += before[0] - after[0];
  view.y += before[1] - after[1];
  repaintView();
}
function panView(dx, dy) {
  bev.view.x += dy / bev.view.k;
  bev.view.y += dx / bev.view.k;
  repaintView();
}
function resetView() {
  bev.view = null;
  repaintView();
}

/** Look at the chosen box from near. */
function zoomToBox() {
  const unit = unitsOf(scenes().frames[String(bev.frame)])[bev.picked];
  const box = unit && (unit.p || unit.t);
  if (!box) return;
  bev.view = {
    x: box[0],
    y: box[1],
    k: Math.min(60, (0.3 * Math.min(bev.size.w, bev.size.h)) / Math.max(box[3], box[4])),
  };
  repaintView();
}

const KEYS_3D = {
  "+": () => zoomView(1.35),
  "=": () => zoomView(1.35),
  "-": () => zoomView(1 / 1.35),
  _: () => zoomView(1 / 1.35),
  0: () => resetView(),
  Home: () => resetView(),
  ArrowUp: () => panView(0, 60),
  ArrowDown: () => panView(0, -60),
  ArrowLeft: () => panView(60, 0),
  ArrowRight: () => panView(-60, 0),
  z: () => zoomToBox(),
  n: () => stepBox(1),
  p: () => stepBox(-1),
};

function setUpView(card, view) {
  const fingers = new Map();
  let moved = 0,
    apart = 0;
  const place = (event) => {
    const frame = view.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  };
  view.addEventListener("keydown", (event) => {
    const action = KEYS_3D[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
  view.addEventListener(
    "wheel",
    (event) => {
      // The page scrolls until the picture was chosen by a click or the Tab key.
      if (document.activeElement !== view && !event.ctrlKey) return;
      event.preventDefault();
      zoomView(Math.exp(-Math.max(-120, Math.min(120, event.deltaY)) / 320), place(event));
    },
    { passive: false },
  );
  view.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    fingers.set(event.pointerId, place(event));
    view.setPointerCapture(event.pointerId);
    if (fingers.size === 1) moved = 0;
    apart = fingerSpread(fingers);
  });
  view.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = place(event);
    fingers.set(event.pointerId, now);
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    moved += Math.hypot(dx, dy);
    if (moved < 5) return;
    panView(dx / fingers.size, dy / fingers.size);
    if (fingers.size > 1) {
      const wide = fingerSpread(fingers);
      if (apart) zoomView(wide / apart, fingerMiddle(fingers));
      apart = wide;
    }
  });
  const up = (event) => {
    const known = fingers.delete(event.pointerId);
    apart = fingerSpread(fingers);
    if (known && event.type === "pointerup" && moved < 5 && !fingers.size) pickAt(card, place(event));
  };
  view.addEventListener("pointerup", up);
  view.addEventListener("pointercancel", up);
}
const twoFingers = (fingers) => [...fingers.values()].slice(0, 2);
function fingerSpread(fingers) {
  const [a, b] = twoFingers(fingers);
  return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 0;
}
function fingerMiddle(fingers) {
  const [a, b] = twoFingers(fingers);
  return [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
}

// --- choosing a box -------------------------------------------------------------------------------------------

/** The boxes under a pixel, smallest first; one more click on the same place takes the next. */
function pickAt(card, at) {
  const [x, y] = toGround(bev.view, bev.size, at);
  const slack = 6 / bev.view.k;
  const hit = shapes3d(card)
    .filter(({ style, box }) => {
      if (bev.off.has(style.key)) return false;
      const [cx, cy, , w, l, , yaw] = box;
      const along = (x - cx) * Math.cos(yaw) + (y - cy) * Math.sin(yaw),
        across = (y - cy) * Math.cos(yaw) - (x - cx) * Math.sin(yaw);
      return Math.abs(along) <= l / 2 + slack && Math.abs(across) <= w / 2 + slack;
    })
    .sort((a, b) => a.box[3] * a.box[4] - b.box[3] * b.box[4]);
  const places = [...new Set(hit.map(({ place }) => place))];
  if (!places.length) return;
  chooseBox(card, places[(places.indexOf(bev.picked) + 1) % places.length]);
}

function chooseBox(card, place) {
  bev.picked = place;
  repaintView();
  drawFacts(card);
}

function stepBox(by) {
  const card = scenes().frames[String(bev.frame)],
    rows = unitsOf(card).length;
  if (rows) chooseBox(card, (bev.picked + by + rows) % rows);
}

function unitFacts(unit) {
  const metres = (value, unitName) => (value === null ? null : `${decimal(value, 2)} ${unitName}`);
  const offsets = [
    ["centre", metres(unit.ate, "m")],
    ["size", unit.ase === null ? null : decimal(unit.ase, 2)],
    ["heading", unit.aoe === null ? null : `${Math.round((180 * unit.aoe) / Math.PI)}°`],
    ["velocity", metres(unit.ave, "m/s")],
  ].filter(([, value]) => value !== null);
  return [
    unit.p ? ["Predicted", classNamed(unit.said)] : null,
    unit.t ? ["True class", classNamed(unit.truth)] : null,
    unit.suggested === null ? null : ["Suggested class", h("b", {}, classNamed(unit.suggested))],
    unit.score === null ? null : ["Score", decimal(unit.score, 2)],
    unit.error_proba === null ? null : ["Error prob.", decimal(unit.error_proba, 2)],
    unit.miss_proba === null ? null : ["Miss prob.", decimal(unit.miss_proba, 2)],
    unit.suspicion === null ? null : ["Suspicion of the label", decimal(unit.suspicion, 2)],
    unit.range === null ? null : ["Range", metres(unit.range, "m")],
    unit.n_points === null || unit.n_points < 0 || !unit.t ? null : ["Points inside", count(unit.n_points)],
    unit.speed === null ? null : ["Speed", metres(unit.speed, "m/s")],
    offsets.length ? ["Off by", offsets.map((pair) => pair.join(" ")).join(", ")] : null,
    unit.code ? ["Error code", h("code", {}, unit.code)] : null,
    unit.category ? ["Category", kindTitle(unit.category)] : null,
  ].filter(Boolean);
}

function diagnosisLine(code, unit) {
  const known = scenes().codes[code];
  const exchanged = code === "T04" && unit.detail === "swapped" ? " (width and length exchanged)" : "";
  return h("li", {}, h("code", {}, code), ` ${known ? known.title : ""}${exchanged}`);
}

function drawFacts(card) {
  const unit = unitsOf(card)[bev.picked],
    box = document.getElementById("bev-facts");
  if (!unit || !box) return;
  const first = scenes().codes[unit.diagnosis.includes(bev.group) ? bev.group : unit.diagnosis[0]];
  box.replaceChildren(
    h(
      "article",
      { class: "bev-card" },
      h(
        "h4",
        {},
        lineSample(STYLE_OF[["right", "wrong", "open", "missed"][unit.kind]]),
        `${KIND_NAMES[unit.kind]} · box ${bev.picked + 1} of ${card.boxes.length}`,
      ),
      h(
        "dl",
        { class: "facts" },
        unitFacts(unit).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
      ),
      unit.diagnosis.length
        ? h(
            "ul",
            { class: "bev-codes" },
            unit.diagnosis.map((code) => diagnosisLine(code, unit)),
          )
        : null,
      first ? h("p", {}, h("b", {}, "What to do: "), first.action) : null,
    ),
  );
}

function boxList(card) {
  const details = h("details", {}, h("summary", {}, "The boxes as a table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const rows = unitsOf(card).map((unit, place) => ({ unit, place }));
    const position = (box) => (box ? `${decimal(box[0], 1)}, ${decimal(box[1], 1)}` : "–");
    const columns = [
      {
        title: "Box",
        cell: ({ unit, place }) =>
          h(
            "button",
            {
              type: "button",
              class: "link",
              onclick: () => {
                chooseBox(card, place);
                document.getElementById("bev-view").focus();
              },
            },
            `${place + 1}: ${KIND_NAMES[unit.kind]}`,
          ),
      },
      { title: "Class", cell: ({ unit }) => classNamed(unit.p ? unit.said : unit.truth) },
      { title: "Score", num: true, cell: ({ unit }) => decimal(unit.score, 2) },
      {
        title: "Error prob.",
        num: true,
        cell: ({ unit }) => decimal(unit.error_proba ?? unit.miss_proba, 2),
      },
      { title: "x, y (m)", num: true, cell: ({ unit }) => position(unit.p || unit.t) },
      { title: "Diagnoses", cell: ({ unit }) => h("code", {}, unit.diagnosis.join(" ") || "–") },
    ];
    details.append(
      table(`Boxes of frame ${card.id}, errors first`, columns, rows, { tight: true, stack: true }),
    );
  });
  return details;
}

// The points and the thumbnails are painted with colours that are read here; boxes follow by themselves.
function repaintScenes() {
  bev.thumbs.forEach((paint) => paint());
  if (bev.paint) bev.paint();
}
