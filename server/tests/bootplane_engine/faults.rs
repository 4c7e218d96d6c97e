//! Clients that are slow, rude or gone, handlers that fail, and the shutdown.

use std::io::ErrorKind;

use nkd_server::netboot::bootplane::BindError;

use super::*;

const GET_LARGE: &str = "GET /large HTTP/1.1\r\nHost: h\r\n\r\n";
const GET_TEXT: &str = "GET /text?hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

fn status(response: &[u8]) -> &str {
    std::str::from_utf8(response.get(9..12).unwrap_or_default()).expect("a status line")
}

/// The rest of a stream, whether it ends well or by a reset.
fn rest(stream: &mut TcpStream) -> u64 {
    let (mut buffer, mut all) = (vec![0; 1 << 16], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(count) => all += count as u64,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Reads past the head of a response.
fn skip_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("more of the head");
        head.push(byte[0]);
        assert!(head.len() < 4096);
    }
}

#[test]
fn slow_loris_is_told_and_closed_while_others_are_served() {
    let rig = Rig::with(short(|limits| limits.head = Duration::from_millis(300)));
    let mut loris = rig.say("GET / HTTP/1.1\r\nX: ");
    assert_eq!(status(&rig.ask(GET_TEXT)), "200");
    // It goes on, a byte at a time; each byte must not buy it more time.
    let mut answer = Vec::new();
    for _ in 0..1000 {
        if loris.write_all(b"x").is_err() {
            break;
        }
        loris.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
        let mut piece = [0; 512];
        match loris.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    assert_eq!(status(&answer), "408");
}

#[test]
fn silent_connections_are_closed_without_a_word() {
    let rig = Rig::with(short(|limits| limits.head = Duration::from_millis(50)));
    assert_eq!(rig.ask(""), b"");
    let rig = Rig::with(short(|limits| limits.idle = Duration::from_millis(50)));
    let answer = rig.ask("GET /text?a HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.ends_with(b"\r\n\r\na\n"));
}

#[test]
fn refused_heads_are_answered_and_closed() {
    let rig = Rig::start();
    let long = "x".repeat(20_000);
    let body = "x".repeat(100_000);
    for (words, expected) in [
        (format!("GET /{long} HTTP/1.1\r\n\r\n"), "414"),
        (format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"), "431"),
        (format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n{body}"), "413"),
        ("POST / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), "405"),
        ("GET /../etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), "400"),
    ] {
        assert_eq!(status(&rig.ask(&words)), expected);
    }
    // What stands behind a refused head is no request.
    let smuggled = "GET /text HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\n\r\nGET /text?2 HTTP/1.1\r\nHost: h\r\n\r\n";
    let answer = String::from_utf8(rig.ask(smuggled)).expect("text");
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
    assert!(rig.ended.try_recv().is_err(), "the handler was asked");
}

#[test]
fn a_head_in_single_bytes_is_read() {
    let rig = Rig::start();
    let mut stream = rig.say("");
    stream.set_nodelay(true).expect("set");
    for byte in GET_TEXT.bytes() {
        stream.write_all(&[byte]).expect("said");
    }
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("an orderly close");
    assert!(all.ends_with(b"hello\n"));
}

#[test]
fn a_client_that_leaves_is_noticed() {
    let rig = Rig::start();
    let mut stream = rig.say(GET_LARGE);
    stream.read_exact(&mut [0; 1000]).expect("the first bytes");
    drop(stream);
    let ended = rig.next_ended();
    assert!(!ended.complete && ended.sent < LARGE, "{ended:?}");
    assert_eq!(rig.metrics.aborted.get(), 1);
    assert_eq!(status(&rig.ask(GET_TEXT)), "200");
}

#[test]
fn a_client_that_ends_its_side_still_gets_all() {
    let rig = Rig::start();
    let mut stream = rig.say(GET_LARGE);
    stream.shutdown(std::net::Shutdown::Write).expect("half closed");
    skip_head(&mut stream);
    assert_eq!(rest(&mut stream), LARGE);
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    let rig = Rig::with(short(|limits| limits.stall = Duration::from_millis(100)));
    let mut stream = rig.say(GET_LARGE);
    let ended = rig.next_ended();
    assert!(!ended.complete && ended.sent < LARGE, "{ended:?}");
    assert!(rest(&mut stream) < LARGE);
}

#[test]
fn a_client_that_is_slow_but_awake_is_not_cut_off() {
    // A third of the send buffer, after which the kernel calls the socket writable again, takes this reader longer than
    // the limit: only the attempt at the limit tells it from a dead one.
    let rig = Rig::with(short(|limits| limits.stall = Duration::from_millis(400)));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(64 * 1024).expect("set");
    socket.connect(&rig.address.into()).expect("a connection");
    let mut stream = TcpStream::from(socket);
    stream.write_all(GET_LARGE.as_bytes()).expect("said");
    let mut buffer = vec![0; 16 * 1024];
    for _ in 0..150 {
        stream.read_exact(&mut buffer).expect("still served");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(rig.ended.try_recv().is_err(), "it was cut off");
}

#[test]
fn a_file_that_shrinks_cuts_the_answer_short() {
    let rig = Rig::start();
    let answer = rig.ask("GET /shrinking HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(
        answer.windows(20).any(|window| window == b"Content-Length: 100\r"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert!(answer.ends_with(&[b"\r\n\r\n".as_slice(), &[0; 10]].concat()));
    assert_eq!(rig.next_ended(), Ended { path: "/shrinking".into(), status: 200, sent: 10, complete: false });
}

#[test]
fn a_file_on_disk_is_read_aside() {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    let bytes = pattern(5_000_001);
    file.write_all_at(&bytes, 0).expect("written");
    file.sync_all().expect("on disk");
    let drop_pages = || {
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, advice).expect("advice taken");
    };
    drop_pages();
    let mut probe = [0];
    let cold =
        rustix::io::preadv2(&file, &mut [std::io::IoSliceMut::new(&mut probe)], 0, rustix::io::ReadWriteFlags::NOWAIT);
    let told = cold == Err(rustix::io::Errno::AGAIN);
    let rig = Rig::start();
    drop_pages();
    let mut stream = rig.say("");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    stream.write_all(format!("GET /open?{path} HTTP/1.0\r\n\r\n").as_bytes()).expect("said");
    skip_head(&mut stream);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("an orderly close");
    assert!(all == bytes, "other bytes than the file's");
    // A file system in memory is never cold.
    assert_eq!(rig.metrics.cold_chunks.get() > 0, told);
}

#[test]
fn a_panic_is_a_500_and_the_connection_goes_on() {
    let rig = Rig::start();
    let answer =
        String::from_utf8(rig.ask(&format!("GET /panic HTTP/1.1\r\nHost: h\r\n\r\n{GET_TEXT}"))).expect("text");
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.ends_with("hello\n"), "{answer}");
    assert_eq!((rig.next_ended().status, rig.next_ended().status), (500, 200));
}

#[test]
fn an_answer_that_never_comes_is_a_503() {
    let rig = Rig::with(short(|limits| limits.answer = Duration::from_millis(50)));
    let answer = String::from_utf8(rig.ask("GET /never HTTP/1.0\r\n\r\n")).expect("text");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "), "{answer}");
}

#[test]
fn beyond_the_limit_clients_wait_for_their_turn() {
    let rig = Rig::with(|config| config.max_connections = 2);
    let (first, second) = (rig.say("GET"), rig.say("GET"));
    let mut third = rig.say(GET_TEXT);
    third.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
    assert!(third.read(&mut [0]).is_err(), "there was no room");
    drop(first);
    third.set_read_timeout(Some(LIMIT)).expect("set");
    assert!(rest(&mut third) > 0);
    drop(second);
    // With the house full, an answer closes its connection, though the client would keep it.
    let rig = Rig::with(|config| config.max_connections = 1);
    let answer = String::from_utf8(rig.ask("GET /text HTTP/1.1\r\nHost: h\r\n\r\n")).expect("text");
    assert!(answer.contains("Connection: close\r\n"));
}

#[test]
fn shutdown_finishes_what_is_under_way() {
    let rig = Rig::start();
    let (mut idle, mut busy) = (rig.say(""), rig.say(GET_LARGE));
    skip_head(&mut busy);
    rig.shutdown.cancel();
    assert_eq!(rest(&mut idle), 0, "an idle connection is closed");
    assert_eq!(rest(&mut busy), LARGE, "a busy one gets its answer");
    rig.wait_stopped();
    assert!(rig.next_ended().complete);
    assert!(TcpStream::connect(rig.address).is_err(), "it still listens");
}

#[test]
fn shutdown_has_a_limit() {
    let rig = Rig::with(short(|limits| limits.drain = Duration::from_millis(100)));
    let mut stream = rig.say(GET_LARGE);
    skip_head(&mut stream);
    rig.shutdown.cancel();
    rig.wait_stopped();
    assert!(!rig.next_ended().complete);
    assert!(rest(&mut stream) < LARGE);
    assert_eq!((rig.metrics.aborted.get(), rig.metrics.connections.get()), (1, 0));
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_named() {
    let rig = Rig::start();
    let (ended, _) = mpsc::channel();
    let handler = Arc::new(Files::new(ended));
    let bind =
        async |address| Server::bind(Config::new(address), Arc::clone(&handler) as _, Metrics::default()).await.err();
    let taken = bind(vec![rig.address]).await.expect("taken");
    assert!(matches!(taken, BindError::Taken(address) if address == rig.address));
    assert!(taken.to_string().contains(&rig.address.to_string()));
    assert!(matches!(bind(vec!["192.0.2.1:80".parse().expect("an address")]).await, Some(BindError::NoSuchAddress(_))));
    assert!(matches!(bind(vec![]).await, Some(BindError::NoAddress)));
}
