//! gpg's agent, which knows the unpacked key of a folder, and its end.
//!
//! With each answer of the agent the kernel tells which process gave it, as this process counts. An agent in a PID namespace
//! of its own, or in the one around ours, calls itself by a number that is another's here. (Who listens, `SO_PEERCRED`, is
//! the process that put the agent into the background, and has ended.)

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, IoSliceMut, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, connect, recvmsg,
    setsockopt, socket, sockopt,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::program::{GNUPG, ProgramError, run};

/// How long it may take for an answer, and to be gone when it was killed, in seconds.
const PATIENCE: u32 = 5;
/// Of the protocol.
const LONGEST_LINE: usize = 1000;

/// That it cannot be killed is told once.
static TOLD: Once = Once::new();

/// Where the agent of this folder listens, if there is one.
pub(super) fn address(home: &Path) -> Result<PathBuf, ProgramError> {
    let words = [OsStr::new("--homedir"), home.as_os_str(), OsStr::new("--list-dirs"), OsStr::new("agent-socket")];
    let mut said = run("gpgconf", GNUPG, &words, b"")?;
    if said.last() == Some(&b'\n') {
        said.pop();
    }
    Ok(OsString::from_vec(said).into())
}

/// Ends the agent that listens there; it has ended when this returns. Told to end, it would take its time, and a service that
/// stopped meanwhile would leave behind a process that knows the key. There is nothing that it would lose.
pub(super) fn end(address: &Path) -> io::Result<()> {
    end_by(address, |number| pidfd_open(number, PidfdFlags::empty()))
}

fn end_by(address: &Path, open: impl Fn(Pid) -> rustix::io::Result<OwnedFd>) -> io::Result<()> {
    let ended = match Agent::meet(address) {
        Ok(agent) => agent.end(open),
        Err(error) if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind()) => return Ok(()),
        Err(error) => Err(error),
    };
    match ended {
        // Of itself, or because somebody else has ended it.
        Err(error) if [ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe].contains(&error.kind()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => other,
    }
}

/// A connection to it.
struct Agent(UnixStream);

impl Agent {
    fn meet(address: &Path) -> io::Result<Self> {
        let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&stream, sockopt::PassCred, &true)?;
        let stream = UnixStream::from(stream);
        let patience = Some(Duration::from_secs(PATIENCE.into()));
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(patience)?;
        connect(stream.as_raw_fd(), &UnixAddr::new(address)?)?;
        Ok(Self(stream))
    }

    fn end(mut self, open: impl Fn(Pid) -> rustix::io::Result<OwnedFd>) -> io::Result<()> {
        // It greets.
        if let Some(number) = self.hear()? {
            let killed = match open(number) {
                Ok(process) => {
                    // Had it ended meanwhile, its number could be another's. It answers, so this is it.
                    self.say("NOP")?;
                    self.hear()?;
                    kill(&process)
                }
                Err(error) => Err(error),
            };
            match killed {
                Ok(()) | Err(Errno::SRCH) => return Ok(()),
                Err(error) => TOLD.call_once(|| {
                    tracing::warn!(
                        %error,
                        "gpg's agent cannot be killed (that takes Linux 5.3, and a sandbox that knows pidfd_open); it is told to end"
                    );
                }),
            }
        }
        self.say("KILLAGENT")?;
        // That it does, and then the end of the connection.
        self.hear()?;
        self.hear().map(drop)
    }

    fn say(&mut self, command: &str) -> io::Result<()> {
        self.0.write_all(format!("{command}\n").as_bytes())
    }

    /// Hears a line. The number of the process that says it, if it has one here.
    fn hear(&mut self) -> io::Result<Option<Pid>> {
        let (mut line, mut heard) = ([0; LONGEST_LINE], 0);
        loop {
            let (count, number) = self.receive(&mut line[heard..])?;
            heard += count;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if line[heard - 1] == b'\n' {
                return Ok(number);
            }
        }
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<(usize, Option<Pid>)> {
        let mut space = cmsg_space!(UnixCredentials);
        let mut into = [IoSliceMut::new(into)];
        let received = || {
            let message = recvmsg::<()>(self.0.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::empty())?;
            let number = message.cmsgs()?.find_map(|about| match about {
                ControlMessageOwned::ScmCredentials(sender) => Pid::from_raw(sender.pid()),
                _ => None,
            });
            Ok::<_, nix::Error>((message.bytes, number))
        };
        Ok(not_interrupted(received)?)
    }
}

/// A limit of time makes the kernel break off when a signal comes.
fn not_interrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(nix::Error::EINTR) => {}
            other => return other,
        }
    }
}

/// It is gone when this returns.
fn kill(process: &OwnedFd) -> rustix::io::Result<()> {
    pidfd_send_signal(process, Signal::KILL)?;
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    let limit = Timespec { tv_sec: PATIENCE.into(), tv_nsec: 0 };
    match retry_on_intr(|| poll(&mut ended, Some(&limit)))? {
        0 => Err(Errno::TIMEDOUT),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "gpg_agent_tests.rs"]
pub(super) mod tests;
