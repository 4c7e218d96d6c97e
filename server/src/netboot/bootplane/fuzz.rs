//! What must hold for any bytes a client may send: a target for a fuzzer.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::request::{Endpoints, HEAD_LIMIT, Method, parse};
use super::response::{Answer, Body, Segment, refuse, respond};

/// Reads `data` as what a client sent, in one piece and in two, and answers it.
///
/// # Panics
/// If an invariant does not hold.
pub fn run_one(data: &[u8]) {
    let ends = Endpoints {
        peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        local: SocketAddr::from((Ipv4Addr::LOCALHOST, 2)),
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let whole = parse(data, ends);
    let half = parse(&data[..data.len() / 2], ends);
    assert!(matches!(half, Ok(None)) || half == whole, "a piece is read otherwise than the whole");
    let response = match whole {
        Ok(None) => return assert!(data.len() < HEAD_LIMIT, "a full head is still waited for"),
        Err(refusal) => refuse(refusal, now),
        Ok(Some((request, length))) => {
            assert!((1..=HEAD_LIMIT).contains(&length));
            let path = &request.path;
            assert!(path.starts_with('/') && !path.contains("//") && !path.contains(['\\', '\0', '\r', '\n']));
            assert!(path.split('/').all(|segment| !matches!(segment, "." | "..")));
            // The body is made of the request, so that the fuzzer chooses its lengths.
            let bytes = Bytes::copy_from_slice(&data[..length]);
            let zeros = u64::from(data[length / 2]);
            let body = Body::new(vec![Segment::Zeros(zeros), Segment::Bytes(bytes), Segment::Zeros(zeros / 2)]);
            let mut answer = Answer::new(200, "text/plain", body).with_etag(request.path.clone());
            answer.headers.push(("X-Query", request.query.clone()));
            let response = respond(&request, answer, false, now);
            assert!(request.method == Method::Get || response.body.is_empty());
            response
        }
    };
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    assert_eq!(head.parse(&response.head), Ok(httparse::Status::Complete(response.head.len())), "not one whole head");
    assert_eq!(head.code, Some(response.status));
    assert!(head.headers.iter().all(|field| !field.value.is_empty()), "EDK2 stumbles over empty fields");
    let length = head.headers.iter().find(|field| field.name == "Content-Length").map(|field| field.value.to_vec());
    if !response.body.is_empty() {
        assert_eq!(length, Some(response.body.len().to_string().into_bytes()), "the length is not that of the body");
    }
}
