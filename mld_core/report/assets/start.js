/* Controls and the first drawing. */
function drawReport() {
  drawSummary();
  drawMetrics();
  drawCategories();
  drawDiagnoses();
  drawCodes();
  if (BOXES) drawCosts();
  if (BOXES && !SOLID) drawCurves();
  drawConfusion();
  drawCalibration();
  drawMap();
  if (!SOLID) drawSamples();
  else if (typeof drawScenes3d === "function") drawScenes3d();
  redraw();
}

function drawComparison() {
  if (!DATA.splits.length) {
    fill("compare-summary", notice("The two results have no split in common."));
    return;
  }
  drawCompareSummary();
  drawCompareMetrics();
  drawCompareCategories();
  drawCompareClasses();
  if (BOXES) drawCompareCosts();
  drawCompareCodes();
  if (BOXES) drawCompareErrors();
  drawChanged("regressed", "Right before, wrong now:");
  drawChanged("fixed", "Wrong before, right now:");
  redraw();
}

function choosePass(place) {
  state.pass = place;
  fillEpochs();
  drawReport();
  announce(`Showing ${passName(place)}`);
}

function fillEpochs() {
  const split = DATA.passes[state.pass].dataset;
  document.getElementById("split").value = split;
  const own = Object.keys(DATA.details)
    .map(Number)
    .filter((place) => DATA.passes[place].dataset === split);
  const select = document.getElementById("epoch");
  select.replaceChildren(
    ...own.map((place) => option(place, DATA.passes[place].epoch, place === state.pass)),
  );
  select.value = String(state.pass);
}

function setUpReport() {
  const splits = [...new Set(DATA.passes.map((one) => one.dataset))];
  const select = document.getElementById("split");
  select.replaceChildren(...splits.map((name) => option(name, name)));
  select.addEventListener("change", () =>
    choosePass(DATA.passes.map((one) => one.dataset).lastIndexOf(select.value)),
  );
  document
    .getElementById("epoch")
    .addEventListener("change", (event) => choosePass(Number(event.target.value)));
  fillEpochs();
  drawReport();
}

function setUpComparison() {
  const select = document.getElementById("split");
  select.replaceChildren(
    ...DATA.splits.map((one, place) => option(place, one.dataset, place === state.split)),
  );
  select.addEventListener("change", () => {
    state.split = Number(select.value);
    drawComparison();
    announce(`Showing ${currentSplit()}`);
  });
  drawComparison();
}

if (DATA.kind === "report") setUpReport();
else setUpComparison();
setUpTheme(() => redraw());
setUpNavigation();
document.documentElement.dataset.ready = "true";
