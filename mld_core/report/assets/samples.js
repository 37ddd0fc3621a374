/* The gallery of the worst samples. */
const groupsOf = () => detail().groups;
const hasGroup = (key) => (SOLID ? hasScenes(key) : groupsOf().some((group) => group.key === key));
function showGroup(key) {
  if (SOLID) {
    showScenes(key);
    return;
  }
  state.group = key;
  drawSamples();
  document.getElementById("samples").scrollIntoView();
  document.getElementById("group").focus({ preventScroll: true });
}

function picture(id, small) {
  const images = DATA.images[currentSplit()] || {};
  const png = Object.prototype.hasOwnProperty.call(images, id) ? images[id] : null;
  if (png)
    return h("img", {
      src: `data:image/png;base64,${png}`,
      alt: small ? "" : `Thumbnail of sample ${id}`,
      loading: "lazy",
    });
  return h("div", { class: "noimage" }, small ? "" : "no image");
}
const currentSplit = () =>
  DATA.kind === "report" ? DATA.passes[state.pass].dataset : DATA.splits[state.split].dataset;

function drawSamples() {
  const groups = groupsOf();
  if (!groups.length) {
    fill("samples", noGroups());
    return;
  }
  const group = groups.find((one) => one.key === state.group) || groups[0];
  const cards = detail().cards;
  const noun = BOXES ? "image" : "sample";
  fill(
    "samples",
    groupTools(groups, group),
    groupText(group),
    h(
      "p",
      { class: "lead" },
      group.rows.length < group.n
        ? `The worst ${count(group.rows.length)} of ${count(group.n)}${BOXES ? ` images, with ${count(group.units)} such boxes in all` : ""}.`
        : plural(group.n, noun, `${noun}s, worst first`) + ".",
      BOXES ? " Press an image to enlarge it." : "",
    ),
    BOXES ? boxLegend() : null,
    h(
      "ul",
      { class: BOXES ? "gallery wide-cards" : "gallery" },
      group.rows.map((row) => h("li", {}, BOXES ? imageCard(row, group) : sampleCard(cards[String(row)]))),
    ),
    BOXES ? worstImages() : null,
  );
}

function noGroups() {
  const last = DATA.passes.map((one) => one.dataset).lastIndexOf(DATA.passes[state.pass].dataset);
  return last === state.pass
    ? notice("No errors and no issues in this pass.")
    : notice(
        `${BOXES ? "Images" : "Samples"} are shown for the last epoch of each split. `,
        h("button", { type: "button", onclick: () => choosePass(last) }, `Show ${passName(last)}`),
      );
}

function groupTools(groups, group) {
  const kinds = [...new Set(groups.map((one) => one.kind))];
  const select = h(
    "select",
    {
      id: "group",
      onchange: (event) => {
        state.group = event.target.value;
        drawSamples();
        document.getElementById("group").focus();
        announce(`${event.target.selectedOptions[0].textContent}`);
      },
    },
    kinds.map((kind) =>
      h(
        "optgroup",
        { label: kind },
        groups
          .filter((one) => one.kind === kind)
          .map((one) => option(one.key, `${one.title} (${count(one.n)})`, one === group)),
      ),
    ),
  );
  return h("div", { class: "tools" }, h("label", {}, BOXES ? "Images of " : "Samples of ", select));
}

function groupText(group) {
  const category = CATEGORY[group.key],
    diagnosis = detail().diagnoses.find((one) => one.code === group.key),
    code = detail().codes.find((one) => one.code === group.key);
  if (category)
    return notice(
      h("b", {}, "What it means: "),
      category.means,
      " ",
      h("b", {}, "What to do: "),
      category.do,
    );
  if (diagnosis)
    return notice(
      h("b", {}, "Why: "),
      `${diagnosis.predicate}. `,
      h("b", {}, "What to do: "),
      diagnosis.action,
    );
  if (code) return notice(h("b", {}, "What to do: "), code.action);
  return null;
}

function sampleCard(card) {
  const verdict =
    card.wrong === null
      ? null
      : card.wrong
        ? h("span", { class: "wrongmark" }, "✕ ")
        : h("span", { class: "rightmark" }, "✓ ");
  const facts = [
    ["Label", card.truth === null ? "none" : card.truth],
    ["Predicted", [verdict, card.said, card.wrong ? h("span", { class: "sr" }, " (wrong)") : null]],
  ];
  if (card.suggested) facts.push(["Suggested", h("b", {}, card.suggested)]);
  facts.push(
    card.error_proba === null
      ? ["Confidence", decimal(card.confidence, 2)]
      : ["Error prob.", decimal(card.error_proba, 2)],
  );
  const rest = [];
  if (card.category)
    rest.push(h("p", { class: "cat" }, mark(card.category), h("span", {}, kindTitle(card.category))));
  if (card.top.length)
    rest.push(
      h(
        "div",
        {},
        h("p", { class: "minor" }, "Softmax, largest five"),
        h(
          "ol",
          { class: "probs" },
          card.top.map((one) =>
            h(
              "li",
              { class: one.truth ? "truth" : null },
              h(
                "span",
                { class: "name", title: one.name },
                one.name,
                one.truth ? h("span", { class: "sr" }, " (the label)") : null,
              ),
              h(
                "span",
                { class: "bar", "aria-hidden": "true" },
                h("i", { style: { width: `${100 * one.p}%` } }),
              ),
              h("span", { class: "num" }, decimal(one.p, 3)),
            ),
          ),
        ),
      ),
    );
  if (card.near.length)
    rest.push(
      h(
        "div",
        {},
        h("p", { class: "minor" }, "Nearest samples and their labels"),
        h(
          "ul",
          { class: "near" },
          card.near.map((one) =>
            h(
              "li",
              { title: one.id },
              picture(one.id, true),
              h("span", { class: "sr" }, `${one.id}: `),
              one.truth === null ? "–" : one.truth,
            ),
          ),
        ),
      ),
    );
  const codes = [card.code, ...card.diagnosis].filter(Boolean);
  if (codes.length)
    rest.push(
      h(
        "p",
        { class: "codes-line" },
        codes.map((code, place) => [place ? " · " : "", h("code", { title: codeTitle(code) }, code)]),
      ),
    );
  return h(
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
        facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
      ),
    ),
    h("div", { class: "rest" }, rest),
  );
}
const codeTitle = (code) => {
  const known = DATA.kind === "report" ? detail().diagnoses : splitNow().codes;
  const found = known.find((one) => one.code === code);
  return found ? found.title : null;
};
