//! The remote that stands for the service's repository: where it is, and which signatures are asked for.
//!
//! A node asks for every kind of signature that its own ostree can check and the service makes, on commits and summary. A
//! node that could check none of them pulls nothing.

use std::path::Path;

use super::Source;

/// The remote that belongs to the service.
pub(super) const NAME: &str = "nkd";
/// A public key of 32 bytes in base64.
const KEY_LENGTH: usize = 44;

/// The kinds of signatures that an ostree can check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// OpenPGP, by gpgme.
    pub openpgp: bool,
    /// ed25519, by libsodium or OpenSSL.
    pub ed25519: bool,
}

impl Checks {
    /// From what `ostree --version` writes: one feature a line.
    #[must_use]
    pub fn of(version: &str) -> Self {
        let has = |feature: &str| version.lines().any(|line| line.trim().strip_prefix("- ") == Some(feature));
        Self { openpgp: has("gpgme"), ed25519: has("sign-ed25519") }
    }
}

/// The text of the remote. `ca` and `key` are the files of the service's authority and of its OpenPGP key.
///
/// # Errors
/// In one sentence; the remote would be one without any verification, or not the one that was meant.
pub fn text(source: &Source, checks: Checks, ca: &Path, key: &Path) -> Result<String, String> {
    let ed25519 = source.ed25519_key.as_deref().filter(|_| checks.ed25519);
    if let Some(key) = ed25519.filter(|key| !is_key(key)) {
        return Err(format!("the service's ed25519 key is none: {key:?}"));
    }
    let openpgp = checks.openpgp;
    if !openpgp && ed25519.is_none() {
        let why = match checks.ed25519 {
            true => "it checks ed25519 signatures alone, and the service makes none",
            false => "it was built without gpgme and without ed25519",
        };
        return Err(format!("this node's ostree can check no signature of the service: {why}"));
    }
    let mut lines = vec![
        "# Written by nkd-agent; changes are lost.".to_owned(),
        format!("[remote \"{NAME}\"]"),
        format!("url={}", source.url),
        format!("tls-ca-path={}", ca.display()),
        format!("gpg-verify={openpgp}"),
        format!("gpg-verify-summary={openpgp}"),
    ];
    if openpgp {
        lines.push(format!("gpgkeypath={}", key.display()));
    }
    if let Some(key) = ed25519 {
        // By its name: `true` would be content with whatever kind of key there is, also with keys of the system.
        lines.push("sign-verify=ed25519".to_owned());
        lines.push("sign-verify-summary=ed25519".to_owned());
        lines.push(format!("verification-ed25519-key={key}"));
    }
    Ok(lines.join("\n") + "\n")
}

/// It becomes a line of a file.
fn is_key(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    text.len() == KEY_LENGTH && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "MGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6MDEyMzQ=";

    fn source(ed25519_key: Option<&str>) -> Source {
        Source {
            url: "https://192.0.2.1:8443/ostree/lab".into(),
            ca: "ca".into(),
            key: "key".into(),
            ed25519_key: ed25519_key.map(str::to_owned),
            difference: None,
        }
    }

    fn written(ed25519_key: Option<&str>, openpgp: bool, ed25519: bool) -> Result<String, String> {
        text(&source(ed25519_key), Checks { openpgp, ed25519 }, Path::new("/ca.pem"), Path::new("/key.asc"))
    }

    #[test]
    fn the_features_of_an_ostree_read() {
        let version = |features: &str| format!("libostree:\n Version: '2022.7'\n Features:\n{features}  - p2p\n");
        let debian = version("  - libcurl\n  - gpgme\n  - ex-fsverity\n");
        assert_eq!(Checks::of(&debian), Checks { openpgp: true, ed25519: false });
        let both = version("  - gpgme\n  - sign-ed25519\n");
        assert_eq!(Checks::of(&both), Checks { openpgp: true, ed25519: true });
        let other = version("  - libsodium\n  - sign-ed25519-not\n");
        assert_eq!(Checks::of(&other), Checks { openpgp: false, ed25519: false });
    }

    #[test]
    fn every_kind_of_signature_is_asked_for_that_both_sides_know() {
        let head = "# Written by nkd-agent; changes are lost.\n[remote \"nkd\"]\nurl=https://192.0.2.1:8443/ostree/lab\n\
                    tls-ca-path=/ca.pem\n";
        let gpg = "gpg-verify=true\ngpg-verify-summary=true\ngpgkeypath=/key.asc\n";
        let no_gpg = "gpg-verify=false\ngpg-verify-summary=false\n";
        let sign = format!("sign-verify=ed25519\nsign-verify-summary=ed25519\nverification-ed25519-key={KEY}\n");
        assert_eq!(written(Some(KEY), true, true).unwrap(), format!("{head}{gpg}{sign}"));
        assert_eq!(written(Some(KEY), false, true).unwrap(), format!("{head}{no_gpg}{sign}"));
        assert_eq!(written(Some(KEY), true, false).unwrap(), format!("{head}{gpg}"));
        assert_eq!(written(None, true, true).unwrap(), format!("{head}{gpg}"), "a service from before");
    }

    #[test]
    fn no_remote_is_written_that_verifies_nothing() {
        let none = written(None, false, true).unwrap_err();
        assert!(none.ends_with("it checks ed25519 signatures alone, and the service makes none"), "{none}");
        for key in [None, Some(KEY)] {
            let none = written(key, false, false).unwrap_err();
            assert!(none.ends_with("it was built without gpgme and without ed25519"), "{none}");
        }
        for key in ["", &format!("{KEY}\ngpg-verify=false"), &KEY[1..], &KEY.replace('M', "\n")] {
            let wrong = written(Some(key), true, true).unwrap_err();
            assert!(wrong.starts_with("the service's ed25519 key is none"), "{wrong}");
        }
    }
}
