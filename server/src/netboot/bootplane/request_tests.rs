//! Tests of the request head: tables of what is read and refused, and properties over any bytes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::netboot::bootplane::fuzz::run_one;

fn ends() -> Endpoints {
    let mapped = Ipv4Addr::new(10, 0, 0, 7).to_ipv6_mapped();
    Endpoints { peer: (mapped, 4000).into(), local: (Ipv6Addr::LOCALHOST, 8080).into() }
}

fn read(head: &str) -> Result<Request, u16> {
    match parse(head.as_bytes(), ends()) {
        Ok(Some((request, length))) => {
            assert_eq!(length, head.len());
            Ok(request)
        }
        Ok(None) => panic!("not complete: {head:?}"),
        Err(refusal) => Err(refusal.status()),
    }
}

fn path(target: &str) -> Result<String, u16> {
    read(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")).map(|request| request.path)
}

#[test]
fn a_head_gets_its_meaning() {
    let head = "HEAD /a%20b?mac=52:54&x= HTTP/1.1\r\nhost: 10.0.0.1:8080\r\nRange: bytes=0-1\r\nIf-None-Match: \"a\"\r\n\
                If-None-Match: \"b\"\r\nUser-Agent: iPXE/1.21\r\n\r\n";
    let request = read(head).expect("a good head");
    assert_eq!((request.method, request.path.as_str()), (Method::Head, "/a b"));
    assert_eq!(request.query, "mac=52:54&x=");
    assert_eq!(request.host.as_deref(), Some("10.0.0.1:8080"));
    assert_eq!(request.range.as_deref(), Some("bytes=0-1"));
    assert_eq!(request.if_none_match.as_deref(), Some("\"a\", \"b\""));
    assert_eq!(request.user_agent.as_deref(), Some("iPXE/1.21"));
    assert_eq!(request.peer, SocketAddr::from((Ipv4Addr::new(10, 0, 0, 7), 4000)));
    assert!(request.keep_alive && !request.http_10);
}

#[test]
fn paths_are_decoded_and_normalised() {
    for (target, expected) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("//a///b/", "/a/b/"),
        ("/./a/.", "/a"),
        ("/%41%c3%a4", "/Aä"),
        ("/a%2Bb+c", "/a+b+c"),
        ("/...", "/..."),
        ("http://h/x", "/x"),
        ("HTTP://h", "/"),
        ("http://h?q", "/"),
    ] {
        assert_eq!(path(target).as_deref(), Ok(expected), "{target}");
    }
}

#[test]
fn paths_that_could_mean_something_else_are_refused() {
    for target in [
        "/..",
        "/a/../b",
        "/%2e%2e/x",
        "/.%2E",
        "/a%2fb",
        "/a%5cb",
        "/a\\b",
        "/%00",
        "/%0d%0a",
        "/%",
        "/%4",
        "/%zz",
        "/%ff",
        "/%+1",
        "/a#b",
        "*",
        "a",
        "ftp://h/",
        "http://",
        "http:///x",
        "h:80",
    ] {
        assert_eq!(path(target), Err(400), "{target}");
    }
}

#[test]
fn what_cannot_be_answered_is_refused_with_its_status() {
    for (head, status) in [
        ("POST / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("BREW / HTTP/1.1\r\nHost: h\r\n\r\n", 501),
        ("get / HTTP/1.1\r\nHost: h\r\n\r\n", 501),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        ("GET /\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a;reboot\r\n\r\n", 400),
        ("GET http://a${x}/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nBad Name: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n", 413),
        ("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        ("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: x\r\nContent-Length: 0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03", 400),
    ] {
        assert_eq!(read(head).map(|_| ()), Err(status), "{head:?}");
    }
}

#[test]
fn limits_of_a_head() {
    let long = "x".repeat(HEAD_LIMIT);
    assert_eq!(read(&format!("GET /{long}")).map(|_| ()), Err(414));
    assert_eq!(read(&format!("GET / HTTP/1.1\r\nHost: h\r\nA: {long}")).map(|_| ()), Err(431));
    let many = "A: b\r\n".repeat(FIELD_LIMIT + 1);
    assert_eq!(read(&format!("GET / HTTP/1.1\r\n{many}\r\n")).map(|_| ()), Err(431));
    let frame = "GET / HTTP/1.1\r\nHost: h\r\nA: \r\n\r\n";
    let full = frame.replace("A: ", &format!("A: {}", "x".repeat(HEAD_LIMIT - frame.len())));
    assert!(read(&full).is_ok());
    assert_eq!(read(&full.replace("A: ", "A: x")).map(|_| ()), Err(431));
}

#[test]
fn keep_alive_follows_the_version() {
    for (head, kept) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: h\r\nConnection: foo, Close\r\n\r\n", false),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", false),
    ] {
        assert_eq!(read(head).map(|request| request.keep_alive), Ok(kept), "{head:?}");
    }
}

#[test]
fn pipelined_heads_are_read_one_by_one() {
    let first = "GET /1 HTTP/1.1\r\nHost: h\r\n\r\n";
    let both = format!("{first}GET /2 HTTP/1.1\r\nHost: h\r\n\r\n");
    let (request, length) = parse(both.as_bytes(), ends()).expect("good").expect("complete");
    assert_eq!((request.path.as_str(), length), ("/1", first.len()));
}

/// Heads that are nearly right: pieces of the grammar in any order.
fn nearly_a_head() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("GET ".to_owned()),
        Just("HEAD /x".to_owned()),
        Just(" HTTP/1.1\r\n".to_owned()),
        Just(" HTTP/1.0\r\n".to_owned()),
        Just("Host: h\r\n".to_owned()),
        Just("Range: bytes=".to_owned()),
        Just("Content-Length: ".to_owned()),
        Just("Transfer-Encoding: ".to_owned()),
        Just("\r\n".to_owned()),
        Just("\n".to_owned()),
        Just("/../%2e".to_owned()),
        "[ -~]{0,12}",
        "[0-9]{1,22}",
        proptest::collection::vec(any::<char>(), 0..6).prop_map(|all| all.into_iter().collect()),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_answered_or_refused(data in proptest::collection::vec(any::<u8>(), 1..600)) {
        run_one(&data);
    }

    #[test]
    fn any_near_head_is_answered_or_refused(data in nearly_a_head()) {
        run_one(&data);
        run_one(&[b"GET /x HTTP/1.1\r\nHost: h\r\n".as_slice(), &data, b"\r\n\r\n"].concat());
    }

    /// Whatever the cuts, the first piece that settles the head settles it as the whole does.
    #[test]
    fn split_reads_equal_one_read(data in nearly_a_head(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5)) {
        let data = [b"GET /x HTTP/1.1\r\nHost: h\r\n".as_slice(), &data].concat();
        let whole = parse(&data, ends());
        for cut in cuts {
            match parse(&data[..cut.index(data.len() + 1)], ends()) {
                Ok(None) => {}
                settled => prop_assert_eq!(&settled, &whole),
            }
        }
    }

    #[test]
    fn a_good_path_survives_encoding(segments in proptest::collection::vec("[a-zA-Z0-9 äß:+%?#-]{1,8}", 1..5)) {
        let plain = format!("/{}", segments.join("/"));
        let encoded: String = plain.bytes().map(|byte| match byte {
            b'/' => "/".to_owned(),
            byte => format!("%{byte:02x}"),
        }).collect();
        prop_assert_eq!(path(&encoded), Ok(plain));
    }
}
