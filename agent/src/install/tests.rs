//! The relay and the whole installation, with a fake installer and a service that cuts connections.
#![allow(clippy::disallowed_methods, reason = "files, sockets and programs of the tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use nkd_api::Sha256Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const SIZE: usize = 3 << 20;

fn image() -> Vec<u8> {
    (0..SIZE).map(|i| u8::try_from((i * i / 7 + i) % 251).unwrap()).collect()
}

fn sha256(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().try_into().unwrap())
}

/// How the image server behaves.
#[derive(Clone, Copy)]
enum Manner {
    /// Range, and the connection is cut after this many bytes.
    Cuts(usize),
    /// No Range: the whole image every time, cut like this until the third request.
    CutsWithoutRange(usize),
    /// Every request is refused.
    Refuses(&'static str),
}

/// An image server; the address, and how often it was asked.
async fn server(content: Vec<u8>, manner: Manner) -> (String, Arc<Mutex<Vec<u64>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/images/node.raw", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let start = head
                .split_once("range: bytes=")
                .map_or(0, |(_, rest)| rest.split('-').next().unwrap().parse::<usize>().unwrap());
            let count = {
                let mut seen = seen.lock().unwrap();
                seen.push(start as u64);
                seen.len()
            };
            let (status, from, limit) = match manner {
                Manner::Refuses(status) => (format!("{status}\r\ncontent-length: 0"), SIZE, 0),
                Manner::Cuts(limit) if start > 0 => {
                    let range = format!("206 Partial Content\r\ncontent-range: bytes {start}-{}/{SIZE}", SIZE - 1);
                    (format!("{range}\r\ncontent-length: {}", SIZE - start), start, limit)
                }
                Manner::Cuts(limit) => (format!("200 OK\r\ncontent-length: {SIZE}"), 0, limit),
                Manner::CutsWithoutRange(limit) => {
                    let limit = if count < 3 { limit * count } else { SIZE };
                    (format!("200 OK\r\ncontent-length: {SIZE}"), 0, limit)
                }
            };
            let body = &content[from.min(content.len())..(from + limit).min(content.len())];
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await;
            let _ = stream.write_all(body).await;
        }
    });
    (url, asked)
}

fn patience() -> Patience {
    let short = Duration::from_millis(1);
    Patience { tries: 4, first: short, cap: short, stall: Duration::from_secs(20) }
}

/// What an installer that asks the relay sees: the body, and whether it was whole.
async fn through_relay(url: String, size: u64, digest: Sha256Digest) -> (Vec<u8>, u64, Verdict) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut receiver) = watch::channel(Verdict::Untouched);
    let wanted = Wanted { url, sha256: digest, size, patience: patience() };
    let serving = tokio::spawn(relay::serve(listener, wanted, sender));
    let ask = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let body = answer.split_off(end);
        (String::from_utf8(answer).unwrap(), body)
    };
    let (head, _) = ask("/node.raw.sig").await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    assert_eq!(*receiver.borrow_and_update(), Verdict::Untouched);
    let (head, body) = ask("/node.raw").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let length = head.split("Content-Length: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    let ended = |verdict: &Verdict| !matches!(verdict, Verdict::Untouched | Verdict::Relaying(_));
    let verdict = receiver.wait_for(ended).await.unwrap().clone();
    serving.abort();
    (body, length, verdict)
}

#[tokio::test]
async fn a_service_that_cuts_every_connection_still_gives_the_whole_image() {
    for manner in [Manner::Cuts(500_000), Manner::CutsWithoutRange(500_000)] {
        let (url, asked) = server(image(), manner).await;
        let (body, length, verdict) = through_relay(url, SIZE as u64, sha256(&image())).await;
        assert_eq!(verdict, Verdict::Verified);
        assert_eq!(length, SIZE as u64);
        assert!(body == image(), "every byte once and in order");
        let asked = asked.lock().unwrap().clone();
        assert!(asked.len() >= 3 && asked[1] > 0, "{asked:?}");
    }
}

#[tokio::test]
async fn a_wrong_digest_cuts_the_connection_before_the_end() {
    let (url, _) = server(image(), Manner::Cuts(SIZE)).await;
    let (body, length, verdict) = through_relay(url, SIZE as u64, sha256(b"other")).await;
    assert_eq!(verdict, Verdict::Mismatch(sha256(&image())));
    assert_eq!(length, SIZE as u64);
    assert_eq!(body.len(), SIZE - relay::TAIL, "the end is held back");
}

