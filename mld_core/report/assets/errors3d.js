/* Where the errors of a 3D detection are: by range and angle, by range, points and speed; silent sectors. */
const MAP_VALUES = [
  { key: "value", title: "Share of errors, shrunk", share: true },
  { key: "raw", title: "Share, raw", share: true },
  { key: "errors", title: "Errors", share: false },
  { key: "missed", title: "Missed truths", share: false },
  { key: "n", title: "All events", share: false },
];
const BIN_KINDS = [
  { key: "range", title: "By range", axis: "range from the sensor (m)", stays: true },
  { key: "points", title: "By sensor points", axis: "sensor points in the true box", stays: false },
  { key: "speed", title: "By speed", axis: "speed (m/s)", stays: true },
];
const places3d = { map: "value", bins: 0 };

function drawErrorMap() {
  if (!part("errormap")) return;
  const now = scenes();
  if (!now || !now.errormap) {
    fill("errormap", notice("No event of this pass can be judged: the truth of its frames is not known."));
    return;
  }
  fill(
    "errormap",
    h(
      "p",
      { class: "lead" },
      "An event is a prediction at its class’s score threshold, or a truth that no prediction found. Errors are false predictions and missed truths.",
    ),
    errorPolar(now.errormap),
    errorBars(now.bins),
    sensorTables(now.sensor),
  );
}

const degreesOf = (sector) => -180 + 10 * sector;
const sectorName = (sector) => `${degreesOf(sector)}° to ${degreesOf(sector) + 10}°`.replaceAll("-", "−");
const ringName = (map, ring) => `${ring * map.metres}–${(ring + 1) * map.metres} m`;

function mapChoice(map) {
  return h(
    "fieldset",
    { class: "choice" },
    h("legend", {}, "Colour"),
    MAP_VALUES.map((one) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name: "error-map",
          checked: one.key === places3d.map,
          onchange: () => {
            places3d.map = one.key;
            redrawPlot("error-map");
          },
        }),
        one.title,
      ),
    ),
  );
}

/** Draw one chart again. */
function redrawPlot(key) {
  const known = plots.get(key);
  if (!known) return;
  const { traces, look, config } = known.draw();
  Plotly.react(known.box, traces, layout(look), {
    displayModeBar: false,
    displaylogo: false,
    responsive: true,
    ...config,
  });
}

function errorPolar(map) {
  const sure = map.sig.filter(Boolean).length;
  return chart("error-map", {
    title: "Errors by range and angle",
    how: `Rings of ${map.metres} m, sectors of 10°, seen from above: 0° is straight ahead (x), 90° left. A sector’s share is drawn towards the overall ${percent(map.overall)} where it holds few events (${decimal(map.m, 0)} pseudo-counts). ${sure ? `${plural(sure, "sector is", "sectors are")} significantly above the rest (strong outline)` : "No sector is significantly above the rest"}.${map.beyond ? ` ${plural(map.beyond, "event lies", "events lie")} further out.` : ""}`,
    describe: "Polar heat map of the errors by range and angle; the table below holds every sector.",
    height: narrow() ? 360 : 480,
    below: mapChoice(map),
    data: () => polarTable(map),
    draw: () => polarDrawing(map),
  });
}

function polarTable(map) {
  const rows = map.n
    .map((_, place) => place)
    .sort((a, b) => map.errors[b] - map.errors[a] || map.n[b] - map.n[a]);
  return table(
    "Every sector with an event, most errors first",
    [
      { title: "Range", cell: (one) => ringName(map, map.ring[one]) },
      { title: "Angle", num: true, cell: (one) => sectorName(map.sector[one]) },
      { title: "Events", num: true, cell: (one) => count(map.n[one]) },
      { title: "Errors", num: true, cell: (one) => count(map.errors[one]) },
      { title: "Missed truths", num: true, cell: (one) => count(map.missed[one]) },
      { title: "Share, raw", num: true, cell: (one) => percent(map.errors[one] / map.n[one]) },
      { title: "Share, shrunk", num: true, cell: (one) => percent(map.value[one]) },
      { title: "Above the rest", cell: (one) => (map.sig[one] ? "significantly" : "–") },
    ],
    rows,
    { tight: true, stack: true },
  );
}

