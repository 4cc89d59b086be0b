import { expect, test } from "vitest";
import { isUserId, rememberedUser, rememberUser } from "./identity";

test.each(["me", "a.b@c-d_e", "@x", "x".repeat(64)])("%s can be a user", (text) => expect(isUserId(text)).toBe(true));
test.each(["", ".a", "a/b", "../x", "a b", "ä", "x".repeat(65)])("%j cannot be a user", (text) => expect(isUserId(text)).toBe(false));

test("what is remembered is checked when it is read back", () => {
  expect(rememberedUser({ getItem: () => null })).toBe("me");
  expect(rememberedUser({ getItem: () => "../../etc" })).toBe("me");
  expect(rememberedUser({ getItem: () => "ada" })).toBe("ada");
});

test("a name that does not fit is not remembered", () => {
  const saved: string[] = [];
  const storage = { setItem: (_: string, value: string) => void saved.push(value) };
  rememberUser("a/b", storage);
  rememberUser("ada", storage);
  expect(saved).toEqual(["ada"]);
});
