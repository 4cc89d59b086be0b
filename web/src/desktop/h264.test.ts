import { expect, test } from "vitest";
import { codecOf } from "./h264";

test("profile, constraints and level come from the parameter set", () => {
  expect(codecOf(Uint8Array.of(0, 0, 0, 1, 0x67, 0x42, 0xc0, 0x28, 0x95))).toBe("avc1.42c028");
  expect(codecOf(Uint8Array.of(0, 0, 1, 0x09, 0xf0, 0, 0, 1, 0x67, 0x42, 0xe0, 0x1f, 1))).toBe("avc1.42e01f");
});

test("a picture without a parameter set names no codec", () => {
  expect(codecOf(Uint8Array.of(0, 0, 0, 1, 0x41, 0x9a, 0, 0, 0))).toBeNull();
  expect(codecOf(Uint8Array.of(0, 0, 1, 0x67, 0x42))).toBeNull();
});
