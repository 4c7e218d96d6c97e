//! Asks an API server whether it is ready.
#![expect(clippy::disallowed_methods, reason = "connects")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsConnector;

use super::board::Health;
use super::{Pace, Shared};
use crate::client::{CallError, chain, handshake};

/// The longest answer that is read.
const ANSWER: usize = 64 * 1024;

type Sender = SendRequest<Full<Bytes>>;

/// Checks a backend for ever, and tells the board.
pub(super) async fn follow(address: SocketAddr, tls: Arc<ClientConfig>, shared: Arc<Shared>) {
    let mut check = Check { address, tls, kept: None };
    let mut ticks = interval(shared.pace.check);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let result = check.once(shared.pace).await;
        let mut told = None;
        shared.board.send_if_modified(|board| {
            told = board.checked(address, result.is_ok());
            told.is_some()
        });
        match (told, result) {
            (Some(Health::Healthy), _) => tracing::info!("{address} is healthy"),
            (Some(_), Err(error)) => tracing::warn!("{address} is not healthy: {}", chain(&error)),
            _ => {}
        }
    }
}

struct Check {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    /// The connection of the last check: with many nodes, handshakes would be all that an API server does.
    kept: Option<Sender>,
}

impl Check {
    async fn once(&mut self, pace: Pace) -> Result<(), CallError> {
        if let Some(mut sender) = self.kept.take().filter(|sender| !sender.is_closed())
            && let Ok(status) = self.within(pace.connect, self.ask(&mut sender)).await
        {
            self.kept = Some(sender);
            return judge(status);
        }
        // Closed meanwhile, or silent: whether the machine is there shows in a new connection.
        let failed = |source| CallError::Connect { to: self.address.to_string(), source };
        let connect = async { TcpStream::connect(self.address).await.map_err(failed) };
        let stream = self.within(pace.connect, connect).await?;
        let exchange = async {
            let name = ServerName::IpAddress(self.address.ip().into());
            let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.map_err(failed)?;
            let broke = |source| CallError::Transport { to: self.address.to_string(), source };
            let mut sender = handshake(stream).await.map_err(broke)?;
            let status = self.ask(&mut sender).await?;
            Ok((status, sender))
        };
        let (status, sender) = self.within(pace.answer, exchange).await?;
        self.kept = Some(sender);
        judge(status)
    }

    async fn ask(&self, sender: &mut Sender) -> Result<StatusCode, CallError> {
        let to = || self.address.to_string();
        let broke = |source| CallError::Transport { to: to(), source };
        let request = Request::get("/readyz")
            .header(header::HOST, to())
            .header(header::USER_AGENT, concat!("nkd-balancer/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::new()))
            .map_err(|_| CallError::Address(to()))?;
        sender.ready().await.map_err(broke)?;
        let answer = sender.send_request(request).await.map_err(broke)?;
        let status = answer.status();
        // Read to its end, so that the connection can be used again.
        let unread =
            |error: Box<dyn std::error::Error + Send + Sync>| CallError::Answer { to: to(), reason: error.to_string() };
        Limited::new(answer.into_body(), ANSWER).collect().await.map_err(unread)?;
        Ok(status)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        timeout(limit, work).await.map_err(|_| CallError::Timeout(self.address.to_string()))?
    }
}

/// An API server that answers nobody without a certificate is there all the same.
fn judge(status: StatusCode) -> Result<(), CallError> {
    match status {
        StatusCode::OK | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(()),
        status => Err(CallError::Status { status, message: "its API server is not ready".to_owned() }),
    }
}
