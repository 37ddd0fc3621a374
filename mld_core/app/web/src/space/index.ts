/** The 3D view of a frame: a part of its own, loaded where there are 3D boxes. */
export { default as Camera } from "./Camera.svelte";
export { default as Ground } from "./Ground.svelte";
export { default as Space } from "./Space.svelte";
