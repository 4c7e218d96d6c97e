//! Small fake builds, a place for them, and an HTTP server that misbehaves on demand.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use nkd_api::Sha256Digest;
use nkd_api::image::{ArtifactKind, Image};
use nkd_server::content::blob::hash_reader;
use nkd_server::content::image::error::ImportError;
use nkd_server::content::image::progress::Progress;
use nkd_server::content::image::source::Source;
use nkd_server::content::image::source::download::Retry;
use nkd_server::content::image::{ImageStore, ImportRequest};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use url::Url;

pub const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

/// A store and a folder for sources, both of this test alone.
pub struct Place {
    pub store: ImageStore,
    pub source: PathBuf,
    pub state: PathBuf,
    _dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (source, state) = (dir.path().join("source"), dir.path().join("state"));
        fs::create_dir(&source).unwrap();
        Self { store: ImageStore::open(&state).unwrap(), source, state, _dir: dir }
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.source.join(name), bytes).unwrap();
    }

    pub async fn import(&self, request: ImportRequest) -> Result<Arc<Image>, ImportError> {
        self.store.import(request, Arc::new(Recorder::default()), NOW).await
    }

    pub async fn import_folder(&self) -> Result<Arc<Image>, ImportError> {
        self.import(self.folder()).await
    }

    pub fn folder(&self) -> ImportRequest {
        request(Source::Folder(self.source.clone()))
    }

    /// Every file of the state folder except locks.
    pub fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.state.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.file_name().unwrap() != ".lock" {
                    found.push(path.strip_prefix(&self.state).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }

    pub fn read_blob(&self, image: &Image, kind: ArtifactKind) -> Vec<u8> {
        let (mut file, len) = self.store.open_blob(&image.artifact(kind).unwrap().sha256).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, len);
        bytes
    }
}

/// A request that gives up soon.
pub fn request(source: Source) -> ImportRequest {
    let mut request = ImportRequest::new(source);
    request.retry = Retry {
        attempts: 3,
        first_wait: std::time::Duration::from_millis(1),
        silence: std::time::Duration::from_secs(20),
    };
    request
}

/// Bytes that are like no other's.
pub fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect()
}

pub fn sha(bytes: &[u8]) -> Sha256Digest {
    hash_reader(&mut &bytes[..], |_| {}).unwrap().0
}

/// File name and bytes of every part of a build.
pub fn parts(prefix: &str, version: &str, arch: &str, seed: u8) -> Vec<(String, Vec<u8>)> {
    vec![
        (format!("{prefix}-{version}-live-kernel-{arch}"), bytes(seed, 3000)),
        (format!("{prefix}-{version}-live-initramfs.{arch}.img"), bytes(seed + 1, 5000)),
        (format!("{prefix}-{version}-live-rootfs.{arch}.img"), bytes(seed + 2, 300_000)),
        (format!("{prefix}-{version}-metal.{arch}.raw.gz"), gzip(&bytes(seed + 3, 40_000))),
    ]
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// A stream document of [`parts`], with locations made by `locate`.
pub fn stream(parts: &[(String, Vec<u8>)], version: &str, arch: &str, locate: impl Fn(&str) -> String) -> Value {
    let entry = |i: usize| json!({"location": locate(&parts[i].0), "sha256": sha(&parts[i].1)});
    json!({
        "stream": "stable",
        "architectures": {arch: {"artifacts": {
            "metal": {
                "release": version,
                "formats": {
                    "pxe": {"kernel": entry(0), "initramfs": entry(1), "rootfs": entry(2)},
                    "raw.gz": {"disk": entry(3)},
                },
            },
            "qemu": {"release": version, "formats": {}},
        }}},
    })
}

/// Remembers what was reported.
#[derive(Default)]
pub struct Recorder {
    stages: Mutex<Vec<(String, Option<u64>, u64)>>,
    warnings: Mutex<Vec<String>>,
}

impl Recorder {
    pub fn stages(&self) -> Vec<(String, Option<u64>, u64)> {
        self.stages.lock().unwrap().clone()
    }

    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap().clone()
    }
}

impl Progress for Recorder {
    fn stage(&self, name: &str, total: Option<u64>) {
        self.stages.lock().unwrap().push((name.to_owned(), total, 0));
    }

    fn advance(&self, bytes: u64) {
        self.stages.lock().unwrap().last_mut().expect("a stage comes first").2 += bytes;
    }

    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }
}

