/** The one selection of the app: every number, bar and cell changes it, every panel and grid follows. */
import { holds, toggled } from "./filter";
import { url } from "./url.svelte";

export const selected = (filter: string): boolean => holds(url.get("filter"), filter);

export function select(filter: string, sort: string | null = null): void {
  const on = !selected(filter);
  const changes = { filter: toggled(url.get("filter"), filter), sel: null };
  url.set(on && sort ? { ...changes, sort } : changes);
}
