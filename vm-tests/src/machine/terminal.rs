//! Turns what a serial console sends (escape sequences, carriage returns, cursor moves) into plain lines. Pure.
//!
//! Lines end in `\n`. A `\r` is left only where a line is written over, as progress is: what stands before it was seen
//! for a moment, what stands after the last one is the line.

/// A filter that is fed in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Terminal {
    state: State,
    /// The row the cursor was last sent to; a move to another row begins a new line.
    row: Option<u32>,
    /// A carriage return came last: a newline follows it, or the line is written over.
    returned: bool,
    /// Whether the present line is empty.
    empty: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    Escape,
    /// `ESC (` and the like: one more byte.
    Charset,
    /// `ESC [`: numbers, then a letter. Holds the first number.
    Control {
        first: u32,
        more: bool,
    },
    /// `ESC ]`: to BEL or `ESC \`.
    Title,
}

impl Terminal {
    pub fn new() -> Self {
        Self { empty: true, ..Self::default() }
    }

    /// Appends the plain text of `bytes` to `plain`.
    pub fn feed(&mut self, bytes: &[u8], plain: &mut Vec<u8>) {
        for &byte in bytes {
            self.state = self.step(byte, plain);
        }
    }

    fn step(&mut self, byte: u8, plain: &mut Vec<u8>) -> State {
        match (self.state, byte) {
            (State::Text, 0x1b) => State::Escape,
            (State::Text, byte) => {
                self.text(byte, plain);
                State::Text
            }
            (State::Escape, b'[') => State::Control { first: 0, more: false },
            (State::Escape, b']') => State::Title,
            (State::Escape, b'(' | b')' | b'#' | b'%') => State::Charset,
            (State::Escape, _) | (State::Charset, _) => State::Text,
            (State::Title, 0x07) => State::Text,
            (State::Title, 0x1b) => State::Escape,
            (State::Title, _) => State::Title,
            (State::Control { first, more: false }, b'0'..=b'9') => {
                State::Control { first: first.saturating_mul(10).saturating_add(u32::from(byte - b'0')), more: false }
            }
            (State::Control { first, .. }, b';') => State::Control { first, more: true },
            (State::Control { first, .. }, b'H' | b'f') => {
                self.moved(first.max(1), plain);
                State::Text
            }
            (State::Control { .. }, 0x40..=0x7e) => State::Text,
            (State::Control { first, more }, _) => State::Control { first, more },
        }
    }

    fn text(&mut self, byte: u8, plain: &mut Vec<u8>) {
        match byte {
            b'\r' => self.returned = true,
            b'\n' => {
                self.returned = false;
                self.row = self.row.map(|row| row.saturating_add(1));
                self.empty = true;
                plain.push(b'\n');
            }
            b'\t' | 0x20..=0x7e | 0x80.. => {
                if std::mem::take(&mut self.returned) && !self.empty {
                    plain.push(b'\r');
                }
                self.empty = false;
                plain.push(byte);
            }
            _ => {}
        }
    }

    fn moved(&mut self, row: u32, plain: &mut Vec<u8>) {
        if self.row != Some(row) {
            self.newline(plain);
        }
        self.returned = false;
        self.row = Some(row);
    }

    fn newline(&mut self, plain: &mut Vec<u8>) {
        if !self.empty {
            plain.push(b'\n');
            self.empty = true;
        }
    }
}

/// What of a line can be seen at last.
pub(super) fn shown(line: &[u8]) -> &[u8] {
    line.rsplit(|byte| *byte == b'\r').next().unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(pieces: &[&[u8]]) -> String {
        let (mut terminal, mut text) = (Terminal::new(), Vec::new());
        for piece in pieces {
            terminal.feed(piece, &mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    #[test]
    fn escape_sequences_go_wherever_they_are_cut() {
        let bytes = b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r\n\x1b[1;32mok\x1b[0m \x1b]0;title\x07end\x1b(B";
        let whole = plain(&[bytes]);
        assert_eq!(whole, "SeaBIOS\nok end");
        for cut in 0..bytes.len() {
            assert_eq!(plain(&[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_move_to_another_row_begins_a_line_and_one_in_the_row_does_not() {
        assert_eq!(plain(&[b"\x1b[01;01HBdsDxe\x1b[01;07H: loading\x1b[02;01HPXE"]), "BdsDxe: loading\nPXE");
    }

    #[test]
    fn a_return_is_left_only_where_a_line_is_written_over() {
        assert_eq!(plain(&[b"\r10%\r20%\r\r\ndone"]), "10%\r20%\ndone");
        assert_eq!(shown(b"10%\r20%"), b"20%");
        assert_eq!(shown(b"whole"), b"whole");
    }
}
