/* The sections of a report, from top to bottom. */
/* Of a comparison the split stands for the pass: it holds the images that can be enlarged. */
const detail = () => (DATA.kind === "report" ? DATA.details[String(state.pass)] : DATA.splits[state.split]);
const passName = (place) => `${DATA.passes[place].dataset}, ${DATA.passes[place].epoch}`;
const SHOW_GROUP = BOXES ? (SOLID ? "Show frames" : "Show images") : "Show samples";
const metricRow = () => DATA.metrics[state.pass];

function tile(title, value, note) {
  return h("div", {}, h("dt", {}, title), h("dd", {}, value), note ? h("dd", { class: "note" }, note) : null);
}
function metricTile(name, title, means) {
  const metric = DATA.metric_texts.find((one) => one.name === name),
    row = metricRow();
  if (!metric || row[name] === null || row[name] === undefined) return null;
  return tile(
    title || metric.title,
    shownMetric(metric, row[name]),
    [range(row, metric), means || metric.means].filter(Boolean).join(" · "),
  );
}

/** The figures of a detection that come first. */
function boxTiles(row, shares) {
  const found = (part, whole) => `${count(part)} of ${count(whole)}`;
  return [
    tile(
      SOLID ? "Frames" : "Images",
      count(row.counts),
      row.count_labeled < row.counts ? `${count(row.count_labeled)} with known truth` : passName(state.pass),
    ),
    metricTile("nds"),
    metricTile("auprc"),
    metricTile("map_50"),
    metricTile("precision", "Precision", `${found(row.n_tp, row.n_tp + row.n_fp)} boxes are right`),
    metricTile("recall", "Recall", `${found(row.n_tp, row.n_gt)} objects are found`),
    metricTile("error_proba_auroc", "Error AUROC", "how well the error probability finds false boxes"),
    shares ? hotTile(shares) : null,
  ];
}
const hotTile = (shares) =>
  tile(
    "In hotspots",
    percent((shares.hotspot || 0) + (shares.critical_hotspot || 0)),
    `share of ${MANY} where errors are dense`,
  );

function sampleTiles(row, shares, sure) {
  return [
    tile(
      "Samples",
      count(row.counts),
      row.count_labeled < row.counts
        ? `${count(row.count_labeled)} with a label`
        : row.partial
          ? "The pass is not complete."
          : passName(state.pass),
    ),
    metricTile("accuracy", "Accuracy", "of labelled samples"),
    row.count_error !== null ? tile("Errors", count(row.count_error), "samples the model gets wrong") : null,
    metricTile("error_proba_auroc", "Error AUROC", "how well the error probability finds errors"),
    sure ? tile("Confidence gap", percent(sure.ece), "between stated confidence and accuracy (ECE)") : null,
    shares ? hotTile(shares) : null,
  ];
}

function drawSummary() {
  const row = metricRow(),
    now = detail(),
    shares = DATA.categories[state.pass].shares;
  const sure = now.calibration.confidence;
  const steps = now.steps.length
    ? h(
        "ol",
        { class: "steps" },
        now.steps.map((step) =>
          h(
            "li",
            {},
            h("h4", {}, step.title, " ", h("span", { class: "count" }, `· ${plural(step.n, ONE, MANY)}`)),
            hasGroup(step.group)
              ? h(
                  "button",
                  { type: "button", onclick: () => showGroup(step.group) },
                  SHOW_GROUP,
                  h("span", { class: "sr" }, `: ${step.title}`),
                )
              : null,
            h("p", {}, step.text),
          ),
        ),
      )
    : h("p", { class: "lead" }, "Nothing stands out in this pass: no errors, or no labels to find them by.");
  fill(
    "summary",
    h("p", { class: "lead" }, `How the model does on ${passName(state.pass)}, and where to begin.`),
    h("dl", { class: BOXES ? "tiles many" : "tiles" }, BOXES ? boxTiles(row, shares) : sampleTiles(row, shares, sure)),
    h("div", { class: "panel" }, h("h3", {}, "What to do first"), steps),
  );
}

