/* Box errors: precision by recall at four distances, and the true-positive errors by recall. */
const TP_ERRORS = {
  ate: { title: "ATE: centre (m)", axis: "mean distance of centres (m)" },
  ase: { title: "ASE: size (1 − IoU)", axis: "1 − IoU of the sizes" },
  aoe: { title: "AOE: heading (rad)", axis: "mean difference of heading (rad)" },
  ave: { title: "AVE: velocity (m/s)", axis: "mean difference of velocity (m/s)" },
};
const curves3d = { error: "ate", precision: "2" };

function drawTpErrors() {
  if (!part("tperrors")) return;
  const found = scenes() && scenes().curves;
  if (!found) {
    const last = DATA.passes.map((one) => one.dataset).lastIndexOf(DATA.passes[state.pass].dataset);
    fill(
      "tperrors",
      last === state.pass
        ? notice(
            "The curves are drawn from the records of the pass, which are gone, hold no truths or no predictions, or have been recorded anew since; the metrics above are those of the evaluation.",
          )
        : notice(
            "Curves are shown for the last epoch of each split. ",
            h("button", { type: "button", onclick: () => choosePass(last) }, `Show ${passName(last)}`),
          ),
    );
    return;
  }
  fill(
    "tperrors",
    h(
      "p",
      { class: "lead" },
      `As nuScenes defines them, over every recorded prediction: a prediction is right when the centre of a true box of its class is nearer than a distance; box errors are those of the predictions right at 2 m.${found.left_out ? ` ${plural(found.left_out, "class", "classes")} with fewer truths left out.` : ""}`,
    ),
    h("div", { class: "panel" }, curveTable(found)),
    precisionChart(found),
    tpChart(found),
  );
}

