/* Error codes, confusion, calibration and the map. */
const FEW = 12;
const CODE_COLUMNS = [
  {
    key: "code",
    title: "Code",
    cell: (row) => [
      h("code", { class: "nowrap" }, row.code),
      BOXES ? h("div", { class: "event" }, row.event) : null,
      hasGroup(row.code)
        ? h(
            "div",
            {},
            h(
              "button",
              { type: "button", class: "link", onclick: () => showGroup(row.code) },
              SHOW_GROUP,
              h("span", { class: "sr" }, ` of ${row.code}`),
            ),
          )
        : null,
    ],
  },
  { key: "truth", title: "Label", cell: (row) => row.truth },
  { key: "said", title: BOXES ? "Said to be" : "Taken for", cell: (row) => row.said },
  { key: "n", title: TITLE, num: true, cell: (row) => count(row.n) },
  { key: "share", title: "Of errors", num: true, cell: (row) => percent(row.share) },
  { key: "confidence", title: BOXES ? "Score" : "Confidence", num: true, cell: (row) => decimal(row.confidence, 2) },
  { key: "error_proba", title: "Error prob.", num: true, cell: (row) => decimal(row.error_proba, 2) },
  { key: "severity", title: "Severity", cell: (row) => severity(row.severity) },
  { key: "action", title: "What to do", wide: true, cell: (row) => row.action },
];

function sortedCodes() {
  const { key, down } = state.sort,
    wanted = state.filter.trim().toLowerCase();
  const rows = detail().codes.filter(
    (row) =>
      !wanted ||
      [row.code, row.truth, row.said, row.action, row.event || ""].some((text) => String(text).toLowerCase().includes(wanted)),
  );
  const compare = (a, b) => {
    if (a[key] === b[key]) return 0;
    if (a[key] === null) return 1;
    if (b[key] === null) return -1;
    const order =
      typeof a[key] === "number"
        ? a[key] - b[key]
        : String(a[key]).localeCompare(String(b[key]), "en", { numeric: true });
    return down ? -order : order;
  };
  return [...rows].sort(compare);
}

function drawCodes() {
  const now = detail();
  if (!now.codes.length) {
    fill("codes", notice("No errors with a label in this pass."));
    return;
  }
  const search = h("input", {
    type: "search",
    id: "code-filter",
    placeholder: "class, code or action",
    value: state.filter,
    autocomplete: "off",
    oninput: (event) => {
      state.filter = event.target.value;
      drawCodeTable();
    },
  });
  const legend = BOXES
    ? "DET:M:CLS3->7: what happened to the box, the class of the true box, the class that was said; bg is the background. After the event, * means that it is not certain. A well and M roughly placed, SP a piece of a split object, SG one box over several, D duplicate, ON false beside another box, N false on background, U several of these."
    : "CLS3->7: label 3, prediction 7. After | stand further classes the features are easily confused with. ** means that the features point at the label although the prediction differs.";
  fill(
    "codes",
    h("p", { class: "lead" }, legend),
    h(
      "div",
      { class: "panel" },
      h("div", { class: "tools" }, h("label", {}, "Find ", search)),
      h("div", { "data-part": "code-table" }),
    ),
  );
  drawCodeTable();
}

function drawCodeTable(focus) {
  const now = detail(),
    rows = sortedCodes();
  const columns = CODE_COLUMNS.filter((column) => now.codes.some((row) => row[column.key] !== null));
  const shown = state.allCodes || state.filter ? rows : rows.slice(0, FEW);
  const more =
    now.codes_total > now.codes.length
      ? ` (the ${count(now.codes.length)} most frequent of ${count(now.codes_total)})`
      : "";
  const made = table(
    `Error codes of ${passName(state.pass)}: ${plural(rows.length, "code")}${more}; the headings sort`,
    columns,
    shown,
    {
      tight: true,
      stack: true,
      sorted: (column) =>
        state.sort.key === column.key ? (state.sort.down ? "descending" : "ascending") : "none",
      head: (column) =>
        h(
          "button",
          { type: "button", class: "sort", "data-key": column.key, onclick: () => sortBy(column) },
          column.title,
        ),
    },
  );
  const rest =
    rows.length > shown.length || state.allCodes
      ? h(
          "button",
          {
            type: "button",
            onclick: () => {
              state.allCodes = !state.allCodes;
              drawCodeTable();
              document.querySelector("#more-codes").focus();
            },
            id: "more-codes",
            "aria-expanded": state.allCodes,
          },
          state.allCodes ? "Show fewer" : `Show all ${count(rows.length)} codes`,
        )
      : null;
  fill("code-table", made, rest);
  if (focus) document.querySelector(`[data-part="code-table"] button[data-key="${focus}"]`).focus();
}

