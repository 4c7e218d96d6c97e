//! TFTP packets: bytes in, typed value out, and back (RFC 1350, 2347, 2348, 2349, 7440). Pure.
//!
//! Parsing is liberal where real clients need it: unknown options, options with a senseless value, and rubbish behind
//! the options are ignored, so that the transfer falls back to the values of RFC 1350. It is strict about sizes.

use std::borrow::Cow;
use std::fmt;

use thiserror::Error;

/// The longest request that is read, in bytes. RFC 2347 says 512; firmware with long option lists sends more, but
/// never more than one Ethernet frame.
pub const MAX_REQUEST: usize = 1468;
/// The smallest block size of RFC 2348, in bytes.
pub const MIN_BLOCK_SIZE: u16 = 8;
/// The block size without the option (RFC 1350), in bytes.
pub const DEFAULT_BLOCK_SIZE: u16 = 512;
/// The largest block size of RFC 2348, in bytes.
pub const MAX_BLOCK_SIZE: u16 = 65464;
/// Bytes before the payload of a DATA packet.
pub const DATA_HEADER: usize = 4;
/// The longest text of an ERROR packet that is read or written, in bytes.
pub const MAX_ERROR_TEXT: usize = 255;

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OPTION_ACK: u16 = 6;

/// One TFTP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ or WRQ: a client asks for a transfer.
    Request(Request<'a>),
    /// DATA: one block.
    Data {
        /// The block number on the wire, modulo 65536.
        block: u16,
        /// The block's bytes.
        payload: &'a [u8],
    },
    /// ACK: every block up to this one arrived.
    Acknowledgement {
        /// The block number on the wire, modulo 65536.
        block: u16,
    },
    /// ERROR: the transfer is over.
    Error {
        /// Why, as a code.
        code: ErrorCode,
        /// Why, as a text for people.
        text: Cow<'a, str>,
    },
    /// OACK: the options that the server took.
    OptionAcknowledgement(Options),
}

/// A request as it came. The name is raw bytes: [`super::names`] judges it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// To read or to write.
    pub direction: Direction,
    /// The file name as sent.
    pub name: &'a [u8],
    /// How the bytes are translated.
    pub mode: Mode,
    /// The options that were understood.
    pub options: Options,
}

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// RRQ.
    Read,
    /// WRQ.
    Write,
}

/// The transfer mode of RFC 1350.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes as they are.
    Octet,
    /// Text with the line ends of the network terminal.
    Netascii,
    /// Obsolete: to a mailbox.
    Mail,
}

/// The options of a request or an OACK; `None` is an option that was not sent or made no sense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `blksize` (RFC 2348), in bytes; 8 to 65464.
    pub block_size: Option<u16>,
    /// `tsize` (RFC 2349), in bytes; 0 in a read request.
    pub transfer_size: Option<u64>,
    /// `timeout` (RFC 2349), in seconds; 1 to 255.
    pub timeout: Option<u8>,
    /// `windowsize` (RFC 7440), in blocks; 1 to 65535.
    pub window_size: Option<u16>,
}

/// The code of an ERROR packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u16);

/// Why bytes are no TFTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Fewer bytes than the packet's kind needs.
    #[error("packet of {0} bytes is cut short")]
    Short(usize),
    /// A request longer than [`MAX_REQUEST`], or a block longer than [`MAX_BLOCK_SIZE`].
    #[error("packet is longer than {limit} bytes")]
    Long {
        /// The limit that was passed, in bytes.
        limit: usize,
    },
    /// Not one of the six kinds.
    #[error("unknown opcode {0}")]
    Opcode(u16),
    /// The name has no end.
    #[error("file name is not terminated")]
    Name,
    /// The mode is missing, or has no end.
    #[error("transfer mode is missing or not terminated")]
    ModeMissing,
    /// The mode is none of octet, netascii and mail.
    #[error("unknown transfer mode: use octet")]
    ModeUnknown,
}

impl Options {
    /// Whether no option is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl ErrorCode {
    /// 0: see the text.
    pub const OTHER: Self = Self(0);
    /// 1: file not found.
    pub const NOT_FOUND: Self = Self(1);
    /// 2: access violation.
    pub const ACCESS_VIOLATION: Self = Self(2);
    /// 4: illegal TFTP operation.
    pub const ILLEGAL_OPERATION: Self = Self(4);
    /// 5: unknown transfer ID.
    pub const UNKNOWN_TRANSFER: Self = Self(5);
    /// 8: option negotiation refused (RFC 2347); also how clients end a size probe.
    pub const OPTION_REFUSED: Self = Self(8);
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Octet => "octet",
            Self::Netascii => "netascii",
            Self::Mail => "mail",
        })
    }
}