function drawMetrics() {
  const metrics = DATA.metric_texts;
  const chosen =
    metrics.find((one) => one.name === state.metric) ||
    metrics.find((one) => one.name === (BOXES ? "auprc" : "accuracy")) ||
    metrics[0];
  const epochs = new Set(DATA.metrics.filter((row) => row.n_epoch !== null).map((row) => row.n_epoch));
  const made = [];
  if (chosen && epochs.size > 1) {
    const control = h(
      "label",
      {},
      "Metric ",
      h(
        "select",
        {
          onchange: (event) => {
            state.metric = event.target.value;
            drawMetrics();
            redraw();
            document.getElementById("metric").focus();
          },
          id: "metric",
        },
        metrics.map((one) => option(one.name, one.title, one === chosen)),
      ),
    );
    made.push(
      chart("epochs", {
        title: `${chosen.title} over epochs`,
        controls: control,
        height: 320,
        how: `${chosen.means}${chosen.better ? ` ${chosen.better === "up" ? "Higher" : "Lower"} is better.` : ""} Whiskers are 95 % intervals.`,
        describe: `${chosen.title} of each split over the epochs; the table below holds the values.`,
        draw: () => ({
          traces: epochTraces(chosen),
          look: {
            showlegend: true,
            xaxis: { title: "epoch", dtick: epochs.size <= 20 ? 1 : undefined, fixedrange: true },
            yaxis: {
              title: `${chosen.title} (${chosen.unit})`,
              tickformat: isShare(chosen) ? ".0%" : "",
              fixedrange: true,
            },
          },
        }),
      }),
    );
  } else {
    made.push(
      notice(
        "This result holds one epoch of each split. For curves over epochs run ",
        h("code", {}, `mld evaluate ${DATA.head.model} ${DATA.head.version} --epoch all`),
        ".",
      ),
    );
  }
  const last = new Map(DATA.passes.map((one, place) => [one.dataset, place]));
  const value = (metric, row) => [
    shownMetric(metric, row[metric.name]),
    range(row, metric) ? h("div", { class: "range" }, range(row, metric)) : null,
  ];
  const now = table(
    "The last epoch of each split; brackets are 95 % intervals",
    [
      { title: "Metric", cell: (metric) => metric.title },
      ...[...last.values()].map((place) => ({
        title: passName(place),
        num: true,
        cell: (metric) => value(metric, DATA.metrics[place]),
      })),
      { title: "What it is", wide: true, cell: (metric) => metric.means },
    ],
    metrics,
    { stack: true },
  );
  const all = h("details", {}, h("summary", {}, "All epochs as a table"));
  all.addEventListener("toggle", () => {
    if (all.open && all.children.length === 1) all.append(everyEpoch(metrics, value));
  });
  made.push(h("div", { class: "panel" }, now, epochs.size > 1 ? all : null));
  fill("metrics", ...made);
}

function everyEpoch(metrics, value) {
  return table(
    "All metrics of all epochs",
    [
      { title: "Split", cell: (row) => row.dataset },
      {
        title: "Epoch",
        cell: (row) => (row.n_epoch === null ? "–" : row.n_epoch < 0 ? "before training" : row.n_epoch),
        num: true,
      },
      { title: BOXES ? (SOLID ? "Frames" : "Images") : "Samples", num: true, cell: (row) => count(row.counts) },
      ...metrics.map((metric) => ({ title: metric.title, num: true, cell: (row) => value(metric, row) })),
    ],
    DATA.metrics,
  );
}

function categoryBar(label, shares) {
  const known = DATA.category_texts.filter((text) => shares[text.name] > 0);
  const spoken = known.map((text) => `${text.title} ${percent(shares[text.name])}`).join(", ");
  return h(
    "div",
    { class: "row" },
    h("span", {}, label),
    h(
      "div",
      { class: "stack", role: "img", "aria-label": `${label}: ${spoken}` },
      known.map((text) => {
        const wide = shares[text.name] >= (narrow() ? 0.19 : 0.06);
        return h(
          "span",
          {
            class: text.name,
            style: { flex: `${shares[text.name]} 1 0` },
            title: `${text.title} ${percent(shares[text.name])}`,
          },
          wide
            ? `${LETTER[text.name]} ${Math.round(100 * shares[text.name])} %`
            : shares[text.name] >= (narrow() ? 0.05 : 0.018)
              ? LETTER[text.name]
              : "",
        );
      }),
    ),
  );
}

