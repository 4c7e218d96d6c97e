//! The client of the REST API.

use std::time::Duration;

use futures_util::StreamExt;
use nkd_api::ErrorBody;
use reqwest::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The service could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// What was given as the CA is no certificate.
    #[error("{from}: no CA certificate can be read from it: give the service's ca.pem")]
    Ca {
        /// Where it stands.
        from: String,
        /// Cause; none: there is no certificate in it.
        #[source]
        source: Option<reqwest::Error>,
    },
    /// The client cannot be made.
    #[error("the HTTPS client cannot be made")]
    Build(#[source] reqwest::Error),
    /// The token would go over the network in the clear.
    #[error("`{0}` is no https address: the token is not sent in the clear; write https://HOST:8443")]
    Insecure(String),
    /// No connection.
    #[error("{server} cannot be reached: is the service running, and is its CA the one given?")]
    Connect {
        /// Address.
        server: String,
        /// Cause.
        #[source]
        source: reqwest::Error,
    },
    /// The answer broke off or is not what it should be.
    #[error("the answer of {server} does not read")]
    Answer {
        /// Address.
        server: String,
        /// Cause.
        #[source]
        source: reqwest::Error,
    },
    /// The service said no.
    #[error("{}", refusal(.0))]
    Refused(Box<ErrorBody>),
    /// An import failed.
    #[error("nothing was imported: {0}")]
    Import(String),
    /// The service went away while it told what it does.
    #[error(
        "the service went away in the middle of it, and it may have come to its end or not: `{0}` shows what is there; the same command may be given again"
    )]
    BrokeOff(String),
    /// A release was not published.
    #[error("nothing was published: {0}")]
    Publish(String),
}

impl ClientError {
    /// True when the same request may succeed later: the service is away, restarts, or cannot answer now.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Answer { .. } => true,
            Self::Refused(body) => body.code == "unavailable",
            _ => false,
        }
    }
}

/// Hears every line of an answer that comes as JSON lines while something goes on, until `hear` gives an end. None: it
/// broke off before that.
pub(super) async fn follow<L: DeserializeOwned, T>(response: Response, hear: impl FnMut(L) -> Option<T>) -> Option<T> {
    follow_within(Duration::MAX, response, hear).await
}

/// The same, and nothing may come for so long.
async fn follow_within<L: DeserializeOwned, T>(
    silence: Duration,
    response: Response,
    mut hear: impl FnMut(L) -> Option<T>,
) -> Option<T> {
    let mut stream = response.bytes_stream();
    let mut buffer: Vec<u8> = Vec::new();
    while let Ok(Some(Ok(chunk))) = tokio::time::timeout(silence, stream.next()).await {
        buffer.extend_from_slice(&chunk);
        while let Some(end) = buffer.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            // A line that a newer service says and this client does not know is left out.
            let Ok(line) = serde_json::from_slice(&line) else { continue };
            if let Some(end) = hear(line) {
                return Some(end);
            }
        }
    }
    // An older service that knows no lines of this answers with one object.
    serde_json::from_slice(&buffer).ok().and_then(hear)
}

/// The longest that a watch waits for one answer; the service holds a request for less.
const POLL_LIMIT: Duration = Duration::from_secs(90);
/// Between two tries of a watch whose service is away.
const RETRY: Duration = Duration::from_secs(1);

fn refusal(body: &ErrorBody) -> String {
    let mut text = body.message.clone();
    for problem in &body.problems {
        text.push_str(&format!("\n  {}: {}", problem.path, problem.message));
    }
    if let Some(hint) = &body.hint {
        text.push_str(&format!("\n  {hint}"));
    }
    text
}

/// The CA that the service's certificate comes from.
pub(super) struct Ca {
    /// Where it stands.
    pub(super) from: String,
    pub(super) pem: String,
}

/// A client for one service.
pub(super) struct Client {
    http: reqwest::Client,
    server: String,
    token: String,
}

