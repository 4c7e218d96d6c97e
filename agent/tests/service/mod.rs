//! A service for the agent, with a clock of its own and faults on order.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nkd_api::ErrorBody;
use nkd_api::agent::{
    EnrollRequest, EnrollResponse, RenewRequest, Report, ReportAnswer, ReportEvent, ServerTime, Task, TaskAnswer,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, PublicKeyData,
};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// What the next request to a path meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 503.
    Unavailable,
    /// The request is carried out, and the connection closes before the answer.
    LostAnswer,
}

/// What the service saw.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    /// A client certificate was shown.
    pub certified: bool,
    /// Of a report.
    pub event: Option<ReportEvent>,
    /// 0: no answer.
    pub status: u16,
}

/// Its clock: the machine's, years apart.
#[derive(Debug, Clone, Copy)]
pub struct FarClock(pub time::Duration);

impl FarClock {
    pub fn now(self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + self.0
    }
}

impl TimeProvider for FarClock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = self.now().unix_timestamp().try_into().unwrap();
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// How it is set up.
pub struct Setup {
    pub clock: FarClock,
    /// Life of its own certificate, around its clock.
    pub leaf: (time::Duration, time::Duration),
    /// Name in its certificate.
    pub name: &'static str,
    /// A used token is good once more for the same key.
    pub same_key_again: bool,
    /// Life of the first client certificates until they are to be renewed.
    pub first_renewal: time::Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            clock: FarClock(time::Duration::days(365 * 14)),
            leaf: (-time::Duration::days(1), time::Duration::days(30)),
            name: "127.0.0.1",
            same_key_again: false,
            first_renewal: time::Duration::hours(1),
        }
    }
}

pub struct Service {
    pub address: SocketAddr,
    pub ca: String,
    setup: Setup,
    issuer: Issuer<'static, KeyPair>,
    /// Tokens that may be used, and the public keys that used them.
    tokens: Mutex<HashMap<String, Option<Vec<u8>>>>,
    faults: Mutex<HashMap<&'static str, VecDeque<Fault>>>,
    task: watch::Sender<(u32, Task)>,
    seen: watch::Sender<Vec<Seen>>,
}

