/** Numbers as a person reads them. */
export const count = (n: number): string => n.toLocaleString("en-US");
