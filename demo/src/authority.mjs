// The demo network's certificate authority: made on the spot, good for a month, and by name constraints unable to
// vouch for anything but the demo hosts. Its key never leaves the state directory.
import 'reflect-metadata';
import { randomBytes, webcrypto } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AsnConvert } from '@peculiar/asn1-schema';
import { GeneralName, GeneralSubtree, GeneralSubtrees, NameConstraints, id_ce_nameConstraints } from '@peculiar/asn1-x509';
import * as x509 from '@peculiar/x509';

const DAY_MS = 24 * 60 * 60 * 1000;
const CA_DAYS = 30;
const LEAF_DAYS = 20;
/** Programs whose clock was restored from a snapshot may be a little behind. */
const BACKDATE_MS = DAY_MS;
const KEY = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };

x509.cryptoProvider.set(webcrypto);

/**
 * Loads the authority of `stateDir`, or makes a new one if there is none, it is about to end, or its hosts changed.
 * Returns `{ pem, der, leafPem, leafKeyPem }`; a fresh server certificate is signed at every start.
 */
export async function openAuthority(stateDir, hosts, now = new Date()) {
  const certFile = join(stateDir, 'ca.pem');
  const keyFile = join(stateDir, 'ca-key.pem');
  const ca = (await loadAuthority(certFile, keyFile, hosts, now)) ?? (await makeAuthority(hosts, now));
  writeFileSync(keyFile, ca.keyPem, { mode: 0o600 });
  writeFileSync(certFile, ca.cert.toString('pem') + '\n', { mode: 0o644 });
  const leaf = await makeLeaf(ca, hosts, now);
  return {
    pem: ca.cert.toString('pem') + '\n',
    der: Buffer.from(ca.cert.rawData),
    leafPem: leaf.cert.toString('pem') + '\n' + ca.cert.toString('pem') + '\n',
    leafKeyPem: leaf.keyPem,
  };
}

async function loadAuthority(certFile, keyFile, hosts, now) {
  if (!existsSync(certFile) || !existsSync(keyFile)) return null;
  const cert = new x509.X509Certificate(readFileSync(certFile, 'utf8'));
  const longEnough = cert.notAfter.getTime() - now.getTime() > LEAF_DAYS * DAY_MS;
  const constraints = cert.getExtension(id_ce_nameConstraints);
  const sameHosts = constraints && Buffer.from(constraints.value).equals(Buffer.from(nameConstraints(hosts).value));
  if (!longEnough || !sameHosts) return null;
  const keyPem = readFileSync(keyFile, 'utf8');
  const privateKey = await webcrypto.subtle.importKey('pkcs8', x509.PemConverter.decodeFirst(keyPem), KEY, true, ['sign']);
  return { cert, privateKey, keyPem };
}

async function makeAuthority(hosts, now) {
  const keys = await webcrypto.subtle.generateKey(KEY, true, ['sign', 'verify']);
  const cert = await x509.X509CertificateGenerator.createSelfSigned({
    name: 'CN=polydev demo test network CA, O=polydev demo (not for production)',
    serialNumber: serial(),
    notBefore: new Date(now.getTime() - BACKDATE_MS),
    notAfter: new Date(now.getTime() + CA_DAYS * DAY_MS),
    keys,
    signingAlgorithm: KEY,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      nameConstraints(hosts),
    ],
  });
  return { cert, privateKey: keys.privateKey, keyPem: await privatePem(keys.privateKey) };
}

async function makeLeaf(ca, hosts, now) {
  const keys = await webcrypto.subtle.generateKey(KEY, true, ['sign', 'verify']);
  const end = Math.min(now.getTime() + LEAF_DAYS * DAY_MS, ca.cert.notAfter.getTime());
  const cert = await x509.X509CertificateGenerator.create({
    subject: 'O=polydev demo test network',
    issuer: ca.cert.subject,
    serialNumber: serial(),
    notBefore: new Date(now.getTime() - BACKDATE_MS),
    notAfter: new Date(end),
    publicKey: keys.publicKey,
    signingKey: ca.privateKey,
    signingAlgorithm: KEY,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
      new x509.SubjectAlternativeNameExtension(hosts.map((value) => ({ type: 'dns', value }))),
      await x509.AuthorityKeyIdentifierExtension.create(ca.cert.publicKey),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { cert, keyPem: await privatePem(keys.privateKey) };
}

// RFC 5280 4.2.1.10: only the listed names, and no IP address at all.
function nameConstraints(hosts) {
  const subtree = (name) => new GeneralSubtree({ base: new GeneralName(name) });
  const value = new NameConstraints({
    permittedSubtrees: new GeneralSubtrees(hosts.map((dNSName) => subtree({ dNSName }))),
    excludedSubtrees: new GeneralSubtrees([
      subtree({ iPAddress: '0.0.0.0/0' }),
      subtree({ iPAddress: '::/0' }),
    ]),
  });
  return new x509.Extension(id_ce_nameConstraints, true, AsnConvert.serialize(value));
}

function serial() {
  const bytes = randomBytes(16);
  bytes[0] &= 0x7f;
  return bytes.toString('hex');
}

async function privatePem(key) {
  const der = await webcrypto.subtle.exportKey('pkcs8', key);
  return x509.PemConverter.encode(der, 'PRIVATE KEY') + '\n';
}
