//! Requested names: raw bytes in, a path of the virtual tree out. Pure.
//!
//! A name is a key, never joined to a path of the file system. Still every form that could leave a tree is refused
//! (error 2), so that a mistake one layer up stays harmless. What ordinary firmware does is tolerated: leading and
//! doubled slashes, `.` segments, and the byte 0xFF that some PXE ROMs leave behind the name (DHCP's end option).

use thiserror::Error;

/// The longest name that is looked up, in bytes.
pub const MAX_NAME: usize = 512;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing is left of it.
    #[error("the file name is empty")]
    Empty,
    /// Longer than [`MAX_NAME`].
    #[error("the file name is longer than {MAX_NAME} bytes")]
    Long,
    /// Not UTF-8, or with control characters.
    #[error("the file name holds bytes that are no text")]
    Text,
    /// A `..` segment.
    #[error("the file name holds a '..' segment")]
    Traversal,
    /// A backslash.
    #[error("the file name holds a backslash: use slashes")]
    Backslash,
    /// A percent sign.
    #[error("the file name holds a percent sign: TFTP names are not URLs")]
    Percent,
}

/// The name as a path of the virtual tree: segments between single slashes, none at either end.
///
/// # Errors
/// [`NameError`] if the name is none of the tree's. No input panics.
pub fn normalise(name: &[u8]) -> Result<String, NameError> {
    let name = &name[..name.iter().rposition(|byte| *byte != 0xff).map_or(0, |last| last + 1)];
    if name.len() > MAX_NAME {
        return Err(NameError::Long);
    }
    let name = std::str::from_utf8(name).map_err(|_| NameError::Text)?;
    if name.chars().any(char::is_control) {
        return Err(NameError::Text);
    }
    if name.contains('\\') {
        return Err(NameError::Backslash);
    }
    if name.contains('%') {
        return Err(NameError::Percent);
    }
    let segments: Vec<&str> = name.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
    if segments.contains(&"..") {
        return Err(NameError::Traversal);
    }
    if segments.is_empty() {
        return Err(NameError::Empty);
    }
    Ok(segments.join("/"))
}
