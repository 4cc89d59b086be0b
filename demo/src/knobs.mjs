// What a test may change while the demo runs: settings of the flows, and rules that make single endpoints misbehave.

const DEFAULTS = Object.freeze({
  /** page = ask the person; allow or deny = answer for the demo user without showing a page. */
  outcome: 'page',
  /** Send the browser back with another state than the one it came with. */
  wrongState: false,
  /** Polls that are answered "pending" before a device code that was approved is honoured. */
  devicePending: 0,
  deviceLifetimeS: 900,
  codeLifetimeS: 300,
  tokenLifetimeS: 3600,
  /** Wrong passwords within a minute before a name has to wait. */
  wrongPasswordLimit: 5,
});

const RULE_FIELDS = {
  host: isText,
  method: isText,
  path: isText,
  grant: isText,
  times: (value) => Number.isInteger(value) && value > 0,
  delayMs: (value) => Number.isInteger(value) && value >= 0 && value <= 3_600_000,
  status: (value) => Number.isInteger(value) && value >= 200 && value <= 599,
  body: (value) => value !== null && typeof value === 'object',
  hang: (value) => value === true,
};

export class BadKnob extends Error {}

export class Knobs {
  settings = { ...DEFAULTS };
  rules = [];

  /** Merges into the settings; an unknown name or a value of another type changes nothing. */
  set(changes) {
    for (const [name, value] of Object.entries(changes)) {
      if (!Object.hasOwn(DEFAULTS, name)) throw new BadKnob(`no such setting: ${name}`);
      if (typeof value !== typeof DEFAULTS[name]) throw new BadKnob(`${name} has to be a ${typeof DEFAULTS[name]}`);
      if (typeof value === 'number' && !(Number.isInteger(value) && value >= 0)) throw new BadKnob(`${name} has to be a whole number`);
    }
    if (changes.outcome && !['page', 'allow', 'deny'].includes(changes.outcome)) throw new BadKnob('outcome is page, allow or deny');
    Object.assign(this.settings, changes);
  }

  /** Adds a rule: where it applies (host, method, path, grant; left out = any), how often, and what happens. */
  add(rule) {
    for (const [name, value] of Object.entries(rule)) {
      if (!RULE_FIELDS[name]?.(value)) throw new BadKnob(`bad rule field: ${name}`);
    }
    if (rule.delayMs === undefined && rule.status === undefined && !rule.hang) throw new BadKnob('a rule needs delayMs, status or hang');
    this.rules.push({ ...rule });
  }

  reset() {
    this.settings = { ...DEFAULTS };
    this.rules = [];
  }

  /** The first rule that fits, counted as used. */
  take({ host, method, path, grant }) {
    const seen = { host, method, path, grant };
    const rule = this.rules.find((candidate) => ['host', 'method', 'path', 'grant'].every((key) => candidate[key] === undefined || candidate[key] === seen[key]));
    if (rule?.times !== undefined) {
      rule.times -= 1;
      if (rule.times === 0) this.rules.splice(this.rules.indexOf(rule), 1);
    }
    return rule ?? null;
  }
}

function isText(value) {
  return typeof value === 'string' && value.length > 0;
}
