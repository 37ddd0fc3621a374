/* A frame of two 3D detections from above, before and after, at the same scale. */
function frameLegend() {
  const lines = [...STYLES_3D.slice(0, 4), { key: "motion", title: "True motion, 1 s" }];
  return h(
    "ul",
    { class: "pair-legend", "aria-label": "What the lines mean" },
    lines.map((style) => h("li", {}, lineSample(style), style.title)),
  );
}

function framePair(kind, cards, changed) {
  const stages = cards.map((card, side) => {
    const canvas = h("canvas", { "aria-hidden": "true" }),
      drawing = svgNode("svg", { "aria-hidden": "true" });
    const view = h(
      "div",
      {
        class: "bev-view",
        role: "img",
        "aria-label": `Frame ${card.id} from above, ${SIDE_NAMES[side]}: ${frameFacts(card)}`,
      },
      canvas,
      drawing,
    );
    return { card, view, canvas, drawing };
  });
  // The number at a box is that of the list beside the pictures.
  changed.forEach((pair, number) => pair.forEach((unit) => unit && (unit.number = String(number + 1))));
  const held = { view: null, picked: -1 };
  const paint = () => {
    const size = { w: stages[0].view.clientWidth, h: stages[0].view.clientHeight };
    if (!size.w || !size.h) return;
    if (!held.view) held.view = fittedView(cards, size.w, size.h);
    stages.forEach(({ card, view, canvas, drawing }, side) => {
      const box = held.picked >= 0 ? changed[held.picked][side] : null;
      Object.assign(bev, {
        group: kind,
        view: held.view,
        picked: box ? unitsOf(card).indexOf(box) : -1,
      });
      paintFrame(card, view, canvas, drawing);
    });
  };
  bev.thumbs.push(() => stages[0].view.isConnected && paint());
  new ResizeObserver(() => stages[0].view.isConnected && paint()).observe(stages[0].view);
  const look = (number) => {
    held.picked = number;
    held.view = number < 0 ? null : nearView(changed[number], stages[0].view);
    paint();
    announce(number < 0 ? "The whole frame" : `Zoomed to box ${number + 1}`);
  };
  const picture = cards[1].picture;
  return {
    sides: [
      ...stages.map(({ view }, side) =>
        h("figure", {}, h("figcaption", {}, SIDE_NAMES[side]), view),
      ),
      h(
        "div",
        { class: "pair-more" },
        h("button", { type: "button", onclick: () => look(-1) }, "Show the whole frame", srOf(cards[1])),
        picture
          ? h("img", {
              class: "bev-picture",
              src: `data:image/png;base64,${picture}`,
              alt: `Picture of frame ${cards[1].id}`,
            })
          : null,
      ),
    ],
    press: (number) =>
      h(
        "button",
        { type: "button", onclick: () => look(number) },
        "Zoom",
        h("span", { class: "sr" }, ` to box ${number + 1} of frame ${cards[1].id}`),
      ),
  };
}
const srOf = (card) => h("span", { class: "sr" }, ` ${card.id}`);

/** A view of a changed truth from near. */
function nearView(boxes, view) {
  const box = boxes.map((unit) => unit && unit.t).find(Boolean);
  if (!box) return null;
  const room = Math.min(view.clientWidth, view.clientHeight);
  return { x: box[0], y: box[1], k: Math.min(40, (0.22 * room) / Math.max(box[3], box[4], 1)) };
}
