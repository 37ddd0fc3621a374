/** Wheel and keys over a drawing, which takes them from the page. */
import { untrack } from "svelte";

/** An attachment: how much nearer a turn of the wheel goes. The page's own listener would be a passive one. */
export function wheeled(nearer: (factor: number, event: WheelEvent) => void) {
  return (node: HTMLElement): (() => void) => {
    const turn = (event: WheelEvent): void => {
      event.preventDefault();
      untrack(() => nearer(Math.exp(-event.deltaY / (event.deltaMode ? 20 : 400)), event));
    };
    node.addEventListener("wheel", turn, { passive: false });
    return () => node.removeEventListener("wheel", turn);
  };
}

/** A listener to keys without Ctrl, Alt or Meta. */
export function pressed<Does>(keys: Record<string, Does>, take: (does: Does, event: KeyboardEvent) => void) {
  return (event: KeyboardEvent): void => {
    const does = keys[event.key];
    if (!does || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    take(does, event);
  };
}
