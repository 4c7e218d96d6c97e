//! QEMU's debugger, by the remote protocol of GDB: one step, after which QEMU forgets all that it has translated.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long QEMU may take for one answer. A processor at rest takes no step.
const ANSWER: Duration = Duration::from_secs(10);
/// A stop is told whenever it comes, so that an answer may have another one before it.
const BEFORE: usize = 8;

/// Lets a machine that stands still take one step.
pub(super) fn step(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let mut bytes = BufReader::new(stream.try_clone()?).bytes();
    for (ask, wanted) in [("?", "T"), ("s", "T05"), ("D", "OK")] {
        let sum = ask.bytes().fold(0_u8, u8::wrapping_add);
        stream.write_all(format!("${ask}#{sum:02x}").as_bytes())?;
        let mut said = Vec::new();
        while !said.last().is_some_and(|answer: &String| answer.starts_with(wanted)) {
            if said.len() == BEFORE {
                return Err(io::Error::other(format!("QEMU's debugger says {said:?} to `{ask}`")));
            }
            said.push(packet(&mut bytes)?);
            stream.write_all(b"+")?;
        }
    }
    Ok(())
}

/// The next packet, without its frame: `$text#` and two digits of a sum.
fn packet(bytes: &mut impl Iterator<Item = io::Result<u8>>) -> io::Result<String> {
    let mut next = || bytes.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
    while next()? != b'$' {}
    let mut text = String::new();
    loop {
        match next()? {
            b'#' => break,
            byte => text.push(byte.into()),
        }
    }
    next().and(next()).map(|_| text)
}
