//! The errors of the framework. A test ends in `?` and its harness prints `Debug`, so `Debug` is the readable
//! text with all its causes.

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// What went wrong with a network, a process or a machine.
#[derive(thiserror::Error)]
pub enum Error {
    /// The program does not run as root.
    #[error("network namespaces and taps need root: run this as root")]
    NotRoot,
    /// Programs or firmware files that are not installed, each with its Debian package.
    #[error("missing on this computer: {}; install them with: apt-get install {}", .what.join(", "), .packages.join(" "))]
    Missing {
        /// The programs and files.
        what: Vec<String>,
        /// The Debian packages that bring them, each once.
        packages: Vec<String>,
    },
    /// A file or a system call.
    #[error("{what}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A command ended with a failure.
    #[error("`{command}` ended with {status}: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said on standard error.
        stderr: String,
    },
    /// A wait reached its limit.
    #[error("{what}: not within {limit:.1?}{detail}")]
    TooLate {
        /// What was waited for.
        what: String,
        /// The limit.
        limit: Duration,
        /// The last lines of the log, if there is one.
        detail: String,
    },
    /// A process that should be running has ended.
    #[error("{name} has ended ({status}){detail}")]
    Ended {
        /// The process.
        name: String,
        /// How it ended.
        status: String,
        /// The last lines of its log.
        detail: String,
    },
    /// A machine's console did not say what was expected.
    #[error("{0}")]
    Console(Box<ConsoleFailure>),
    /// QEMU refused a command, or broke the monitor protocol.
    #[error("{machine}: QEMU's monitor: `{command}`: {reason}")]
    Monitor {
        /// The machine.
        machine: String,
        /// The QMP command.
        command: String,
        /// What QEMU answered.
        reason: String,
    },
    /// The machine is off where it must be on, or on where it must be off.
    #[error("{machine} is {is}: {wanted}")]
    Power {
        /// The machine.
        machine: String,
        /// `on` or `off`.
        is: &'static str,
        /// What was asked of it.
        wanted: &'static str,
    },
    /// A build that the tests run on is missing.
    #[error("{variable} names no file: {remedy}")]
    NotBuilt {
        /// The environment variable.
        variable: &'static str,
        /// What builds it.
        remedy: &'static str,
    },
    /// Something is not as it should be.
    #[error("expected: {what}; got: {got}")]
    Unexpected {
        /// What was expected.
        what: String,
        /// What was there instead.
        got: String,
    },
    /// An argument that cannot be used.
    #[error("{0}")]
    Argument(String),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let what = what.into();
        move |errno| Self::Io { what, source: errno.into() }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Why an expectation of a console failed, with all one needs to see at once.
#[derive(Debug)]
pub struct ConsoleFailure {
    /// The machine.
    pub machine: String,
    /// The texts that were waited for.
    pub wanted: Vec<String>,
    /// What happened in their place.
    pub reason: String,
    /// The last lines of the serial log, oldest first.
    pub tail: Vec<String>,
    /// The whole serial log.
    pub log: PathBuf,
    /// A picture of the screen, if QEMU could still make one.
    pub screenshot: Option<PathBuf>,
}

impl fmt::Display for ConsoleFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted: Vec<_> = self.wanted.iter().map(|text| format!("{text:?}")).collect();
        writeln!(f, "{}: waited for {} on the console: {}", self.machine, wanted.join(" or "), self.reason)?;
        if self.tail.is_empty() {
            writeln!(f, "  the console said nothing")?;
        } else {
            writeln!(f, "  the last {} lines of the console:", self.tail.len())?;
        }
        for line in &self.tail {
            writeln!(f, "  | {line}")?;
        }
        write!(f, "  serial log: {}", self.log.display())?;
        if let Some(screenshot) = &self.screenshot {
            write!(f, "\n  screenshot: {}", screenshot.display())?;
        }
        Ok(())
    }
}
