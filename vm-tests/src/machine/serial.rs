//! The serial line: everything a machine has said, in memory and in a log with times.

#![expect(clippy::disallowed_methods, reason = "writes the log, stamps its lines")]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::terminal::{Terminal, shown};
use crate::Error;

/// What Linux says when it meets a breakpoint that it has taken away again. Linux puts one where it changes its own code, and
/// QEMU before 8.1 may go on running what it translated of the code before the last change: it does not lock a page that it
/// translates. On a processor that cannot happen.
const STALE_CODE: &[u8] = b"int3: 0000 [#";
/// How Linux begins to speak: what was said before belongs to a start that is over.
const LINUX_BEGINS: &[u8] = b"Linux version ";
/// What Linux says of a processor that gets no timer interrupts. Under QEMU's TCG a one-shot interrupt is lost now and then,
/// one start in some hundreds, and Linux on several processors waits for it for ever.
const NO_TIMER: &[u8] = b"Possible timer handling issue on cpu";
/// What Linux says last when it starts anew.
const RESTARTS: [&[u8]; 2] = [b"reboot: Restarting system", b"sysrq: Resetting"];
/// How often a silent timer is told of before it is believed, twenty seconds apart: a busy computer is slow, and gets over it.
const BELIEVED: u32 = 3;
/// What it said before such a silence counts no more.
const OVER: Duration = Duration::from_secs(120);

/// How long the rest of a line may take to follow its beginning.
const REST_OF_LINE: Duration = Duration::from_millis(300);

/// A text that was found, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Which of the texts.
    pub which: usize,
    /// The line it stands in, as far as it has come.
    pub line: String,
    /// When that line began, since the machine was switched on.
    pub after: Duration,
}

/// What QEMU's emulation, and no computer, does to a system, after which the system does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EmulatorFault {
    /// A processor gets no timer interrupts.
    NoTimer,
    /// A processor runs code that is not there any more.
    StaleCode,
    /// The firmware says nothing after a restart. QEMU before 8.0 looks through all that it has translated of a page at each
    /// store to it, until that is written over. Where the firmware's stack comes to lie on pages that were full of code, each
    /// tick of its timer takes longer than the time to the next.
    SilentFirmware,
}

impl fmt::Display for EmulatorFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTimer => "a processor gets no timer interrupts",
            Self::StaleCode => "a processor runs code that is not there any more",
            Self::SilentFirmware => "the firmware says nothing since the restart",
        })
    }
}

/// Why a text was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotFound {
    Limit,
    /// QEMU has ended.
    Closed,
    /// The line with a text after which there is no hope.
    Trouble(String),
}

#[derive(Debug)]
pub(super) struct Serial {
    shared: Arc<Shared>,
    log: PathBuf,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    /// All that was said, as plain text, over all switchings-on.
    text: Vec<u8>,
    /// Where each line begins, and its time since the machine was switched on.
    lines: Vec<(usize, Duration)>,
    /// Where the next expectation begins to look.
    cursor: usize,
    /// Where the present switching-on begins.
    boot: usize,
    /// Where no trouble is the system's own: from a fault of the emulator to the next start of Linux.
    excused: Vec<Range<usize>>,
    open: bool,
}

impl Serial {
    pub fn new(log: PathBuf) -> Self {
        Self { shared: Arc::default(), log, reader: None }
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Begins to read the output of a machine that was just switched on for the `number`th time. `faulty` is called
    /// on a thread of its own each time that the emulator has brought its system to a halt; `silence` is how long the firmware
    /// may say nothing after a restart.
    pub fn attach(
        &mut self,
        output: impl Read + Send + 'static,
        number: u32,
        silence: Duration,
        faulty: impl Fn(EmulatorFault) + Clone + Send + 'static,
    ) -> Result<(), Error> {
        self.detach();
        let opening = || Error::io(format!("opening {}", self.log.display()));
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log).map_err(opening())?;
        writeln!(log, "----- switched on, number {number} -----").map_err(opening())?;
        let mut said = self.shared.lock();
        let here = said.text.len();
        (said.cursor, said.boot, said.open) = (here, here, true);
        said.lines.push((here, Duration::ZERO));
        drop(said);
        let shared = Arc::clone(&self.shared);
        self.reader = Some(thread::spawn(move || read_all(&shared, output, log, silence, faulty)));
        Ok(())
    }

    /// Waits until all output of an ended machine is read.
    pub fn detach(&mut self) {
        if let Some(reader) = self.reader.take() {
            // It ends at the end of the pipe, which ended with QEMU.
            let _ = reader.join();
        }
    }