/// What the server does to one request of a path.
#[derive(Clone)]
pub enum Fault {
    /// Sends this many bytes of the body, then closes.
    Cut(usize),
    /// Sends this many bytes of the body, then nothing more.
    Hold(usize),
    /// Answers with this status and nothing else.
    Status(u16),
    /// Answers 302 to this address.
    Redirect(String),
}

#[derive(Default)]
struct Site {
    files: BTreeMap<String, Vec<u8>>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    log: Vec<Asked>,
    no_range: bool,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
}

/// An HTTP server on loopback: Range, If-Range with strong ETags, and faults.
#[derive(Clone)]
pub struct Server {
    site: Arc<Mutex<Site>>,
    pub url: Url,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    pub async fn start_with(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = Url::parse(&format!("{scheme}://localhost:{port}/")).unwrap();
        let site: Arc<Mutex<Site>> = Arc::default();
        let served = Arc::clone(&site);
        // Ends with the runtime of its test.
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (site, tls) = (Arc::clone(&served), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &site).await;
                            }
                        }
                        None => serve(stream, &site).await,
                    }
                });
            }
        });
        Self { site, url }
    }

    fn site(&self) -> MutexGuard<'_, Site> {
        self.site.lock().unwrap()
    }

    pub fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.site().files.insert(format!("/{path}"), bytes.into());
    }

    /// The next requests of a path fail this way, one fault each.
    pub fn fail(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        self.site().faults.entry(format!("/{path}")).or_default().extend(faults);
    }

    pub fn no_range(&self) {
        self.site().no_range = true;
    }

    pub fn asked(&self, path: &str) -> Vec<Asked> {
        self.site().log.iter().filter(|a| a.path == format!("/{path}")).cloned().collect()
    }

    pub fn join(&self, path: &str) -> Url {
        self.url.join(path).unwrap()
    }
}

/// The TLS provider, which the service's main installs.
pub fn provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

async fn serve(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, site: &Mutex<Site>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) if head.len() < 16_384 => head.push(byte),
            _ => return,
        }
    }
    let (answer, body, cut) = answer(&head, &mut site.lock().unwrap());
    let _ = stream.write_all(answer.as_bytes()).await;
    let (len, hold) = cut.unwrap_or((body.len(), false));
    let _ = stream.write_all(&body[..len.min(body.len())]).await;
    if hold {
        let _ = stream.flush().await;
        std::future::pending::<()>().await;
    }
    let _ = stream.shutdown().await;
}

fn answer(head: &[u8], site: &mut Site) -> (String, Vec<u8>, Option<(usize, bool)>) {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).unwrap();
    let path = request.path.unwrap().to_owned();
    let header = |name: &str| {
        let found = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
        found.map(|h| String::from_utf8_lossy(h.value).into_owned())
    };
    let asked = Asked { path: path.clone(), range: header("range"), if_range: header("if-range") };
    site.log.push(asked.clone());
    let fault = site.faults.get_mut(&path).and_then(VecDeque::pop_front);
    let simple = |status: u16, more: &str| {
        (format!("HTTP/1.1 {status} x\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n"), Vec::new(), None)
    };
    let cut = match fault {
        Some(Fault::Status(status)) => return simple(status, ""),
        Some(Fault::Redirect(to)) => return simple(302, &format!("Location: {to}\r\n")),
        Some(Fault::Cut(len)) => Some((len, false)),
        Some(Fault::Hold(len)) => Some((len, true)),
        None => None,
    };
    let Some(file) = site.files.get(&path) else { return simple(404, "") };
    let etag = format!("\"{}\"", sha(file));
    let start = asked.range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let valid = asked.if_range.is_none_or(|tag| tag == etag) && !site.no_range;
    let total = file.len();
    let (status, range, body) = match start.filter(|_| valid) {
        Some(start) if start >= total => return simple(416, &format!("Content-Range: bytes */{total}\r\n")),
        Some(start) => (206, format!("Content-Range: bytes {start}-{}/{total}\r\n", total - 1), file[start..].to_vec()),
        None => (200, String::new(), file.clone()),
    };
    let len = body.len();
    let head =
        format!("HTTP/1.1 {status} x\r\n{range}ETag: {etag}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
    (head, body, cut)
}

/// Runs a program of this host.
pub fn run(program: &str, args: &[&str], dir: &Path) {
    let output = std::process::Command::new(program).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
