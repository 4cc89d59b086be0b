//! TLS of the server: certificate and key from PEM files.

use std::{path::Path, sync::Arc};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::config::TurnTls;

use super::TurnError;

/// Reads both files. They are read once: after a renewal the controller is started again.
pub(super) fn acceptor(config: &TurnTls) -> Result<TlsAcceptor, TurnError> {
    let fault = |path: &Path, what: String| TurnError::Tls { path: path.display().to_string(), what };
    let in_certificate = |what| fault(&config.certificate_file, what);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&config.certificate_file)
        .and_then(Iterator::collect)
        .map_err(|error| in_certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(in_certificate("holds no certificate".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&config.key_file)
        .map_err(|error| fault(&config.key_file, error.to_string()))?;
    let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| in_certificate(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| in_certificate(error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(server)))
}
