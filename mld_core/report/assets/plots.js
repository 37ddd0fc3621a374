/* Charts. Each has a title, a line on how to read it, a description for screen readers, and its data as a table. */
const plots = new Map();
const narrow = () => innerWidth < 620;

function chart(
  key,
  { title, how, describe, height = 340, controls = null, data = null, below = null, draw },
) {
  const box = h("div", {
    class: "plot",
    role: "img",
    "aria-label": describe || title,
    id: `plot-${key}`,
    style: { height: `${height}px` },
  });
  plots.set(key, { box, draw, height });
  const details = data ? h("details", {}, h("summary", {}, "The data as a table")) : null;
  if (details)
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) details.append(data());
    });
  return h(
    "figure",
    { class: "chart" },
    h(
      "figcaption",
      {},
      h("div", { class: "head" }, h("h3", {}, title), controls),
      how ? h("p", { class: "how" }, how) : null,
    ),
    below,
    box,
    details,
  );
}

function layout(extra) {
  const ink = cssColour("ink"),
    muted = cssColour("muted"),
    line = cssColour("line");
  const axis = {
    gridcolor: line,
    zerolinecolor: line,
    linecolor: line,
    tickfont: { color: muted, size: 12 },
    title: { font: { color: muted, size: 12 } },
    automargin: true,
  };
  const made = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    dragmode: false,
    hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink },
    margin: { l: 8, r: 12, t: 10, b: 8 },
    showlegend: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: cssColour("accent") },
    legend: {
      orientation: "h",
      y: 1.02,
      yanchor: "bottom",
      x: 0,
      itemsizing: "constant",
      font: { size: 12, color: ink },
    },
    hoverlabel: { bgcolor: cssColour("surface"), bordercolor: line, font: { color: ink, size: 13 } },
    ...extra,
  };
  for (const name of Object.keys(extra).filter((one) => /^[xy]axis/.test(one))) {
    made[name] = { ...axis, ...extra[name], title: { ...axis.title, text: extra[name].title || "" } };
  }
  return made;
}

function redraw() {
  for (const [key, { box, draw }] of plots) {
    if (!box.isConnected) {
      Plotly.purge(box);
      plots.delete(key);
      continue;
    }
    const { traces, look, config } = draw();
    Plotly.react(box, traces, layout(look), {
      displayModeBar: false,
      displaylogo: false,
      responsive: true,
      ...config,
    });
  }
}

function heatScale() {
  return [
    [0, cssColour("sunken")],
    [1, cssColour("heat")],
  ];
}

/** A heat map of shares with counts on hover; `z` rows from top to bottom. */
function heatTrace({ x, y, z, text, hover, max, title, cellText }) {
  return {
    type: "heatmap",
    x: x.map((_, place) => place),
    y: y.map((_, place) => place),
    z,
    zmin: 0,
    zmax: max,
    xgap: 2,
    ygap: 2,
    hoverongaps: false,
    colorscale: heatScale(),
    customdata: text,
    hovertemplate: `${hover}<extra></extra>`,
    text: cellText,
    texttemplate: cellText ? "%{text}" : undefined,
    textfont: { size: 11 },
    colorbar: {
      thickness: 10,
      outlinewidth: 0,
      tickformat: max <= 1 ? ".0%" : "d",
      title: { text: title, side: "right", font: { size: 12, color: cssColour("muted") } },
      tickfont: { size: 11, color: cssColour("muted") },
      len: 1,
      x: 1.01,
    },
    showscale: !narrow(),
  };
}
/** Names of categories without their family where the window is narrow. */
const brief = (title) => (narrow() ? title.replace(/ (coverage|hotspot)$/, "") : title);
const ticks = (names, length) => ({
  tickvals: names.map((_, place) => place),
  ticktext: names.map((name) => escaped(short(name, length))),
  fixedrange: true,
  showgrid: false,
  zeroline: false,
  type: "linear",
});
/** Plotly reads a little HTML in its labels: names are shown as they are. */
const escaped = (text) =>
  String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function matrixTable(caption, corner, matrix, cell) {
  const columns = [
    { title: corner, cell: (row) => matrix.rows[row] },
    ...matrix.columns.map((name, place) => ({ title: name, num: true, cell: (row) => cell(row, place) })),
  ];
  return table(
    caption,
    columns,
    matrix.rows.map((_, row) => row),
  );
}

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const MARKERS = ["circle", "square", "diamond", "triangle-up", "x"];
function lineColours() {
  return ["accent", "hotspot", "stable", "aleatoric", "muted"].map(cssColour);
}

