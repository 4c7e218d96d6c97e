//! Turns an [`Answer`] into what goes over the wire (RFC 9110, RFC 9112). Pure.
//!
//! The length of a body is always known and always said, never chunked, because EDK2's HTTP client asks for it. One
//! range is honoured; a list of ranges gets the whole. A multi-segment body is one resource: ranges go across segments.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::request::{Method, Refusal, Request};

/// What a 503 without a `Retry-After` of its own says, in seconds.
const RETRY_AFTER: u64 = 5;

/// Fields that the engine writes itself; an [`Answer`] cannot set them.
const OWN_FIELDS: [&str; 10] = [
    "accept-ranges",
    "cache-control",
    "connection",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "etag",
    "keep-alive",
    "transfer-encoding",
];

/// What a [`Handler`](super::Handler) answers. The engine adds the rest: ranges, 304, HEAD, lengths, dates.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status, 200 to 599; anything else becomes 500. Ranges and conditions apply to 200 only.
    pub status: u16,
    /// `Content-Type`; empty for none.
    pub content_type: Cow<'static, str>,
    /// Further fields. A name that is no token, a name of the engine's own fields, and a value that is empty or has
    /// control characters or non-ASCII ones are left out.
    pub headers: Vec<(&'static str, String)>,
    /// The entity tag without its quotes, such as a digest: printable ASCII, no quote. It is a strong tag, so it must
    /// change with any byte of the body. Another is left out.
    pub etag: Option<String>,
    /// What a cache may do.
    pub cache: Cache,
    /// The whole body, whatever range was asked for and by whatever method.
    pub body: Body,
}

/// What `Cache-Control` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cache {
    /// The resource at this URL never changes: its name holds its digest.
    Immutable,
    /// Ask again each time.
    NoCache,
    /// Nothing.
    #[default]
    None,
}

/// A body: segments, one after the other.
#[derive(Debug, Clone, Default)]
pub struct Body {
    segments: Vec<Segment>,
}

/// A piece of a body.
#[derive(Debug, Clone)]
pub enum Segment {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A piece of a file, sent from the page cache. The file must not shrink: what is promised is cut off then.
    File {
        /// The open file. Its own position is neither used nor moved.
        file: Arc<File>,
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        len: u64,
    },
    /// So many zero bytes.
    Zeros(u64),
}

impl Segment {
    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } | Self::Zeros(len) => *len,
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part from `start` on, at most `count` bytes of it.
    fn part(&self, start: u64, count: u64) -> Self {
        let start = start.min(self.len());
        let count = count.min(self.len() - start);
        match self {
            // Both fit a usize, because the length of the bytes is one.
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(start as usize..(start + count) as usize)),
            Self::File { file, offset, .. } => {
                Self::File { file: Arc::clone(file), offset: offset.saturating_add(start), len: count }
            }
            Self::Zeros(_) => Self::Zeros(count),
        }
    }
}

impl Body {
    /// A body of these segments, in this order.
    #[must_use]
    pub fn new(segments: Vec<Segment>) -> Self {
        Self { segments }
    }

    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.len()))
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its segments that hold something.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| !segment.is_empty())
    }

    /// The part from `start` on, at most `count` bytes of it.
    #[must_use]
    pub fn part(&self, start: u64, count: u64) -> Self {
        let (mut skip, mut left) = (start, count);
        let mut segments = Vec::new();
        for segment in self.segments() {
            let part = segment.part(skip, left);
            skip -= skip.min(segment.len());
            left -= part.len();
            if !part.is_empty() {
                segments.push(part);
            }
        }
        Self { segments }
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self { segments: vec![Segment::Bytes(bytes.into())] }
    }
}

impl Answer {
    /// An answer with this status, type and body, and nothing else.
    pub fn new(status: u16, content_type: impl Into<Cow<'static, str>>, body: impl Into<Body>) -> Self {
        let (headers, etag, cache) = (Vec::new(), None, Cache::None);
        Self { status, content_type: content_type.into(), headers, etag, cache, body: body.into() }
    }