function drawCategories() {
  const current = DATA.categories[state.pass];
  if (!current.shares) {
    fill(
      "categories",
      notice(
        "Issue categories are not computed in this result. They need stored logits and labels; evaluate again with a version that computes them.",
      ),
    );
    return;
  }
  const last = new Map(DATA.passes.map((one, place) => [one.dataset, place]));
  const bars = [...new Set([state.pass, ...last.values()])].filter((place) => DATA.categories[place].shares);
  const rows = DATA.category_texts.map((text) => ({
    ...text,
    share: current.shares[text.name],
    n: Math.round(current.shares[text.name] * DATA.passes[state.pass].units),
  }));
  const facts = current.facts;
  const list = table(
    `Issue categories of ${passName(state.pass)}`,
    [
      { title: "Category", cell: (row) => h("span", { class: "cat" }, mark(row.name), row.title) },
      { title: "Share", num: true, cell: (row) => percent(row.share) },
      { title: TITLE, num: true, cell: (row) => count(row.n) },
      { title: "What it means", wide: true, cell: (row) => row.means },
      { title: "What to do", wide: true, cell: (row) => row.do },
      {
        title: "",
        cell: (row) =>
          hasGroup(row.name)
            ? h(
                "button",
                { type: "button", class: "link", onclick: () => showGroup(row.name) },
                BOXES ? (SOLID ? "Frames" : "Images") : "Samples",
                h("span", { class: "sr" }, ` of ${row.title}`),
              )
            : "",
      },
    ],
    rows,
    { hideCaption: true, stack: true },
  );
  const limits =
    facts.t2 === null || facts.t2 === undefined
      ? ""
      : ` A risk above ${percent(facts.t2)} counts as high (threshold from ${facts.ref_split}); ${facts.k} neighbours are looked at.`;
  const expected =
    facts.expected_risk_coverage === null || facts.expected_risk_coverage === undefined
      ? ""
      : ` The coverage categories hold no observed error by definition; their expected error rate is ${percent(facts.expected_risk_coverage)}.`;
  const made = [
    h(
      "p",
      { class: "lead" },
      `Every ${BOXES ? "predicted box" : "sample"} is in exactly one of six categories, by whether it is wrong and what happens around it.${limits}${expected}`,
    ),
    h(
      "div",
      { class: "panel" },
      h(
        "div",
        { class: "bars" },
        bars.map((place) => categoryBar(passName(place), DATA.categories[place].shares)),
      ),
    ),
    h("div", { class: "panel" }, list),
  ];
  const heat = categoryEpochs(),
    classes = detail().category_class;
  if (heat) made.push(heat);
  if (classes) made.push(categoryClasses(classes));
  fill("categories", ...made);
}

function categoryEpochs() {
  const split = DATA.passes[state.pass].dataset;
  const places = DATA.passes
    .map((one, place) => place)
    .filter((place) => DATA.passes[place].dataset === split && DATA.categories[place].shares);
  if (places.length < 2) return null;
  const names = [...DATA.category_texts].map((text) => text.name);
  const matrix = { rows: names.map(kindTitle), columns: places.map((place) => DATA.passes[place].epoch) };
  const value = (row, column) => DATA.categories[places[column]].shares[names[row]];
  const z = names.map((_, row) => places.map((_, column) => value(row, column)));
  return chart("category-epochs", {
    title: `Categories over epochs, ${split}`,
    how: `Share of the ${MANY} of each epoch. A category that grows while training goes on is where the model settles on errors.`,
    height: 290,
    describe: `Share of each category in each epoch of ${split}; the table below holds the values.`,
    data: () =>
      matrixTable(`Share of each category, ${split}`, "Category", matrix, (row, column) =>
        percent(value(row, column)),
      ),
    draw: () => ({
      traces: [
        heatTrace({
          x: matrix.columns,
          y: matrix.rows,
          z,
          max: 1,
          title: `share of ${MANY}`,
          hover: "%{customdata}",
          text: z.map((line, row) =>
            line.map((one, column) => `${matrix.rows[row]}, ${matrix.columns[column]}<br>${percent(one)}`),
          ),
          cellText:
            places.length <= (narrow() ? 5 : 14)
              ? z.map((line) => line.map((one) => `${Math.round(100 * one)}`))
              : undefined,
        }),
      ],
      look: {
        xaxis: { ...ticks(matrix.columns, 10), title: "" },
        yaxis: { ...ticks(matrix.rows.map(brief), 22), autorange: "reversed" },
      },
    }),
  });
}

