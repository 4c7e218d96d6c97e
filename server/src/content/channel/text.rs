//! What people and builders write about releases (pure): so long and no longer, and nothing that a log, a terminal or a node
//! would take for more than text.

use nkd_api::channel::{MarkOrder, MirrorOrder, PublishOrder};

use super::{ChannelError, wrong};

/// Of a version, in characters.
const VERSION: usize = 128;
/// Of the reason of a dead end, which goes to every node.
const REASON: usize = 500;
/// Of notes.
const NOTES: usize = 4000;
/// Of a ref.
const REF: usize = 500;
/// Of a path or an address.
const PATH: usize = 4095;

/// The texts of an order to publish.
///
/// # Errors
/// [`ChannelError::Order`].
pub fn of_publication(order: &PublishOrder) -> Result<(), ChannelError> {
    line("ostree", Some(&order.ostree), PATH)?;
    line("ref", order.reference.as_deref(), REF)?;
    line("version", order.version.as_deref(), VERSION)?;
    line("key", order.key.as_deref(), PATH)?;
    line("ed25519Key", order.ed25519_key.as_deref(), PATH)?;
    // They may have several lines.
    text("notes", &order.notes, NOTES, |c| c == '\n' || c == '\t')
}

/// The texts of a mark.
///
/// # Errors
/// [`ChannelError::Order`].
pub fn of_mark(order: &MarkOrder) -> Result<(), ChannelError> {
    line("deadEnd", order.dead_end.as_deref(), REASON)
}

/// The texts of a mirror.
///
/// # Errors
/// [`ChannelError::Order`].
pub fn of_mirror(order: &MirrorOrder) -> Result<(), ChannelError> {
    line("from", Some(&order.from), PATH)?;
    line("ref", Some(&order.reference), REF)?;
    line("key", order.key.as_deref(), PATH)?;
    line("ed25519Key", order.ed25519_key.as_deref(), PATH)?;
    line("ca", order.ca.as_deref(), PATH)
}

/// Whether a version can be that of a release.
pub(super) fn is_version(version: &str) -> bool {
    !version.trim().is_empty() && line("version", Some(version), VERSION).is_ok()
}

fn line(what: &'static str, said: Option<&str>, most: usize) -> Result<(), ChannelError> {
    said.map_or(Ok(()), |said| text(what, said, most, |_| false))
}

fn text(what: &'static str, said: &str, most: usize, may: fn(char) -> bool) -> Result<(), ChannelError> {
    let long = said.chars().count();
    if long > most {
        return Err(wrong(what, &format!("it has {long} characters: write at most {most} characters")));
    }
    match said.chars().position(|c| is_control(c) && !may(c)) {
        None => Ok(()),
        Some(at) => {
            let lines = if may('\n') { "; new lines and tabs may stay" } else { ", and in one line" };
            Err(wrong(what, &format!("character {} is a control character: write it without{lines}", at + 1)))
        }
    }
}

/// Also what breaks a line, or turns the order of what follows, without being called so.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(result: Result<(), ChannelError>) -> String {
        result.map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn texts_have_an_end_and_no_control_characters() {
        let publish = |change: fn(&mut PublishOrder)| {
            let mut order = PublishOrder { ostree: "/srv/repo".into(), ..PublishOrder::default() };
            change(&mut order);
            said(of_publication(&order))
        };
        assert_eq!(publish(|_| {}), "");
        assert_eq!(publish(|order| order.notes = "new:\n\t- a kernel, für alle".into()), "");
        assert_eq!(publish(|order| order.version = Some("ü".repeat(128))), "");
        assert_eq!(
            publish(|order| order.version = Some("x".repeat(129))),
            "version: it has 129 characters: write at most 128 characters"
        );
        assert_eq!(
            publish(|order| order.version = Some("1\n2".into())),
            "version: character 2 is a control character: write it without, and in one line"
        );
        assert_eq!(
            publish(|order| order.notes = "a\u{1b}[31m".into()),
            "notes: character 2 is a control character: write it without; new lines and tabs may stay"
        );
        assert!(publish(|order| order.notes = "x".repeat(4001)).starts_with("notes: it has 4001 characters"));
        for change in [
            (|order| order.ostree = "a\rb".into()) as fn(&mut PublishOrder),
            |order| order.reference = Some("a\0b".into()),
            |order| order.key = Some("a\u{202e}b".into()),
            |order| order.ed25519_key = Some("a\u{2028}b".into()),
        ] {
            assert!(publish(change).contains(": character 2 is a control character"));
        }
        let mark = |reason: &str| of_mark(&MarkOrder { dead_end: Some(reason.into()), ..MarkOrder::default() });
        assert_eq!(said(mark(&"x".repeat(500))), "");
        assert_eq!(said(mark(&"x".repeat(501))), "deadEnd: it has 501 characters: write at most 500 characters");
        assert!(said(mark("it eats\ndisks")).starts_with("deadEnd: character 8 is a control character"));
        let order = |from: &str, reference: &str| {
            said(of_mirror(&MirrorOrder { from: from.into(), reference: reference.into(), ..MirrorOrder::default() }))
        };
        assert_eq!(order("https://up.example", "a/b"), "");
        assert!(order("https://up.example/\n", "a/b").starts_with("from: character 20"));
        assert!(order("https://up.example", "a\nb").starts_with("ref: character 2"));
    }
}
