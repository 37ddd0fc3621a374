/* The sections of a comparison. */
const splitNow = () => DATA.splits[state.split];
/* What is paired: the samples of a classification, the true boxes of a detection. */
const PAIRED = BOXES ? ["true box", "true boxes"] : ["sample", "samples"];
const paired = (n, word = "") => plural(n, ...PAIRED.map((noun) => `${word}${noun}`));
const PAIRED_BY = { input_hash: "content", truth_id: "image and number" };
const CHANGE_MEANS = BOXES
  ? { fixed: "Missed before, found now.", regressed: "Found before, missed now." }
  : { fixed: "Wrong before, right now.", regressed: "Right before, wrong now." };
const signed = (value, text) => `${value > 0 ? "+" : value < 0 ? "−" : "±"}${text}`;

function change(metric, delta, unsure) {
  if (delta === null || delta === undefined) return "–";
  const size = Math.abs(delta),
    text = isShare(metric)
      ? `${(100 * size).toFixed(2)} points`
      : metric.unit === "samples"
        ? count(size)
        : decimal(size, 4);
  if (!delta) return "no change";
  if (unsure) return h("span", { class: "nowrap" }, signed(delta, text), " within chance");
  const good = metric.better === "" ? null : delta > 0 === (metric.better === "up");
  return h(
    "span",
    { class: good === null ? "nowrap" : good ? "nowrap up" : "nowrap down" },
    signed(delta, text),
    good === null ? "" : good ? " better" : " worse",
  );
}

function drawCompareSummary() {
  const { counts, metrics, dataset, epochs } = splitNow();
  const accuracy = BOXES ? null : metrics.find((one) => one.metric === "accuracy");
  const p = counts.mcnemar_p;
  const net = counts.n_fixed - counts.n_regressed;
  const told =
    p === null
      ? "Nothing changed sides."
      : p < 0.05
        ? `The change is larger than chance explains (McNemar p ${p < 0.001 ? "< 0.001" : `= ${p.toFixed(3)}`}).`
        : `A change of this size may be chance (McNemar p = ${p.toFixed(2)}).`;
  const alone = counts.n_only_a + counts.n_only_b;
  fill(
    "compare-summary",
    h(
      "p",
      { class: "lead" },
      `${dataset}: ${epochs[0]} before, ${epochs[1]} after. ${paired(counts.n_paired)} paired by ${PAIRED_BY[counts.joined_on] || "id"}${alone ? `; ${count(counts.n_only_a)} only before and ${count(counts.n_only_b)} only after are not compared` : ""}.`,
    ),
    h(
      "dl",
      { class: BOXES ? "tiles many" : "tiles" },
      BOXES ? compareBoxTiles() : null,
      accuracy ? tile("Accuracy before", percent(accuracy.a)) : null,
      accuracy
        ? tile(
            "Accuracy after",
            percent(accuracy.b),
            `${signed(accuracy.delta, `${Math.abs(100 * accuracy.delta).toFixed(2)} points`)}`,
          )
        : null,
      tile("Fixed", count(counts.n_fixed), CHANGE_MEANS.fixed),
      tile("Regressed", count(counts.n_regressed), CHANGE_MEANS.regressed),
      tile("Net", net ? signed(net, count(Math.abs(net))) : "0", told),
    ),
    h(
      "div",
      { class: "panel" },
      h("h3", {}, "What to do first"),
      h(
        "ol",
        { class: "steps" },
        compareSteps(counts).map(([title, text, target]) =>
          h(
            "li",
            {},
            h("h4", {}, title),
            target
              ? h(
                  "button",
                  { type: "button", onclick: () => document.getElementById(target).scrollIntoView() },
                  "Show",
                  h("span", { class: "sr" }, `: ${title}`),
                )
              : null,
            h("p", {}, text),
          ),
        ),
      ),
    ),
  );
}