    /// Waits for the first of these texts after the last one that was found.
    pub fn wait_for(&self, texts: &[&str], trouble: &[String], limit: Duration) -> Result<Found, NotFound> {
        let end = Instant::now() + limit;
        let mut said = self.shared.lock();
        let mut from = said.cursor;
        loop {
            let hit = earliest(&said.text, from, texts.iter().map(|text| text.as_bytes()));
            let hope = hit.map_or(said.text.len(), |(at, _)| at);
            if let Some(at) = said.trouble(from, hope, trouble) {
                drop(said);
                self.settle();
                return Err(NotFound::Trouble(self.shared.lock().line_at(at).0));
            }
            if let Some((at, which)) = hit {
                said.cursor = at + texts[which].len();
                said = self.rest_of_line(said);
                let (line, after) = said.line_at(at);
                return Ok(Found { which, line, after });
            }
            // What was looked at need not be looked at again, but for a text that has come in part.
            let longest = texts.iter().map(|text| text.len()).chain(trouble.iter().map(String::len)).max().unwrap_or(0);
            from = from.max(said.text.len().saturating_sub(longest));
            if !said.open {
                return Err(NotFound::Closed);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NotFound::Limit);
            }
            said = self.shared.wait(said, left);
        }
    }

    /// All that was said since the machine was last switched on.
    pub fn text(&self) -> String {
        let said = self.shared.lock();
        String::from_utf8_lossy(&said.text[said.boot..]).replace('\r', "\n")
    }

    /// The last lines since the machine was last switched on, with times; oldest first.
    pub fn tail(&self, most: usize) -> Vec<String> {
        let said = self.shared.lock();
        let mut tail = Vec::new();
        let mut end = said.text.len();
        for &(start, after) in said.lines.iter().rev().take_while(|(start, _)| *start >= said.boot) {
            let line = String::from_utf8_lossy(shown(&said.text[start..end]));
            if !line.trim().is_empty() {
                tail.push(format!("{:8.2} {}", after.as_secs_f64(), line.trim_end()));
            }
            end = start;
            if tail.len() == most {
                break;
            }
        }
        tail.reverse();
        tail
    }

    /// Waits a little for the rest of the line in which the cursor stands; a prompt has none.
    fn rest_of_line<'a>(&'a self, mut said: MutexGuard<'a, Said>) -> MutexGuard<'a, Said> {
        let end = Instant::now() + REST_OF_LINE;
        while said.open && !said.text[said.cursor..].contains(&b'\n') && Instant::now() < end {
            said = self.shared.wait(said, end.saturating_duration_since(Instant::now()));
        }
        said
    }

    /// Waits until nothing has been said for a second, ten at most: the text after a panic says why.
    fn settle(&self) {
        let mut said = self.shared.lock();
        for _ in 0..10 {
            let before = said.text.len();
            let end = Instant::now() + Duration::from_secs(1);
            while said.open && Instant::now() < end {
                said = self.shared.wait(said, end.saturating_duration_since(Instant::now()));
            }
            if said.text.len() == before {
                return;
            }
        }
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether nothing more than this is said for so long by a machine that is on.
    fn is_silent(&self, length: usize, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut said = self.lock();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if said.text.len() != length || !said.open || left.is_zero() {
                return said.text.len() == length && said.open;
            }
            said = self.wait(said, left);
        }
    }

    fn wait<'a>(&self, said: MutexGuard<'a, Said>, limit: Duration) -> MutexGuard<'a, Said> {
        self.more.wait_timeout(said, limit).unwrap_or_else(|poisoned| poisoned.into_inner()).0
    }
}

impl Said {
    /// The first trouble between two places that is the system's own.
    fn trouble(&self, mut from: usize, end: usize, texts: &[String]) -> Option<usize> {
        loop {
            let (at, _) = earliest(&self.text[..end], from, texts.iter().map(String::as_bytes))?;
            match self.excused.iter().find(|range| range.contains(&at)) {
                Some(range) => from = range.end,
                None => return Some(at),
            }
        }
    }

    /// Takes note of a whole line that begins here, for what is [`Said::excused`]. Says whether it tells of stale code.
    fn judge(&mut self, here: usize, line: &[u8]) -> bool {
        let stale = has(line, STALE_CODE);
        if stale {
            self.excused.push(here..usize::MAX);
        } else if has(line, LINUX_BEGINS)
            && let Some(open) = self.excused.last_mut().filter(|range| range.end == usize::MAX)
        {
            open.end = here;
        }
        stale
    }

