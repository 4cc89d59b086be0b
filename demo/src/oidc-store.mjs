// Storage behind oidc-provider (its documented adapter interface), small enough to be searched from end to end.

export class OidcStore {
  #entries = new Map();

  constructor({ changed, now = Date.now }) {
    this.changed = changed;
    this.now = now;
  }

  /** An adapter for one kind of thing: Session, Grant, AccessToken... */
  adapter(kind) {
    const key = (id) => `${kind}:${id}`;
    const search = (fits) => this.#live().find(([name, { payload }]) => name.startsWith(`${kind}:`) && fits(payload))?.[1].payload;
    return {
      upsert: async (id, payload, expiresInS) => {
        const endsAt = expiresInS ? this.now() + expiresInS * 1000 : null;
        this.#entries.set(key(id), { payload, endsAt });
        this.changed();
      },
      find: async (id) => this.#live().find(([name]) => name === key(id))?.[1].payload,
      findByUid: async (uid) => search((payload) => payload.uid === uid),
      findByUserCode: async (userCode) => search((payload) => payload.userCode === userCode),
      consume: async (id) => {
        const entry = this.#entries.get(key(id));
        if (entry) entry.payload.consumed = Math.floor(this.now() / 1000);
        this.changed();
      },
      destroy: async (id) => {
        this.#entries.delete(key(id));
        this.changed();
      },
      revokeByGrantId: async (grantId) => {
        for (const [name, { payload }] of this.#entries) if (payload.grantId === grantId) this.#entries.delete(name);
        this.changed();
      },
    };
  }

  #live() {
    for (const [name, { endsAt }] of this.#entries) if (endsAt !== null && this.now() >= endsAt) this.#entries.delete(name);
    return [...this.#entries];
  }

  toJSON() {
    return [...this.#entries];
  }

  restore(entries) {
    this.#entries = new Map(entries);
  }
}
