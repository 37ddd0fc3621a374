/* Precision against recall of 2D boxes, and how well objects of each size are found. */
const boxPlots = { name: null };

function drawCurves() {
  const { curves, sizes } = detail();
  const made = [];
  if (curves) made.push(precisionRecall(curves));
  else made.push(noCurves());
  if (sizes.length) made.push(sizeBars(sizes));
  fill("curves", curves && sizes.length ? h("div", { class: "pair" }, made) : made, curves ? classTable(curves) : null);
}

function noCurves() {
  const last = DATA.passes.map((one) => one.dataset).lastIndexOf(DATA.passes[state.pass].dataset);
  return last === state.pass
    ? notice("There are no curves: the truth is not known, or the records of this pass are gone.")
    : notice(
        "Curves are drawn for the last epoch of each split. ",
        h("button", { type: "button", onclick: () => choosePass(last) }, `Show ${passName(last)}`),
      );
}

function precisionRecall(curves) {
  const all = [curves.mean, ...curves.classes];
  const place = Math.max(
    0,
    all.findIndex((one) => one.name === boxPlots.name),
  );
  const chosen = all[place];
  const select = h(
    "label",
    {},
    "Class ",
    h(
      "select",
      {
        id: "curve-class",
        onchange: (event) => {
          boxPlots.name = all[Number(event.target.value)].name;
          drawCurves();
          redraw();
          document.getElementById("curve-class").focus();
          announce(`Precision and recall of ${boxPlots.name}`);
        },
      },
      all.map((one, number) => option(number, `${one.name} (${count(one.truths)})`, number === place)),
    ),
  );
  const legend = (number) =>
    `IoU ${curves.ious[number].toFixed(2)}: AP ${decimal(chosen.ap[number])}`;
  const colours = ["accent", "hotspot"];
  return chart("precision-recall", {
    title: `Precision and recall, ${chosen.name}`,
    controls: select,
    height: 380,
    how: `Over all recorded boxes, from the highest score down; the area is the AP.${curves.left_out ? ` The ${curves.classes.length} classes with most objects, ${count(curves.left_out)} are left out.` : ""}`,
    describe: `Precision at recalls from 0 to 1 of ${chosen.name}; ${curves.ious.map((_, number) => legend(number)).join("; ")}. The values are in the table below.`,
    data: () =>
      table(
        `Precision of ${chosen.name} at some recalls`,
        [
          { title: "Recall", num: true, cell: (one) => decimal(curves.recall[one], 2) },
          ...curves.ious.map((iou, number) => ({
            title: `IoU ${iou.toFixed(2)}`,
            num: true,
            cell: (one) => decimal(chosen.precision[number][one]),
          })),
        ],
        Array.from({ length: 21 }, (_, one) => 5 * one),
      ),
    draw: () => ({
      traces: curves.ious.map((iou, number) => ({
        type: "scatter",
        mode: "lines",
        name: legend(number),
        x: curves.recall,
        y: chosen.precision[number],
        line: { color: cssColour(colours[number]), dash: DASHES[number], width: 2.4, shape: "hv" },
        hovertemplate: `IoU ${iou.toFixed(2)}<br>recall %{x:.2f}, precision %{y:.3f}<extra></extra>`,
      })),
      look: {
        showlegend: true,
        xaxis: { title: "recall", range: [0, 1], fixedrange: true },
        yaxis: { title: "precision", range: [0, 1.03], fixedrange: true },
      },
    }),
  });
}

function sizeBars(sizes) {
  const names = sizes.map((one) => one.name[0].toUpperCase() + one.name.slice(1));
  const bounds = ["below 32 × 32 px", "32 × 32 to 96 × 96 px", "above 96 × 96 px"];
  const bar = (name, key, colour, pattern) => ({
    type: "bar",
    name,
    x: names,
    y: sizes.map((one) => one[key]),
    text: sizes.map((one) => (one[key] === null ? "" : decimal(one[key], 2))),
    textposition: "outside",
    cliponaxis: false,
    textfont: { color: cssColour("ink") },
    marker: { color: cssColour(colour), pattern: { shape: pattern, fillmode: "overlay", fgcolor: cssColour("surface"), fgopacity: 1, size: 7 } },
    hovertemplate: `%{x}: ${name} %{y:.3f}<extra></extra>`,
  });
  return chart("sizes", {
    title: "By size of the object",
    height: 380,
    how: "Average precision and recall of the best 100 boxes, mean over IoU 0.50 to 0.95; sizes as COCO has them.",
    describe: "Average precision and recall of small, medium and large objects; the table below holds the values.",
    data: () =>
      table(
        "By size of the object",
        [
          { title: "Size", cell: (row) => names[sizes.indexOf(row)] },
          { title: "Area", cell: (row) => bounds[sizes.indexOf(row)] },
          { title: "Objects", num: true, cell: (row) => count(row.truths) },
          { title: "AP", num: true, cell: (row) => decimal(row.ap) },
          { title: "AR", num: true, cell: (row) => decimal(row.ar) },
        ],
        sizes,
      ),
    draw: () => ({
      traces: [bar("AP", "ap", "accent", ""), bar("AR", "ar", "hotspot", "/")],
      look: {
        barmode: "group",
        showlegend: true,
        xaxis: {
          fixedrange: true,
          tickvals: names,
          ticktext: sizes.map((one, place) =>
            one.truths === null ? names[place] : `${names[place]}<br>${count(one.truths)} objects`,
          ),
        },
        yaxis: { title: "AP and AR", range: [0, 1.08], fixedrange: true },
      },
    }),
  });
}

function classTable(curves) {
  const made = h("details", {}, h("summary", {}, "AP of all classes as a table"));
  made.addEventListener("toggle", () => {
    if (!made.open || made.children.length > 1) return;
    made.append(
      table(
        "Average precision of each class",
        [
          { title: "Class", cell: (row) => row.name },
          { title: "Objects", num: true, cell: (row) => count(row.truths) },
          ...curves.ious.map((iou, place) => ({
            title: `AP at IoU ${iou.toFixed(2)}`,
            num: true,
            cell: (row) => decimal(row.ap[place]),
          })),
        ],
        curves.classes,
      ),
    );
  });
  return h("div", { class: "panel" }, made);
}