impl Service {
    pub async fn start(setup: Setup) -> Arc<Self> {
        let clock = setup.clock;
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = clock.now() - time::Duration::days(10);
        params.not_after = clock.now() + time::Duration::days(3650);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);

        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![setup.name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = clock.now() + setup.leaf.0;
        params.not_after = clock.now() + setup.leaf.1;
        let leaf = params.signed_by(&key, &issuer).unwrap();

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_details(provider, Arc::new(clock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            ca: ca.pem(),
            setup,
            issuer,
            tokens: Mutex::default(),
            faults: Mutex::default(),
            task: watch::channel((0, Task::Run)).0,
            seen: watch::channel(Vec::new()).0,
        });
        tokio::spawn(accept(service.clone(), listener, TlsAcceptor::from(Arc::new(config))));
        service
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn allow(&self, token: &str) {
        self.tokens.lock().unwrap().insert(token.to_owned(), None);
    }

    pub fn fault(&self, path: &'static str, faults: &[Fault]) {
        self.faults.lock().unwrap().insert(path, faults.iter().copied().collect());
    }

    pub fn set_task(&self, task: Task) {
        self.task.send_modify(|(revision, now)| {
            *revision += 1;
            *now = task;
        });
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    pub fn count(&self, wanted: impl Fn(&Seen) -> bool) -> usize {
        self.seen().iter().filter(|seen| wanted(seen)).count()
    }

    /// Waits until `number` requests were seen for which `wanted` holds.
    pub async fn wait_for(&self, what: &str, number: usize, wanted: impl Fn(&Seen) -> bool) {
        let mut receiver = self.seen.subscribe();
        let waiting = receiver.wait_for(|seen| seen.iter().filter(|seen| wanted(seen)).count() >= number);
        if tokio::time::timeout(Duration::from_secs(60), waiting).await.is_err() {
            panic!("{what} was not seen; seen: {:#?}", self.seen());
        }
    }

    fn certificate(&self, csr: &str, renewal: time::Duration) -> EnrollResponse {
        let now = self.setup.clock.now();
        let mut csr = CertificateSigningRequestParams::from_pem(csr).unwrap();
        csr.params = CertificateParams::new(Vec::<String>::new()).unwrap();
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        csr.params.not_before = now - time::Duration::hours(1);
        csr.params.not_after = now + time::Duration::hours(2);
        EnrollResponse {
            certificate: csr.signed_by(&self.issuer).unwrap().pem(),
            ca: self.ca.clone(),
            renew_after: now + renewal,
            expires: now + time::Duration::hours(2),
            server_time: now,
        }
    }

    fn enroll(&self, request: &EnrollRequest) -> Result<EnrollResponse, String> {
        let key = CertificateSigningRequestParams::from_pem(&request.csr).unwrap().public_key.der_bytes().to_vec();
        let mut tokens = self.tokens.lock().unwrap();
        match tokens.get_mut(&request.token) {
            None => Err("this token is not known".into()),
            Some(Some(used)) if !self.setup.same_key_again || *used != key => Err("this token was used".into()),
            Some(used) => {
                *used = Some(key);
                Ok(self.certificate(&request.csr, self.setup.first_renewal))
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>, certified: bool) -> Result<Response<Full<Bytes>>, String> {
        let path = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let fault = self.faults.lock().unwrap().get_mut(path.as_str()).and_then(VecDeque::pop_front);
        let mut event = None;
        let answer = if fault == Some(Fault::Unavailable) {
            refusal(StatusCode::SERVICE_UNAVAILABLE, "the service is starting")
        } else if !certified && !matches!(path.as_str(), "time" | "enroll") {
            refusal(StatusCode::UNAUTHORIZED, "a client certificate is needed")
        } else {
            match path.as_str() {
                "time" => json(&ServerTime { server_time: self.setup.clock.now() }),
                "enroll" => match self.enroll(&serde_json::from_slice(&body).unwrap()) {
                    Ok(answer) => json(&answer),
                    Err(message) => refusal(StatusCode::FORBIDDEN, &message),
                },
                "renew" => {
                    let request: RenewRequest = serde_json::from_slice(&body).unwrap();
                    json(&self.certificate(&request.csr, time::Duration::hours(1)))
                }
                "task" => json(&self.poll(&query).await),
                "install-config" => Response::new(Full::from(r#"{"ignition":{"version":"3.3.0"}}"#)),
                "report" => {
                    let report: Report = serde_json::from_slice(&body).unwrap();
                    event = Some(report.event);
                    let revision = self.task.borrow().0.to_string();
                    json(&ReportAnswer { revision, server_time: self.setup.clock.now() })
                }
                _ => refusal(StatusCode::NOT_FOUND, "no such path"),
            }
        };
        let lost = fault == Some(Fault::LostAnswer);
        let status = if lost { 0 } else { answer.status().as_u16() };
        self.seen.send_modify(|all| all.push(Seen { path, certified, event, status }));
        if lost { Err("the answer is lost".to_owned()) } else { Ok(answer) }
    }

    async fn poll(&self, query: &str) -> TaskAnswer {
        let seen = query.split('&').find_map(|pair| pair.strip_prefix("seen=")).map(str::to_owned);
        let mut receiver = self.task.subscribe();
        let changed = receiver.wait_for(|(revision, _)| seen.as_deref() != Some(&revision.to_string()));
        let _ = tokio::time::timeout(Duration::from_secs(5), changed).await.map(drop);
        let (revision, task) = self.task.borrow().clone();
        TaskAnswer { revision: revision.to_string(), task, api_servers: Vec::new() }
    }
}

async fn accept(service: Arc<Service>, listener: TcpListener, tls: TlsAcceptor) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (service, tls) = (service.clone(), tls.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let certified = stream.get_ref().1.peer_certificates().is_some();
            // An error closes the connection without an answer.
            let handler = service_fn(|request| {
                let service = service.clone();
                async move { service.answer(request, certified).await }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), handler).await;
        });
    }
}

fn json<T: Serialize>(value: &T) -> Response<Full<Bytes>> {
    Response::new(Full::from(serde_json::to_vec(value).unwrap()))
}

fn refusal(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let body = ErrorBody { code: "forbidden".into(), message: message.into(), hint: None, problems: Vec::new() };
    let mut answer = json(&body);
    *answer.status_mut() = status;
    answer
}

/// Serves one file over plain HTTP.
pub async fn image_server(content: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/images/node.raw", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let content = Bytes::from(content.clone());
            let handler = service_fn(move |_: Request<Incoming>| {
                let answer = Response::new(Full::new(content.clone()));
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), handler));
        }
    });
    url
}
