//! Brings every stored record under the newest master key, while the controller goes on working.

use polydev_core::ids::UserId;

use crate::store::{Store, credentials::CredentialMeta};

use super::{RecordName, SecretName, Vault};

/// The only secrets besides credentials.
const UPSTREAM: &str = "egress upstream";

impl RecordName {
    /// The name under which a stored version was sealed.
    pub fn of(meta: &CredentialMeta) -> Self {
        Self { user: meta.user.clone(), provider: meta.provider.clone(), id: meta.id, version: meta.version }
    }
}

impl SecretName {
    /// The name under which a version of a user's upstream proxy is sealed.
    pub fn upstream(user: &UserId, version: u32) -> Self {
        Self { purpose: UPSTREAM, user: user.clone(), version }
    }
}

/// Seals anew what an older master key sealed. Returns how many records were changed and how many cannot be opened.
/// A record that is replaced meanwhile is left alone: its new version has the new key already.
pub async fn reseal_all(store: &Store, vault: &Vault) -> Result<(usize, usize), crate::store::StoreError> {
    let (mut changed, mut unreadable) = (0, 0);
    for credential in store.credentials(None).await? {
        let name = RecordName::of(&credential.meta);
        match vault.rewrap(&name, &credential.sealed) {
            Ok(Some(sealed)) => {
                changed += usize::from(store.reseal_credential(name.id, name.version, &sealed).await?);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(credential.id = %name.id, %error, "credential cannot be opened; sign in again");
                unreadable += 1;
            }
        }
    }
    for record in store.egress_policies().await? {
        let Some(sealed) = &record.upstream else { continue };
        match vault.rewrap_secret(&SecretName::upstream(&record.user, record.version), sealed) {
            Ok(Some(sealed)) => {
                changed += usize::from(store.reseal_upstream(&record.user, record.version, &sealed).await?);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(user = %record.user, %error, "upstream proxy cannot be opened; set it again");
                unreadable += 1;
            }
        }
    }
    Ok((changed, unreadable))
}
