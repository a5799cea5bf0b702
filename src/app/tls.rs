//! Certificates of our own listeners: read and tried before anything listens.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::TlsFiles;

/// Whether a listener can serve with these files: both can be read, and the key is the
/// certificate's. The text says which file is wrong and why.
pub fn check(files: &TlsFiles) -> Result<(), String> {
    let in_file = |path: &std::path::Path, error: &dyn std::fmt::Display| {
        format!("{}: {error}", path.display())
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect)
        .map_err(|e| in_file(&files.cert, &e))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| in_file(&files.key, &e))?;
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map(drop)
        .map_err(|e| {
            format!(
                "{} and {} do not go together: {e}",
                files.cert.display(),
                files.key.display()
            )
        })
}