/** A metric over epochs: one line for each split, told apart by dash and marker as well. */
function epochTraces(metric) {
  const splits = [...new Set(DATA.passes.map((one) => one.dataset))];
  const colours = lineColours();
  return splits
    .map((split, place) => {
      const rows = DATA.metrics.filter(
        (row) =>
          row.dataset === split &&
          row.n_epoch !== null &&
          row[metric.name] !== null &&
          row[metric.name] !== undefined,
      );
      return { split, place, rows };
    })
    .filter(({ rows }) => rows.length)
    .map(({ split, place, rows }) => ({
      type: "scatter",
      mode: "lines+markers",
      name: escaped(split),
      x: rows.map((row) => row.n_epoch),
      y: rows.map((row) => row[metric.name]),
      line: { color: colours[place % 5], dash: DASHES[place % 5], width: 2 },
      marker: { symbol: MARKERS[place % 5], size: 8, color: colours[place % 5] },
      error_y: rows.some((row) => row[`${metric.name}_lo`] != null)
        ? {
            type: "data",
            symmetric: false,
            thickness: 1,
            width: 3,
            array: rows.map((row) => (row[`${metric.name}_hi`] ?? row[metric.name]) - row[metric.name]),
            arrayminus: rows.map((row) => row[metric.name] - (row[`${metric.name}_lo`] ?? row[metric.name])),
          }
        : undefined,
      hovertemplate: `${escaped(split)}, epoch %{x}<br>${metric.title} %{y:${isShare(metric) ? ".2%" : ".4f"}}<extra></extra>`,
    }));
}

function reliabilityChart(key, data, title, how, xTitle, yTitle) {
  const rows = data.n.map((n, place) => ({ n, place })).filter(({ n }) => n > 0);
  const largest = Math.max(...data.n);
  return chart(key, {
    title,
    how: `${how} Expected calibration error ${percent(data.ece)} over ${plural(data.units, ONE, MANY)}.`,
    height: 330,
    describe: `${title}: expected calibration error ${percent(data.ece)}. The bins are in the table below.`,
    data: () =>
      table(
        title,
        [
          {
            title: "Bin",
            cell: ({ place }) => `${(place / 15).toFixed(2)} to ${((place + 1) / 15).toFixed(2)}`,
          },
          { title: TITLE, num: true, cell: ({ n }) => count(n) },
          { title: xTitle, num: true, cell: ({ place }) => percent(data.stated[place]) },
          { title: yTitle, num: true, cell: ({ place }) => percent(data.observed[place]) },
        ],
        rows,
      ),
    draw: () => ({
      traces: [
        {
          type: "scatter",
          mode: "lines",
          x: [0, 1],
          y: [0, 1],
          line: { color: cssColour("muted"), dash: "dot", width: 1 },
          hoverinfo: "skip",
          name: "perfect",
        },
        {
          type: "bar",
          x: rows.map(({ place }) => (place + 0.5) / 15),
          y: rows.map(({ n }) => (0.22 * n) / largest),
          width: 0.055,
          marker: { color: cssColour("line") },
          hoverinfo: "skip",
          name: MANY,
        },
        {
          type: "scatter",
          mode: "lines+markers",
          x: rows.map(({ place }) => data.stated[place]),
          y: rows.map(({ place }) => data.observed[place]),
          customdata: rows.map(({ n }) => n),
          line: { color: cssColour("accent"), width: 2 },
          marker: { color: cssColour("accent"), size: 8 },
          hovertemplate: `stated %{x:.1%}<br>observed %{y:.1%}<br>%{customdata:,} ${MANY}<extra></extra>`,
          name: "observed",
        },
      ],
      look: {
        xaxis: { title: xTitle, range: [0, 1], tickformat: ".0%", fixedrange: true },
        yaxis: { title: yTitle, range: [0, 1.02], tickformat: ".0%", fixedrange: true },
      },
    }),
  });
}
