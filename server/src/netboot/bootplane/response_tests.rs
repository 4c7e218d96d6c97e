//! Tests of the response: range arithmetic against plain slices, conditions, and the fields of the head.

use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;

use super::*;
use crate::netboot::bootplane::request::{Endpoints, parse};

fn request(line: &str, fields: &str) -> Request {
    let ends = Endpoints { peer: (Ipv4Addr::LOCALHOST, 1).into(), local: (Ipv4Addr::LOCALHOST, 2).into() };
    let head = format!("{line}\r\nHost: h\r\n{fields}\r\n");
    parse(head.as_bytes(), ends).expect("a good head").expect("a whole head").0
}

fn get(fields: &str) -> Request {
    request("GET / HTTP/1.1", fields)
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
}

fn field(response: &Response, name: &str) -> Option<String> {
    let head = std::str::from_utf8(&response.head).expect("text");
    let mut named = head.lines().filter_map(|line| line.split_once(": ")).filter(|(key, _)| *key == name);
    let value = named.next().map(|(_, value)| value.to_owned());
    assert!(named.next().is_none(), "{name} twice");
    value
}

/// What a client would receive.
fn bytes(body: &Body) -> Vec<u8> {
    let mut all = Vec::new();
    for segment in body.segments() {
        match segment {
            Segment::Bytes(bytes) => all.extend_from_slice(bytes),
            Segment::Zeros(len) => all.resize(all.len() + usize::try_from(*len).expect("small"), 0),
            Segment::File { file, offset, len } => {
                let mut piece = vec![0; usize::try_from(*len).expect("small")];
                file.read_exact_at(&mut piece, *offset).expect("within the file");
                all.extend_from_slice(&piece);
            }
        }
    }
    all
}

fn answer(text: &'static str) -> Answer {
    Answer::new(200, "text/plain", text).with_etag("v1").with_cache(Cache::Immutable)
}

#[test]
fn the_whole_has_every_field_that_firmware_wants() {
    let response = respond(&get(""), answer("0123456789"), false, now());
    let head = String::from_utf8(response.head.clone()).expect("text");
    assert_eq!(
        head,
        "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 10\r\nAccept-Ranges: bytes\r\n\
         Content-Type: text/plain\r\nETag: \"v1\"\r\nCache-Control: public, max-age=31536000, immutable\r\n\r\n"
    );
    assert_eq!(bytes(&response.body), b"0123456789");
    assert!(!response.close);
}

#[test]
fn ranges_of_ten_bytes() {
    for (range, status, content_range, body) in [
        ("bytes=0-0", 206, Some("bytes 0-0/10"), "0"),
        ("bytes=2-4", 206, Some("bytes 2-4/10"), "234"),
        ("bytes=7-", 206, Some("bytes 7-9/10"), "789"),
        ("bytes=7-99999999999999999999999", 206, Some("bytes 7-9/10"), "789"),
        ("bytes=-3", 206, Some("bytes 7-9/10"), "789"),
        ("bytes=-99", 206, Some("bytes 0-9/10"), "0123456789"),
        ("Bytes= 1-2", 206, Some("bytes 1-2/10"), "12"),
        ("bytes=10-", 416, Some("bytes */10"), ""),
        ("bytes=10-12", 416, Some("bytes */10"), ""),
        ("bytes=99999999999999999999999-", 416, Some("bytes */10"), ""),
        ("bytes=-0", 416, Some("bytes */10"), ""),
        ("bytes=4-2", 200, None, "0123456789"),
        ("bytes=0-1,3-4", 200, None, "0123456789"),
        ("bytes=0-1,", 200, None, "0123456789"),
        ("bytes=-", 200, None, "0123456789"),
        ("bytes=a-b", 200, None, "0123456789"),
        ("bytes=1-b", 200, None, "0123456789"),
        ("bytes=+1-2", 200, None, "0123456789"),
        ("bytes 1-2", 200, None, "0123456789"),
        ("lines=1-2", 200, None, "0123456789"),
    ] {
        let response = respond(&get(&format!("Range: {range}\r\n")), answer("0123456789"), false, now());
        assert_eq!(response.status, status, "{range}");
        assert_eq!(field(&response, "Content-Range").as_deref(), content_range, "{range}");
        assert_eq!(bytes(&response.body), body.as_bytes(), "{range}");
        assert_eq!(field(&response, "Content-Length"), Some(body.len().to_string()), "{range}");
    }
}

