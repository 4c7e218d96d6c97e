//! A web server of somebody else, over HTTPS.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use tokio::sync::watch;
use tower_http::services::ServeDir;

use super::harness::Place;

/// Serves a folder until it is dropped.
pub struct Upstream {
    /// Host and port.
    pub address: String,
    /// File of the authority that its certificate comes from.
    pub ca: String,
    /// Whether objects come by half, and then the connection ends.
    pub cuts: Arc<AtomicBool>,
    /// Whether objects do not come at all.
    pub holds: watch::Sender<bool>,
    /// How many were waited for.
    pub held: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Upstream {
    pub async fn serve(place: &Place, folder: &str) -> Self {
        let signed = rcgen::generate_simple_self_signed([place.ip.clone()]).unwrap();
        let ca = place.dir.path().join("upstream-ca.pem");
        std::fs::write(&ca, signed.cert.pem()).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![signed.cert.der().clone()], key.into()).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind((place.ip.as_str(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cuts = Arc::new(AtomicBool::new(false));
        let ((holds, is_held), held) = (watch::channel(false), Arc::new(AtomicU32::new(0)));
        let (is_cut, waited) = (Arc::clone(&cuts), Arc::clone(&held));
        let cut = from_fn(move |request: Request, next: Next| {
            let is_object = request.uri().path().contains("/objects/");
            let is_cut = is_cut.load(Ordering::SeqCst) && is_object;
            let (mut is_held, waited) = (is_held.clone(), Arc::clone(&waited));
            async move {
                if is_object && *is_held.borrow() {
                    waited.fetch_add(1, Ordering::SeqCst);
                    // An error: the test is over.
                    let _ = is_held.wait_for(|held| !held).await;
                }
                let response = next.run(request).await;
                if is_cut { half(response).await } else { response }
            }
        });
        let router = Router::new().fallback_service(ServeDir::new(folder)).layer(cut);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper_util::service::TowerToHyperService::new(router);
                    let io = hyper_util::rt::TokioIo::new(stream);
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        });
        Self { address, ca: ca.display().to_string(), cuts, holds, held, task }
    }
}

/// The first half of an answer that promises the whole.
async fn half(response: Response) -> Response {
    let (head, body) = response.into_parts();
    let whole = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let parts: [io::Result<Bytes>; 2] =
        [Ok(whole.slice(..whole.len() / 2)), Err(io::ErrorKind::ConnectionReset.into())];
    Response::from_parts(head, Body::from_stream(futures_util::stream::iter(parts)))
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}
