/** Browsers stop drawing past some 30 million pixels: a longer list is shown through a shorter scroll bar. */

export const TALLEST = 8_000_000;

export class Scroller {
  /** Where the window begins in the list, in pixels of the list. */
  offset = 0;
  #last = 0;

  constructor(
    public full = 0,
    public view = 0,
  ) {}

  /** The height of the element that scrolls. */
  get height(): number {
    return Math.min(this.full, TALLEST);
  }

  get #room(): number {
    return Math.max(0, this.full - this.view);
  }

  get #bar(): number {
    return Math.max(0, this.height - this.view);
  }

  /** The scroll bar moved: small steps are steps in the list, long ones are jumps to a share of it. */
  moved(bar: number): number {
    if (this.full <= TALLEST) this.offset = bar;
    else if (bar <= 0) this.offset = 0;
    else if (bar >= this.#bar) this.offset = this.#room;
    else {
      const step = bar - this.#last;
      this.offset = Math.abs(step) <= 2 * this.view ? this.offset + step : (bar / this.#bar) * this.#room;
    }
    this.offset = Math.min(Math.max(0, this.offset), this.#room);
    this.#last = bar;
    return this.offset;
  }

  /** Where the scroll bar stands for an offset; what follows is told from there. */
  barFor(offset: number): number {
    this.offset = Math.min(Math.max(0, offset), this.#room);
    const share = this.#room > 0 ? this.offset / this.#room : 0;
    this.#last = this.full <= TALLEST ? this.offset : Math.round(share * this.#bar);
    return this.#last;
  }

  /** The offset at which the band from `top` to `top + height` is in sight, moved as little as can be. */
  showing(top: number, height: number): number {
    if (top < this.offset) return top;
    if (top + height > this.offset + this.view) return top + height - this.view;
    return this.offset;
  }
}
