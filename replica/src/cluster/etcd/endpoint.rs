//! Where etcd's members are, and with which certificates they are spoken to.

use std::{fs, path::Path, sync::Arc};

use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::EtcdTls;

/// Why there is no way to etcd.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No endpoint, or one that is none.
    #[error("'{0}' is no endpoint of etcd: write http://HOST:PORT or https://HOST:PORT")]
    Endpoint(String),
    /// The name cannot be a part of keys.
    #[error("'{0}' cannot be a cluster's name: letters, digits, '.', '_' and '-' can be in one")]
    Cluster(String),
    /// A file with a certificate or key cannot be used.
    #[error("{path}: {reason}")]
    Certificate {
        /// Which.
        path: String,
        /// Why not.
        reason: String,
    },
}

/// One of etcd's members.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// As it was given, for errors.
    pub(super) url: String,
    /// A name or an address, one of IPv6 without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
    scheme: Scheme,
    authority: Authority,
}

impl Endpoint {
    /// Reads `http://HOST:PORT` or `https://HOST:PORT`.
    pub(super) fn parse(url: &str) -> Result<Self, ConnectError> {
        let refuse = || ConnectError::Endpoint(url.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(refuse)?;
        let scheme = match scheme {
            "http" => Scheme::HTTP,
            "https" => Scheme::HTTPS,
            _ => return Err(refuse()),
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) = rest.rsplit_once(':').ok_or_else(refuse)?;
        let port = port.parse().map_err(|_| refuse())?;
        if host.is_empty() || host.contains(['/', '@']) {
            return Err(refuse());
        }
        let authority = rest.parse().map_err(|_| refuse())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        Ok(Self { url: url.trim_end_matches('/').to_owned(), host, port, scheme, authority })
    }

    /// Whether it is spoken to through TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Where one of its methods is: `/SERVICE/METHOD`.
    pub(super) fn method(&self, path: &'static str) -> Uri {
        let uri = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
        uri.path_and_query(PathAndQuery::from_static(path)).build().expect("all three are there")
    }
}

/// What TLS to etcd is made with.
pub(super) fn tls(files: &EtcdTls) -> Result<Arc<ClientConfig>, ConnectError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("ring has what every version needs");
    // without an authority of its own nobody is trusted: etcd's certificates are signed by whoever runs it
    let mut trusted = RootCertStore::empty();
    if let Some(path) = &files.authority {
        for certificate in certificates(path)? {
            trusted.add(certificate).map_err(|error| unusable(path, &error))?;
        }
    }
    let config = config.with_root_certificates(trusted);
    let mut config = match &files.certificate {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            config.with_client_auth_cert(chain, private_key(key)?).map_err(|error| unusable(certificate, &error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let pem = read_file(path)?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| unusable(path, &error))?;
    match certificates.is_empty() {
        true => Err(unusable(path, &"there is no certificate in it")),
        false => Ok(certificates),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ConnectError> {
    PrivateKeyDer::from_pem_slice(&read_file(path)?).map_err(|error| unusable(path, &error))
}

fn read_file(path: &Path) -> Result<Vec<u8>, ConnectError> {
    fs::read(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::Certificate { path: path.display().to_string(), reason: reason.to_string() }
}