impl Client {
    pub(super) fn new(server: &str, token: &str, ca: Option<&Ca>) -> Result<Self, ClientError> {
        if !url::Url::parse(server).is_ok_and(|url| url.scheme() == "https") {
            return Err(ClientError::Insecure(server.to_owned()));
        }
        let mut builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).https_only(true);
        let none = |ca: &Ca, source| ClientError::Ca { from: ca.from.clone(), source };
        if let Some(ca) = ca {
            let roots = reqwest::Certificate::from_pem_bundle(ca.pem.as_bytes()).map_err(|e| none(ca, Some(e)))?;
            if roots.is_empty() {
                return Err(none(ca, None));
            }
            builder = builder.tls_certs_only(roots);
        }
        // Certificates are looked at now.
        let http = builder.build().map_err(|error| match ca {
            Some(ca) => none(ca, Some(error)),
            None => ClientError::Build(error),
        })?;
        Ok(Self { http, server: server.trim_end_matches('/').to_owned(), token: token.to_owned() })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(Method::GET, path, None::<&()>).await?;
        self.read(response).await
    }

    /// Asks until there is an answer, and says once that it waits: a service that restarts does not end a watch.
    pub(super) async fn poll<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let mut told = false;
        loop {
            let answer = tokio::time::timeout(POLL_LIMIT, self.get(path)).await;
            match answer {
                Ok(Err(error)) if error.is_transient() => {
                    if !std::mem::replace(&mut told, true) {
                        eprintln!("{error}; trying again");
                    }
                    tokio::time::sleep(RETRY).await;
                }
                Ok(result) => return result,
                // The connection is dead without having said so.
                Err(_) => {}
            }
        }
    }

    /// Hears line by line what is told of something that goes on, until `hear` gives an end. Asks again when the answer ends before
    /// that, or when nothing comes any more: a service that restarts does not end a watch.
    pub(super) async fn watch<L: DeserializeOwned, T>(
        &self,
        path: &str,
        mut hear: impl FnMut(L) -> Option<T>,
    ) -> Result<T, ClientError> {
        let mut told = false;
        loop {
            match tokio::time::timeout(POLL_LIMIT, self.send(Method::GET, path, None::<&()>)).await {
                Ok(Ok(response)) => {
                    told = false;
                    if let Some(end) = follow_within(POLL_LIMIT, response, &mut hear).await {
                        return Ok(end);
                    }
                }
                Ok(Err(error)) if error.is_transient() => {
                    if !std::mem::replace(&mut told, true) {
                        eprintln!("{error}; trying again");
                    }
                }
                Ok(Err(error)) => return Err(error),
                // The connection is dead without having said so.
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    pub(super) async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let response = self.send(method, path, body).await?;
        self.read(response).await
    }

    /// An answer that is text.
    pub(super) async fn text(&self, method: Method, path: &str) -> Result<String, ClientError> {
        let response = self.send(method, path, None::<&()>).await?;
        response.text().await.map_err(|source| ClientError::Answer { server: self.server.clone(), source })
    }

    pub(super) async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(Method::DELETE, path, None::<&()>).await?;
        Ok(())
    }

    /// Sends a request; an error answer becomes an error.
    pub(super) async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Response, ClientError> {
        let mut request = self.http.request(method, format!("{}{path}", self.server)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response =
            request.send().await.map_err(|source| ClientError::Connect { server: self.server.clone(), source })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.json().await.unwrap_or_else(|_| ErrorBody {
            code: "unknown".into(),
            message: format!("the service answered {status}"),
            hint: None,
            problems: Vec::new(),
        });
        Err(ClientError::Refused(Box::new(body)))
    }

    /// The answer to a request that went well.
    pub(super) async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        response.json().await.map_err(|source| ClientError::Answer { server: self.server.clone(), source })
    }
}

/// One path segment, percent-encoded.
pub(super) fn segment(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}