function categoryClasses(matrix) {
  const rows = matrix.rows.map(kindTitle);
  return chart("category-class", {
    title: "Category by class",
    how: `Of each true class, the share of its ${MANY} in each category (columns sum to 1).${matrix.left_out ? ` ${plural(matrix.left_out, "class", "classes")} with fewer errors left out.` : ""}`,
    height: 310,
    describe: "Share of each category in each class; the table below holds the values.",
    data: () =>
      matrixTable(
        "Share of each category in each class",
        "Category",
        { rows, columns: matrix.columns },
        (row, column) => `${percent(matrix.share[row][column])} (${count(matrix.counts[row][column])})`,
      ),
    draw: () => ({
      traces: [
        heatTrace({
          x: matrix.columns,
          y: rows,
          z: matrix.share,
          max: 1,
          title: "share of class",
          hover: "%{customdata}",
          text: matrix.counts.map((line, row) =>
            line.map(
              (one, column) =>
                `${escaped(matrix.columns[column])}: ${rows[row]}<br>${count(one)} ${MANY}, ${percent(matrix.share[row][column])}`,
            ),
          ),
          cellText:
            matrix.columns.length <= (narrow() ? 6 : 14)
              ? matrix.share.map((line) =>
                  line.map((one) => (one === null ? "" : `${Math.round(100 * one)}`)),
                )
              : undefined,
        }),
      ],
      look: {
        xaxis: {
          ...ticks(matrix.columns, 12),
          title: "true class",
          tickangle: matrix.columns.length > 6 ? -45 : 0,
        },
        yaxis: { ...ticks(rows.map(brief), 22), autorange: "reversed" },
      },
    }),
  });
}

function drawDiagnoses() {
  const rows = detail().diagnoses;
  if (!rows.length) {
    fill(
      "diagnoses",
      notice(
        "No diagnoses in this pass: nothing was found, or the analysis that finds them has not run on this result.",
      ),
    );
    return;
  }
  const made = table(
    `Diagnoses of ${passName(state.pass)}, most severe first`,
    [
      { title: "Code", cell: (row) => h("code", {}, row.code) },
      { title: "Severity", cell: (row) => severity(row.severity) },
      {
        title: "Diagnosis",
        wide: true,
        cell: (row) => [
          h("b", {}, row.title),
          h("div", { class: "range", style: { whiteSpace: "normal" } }, row.predicate),
        ],
      },
      { title: TITLE, num: true, cell: (row) => count(row.n) },
      { title: "Share", num: true, cell: (row) => percent(row.share) },
      { title: "What to do", wide: true, cell: (row) => row.action },
      {
        title: "",
        cell: (row) =>
          hasGroup(row.code)
            ? h(
                "button",
                { type: "button", class: "link", onclick: () => showGroup(row.code) },
                BOXES ? (SOLID ? "Frames" : "Images") : "Samples",
                h("span", { class: "sr" }, ` of ${row.code}`),
              )
            : "",
      },
    ],
    rows,
    { stack: true },
  );
  fill(
    "diagnoses",
    h(
      "p",
      { class: "lead" },
      `A diagnosis says why ${MANY} fail. One ${ONE} may carry several; severity goes from 1 (information) to 5 (blocking).`,
    ),
    h("div", { class: "panel" }, made),
  );
}

function severity(value) {
  if (!value) return "–";
  return h(
    "span",
    { class: "nowrap" },
    h("span", { "aria-hidden": "true" }, "●".repeat(value) + "○".repeat(5 - value)),
    h("span", { class: "sr" }, `${value} of 5`),
  );
}
