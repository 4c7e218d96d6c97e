//! Names: what firmware asks for is found, what could leave a tree is refused.

use proptest::prelude::*;

use crate::netboot::tftp::names::{MAX_NAME, NameError, normalise};

#[test]
fn what_firmware_asks_for_is_found() {
    for (asked, name) in [
        (&b"undionly.kpxe"[..], "undionly.kpxe"),
        (b"/ipxe.efi", "ipxe.efi"),
        (b"//EFI//BOOT/grubx64.efi", "EFI/BOOT/grubx64.efi"),
        (b"./pxelinux.cfg/01-52-54-00-12-34-56", "pxelinux.cfg/01-52-54-00-12-34-56"),
        (b"pxelinux.0\xff", "pxelinux.0"),
        (b"pxelinux.0\xff\xff", "pxelinux.0"),
        (b"a..b/...", "a..b/..."),
        (b"boot/", "boot"),
        ("größe".as_bytes(), "größe"),
    ] {
        assert_eq!(normalise(asked).as_deref(), Ok(name), "{asked:?}");
    }
}

#[test]
fn names_that_leave_the_tree_are_refused() {
    for (asked, error) in [
        (&b".."[..], NameError::Traversal),
        (b"../../etc/shadow", NameError::Traversal),
        (b"/../etc/shadow", NameError::Traversal),
        (b"boot/../../etc/shadow", NameError::Traversal),
        (b"boot/..", NameError::Traversal),
        (b"..\\..\\boot.ini", NameError::Backslash),
        (b"C:\\boot.ini", NameError::Backslash),
        (b"%2e%2e/etc/shadow", NameError::Percent),
        (b"a%00b", NameError::Percent),
        (b"a\0b", NameError::Text),
        (b"a\nb", NameError::Text),
        (b"\xc0\xae\xc0\xae/etc", NameError::Text),
        (b"", NameError::Empty),
        (b"/", NameError::Empty),
        (b"/./", NameError::Empty),
        (b"\xff", NameError::Empty),
        (&[b'a'; MAX_NAME + 1], NameError::Long),
    ] {
        assert_eq!(normalise(asked), Err(error), "{asked:?}");
    }
}

proptest! {
    #[test]
    fn a_normal_name_is_clean_and_normal_again(asked in "[a./\\\\%\u{0}-\u{7f}]{0,40}") {
        if let Ok(name) = normalise(asked.as_bytes()) {
            prop_assert!(name.split('/').all(|part| !matches!(part, "" | "." | "..")));
            prop_assert!(!name.contains(['\\', '%', '\0']));
            prop_assert_eq!(normalise(name.as_bytes()), Ok(name));
        }
    }
}
