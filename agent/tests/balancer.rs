//! The balancer over real sockets: API servers with certificates that die, hang, or are somebody else's.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of sockets and files")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nkd_agent::balance::{Balancer, Options, Pace};
use nkd_api::agent::BalancerConfig;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(60);
const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    client: Arc<ClientConfig>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key), client: Arc::new(client) }
    }

    /// A certificate for 127.0.0.1 and this name.
    fn server(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![LOCAL.to_string(), name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Well,
    /// Answers, and says that it is not ready.
    NotReady,
    /// Takes connections and bytes, and never says anything: a machine whose power was cut.
    Hanging,
}

/// An API server: `/readyz`, and its name for everything else.
struct Backend {
    name: String,
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Backend {
    async fn start(authority: &Authority, name: &str) -> Self {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let (address, tls, mode) =
            (listener.local_addr().unwrap(), authority.server(name), watch::channel(Mode::Well).0);
        let task = tokio::spawn(serve(listener, tls, mode.clone(), name.to_owned()));
        Self { name: name.to_owned(), address, mode, task }
    }

    /// The process ends: its connections are closed, new ones are refused.
    fn die(&self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, mode: watch::Sender<Mode>, name: String) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, mode, name) = (tls.clone(), mode.clone(), name.clone());
        connections.spawn(async move {
            awake(&mode).await;
            let Ok(stream) = tls.accept(stream).await else { return };
            let answer = |request: Request<Incoming>| {
                let (name, mode) = (name.clone(), mode.clone());
                async move {
                    let status = match (request.uri().path(), awake(&mode).await) {
                        ("/readyz", Mode::NotReady) => StatusCode::INTERNAL_SERVER_ERROR,
                        _ => StatusCode::OK,
                    };
                    let answer = Response::builder().status(status).body(Full::new(Bytes::from(name)));
                    Ok::<_, std::convert::Infallible>(answer.unwrap())
                }
            };
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}

/// The mode, once it is not to hang.
async fn awake(mode: &watch::Sender<Mode>) -> Mode {
    *mode.subscribe().wait_for(|mode| *mode != Mode::Hanging).await.unwrap()
}

/// A connection through the balancer, as kubelet's: one for a long time, verified from end to end.
struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    async fn open(through: SocketAddr, authority: &Authority) -> Option<Self> {
        let stream = TcpStream::connect(through).await.ok()?;
        let tls = TlsConnector::from(Arc::clone(&authority.client));
        let stream = tls.connect(ServerName::IpAddress(LOCAL.into()), stream).await.ok()?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        Some(Self(sender))
    }

    /// Who answers; none when the connection was closed.
    async fn ask(&mut self) -> Option<String> {
        self.0.ready().await.ok()?;
        let answer = self.0.send_request(Request::get("/name").body(Full::default()).unwrap()).await.ok()?;
        Some(String::from_utf8(answer.into_body().collect().await.ok()?.to_bytes().to_vec()).unwrap())
    }
}

struct Bench {
    authority: Authority,
    folder: tempfile::TempDir,
    address: SocketAddr,
    task: JoinHandle<Result<(), nkd_agent::balance::BalanceError>>,
}

impl Bench {
    async fn start(authority: Authority, backends: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("balancer.json"), &authority.pem, backends);
        let balancer = Balancer::bind(Options {
            config: folder.path().join("balancer.json"),
            listen: vec![SocketAddr::from((LOCAL, 0))],
            pace: Pace {
                check: Duration::from_millis(50),
                connect: Duration::from_millis(500),
                answer: Duration::from_secs(1),
            },
        });
        let balancer = balancer.await.unwrap();
        let address = balancer.addresses()[0];
        Self { authority, folder, address, task: tokio::spawn(balancer.run()) }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("balancer.json")
    }

    /// Who answers a new connection.
    async fn who(&self) -> Option<String> {
        timeout(LIMIT, async { Connection::open(self.address, &self.authority).await?.ask().await }).await.unwrap()
    }

    /// Waits until so many new connections in a row are answered by these and no others.
    async fn expect(&self, names: &[&Backend]) {
        let wait = async {
            loop {
                let mut seen = Vec::new();
                for _ in 0..2 * names.len() {
                    seen.extend(self.who().await);
                }
                seen.sort();
                let mut wanted: Vec<&String> = names.iter().map(|b| &b.name).flat_map(|n| [n, n]).collect();
                wanted.sort();
                if seen.iter().collect::<Vec<_>>() == wanted {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, wait).await.expect("the balancer does not use the backends that it should");
    }

    async fn open_to(&self, backend: &Backend) -> Connection {
        let wait = async {
            loop {
                let mut connection = Connection::open(self.address, &self.authority).await.unwrap();
                if connection.ask().await.as_ref() == Some(&backend.name) {
                    return connection;
                }
            }
        };
        timeout(LIMIT, wait).await.unwrap()
    }
}

fn write(path: &PathBuf, ca: &str, backends: &[SocketAddr]) {
    let config = BalancerConfig { ca: ca.to_owned(), backends: backends.to_vec() };
    std::fs::write(path.with_extension("new"), serde_json::to_vec(&config).unwrap()).unwrap();
    std::fs::rename(path.with_extension("new"), path).unwrap();
}

#[tokio::test]
async fn connections_leave_backends_that_die_hang_or_are_not_ready_and_come_back() {
    let authority = Authority::new();
    let (a, b, c) = (
        Backend::start(&authority, "a").await,
        Backend::start(&authority, "b").await,
        Backend::start(&authority, "c").await,
    );
    let bench = Bench::start(authority, &[a.address, b.address, c.address]).await;
    bench.expect(&[&a, &b, &c]).await;

    // Its power is cut: nobody closes the connection but the balancer.
    let mut long = bench.open_to(&b).await;
    b.mode.send_replace(Mode::Hanging);
    assert_eq!(timeout(LIMIT, long.ask()).await.unwrap(), None, "the connection must be closed");
    bench.expect(&[&a, &c]).await;
    b.mode.send_replace(Mode::Well);
    bench.expect(&[&a, &b, &c]).await;

    // It answers that it is not ready; connections to the others stay.
    let (mut to_a, mut to_c) = (bench.open_to(&a).await, bench.open_to(&c).await);
    c.mode.send_replace(Mode::NotReady);
    bench.expect(&[&a, &b]).await;
    timeout(LIMIT, async { while to_c.ask().await.is_some() {} }).await.unwrap();
    assert_eq!(to_a.ask().await.as_deref(), Some("a"));

    // Killed: refused at once. One is left, and then none is known healthy: all are tried, and one answers.
    a.die();
    bench.expect(&[&b]).await;
    b.mode.send_replace(Mode::NotReady);
    let wait = async {
        while bench.who().await.as_deref() != Some("c") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, wait).await.expect("with no healthy backend all are tried");
    // And nobody is thrown out while there is nowhere to go.
    let mut to_b = bench.open_to(&b).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(to_b.ask().await.as_deref(), Some("b"));
}

#[tokio::test]
async fn a_stranger_is_not_used_and_the_file_is_read_again_when_it_changes() {
    let authority = Authority::new();
    let (a, b) = (Backend::start(&authority, "a").await, Backend::start(&authority, "b").await);
    let stranger = Backend::start(&Authority::new(), "stranger").await;
    let bench = Bench::start(authority, &[stranger.address, a.address]).await;
    bench.expect(&[&a]).await;
    let mut long = bench.open_to(&a).await;

    write(&bench.config(), &bench.authority.pem, &[stranger.address, a.address, b.address]);
    bench.expect(&[&a, &b]).await;
    assert_eq!(long.ask().await.as_deref(), Some("a"), "a backend that stays keeps its connections");

    // A damaged file changes nothing.
    std::fs::write(bench.config(), "{").unwrap();
    sleep(Duration::from_millis(300)).await;
    bench.expect(&[&a, &b]).await;

    write(&bench.config(), &bench.authority.pem, &[b.address]);
    timeout(LIMIT, async { while long.ask().await.is_some() {} }).await.expect("a backend that is gone is left");
    bench.expect(&[&b]).await;

    // The node belongs to no cluster any more.
    std::fs::remove_file(bench.config()).unwrap();
    timeout(LIMIT, bench.task).await.unwrap().unwrap().unwrap();
}
