//! Start and end of the service.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};

use super::harness::{API, BOOT, METRICS, PATIENCE, Place, TFTP, ended, mode, text};

#[tokio::test]
async fn the_first_start_makes_a_private_state_and_one_token() {
    let place = Place::new();
    let mut service = place.start().await;
    let state = place.state();
    assert_eq!(mode(&state), 0o700);
    for name in ["nkd.db", "nkd.db-wal", "secret.key", "first-admin-token"] {
        assert_eq!(mode(&state.join(name)), 0o600, "{name}");
    }
    let token = place.admin_token();
    assert!(!place.log_text().contains(&token), "the token is in no log");
    let http = reqwest::Client::new();
    assert_eq!(http.get(place.metrics_url("/healthz")).send().await.unwrap().text().await.unwrap(), "ok\n");
    let metrics = http.get(place.metrics_url("/metrics")).send().await.unwrap();
    assert!(metrics.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("nkd_") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert_eq!(place.admin().get("/api/v1/status").await["user"], "admin");

    let out = place.serve().output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("another nkd serve uses"), "{}", text(&out.stderr));

    service.signal(Signal::SIGTERM);
    assert_eq!(service.ended().code(), Some(0), "{}", place.log_text());
    let _again = place.start().await;
    assert!(!place.first_token_file().exists(), "one first token for ever");
    assert_eq!(place.user(&token).get("/api/v1/status").await["role"], "admin");
    assert!(!place.log_text().contains('\u{1b}'), "no colours in a file");
}

#[tokio::test]
async fn the_first_token_is_in_its_file_until_it_is_used() {
    let place = Place::new();
    let service = place.start().await;
    let file = place.first_token_file();
    let status = async |token: &str| place.user(token).call(Method::GET, "/api/v1/status", None).await.0;
    assert_eq!(status("wrong").await, StatusCode::UNAUTHORIZED);
    service.kill();
    let service = place.start().await;
    assert!(file.exists(), "nobody has used it yet");
    let token = place.admin_token();
    let all_at_once = futures_util::future::join_all((0..8).map(|_| status(&token))).await;
    assert!(all_at_once.iter().all(StatusCode::is_success), "{all_at_once:?}");
    assert!(!file.exists());
    assert_eq!(status(&token).await, StatusCode::OK, "the token itself stays good");
    drop(service);

    // A file that cannot be deleted keeps nobody out.
    let place = Place::new();
    let _service = place.start().await;
    let (token, file) = (place.admin_token(), place.first_token_file());
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert_eq!(place.user(&token).get("/api/v1/status").await["user"], "admin");
    assert!(place.log_text().contains("could not be deleted"), "{}", place.log_text());
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_setting() {
    for (port, setting) in
        [(BOOT, "http.boot_listen"), (API, "http.api_listen"), (METRICS, "http.metrics_listen"), (TFTP, "tftp.listen")]
    {
        let place = Place::new();
        let address = format!("{}:{port}", place.ip);
        let holder = (port != TFTP).then(|| TcpListener::bind(&address).unwrap());
        let holder_udp = (port == TFTP).then(|| UdpSocket::bind(&address).unwrap());
        let out = place.serve().output().unwrap();
        drop((holder, holder_udp));
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        let last = said.lines().last().unwrap();
        assert!(
            last.starts_with("error: ")
                && last.contains(&place.ip)
                && last.contains(&port.to_string())
                && last.contains(setting),
            "{setting}: {said}"
        );
        assert!(!place.first_token_file().exists(), "a service that never ran has no admin");
    }
}

#[test]
fn printed_settings_are_a_settings_file() {
    let mut place = Place::new().with("dhcp.mode=server");
    place.settings.push(r#"dhcp.interface=[{name="eth1", pool="10.0.0.100-10.0.0.199", dns=["10.0.0.1"]}]"#.into());
    let out = place.serve().arg("--print-settings").output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    let file = place.dir.path().join("printed.toml");
    std::fs::write(&file, &out.stdout).unwrap();
    let again = place.nkd().args(["serve", "--print-settings", "--config"]).arg(&file).output().unwrap();
    assert_eq!(text(&again.stdout), text(&out.stdout), "{}", text(&again.stderr));
    assert!(text(&out.stdout).contains("pool = \"10.0.0.100-10.0.0.199\""), "{}", text(&out.stdout));
}

#[test]
fn every_wrong_setting_is_said_at_once() {
    let place = Place::new();
    let mut command = place.serve();
    command.env("NKD_HTTP__API_LISTEN", "nowhere").args(["--set", "dhcp.mode=loud", "--set", "wrong.name=1"]);
    command.args(["--set", "log.filter=nkd=shout"]);
    let out = command.output().unwrap();
    assert_eq!(out.status.code(), Some(64));
    let said = text(&out.stderr);
    for part in ["4 settings are wrong", "http.api_listen", "NKD_HTTP__API_LISTEN", "dhcp.mode", "wrong", "log.filter"]
    {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
    let out = place.nkd().args(["serve", "--config", "/nonexistent/nkd.toml"]).output().unwrap();
    assert_eq!(out.status.code(), Some(64), "{}", text(&out.stderr));
}

/// A reader that takes nothing, a request that is held, and a connection that says nothing do not hold up the end.
#[tokio::test]
async fn sigterm_ends_in_order_while_clients_hang() {
    let place = Place::new();
    let mut service = place.start().await;
    let folder = place.dir.path().join("image");
    place.import().await;
    // A file that does not fit in any socket buffer.
    let big = std::fs::File::create(folder.join("lab-1-metal.x86_64.raw")).unwrap();
    big.set_len(64 << 20).unwrap();
    place.import().await;
    let mut slow = TcpStream::connect((place.ip.as_str(), BOOT)).unwrap();
    slow.write_all(format!("GET /images/lab-1/disk HTTP/1.1\r\nHost: {}\r\n\r\n", place.ip).as_bytes()).unwrap();
    let mut first = [0; 512];
    slow.read_exact(&mut first).unwrap();
    let _silent = TcpStream::connect((place.ip.as_str(), API)).unwrap();
    let api = place.admin();
    let held = tokio::spawn(async move { api.attempt(Method::GET, "/api/v1/events?after=999999&wait=60", None).await });
    let ready = place.admin().get("/api/v1/status").await;
    assert_eq!(ready["user"], "admin");
    service.signal(Signal::SIGTERM);
    let begun = std::time::Instant::now();
    assert_eq!(service.ended().code(), Some(0), "{}", place.log_text());
    assert!(begun.elapsed() < PATIENCE);
    let (status, body) = held.await.unwrap().expect("a held request is answered before the end");
    assert_eq!((status, body.as_str()), (StatusCode::OK, "[]"));
    assert!(place.log_text().contains("stopped"), "{}", place.log_text());
}

#[test]
fn help_and_version_need_nothing() {
    let place = Place::new();
    for args in [&["--help"][..], &["--version"], &["machine", "--help"], &["openapi"]] {
        let mut child = place.nkd().args(args).stdout(std::process::Stdio::null()).spawn().unwrap();
        assert!(ended(&mut child).success(), "{args:?}");
    }
}
