//! The overlay initrd: a cpio archive (newc, as the kernel's initramfs buffer format describes it) with one file.
//! Pure.
//!
//! It is appended to the image's initramfs, after zeros up to a multiple of four bytes: the kernel finds the next
//! archive only at such a place.

/// Bytes of zeros to put between an initramfs of `size` bytes and the overlay.
#[must_use]
pub fn padding(size: u64) -> u64 {
    (4 - size % 4) % 4
}

/// An archive that holds `/config.ign`, mode 0600, where the live system's Ignition looks for it.
#[must_use]
pub fn archive(config: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(config.len() + 512);
    entry(&mut out, "config.ign", 0o100_600, 1, config);
    entry(&mut out, "TRAILER!!!", 0, 0, &[]);
    out
}

fn entry(out: &mut Vec<u8>, name: &str, mode: u32, inode: u32, data: &[u8]) {
    let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    // magic, then: inode, mode, uid, gid, links, mtime, size, device major and minor twice, name size, checksum
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}
