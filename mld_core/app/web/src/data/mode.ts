/** Whether the page is a file of `mld report`, which brings its own data along; `solid` is the one with the 3D view. */
export const inFile = import.meta.env.MODE === "file" || import.meta.env.MODE === "solid";
