//! Import from stream documents behind addresses: broken connections, wrong bytes, TLS, redirects.

use std::fs;
use std::sync::Arc;

use nkd_api::image::ArtifactKind;
use nkd_server::content::image::ImportRequest;
use nkd_server::content::image::error::ImportError;
use nkd_server::content::image::source::Source;
use nkd_server::content::image::source::download::DownloadError;

use crate::support::*;

const ROOTFS: &str = "builds/lab-1-live-rootfs.x86_64.img";

/// A server with a lab build and its stream document.
async fn server() -> (Server, Vec<(String, Vec<u8>)>) {
    let server = Server::start().await;
    let parts = parts("lab", "1", "x86_64", 1);
    put(&server, &parts, str::to_owned);
    (server, parts)
}

fn put(server: &Server, parts: &[(String, Vec<u8>)], locate: impl Fn(&str) -> String) {
    for (name, bytes) in parts {
        server.put(&format!("builds/{name}"), bytes.clone());
    }
    server.put("builds/stream.json", stream(parts, "1", "x86_64", locate).to_string());
}

fn import(server: &Server) -> ImportRequest {
    request(Source::StreamUrl(server.join("builds/stream.json")))
}

#[tokio::test]
async fn a_stream_document_behind_an_address_is_fetched_whole() {
    let (server, parts) = server().await;
    let place = Place::new();
    let progress = Arc::new(Recorder::default());
    let image = place.store.import(import(&server), progress.clone(), NOW).await.unwrap();
    assert_eq!(place.read_blob(&image, ArtifactKind::Rootfs), parts[2].1);
    assert_eq!(image.source, format!("stream {}builds/stream.json", server.url));
    assert!(progress.stages().iter().all(|(_, total, done)| *total == Some(*done)), "{:?}", progress.stages());
    assert!(!place.files().iter().any(|f| f.starts_with("partial")), "{:?}", place.files());
    // What is stored is not fetched again.
    place.import(import(&server)).await.unwrap();
    assert_eq!(server.asked(ROOTFS).len(), 1);
}

#[tokio::test]
async fn a_broken_connection_goes_on_where_it_broke() {
    let (server, parts) = server().await;
    server.fail(ROOTFS, [Fault::Cut(100_000), Fault::Status(503), Fault::Cut(50_000)]);
    let place = Place::new();
    let image = place.import(import(&server)).await.unwrap();
    assert_eq!(place.read_blob(&image, ArtifactKind::Rootfs), parts[2].1);
    let asked: Vec<_> = server.asked(ROOTFS).into_iter().map(|a| a.range).collect();
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[0], None);
    assert_eq!(asked[1].as_deref(), Some("bytes=100000-"));
    assert_eq!(asked[3].as_deref(), Some("bytes=150000-"));
    assert_eq!(server.asked(ROOTFS)[3].if_range, Some(format!("\"{}\"", sha(&parts[2].1))));
}

