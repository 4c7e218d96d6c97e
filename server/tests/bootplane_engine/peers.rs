//! Real clients: curl and Python's `http.client`.

use std::process::Command;

use super::*;

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn curl(arguments: &[&str]) -> Vec<u8> {
    run("curl", &[&["--silent", "--show-error", "--max-time", "60", "--noproxy", "*"], arguments].concat())
}

#[test]
fn curl_head() {
    let rig = Rig::start();
    let head = String::from_utf8(curl(&["--head", &rig.url("/small")])).expect("text");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for field in ["Content-Length: 100001", "Accept-Ranges: bytes", "ETag: \"v1\"", "Cache-Control: public, max-age="] {
        assert!(head.contains(field), "{field} not in {head}");
    }
    assert_eq!(rig.next_ended(), Ended { path: "/small".into(), status: 200, sent: 0, complete: true });
}

#[test]
fn curl_whole_range_and_condition() {
    let rig = Rig::start();
    assert_eq!(curl(&[&rig.url("/small")]), pattern(100_001));
    assert_eq!(curl(&["--range", "1000-1999", &rig.url("/small")]), &pattern(100_001)[1000..2000]);
    assert_eq!(curl(&["--range", "-5", &rig.url("/small")]), &pattern(100_001)[99_996..]);
    let same = ["--header", "If-None-Match: \"v1\"", "--write-out", "%{http_code}"];
    assert_eq!(curl(&[&same[..], &[&rig.url("/small")]].concat()), b"304");
    assert_eq!(curl(&[&rig.url("/text?mac=52%3A54")]), b"mac=52%3A54\n");
}

#[test]
fn curl_resumes() {
    let rig = Rig::start();
    let folder = tempfile::tempdir().expect("a folder");
    let part = folder.path().join("part");
    std::fs::write(&part, &pattern(100_001)[..33_333]).expect("written");
    let name = part.to_str().expect("text");
    curl(&["--continue-at", "-", "--output", name, &rig.url("/small")]);
    assert_eq!(std::fs::read(&part).expect("read"), pattern(100_001));
    let ended = rig.next_ended();
    assert_eq!((ended.status, ended.sent), (206, 100_001 - 33_333));
}

#[test]
fn curl_keeps_a_connection() {
    let rig = Rig::start();
    let told = curl(&[
        "--write-out",
        "%{num_connects},",
        "--output",
        "/dev/null",
        "--output",
        "/dev/null",
        "--output",
        "/dev/null",
        &rig.url("/small"),
        &rig.url("/joined"),
        &rig.url("/absent"),
    ]);
    assert_eq!(told, b"1,0,0,");
    let told = curl(&[
        "--http1.0",
        "--header",
        "Connection: keep-alive",
        "--write-out",
        "%{num_connects},",
        "--output",
        "/dev/null",
        "--output",
        "/dev/null",
        &rig.url("/small"),
        &rig.url("/small"),
    ]);
    assert_eq!(told, b"1,0,");
}

#[test]
fn curl_across_segments() {
    let rig = Rig::start();
    assert_eq!(curl(&[&rig.url("/joined")]), joined());
    assert_eq!(curl(&["--range", "99990-100020", &rig.url("/joined")]), &joined()[99_990..=100_020]);
    assert_eq!(curl(&["--range", "50000-170008", &rig.url("/joined")]), &joined()[50_000..=170_008]);
}

#[test]
fn curl_is_told_when_to_come_back() {
    let rig = Rig::start();
    let head = String::from_utf8(curl(&["--include", &rig.url("/later")])).expect("text");
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Retry-After: 7\r\n"), "{head}");
}

#[test]
fn python_pipelines() {
    let rig = Rig::start();
    let script = r#"
import http.client, socket, sys
port = int(sys.argv[1])
sock = socket.create_connection(("127.0.0.1", port), timeout=60)
head = "%s %s HTTP/1.1\r\nHost: h\r\n\r\n"
sock.sendall("".join(head % pair for pair in [("GET", "/small"), ("HEAD", "/large"), ("GET", "/text?2"), ("GET", "/absent")]).encode())
stream = sock.makefile("rb")
class Same:
    def makefile(self, *_): return stream
stream_close, stream.close = stream.close, lambda: None
for method, status, length in [("GET", 200, 100001), ("HEAD", 200, 0), ("GET", 200, 2), ("GET", 404, 13)]:
    response = http.client.HTTPResponse(Same(), method=method)
    response.begin()
    assert (response.status, len(response.read())) == (status, length), (response.status, length)
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
for _ in range(20):
    connection.request("GET", "/small", headers={"Range": "bytes=10-19"})
    response = connection.getresponse()
    assert (response.status, len(response.read())) == (206, 10)
print("done")
"#;
    assert_eq!(run("python3", &["-c", script, &rig.address.port().to_string()]), b"done\n");
}
