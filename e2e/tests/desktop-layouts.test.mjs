// A wrong character in a password field locks people out: every character of a layout, typed with that layout's real
// keys into Chromium on an X display, arrives in a page inside the VM as the same character.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { Desk } from "../layouts/desk.mjs";
import { charactersOf, JAPANESE, JAPANESE_COMMITS, LAYOUTS } from "../layouts/sets.mjs";
import { reachSignInPage, story } from "../play/sign-in.mjs";
import { limitsOf } from "../play/settings.mjs";

const limits = limitsOf("container");
let desk;

before(async () => {
  desk = await Desk.start();
}, { timeout: limits.test });

after(async () => {
  if (desk) assert.deepEqual(await desk.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

/** Says where two texts part, instead of printing both. */
function assertSame(got, wanted, what) {
  if (got === wanted) return;
  const [is, should] = [[...got], [...wanted]];
  const at = should.findIndex((character, place) => character !== is[place]);
  const place = at < 0 ? should.length : at;
  const near = (characters) => characters.slice(place, place + 12).map((character) => `${character} U+${character.codePointAt(0).toString(16)}`).join(", ");
  assert.fail(`${what}: ${is.length} of ${should.length} characters; from number ${place + 1} on there is [${near(is)}], it should be [${near(should)}]`);
}

test("every character of German, French and US-international keyboards and of Japanese input arrives as itself", { timeout: limits.test }, (t) =>
  story(desk.world, "layouts", async (person) => {
    const page = { method: "GET", host: "id.polydev.test", path: /^\/interaction\//, status: 200 };
    await reachSignInPage(person, { provider: "demo", user: "e2e-layouts", page });

    const vm = "vm";
    await desk.openTypingPage(person, vm);

    const part = (name, tell) =>
      t.test(name, async () => {
        try {
          await tell();
        } catch (error) {
          const dir = await desk.world.keepRemains(`layouts ${name}`, person);
          throw new Error(`${error.message}\nWhat is left of it: ${dir}`, { cause: error });
        }
      });

    for (const [name, layout] of Object.entries(LAYOUTS)) {
      await part(name, async () => {
        const characters = charactersOf(name, await desk.layout(layout));
        const wanted = characters.join("");
        assertSame(await desk.typedAtHome(`home-${layout.replace(/\W/g, "-")}`, characters), wanted, "the person's own browser");
        await desk.emptyTypingPage(person, vm);
        await desk.type(characters);
        assertSame(await desk.typedInVm(vm, wanted), wanted, "the page in the VM");
        t.diagnostic(`${name}: ${characters.length} characters`);
      });
    }

    await part("Japanese", async () => {
      await desk.emptyTypingPage(person, vm);
      const method = await desk.world.context.newCDPSession(person.page);
      const commit = (text) => method.send("Input.insertText", { text });
      for (const { steps, commit: word } of JAPANESE) {
        for (const text of steps) await method.send("Input.imeSetComposition", { text, selectionStart: text.length, selectionEnd: text.length });
        await commit(word);
      }
      for (const text of JAPANESE_COMMITS) await commit(text);
      const wanted = [...JAPANESE.map(({ commit: word }) => word), ...JAPANESE_COMMITS].join("");
      assertSame(await desk.typedInVm(vm, wanted), wanted, "the page in the VM");
      t.diagnostic(`Japanese: ${[...wanted].length} characters`);
    });
  }),
);
