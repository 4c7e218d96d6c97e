//! The TFTP server against real clients: tftp-hpa, atftp, curl.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests with real programs and files")]

mod tftp_support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use tftp_support::{Running, blocking, loopback, pattern, serve};

/// Sizes around the edges of blocks, and one that rolls over with blocks of 512 bytes.
const SIZES: [usize; 7] = [0, 1, 511, 512, 1428, 100_000, 34_000_000];

async fn server() -> Running {
    let names: Vec<String> = SIZES.iter().map(|size| format!("boot/f{size}")).collect();
    let mut files: Vec<(&str, Bytes)> = names.iter().map(String::as_str).zip(SIZES.map(pattern)).collect();
    files.push(("text", Bytes::from_static(b"one\ntwo\r\nthree\r")));
    serve(loopback(), &files).await
}

/// Stops a test whose client is not there. `cargo xtask test` installs them all.
fn needs(program: &str, package: &str) {
    let found = Command::new(program).arg("--version").output();
    assert!(found.is_ok(), "{program} is not installed: apt-get install {package}");
}

/// Serves the files to a client, which gets an empty folder.
async fn interop(client: impl FnOnce(SocketAddr, &Path) + Send + 'static) {
    let server = server().await;
    let address = server.address;
    blocking(move || {
        let folder = tempfile::tempdir().unwrap();
        client(address, &folder.path().join("got"));
    })
    .await;
    server.stop().await;
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&text));
}

fn same(path: &Path, expected: &[u8]) {
    let bytes = std::fs::read(path).unwrap_or_default();
    assert!(bytes == expected, "{}: {} bytes came, {} were served", path.display(), bytes.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn tftp_hpa() {
    needs("tftp", "tftp-hpa");
    interop(|server, target| {
        let (ip, port) = (server.ip().to_string(), server.port().to_string());
        for size in SIZES {
            let name = format!("boot/f{size}");
            run(Command::new("tftp").args(["-m", "binary", &ip, &port, "-c", "get", &name]).arg(target));
            same(target, &pattern(size));
        }
        run(Command::new("tftp").args(["-m", "netascii", &ip, &port, "-c", "get", "text"]).arg(target));
        same(target, b"one\ntwo\r\nthree\r");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atftp() {
    needs("atftp", "atftp");
    interop(|server, target| {
        let (ip, port) = (server.ip().to_string(), server.port().to_string());
        let option_sets: [&[&str]; 3] =
            [&[], &["blksize 1428", "tsize"], &["blksize 1428", "windowsize 16", "timeout 3"]];
        for size in SIZES {
            for options in option_sets {
                let mut command = Command::new("atftp");
                for option in options {
                    command.args(["--option", option]);
                }
                command.args(["-g", "-r", &format!("/boot/f{size}"), "-l"]).arg(target);
                run(command.args([&ip, &port]));
                same(target, &pattern(size));
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl() {
    needs("curl", "curl");
    interop(|server, target| {
        // curl 7.88 itself stumbles over an empty file, with any server.
        for size in SIZES.into_iter().filter(|size| *size > 0) {
            for extra in [&["--tftp-no-options"][..], &["--tftp-blksize", "1468"], &["--tftp-blksize", "65464"]] {
                let url = format!("tftp://{server}/boot/f{size}");
                run(Command::new("curl").args(["-sS", &url]).args(extra).arg("-o").arg(target));
                same(target, &pattern(size));
            }
        }
        let missing = Command::new("curl").args(["-sS", &format!("tftp://{server}/nothing")]).output().unwrap();
        assert_eq!(missing.status.code(), Some(68), "curl knows error 1: file not found");
    })
    .await;
}
