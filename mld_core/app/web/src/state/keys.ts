/** Keys of the pages: what came last hears first; fields that take text keep theirs. */

export type Keys = Record<string, (event: KeyboardEvent) => void>;

const heard: Keys[] = [];

const takesText = (target: EventTarget | null): boolean =>
  target instanceof HTMLElement &&
  (target.isContentEditable || /^(TEXTAREA|SELECT)$/.test(target.tagName) || isField(target));

const isField = (target: HTMLElement): boolean =>
  target instanceof HTMLInputElement && !/^(checkbox|radio|button|range)$/.test(target.type);

export function listen(): () => void {
  const hear = (event: KeyboardEvent): void => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (takesText(event.target) && event.key !== "Escape") return;
    if (
      event.key === "Enter" &&
      event.target instanceof Element &&
      event.target.closest("button, a, summary")
    )
      return;
    const keys = heard.findLast((one) => event.key in one);
    if (!keys) return;
    event.preventDefault();
    keys[event.key]?.(event);
  };
  addEventListener("keydown", hear);
  return () => removeEventListener("keydown", hear);
}

/** To be called in an effect; what it returns takes the keys away again. */
export function on(keys: Keys): () => void {
  heard.push(keys);
  return () => heard.splice(heard.indexOf(keys), 1);
}
