//! Asks a registry what a tag stands for: the part of the OCI distribution protocol that this takes.
//!
//! The crate for the whole protocol, oci-client, makes a client with the system's certificate authorities beside the one that
//! it is given, and panics where there are none, as in the operator's image.

#![expect(clippy::disallowed_methods, reason = "reads files that are mounted")]

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header};
use reqwest::{Certificate, Client, RequestBuilder, Response};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use url::Url;

use crate::credentials::{Challenge, CredentialsError, User, challenge, user};
use crate::image::{HUB, Tagged, is_digest};

/// How long a look-up may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// The longest manifest that registries have to take.
const MANIFEST: usize = 4 << 20;
/// Of an answer that is no manifest.
const ANSWER: usize = 64 << 10;
/// Of what is said of one.
const SAID: usize = 300;
/// Where docker's own registry answers.
const HUB_ADDRESS: &str = "registry-1.docker.io";
const DIGEST: &str = "docker-content-digest";
/// Lists of images come first: each node finds its own in them.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// Where users and authorities are, as `deploy/housekeeper.yaml` has it.
const MOUNTED: &str = "housekeeper-registries";

/// What is told to registries. Both are read again for each look-up, and may be missing.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// Certificate authorities beside the web's: a file in PEM, or a folder of them.
    pub cas: Option<PathBuf>,
    /// docker's `config.json` with users and passwords.
    pub credentials: Option<PathBuf>,
}