function sortBy(column) {
  state.sort = {
    key: column.key,
    down: state.sort.key === column.key ? !state.sort.down : Boolean(column.num) || column.key === "severity",
  };
  drawCodeTable(column.key);
  announce(`Sorted by ${column.title}, ${state.sort.down ? "descending" : "ascending"}`);
}

function drawConfusion() {
  const matrix = detail().confusion;
  if (!matrix) {
    fill("confusion", notice("No labels in this pass, so there is nothing to confuse."));
    return;
  }
  const views = { share: "Share of the true class", counts: "Counts", errors: "Errors only" };
  const choice = h(
    "fieldset",
    { class: "choice" },
    h("legend", {}, "Cells show"),
    Object.entries(views).map(([key, title]) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name: "confusion",
          value: key,
          checked: state.confusion === key || null,
          onchange: () => {
            state.confusion = key;
            redraw();
          },
        }),
        title,
      ),
    ),
  );
  const off = (row, column) => matrix.rows[row] !== matrix.columns[column] || row !== column;
  const size = Math.max(340, Math.min(760, 26 * matrix.rows.length + 120));
  fill(
    "confusion",
    chart("confusion", {
      title: `True class against predicted class, ${passName(state.pass)}`,
      height: narrow() ? Math.min(size, 420) : size,
      below: choice,
      how: `Rows are the label, columns what the model said; each row sums to 1 as shares.${BOXES ? " The last row holds boxes that found no object, the last column objects that no box found." : ""}${matrix.left_out ? ` The ${matrix.rows.length} classes with the most errors are shown, ${count(matrix.left_out)} others are left out.` : ""}`,
      describe: "Confusion matrix; the table below holds the counts.",
      data: () =>
        matrixTable("Counts: label in rows, prediction in columns", "Label", matrix, (row, column) =>
          count(matrix.counts[row][column]),
        ),
      draw: () => {
        const view = state.confusion;
        const z = matrix.counts.map((line, row) =>
          line.map((n, column) =>
            view === "counts" ? n : view === "errors" && !off(row, column) ? null : matrix.share[row][column],
          ),
        );
        const largest = Math.max(...z.flat().filter((one) => one !== null), view === "counts" ? 1 : 0.01);
        const fits = matrix.columns.length <= (narrow() ? 6 : 16);
        return {
          traces: [
            heatTrace({
              x: matrix.columns,
              y: matrix.rows,
              z,
              max: view === "share" ? 1 : largest,
              title: view === "counts" ? MANY : "share of the class",
              hover: "%{customdata}",
              text: matrix.counts.map((line, row) =>
                line.map(
                  (n, column) =>
                    `${escaped(matrix.rows[row])} taken for ${escaped(matrix.columns[column])}<br>${count(n)} ${MANY}, ${percent(matrix.share[row][column])}`,
                ),
              ),
              cellText: fits
                ? z.map((line) =>
                    line.map((one) =>
                      !one ? "" : view === "counts" ? one : (100 * one).toFixed(one < 0.0995 ? 1 : 0),
                    ),
                  )
                : undefined,
            }),
          ],
          look: {
            xaxis: {
              ...ticks(matrix.columns, 14),
              title: "predicted class",
              tickangle: matrix.columns.length > 6 ? -45 : 0,
            },
            yaxis: { ...ticks(matrix.rows, narrow() ? 10 : 18), title: "true class", autorange: "reversed" },
          },
        };
      },
    }),
  );
}

