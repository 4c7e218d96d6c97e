//! What gpgv says, and armor; the real gpg is in the integration tests.

use super::*;

#[test]
fn only_good_signatures_by_living_keys_count() {
    let good = "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 82B9 A B <a@b>\n[GNUPG:] VALIDSIG 02E5 2024-01-01 more\n";
    assert_eq!(accepted(good).as_deref(), Some("02E5 A B <a@b>"));
    for bad in ["BADSIG 1 x", "EXPKEYSIG 1 x", "REVKEYSIG 1 x", "ERRSIG 1", "EXPSIG 1 x", "NODATA 4"] {
        assert_eq!(accepted(&format!("{good}[GNUPG:] {bad}\n")), None, "{bad}");
    }
    assert_eq!(accepted("[GNUPG:] GOODSIG 82B9 A\n"), None);
    assert_eq!(accepted(""), None);
    // Not a status line: a name may hold anything.
    assert_eq!(accepted("GOODSIG 1 x\nVALIDSIG 2 y\n"), None);
}

#[test]
fn armor_is_taken_off() {
    let block =
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: x\n\nAQID\nBAU=\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n";
    assert_eq!(dearmor(format!("text before\n{block}{block}").into_bytes()), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]);
    assert_eq!(dearmor(vec![0x98, 0xff]), [0x98, 0xff]);
}