/// Reads one packet.
///
/// # Errors
/// [`ParseError`] if the bytes are no TFTP packet. No input panics.
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, ParseError> {
    let short = ParseError::Short(bytes.len());
    let (opcode, rest) = number(bytes).ok_or(short)?;
    match opcode {
        READ => request(Direction::Read, bytes, rest).map(Packet::Request),
        WRITE => request(Direction::Write, bytes, rest).map(Packet::Request),
        DATA => {
            let (block, payload) = number(rest).ok_or(short)?;
            if payload.len() > usize::from(MAX_BLOCK_SIZE) {
                return Err(ParseError::Long { limit: usize::from(MAX_BLOCK_SIZE) + DATA_HEADER });
            }
            Ok(Packet::Data { block, payload })
        }
        ACK => number(rest).map(|(block, _)| Packet::Acknowledgement { block }).ok_or(short),
        ERROR => {
            let (code, text) = number(rest).ok_or(short)?;
            let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
            let text = &text[..text.len().min(MAX_ERROR_TEXT)];
            Ok(Packet::Error { code: ErrorCode(code), text: String::from_utf8_lossy(text) })
        }
        OPTION_ACK if bytes.len() > MAX_REQUEST => Err(ParseError::Long { limit: MAX_REQUEST }),
        OPTION_ACK => Ok(Packet::OptionAcknowledgement(options(rest))),
        other => Err(ParseError::Opcode(other)),
    }
}

/// Writes one packet behind what `out` holds already.
///
/// The name of a request must hold no NUL; a name that does is cut there. An error's text is cut at its first NUL and
/// at [`MAX_ERROR_TEXT`] bytes.
pub fn encode(packet: &Packet<'_>, out: &mut Vec<u8>) {
    match packet {
        Packet::Request(request) => {
            let opcode = match request.direction {
                Direction::Read => READ,
                Direction::Write => WRITE,
            };
            out.extend_from_slice(&opcode.to_be_bytes());
            push_text(request.name, out);
            push_text(request.mode.to_string().as_bytes(), out);
            push_options(&request.options, out);
        }
        Packet::Data { block, payload } => {
            out.extend_from_slice(&data_header(*block));
            out.extend_from_slice(payload);
        }
        Packet::Acknowledgement { block } => {
            out.extend_from_slice(&ACK.to_be_bytes());
            out.extend_from_slice(&block.to_be_bytes());
        }
        Packet::Error { code, text } => {
            out.extend_from_slice(&ERROR.to_be_bytes());
            out.extend_from_slice(&code.0.to_be_bytes());
            let end = (0..=text.len().min(MAX_ERROR_TEXT)).rev().find(|end| text.is_char_boundary(*end));
            push_text(&text.as_bytes()[..end.unwrap_or_default()], out);
        }
        Packet::OptionAcknowledgement(options) => {
            out.extend_from_slice(&OPTION_ACK.to_be_bytes());
            push_options(options, out);
        }
    }
}

/// The four bytes before the payload of DATA `block`.
#[must_use]
pub fn data_header(block: u16) -> [u8; DATA_HEADER] {
    let [opcode_high, opcode_low] = DATA.to_be_bytes();
    let [block_high, block_low] = block.to_be_bytes();
    [opcode_high, opcode_low, block_high, block_low]
}

fn request<'a>(direction: Direction, bytes: &[u8], rest: &'a [u8]) -> Result<Request<'a>, ParseError> {
    if bytes.len() > MAX_REQUEST {
        return Err(ParseError::Long { limit: MAX_REQUEST });
    }
    let (name, rest) = text(rest).ok_or(ParseError::Name)?;
    let (mode, rest) = text(rest).ok_or(ParseError::ModeMissing)?;
    let mode = [Mode::Octet, Mode::Netascii, Mode::Mail]
        .into_iter()
        .find(|known| mode.eq_ignore_ascii_case(known.to_string().as_bytes()))
        .ok_or(ParseError::ModeUnknown)?;
    Ok(Request { direction, name, mode, options: options(rest) })
}

/// Reads name and value pairs up to the first incomplete one. The first of two equal names counts (RFC 2347).
fn options(mut rest: &[u8]) -> Options {
    let mut options = Options::default();
    while let Some((name, value, after)) = text(rest).and_then(|(name, rest)| {
        let (value, after) = text(rest)?;
        (!name.is_empty()).then_some((name, value, after))
    }) {
        rest = after;
        let Some(value) = decimal(value) else { continue };
        let small = u16::try_from(value).unwrap_or(u16::MAX);
        if name.eq_ignore_ascii_case(b"blksize") && small >= MIN_BLOCK_SIZE {
            options.block_size.get_or_insert(small.min(MAX_BLOCK_SIZE));
        } else if name.eq_ignore_ascii_case(b"tsize") {
            options.transfer_size.get_or_insert(value);
        } else if name.eq_ignore_ascii_case(b"timeout") {
            if let Some(seconds) = u8::try_from(value).ok().filter(|seconds| *seconds > 0) {
                options.timeout.get_or_insert(seconds);
            }
        } else if name.eq_ignore_ascii_case(b"windowsize") && small > 0 {
            options.window_size.get_or_insert(small);
        }
    }
    options
}

fn number(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*head), rest))
}

fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn push_text(text: &[u8], out: &mut Vec<u8>) {
    out.extend(text.iter().copied().take_while(|byte| *byte != 0));
    out.push(0);
}

fn push_options(options: &Options, out: &mut Vec<u8>) {
    let pairs = [
        ("blksize", options.block_size.map(u64::from)),
        ("tsize", options.transfer_size),
        ("timeout", options.timeout.map(u64::from)),
        ("windowsize", options.window_size.map(u64::from)),
    ];
    for (name, value) in pairs.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        push_text(name.as_bytes(), out);
        push_text(value.to_string().as_bytes(), out);
    }
}
