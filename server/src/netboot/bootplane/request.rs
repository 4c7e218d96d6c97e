//! Reads request heads (RFC 9112): bytes in, a typed [`Request`] out. Pure.
//!
//! What is not understood is refused with a status, and the connection then ends: a refused head is never skipped, so
//! nothing can be smuggled behind it. A request body is refused too, because no resource here takes one.

use std::net::SocketAddr;

/// The longest request head, in bytes, request line and header fields together.
pub const HEAD_LIMIT: usize = 8 * 1024;

/// The most header fields in a head.
const FIELD_LIMIT: usize = 64;

/// The methods of this plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Send the resource.
    Get,
    /// Send the head of the answer only.
    Head,
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoints {
    /// The client's address.
    pub peer: SocketAddr,
    /// The address that the client reached, so the one to put into its next URL when it sent no `Host`.
    pub local: SocketAddr,
}

/// A request, ready to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// GET or HEAD.
    pub method: Method,
    /// The path, percent-decoded: it begins with `/` and holds no `//`, no `.` or `..` segment, no control character
    /// and no backslash.
    pub path: String,
    /// The query as it was sent, without the `?`; empty if there was none.
    pub query: String,
    /// The client's address, an IPv4-mapped one as IPv4.
    pub peer: SocketAddr,
    /// The address that the client reached, likewise.
    pub local: SocketAddr,
    /// `Host`, or the authority of an absolute target: a name or address, perhaps with a port.
    pub host: Option<String>,
    /// `User-Agent`.
    pub user_agent: Option<String>,
    /// `Range`, unless it was sent twice.
    pub range: Option<String>,
    /// `If-Range`, unless it was sent twice.
    pub if_range: Option<String>,
    /// `If-None-Match`, several fields joined by commas.
    pub if_none_match: Option<String>,
    /// The client lets the connection stand after the answer.
    pub keep_alive: bool,
    /// The client speaks HTTP/1.0.
    pub http_10: bool,
}

/// Why a head is not answered. The connection ends after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 400: the head breaks the grammar, or its meaning is not certain.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// 405: a method that HTTP knows and this plane does not offer.
    #[error("method not allowed: only GET and HEAD are")]
    MethodNotAllowed,
    /// 411: a body of unstated length.
    #[error("a transfer coding in a request is not accepted")]
    TransferCoding,
    /// 413: a body.
    #[error("a request body is not accepted")]
    BodyRefused,
    /// 414: the target does not fit.
    #[error("request target too long: a head holds at most {HEAD_LIMIT} bytes")]
    TargetTooLong,
    /// 431: the header fields do not fit.
    #[error("request head too large: at most {HEAD_LIMIT} bytes and {FIELD_LIMIT} fields")]
    HeadTooLarge,
    /// 501: a method that HTTP does not know.
    #[error("method not implemented: only GET and HEAD are")]
    MethodUnknown,
    /// 505: neither HTTP/1.0 nor HTTP/1.1.
    #[error("HTTP version not supported: only HTTP/1.0 and HTTP/1.1 are")]
    Version,
}

impl Refusal {
    /// The status code that says it.
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::MethodNotAllowed => 405,
            Self::TransferCoding => 411,
            Self::BodyRefused => 413,
            Self::TargetTooLong => 414,
            Self::HeadTooLarge => 431,
            Self::MethodUnknown => 501,
            Self::Version => 505,
        }
    }
}

/// Reads the first request head in `bytes`. Gives the request and the number of bytes that its head took, or `None`
/// while the head is not complete. However the bytes came in pieces, the result for the whole is the same.
///
/// # Errors
/// [`Refusal`] says what to answer before the connection is closed.
pub fn parse(bytes: &[u8], ends: Endpoints) -> Result<Option<(Request, usize)>, Refusal> {
    let window = &bytes[..bytes.len().min(HEAD_LIMIT)];
    let mut fields = [httparse::EMPTY_HEADER; FIELD_LIMIT];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(window) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if window.len() < HEAD_LIMIT => return Ok(None),
        Ok(httparse::Status::Partial) if head.version.is_none() => return Err(Refusal::TargetTooLong),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(Refusal::Version),
        Err(_) => return Err(Refusal::Malformed("not an HTTP request head")),
    };
    let request = interpret(&head, ends)?;
    Ok(Some((request, length)))
}

/// Gives a complete head its meaning.
fn interpret(head: &httparse::Request<'_, '_>, ends: Endpoints) -> Result<Request, Refusal> {
    refuse_body(head.headers)?;
    let method = match head.method.unwrap_or_default() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH" | "CONNECT" | "TRACE" => {
            return Err(Refusal::MethodNotAllowed);
        }
        _ => return Err(Refusal::MethodUnknown),
    };
    let http_10 = head.version == Some(0);
    let (authority, target) = split_target(head.path.unwrap_or_default())?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let hosts = values(head.headers, "host").count();
    if hosts > 1 || (hosts == 0 && !http_10) {
        return Err(Refusal::Malformed("not exactly one Host field"));
    }
    let host = authority.or_else(|| single(head.headers, "host")).filter(|host| !host.is_empty());
    if host.is_some_and(|host| !host.bytes().all(is_host_byte)) {
        return Err(Refusal::Malformed("Host is not a name or address"));
    }
    Ok(Request {
        method,
        path: decode_path(path)?,
        query: query.to_owned(),
        peer: canonical(ends.peer),
        local: canonical(ends.local),
        host: host.map(str::to_owned),
        user_agent: single(head.headers, "user-agent").map(str::to_owned),
        range: single(head.headers, "range").map(str::to_owned),
        if_range: single(head.headers, "if-range").map(str::to_owned),
        if_none_match: joined(head.headers, "if-none-match"),
        keep_alive: keep_alive(head.headers, http_10),
        http_10,
    })
}