/// Nobody knows what the tag stands for.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// A file that is there cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// A file of authorities holds something else.
    #[error("{} holds no certificates in PEM: put right the ConfigMap {MOUNTED}", .0.display())]
    Authorities(PathBuf),
    /// The file of users cannot be used.
    #[error("{} cannot be used: put right the Secret {MOUNTED}", .0.display())]
    Credentials(PathBuf, #[source] CredentialsError),
    /// There is no client with these authorities.
    #[error("no TLS with the authorities of the ConfigMap {MOUNTED}")]
    Client(#[source] reqwest::Error),
    /// The name makes no address.
    #[error("`{0}` is no address")]
    Address(String, #[source] url::ParseError),
    /// The registry, or who gives tokens for it, cannot be reached.
    #[error("{address} cannot be reached{hint}")]
    Unreachable {
        /// Who.
        address: String,
        /// What may help.
        hint: &'static str,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// It wants to know who asks.
    #[error(
        "{address} does not tell everybody ({said}): name a user for it in the Secret {MOUNTED}; some registries say this of \
         images that they do not have, too"
    )]
    Stranger {
        /// Who.
        address: String,
        /// In its words.
        said: String,
    },
    /// It knows who asks, and does not tell.
    #[error("{address} does not tell the user that the Secret {MOUNTED} has for it ({said})")]
    Denied {
        /// Who.
        address: String,
        /// In its words.
        said: String,
    },
    /// There is no such image.
    #[error("{address} has no such tag ({said})")]
    Missing {
        /// Who.
        address: String,
        /// In its words.
        said: String,
    },
    /// Any other answer.
    #[error("{address} says {said}")]
    Refused {
        /// Who.
        address: String,
        /// In its words.
        said: String,
    },
    /// An answer without sense.
    #[error("{address} answers with {what}")]
    Answer {
        /// Who.
        address: String,
        /// What it is.
        what: &'static str,
    },
    /// No answer came.
    #[error("{0} has not answered within {limit} s", limit = LIMIT.as_secs())]
    Late(String),
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct Refusals {
    errors: Vec<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    #[serde(default)]
    message: String,
}

impl Registries {
    /// The digest of the image that the tag stands for now.
    ///
    /// # Errors
    /// The registry says no, or nothing; or what is told to registries cannot be used.
    pub async fn digest(&self, image: &Tagged) -> Result<String, LookupError> {
        let late = || LookupError::Late(image.registry.clone());
        tokio::time::timeout(LIMIT, self.ask(image)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn ask(&self, image: &Tagged) -> Result<String, LookupError> {
        let client = Client::builder()
            .tls_certs_only(self.authorities().await?)
            .https_only(true)
            .connect_timeout(CONNECT)
            .user_agent(concat!("housekeeper/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(LookupError::Client)?;
        let user = self.user(image).await?;
        let host = if image.registry == HUB { HUB_ADDRESS } else { &image.registry };
        let address = format!("https://{host}/v2/{}/manifests/{}", image.repository, image.tag);
        let url = Url::parse(&address).map_err(|source| LookupError::Address(address, source))?;
        Asking { client, image, host, url, user, token: None }.digest().await
    }

    async fn authorities(&self) -> Result<Vec<Certificate>, LookupError> {
        let web = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
        let mut all =
            web.map(|one| Certificate::from_der(one)).collect::<Result<Vec<_>, _>>().map_err(LookupError::Client)?;
        for path in self.files().await? {
            let Some(bytes) = read(&path).await? else { continue };
            let more = Certificate::from_pem_bundle(&bytes).ok().filter(|more| !more.is_empty());
            all.extend(more.ok_or(LookupError::Authorities(path))?);
        }
        Ok(all)
    }

    /// The files of authorities. What Kubernetes mounts has names with two dots of its own beside them.
    async fn files(&self) -> Result<Vec<PathBuf>, LookupError> {
        let Some(path) = &self.cas else { return Ok(Vec::new()) };
        let failed = |source| LookupError::Read(path.clone(), source);
        let mut folder = match tokio::fs::read_dir(path).await {
            Ok(folder) => folder,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(vec![path.clone()]),
            Err(error) => return Err(failed(error)),
        };
        let mut files = Vec::new();
        while let Some(entry) = folder.next_entry().await.map_err(failed)? {
            if !entry.file_name().to_string_lossy().starts_with("..") {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    }

    async fn user(&self, image: &Tagged) -> Result<Option<User>, LookupError> {
        let Some(path) = &self.credentials else { return Ok(None) };
        let Some(bytes) = read(path).await? else { return Ok(None) };
        user(&bytes, image).map_err(|source| LookupError::Credentials(path.clone(), source))
    }
}

/// A file, if it is there.
async fn read(path: &Path) -> Result<Option<Vec<u8>>, LookupError> {
    match tokio::fs::read(path).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(|source| LookupError::Read(path.to_owned(), source)),
    }
}

/// One look-up.
struct Asking<'a> {
    client: Client,
    image: &'a Tagged,
    host: &'a str,
    url: Url,
    user: Option<User>,
    /// What the registry wanted to see, and was given.
    token: Option<User>,
}

impl Asking<'_> {
    async fn digest(mut self) -> Result<String, LookupError> {
        let mut answer = self.send(Method::HEAD).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let header = |value: &http::HeaderValue| value.to_str().map(str::to_owned).ok();
            let wanted: Vec<String> =
                answer.headers().get_all(header::WWW_AUTHENTICATE).iter().filter_map(header).collect();
            self.token = match challenge(wanted.iter().map(String::as_str)) {
                Some(Challenge::Bearer { realm, service, scope }) => Some(self.token(&realm, service, scope).await?),
                Some(Challenge::Basic) => self.user.clone(),
                None => None,
            };
            if self.token.is_some() {
                answer = self.send(Method::HEAD).await?;
            }
        }
        if answer.status().is_success()
            && let Some(digest) = told(answer.headers()).filter(|digest| is_digest(digest))
        {
            return Ok(digest);
        }
        // Not every registry tells it without the manifest, and none says why not.
        let answer = self.send(Method::GET).await?;
        if !answer.status().is_success() {
            return Err(self.refusal(self.host, answer).await);
        }
        let headers = answer.headers().clone();
        let nonsense = |what| LookupError::Answer { address: self.host.to_owned(), what };
        let body = body(answer, MANIFEST).await.map_err(|source| unreachable(self.host, source))?;
        let body = body.ok_or_else(|| nonsense("more than any manifest is long"))?;
        let read = serde_json::from_slice::<Manifest>(&body).ok().filter(|read| read.schema_version == 2);
        read.ok_or_else(|| nonsense("something else than the manifest of an image"))?;
        let digest = Sha256::digest(&body).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        match told(&headers).filter(|told| is_digest(told) && *told != digest) {
            Some(_) => Err(nonsense("a manifest of another digest than it says")),
            None => Ok(digest),
        }
    }

    async fn send(&self, method: Method) -> Result<Response, LookupError> {
        let request = self.client.request(method, self.url.clone()).header(header::ACCEPT, ACCEPT);
        shown(request, self.token.as_ref()).send().await.map_err(|source| unreachable(self.host, source))
    }

    /// A token that lets us read the repository, from who gives them for this registry.
    async fn token(&self, realm: &str, service: Option<String>, scope: Option<String>) -> Result<User, LookupError> {
        if let Some(token @ User::Token(_)) = &self.user {
            return Ok(token.clone());
        }
        let mut url = Url::parse(realm).map_err(|source| LookupError::Address(realm.to_owned(), source))?;
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.image.repository));
        let service = service.map(|service| ("service", service));
        url.query_pairs_mut().extend_pairs(service.into_iter().chain([("scope", scope)]));
        let address = url.host_str().unwrap_or_default().to_owned();
        let answer = shown(self.client.get(url), self.user.as_ref()).send().await;
        let answer = answer.map_err(|source| unreachable(&address, source))?;
        if !answer.status().is_success() {
            return Err(self.refusal(&address, answer).await);
        }
        let body = body(answer, ANSWER).await.map_err(|source| unreachable(&address, source))?;
        let read = body.and_then(|body| serde_json::from_slice::<Token>(&body).ok());
        let token = read.and_then(|read| read.token.or(read.access_token)).filter(|token| !token.is_empty());
        token.map(User::Token).ok_or(LookupError::Answer { address, what: "no token" })
    }

    async fn refusal(&self, address: &str, answer: Response) -> LookupError {
        let status = answer.status();
        // What it says beside its number is worth having, and no reason to fail otherwise.
        let text = body(answer, ANSWER).await.ok().flatten().unwrap_or_default();
        let (address, said) = (address.to_owned(), said(status, &text));
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.user.is_none() => {
                LookupError::Stranger { address, said }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => LookupError::Denied { address, said },
            StatusCode::NOT_FOUND => LookupError::Missing { address, said },
            _ => LookupError::Refused { address, said },
        }
    }
}

fn shown(request: RequestBuilder, user: Option<&User>) -> RequestBuilder {
    match user {
        Some(User::Password { name, password }) => request.basic_auth(name, Some(password)),
        Some(User::Token(token)) => request.bearer_auth(token),
        None => request,
    }
}

fn told(headers: &HeaderMap) -> Option<String> {
    headers.get(DIGEST)?.to_str().ok().map(|text| text.trim().to_owned())
}

fn unreachable(address: &str, source: reqwest::Error) -> LookupError {
    let causes = crate::cluster::chain(&source);
    let hint = match causes.contains("invalid peer certificate: UnknownIssuer") {
        true => " (put the authority of its certificate into the ConfigMap housekeeper-registries)",
        false => "",
    };
    LookupError::Unreachable { address: address.to_owned(), hint, source }
}

/// The number of an answer, and what it says, in one short line.
fn said(status: StatusCode, body: &[u8]) -> String {
    let words = match serde_json::from_slice::<Refusals>(body) {
        Ok(read) => {
            let each = read.errors.into_iter().map(|one| format!("{} {}", one.code, one.message).trim().to_owned());
            each.collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let line = words.chars().map(plain).collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().take(SAID).collect();
    if short.is_empty() { status.to_string() } else { format!("{status}: {short}") }
}

/// All of an answer; nothing: it is longer.
async fn body(mut answer: Response, limit: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut all = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if all.len() + chunk.len() > limit {
            return Ok(None);
        }
        all.extend_from_slice(&chunk);
    }
    Ok(Some(all))
}