function drawCalibration() {
  const { confidence, error_proba: risk } = detail().calibration;
  const made = [];
  if (confidence)
    made.push(
      reliabilityChart(
        "reliability",
        confidence,
        BOXES ? "Is the score right?" : "Is the confidence right?",
        `On the dotted line, ${MANY} at 80 % ${BOXES ? "score" : "confidence"} are right 80 % of the time; below it the model is too sure of itself. Grey bars: where the ${MANY} are.`,
        BOXES ? "score" : "stated confidence",
        "share that is right",
      ),
    );
  if (risk)
    made.push(
      reliabilityChart(
        "reliability-error",
        risk,
        "Is the error probability right?",
        `On the dotted line, ${MANY} with an error probability of 30 % are wrong 30 % of the time. Grey bars: where the ${MANY} are.`,
        "stated error probability",
        "share that is wrong",
      ),
    );
  fill(
    "calibration",
    made.length
      ? h("div", { class: "pair" }, made)
      : notice("Calibration needs labels and stored confidences."),
  );
}

function drawMap() {
  const points = detail().map;
  if (!points) {
    const last = DATA.passes.map((one) => one.dataset).lastIndexOf(DATA.passes[state.pass].dataset);
    fill(
      "map",
      notice(
        last === state.pass
          ? "No features are stored for this pass, so it has no map."
          : `The map and the ${MANY} are in the last epoch of each split. `,
        last === state.pass
          ? null
          : h("button", { type: "button", onclick: () => choosePass(last) }, `Show ${passName(last)}`),
      ),
    );
    return;
  }
  const names = DATA.class_names;
  const label = (number) =>
    number < 0 ? "none" : names && names[number] !== undefined ? names[number] : String(number);
  const drawn = points.kinds.slice().sort((a, b) => order(a) - order(b));
  const made = [
    chart("map-points", {
      title: `${TITLE} by ${CATEGORY[points.kinds[0]] ? "issue category" : "right and wrong"}`,
      height: narrow() ? 420 : 480,
      how: `${points.shown < points.units ? `${count(points.shown)} of ${count(points.units)} ${MANY}` : plural(points.units, ONE, MANY)} on the two ${points.source}; near means alike to the model. Click a name to hide it.`,
      describe: `Scatter plot of ${points.shown} ${MANY} on two principal axes by kind; counts are in the table below.`,
      data: () =>
        table(
          "Points drawn of each kind",
          [
            { title: "Kind", cell: (name) => kindTitle(name) },
            {
              title: "Points",
              num: true,
              cell: (name) => count(points.kind.filter((one) => points.kinds[one] === name).length),
            },
          ],
          drawn,
        ),
      draw: () => ({
        traces: drawn.map((name) => {
          const number = points.kinds.indexOf(name),
            own = points.kind
              .map((one, place) => (one === number ? place : -1))
              .filter((place) => place >= 0);
          return {
            type: "scatter",
            mode: "markers",
            name: `${LETTER[name] ? `${LETTER[name]} ` : ""}${kindTitle(name)}`,
            x: own.map((one) => points.x[one]),
            y: own.map((one) => points.y[one]),
            text: own.map(
              (one) =>
                `${escaped(points.id[one])}<br>label ${escaped(label(points.truth[one]))}, predicted ${escaped(label(points.said[one]))}`,
            ),
            hovertemplate: `%{text}<br>${kindTitle(name)}<extra></extra>`,
            marker: {
              color: kindColour(name),
              symbol: SYMBOL[name],
              size: 6,
              opacity: 0.85,
              line: {
                width: 1,
                color: SYMBOL[name].endsWith("open") ? kindColour(name) : cssColour("surface"),
              },
            },
          };
        }),
        look: {
          showlegend: true,
          legend: {
            orientation: "h",
            y: -0.13,
            yanchor: "top",
            x: 0,
            font: { size: 12 },
            itemsizing: "constant",
          },
          dragmode: "pan",
          xaxis: { title: "axis 1", showticklabels: false, zeroline: false },
          yaxis: { title: "axis 2", showticklabels: false, zeroline: false },
        },
        config: {
          displayModeBar: !narrow(),
          modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
        },
      }),
    }),
  ];
  if (points.grid) made.push(errorGrid(points.grid));
  const { regions, slices } = detail();
  fill(
    "map",
    h("div", { class: "pair" }, made),
    regions.length ? h("div", { class: "panel" }, regionTable(regions)) : null,
    slices.length ? h("div", { class: "panel" }, sliceTable(slices)) : null,
  );
}

