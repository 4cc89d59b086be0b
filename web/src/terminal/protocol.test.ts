import { expect, test } from "vitest";
import { readMessage, resizeMessage, terminalPath } from "./protocol";

test("binary is output, byte for byte", () => {
  const bytes = new Uint8Array([0, 255, 27]);
  expect(readMessage(bytes.buffer)).toEqual({ kind: "output", bytes });
});

test("the end of the shell carries its code", () => {
  expect(readMessage('{"type":"exit","code":7}')).toEqual({ kind: "exit", code: 7 });
  expect(readMessage('{"type":"exit","code":null}')).toEqual({ kind: "exit", code: null });
});

test("a VM that stands still, and goes on", () => {
  expect(readMessage('{"type":"state","state":"paused"}')).toEqual({ kind: "state", state: "paused" });
  expect(readMessage('{"type":"state","state":"running"}')).toEqual({ kind: "state", state: "running" });
});

test.each(["", "null", "[]", '{"type":"other"}', '{"type":"state"}', '{"type":"state","state":"gone"}', "{", 5, undefined])("%j is not understood and harms nothing", (data) => {
  expect(readMessage(data)).toEqual({ kind: "unknown" });
});

test("sizes are whole numbers the controller accepts", () => {
  expect(resizeMessage(80.7, 0)).toBe('{"type":"resize","cols":80,"rows":1}');
  expect(terminalPath("a/b", Number.NaN, 5000)).toBe("/api/vms/a%2Fb/terminal?cols=1&rows=1000");
});