    /// A plain text with this status.
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", text.into())
    }

    /// The first `len` bytes of a file, with status 200.
    pub fn file(content_type: impl Into<Cow<'static, str>>, file: Arc<File>, len: u64) -> Self {
        Self::new(200, content_type, Body::new(vec![Segment::File { file, offset: 0, len }]))
    }

    /// 503: not ready, come back after this time (at least a second).
    pub fn unavailable(reason: impl Into<String>, retry_after: Duration) -> Self {
        let mut answer = Self::text(503, reason);
        answer.headers.push(("Retry-After", retry_after.as_secs().max(1).to_string()));
        answer.cache = Cache::NoCache;
        answer
    }

    /// The same with an entity tag.
    #[must_use]
    pub fn with_etag(mut self, tag: impl Into<String>) -> Self {
        self.etag = Some(tag.into());
        self
    }

    /// The same with a cache rule.
    #[must_use]
    pub fn with_cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }
}

/// What goes over the wire for one request.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Status line and fields, the empty line too.
    pub head: Vec<u8>,
    /// What follows; empty for HEAD and 304.
    pub body: Body,
    /// The connection ends after this response.
    pub close: bool,
}

/// Decides the response to `request`. `close` ends the connection even if the client would keep it.
#[must_use]
pub fn respond(request: &Request, answer: Answer, close: bool, now: SystemTime) -> Response {
    let answer = match answer.status {
        200..=599 => answer,
        _ => Answer::text(500, "The service made an answer without a valid status.\n"),
    };
    let close = close || !request.keep_alive;
    let whole = answer.body.len();
    let tag = answer.etag.as_deref().filter(|tag| is_opaque_tag(tag));
    let (status, first, count) = match (answer.status, select(request, tag, whole)) {
        (200, Selection::NotModified) => (304, 0, 0),
        (200, Selection::Part { first, count }) => (206, first, count),
        (200, Selection::Unsatisfiable) => (416, 0, 0),
        (status @ (204 | 304), _) => (status, 0, 0),
        (status, _) => (status, 0, whole),
    };

    let mut head = Head::new(status, now);
    if !matches!(status, 204 | 304) {
        head.field("Content-Length", &count.to_string());
    }
    match status {
        206 => head.field("Content-Range", &format!("bytes {first}-{}/{whole}", first + count - 1)),
        416 if answer.status == 200 => head.field("Content-Range", &format!("bytes */{whole}")),
        _ => {}
    }
    if matches!(status, 200 | 206) {
        head.field("Accept-Ranges", "bytes");
    }
    if !matches!(status, 204 | 304 | 416) {
        head.field("Content-Type", &answer.content_type);
    }
    if let Some(tag) = tag {
        head.field("ETag", &format!("\"{tag}\""));
    }
    match answer.cache {
        Cache::Immutable => head.field("Cache-Control", "public, max-age=31536000, immutable"),
        Cache::NoCache => head.field("Cache-Control", "no-cache"),
        Cache::None => {}
    }
    for (name, value) in &answer.headers {
        if !OWN_FIELDS.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            head.field(name, value);
        }
    }
    if status == 503 && !answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("retry-after")) {
        head.field("Retry-After", &RETRY_AFTER.to_string());
    }
    head.connection(close, request.http_10);

    let body = match request.method {
        Method::Head => Body::default(),
        Method::Get => answer.body.part(first, count),
    };
    Response { status, head: head.finish(), body, close }
}

/// The response to a head that is refused.
#[must_use]
pub fn refuse(refusal: Refusal, now: SystemTime) -> Response {
    let mut head = Head::new(refusal.status(), now);
    if refusal.status() == 405 {
        head.field("Allow", "GET, HEAD");
    }
    head.plain(format!("{refusal}\n"))
}

/// The response to a client that did not finish its head in time.
#[must_use]
pub fn timed_out(now: SystemTime) -> Response {
    Head::new(408, now).plain("The request head did not come in time.\n".to_owned())
}

