//! HTTP/1.1, plain or over TLS, one exchange after the other on a connection.

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

/// Fetches from `own` address, over a connection of its own; gives the body of a 200.
pub async fn fetch(own: Ipv4Addr, tls: Option<Arc<rustls::ClientConfig>>, request: Request<'_>) -> Result<Vec<u8>> {
    let url = request.url;
    match (url.scheme(), tls) {
        ("http", None) => exchange(&mut connect(own, url).await?, &request, "close").await,
        ("https", Some(config)) => exchange(&mut connect_tls(own, url, config).await?, &request, "close").await,
        _ => bail!("{url} is not as it should be"),
    }
}

/// Asks over a connection that stays; gives the body of a 200.
pub async fn ask(line: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &Request<'_>) -> Result<Vec<u8>> {
    exchange(line, request, "keep-alive").await
}

/// A connection from `own` address to the host of this URL.
async fn connect(own: Ipv4Addr, url: &Url) -> Result<TcpStream> {
    let port = url.port_or_known_default().context("no port")?;
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((own, 0)))?;
    let stream = socket.connect(SocketAddr::from((host(url)?, port))).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The same with TLS on it.
pub async fn connect_tls(
    own: Ipv4Addr,
    url: &Url,
    config: Arc<rustls::ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = std::net::IpAddr::from(host(url)?).into();
    let connector = tokio_rustls::TlsConnector::from(config);
    connector.connect(name, connect(own, url).await?).await.context("TLS")
}

fn host(url: &Url) -> Result<Ipv4Addr> {
    url.host_str().context("no host")?.parse().context("a host that is no address")
}

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &Request<'_>,
    connection: &str,
) -> Result<Vec<u8>> {
    let url = request.url;
    let method = if request.body.is_some() { "POST" } else { "GET" };
    let mut message = format!("{method} {}", &url[url::Position::BeforePath..url::Position::AfterQuery]);
    message.push_str(&format!(" HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n", url.authority()));
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