#[tokio::test]
async fn attempts_are_bounded_and_the_next_import_goes_on() {
    let (server, _) = server().await;
    server.fail(ROOTFS, [Fault::Cut(200_000), Fault::Status(500), Fault::Status(502), Fault::Status(503)]);
    let place = Place::new();
    let error = place.import(import(&server)).await.unwrap_err();
    let ImportError::Download(DownloadError::GaveUp { attempts, .. }) = &error else { panic!("{error}") };
    assert_eq!(*attempts, 4);
    assert_eq!(place.store.list().unwrap(), vec![]);
    place.import(import(&server)).await.unwrap();
    assert_eq!(server.asked(ROOTFS).last().unwrap().range.as_deref(), Some("bytes=200000-"));
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_sends_it_all_again() {
    let (server, parts) = server().await;
    server.no_range();
    server.fail(ROOTFS, [Fault::Cut(100_000), Fault::Cut(200_000)]);
    let place = Place::new();
    let image = place.import(import(&server)).await.unwrap();
    assert_eq!(place.read_blob(&image, ArtifactKind::Rootfs), parts[2].1);
    assert_eq!(server.asked(ROOTFS).len(), 3);
}

#[tokio::test]
async fn a_file_that_was_rebuilt_meanwhile_is_not_spliced() {
    let (server, parts) = server().await;
    let place = Place::new();
    // The first connection serves another build's bytes under the same name, and breaks.
    server.put(ROOTFS, bytes(77, 300_000));
    server.fail(ROOTFS, [Fault::Cut(100_000), Fault::Status(404)]);
    place.import(import(&server)).await.unwrap_err();
    server.put(ROOTFS, parts[2].1.clone());
    let image = place.import(import(&server)).await.unwrap();
    assert_eq!(place.read_blob(&image, ArtifactKind::Rootfs), parts[2].1);
    // If-Range told the server, so that one more request was enough.
    assert_eq!(server.asked(ROOTFS).len(), 3);
}

#[tokio::test]
async fn a_kept_part_of_other_bytes_is_found_out() {
    let (server, parts) = server().await;
    let place = Place::new();
    fs::create_dir(place.state.join("partial")).unwrap();
    fs::write(place.state.join("partial").join(sha(&parts[2].1).to_string()), bytes(99, 1000)).unwrap();
    let image = place.import(import(&server)).await.unwrap();
    assert_eq!(place.read_blob(&image, ArtifactKind::Rootfs), parts[2].1);
    assert_eq!(server.asked(ROOTFS).len(), 2);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_not_kept() {
    let (server, _) = server().await;
    server.put(ROOTFS, bytes(77, 300_000));
    let place = Place::new();
    let error = place.import(import(&server)).await.unwrap_err();
    assert!(matches!(error, ImportError::Download(DownloadError::Digest { .. })), "{error}");
    assert_eq!(server.asked(ROOTFS).len(), 1);
    assert_eq!(place.store.list().unwrap(), vec![]);
    assert!(!place.files().iter().any(|f| f.starts_with("partial")), "{:?}", place.files());
}

#[tokio::test]
async fn what_is_final_is_not_tried_again() {
    let (server, _) = server().await;
    server.fail(ROOTFS, [Fault::Status(404)]);
    let place = Place::new();
    let error = place.import(import(&server)).await.unwrap_err();
    assert!(matches!(&error, ImportError::Download(DownloadError::Status { status, .. }) if *status == 404), "{error}");
    let mut small = import(&server);
    small.limits.rootfs = 1000;
    let error = place.import(small).await.unwrap_err();
    assert!(matches!(error, ImportError::Download(DownloadError::TooLarge { limit: 1000, .. })), "{error}");
    assert_eq!(server.asked(ROOTFS).len(), 2);
}

#[tokio::test]
async fn a_document_that_points_elsewhere_is_refused_with_every_place() {
    let server = Server::start().await;
    let parts = parts("lab", "1", "x86_64", 1);
    let mut doc = stream(&parts, "1", "x86_64", |name| format!("../{name}"));
    let formats = doc.pointer_mut("/architectures/x86_64/artifacts/metal/formats").unwrap();
    formats["pxe"]["kernel"]["location"] = "file:///etc/passwd".into();
    formats["pxe"]["rootfs"].as_object_mut().unwrap().remove("sha256");
    server.put("builds/stream.json", doc.to_string());
    let error = Place::new().import(import(&server)).await.unwrap_err();
    let ImportError::Document { problems, .. } = error else { panic!("{error}") };
    let paths: Vec<_> = problems.iter().map(|p| p.path.replace("architectures.x86_64.artifacts.metal.", "")).collect();
    assert_eq!(
        paths,
        [
            "formats.pxe.kernel.location",
            "formats.pxe.initramfs.location",
            "formats.pxe.rootfs.location",
            "formats.pxe.rootfs.sha256",
            "formats.\"raw.gz\".disk.location",
        ]
    );
}

#[tokio::test]
async fn one_download_is_not_done_twice_at_once() {
    let (server, parts) = server().await;
    let place = Place::new();
    fs::create_dir(place.state.join("partial")).unwrap();
    let path = place.state.join("partial").join(sha(&parts[0].1).to_string());
    let held = fs::File::create(path).unwrap();
    held.lock().unwrap();
    let error = place.import(import(&server)).await.unwrap_err();
    assert!(matches!(error, ImportError::Download(DownloadError::Busy { .. })), "{error}");
    drop(held);
    place.import(import(&server)).await.unwrap();
}

#[tokio::test]
async fn tls_needs_a_trusted_authority_and_is_not_left_again() {
    let plain = Server::start().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(
        vec![certificate.der().clone()],
        rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    );
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config.unwrap()));
    let server = Server::start_with(Some(tls)).await;
    let parts = parts("lab", "1", "x86_64", 1);
    put(&server, &parts, str::to_owned);
    put(&plain, &parts, str::to_owned);

    let place = Place::new();
    let error = place.import(import(&server)).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let mut trusting = import(&server);
    let ca = place.source.join("ca.pem");
    fs::write(&ca, certificate.pem()).unwrap();
    trusting.authorities = Some(ca.clone());
    server.fail("builds/stream.json", [Fault::Redirect(plain.join("builds/stream.json").to_string())]);
    // The redirect to plain HTTP is not followed; the attempt after it is not redirected.
    place.import(trusting.clone()).await.unwrap();
    assert_eq!(plain.asked("builds/stream.json"), vec![]);
    fs::write(&ca, "not PEM").unwrap();
    let error = place.import(trusting).await.unwrap_err();
    assert!(matches!(error, ImportError::Download(DownloadError::Authorities { .. })), "{error}");
}

#[tokio::test]
async fn pythons_own_server_will_do() {
    let place = Place::new();
    let parts = parts("nestos", "22.03", "aarch64", 1);
    for (name, bytes) in &parts {
        place.write(name, bytes);
    }
    place.write("stream.json", stream(&parts, "22.03", "aarch64", str::to_owned).to_string().as_bytes());
    let mut python = std::process::Command::new("python3")
        .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1"])
        .current_dir(&place.source)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(python.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let url = line.split_once("(").unwrap().1.split_once(")").unwrap().0;
    provider();
    let url = url::Url::parse(url).unwrap().join("stream.json").unwrap();
    let result = place.import(request(Source::StreamUrl(url))).await;
    python.kill().unwrap();
    python.wait().unwrap();
    assert_eq!(result.unwrap().name, "nestos-22.03-aarch64");
}