/// Which part of a 200 answer the request selects.
#[derive(Debug, PartialEq, Eq)]
enum Selection {
    Whole,
    Part { first: u64, count: u64 },
    Unsatisfiable,
    NotModified,
}

/// Applies `If-None-Match`, then `Range` with `If-Range` (RFC 9110, 13.2.2).
fn select(request: &Request, tag: Option<&str>, whole: u64) -> Selection {
    if let (Some(list), Some(tag)) = (&request.if_none_match, tag)
        && names_tag(list, tag)
    {
        return Selection::NotModified;
    }
    let current = request.if_range.as_deref().is_none_or(|validator| {
        tag.is_some_and(|tag| validator.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) == Some(tag))
    });
    match (&request.range, request.method) {
        (Some(range), Method::Get) if current => select_range(range, whole),
        _ => Selection::Whole,
    }
}

/// Applies a `Range` field to `whole` bytes. Another unit, a list, and what breaks the grammar select the whole.
fn select_range(range: &str, whole: u64) -> Selection {
    let spec = range.split_once('=').filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"));
    let Some((first, last)) = spec.and_then(|(_, spec)| spec.trim().split_once('-')) else {
        return Selection::Whole;
    };
    match (position(first), position(last), first.is_empty(), last.is_empty()) {
        (Some(first), _, _, true) if first < whole => Selection::Part { first, count: whole - first },
        (Some(first), Some(last), ..) if last < first => Selection::Whole,
        (Some(first), Some(last), ..) if first < whole => {
            Selection::Part { first, count: last.min(whole - 1) - first + 1 }
        }
        (_, Some(suffix), true, _) if suffix > 0 && whole > 0 => {
            let count = suffix.min(whole);
            Selection::Part { first: whole - count, count }
        }
        (Some(_), Some(_), ..) | (Some(_), None, _, true) | (None, Some(_), true, _) => Selection::Unsatisfiable,
        _ => Selection::Whole,
    }
}

/// A byte position. More than fits is the largest there is.
fn position(digits: &str) -> Option<u64> {
    let number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    number.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Whether a list of entity tags names this one (weak comparison), or all by `*`.
fn names_tag(list: &str, tag: &str) -> bool {
    if list.trim() == "*" {
        return true;
    }
    // Between each pair of quotes stands a tag; what is outside (commas, blanks, W/) does not matter here.
    list.split('"').skip(1).step_by(2).any(|one| one == tag)
}

/// Whether it may stand between the quotes of an entity tag.
fn is_opaque_tag(tag: &str) -> bool {
    !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
}

/// A response head in the making.
struct Head {
    status: u16,
    text: String,
}

impl Head {
    fn new(status: u16, now: SystemTime) -> Self {
        let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let mut head = Self { status, text: format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or("Unnamed")) };
        head.field("Date", &httpdate::fmt_http_date(now));
        head
    }

    /// Writes a field, unless it would be empty (EDK2 stumbles over those) or break the head.
    fn field(&mut self, name: &str, value: &str) {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let text = |byte: u8| byte.is_ascii_graphic() || byte == b' ' || byte == b'\t';
        let (name_holds, value) = (!name.is_empty() && name.bytes().all(token), value.trim());
        if name_holds && !value.is_empty() && value.bytes().all(text) {
            // Writing into a String does not fail.
            let _ = write!(self.text, "{name}: {value}\r\n");
        }
    }

    fn connection(&mut self, close: bool, http_10: bool) {
        if close {
            self.field("Connection", "close");
        } else if http_10 {
            self.field("Connection", "keep-alive");
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.text.push_str("\r\n");
        self.text.into_bytes()
    }

    /// A closing response with a text.
    fn plain(mut self, text: String) -> Response {
        self.field("Content-Length", &text.len().to_string());
        self.field("Content-Type", "text/plain; charset=utf-8");
        self.connection(true, false);
        Response { status: self.status, head: self.finish(), body: text.into(), close: true }
    }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