function regionTable(regions) {
  return table(
    "Regions of the feature space where errors are dense, most errors first",
    [
      { title: "Region", cell: (row) => row.region },
      { title: "Confusion", cell: (row) => row.label },
      { title: TITLE, num: true, cell: (row) => count(row.n) },
      { title: "Wrong", num: true, cell: (row) => count(row.errors) },
      { title: "Error rate", num: true, cell: (row) => percent(row.rate) },
      { title: "Above the rest", cell: (row) => (row.sig ? "significantly" : "–") },
      {
        title: "In halves of the data",
        num: true,
        cell: (row) => (row.membership == null ? "–" : percent(row.membership)),
      },
      { title: "Labels inside", cell: (row) => row.classes.join(", ") },
      { title: "Diagnoses", cell: (row) => h("code", {}, row.codes.join(" ")) },
      { title: BOXES ? "Image of the box in its middle" : "Sample in its middle", cell: (row) => row.medoid },
    ],
    regions,
    { tight: true, stack: true },
  );
}

function sliceTable(slices) {
  return table(
    "Conditions on your own columns under which more fails",
    [
      { title: "Condition", cell: (row) => h("code", {}, row.slice) },
      { title: TITLE, num: true, cell: (row) => count(row.n) },
      { title: "Wrong", num: true, cell: (row) => count(row.errors) },
      { title: "Error rate", num: true, cell: (row) => percent(row.rate) },
      { title: "Above the rest", cell: (row) => (row.sig ? "significantly" : "–") },
    ],
    slices,
    { stack: true },
  );
}
function order(name) {
  const place = DATA.category_texts.findIndex((text) => text.name === name);
  return place < 0 ? ["right", "wrong", "unlabelled"].indexOf(name) : place;
}

function errorGrid(grid) {
  const size = grid.bins,
    z = Array.from({ length: size }, () => Array(size).fill(null)),
    text = Array.from({ length: size }, () => Array(size).fill(""));
  grid.i.forEach((i, place) => {
    z[grid.j[place]][i] = grid.rate[place];
    text[grid.j[place]][i] =
      `${count(grid.errors[place])} wrong of ${count(grid.n[place])}<br>shrunk error rate ${percent(grid.rate[place])}${grid.sig[place] ? "<br>significantly above the rest" : ""}`;
  });
  const axis = (bounds) =>
    Array.from({ length: size }, (_, place) => bounds[0] + ((place + 0.5) * (bounds[1] - bounds[0])) / size);
  const worst = grid.i
    .map((_, place) => place)
    .sort((a, b) => grid.rate[b] - grid.rate[a])
    .slice(0, 20);
  const sure = grid.sig.filter(Boolean).length;
  return chart("map-grid", {
    title: "Error rate over the map",
    height: narrow() ? 420 : 480,
    how: `All labelled ${MANY} in ${grid.bins} × ${grid.bins} cells. A cell's rate is drawn towards the overall ${percent(grid.overall)} where it holds few ${MANY} (${decimal(grid.m, 0)} pseudo-counts). Strong patches are where to collect data; ${sure ? plural(sure, "cell is", "cells are") : "no single cell is"} significantly above the rest.`,
    describe:
      "Heat map of the error rate on the two principal axes; the twenty worst cells are in the table below.",
    data: () =>
      table(
        "The twenty cells with the highest error rate",
        [
          { title: "Axis 1", num: true, cell: (one) => decimal(axis(grid.x)[grid.i[one]], 2) },
          { title: "Axis 2", num: true, cell: (one) => decimal(axis(grid.y)[grid.j[one]], 2) },
          { title: TITLE, num: true, cell: (one) => count(grid.n[one]) },
          { title: "Wrong", num: true, cell: (one) => count(grid.errors[one]) },
          { title: "Error rate, shrunk", num: true, cell: (one) => percent(grid.rate[one]) },
          { title: "Above the rest", cell: (one) => (grid.sig[one] ? "significantly" : "–") },
        ],
        worst,
      ),
    draw: () => ({
      traces: [
        {
          ...heatTrace({
            x: axis(grid.x),
            y: axis(grid.y),
            z,
            max: Math.max(...grid.rate, 0.01),
            title: "error rate",
            hover: "%{customdata}",
            text,
          }),
          x: axis(grid.x),
          y: axis(grid.y),
          xgap: 0,
          ygap: 0,
        },
      ],
      look: {
        xaxis: { title: "axis 1", showticklabels: false, zeroline: false, showgrid: false, fixedrange: true },
        yaxis: { title: "axis 2", showticklabels: false, zeroline: false, showgrid: false, fixedrange: true },
      },
    }),
  });
}
