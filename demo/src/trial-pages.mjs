// Pages for trying the live desktop: one to type into, one that keeps the screen busy. Unlike the others they have scripts.
//
// What is typed is kept here, newest text per page id, and read by whoever has the control token: never put a real secret in.
import { randomBytes } from 'node:crypto';

export const TYPING_PATH = '/polydev-demo/typing';
export const SCROLL_PATH = '/polydev-demo/scroll';
const MAX_PAGES = 100;
const MAX_TEXT_BYTES = 256 * 1024;
const ID = /^[A-Za-z0-9-]{1,64}$/;

export class TrialPages {
  /** Page id to the newest text and the number of the edit that made it. */
  #typed = new Map();

  static handles(x) {
    return x.path === TYPING_PATH || x.path === SCROLL_PATH;
  }

  answer(x) {
    if (x.method === 'GET') return x.path === SCROLL_PATH ? show(x, scrollPage) : show(x, typingPage);
    if (x.method !== 'POST' || x.path !== TYPING_PATH) return x.json(405, { error: 'method_not_allowed' });
    return this.#keep(x);
  }

  /** The newest text of a page, or null if the page has not been opened. */
  typed(id) {
    return this.#typed.get(id) ?? null;
  }

  #keep(x) {
    const id = x.query.get('id') ?? '';
    const { edit, text } = x.fields;
    const fits = ID.test(id) && Number.isSafeInteger(edit) && typeof text === 'string' && Buffer.byteLength(text) <= MAX_TEXT_BYTES;
    if (!fits) return x.json(400, { error: 'bad_request' });
    // A page that is opened again begins with edit 0; otherwise requests may overtake each other.
    if (edit === 0 || edit > (this.#typed.get(id)?.edit ?? -1)) this.#typed.set(id, { edit, text });
    if (this.#typed.size > MAX_PAGES) this.#typed.delete(this.#typed.keys().next().value);
    return x.empty(204);
  }
}

function show(x, page) {
  const nonce = randomBytes(18).toString('base64');
  x.html(200, page(nonce), {
    'content-security-policy': `default-src 'none'; style-src 'nonce-${nonce}'; script-src 'nonce-${nonce}'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'`,
  });
}

/** One text field over the whole page. It has the focus, and each edit goes to the server. */
const typingPage = (nonce) => `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Typing (polydev demo)</title><link rel="icon" href="data:,">
<style nonce="${nonce}">
html, body { height: 100%; margin: 0; background: #fff; }
textarea { display: block; box-sizing: border-box; width: 100%; height: 100%; padding: 20px; border: 0; outline: none; resize: none;
  font: 20px/1.5 "DejaVu Sans Mono", monospace; }
</style></head><body>
<textarea aria-label="What you type" autocomplete="off" autocapitalize="none" spellcheck="false" autofocus></textarea>
<script nonce="${nonce}">
const field = document.querySelector("textarea");
let edit = 0;
const report = () => fetch(location.pathname + location.search, {
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify({ edit: edit++, text: field.value }),
});
field.addEventListener("input", report);
field.focus();
report();
</script></body></html>
`;

/** A long page of text and drawings that scrolls on and on, with pauses; with `?still` in its address it stands still. */
const scrollPage = (nonce) => `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Scrolling (polydev demo)</title><link rel="icon" href="data:,">
<style nonce="${nonce}">
body { margin: 0 auto; max-width: 1100px; padding: 24px; background: #fff; color: #1c2430; font: 17px/1.55 "DejaVu Sans", sans-serif; }
section { display: flex; gap: 24px; align-items: center; padding: 12px 0; border-bottom: 1px solid #d5dae3; }
p { margin: 0; }
canvas { flex: none; border-radius: 8px; }
</style></head><body>
<script nonce="${nonce}">
const PARAGRAPHS = 120, STEP_PX = 8, CYCLE_MS = 8000, SCROLL_MS = 6000;
const WORDS = "window picture letter colour stream packet cursor button screen frame signal region corner shadow border anchor".split(" ");
// The same page each time, so that runs can be compared.
let seed = 1;
const random = (below) => (seed = (seed * 48271) % 2147483647) % below;
for (let n = 1; n <= PARAGRAPHS; n += 1) {
  const section = document.createElement("section");
  const canvas = document.createElement("canvas");
  canvas.width = 240;
  canvas.height = 110;
  const draw = canvas.getContext("2d");
  for (let i = 0; i < 24; i += 1) {
    draw.fillStyle = "hsl(" + random(360) + " 70% " + (35 + random(40)) + "%)";
    if (i % 2) draw.fillRect(random(220), random(90), 10 + random(60), 6 + random(40));
    else { draw.beginPath(); draw.arc(random(240), random(110), 4 + random(26), 0, 7); draw.fill(); }
  }
  const text = document.createElement("p");
  text.textContent = n + ". " + Array.from({ length: 60 }, () => WORDS[random(WORDS.length)]).join(" ") + ".";
  section.append(canvas, text);
  document.body.append(section);
}
const started = performance.now();
function step(now) {
  if ((now - started) % CYCLE_MS < SCROLL_MS) {
    scrollBy(0, STEP_PX);
    if (scrollY + innerHeight >= document.documentElement.scrollHeight - 1) scrollTo(0, 0);
  }
  requestAnimationFrame(step);
}
if (new URLSearchParams(location.search).has("still")) document.title = "Still (polydev demo)";
else requestAnimationFrame(step);
</script></body></html>
`;