function polarDrawing(map) {
  const chosen = MAP_VALUES.find((one) => one.key === places3d.map),
    values =
      chosen.key === "raw" ? map.errors.map((errors, place) => errors / map.n[place]) : map[chosen.key];
  // The overall share lies in the middle of the scale at most, so that a map without differences looks calm.
  const top = chosen.share ? Math.max(...values, Math.min(1, 2 * map.overall), 0.01) : Math.max(...values, 1);
  return {
    traces: [
      {
        type: "barpolar",
        base: map.ring.map((ring) => ring * map.metres),
        r: map.ring.map(() => map.metres),
        theta: map.sector.map((sector) => degreesOf(sector) + 5),
        width: map.sector.map(() => 10),
        text: map.n.map(
          (n, place) =>
            `${ringName(map, map.ring[place])}, ${sectorName(map.sector[place])}<br>${plural(n, "event")}, ${plural(map.errors[place], "error")}, ${plural(map.missed[place], "missed truth")}<br>shrunk share ${percent(map.value[place])}${map.sig[place] ? "<br>significantly above the rest" : ""}`,
        ),
        hovertemplate: "%{text}<extra></extra>",
        marker: {
          color: values,
          cmin: 0,
          cmax: top,
          colorscale: heatScale(),
          showscale: !narrow(),
          colorbar: {
            thickness: 10,
            outlinewidth: 0,
            tickformat: chosen.share ? ".0%" : "d",
            title: {
              text: chosen.title.toLowerCase(),
              side: "right",
              font: { size: 12, color: cssColour("muted") },
            },
            tickfont: { size: 11, color: cssColour("muted") },
          },
          line: {
            color: map.sig.map((one) => cssColour(one ? "ink" : "surface")),
            width: map.sig.map((one) => (one ? 2.2 : 0.8)),
          },
        },
      },
    ],
    look: {
      margin: { l: 56, r: 56, t: 30, b: 30 },
      polar: {
        bgcolor: "rgba(0,0,0,0)",
        angularaxis: {
          rotation: 90,
          direction: "counterclockwise",
          tickvals: [0, 45, 90, 135, 180, 225, 270, 315],
          ticktext: ["0° ahead", "45°", "90° left", "135°", "180°", "−135°", "−90°", "−45°"],
          gridcolor: cssColour("line"),
          linecolor: cssColour("line"),
          tickfont: { color: cssColour("muted"), size: 12 },
        },
        radialaxis: {
          range: [0, map.rings * map.metres],
          angle: 0,
          dtick: map.rings * (narrow() ? 2 : 1) > 6 ? 20 : 10,
          ticksuffix: " m",
          gridcolor: cssColour("line"),
          linecolor: "rgba(0,0,0,0)",
          tickfont: { color: cssColour("ink"), size: 11 },
        },
      },
    },
  };
}

// --- bars -----------------------------------------------------------------------------------------------------

function errorBars(bins) {
  const kinds = BIN_KINDS.filter((kind) => bins[0][kind.key].length);
  if (!kinds.length) return null;
  places3d.bins = Math.min(places3d.bins, bins.length - 1);
  const box = h("div", { class: "pair bins", "data-part": "error-bars" });
  const show = () => {
    const chosen = bins[places3d.bins];
    box.replaceChildren(...kinds.map((kind) => binChart(kind, chosen)));
    kinds.forEach((kind) => redrawPlot(`bins-${kind.key}`));
  };
  const select = h(
    "select",
    {
      id: "bin-class",
      onchange: (event) => {
        places3d.bins = Number(event.target.value);
        show();
      },
    },
    bins.map((one, place) => option(place, one.name, place === places3d.bins)),
  );
  box.replaceChildren(...kinds.map((kind) => binChart(kind, bins[places3d.bins])));
  return h(
    "div",
    { class: "bin-block" },
    bins.length > 1 ? h("div", { class: "tools" }, h("label", {}, "Bars for ", select)) : null,
    box,
  );
}

const share3d = (part, whole3d) => (whole3d ? part / whole3d : null);

