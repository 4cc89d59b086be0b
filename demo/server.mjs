#!/usr/bin/env node
// polydev's demo identity provider and test network. Listens on 127.0.0.1 only; for demos and tests, never for real users.
import { parseArgs } from 'node:util';
import { resolve } from 'node:path';
import { startDemo } from './src/demo.mjs';

const USAGE = 'usage: node demo/server.mjs --state DIR [--https-port N] [--http-port N]   (0 = any free port)';

function readArguments() {
  const { values } = parseArgs({
    options: { state: { type: 'string' }, 'https-port': { type: 'string', default: '0' }, 'http-port': { type: 'string', default: '0' } },
  });
  if (!values.state) throw new Error('--state is missing');
  const port = (name) => {
    const number = Number(values[name]);
    if (!/^\d+$/.test(values[name]) || number > 65535) throw new Error(`--${name} has to be a port number`);
    return number;
  };
  return { stateDir: resolve(values.state), httpsPort: port('https-port'), httpPort: port('http-port') };
}

let options;
try {
  options = readArguments();
} catch (error) {
  console.error(`demo: ${error.message}\n${USAGE}`);
  process.exit(2);
}

try {
  const demo = await startDemo(options);
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.once(signal, () => {
      demo.close();
      process.exit(0);
    });
  }
  console.log(JSON.stringify({ ready: true, httpsPort: demo.httpsPort, httpPort: demo.httpPort }));
} catch (error) {
  console.error(`demo: cannot start: ${error.message}`);
  process.exit(1);
}
