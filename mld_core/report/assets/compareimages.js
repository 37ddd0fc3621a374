/* An image of two 2D detections, before and after, with the boxes of each side. */
function imagePair(kind, cards, changed, entry) {
  const group = {
    key: kind,
    title: `images with ${kind} boxes, before and after`,
    rows: splitNow()[kind].cards.flatMap((one) => [one.a, one.b]),
  };
  const sides = cards.map((card, side) => {
    const boxes = boxesOf(card);
    const numbers = new Map(
      changed.map((pair, number) => [boxes.indexOf(pair[side]), number]).filter(([place]) => place >= 0),
    );
    return h(
      "figure",
      {},
      h("figcaption", {}, SIDE_NAMES[side]),
      h(
        "button",
        {
          type: "button",
          class: "enlarge",
          "aria-haspopup": "dialog",
          "aria-label": `Enlarge image ${card.id}, ${SIDE_NAMES[side]}`,
          onclick: () => openViewer(side ? entry.b : entry.a, group),
        },
        imageDrawing(card, {
          marked: (box) => isMarked(box, kind),
          pixel: Math.max(card.width / pairWidth(), card.height / 260),
          // The number is that of the list beside the images.
          tag: (shape, long) => boxTag({ ...shape, place: numbers.get(shape.place) ?? shape.place }, long),
        }),
      ),
    );
  });
  return { sides, press: null };
}

/** About how many pixels of the screen a picture of a pair is wide. */
function pairWidth() {
  if (innerWidth > 1100) return 320;
  return innerWidth > 520 ? (innerWidth - 90) / 2 : innerWidth - 60;
}