/// Refuses any request that announces a body. A `Content-Length` of zero passes, but see [`keep_alive`].
fn refuse_body(fields: &[httparse::Header<'_>]) -> Result<(), Refusal> {
    let mut lengths = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("content-length"));
    let (length, more) = (lengths.next(), lengths.next());
    if fields.iter().any(|field| field.name.eq_ignore_ascii_case("transfer-encoding")) {
        return Err(match length {
            Some(_) => Refusal::Malformed("both Content-Length and Transfer-Encoding"),
            None => Refusal::TransferCoding,
        });
    }
    match (length.map(|field| field.value), more) {
        (None, _) | (Some(b"0"), None) => Ok(()),
        (Some(value), None) if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => Err(Refusal::BodyRefused),
        _ => Err(Refusal::Malformed("Content-Length is not one number")),
    }
}

/// Whether the connection may carry another request: HTTP/1.1 unless it says `close`, HTTP/1.0 only if it says
/// `keep-alive`, and never after a head that spoke of a body, were it an empty one.
fn keep_alive(fields: &[httparse::Header<'_>], http_10: bool) -> bool {
    let says = |option: &str| {
        values(fields, "connection")
            .flat_map(|value| value.split(','))
            .any(|one| one.trim().eq_ignore_ascii_case(option))
    };
    let body = fields.iter().any(|field| field.name.eq_ignore_ascii_case("content-length"));
    !body && !says("close") && (!http_10 || says("keep-alive"))
}

/// Splits a target into authority (absolute form) and path with query.
fn split_target(target: &str) -> Result<(Option<&str>, &str), Refusal> {
    if target.starts_with('/') {
        return Ok((None, target));
    }
    let scheme = target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let Some(rest) = scheme.and_then(|_| target.get(7..)) else {
        return Err(Refusal::Malformed("the target is neither a path nor an http URL"));
    };
    let (authority, path) = match rest.find(['/', '?']) {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    if authority.is_empty() {
        return Err(Refusal::Malformed("the target names no host"));
    }
    Ok((Some(authority), path))
}

/// Decodes and normalises a path. What could name something else elsewhere (an encoded slash, `..`, a backslash, a
/// control character) is refused, never repaired.
fn decode_path(raw: &str) -> Result<String, Refusal> {
    let mut decoded = Vec::with_capacity(raw.len().max(1));
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let digits = (bytes.next().and_then(hex_digit), bytes.next().and_then(hex_digit));
                let (Some(high), Some(low)) = digits else {
                    return Err(Refusal::Malformed("a percent sign without two hexadecimal digits"));
                };
                match high << 4 | low {
                    b'/' => return Err(Refusal::Malformed("an encoded slash in the path")),
                    byte => byte,
                }
            }
            b'#' => return Err(Refusal::Malformed("a fragment in the target")),
            byte => byte,
        };
        if byte == b'\\' || byte.is_ascii_control() {
            return Err(Refusal::Malformed("a backslash or control character in the path"));
        }
        decoded.push(byte);
    }
    let decoded = String::from_utf8(decoded).map_err(|_| Refusal::Malformed("the path is not UTF-8"))?;
    let mut path = String::with_capacity(decoded.len().max(1));
    for segment in decoded.split('/').filter(|segment| !segment.is_empty() && *segment != ".") {
        if segment == ".." {
            return Err(Refusal::Malformed("a parent directory in the path"));
        }
        path.push('/');
        path.push_str(segment);
    }
    if path.is_empty() || decoded.ends_with('/') {
        path.push('/');
    }
    Ok(path)
}

/// The value of a hexadecimal digit.
fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// A byte of a host name, an address, a port or the brackets around an IPv6 address: what may go into a script as it is.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']')
}

/// An IPv4-mapped IPv6 address as the IPv4 address that it means.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => SocketAddr::from((ip, address.port())),
        std::net::IpAddr::V6(_) => address,
    }
}

/// The values of a field that are text, in order.
fn values<'a>(fields: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a str> {
    let named = fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
    named.filter_map(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
}

/// The value of a field that was sent once.
fn single<'a>(fields: &'a [httparse::Header<'a>], name: &'a str) -> Option<&'a str> {
    let mut all = values(fields, name);
    let first = all.next();
    if all.next().is_some() { None } else { first }
}

/// The values of a list field in one.
fn joined(fields: &[httparse::Header<'_>], name: &str) -> Option<String> {
    values(fields, name).map(str::to_owned).reduce(|list, value| list + ", " + &value)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
