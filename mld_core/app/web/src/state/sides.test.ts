import { expect, test } from "vitest";
import { comparing, labels } from "./sides";

const side = (version: string, epoch: number | null = 1, result = "all") => ({
  ...{ model: "net, a/b", version, result, epoch },
});

test("two are before and after, more are a list too", () => {
  const two = comparing([side("v1"), side("v2", null)]);
  expect([two.a_version, two.a_epoch, two.version, two.epoch, two.of]).toEqual([
    "v1",
    "1",
    "v2",
    "none",
    null,
  ]);
  const three = comparing([side("v1"), side("v2"), side("v3", 7)]);
  const named = three.of!.split(",").map((one) => one.split("/").map(decodeURIComponent));
  expect(named).toEqual([
    ["net, a/b", "v1", "all", "1"],
    ["net, a/b", "v2", "all", "1"],
    ["net, a/b", "v3", "all", "7"],
  ]);
});

test("each is called what tells it from the others", () => {
  expect(labels([side("v1"), side("v2")])).toEqual(["v1", "v2"]);
  expect(labels([side("v1", 0), side("v1", 1)])).toEqual(["epoch 0", "epoch 1"]);
  expect(labels([side("v1", 0), side("v1", 0)])).toEqual(["v1", "v1"]);
  expect(labels([side("v1", 0, "a"), side("v2", 1, "b")])).toEqual(["v1 a epoch 0", "v2 b epoch 1"]);
});
