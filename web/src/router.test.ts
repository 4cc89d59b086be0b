import { expect, test } from "vitest";
import { routeOf } from "./router";

test.each([
  ["/", { page: "home" }],
  ["/open", { page: "open" }],
  ["/session/abc", { page: "session", id: "abc" }],
  ["/session/a%20b/", { page: "session", id: "a b" }],
  ["/session/%E0%A4%A", { page: "session", id: "%E0%A4%A" }],
  ["/terminal/vm1", { page: "terminal", vmId: "vm1" }],
  ["/terminal", { page: "missing" }],
  ["/session/a/b", { page: "missing" }],
  ["/nothing", { page: "missing" }],
])("%s", (path, route) => {
  expect(routeOf(path)).toEqual(route);
});
