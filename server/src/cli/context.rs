//! Which service, with which token: flags, environment, or what `nkd login` remembered.
#![expect(clippy::disallowed_methods, reason = "reads and writes the user's configuration")]

use std::io::{IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{Ca, Client};
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
    /// What was given is no token.
    #[error("{from}: one line is expected, with the token alone, as `nkd user create` has shown it; {found}")]
    Token {
        /// Where it stands.
        from: String,
        /// What is there.
        found: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be written or removed.
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

impl ContextError {
    /// Whether something that was given or remembered is wrong or missing, rather than that something has failed.
    pub(super) fn is_input(&self) -> bool {
        !matches!(self, Self::File { .. })
    }
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
            Some(path) => Some(Ca { from: path.display().to_string(), pem: read(path)? }),
            None => remembered.ca.map(|pem| Ca { from: path().display().to_string(), pem }),
        };
        let server = self.server.clone().or(remembered.server).ok_or(ContextError::None)?;
        let token = match (&self.token, remembered.token) {
            (Some(token), _) => one_token("--token or NKD_TOKEN", token)?,
            (None, token) => token.ok_or_else(|| ContextError::NoToken(server.clone()))?,
        };
        Ok(Client::new(&server, &token, ca.as_ref())?)
    }
}

/// Settles whether the service is trusted, checks the token against it, then remembers all three.
pub(super) async fn login(args: LoginArgs, context: &ContextArgs) -> Result<(), CliError> {
    let server = context
        .server
        .clone()
        .ok_or_else(|| CliError::Words("login: --server is missing: https://HOST:8443".into()))?;
    // What is wrong with a file is said before anybody is asked anything.
    let given = match (&args.token_file, &context.token) {
        (Some(path), _) if path == Path::new("-") => None,
        (Some(path), _) => Some(one_token(&path.display().to_string(), &read(path)?)?),
        (None, Some(token)) => Some(one_token("--token or NKD_TOKEN", token)?),
        (None, None) => None,
    };
    let ca = match (&context.ca, args.ca_fingerprint) {
        (Some(path), wanted) => {
            let ca = Ca { from: path.display().to_string(), pem: read(path)? };
            if let Some(wanted) = wanted {
                trust::check_file(&ca.from, &ca.pem, wanted)?;
            }
            ca
        }
        (None, wanted) => Ca { pem: trust::settle(&server, wanted).await?, from: server.clone() },
    };
    let token = match given {
        Some(token) => token,
        None => one_token("what was typed", &ask()?)?,
    };
    let client = Client::new(&server, &token, Some(&ca))?;
    let status: serde_json::Value = client.get("/api/v1/status").await?;
    let path = path();
    let dir = path.parent().unwrap_or(Path::new("."));
    let fail = |action, source| ContextError::File { action, path: path.clone(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| fail("make the folder of", e))?;
    let remembered = Remembered { server: Some(server.clone()), token: Some(token), ca: Some(ca.pem) };
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

/// The token of a text that holds it and nothing else.
fn one_token(from: &str, text: &str) -> Result<String, ContextError> {
    let token = text.trim();
    let found = match token.lines().count() {
        0 => "it is empty".to_owned(),
        1 if token.bytes().all(|byte| byte.is_ascii_graphic()) => return Ok(token.to_owned()),
        1 => "there are blanks in it, or characters that no token has".to_owned(),
        lines => format!("it has {lines} lines"),
    };
    Err(ContextError::Token { from: from.to_owned(), found })
}

fn ask() -> Result<String, CliError> {
    if std::io::stdin().is_terminal() {
        eprint!("Token: ");
    }
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|source| ContextError::Read { path: "standard input".into(), source })?;
    Ok(line)
}

fn read(path: &Path) -> Result<String, CliError> {
    let text = std::fs::read_to_string(path);
    Ok(text.map_err(|source| ContextError::Read { path: path.into(), source })?)
}

fn recall() -> Result<Remembered, ContextError> {
    let path = path();
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|_| ContextError::Damaged(path)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Remembered::default()),
        Err(source) => Err(ContextError::Read { path, source }),
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