#[tokio::test]
async fn a_small_image_with_a_wrong_digest_gives_no_byte() {
    let (url, _) = server(image(), Manner::Cuts(SIZE)).await;
    // The server has more bytes than the task says.
    let (body, _, verdict) = through_relay(url, 1000, sha256(b"other")).await;
    assert!(body.is_empty());
    assert_eq!(verdict, Verdict::FetchFailed(fetch::FetchError::Size { found: SIZE as u64, expected: 1000 }));
}

#[tokio::test]
async fn patience_ends_and_a_refusal_is_final() {
    let (url, asked) = server(image(), Manner::Refuses("503 Service Unavailable")).await;
    let (_, _, verdict) = through_relay(url, SIZE as u64, sha256(b"")).await;
    assert!(matches!(verdict, Verdict::FetchFailed(fetch::FetchError::GaveUp { tries: 4, .. })), "{verdict:?}");
    assert_eq!(asked.lock().unwrap().len(), 4);
    let (url, asked) = server(image(), Manner::Refuses("404 Not Found")).await;
    let (_, _, verdict) = through_relay(url, SIZE as u64, sha256(b"")).await;
    assert_eq!(verdict, Verdict::FetchFailed(fetch::FetchError::Status(http::StatusCode::NOT_FOUND)));
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[test]
fn the_file_name_is_the_end_of_the_address_and_nothing_else() {
    for (url, name) in
        [("http://a/b/node.raw.zst?x=/y", "node.raw.zst"), ("http://a/", "image"), ("http://a/b/..%2f;x", "..2fx")]
    {
        let wanted = Wanted { url: url.into(), sha256: sha256(b""), size: 0, patience: patience() };
        assert_eq!(wanted.file_name(), name);
    }
}

/// A machine: a disk in a file, and a fake installer that writes what it gets.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(installer: &str) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        let root = machine.0.path();
        for dir in ["sys/block/vda", "dev", "bin", "run"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::write(root.join("sys/block/vda/size"), (8u64 << 20 >> 9).to_string()).unwrap();
        fs::write(root.join("dev/vda"), vec![9u8; 8 << 20]).unwrap();
        let program = root.join("bin/coreos-installer");
        fs::write(&program, format!("#!/bin/sh\nexec 2>&1\n{installer}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        machine
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(self.0.path().join("dev/vda")).unwrap()
    }

    /// What [`install`] does once it has the configuration.
    async fn run(&self, url: String, digest: Sha256Digest) -> (Result<(), InstallFailure>, Vec<(&'static str, u8)>) {
        let root = self.0.path();
        let place = Workplace {
            root: Root::new(root),
            run_dir: root.join("run"),
            path: format!("{}:/usr/bin:/bin", root.join("bin").display()),
            patience: patience(),
        };
        let task = InstallTask {
            generation: 1,
            image_url: url,
            image_sha256: digest,
            image_size: SIZE as u64,
            disk: None,
            installer: "coreos-installer".into(),
            append_kargs: vec!["a=b".into()],
            firstboot_args: "ip=dhcp".into(),
        };
        let steps = Mutex::new(Vec::new());
        let progress = |step, percent| steps.lock().unwrap().push((step, percent));
        let config = br#"{"ignition":{"version":"3.3.0"}}"#;
        let ended = write(&place, &task, "/dev/vda", config, &progress).await;
        assert_eq!(fs::read_dir(root.join("run")).unwrap().count(), 0, "the configuration is removed");
        (ended, steps.into_inner().unwrap())
    }
}

/// Fetches the address in its second argument, as the real one does, and writes the first MiB last.
const GOOD: &str = r#"
url=${2#--image-url=}; for last; do :; done
[ "$1" = install ] && [ "$3" = --insecure ] && [ "$5" = --platform=metal ] || exit 9
grep -q 3.3.0 "${4#--ignition-file=}" || exit 8
[ "$(stat -c %a "${4#--ignition-file=}")" = 600 ] || exit 7
[ "$6" = --firstboot-args=ip=dhcp ] && [ "$7" = --append-karg=a=b ] || exit 6
curl -sf "$url.sig" >/dev/null && exit 5
echo "Signature not found; skipping verification as requested"
curl -sf "$url" -o "$last.part" || { echo "Error: decoding and writing image"; dd if=/dev/zero of="$last" bs=1M count=1 conv=notrunc 2>/dev/null; exit 1; }
dd if="$last.part" of="$last" bs=1M conv=notrunc 2>/dev/null
echo Install complete.
"#;

#[tokio::test]
async fn a_good_image_is_on_the_disk() {
    let machine = Machine::new(GOOD);
    let (url, _) = server(image(), Manner::Cuts(700_000)).await;
    let (ended, steps) = machine.run(url, sha256(&image())).await;
    assert_eq!(ended, Ok(()));
    assert!(machine.disk()[..SIZE] == image());
    assert_eq!(steps.last(), Some(&("verify", 100)), "{steps:?}");
    assert!(steps.is_sorted_by_key(|(_, percent)| *percent), "{steps:?}");
}

#[tokio::test]
async fn a_wrong_image_never_boots_even_if_the_installer_ignores_the_end() {
    // The second installer writes whatever came and says that all is well.
    let careless = GOOD.replace("|| { echo", "; true || { echo");
    for installer in [GOOD, &careless] {
        let machine = Machine::new(installer);
        let (url, _) = server(image(), Manner::Cuts(700_000)).await;
        let (ended, _) = machine.run(url, sha256(b"other")).await;
        let failure = ended.unwrap_err();
        assert_eq!((failure.step, failure.retry), ("verify", false), "{failure:?}");
        assert!(failure.reason.contains(&sha256(&image()).to_string()), "{failure:?}");
        let disk = machine.disk();
        assert!(disk[..1 << 20].iter().chain(&disk[7 << 20..]).all(|b| *b == 0), "both ends are cleared");
    }
}

#[tokio::test]
async fn a_failing_installer_is_reported_with_its_log() {
    let machine = Machine::new("seq 1 3000; echo 'Error: found busy partitions'; exit 1");
    let (url, asked) = server(image(), Manner::Cuts(SIZE)).await;
    let (ended, _) = machine.run(url, sha256(&image())).await;
    let failure = ended.unwrap_err();
    assert_eq!((failure.step, failure.retry), ("write", false), "{failure:?}");
    assert!(failure.log_tail.ends_with("Error: found busy partitions\n"), "{failure:?}");
    assert!(failure.log_tail.len() <= installer::LOG_TAIL);
    assert!(asked.lock().unwrap().is_empty());
    assert_eq!(machine.disk()[0], 9, "a disk that was not touched is left");
}

#[tokio::test]
async fn an_installer_that_lies_is_not_believed() {
    let machine = Machine::new("echo Install complete.");
    let (url, _) = server(image(), Manner::Cuts(SIZE)).await;
    let (ended, _) = machine.run(url, sha256(&image())).await;
    assert_eq!(ended.unwrap_err().step, "verify");
}

#[tokio::test]
async fn an_image_that_cannot_be_fetched_is_worth_another_try() {
    let machine = Machine::new(GOOD);
    let (url, _) = server(image(), Manner::Refuses("503 Service Unavailable")).await;
    let (ended, _) = machine.run(url, sha256(&image())).await;
    let failure = ended.unwrap_err();
    assert_eq!((failure.step, failure.retry), ("fetch", true), "{failure:?}");
}

/// The real program against the relay, as far as it goes without a disk and udev: it asks, sniffs, unpacks and writes a
/// file through the code that writes the disk. The disk is for the machine tests.
#[tokio::test]
#[ignore = "vm tier: needs coreos-installer, which comes with the lab image"]
async fn the_real_installer_takes_the_image_and_fails_on_a_wrong_one() {
    let program = std::env::var_os("NKD_COREOS_INSTALLER");
    let program = program.expect("NKD_COREOS_INSTALLER names no installer: run `cargo xtask test --tier vm`");
    for (digest, good) in [(sha256(&image()), true), (sha256(b"other"), false)] {
        let (origin, _) = server(image(), Manner::Cuts(700_000)).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/node.raw", listener.local_addr().unwrap());
        let wanted = Wanted { url: origin, sha256: digest, size: SIZE as u64, patience: patience() };
        let (sender, _receiver) = watch::channel(Verdict::Untouched);
        let serving = tokio::spawn(relay::serve(listener, wanted, sender));
        let directory = tempfile::tempdir().unwrap();
        let run = tokio::process::Command::new(&program)
            .args(["download", "--insecure", "--decompress", &format!("--image-url={url}"), "--directory"])
            .arg(directory.path())
            .output()
            .await
            .unwrap();
        serving.abort();
        let log = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.success(), good, "{log}");
        let file = fs::read(directory.path().join("node.raw"));
        assert_eq!(file.is_ok_and(|file| file == image()), good, "{log}");
    }
}