#[test]
fn an_empty_resource_has_no_range() {
    for range in ["bytes=0-", "bytes=-1", "bytes=0-0"] {
        let response = respond(&get(&format!("Range: {range}\r\n")), Answer::text(200, ""), false, now());
        assert_eq!(response.status, 416, "{range}");
    }
    assert_eq!(respond(&get(""), Answer::text(200, ""), false, now()).status, 200);
}

#[test]
fn head_says_what_get_would_send() {
    let head = request("HEAD / HTTP/1.1", "Range: bytes=1-2\r\n");
    let response = respond(&head, answer("0123456789"), false, now());
    assert_eq!((response.status, field(&response, "Content-Length").as_deref()), (200, Some("10")));
    assert!(response.body.is_empty());
}

#[test]
fn conditions() {
    for (fields, status) in [
        ("If-None-Match: \"v1\"\r\n", 304),
        ("If-None-Match: \"v0\", W/\"v1\"\r\n", 304),
        ("If-None-Match: *\r\n", 304),
        ("If-None-Match: \"v1\"\r\nRange: bytes=0-0\r\n", 304),
        ("If-None-Match: \"v2\"\r\n", 200),
        ("If-None-Match: v1\r\n", 200),
        ("If-None-Match: \"a\"v1\"b\"\r\n", 200),
        ("Range: bytes=0-0\r\nIf-Range: \"v1\"\r\n", 206),
        ("Range: bytes=0-0\r\nIf-Range: W/\"v1\"\r\n", 200),
        ("Range: bytes=0-0\r\nIf-Range: \"v2\"\r\n", 200),
        ("Range: bytes=0-0\r\nIf-Range: Sun, 06 Nov 1994 08:49:37 GMT\r\n", 200),
        ("Range: bytes=0-0\r\nRange: bytes=1-1\r\n", 200),
    ] {
        let response = respond(&get(fields), answer("0123456789"), false, now());
        assert_eq!(response.status, status, "{fields:?}");
        assert_eq!(field(&response, "ETag").as_deref(), Some("\"v1\""), "{fields:?}");
        if status == 304 {
            assert!(response.body.is_empty() && field(&response, "Content-Length").is_none());
        }
    }
}

#[test]
fn only_a_200_has_ranges_and_conditions() {
    let fields = get("Range: bytes=0-0\r\nIf-None-Match: *\r\n");
    let response = respond(&fields, Answer::text(404, "no such image\n").with_etag("v1"), false, now());
    assert_eq!((response.status, bytes(&response.body).len()), (404, 14));
}

#[test]
fn a_503_says_when_to_come_back() {
    let response = respond(&get(""), Answer::text(503, "wait\n"), false, now());
    assert_eq!(field(&response, "Retry-After").as_deref(), Some("5"));
    let response = respond(&get(""), Answer::unavailable("wait\n", Duration::from_millis(20)), false, now());
    assert_eq!(field(&response, "Retry-After").as_deref(), Some("1"));
}

#[test]
fn a_handler_cannot_break_the_head() {
    let mut answer = answer("x").with_etag("a\"b");
    answer.headers = vec![
        ("X-Good", "value".to_owned()),
        ("X-Split", "a\r\nSet-Cookie: b".to_owned()),
        ("X-Empty", " ".to_owned()),
        ("X Name", "v".to_owned()),
        ("content-length", "99".to_owned()),
        ("Transfer-Encoding", "chunked".to_owned()),
    ];
    answer.content_type = "text/\nplain".into();
    let response = respond(&get(""), answer, false, now());
    let head = String::from_utf8(response.head.clone()).expect("text");
    assert_eq!(field(&response, "X-Good").as_deref(), Some("value"));
    assert_eq!(field(&response, "Content-Length").as_deref(), Some("1"));
    for absent in ["X-Split", "Set-Cookie", "X-Empty", "X Name", "Transfer", "ETag", "Content-Type"] {
        assert!(!head.contains(absent), "{absent} in {head}");
    }
    assert_eq!(respond(&get(""), Answer::text(101, "x"), false, now()).status, 500);
}

