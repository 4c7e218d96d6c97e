//! Conflict probes: asks the link by ARP who uses an address (RFC 2131 section 4.4.1, RFC 5227), many at a time.
#![expect(clippy::disallowed_methods, reason = "measures how long a probe waits")]

use std::collections::HashMap;
use std::io::Read;
use std::net::Ipv4Addr;
use std::time::Duration;

use nkd_api::MacAddr;
use socket2::Socket;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frame;

/// Probes under way at once; more offers than this go out without one.
pub(super) const PROBES: usize = 256;
/// A host on the link answers within milliseconds; firmware waits at least a second for an offer.
const LIMIT: Duration = Duration::from_millis(200);
/// The second and last request goes out after this.
const REPEAT: Duration = Duration::from_millis(80);
const TICK: Duration = Duration::from_millis(25);

/// Who was found at an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finding {
    pub ip: Ipv4Addr,
    pub holder: Option<MacAddr>,
}

/// One address to look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub wanted: Ipv4Addr,
    /// Our address in its subnet.
    pub from: Ipv4Addr,
}

struct Pending {
    question: Question,
    since: Instant,
    repeated: bool,
}

/// Probes until the questions end.
pub(super) async fn run(
    socket: AsyncFd<Socket>,
    own: MacAddr,
    mut questions: mpsc::Receiver<Question>,
    findings: mpsc::Sender<Finding>,
    shutdown: CancellationToken,
) {
    let mut pending: HashMap<Ipv4Addr, Pending> = HashMap::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ask = |question: Question| {
        let request = frame::arp_request(own, question.from, question.wanted);
        if let Err(error) = socket.get_ref().send(&request) {
            tracing::debug!(address = %question.wanted, %error, "conflict probe was not sent");
        }
    };
    loop {
        let mut found = Vec::new();
        tokio::select! {
            () = shutdown.cancelled() => return,
            question = questions.recv() => {
                let Some(question) = question else { return };
                ask(question);
                pending.insert(question.wanted, Pending { question, since: Instant::now(), repeated: false });
            }
            ready = socket.readable() => {
                let Ok(mut ready) = ready else { return };
                let mut buffer = [0; 128];
                while let Ok(Ok(length)) = ready.try_io(|socket| socket.get_ref().read(&mut buffer)) {
                    if let Some((mac, ip)) = frame::arp_sender(&buffer[..length])
                        && mac != own
                        && pending.remove(&ip).is_some()
                    {
                        found.push(Finding { ip, holder: Some(mac) });
                    }
                }
            }
            _ = tick.tick(), if !pending.is_empty() => {
                for probe in pending.values_mut().filter(|probe| !probe.repeated && probe.since.elapsed() > REPEAT) {
                    probe.repeated = true;
                    ask(probe.question);
                }
                found.extend(pending.extract_if(|_, probe| probe.since.elapsed() > LIMIT).map(|(ip, _)| Finding { ip, holder: None }));
            }
        }
        for finding in found {
            if findings.send(finding).await.is_err() {
                return;
            }
        }
    }
}