function compareSteps(counts) {
  const made = [];
  if (counts.n_regressed)
    made.push([
      `Look at the ${paired(counts.n_regressed, "regressed ")}`,
      "They worked before. Add them to a regression set before this version goes out.",
      "regressed",
    ]);
  const worst = splitNow().classes.find((one) => one.delta < 0 && (!BOXES || one.sig));
  if (worst)
    made.push([
      `${worst.name} lost ${(100 * -worst.delta).toFixed(1)} points`,
      "The class with the largest drop: see whether its data or its weight changed.",
      "classes",
    ]);
  if (counts.n_fixed)
    made.push([
      `Keep the ${paired(counts.n_fixed, "fixed ")}`,
      "They show what the change bought; keep them in the regression set as well.",
      "fixed",
    ]);
  return made.length
    ? made
    : [
        [
          "Nothing to do",
          `No ${PAIRED[0]} of this split changed between ${BOXES ? "found and missed" : "right and wrong"}.`,
          null,
        ],
      ];
}

function drawCompareMetrics() {
  const metrics = splitNow().metrics.filter((row) =>
    DATA.metric_texts.some((one) => one.name === row.metric),
  );
  const text = (row) =>
    DATA.metric_texts.find((one) => one.name === row.metric) || {
      name: row.metric,
      title: row.metric,
      unit: "",
      better: "",
      means: "",
    };
  const bounds = (row) => {
    const low = row.delta_lo,
      high = row.delta_hi;
    return low === null || low === undefined || high === null || high === undefined
      ? null
      : isShare(text(row))
        ? `[${(100 * low).toFixed(2)}, ${(100 * high).toFixed(2)}]`
        : `[${decimal(low, 4)}, ${decimal(high, 4)}]`;
  };
  const made = table(
    "Metrics before and after; brackets are 95 % intervals of the change",
    [
      { title: "Metric", cell: (row) => text(row).title },
      { title: "Before", num: true, cell: (row) => shownMetric(text(row), row.a) },
      { title: "After", num: true, cell: (row) => shownMetric(text(row), row.b) },
      {
        title: "Change",
        num: true,
        cell: (row) => [
          change(text(row), row.delta, row.delta_lo != null && row.delta_lo <= 0 && row.delta_hi >= 0),
          bounds(row) ? h("div", { class: "range" }, bounds(row)) : null,
        ],
      },
      { title: "What it is", wide: true, cell: (row) => text(row).means },
    ],
    metrics,
    { stack: true },
  );
  fill("compare-metrics", h("div", { class: "panel" }, made));
}

function drawCompareCategories() {
  const { categories, transitions } = splitNow();
  if (!categories[0] || !categories[1]) {
    fill(
      "compare-categories",
      notice("One of the results has no issue categories: evaluate it again to compare them."),
    );
    return;
  }
  const made = [
    h(
      "div",
      { class: "panel" },
      h("div", { class: "bars" }, categoryBar("Before", categories[0]), categoryBar("After", categories[1])),
    ),
  ];
  if (transitions) {
    const names = DATA.category_texts.map((text) => text.title),
      matrix = { rows: names, columns: names };
    const total = transitions.map((line) => line.reduce((a, b) => a + b, 0));
    const share = transitions.map((line, row) => line.map((n) => (total[row] ? n / total[row] : null)));
    made.push(
      chart("transitions", {
        title: `Where ${MANY} went`,
        height: 380,
        how: `Rows are the category before, columns after; each row sums to 1. Off the diagonal ${MANY} moved: towards the left they got better.${BOXES ? " A true box that no prediction stands for has no category." : ""}`,
        describe: "Category before against category after; the table below holds the counts.",
        data: () =>
          matrixTable(
            `${TITLE} by category before (rows) and after (columns)`,
            "Before",
            matrix,
            (row, column) => count(transitions[row][column]),
          ),
        draw: () => ({
          traces: [
            heatTrace({
              x: names,
              y: names,
              z: share,
              max: 1,
              title: "share of the row",
              hover: "%{customdata}",
              text: transitions.map((line, row) =>
                line.map(
                  (n, column) =>
                    `${names[row]} before, ${names[column]} after<br>${count(n)} ${MANY}, ${percent(share[row][column])}`,
                ),
              ),
              cellText: transitions.map((line) => line.map((n) => (n ? count(n) : ""))),
            }),
          ],
          look: {
            xaxis: { ...ticks(names.map(brief), 22), title: "after", tickangle: -30 },
            yaxis: { ...ticks(names.map(brief), 22), title: "before", autorange: "reversed" },
          },
        }),
      }),
    );
  }
  fill("compare-categories", ...made);
}

