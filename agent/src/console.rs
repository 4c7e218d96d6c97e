//! Lines for the person at the machine.
//!
//! They go to standard output, which the unit sends to the journal and to the console.
#![allow(clippy::print_stdout, reason = "this is the console")]

use std::io::Write;

/// Says one line. A console that cannot be written stops nothing.
pub fn say(text: &str) {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "nkd: {line}").and_then(|()| out.flush()) {
        tracing::debug!(%error, "the console cannot be written");
    }
}