    /// The line around a place, as it was when the place was written, and when it began.
    fn line_at(&self, at: usize) -> (String, Duration) {
        let number = self.lines.partition_point(|(start, _)| *start <= at);
        let (start, after) = number.checked_sub(1).map_or((0, Duration::ZERO), |number| self.lines[number]);
        let rest = &self.text[at..];
        let end = at + rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
        (String::from_utf8_lossy(shown(&self.text[start..end])).into_owned(), after)
    }
}

fn read_all(
    shared: &Arc<Shared>,
    mut output: impl Read,
    mut log: File,
    silence: Duration,
    faulty: impl Fn(EmulatorFault) + Clone + Send + 'static,
) {
    // Not on the thread that reads: QEMU may wait for its output to be read before it does what it is told.
    let report = |fault| {
        let faulty = faulty.clone();
        thread::spawn(move || faulty(fault));
    };
    let watch = |length| {
        let (shared, faulty) = (Arc::clone(shared), faulty.clone());
        thread::spawn(move || shared.is_silent(length, silence).then(|| faulty(EmulatorFault::SilentFirmware)));
    };
    let on = Instant::now();
    let mut terminal = Terminal::new();
    let (mut bytes, mut fresh) = ([0; 4096], Vec::new());
    let mut line: Vec<u8> = Vec::new();
    let mut began = Duration::ZERO;
    let (mut no_timer, mut said_at) = (0, Duration::ZERO);
    // A read error is an end of the output, too.
    while let Ok(length @ 1..) = output.read(&mut bytes) {
        fresh.clear();
        terminal.feed(&bytes[..length], &mut fresh);
        let now = on.elapsed();
        let mut said = shared.lock();
        for &byte in &fresh {
            if line.is_empty() {
                began = now;
                // The line was announced when the one before it ended; its first byte decides about its time.
                let here = said.text.len();
                if let Some((_, after)) = said.lines.last_mut().filter(|(start, _)| *start == here) {
                    *after = now;
                }
            }
            said.text.push(byte);
            line.push(byte);
            if byte == b'\n' {
                let next = said.text.len();
                said.lines.push((next, now));
                if said.judge(next - line.len(), &line) {
                    report(EmulatorFault::StaleCode);
                }
                if has(&line, NO_TIMER) {
                    no_timer = if now.saturating_sub(said_at) > OVER { 1 } else { no_timer + 1 };
                    said_at = now;
                }
                if RESTARTS.iter().any(|text| has(&line, text)) {
                    watch(next);
                }
                if no_timer == BELIEVED {
                    no_timer = 0;
                    report(EmulatorFault::NoTimer);
                }
                write_line(&mut log, began, &mut line);
            }
        }
        drop(said);
        shared.more.notify_all();
    }
    if !line.is_empty() {
        line.push(b'\n');
        write_line(&mut log, began, &mut line);
    }
    shared.lock().open = false;
    shared.more.notify_all();
}

fn write_line(log: &mut File, began: Duration, line: &mut Vec<u8>) {
    let mut stamped = format!("{:8.2} ", began.as_secs_f64()).into_bytes();
    stamped.extend_from_slice(shown(line));
    line.clear();
    // The log is for people; a full disk must not stop the machine.
    let _ = log.write_all(&stamped);
}

fn has(line: &[u8], text: &[u8]) -> bool {
    line.windows(text.len()).any(|window| window == text)
}

