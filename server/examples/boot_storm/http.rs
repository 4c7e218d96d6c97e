//! One HTTP/1.1 exchange on one connection, plain or over TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use url::Url;

/// A request; without a body it is a GET.
pub struct Request<'a> {
    pub url: &'a Url,
    /// Bearer token.
    pub token: Option<&'a str>,
    /// JSON to post.
    pub body: Option<Vec<u8>>,
}

/// Fetches from `own` address; gives the body of a 200.
pub async fn fetch(own: Ipv4Addr, tls: Option<Arc<rustls::ClientConfig>>, request: Request<'_>) -> Result<Vec<u8>> {
    let url = request.url;
    let host: Ipv4Addr = url.host_str().context("no host")?.parse().context("a host that is no address")?;
    let port = url.port_or_known_default().context("no port")?;
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((own, 0)))?;
    let stream = socket.connect(SocketAddr::from((host, port))).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    match (url.scheme(), tls) {
        ("http", None) => exchange(stream, &request).await,
        ("https", Some(config)) => {
            let name = std::net::IpAddr::from(host).into();
            let connector = tokio_rustls::TlsConnector::from(config);
            let stream: tokio_rustls::client::TlsStream<TcpStream> =
                connector.connect(name, stream).await.context("TLS")?;
            exchange(stream, &request).await
        }
        _ => bail!("{url} is not as it should be"),
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &Request<'_>) -> Result<Vec<u8>> {
    let url = request.url;
    let method = if request.body.is_some() { "POST" } else { "GET" };
    let mut message = format!("{method} {}", &url[url::Position::BeforePath..url::Position::AfterQuery]);
    message.push_str(&format!(" HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", url.authority()));
    if let Some(token) = request.token {
        message.push_str(&format!("Authorization: Bearer {token}\r\n"));
    }
    let body = request.body.as_deref().unwrap_or_default();
    if request.body.is_some() {
        message.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    message.push_str("\r\n");
    stream.write_all(&[message.as_bytes(), body].concat()).await?;
    stream.flush().await?;
    let mut received = Vec::with_capacity(8192);
    loop {
        if let Some((status, head, length)) = head(&received)? {
            let whole = head + length;
            if received.len() >= whole {
                let body = received[head..whole].to_vec();
                ensure!(status == 200, "status {status}: {}", String::from_utf8_lossy(&body).trim_end());
                return Ok(body);
            }
            received.reserve(whole - received.len());
        }
        ensure!(stream.read_buf(&mut received).await? > 0, "the service closed after {} bytes", received.len());
    }
}

/// Status, length of the head, length of the body, once the head is there.
fn head(received: &[u8]) -> Result<Option<(u16, usize, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(end) = head.parse(received)? else { return Ok(None) };
    let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = std::str::from_utf8(length.context("no Content-Length")?.value)?.parse()?;
    Ok(Some((head.code.context("no status")?, end, length)))
}
