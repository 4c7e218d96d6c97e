//! What the agent keeps: `agent.json`, its key, its certificate, and where it was.
//!
//! ```text
//! /etc/nkd/agent.json                 from Ignition; its token is blanked once it is used
//! /var/lib/nkd-agent/                 mode 0700
//!   enrolling.json                    key and digest of the token, before the token is sent
//!   identity.json                     key, certificate and CA in one file, so that they always belong together
//!   client.pem                        certificate and key out of it, for the container runtime, which reads it at each pull
//!   journal.json                      how the last installation ended
//! ```
//! Every file is of mode 0600 and replaced in one step. The key is made here and never leaves.

use std::path::{Path, PathBuf};

use nkd_api::agent::{AgentConfig, EnrollResponse, Purpose};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::files::{self, FileError};
use crate::state::{CertificateDates, Outcome};

/// The agent's own certificate.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Machine that it names.
    pub machine: Uuid,
    /// What it is good for.
    pub purpose: Purpose,
    /// Generation that it belongs to.
    pub generation: u32,
    /// SHA-256 of the token that bought it, hex.
    pub token_sha256: String,
    /// Private key, PEM.
    pub key: String,
    /// Certificate and intermediates, PEM.
    pub certificate: String,
    /// CA bundle to trust, PEM.
    pub ca: String,
    /// Renew from here on.
    #[serde(with = "time::serde::rfc3339")]
    pub renew_after: OffsetDateTime,
    /// End of its life.
    #[serde(with = "time::serde::rfc3339")]
    pub expires: OffsetDateTime,
}

impl Identity {
    /// Its dates.
    #[must_use]
    pub fn dates(&self) -> CertificateDates {
        CertificateDates { renew_after: self.renew_after, expires: self.expires }
    }

    /// True when `config` still asks for this certificate: the same machine and purpose, and no token, or the one that
    /// bought it.
    #[must_use]
    pub fn serves(&self, config: &AgentConfig) -> bool {
        self.machine == config.machine
            && self.purpose == config.purpose
            && self.generation == config.generation
            && (config.token.is_empty() || token_sha256(&config.token) == self.token_sha256)
    }

    /// This identity with a new key and certificate.
    #[must_use]
    pub fn renewed(&self, key: String, answer: EnrollResponse) -> Self {
        Self {
            key,
            certificate: answer.certificate,
            ca: answer.ca,
            renew_after: answer.renew_after,
            expires: answer.expires,
            ..self.clone()
        }
    }
}

/// An enrollment that was begun: written before the token is sent.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrolling {
    /// SHA-256 of the token, hex.
    pub token_sha256: String,
    /// Private key, PEM. The same key serves every attempt with the same token.
    pub key: String,
    /// True once the token was sent.
    pub sent: bool,
}

/// A key or certificate request could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a key or a certificate request")]
pub struct KeyError(#[from] rcgen::Error);

/// A new ECDSA P-256 key, PEM.
///
/// # Errors
/// When the system has no randomness.
pub fn new_key() -> Result<String, KeyError> {
    Ok(rcgen::KeyPair::generate()?.serialize_pem())
}

/// A certificate request (PKCS #10, PEM) for a key. It holds no name: the service sets every name.
///
/// # Errors
/// When the key is damaged.
pub fn request(key: &str) -> Result<String, KeyError> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params.serialize_request(&rcgen::KeyPair::from_pem(key)?)?.pem()?)
}

/// SHA-256 of a token, hex.
#[must_use]
pub fn token_sha256(token: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files of the agent.
#[derive(Debug, Clone)]
pub struct Store {
    config: PathBuf,
    state: PathBuf,
}

impl Store {
    /// The files at these places; the directory is made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(config: &Path, state: &Path) -> Result<Self, FileError> {
        files::make_private_dir(state)?;
        Ok(Self { config: config.to_owned(), state: state.to_owned() })
    }

    /// `agent.json`. None: it is not there.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    pub fn config(&self) -> Result<Option<AgentConfig>, FileError> {
        files::read_json(&self.config)
    }

    /// Blanks the token in `agent.json`, keeping the rest.
    ///
    /// # Errors
    /// When the file cannot be replaced.
    pub fn blank_token(&self) -> Result<(), FileError> {
        match self.config()? {
            Some(config) if !config.token.is_empty() => {
                files::write_json(&self.config, &AgentConfig { token: String::new(), ..config })
            }
            _ => Ok(()),
        }
    }

    /// The certificate. None: not enrolled.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    pub fn identity(&self) -> Result<Option<Identity>, FileError> {
        files::read_json(&self.state.join("identity.json"))
    }

    /// Keeps a certificate.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_identity(&self, identity: &Identity) -> Result<(), FileError> {
        files::write_json(&self.state.join("identity.json"), identity)?;
        self.show_identity(identity);
        Ok(())
    }

    /// Writes the certificate that is kept where the container runtime looks for it. The agent itself does without that file:
    /// where it cannot be written, that is said, and the next start writes it.
    pub fn show_identity(&self, identity: &Identity) {
        let pem = format!("{}\n{}", identity.certificate.trim_end(), identity.key);
        if let Err(error) = files::write_private(&self.state.join("client.pem"), pem.as_bytes()) {
            tracing::warn!(error = %crate::client::chain(&error), "containers from a closed registry cannot be pulled");
        }
    }

    /// The enrollment that was begun, if any.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    pub fn enrolling(&self) -> Result<Option<Enrolling>, FileError> {
        files::read_json(&self.state.join("enrolling.json"))
    }

    /// Keeps the enrollment that is begun; None: it is over.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_enrolling(&self, enrolling: Option<&Enrolling>) -> Result<(), FileError> {
        let path = self.state.join("enrolling.json");
        match enrolling {
            Some(enrolling) => files::write_json(&path, enrolling),
            None => files::remove(&path),
        }
    }

    /// How the last installation ended.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    pub fn outcome(&self) -> Result<Option<Outcome>, FileError> {
        files::read_json(&self.state.join("journal.json"))
    }

    /// Keeps how an installation ended.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_outcome(&self, outcome: &Outcome) -> Result<(), FileError> {
        files::write_json(&self.state.join("journal.json"), outcome)
    }
}
