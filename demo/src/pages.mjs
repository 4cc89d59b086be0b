// The pages a person sees. Plain HTML without scripts: one form each, everything reachable by Tab and Enter, the
// first thing to type into has the focus. Each says whom the demo stands in for, and that it is a demo.

const STYLE = `
:root { color-scheme: light; --accent: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: #eef1f6; color: #1c2430;
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; padding: 24px; }
main { width: 100%; max-width: 440px; background: #fff; border-radius: 14px; padding: 28px 32px 24px;
  border-top: 6px solid var(--accent); box-shadow: 0 10px 30px rgb(20 30 60 / 12%); }
.for { margin: 0; color: var(--accent); font-weight: 700; font-size: 14px; letter-spacing: .02em; }
h1 { margin: 2px 0 16px; font-size: 25px; line-height: 1.25; }
p { margin: 0 0 14px; }
label { display: block; font-weight: 600; margin: 0 0 14px; }
input { display: block; width: 100%; margin-top: 5px; padding: 11px 12px; font: inherit; font-weight: 400;
  border: 1px solid #b6bfcd; border-radius: 8px; background: #fff; color: inherit; }
input.code { font: 600 22px/1.2 "DejaVu Sans Mono", monospace; letter-spacing: .12em; text-transform: uppercase; }
button { font: inherit; font-weight: 600; padding: 11px 20px; border-radius: 8px; border: 1px solid var(--accent);
  background: var(--accent); color: #fff; cursor: pointer; }
button.quiet { background: #fff; color: #1c2430; border-color: #b6bfcd; }
input:focus, button:focus { outline: 3px solid color-mix(in srgb, var(--accent) 45%, white); outline-offset: 1px; }
.row { display: flex; gap: 12px; margin-top: 6px; }
.wrong { background: #fdecec; color: #8f1414; border-radius: 8px; padding: 10px 12px; font-weight: 600; }
.shown { display: block; padding: 14px; border-radius: 8px; background: #eef1f6; user-select: all;
  font: 15px/1.5 "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; margin: 0 0 14px; }
.hint { margin: 16px 0 0; font-size: 13px; color: #5b6675; }
ul { margin: 0 0 16px; padding-left: 20px; max-height: 180px; overflow: auto; }
footer { margin-top: 20px; padding-top: 14px; border-top: 1px solid #e3e7ee; font-size: 13px; color: #5b6675; }
`;

const escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

/** Text that is already HTML, so that it is not escaped again. */
class Html {
  constructor(text) {
    this.text = text;
  }
}
const html = (strings, ...values) =>
  new Html(strings.reduce((text, string, i) => {
    const value = values[i - 1];
    const parts = Array.isArray(value) ? value : [value];
    return text + parts.map((one) => (one instanceof Html ? one.text : escape(one ?? ''))).join('') + string;
  }));

function page(brand, title, heading, content) {
  return html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title} - ${brand.name} (polydev demo)</title><link rel="icon" href="data:,"><style>${new Html(STYLE)}</style></head>
<body style="--accent: ${brand.accent}"><main><p class="for">${brand.name}</p><h1>${heading}</h1>
${content}
<footer>This is polydev's demo identity provider, standing in for ${brand.name}. Nothing you type here leaves this computer.</footer>
</main></body></html>
`.text;
}

export function signInPage({ brand, action, client, userName = '', wrong = null }) {
  const focus = html`autofocus`;
  const known = userName !== '';
  return page(brand, 'Sign in', 'Sign in', html`<p>to continue to <strong>${client}</strong></p>
${wrong ? html`<p class="wrong" role="alert">${wrong}</p>` : ''}
<form method="post" action="${action}">
<label>User name<input name="username" value="${userName}" autocomplete="off" autocapitalize="none" spellcheck="false" required ${known ? '' : focus}></label>
<label>Password<input name="password" type="password" autocomplete="off" required ${known ? focus : ''}></label>
<div class="row"><button type="submit">Sign in</button></div></form>
<p class="hint">The demo account: user name <strong>demo</strong>, password <strong>demo-password</strong></p>`);
}

export function consentPage({ brand, action, client, user, scopes }) {
  return page(brand, 'Allow access', `Allow ${client}?`, html`<p>You are signed in as <strong>${user.fullName}</strong> (${user.email}). ${client} asks for:</p>
<ul>${scopes.length ? scopes.map((scope) => html`<li>${scope}</li>`) : html`<li>your name</li>`}</ul>
<form method="post" action="${action}"><div class="row">
<button type="submit" name="decision" value="allow" autofocus>Allow</button>
<button type="submit" name="decision" value="deny" class="quiet">Deny</button></div></form>`);
}

export function deviceCodePage({ brand, action, wrong = null }) {
  return page(brand, 'Enter code', 'Connect a device', html`<p>Type the code that your terminal shows.</p>
${wrong ? html`<p class="wrong" role="alert">${wrong}</p>` : ''}
<form method="post" action="${action}"><label>Code<input class="code" name="user_code" autocomplete="off" spellcheck="false" required autofocus></label>
<div class="row"><button type="submit">Continue</button></div></form>`);
}

export function pasteCodePage({ brand, code }) {
  return page(brand, 'Copy your code', 'Copy your code', html`<p>Paste this into the program that sent you here.</p>
<output class="shown" id="code" tabindex="0" autofocus>${code}</output>`);
}

export function donePage({ brand, heading, text }) {
  return page(brand, heading, heading, html`<p>${text}</p>`);
}

export function errorPage({ brand, text }) {
  return page(brand, 'Something went wrong', 'Something went wrong', html`<p class="wrong" role="alert">${text}</p>`);
}
