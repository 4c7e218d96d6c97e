//! The head of a file in an archive repository (pure): owner, mode, link and attributes, before the packed content.
//!
//! A GVariant of the type `(tuuuusa(ayay))` with numbers in network order, after its own length in four bytes and four
//! bytes of nothing. Texts end with a zero; where the one of variable length within ends stands behind it all.

/// What is known of a file beside its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    pub size: u64,
    pub uid: u32,
    pub gid: u32,
    /// With the bits of its kind.
    pub mode: u32,
    /// Where a symbolic link leads.
    pub link: &'a [u8],
    /// Attributes, a GVariant `a(ayay)` as ostree writes it.
    pub xattrs: &'a [u8],
}

impl Head<'_> {
    /// As it stands in the object's file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = self.size.to_be_bytes().to_vec();
        // The last of them is for devices, which ostree does not keep.
        for number in [self.uid, self.gid, self.mode, 0] {
            body.extend(number.to_be_bytes());
        }
        body.extend(self.link);
        body.push(0);
        let end = body.len() as u64;
        body.extend(self.xattrs);
        let width = [1_usize, 2, 4, 8].into_iter().find(|width| fits(body.len() + width, *width));
        body.extend(&end.to_le_bytes()[..width.unwrap_or(8)]);
        let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    }
}

fn fits(length: usize, width: usize) -> bool {
    width == 8 || (length as u64) < 1 << (8 * width)
}