function curveTable(found) {
  return table(
    "Average precision and box errors of each class",
    [
      { title: "Class", cell: (one) => one.name },
      { title: "Truths", num: true, cell: (one) => count(one.truths) },
      ...found.distances.map((metres, place) => ({
        title: `AP ${metres} m`,
        num: true,
        cell: (one) => decimal(one.ap[place], 3),
      })),
      ...found.errors.map((name) => ({
        title: TP_ERRORS[name].title.replace(/:.*\(/, " ("),
        num: true,
        cell: (one) => decimal(one.error[name], 3),
      })),
    ],
    found.classes,
    { tight: true, stack: true },
  );
}

const recallPoints = Array.from({ length: 101 }, (_, place) => place / 100);

/** A line that is told from the others by its dash and its marker too. */
function curveLine(name, y, place) {
  const colours = lineColours(),
    round = Math.floor(place / 5);
  return {
    type: "scatter",
    mode: "lines+markers",
    name: escaped(name),
    x: recallPoints,
    y,
    line: { color: colours[(place + round) % 5], dash: DASHES[place % 5], width: 2 },
    marker: {
      symbol: MARKERS[(place + 2 * round) % 5],
      size: 7,
      color: colours[(place + round) % 5],
      maxdisplayed: 9,
    },
    hovertemplate: `${escaped(name)}<br>recall %{x:.2f}: %{y:.3f}<extra></extra>`,
  };
}

/** A precision is 0 from where its recall is not reached; the line ends there. */
function untilReached(values) {
  const last = values.findLastIndex((value) => value > 0);
  return values.map((value, place) => (place <= last ? value : null));
}

function precisionLines(found) {
  const distance = found.distances.findIndex((metres) => String(metres) === curves3d.precision);
  if (distance >= 0)
    return found.classes.map((one) => ({ name: one.name, values: untilReached(one.precision[distance]) }));
  const one = found.classes[Number(curves3d.precision.slice(6))];
  return found.distances.map((metres, place) => ({
    name: `${metres} m`,
    values: untilReached(one.precision[place]),
  }));
}

const sampledRecalls = Array.from({ length: 11 }, (_, place) => 10 * place);
function linesTable(caption, lines) {
  return table(
    caption,
    [
      { title: "Recall", num: true, cell: (place) => decimal(place / 100, 1) },
      ...lines.map(({ name, values }) => ({
        title: name,
        num: true,
        cell: (place) => decimal(values[place], 3),
      })),
    ],
    sampledRecalls,
  );
}

function precisionChart(found) {
  if (curves3d.precision.startsWith("class") && !found.classes[Number(curves3d.precision.slice(6))])
    curves3d.precision = "2";
  const chosen = (value) => value === curves3d.precision;
  const select = h(
    "select",
    {
      id: "pr-choice",
      onchange: (event) => {
        curves3d.precision = event.target.value;
        drawTpErrors();
        redrawPlot("precision3d");
        redrawPlot("tp3d");
        document.getElementById("pr-choice").focus();
      },
    },
    h(
      "optgroup",
      { label: "Every class at" },
      found.distances.map((metres) => option(String(metres), `${metres} m`, chosen(String(metres)))),
    ),
    h(
      "optgroup",
      { label: "Every distance of" },
      found.classes.map((one, place) => option(`class ${place}`, one.name, chosen(`class ${place}`))),
    ),
  );
  return chart("precision3d", {
    title: "Precision by recall",
    controls: h("label", {}, "Show ", select),
    how: "Average precision is the area above a precision and a recall of 0.1. A line ends where its recall ends.",
    describe: "Precision by recall; the table below holds it at eleven recalls.",
    height: 360,
    data: () => linesTable("Precision by recall", precisionLines(found)),
    draw: () => ({
      traces: precisionLines(found).map(({ name, values }, place) => curveLine(name, values, place)),
      look: {
        showlegend: true,
        xaxis: { title: "recall", range: [0, 1], fixedrange: true },
        yaxis: { title: "precision", range: [0, 1.02], fixedrange: true },
      },
    }),
  });
}

function tpChart(found) {
  if (!found.errors.includes(curves3d.error)) curves3d.error = found.errors[0];
  const lines = () =>
    found.classes
      .map((one) => ({ name: one.name, values: one.curve[curves3d.error] }))
      .filter(({ values }) => values.some((value) => value !== null));
  const select = h(
    "select",
    {
      id: "tp-choice",
      onchange: (event) => {
        curves3d.error = event.target.value;
        drawTpErrors();
        redrawPlot("precision3d");
        redrawPlot("tp3d");
        document.getElementById("tp-choice").focus();
      },
    },
    found.errors.map((name) => option(name, TP_ERRORS[name].title, name === curves3d.error)),
  );
  return chart("tp3d", {
    title: "Box errors by recall",
    controls: h("label", {}, "Error ", select),
    how: "Mean error of all boxes found up to a recall, surest first; a line ends where its recall ends. A class’s figure is the mean of its line beyond a recall of 0.1.",
    describe: `${TP_ERRORS[curves3d.error].title} by recall of each class; the table below holds it at eleven recalls.`,
    height: 360,
    data: () => linesTable(TP_ERRORS[curves3d.error].title, lines()),
    draw: () => ({
      traces: lines().map(({ name, values }, place) => curveLine(name, values, place)),
      look: {
        showlegend: true,
        xaxis: { title: "recall", range: [0, 1], fixedrange: true },
        yaxis: { title: TP_ERRORS[curves3d.error].axis, rangemode: "tozero", fixedrange: true },
      },
    }),
  });
}

/** The 3D parts of the page; nothing where the result is not of a 3D detection. */
function drawScenes3d() {
  if (!scenes()) return;
  drawBev();
  drawErrorMap();
  drawTpErrors();
}

/** Once: canvases read their colours, and are painted anew when the theme changes. */
function setUpScenes3d() {
  const later = () => requestAnimationFrame(repaintScenes);
  document.getElementById("theme").addEventListener("change", later);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
}
setUpScenes3d();
