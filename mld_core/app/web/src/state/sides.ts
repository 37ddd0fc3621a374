/** Results and epochs that are compared, in an address. */

export interface Side {
  model: string;
  version: string;
  result: string;
  /** null = it has none; "" = the last. */
  epoch: number | null | "";
}

const epochOf = ({ epoch }: Side): string => (epoch === null ? "none" : String(epoch));

/** Two of them as the address names what is before and after. */
export const pairChanges = (a: Side, b: Side): Record<string, string | null> => ({
  ...{ model: b.model, version: b.version, result: b.result, epoch: epochOf(b) },
  ...{ a_model: a.model, a_version: a.version, a_result: a.result, a_epoch: epochOf(a) },
  ...{ kind: null, truth: null, offset: null },
});

/** All of them, the first being what the others are compared with; two need no list. */
export const comparing = (sides: readonly Side[]): Record<string, string | null> => {
  const told = sides.map((one) =>
    [one.model, one.version, one.result, epochOf(one)].map(encodeURIComponent).join("/"),
  );
  return { ...pairChanges(sides[0]!, sides[1]!), of: told.length > 2 ? told.join(",") : null };
};

/** Each by what tells it from the others. */
export function labels(sides: readonly Side[]): string[] {
  const said = (one: Side): string[] => [
    one.model,
    one.version,
    one.result,
    one.epoch === null || one.epoch === "" ? "" : `epoch ${one.epoch}`,
  ];
  const all = sides.map(said);
  const differs = [0, 1, 2, 3].filter((at) => new Set(all.map((one) => one[at])).size > 1);
  const shown = differs.length ? differs : [1];
  return all.map((one) => shown.map((at) => one[at]).join(" "));
}
