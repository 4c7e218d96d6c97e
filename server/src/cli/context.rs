//! Which service, with which token: flags, environment, or what `nkd login` remembered.
#![expect(clippy::disallowed_methods, reason = "reads and writes the user's configuration")]

use std::io::{IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::{CliError, trust};
use crate::fleet::fingerprint::Fingerprint;

/// How to reach the service.
#[derive(Debug, Args)]
pub(super) struct ContextArgs {
    /// Address of the service, https://HOST:8443
    #[arg(long, global = true, env = "NKD_SERVER", value_name = "URL")]
    server: Option<String>,
    /// API token
    #[arg(long, global = true, env = "NKD_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// File with the service's CA certificate
    #[arg(long, global = true, env = "NKD_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct LoginArgs {
    /// File with the token, `-` for standard input; asked for when not given
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Fingerprint of the service's CA, sha256:HEX; without it and without --ca it is shown and asked about
    #[arg(long, value_name = "FINGERPRINT")]
    ca_fingerprint: Option<Fingerprint>,
}

/// The remembered service does not read, or there is none.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Nothing is remembered and nothing was given.
    #[error("no service is known: run `nkd login --server https://HOST:8443`, or set NKD_SERVER, NKD_TOKEN and NKD_CA")]
    None,
    /// A service was given, and nothing to be let in by.
    #[error("there is no token for {0}: run `nkd login --server {0}`, or set NKD_TOKEN, and NKD_CA to its ca.pem")]
    NoToken(String),
    /// A file.
    #[error("cannot {action} {path}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The remembered service is damaged.
    #[error("{path} does not read: run `nkd login` again", path = .0.display())]
    Damaged(PathBuf),
}

#[derive(Default, Serialize, Deserialize)]
struct Remembered {
    server: Option<String>,
    token: Option<String>,
    ca: Option<String>,
}

impl ContextArgs {
    /// A client for the service.
    pub(super) fn client(&self) -> Result<Client, CliError> {
        let remembered = match (&self.server, &self.token, &self.ca) {
            (Some(_), Some(_), Some(_)) => Remembered::default(),
            _ => recall()?,
        };
        let ca = match &self.ca {
            Some(path) => Some(read(path)?),
            None => remembered.ca,
        };
        let server = self.server.clone().or(remembered.server).ok_or(ContextError::None)?;
        let token = self.token.clone().or(remembered.token).ok_or_else(|| ContextError::NoToken(server.clone()))?;
        Ok(Client::new(&server, &token, ca.as_deref())?)
    }
}

/// Settles whether the service is trusted, checks the token against it, then remembers all three.
pub(super) async fn login(args: LoginArgs, context: &ContextArgs) -> Result<(), CliError> {
    let server = context
        .server
        .clone()
        .ok_or_else(|| CliError::Usage("login: --server is missing: https://HOST:8443".into()))?;
    let ca = match (&context.ca, args.ca_fingerprint) {
        (Some(path), wanted) => {
            let pem = read(path)?;
            if let Some(wanted) = wanted {
                trust::check_file(&path.display().to_string(), &pem, wanted)?;
            }
            pem
        }
        (None, wanted) => trust::settle(&server, wanted).await?,
    };
    let token = match (&args.token_file, &context.token) {
        (Some(path), _) if path == Path::new("-") => ask()?,
        (Some(path), _) => read(path)?,
        (None, Some(token)) => token.clone(),
        (None, None) => ask()?,
    };
    let token = token.trim().to_owned();
    let client = Client::new(&server, &token, Some(&ca))?;
    let status: serde_json::Value = client.get("/api/v1/status").await?;
    let path = path();
    let dir = path.parent().unwrap_or(Path::new("."));
    let fail = |action, source| ContextError::File { action, path: path.clone(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| fail("make the folder of", e))?;
    let remembered = Remembered { server: Some(server.clone()), token: Some(token), ca: Some(ca) };
    let text = serde_json::to_string_pretty(&remembered).unwrap_or_default();
    let mut file = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(|e| fail("write", e))?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(|e| fail("write", e))?;
    file.persist(&path).map_err(|e| fail("write", e.error))?;
    println!(
        "{server}: you are {} ({})",
        status["user"].as_str().unwrap_or("?"),
        status["role"].as_str().unwrap_or("?")
    );
    Ok(())
}

/// Removes what `login` remembered. The token stays good at the service.
pub(super) fn logout() -> Result<(), ContextError> {
    let path = path();
    match std::fs::remove_file(&path) {
        Ok(()) => println!("forgot {}; the token stays good: `nkd user token NAME` replaces it", path.display()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => println!("nothing was remembered"),
        Err(source) => return Err(ContextError::File { action: "remove", path, source }),
    }
    Ok(())
}

fn ask() -> Result<String, CliError> {
    if std::io::stdin().is_terminal() {
        eprint!("Token: ");
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|source| ContextError::File {
        action: "read the token from",
        path: "standard input".into(),
        source,
    })?;
    Ok(line)
}

fn read(path: &Path) -> Result<String, CliError> {
    let text = std::fs::read_to_string(path);
    Ok(text.map_err(|source| ContextError::File { action: "read", path: path.into(), source })?)
}

fn recall() -> Result<Remembered, ContextError> {
    let path = path();
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|_| ContextError::Damaged(path)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Remembered::default()),
        Err(source) => Err(ContextError::File { action: "read", path, source }),
    }
}

fn path() -> PathBuf {
    if let Some(path) = std::env::var_os("NKD_CONFIG") {
        return path.into();
    }
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".config")));
    base.unwrap_or_else(|| ".config".into()).join("nkd/config.json")
}
