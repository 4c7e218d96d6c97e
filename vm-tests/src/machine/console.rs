//! What a test expects of a machine's console.

use std::time::Duration;

use super::Machine;
use super::serial::NotFound;
use crate::process::TAIL;
use crate::{ConsoleFailure, Error};

/// How many lines an error shows after a panic or a failed boot: their reports are long.
const REPORT: usize = 120;

/// The serial console of a machine. Each expectation begins where the last one was met; switching the machine on
/// begins anew. Escape sequences are gone. SeaBIOS breaks lines at 80 columns, so what it or its iPXE says is best
/// expected in few words.
#[derive(Debug, Clone, Copy)]
pub struct Console<'a> {
    pub(super) machine: &'a Machine,
}

/// A line that an expectation has met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The line, as far as it had come.
    pub line: String,
    /// When it began, since the machine was switched on.
    pub after: Duration,
}

impl Console<'_> {
    /// Waits for a text. The error shows the last 40 lines and says where the log and a picture of the screen are; it comes
    /// at once on a kernel panic, on an emergency shell, and when QEMU ends.
    pub fn expect(&self, text: &str, limit: Duration) -> Result<Seen, Error> {
        self.expect_any(&[text], limit).map(|(_, seen)| seen)
    }

    /// Waits for the first of several texts, and says which it was.
    pub fn expect_any(&self, texts: &[&str], limit: Duration) -> Result<(usize, Seen), Error> {
        let machine = self.machine;
        let why = match machine.serial.wait_for(texts, &machine.spec.trouble, limit) {
            Ok(found) => return Ok((found.which, Seen { line: found.line, after: found.after })),
            Err(why) => why,
        };
        let (reason, lines) = match why {
            NotFound::Limit => (format!("it did not come within {limit:.1?}"), TAIL),
            NotFound::Trouble(line) => (format!("the machine said {line:?}"), REPORT),
            NotFound::Closed => (format!("the machine is off{}", machine.last_words()), TAIL),
        };
        let picture = machine.folder().join("failure.png");
        Err(Error::Console(Box::new(ConsoleFailure {
            machine: machine.name().to_owned(),
            wanted: texts.iter().map(|text| (*text).to_owned()).collect(),
            reason,
            tail: machine.serial.tail(lines),
            log: machine.serial.log().to_owned(),
            screenshot: machine.screenshot(&picture).is_ok().then_some(picture),
        })))
    }

    /// All that was said since the machine was last switched on.
    pub fn text(&self) -> String {
        self.machine.serial.text()
    }

    /// Types a text. `\n` is the return key.
    pub fn send(&self, text: &str) -> Result<(), Error> {
        self.machine.send(text.as_bytes())
    }
}
