//! Changes of users' policies: what is sealed and stored, and the proxy port that comes with it.

use polydev_core::ids::UserId;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Egress, PortError, Upstream, target::Target};
use crate::{
    store::{
        StoreError,
        egress::{EgressRecord, UserPolicy},
    },
    vault::{SecretName, VaultError, random_token},
};

/// What is to be decided about a user's traffic.
#[derive(Debug)]
pub struct Change {
    /// The policy.
    pub policy: UserPolicy,
    /// The upstream proxy; the one that is stored stays when none is given.
    pub upstream: Option<Upstream>,
    /// Makes a new token for the proxy port; the old one opens it no more.
    pub new_token: bool,
}

/// What was decided.
#[derive(Debug)]
pub struct Changed {
    /// As it is stored.
    pub record: EgressRecord,
    /// The proxy port's token, if it is new: it cannot be had again.
    pub token: Option<Zeroizing<String>>,
    /// Something else than the token was decided about: connections that exist are to be ended.
    pub policy_decided: bool,
}

/// Why a policy was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// No upstream proxy to go through.
    #[error("the policy `upstream` needs an upstream proxy")]
    UpstreamMissing,
    /// An upstream proxy that nothing would go through.
    #[error("only the policy `upstream` takes an upstream proxy")]
    UpstreamUnwanted,
    /// A proxy port of this controller.
    #[error("the upstream proxy is a proxy port of polydev itself")]
    UpstreamIsOwn,
    /// Somebody else changed it.
    #[error("the policy was changed meanwhile")]
    Overtaken,
    /// No proxy port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl Egress {
    /// Decides about a user's traffic and opens the user's proxy port. Connections at that port end; those of the user's VMs
    /// are the caller's to end.
    pub async fn change(&self, user: &UserId, change: Change) -> Result<Changed, ChangeError> {
        let gate = &self.gate;
        let stored = gate.store.egress(user).await?;
        let policy_decided = !change.new_token
            || change.upstream.is_some()
            || stored.as_ref().is_none_or(|stored| stored.policy != change.policy);
        let upstream = match (change.policy, change.upstream) {
            (UserPolicy::Upstream, Some(upstream)) => Some(upstream),
            (UserPolicy::Upstream, None) => {
                let kept = stored.as_ref().and_then(|stored| self.upstream_of(stored).transpose());
                // One that cannot be opened any more has to be given again.
                Some(kept.and_then(Result::ok).ok_or(ChangeError::UpstreamMissing)?)
            }
            (UserPolicy::Deny | UserPolicy::Direct, Some(_)) => return Err(ChangeError::UpstreamUnwanted),
            (UserPolicy::Deny | UserPolicy::Direct, None) => None,
        };
        if upstream.as_ref().is_some_and(|upstream| self.is_own(upstream)) {
            return Err(ChangeError::UpstreamIsOwn);
        }
        let now = gate.clock.now_db();
        self.ports.open(user).await?;
        let version = stored.as_ref().map_or(1, |stored| stored.version + 1);
        let (token, proxy_token_hash) = match &stored {
            Some(stored) if !change.new_token => (None, stored.proxy_token_hash),
            _ => {
                let token = random_token()?;
                let hash = Sha256::digest(token.as_bytes()).into();
                (Some(token), hash)
            }
        };
        let name = SecretName::upstream(user, version);
        let seal = |upstream: &Upstream| gate.vault.seal_secret(&name, upstream.to_secret().as_bytes());
        let record = EgressRecord {
            user: user.clone(),
            policy: change.policy,
            version,
            upstream: upstream.as_ref().map(seal).transpose()?,
            proxy_token_hash,
            updated_unix_ms: now,
        };
        if !gate.store.put_egress(&record).await? {
            return Err(ChangeError::Overtaken);
        }
        if policy_decided {
            self.ports.end_connections(user);
        }
        gate.store
            .audit(now, "egress.changed", Some(user.as_str()), None, Some(change.policy.word()))
            .await?;
        tracing::info!(%user, policy = change.policy.word(), "egress policy changed");
        Ok(Changed { record, token, policy_decided })
    }

    /// Takes a user's policy back: everybody's holds again, and the proxy port is closed but stays the user's.
    /// `false` when there was none.
    pub async fn reset(&self, user: &UserId) -> Result<bool, StoreError> {
        let gone = self.gate.store.delete_egress(user).await?;
        self.ports.close(user).await;
        if gone {
            let now = self.gate.clock.now_db();
            self.gate.store.audit(now, "egress.reset", Some(user.as_str()), None, None).await?;
            tracing::info!(%user, "egress policy taken back");
        }
        Ok(gone)
    }

    /// Closes the proxy port of a user that is being removed.
    pub async fn close_port(&self, user: &UserId) {
        self.ports.close(user).await;
    }

    /// Whether an upstream is a proxy port of this controller: traffic would go round in circles.
    fn is_own(&self, upstream: &Upstream) -> bool {
        let listen = self.gate.settings.proxy_listen;
        let here = match &upstream.host {
            Target::Address(address) => {
                *address == listen
                    || address.is_unspecified()
                    || (address.is_loopback() && (listen.is_loopback() || listen.is_unspecified()))
            }
            Target::Name(name) => name == "localhost" || name.ends_with(".localhost"),
        };
        here && self.gate.settings.proxy_ports.contains(upstream.port)
    }
}