/// The first place at or after `from` where one of the texts stands, and which.
fn earliest<'a>(said: &[u8], from: usize, texts: impl Iterator<Item = &'a [u8]>) -> Option<(usize, usize)> {
    let place = |text: &[u8]| match text.is_empty() {
        true => None,
        false => said.get(from..)?.windows(text.len()).position(|window| window == text).map(|at| from + at),
    };
    texts.enumerate().filter_map(|(which, text)| place(text).map(|at| (at, which))).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial(text: &'static str) -> Serial {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("nkd-serial-{}-{number}", std::process::id()));
        let mut serial = Serial::new(log);
        serial.attach(text.as_bytes(), 1, SOON, |_| ()).unwrap();
        serial.detach();
        std::fs::remove_file(serial.log()).unwrap();
        serial
    }

    const SOON: Duration = Duration::from_millis(50);

    #[test]
    fn an_expectation_begins_where_the_last_one_ended() {
        let serial = serial("one two\nthree two\n");
        assert_eq!(serial.wait_for(&["two"], &[], SOON).unwrap().line, "one two");
        assert_eq!(serial.wait_for(&["two"], &[], SOON).unwrap().line, "three two");
        assert_eq!(serial.wait_for(&["two"], &[], SOON), Err(NotFound::Closed));
    }

    #[test]
    fn the_earliest_of_several_texts_is_found() {
        let serial = serial("login: then Password:");
        assert_eq!(serial.wait_for(&["Password", "login"], &[], SOON).unwrap().which, 1);
        assert_eq!(serial.wait_for(&["Password", "login"], &[], SOON).unwrap().which, 0);
    }

    #[test]
    fn trouble_counts_only_before_the_text() {
        let bad = ["Kernel panic".to_owned()];
        let serial = serial("ready\nKernel panic - not syncing\nlogin:");
        assert!(serial.wait_for(&["ready"], &bad, SOON).is_ok());
        let error = serial.wait_for(&["login:"], &bad, SOON).unwrap_err();
        assert_eq!(error, NotFound::Trouble("Kernel panic - not syncing".into()));
    }

    #[test]
    fn what_the_emulator_did_is_reported_and_no_trouble_of_the_system() {
        const OOPS: &str = "Oops: int3: 0000 [#1]\nKernel panic - not syncing: Fatal exception in interrupt\n";
        let bad = ["Kernel panic".to_owned()];
        let (send, faults) = std::sync::mpsc::channel();
        let log = std::env::temp_dir().join(format!("nkd-serial-stale-{}", std::process::id()));
        let mut serial = Serial::new(log);
        let said = format!("{OOPS}SeaBIOS\nLinux version 6\nlogin:\n{OOPS}Linux version 6\nKernel panic - its own\n");
        let said = std::io::Cursor::new(said);
        serial.attach(said, 1, SOON, move |fault| send.send(fault).unwrap()).unwrap();
        serial.detach();
        std::fs::remove_file(serial.log()).unwrap();
        let limit = Duration::from_secs(10);
        let two = [faults.recv_timeout(limit), faults.recv_timeout(limit)];
        assert_eq!(two, [Ok(EmulatorFault::StaleCode); 2]);
        assert!(serial.wait_for(&["login:"], &bad, SOON).is_ok());
        let error = serial.wait_for(&["login:"], &bad, SOON).unwrap_err();
        assert_eq!(error, NotFound::Trouble("Kernel panic - its own".into()));
    }

    #[test]
    fn a_firmware_that_says_nothing_after_a_restart_is_reported() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (send, faults) = std::sync::mpsc::channel();
        let log = std::env::temp_dir().join(format!("nkd-serial-silent-{}", std::process::id()));
        let mut serial = Serial::new(log);
        let limit = Duration::from_secs(2);
        serial.attach(reader, 1, limit, move |fault| send.send(fault).unwrap()).unwrap();
        writer.write_all(b"reboot: Restarting system\nBdsDxe: loading\n").unwrap();
        assert!(faults.recv_timeout(2 * limit).is_err());
        writer.write_all(b"[    9.1] sysrq: Resetting\n").unwrap();
        assert_eq!(faults.recv_timeout(5 * limit), Ok(EmulatorFault::SilentFirmware));
        writer.write_all(b"reboot: Restarting system\n").unwrap();
        drop(writer);
        serial.detach();
        std::fs::remove_file(serial.log()).unwrap();
        assert!(faults.recv_timeout(2 * limit).is_err(), "it was switched off");
    }

    #[test]
    fn a_text_that_comes_in_pieces_is_found() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let log = std::env::temp_dir().join(format!("nkd-serial-pieces-{}", std::process::id()));
        let mut serial = Serial::new(log);
        serial.attach(std::io::Read::by_ref(&mut reader).try_clone().unwrap(), 1, SOON, |_| ()).unwrap();
        drop(reader);
        writer.write_all(b"Kernel is lo").unwrap();
        assert_eq!(serial.wait_for(&["login:"], &["Kernel panic".into()], SOON), Err(NotFound::Limit));
        writer.write_all(b"gin").unwrap();
        assert_eq!(serial.wait_for(&["login:"], &["Kernel panic".into()], SOON), Err(NotFound::Limit));
        writer.write_all(b": ").unwrap();
        assert!(serial.wait_for(&["login:"], &["Kernel panic".into()], Duration::from_secs(10)).is_ok());
        drop(writer);
        serial.detach();
        std::fs::remove_file(serial.log()).unwrap();
    }

    #[test]
    fn the_tail_has_the_last_lines_and_a_line_without_end() {
        let tail = serial("a\nb\n\nc\nd: ").tail(3);
        let words: Vec<_> = tail.iter().map(|line| line.split_whitespace().last().unwrap()).collect();
        assert_eq!(words, ["b", "c", "d:"]);
    }
}
