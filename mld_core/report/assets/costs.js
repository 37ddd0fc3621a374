/* What each kind of error of a detection costs. */
function drawCosts() {
  const rows = detail().tide;
  if (!rows.length) {
    fill("costs", notice("No truth is known for this pass, so nothing can be wrong."));
    return;
  }
  const worst = rows.reduce((most, row) => ((row.dap || 0) > (most.dap || 0) ? row : most), rows[0]);
  const shown = [...rows].reverse();
  fill(
    "costs",
    h(
      "p",
      { class: "lead" },
      `Every false box and missed object is of one kind (TIDE). Its cost is the AP the model would gain ${SOLID ? "" : "at IoU 0.50 "}if that kind alone were mended. ${worst.dap ? `Most is lost to “${worst.title.toLowerCase()}”: +${decimal(worst.dap)} AP ${worst.fix}.` : ""}`,
    ),
    chart("costs", {
      title: `AP lost to each kind of error, ${passName(state.pass)}`,
      how: "The gains do not add up: mending one kind changes what the others cost.",
      height: 290,
      describe: `Bars of the AP lost to each kind of error, most to ${worst.title}; the table below holds the values.`,
      draw: () => ({
        traces: [
          {
            type: "bar",
            orientation: "h",
            y: shown.map((row) => row.title),
            x: shown.map((row) => row.dap),
            customdata: shown.map((row) => [row.n, row.fix]),
            text: shown.map((row) => decimal(row.dap)),
            textposition: "outside",
            cliponaxis: false,
            textfont: { color: cssColour("ink") },
            marker: { color: shown.map((row) => cssColour(row === worst ? "hotspot" : "accent")) },
            hovertemplate: "%{y}: +%{x:.3f} AP %{customdata[1]}<br>%{customdata[0]:,} boxes<extra></extra>",
          },
        ],
        look: {
          margin: { l: 8, r: 48, t: 10, b: 8 },
          xaxis: { title: "AP gained if mended", rangemode: "tozero", fixedrange: true },
          yaxis: { fixedrange: true },
        },
      }),
    }),
    h(
      "div",
      { class: "panel" },
      table(
        `Kinds of error of ${passName(state.pass)}`,
        [
          { title: "Kind", cell: (row) => row.title },
          { title: "Boxes", num: true, cell: (row) => count(row.n) },
          { title: "AP lost", num: true, cell: (row) => decimal(row.dap) },
          { title: "What it is", wide: true, cell: (row) => row.means },
          {
            title: "What mending gains",
            wide: true,
            cell: (row) => (row.dap === null ? "–" : `+${decimal(row.dap)} AP ${row.fix}`),
          },
        ],
        rows,
        { stack: true },
      ),
    ),
  );
}