#[test]
fn closing_is_said() {
    let kept_10 = request("GET / HTTP/1.0", "Connection: keep-alive\r\n");
    for (request, close, said) in [
        (get(""), false, None),
        (get(""), true, Some("close")),
        (get("Connection: close\r\n"), false, Some("close")),
        (kept_10, false, Some("keep-alive")),
        (request("GET / HTTP/1.0", ""), false, Some("close")),
    ] {
        let response = respond(&request, answer("x"), close, now());
        assert_eq!(field(&response, "Connection").as_deref(), said);
        assert_eq!(response.close, said == Some("close"));
    }
}

#[test]
fn refusals_close() {
    let response = refuse(Refusal::MethodNotAllowed, now());
    assert_eq!((response.status, response.close), (405, true));
    assert_eq!(field(&response, "Allow").as_deref(), Some("GET, HEAD"));
    assert_eq!(field(&response, "Connection").as_deref(), Some("close"));
    assert_eq!(field(&response, "Content-Length"), Some(response.body.len().to_string()));
    assert_eq!(timed_out(now()).status, 408);
}

/// Segments and the bytes that they stand for.
fn segments() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    proptest::collection::vec((0_u8..3, proptest::collection::vec(any::<u8>(), 0..40)), 0..6)
}

fn build(parts: &[(u8, Vec<u8>)]) -> (Body, Vec<u8>) {
    let file = tempfile::tempfile().expect("a file");
    let (mut at, mut oracle, mut all) = (7, Vec::new(), Vec::new());
    let file = Arc::new(file);
    for (kind, bytes) in parts {
        let len = bytes.len() as u64;
        all.push(match kind {
            0 => Segment::Bytes(Bytes::from(bytes.clone())),
            1 => Segment::Zeros(len),
            _ => {
                file.write_all_at(bytes, at).expect("written");
                at += len;
                Segment::File { file: Arc::clone(&file), offset: at - len, len }
            }
        });
        oracle.extend(bytes.iter().map(|byte| if *kind == 1 { 0 } else { *byte }));
    }
    (Body::new(all), oracle)
}

proptest! {
    #[test]
    fn a_part_of_a_body_is_that_slice(parts in segments(), start in 0_usize..250, count in 0_usize..250) {
        let (body, oracle) = build(&parts);
        prop_assert_eq!(body.len(), oracle.len() as u64);
        let expected: Vec<u8> = oracle.iter().copied().skip(start).take(count).collect();
        prop_assert_eq!(bytes(&body.part(start as u64, count as u64)), expected);
        prop_assert_eq!(bytes(&body.part(start as u64, u64::MAX)).len(), oracle.len().saturating_sub(start));
    }

    #[test]
    fn a_range_is_that_slice(parts in segments(), first in 0_usize..250, last in proptest::option::of(0_usize..250)) {
        let (body, oracle) = build(&parts);
        let answer = Answer { body, ..Answer::text(200, "") };
        let range = format!("Range: bytes={first}-{}\r\n", last.map(|last| last.to_string()).unwrap_or_default());
        let response = respond(&get(&range), answer, false, now());
        let end = last.map_or(oracle.len(), |last| oracle.len().min(last + 1));
        let (status, expected) = match () {
            () if last.is_some_and(|last| last < first) => (200, oracle.as_slice()),
            () if first >= oracle.len() => (416, [].as_slice()),
            () => (206, &oracle[first..end]),
        };
        prop_assert_eq!(response.status, status);
        prop_assert_eq!(bytes(&response.body), expected);
        prop_assert_eq!(field(&response, "Content-Length"), Some(expected.len().to_string()));
    }

    #[test]
    fn a_suffix_is_that_slice(parts in segments(), suffix in 0_usize..250) {
        let (body, oracle) = build(&parts);
        let answer = Answer { body, ..Answer::text(200, "") };
        let response = respond(&get(&format!("Range: bytes=-{suffix}\r\n")), answer, false, now());
        let expected = &oracle[oracle.len().saturating_sub(suffix)..];
        prop_assert_eq!(response.status, if expected.is_empty() { 416 } else { 206 });
        prop_assert_eq!(bytes(&response.body), expected);
    }
}
