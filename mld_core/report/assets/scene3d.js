/* One frame in 3D, opened on demand: points and boxes as wire frames, drawn by plotly with WebGL. */
const EDGES_3D = [0, 1, 2, 3, 0, null, 4, 5, 6, 7, 4, null, 0, 4, null, 1, 5, null, 2, 6, null, 3, 7, null];
const DASH_3D = { truth: "solid", missed: "dash", right: "solid", wrong: "longdashdot", open: "dot" };
const CAMERAS_3D = { x: -1.3, y: 0, z: 1.2 };
let hasWebgl = null;

function webglWorks() {
  if (hasWebgl === null) {
    const pen = document.createElement("canvas").getContext("webgl");
    hasWebgl = Boolean(pen);
    if (pen) pen.getExtension("WEBGL_lose_context")?.loseContext();
  }
  return hasWebgl;
}

function solidButton(card) {
  return h(
    "button",
    {
      type: "button",
      id: "bev-open-solid",
      "aria-expanded": String(bev.solid),
      "aria-controls": "bev-solid",
      onclick: () => {
        bev.solid = !bev.solid;
        if (bev.solid) openSolid(card);
        else closeSolid();
        const button = document.getElementById("bev-open-solid");
        button.setAttribute("aria-expanded", String(bev.solid));
        button.textContent = bev.solid ? "Close 3D" : "Show in 3D";
      },
    },
    bev.solid ? "Close 3D" : "Show in 3D",
  );
}

/** Give the graphics context back: a browser has only a few. */
function purgeSolid() {
  const known = plots.get("scene3d");
  if (known) Plotly.purge(known.box);
  plots.delete("scene3d");
}

function closeSolid() {
  purgeSolid();
  document.getElementById("bev-solid").replaceChildren();
}

function openSolid(card) {
  const place = document.getElementById("bev-solid");
  if (!webglWorks()) {
    place.replaceChildren(
      notice(
        "The 3D view needs WebGL, which this browser does not offer; the picture from above shows the same boxes.",
      ),
    );
    return;
  }
  const turnBy = (degrees) => () => turnSolid(degrees);
  const controls = h(
    "div",
    { class: "bev-step" },
    h("button", { type: "button", onclick: turnBy(30) }, "Turn left"),
    h("button", { type: "button", onclick: turnBy(-30) }, "Turn right"),
    h("button", { type: "button", onclick: () => aimSolid({ x: -0.01, y: 0, z: 1.7 }) }, "From above"),
    h("button", { type: "button", onclick: () => aimSolid(CAMERAS_3D) }, "From behind"),
  );
  const figure = chart("scene3d", {
    title: `Frame ${card.id} in 3D`,
    how: "Drag to turn, wheel or pinch to zoom. Line styles are those of the picture from above; the spike shows the heading.",
    describe: `Frame ${card.id} in 3D; the boxes are in the table of the picture from above.`,
    height: narrow() ? 340 : 480,
    below: controls,
    draw: () => ({
      traces: solidTraces(card),
      look: {
        showlegend: !narrow(),
        margin: { l: 0, r: 0, t: 0, b: 0 },
        dragmode: "turntable",
        scene: solidScene(),
        uirevision: card.id,
      },
      config: { scrollZoom: true },
    }),
  });
  place.replaceChildren(figure);
  const { box, draw } = plots.get("scene3d");
  const { traces, look, config } = draw();
  Plotly.newPlot(box, traces, layout(look), {
    displayModeBar: false,
    displaylogo: false,
    responsive: true,
    ...config,
  });
}

function solidScene() {
  const axis = {
    color: cssColour("muted"),
    gridcolor: cssColour("line"),
    zerolinecolor: cssColour("line"),
    showbackground: false,
    showspikes: false,
  };
  return {
    aspectmode: "data",
    camera: { eye: CAMERAS_3D, up: { x: 0, y: 0, z: 1 } },
    xaxis: { ...axis, title: { text: "x (m)" } },
    yaxis: { ...axis, title: { text: "y (m)" } },
    zaxis: { ...axis, title: { text: "z (m)" } },
  };
}

/** Corners of a box: the lower four, the upper four. */
function solidCorners(box) {
  const { corners } = footprint(box);
  return [-1, 1].flatMap((side) => corners.map(([x, y]) => [x, y, box[2] + (side * box[5]) / 2]));
}

function solidTraces(card) {
  const traces = [];
  const values = pointsOf(card);
  if (values && !bev.off.has("points")) {
    const axis = (offset) =>
      Array.from({ length: values.length / 3 }, (_, i) => values[3 * i + offset] / 100);
    traces.push({
      type: "scatter3d",
      mode: "markers",
      name: "points",
      x: axis(0),
      y: axis(1),
      z: axis(2),
      hoverinfo: "skip",
      marker: { size: 1, color: cssColour("point"), opacity: 1 },
    });
  }
  for (const style of STYLES_3D) {
    const own = shapes3d(card).filter((shape) => shape.style === style && !bev.off.has(style.key));
    if (!own.length) continue;
    const line = { x: [], y: [], z: [], text: [] };
    const push = (place, text) => {
      line.x.push(place && place[0]);
      line.y.push(place && place[1]);
      line.z.push(place && place[2]);
      line.text.push(text);
    };
    for (const { box, unit, place } of own) {
      const corners = solidCorners(box),
        [middle, ahead] = footprint(box).tick;
      const text = escaped(
        `box ${place + 1}: ${classNamed(unit.p ? unit.said : unit.truth)} ${unit.diagnosis.join(" ")}`,
      );
      for (const corner of EDGES_3D) push(corner === null ? null : corners[corner], text);
      push([...middle, box[2]], text);
      push([...ahead, box[2]], text);
      push(null, text);
    }
    traces.push({
      type: "scatter3d",
      mode: "lines",
      name: style.title,
      ...line,
      connectgaps: false,
      hovertemplate: "%{text}<extra></extra>",
      line: { color: cssColour(style.colour), width: 2 * style.width, dash: DASH_3D[style.key] },
    });
  }
  return traces;
}

function aimSolid(eye) {
  const box = document.querySelector("#bev-solid .plot");
  Plotly.relayout(box, { "scene.camera.eye": eye, "scene.camera.center": { x: 0, y: 0, z: 0 } });
}
function turnSolid(degrees) {
  const box = document.querySelector("#bev-solid .plot");
  const { x, y, z } = box._fullLayout.scene._scene.getCamera().eye;
  const turn = (degrees * Math.PI) / 180;
  aimSolid({ x: x * Math.cos(turn) - y * Math.sin(turn), y: x * Math.sin(turn) + y * Math.cos(turn), z });
}
