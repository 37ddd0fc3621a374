/* One image enlarged, in a dialog: its boxes one by one. Closed with Escape. */
function viewerDialog() {
  const known = document.getElementById("viewer");
  if (known) return known;
  const made = h("dialog", {
    id: "viewer",
    "aria-labelledby": "viewer-h",
    onclick: (event) => event.target === made && made.close(),
    onkeydown: (event) => {
      if (event.target.matches("input, select")) return;
      if (event.key === "ArrowLeft") stepViewer(-1);
      if (event.key === "ArrowRight") stepViewer(1);
    },
  });
  document.body.append(made);
  return made;
}

function openViewer(row, group) {
  Object.assign(viewer, { row, group, picked: -1 });
  const dialog = viewerDialog();
  drawViewer();
  if (!dialog.open) dialog.showModal();
  dialog.querySelector("#viewer-close").focus();
}

/** The next or previous image of the group. */
function stepViewer(by) {
  const rows = viewer.group.rows;
  const place = rows.indexOf(viewer.row);
  if (place < 0 || rows.length < 2) return;
  viewer.row = rows[(place + by + rows.length) % rows.length];
  viewer.picked = -1;
  const held = document.activeElement.id;
  drawViewer();
  (document.getElementById(held) || document.getElementById("viewer-close")).focus();
}

function drawViewer() {
  const card = detail().cards[String(viewer.row)];
  const rows = viewer.group.rows,
    place = rows.indexOf(viewer.row);
  const step = (by, text) =>
    rows.length > 1 && place >= 0
      ? h("button", { type: "button", id: `viewer-step${by}`, onclick: () => stepViewer(by) }, text)
      : null;
  viewerDialog().replaceChildren(
    h(
      "div",
      { class: "viewer-head" },
      h("h3", { id: "viewer-h" }, card.side ? `${card.id}, ${card.side}` : card.id),
      h(
        "div",
        { class: "viewer-steps" },
        step(-1, "Previous"),
        step(1, "Next"),
        h("button", { type: "button", id: "viewer-close", onclick: () => viewerDialog().close() }, "Close"),
      ),
    ),
    h(
      "p",
      { class: "imagefacts" },
      `${place >= 0 ? `${place + 1} of ${rows.length}: ${viewer.group.title} · ` : ""}${imageFacts(card)}`,
    ),
    h("div", { id: "viewer-image" }),
    layerBoxes(card),
    h("div", { id: "viewer-boxes" }, boxTable(card)),
  );
  paintViewer();
}

function paintViewer() {
  const card = detail().cards[String(viewer.row)];
  const across = Math.min(1060, innerWidth - 48),
    down = 0.6 * innerHeight;
  document.getElementById("viewer-image").replaceChildren(
    imageDrawing(card, {
      marked: (box) => isMarked(box, viewer.group.key),
      pixel: Math.max(card.width / across, card.height / down),
      long: true,
      off: viewer.off,
      picked: viewer.picked,
    }),
  );
  for (const button of document.querySelectorAll("#viewer-boxes [data-box]"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.box) === viewer.picked));
}

function layerBoxes(card) {
  const used = new Set(shapesOf(card).map(({ style }) => style));
  const layers = [
    ...STYLES_2D.filter(({ key }) => used.has(key)).map(({ key, title }) => [key, title, boxSample(key)]),
    ["tags", "Names", null],
  ];
  return h(
    "fieldset",
    { class: "choice" },
    h("legend", {}, "Show"),
    layers.map(([key, title, sample]) =>
      h(
        "label",
        {},
        h("input", {
          type: "checkbox",
          checked: !viewer.off.has(key),
          onchange: (event) => {
            if (event.target.checked) viewer.off.delete(key);
            else viewer.off.add(key);
            paintViewer();
          },
        }),
        sample,
        title,
      ),
    ),
  );
}

function boxTable(card) {
  const rows = boxesOf(card).map((box, place) => ({ ...box, place }));
  const more = card.units > rows.length ? ` (the first ${rows.length} of ${count(card.units)})` : "";
  return table(
    `The boxes of ${card.id}, errors first${more}; press a number to see one alone`,
    [
      {
        title: "Box",
        cell: (row) =>
          h(
            "button",
            {
              type: "button",
              "data-box": row.place,
              "aria-pressed": "false",
              onclick: () => {
                viewer.picked = viewer.picked === row.place ? -1 : row.place;
                paintViewer();
              },
            },
            String(row.place + 1),
          ),
      },
      {
        title: "Outcome",
        cell: (row) => [
          h("span", { class: isWrong(row) ? "wrongmark" : "rightmark" }, ["✓ ", "✕ ", "", "✕ "][row.kind]),
          KINDS_2D[row.kind],
        ],
      },
      { title: "Predicted", cell: (row) => (row.kind === 3 ? "–" : className(row.said)) },
      { title: "Label", cell: (row) => (row.truth === null ? "background" : className(row.truth)) },
      { title: "Score", num: true, cell: (row) => decimal(row.score, 2) },
      { title: "IoU", num: true, cell: (row) => decimal(row.iou, 2) },
      {
        title: "Error prob.",
        num: true,
        cell: (row) => decimal(row.kind === 3 ? row.miss_proba : row.error_proba, 2),
      },
      {
        title: "Codes",
        cell: (row) =>
          [row.code, ...row.diagnosis].filter(Boolean).map((code) => h("code", { class: "onecode", title: codeTitle(code) }, code)),
      },
      { title: "Suggested", cell: (row) => (row.suggested === null ? "–" : h("b", {}, className(row.suggested))) },
      { title: "What to do", wide: true, cell: (row) => row.action || "–" },
    ],
    rows,
    { stack: true, tight: true },
  );
}
