//! Tables for people, JSON and YAML for programs.

use std::io::Write;

use clap::{Args, ValueEnum};
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use time::OffsetDateTime;

use crate::machine::identity::is_visible;

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct OutputArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

impl OutputArgs {
    /// True for the table.
    pub(super) fn is_table(self) -> bool {
        self.output == Format::Table
    }

    /// Prints a value, or the text made of it.
    pub(super) fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        let out = match self.output {
            Format::Table => printable(&text(value)),
            Format::Json => serde_json::to_string_pretty(value).unwrap_or_default(),
            Format::Yaml => serde_saphyr::to_string(value).unwrap_or_default(),
        };
        say(&format!("{}\n", out.trim_end()));
    }
}

/// Writes to standard output. A reader that has had enough (`| head`) ends the program, without an error.
pub(super) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        let enough = error.kind() == std::io::ErrorKind::BrokenPipe;
        if !enough {
            eprintln!("error: standard output: {error}");
        }
        std::process::exit(i32::from(!enough));
    }
}

/// Text without what steers a terminal or turns text around: machines say much of themselves.
fn printable(text: &str) -> String {
    let text: String = text.chars().map(|c| if is_visible(c) || c == '\n' { c } else { '\u{fffd}' }).collect();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// A table without lines, as kubectl prints them. Without rows it says so.
pub(super) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.to_vec());
    let mut empty = true;
    for row in rows {
        table.add_row(row);
        empty = false;
    }
    if empty {
        return "Nothing found.".into();
    }
    table.lines().map(|line| line.trim_end().trim_start_matches(' ').to_owned()).collect::<Vec<_>>().join("\n")
}

/// A cell that does not make its column wider than this. `-o json` has the whole text.
pub(super) fn cell(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// How long ago, in the largest sensible unit.
pub(super) fn age(at: OffsetDateTime, now: OffsetDateTime) -> String {
    let seconds = (now - at).whole_seconds().max(0);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes in binary units.
pub(super) fn bytes(n: u64) -> String {
    match n {
        0..=1023 => format!("{n}B"),
        1024..=1_048_575 => format!("{}Ki", n >> 10),
        1_048_576..=1_073_741_823 => format!("{}Mi", n >> 20),
        _ => format!("{:.1}Gi", n as f64 / f64::from(1 << 30)),
    }
}

/// Time of day.
pub(super) fn clock(at: OffsetDateTime) -> String {
    format!("{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_value_does_not_make_its_column_wide() {
        assert_eq!(cell("rack7", 5), "rack7");
        assert_eq!(cell("räcks7", 5), "räck…");
    }
}
