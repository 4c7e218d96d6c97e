//! Requests that nobody in their right mind sends. The service says no, and goes on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{API, BOOT, PATIENCE, Place, text};
use super::node;

#[tokio::test]
async fn the_api_says_what_is_wrong() {
    let place = Place::new();
    let _service = place.start().await;
    let api = place.admin();
    let http = place.https().build().unwrap();
    let send = async |body: Vec<u8>, kind: &str| {
        let request = http.post(place.api_url("/api/v1/machines")).bearer_auth(place.admin_token());
        let answer = request.header("Content-Type", kind).body(body).send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.expect("every refusal is an ErrorBody");
        (status, body["message"].as_str().unwrap().to_owned())
    };
    let json = "application/json";
    for (body, word) in [
        (&b"{\"name\": "[..], "EOF"),
        (b"", "EOF"),
        (b"[]", "invalid"),
        (b"{\"name\": \"n1\"}", "identity"),
        (b"{\"identity\": {\"macs\": [\"52:54:00\"]}}", "52:54:00"),
        (b"{\"identity\": {}, \"colour\": 1}", "colour"),
        (b"\xff\xfe{}", "JSON"),
    ] {
        let (status, message) = send(body.to_vec(), json).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{message}");
        assert!(message.contains(word), "{word}: {message}");
    }
    let (status, message) = send(b"{}".to_vec(), "text/plain").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{message}");
    let (status, message) = send(vec![b' '; 3 << 20], json).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{message}");
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    assert_eq!(send(deep, json).await.0, StatusCode::BAD_REQUEST);

    let long = "n".repeat(10_000);
    let order = json!({"name": long, "identity": {"macs": ["52:54:00:aa:03:01"]}});
    let (status, body) = api.call(Method::POST, "/api/v1/machines", Some(&order)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert!(body["message"].as_str().unwrap().len() < 300, "{body}");
    for (path, wanted) in [
        (format!("/api/v1/machines/{long}"), StatusCode::NOT_FOUND),
        ("/api/v1/machines/%00%ff/events".to_owned(), StatusCode::BAD_REQUEST),
        ("/api/v1/machines?label=x".to_owned(), StatusCode::BAD_REQUEST),
        ("/api/v1/machines?phase=bogus".to_owned(), StatusCode::BAD_REQUEST),
        ("/api/v1/events?after=many".to_owned(), StatusCode::BAD_REQUEST),
        ("/api/v1/images/..%2F..%2Fetc".to_owned(), StatusCode::NOT_FOUND),
        ("/nothing/here".to_owned(), StatusCode::NOT_FOUND),
        ("/".to_owned(), StatusCode::NOT_FOUND),
    ] {
        let (status, body) = api.call(Method::GET, &path, None).await;
        assert_eq!(status, wanted, "{} {body}", &path[..path.len().min(60)]);
        assert!(body["message"].is_string(), "{body}");
    }
    let (status, body) = api.call(Method::PATCH, "/api/v1/machines", None).await;
    assert_eq!((status, body["code"].is_string()), (StatusCode::METHOD_NOT_ALLOWED, true));
    assert_eq!(api.get("/api/v1/status").await["user"], "admin");
}

/// Sends bytes to the boot plane and reads the status line, if there is one.
fn raw(place: &Place, request: &[u8]) -> String {
    let mut stream = TcpStream::connect((place.ip.as_str(), BOOT)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(request);
    let mut answer = [0; 12];
    let n = stream.read(&mut answer).unwrap_or(0);
    text(&answer[..n])
}

#[tokio::test]
async fn the_boot_plane_hands_out_nothing_by_tricks() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let get = |target: &str| raw(&place, format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    for target in [
        "/images/../nkd.db",
        "/images/lab-1/../../nkd.db",
        "/images/%2e%2e/nkd.db",
        "/images/lab-1/..%2f..%2fsecret.key",
        "/ipxe/../../../etc/passwd",
        "/ipxe/%2fetc%2fpasswd",
        "/ipxe/..\\..\\etc\\passwd",
        "/images/lab-1/kernel%00",
        "/images/lab-1",
        "/boot/../initrd",
        "/boot/00000000-0000-0000-0000-000000000000/initrd",
        "/agent/nkd-agent",
        "/nkd.db",
    ] {
        let status = get(target);
        assert!(["HTTP/1.1 404", "HTTP/1.1 400"].contains(&status.as_str()), "{target}: {status}");
    }
    for mac in ["", "x", "52:54:00:aa:00", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "01:00:5e:00:00:01", "%00", "5254"]
    {
        assert_eq!(get(&format!("/boot.ipxe?mac={mac}")), "HTTP/1.1 400", "{mac}");
    }
    let keys: String = (0..500).map(|n| format!("&k{n}=v")).collect();
    assert_eq!(get(&format!("/boot.ipxe?mac=52:54:00:aa:03:02{keys}")), "HTTP/1.1 200");
    let keys: String = (0..20_000).map(|n| format!("&k{n}=v")).collect();
    let status = get(&format!("/boot.ipxe?mac=52:54:00:aa:03:02{keys}"));
    assert!(status.starts_with("HTTP/1.1 4"), "{status}");
    assert!(
        raw(&place, b"POST /boot.ipxe HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello").starts_with("HTTP/1.1 4")
    );
    assert!(
        raw(&place, &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).is_empty()
            || raw(&place, b"\x00\r\n\r\n").starts_with("HTTP/1.1 4")
    );

    // What a board says of itself is text, whatever it is.
    let odd = "mac=52:54:00:aa:03:03&serial=%24%7Bboot%7D%20%7C%7C%20reboot%0Aexit%1b%5B2J%ff%26&product=P%2B%2F%3D%22%27&vendor=%C3%84%20GmbH&uuid=not-a-uuid";
    let script = node::script_with(&place, odd).await;
    assert!(script.status.is_success() && !script.text.contains("reboot"), "{}", script.text);
    let machine = place.admin().machine("52:54:00:aa:03:03").await;
    assert_eq!(machine["identity"]["product"], "P+/=\"'");
    assert_eq!(machine["identity"]["vendor"], "Ä GmbH");
    assert!(machine["identity"]["serial"].as_str().unwrap().starts_with("${boot} || reboot"), "{machine}");
    assert!(!machine["identity"]["serial"].as_str().unwrap().contains(char::is_control));
    let long = "s".repeat(6_000);
    node::script_with(&place, &format!("mac=52:54:00:aa:03:04&serial={long}")).await;
    let machine = place.admin().machine("52:54:00:aa:03:04").await;
    assert!(machine["identity"]["serial"].as_str().unwrap().len() <= 128);
    assert!(place.ok(&["machine", "list"]).contains("m-525400aa0304"));
}

/// Connections that say nothing, or never finish saying it, are ended by the service, at every stage of TLS.
#[tokio::test]
async fn slow_clients_of_the_api_are_ended() {
    let place = Place::new();
    let _service = place.start().await;
    let connect = || {
        let stream = TcpStream::connect((place.ip.as_str(), API)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let silent = connect();
    let mut partial = connect();
    partial.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).unwrap();
    // Shaken hands, then nothing, by either protocol; and a head that never ends.
    let mute = tls(&place, connect(), &[]);
    let mute_too = tls(&place, connect(), &[b"h2"]);
    let mut endless = tls(&place, connect(), &[b"http/1.1"]);
    endless.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nX-").unwrap();
    let begun = Instant::now();
    let waits: Vec<Box<dyn FnOnce() -> usize + Send>> = vec![
        Box::new(move || read_to_end(silent)),
        Box::new(move || read_to_end(partial)),
        Box::new(move || read_to_end(mute)),
        Box::new(move || read_to_end(mute_too)),
        Box::new(move || read_to_end(endless)),
    ];
    let waits: Vec<_> = waits.into_iter().map(std::thread::spawn).collect();
    // Meanwhile others are served.
    assert_eq!(place.admin().get("/api/v1/status").await["user"], "admin");
    for wait in waits {
        wait.join().unwrap();
    }
    assert!(begun.elapsed() < PATIENCE - Duration::from_secs(5), "ended by the client's own limit");
}

/// Refused before its body was read, a request has its answer all the same, over HTTP/2 too.
#[tokio::test]
async fn a_refusal_is_heard_whatever_was_sent_with_the_request() {
    let place = Place::new();
    let _service = place.start().await;
    let big = place.dir.path().join("big");
    std::fs::write(&big, vec![b' '; 30 << 20]).unwrap();
    let (ca, url) = (place.state().join("ca.pem"), place.api_url("/api/v1/machines"));
    let code = |body: &str, token: &str| {
        let mut curl = std::process::Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            "--request",
            "POST",
        ]);
        curl.args(["--data-binary", body, "--header", "Content-Type: application/json", "--cacert"]).arg(&ca);
        let out = curl.args(["--header", &format!("Authorization: Bearer {token}"), &url]).output().unwrap();
        format!("{} {}", text(&out.stdout), text(&out.stderr))
    };
    for _ in 0..20 {
        assert_eq!(code("{}", "nobody").trim(), "401");
    }
    for _ in 0..3 {
        assert_eq!(code(&format!("@{}", big.display()), &place.admin_token()).trim(), "413");
    }
}

/// A node says that it lives every 30 s. It does so over the connection that it has, not over a new one each time.
#[tokio::test]
async fn a_connection_of_the_api_outlives_the_time_between_two_heartbeats() {
    let place = Place::new();
    let _service = place.start().await;
    let stream = TcpStream::connect((place.ip.as_str(), API)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = tls(&place, stream, &[b"http/1.1"]);
    stream.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    tokio::time::sleep(Duration::from_secs(31)).await;
    stream.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
}

/// Shakes hands over a connection that is there.
fn tls(
    place: &Place,
    stream: TcpStream,
    protocols: &[&[u8]],
) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(place.ca().as_bytes()).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let name = rustls::pki_types::ServerName::try_from(place.ip.clone()).unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, stream);
    stream.flush().unwrap();
    stream
}

/// Reads until the other side ends; the number of bytes that came.
fn read_to_end(mut stream: impl Read) -> usize {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(n) => n,
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("the service let it stand"),
        Err(_) => bytes.len(),
    }
}
