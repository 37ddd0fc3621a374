/** Colours of a map, as the theme has them now. */
import type { Facet } from "../data/types";
import { app } from "../state/app.svelte";
import { GREY } from "./cloud";
import type { Colour, Look } from "./raster";

const dark = matchMedia("(prefers-color-scheme: dark)");
let turned = $state(0);
dark.addEventListener("change", () => (turned += 1));

/** The colours of a legend's entries. */
export function look(legend: Facet | null): Look {
  void [turned, app.theme];
  const probe = document.createElement("i");
  document.body.append(probe);
  const read = (css: string): Colour => readBy(probe, css);
  const grey = read("var(--muted)");
  const colours: Colour[] = Array.from({ length: GREY + 1 }, () => grey);
  if (legend?.kind === "histogram") {
    const [from, to] = [read("var(--operational)"), read("var(--critical)")];
    const last = legend.n.length - 1;
    legend.n.forEach((_, at) => (colours[at] = mixed(from, to, at / last)));
  } else
    legend?.values.slice(0, GREY).forEach(({ value }, at) => {
      const own = `hsl(${(210 + 137.5 * at) % 360} 58% 52%)`;
      const known = {
        is_error: value === true ? "var(--wrong-fill)" : "var(--right-fill)",
        category: "var(--of)",
      };
      probe.dataset.category = String(value);
      colours[at] = read(known[legend.name.replace("projected_", "") as keyof typeof known] ?? own);
    });
  const made = { colours, dim: read("var(--strong-line)") };
  probe.remove();
  return made;
}

/** Colours of the style sheet. */
export function inks(names: readonly string[]): Colour[] {
  void [turned, app.theme];
  const probe = document.createElement("i");
  document.body.append(probe);
  const made = names.map((css) => readBy(probe, css));
  probe.remove();
  return made;
}

function readBy(probe: HTMLElement, css: string): Colour {
  probe.style.color = css;
  const told =
    getComputedStyle(probe)
      .color.match(/[\d.]+/g)
      ?.map(Number) ?? [];
  return [told[0] ?? 0, told[1] ?? 0, told[2] ?? 0];
}

const mixed = (from: Colour, to: Colour, share: number): Colour => [
  from[0] + share * (to[0] - from[0]),
  from[1] + share * (to[1] - from[1]),
  from[2] + share * (to[2] - from[2]),
];
export const css = (colour: Colour | undefined): string => `rgb(${(colour ?? [128, 128, 128]).join(" ")})`;
