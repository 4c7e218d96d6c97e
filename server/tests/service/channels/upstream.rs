//! A web server of somebody else, over HTTPS.

use std::sync::Arc;

use axum::Router;
use tower_http::services::ServeDir;

use super::harness::Place;

/// Serves a folder until it is dropped.
pub struct Upstream {
    /// Host and port.
    pub address: String,
    /// File of the authority that its certificate comes from.
    pub ca: String,
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
        let router = Router::new().fallback_service(ServeDir::new(folder));
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
        Self { address, ca: ca.display().to_string(), task }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}
