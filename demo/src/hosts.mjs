// The names this test network answers for. The certificate authority may sign for these and no others.

/** Issuer of the `demo` provider: a name in the reserved `.test` zone, so it can never be a real one. */
export const DEMO_HOST = 'id.polydev.test';
export const DEMO_ISSUER = `https://${DEMO_HOST}`;

export const HOSTS = [
  'auth.openai.com',
  'chatgpt.com',
  'claude.com',
  'claude.ai',
  'platform.claude.com',
  'api.anthropic.com',
  'accounts.google.com',
  'oauth2.googleapis.com',
  'cloudcode-pa.googleapis.com',
  'www.googleapis.com',
  'developers.google.com',
  'codeassist.google.com',
  'dash.cloudflare.com',
  'api.cloudflare.com',
  'welcome.developers.workers.dev',
  'github.com',
  'api.github.com',
  DEMO_HOST,
];