function drawCompareClasses() {
  if (BOXES) {
    drawCompareRecall();
    return;
  }
  const rows = splitNow().classes;
  if (!rows.length) {
    fill("compare-classes", notice("No class has labels on both sides."));
    return;
  }
  const metric = { name: "accuracy", title: "Accuracy", unit: "share", better: "up" };
  fill(
    "compare-classes",
    h(
      "div",
      { class: "panel" },
      table(
        "Accuracy of each class (its recall), largest change first",
        [
          { title: "Class", cell: (row) => row.name },
          { title: "Samples after", num: true, cell: (row) => count(row.n) },
          { title: "Before", num: true, cell: (row) => percent(row.a) },
          { title: "After", num: true, cell: (row) => percent(row.b) },
          { title: "Change", num: true, cell: (row) => change(metric, row.delta, row.sig === false) },
          { title: "Beyond chance", cell: (row) => (row.sig === null ? "–" : row.sig ? "yes" : "no") },
        ],
        rows,
        { stack: true },
      ),
    ),
  );
}

function drawCompareCodes() {
  const { codes } = splitNow();
  if (!codes.length) {
    fill("compare-codes", notice("Neither result has diagnoses on this split."));
    return;
  }
  fill(
    "compare-codes",
    h(
      "div",
      { class: "panel" },
      table(
        `${TITLE} that carry each diagnosis, before and after`,
        [
          { title: "Code", cell: (row) => h("code", {}, row.code) },
          {
            title: "Diagnosis",
            cell: (row) => [row.title, row.fresh ? [" ", h("span", { class: "tag warn" }, "new")] : null],
          },
          { title: "Severity", cell: (row) => severity(row.severity) },
          { title: "Before", num: true, cell: (row) => count(row.a) },
          { title: "After", num: true, cell: (row) => count(row.b) },
          {
            title: "Change",
            num: true,
            cell: (row) =>
              row.a === row.b ? "no change" : signed(row.b - row.a, count(Math.abs(row.b - row.a))),
          },
          { title: "What to do", wide: true, cell: (row) => row.action },
        ],
        codes,
        { tight: true, stack: true },
      ),
    ),
  );
}

function drawChanged(kind, text) {
  if (BOXES) {
    drawChangedBoxes(kind);
    return;
  }
  const { n, cards } = splitNow()[kind];
  const said = (value, confidence) => `${value}${confidence === null ? "" : ` (${decimal(confidence, 2)})`}`;
  const made = cards.map((card) =>
    h(
      "li",
      {},
      h(
        "article",
        { class: "card" },
        picture(card.id, false),
        h(
          "div",
          {},
          h("h3", {}, card.id),
          h(
            "dl",
            { class: "facts" },
            h("dt", {}, "Label"),
            h("dd", {}, card.truth === null ? "none" : card.truth),
            h("dt", {}, "Before"),
            h(
              "dd",
              {},
              h(
                "span",
                { class: kind === "fixed" ? "wrongmark" : "rightmark", "aria-hidden": "true" },
                kind === "fixed" ? "✕ " : "✓ ",
              ),
              said(card.before, card.confidence_before),
            ),
            h("dt", {}, "After"),
            h(
              "dd",
              {},
              h(
                "span",
                { class: kind === "fixed" ? "rightmark" : "wrongmark", "aria-hidden": "true" },
                kind === "fixed" ? "✓ " : "✕ ",
              ),
              said(card.after, card.confidence_after),
            ),
          ),
        ),
        h(
          "div",
          { class: "rest" },
          card.category_before && card.category_after
            ? h(
                "p",
                { class: "cat" },
                mark(card.category_before),
                " → ",
                mark(card.category_after),
                h(
                  "span",
                  { class: "codes-line" },
                  `${kindTitle(card.category_before)} → ${kindTitle(card.category_after)}`,
                ),
              )
            : null,
          h(
            "p",
            { class: "codes-line" },
            h("code", {}, card.code_before || ""),
            " → ",
            h("code", {}, card.code_after || ""),
          ),
        ),
      ),
    ),
  );
  fill(
    `compare-${kind}`,
    h(
      "p",
      { class: "lead" },
      n
        ? `${text}${cards.length < n ? ` ${count(cards.length)} of ${count(n)}, the most confident first.` : ` ${plural(n, "sample")}.`}`
        : `No ${kind} samples.`,
    ),
    n ? h("ul", { class: "gallery" }, made) : null,
  );
}