function binChart(kind, chosen) {
  const rows = chosen[kind.key];
  const series = [
    {
      name: "missed truths",
      colour: "wrong",
      pattern: "",
      of: (row) => share3d(row.n_fn, row.n_gt),
      n: (row) => `${count(row.n_fn)} of ${count(row.n_gt)} truths`,
    },
    ...(kind.stays
      ? [
          {
            name: "false predictions",
            colour: "hotspot",
            pattern: "/",
            of: (row) => share3d(row.n_fp, row.n_pred),
            n: (row) => `${count(row.n_fp)} of ${count(row.n_pred)} predictions`,
          },
        ]
      : []),
  ];
  return chart(`bins-${kind.key}`, {
    title: kind.title,
    how: `${chosen.name[0].toUpperCase()}${chosen.name.slice(1)}: share of the truths that are missed${kind.stays ? ", share of the predictions that are false" : "; false predictions have no sensor points on record"}.`,
    describe: `${kind.title}, ${chosen.name}; the table below holds the counts.`,
    height: 290,
    data: () => binTable(kind, chosen, rows),
    draw: () => ({
      traces: series.map((one) => ({
        type: "bar",
        name: one.name,
        x: rows.map((row) => row.bin.replace(/ m(\/s)?$/, "")),
        y: rows.map(one.of),
        text: rows.map(one.n),
        textposition: "none",
        hovertemplate: "%{x}: %{y:.1%}<br>%{text}<extra></extra>",
        marker: {
          color: cssColour(one.colour),
          pattern: {
            shape: one.pattern,
            fillmode: "overlay",
            fgcolor: cssColour("surface"),
            size: 7,
            solidity: 0.25,
          },
        },
      })),
      look: {
        showlegend: kind.stays,
        barmode: "group",
        xaxis: { title: kind.axis, type: "category", fixedrange: true },
        yaxis: { title: "share", tickformat: ".0%", range: [0, 1], fixedrange: true },
      },
    }),
  });
}

function binTable(kind, chosen, rows) {
  const error = (name, title) => ({ title, num: true, cell: (row) => decimal(row[name], 2) });
  return table(
    `${kind.title}, ${chosen.name}`,
    [
      { title: kind.axis[0].toUpperCase() + kind.axis.slice(1), cell: (row) => row.bin },
      { title: "Truths", num: true, cell: (row) => count(row.n_gt) },
      { title: "Missed", num: true, cell: (row) => count(row.n_fn) },
      ...(kind.stays
        ? [
            { title: "Predictions", num: true, cell: (row) => count(row.n_pred) },
            { title: "False", num: true, cell: (row) => count(row.n_fp) },
            { title: "Precision", num: true, cell: (row) => percent(row.precision) },
          ]
        : []),
      { title: "Recall", num: true, cell: (row) => percent(row.recall) },
      error("ate", "ATE (m)"),
      error("ase", "ASE"),
      error("aoe", "AOE (rad)"),
      error("ave", "AVE (m/s)"),
    ],
    rows,
    { tight: true, stack: true },
  );
}

function sensorTables(sensor) {
  const made = [];
  if (sensor.bins.length)
    made.push(
      table(
        "T11: classes that fail in a range bin more than elsewhere, and more than others do there",
        [
          { title: "Class", cell: (row) => row.class },
          { title: "Range", cell: (row) => `${row.from_m}–${row.to_m} m` },
          { title: "Events", num: true, cell: (row) => count(row.n) },
          { title: "Errors", num: true, cell: (row) => count(row.errors) },
          { title: "Share", num: true, cell: (row) => percent(row.errors / row.n) },
        ],
        sensor.bins,
        { stack: true },
      ),
    );
  if (sensor.sectors.length)
    made.push(
      table(
        "T12: frames in which a sector fell silent",
        [
          { title: "Frame", cell: (row) => row.input_id },
          { title: "From", num: true, cell: (row) => `${decimal(row.azimuth, 1)}°` },
          { title: "Width", num: true, cell: (row) => `${row.degrees}°` },
          { title: "p", num: true, cell: (row) => (row.p < 0.001 ? "<0.001" : decimal(row.p, 3)) },
        ],
        sensor.sectors.slice(0, 50),
        { stack: true },
      ),
    );
  return made.length ? h("div", { class: "panel sensor-tables" }, made) : null;
}
