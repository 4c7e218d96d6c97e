//! ed25519 signatures as ostree keeps them: raw, over the bytes of a commit or of the summary, in a dictionary beside it.
//!
//! They are made and checked here, because the service's own ostree may have been built without ed25519. The dictionary
//! (GVariant `a{sv}`) lies in `<commit>.commitmeta` and in `summary.sig`; it holds the OpenPGP signatures too.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zgvariant::serialized::{Context, Data};
use zgvariant::{LE, OwnedVariant, Variant, to_bytes};

/// Bytes of a public key, and of the seed that a secret one is made from.
pub(super) const KEY_LENGTH: usize = 32;
/// Whose signatures they are, in the dictionary.
const ENTRY: &str = "ostree.sign.ed25519";
/// So many characters of a key are its name for people.
const SHORT: usize = 16;

/// The service's own key.
pub(super) struct Key(Ed25519KeyPair);

impl Key {
    /// The key that is made from these bytes. None: they are too few or too many.
    pub fn from_seed(seed: &[u8]) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok().map(Self)
    }

    /// The public half, as it stands in a file of keys.
    pub fn public(&self) -> String {
        STANDARD.encode(self.0.public_key())
    }

    /// Signs these bytes; the same bytes have the same signature.
    pub fn sign(&self, data: &[u8]) -> Vec<u8> {
        self.0.sign(data).as_ref().to_vec()
    }
}

/// Keys whose signatures count.
#[derive(Debug)]
pub(super) struct Trusted(Vec<String>);

impl Trusted {
    /// Reads a file of public keys: base64, one a line.
    ///
    /// # Errors
    /// The number of the line that is none, or 0: there is no key at all.
    pub fn read(text: &str) -> Result<Self, usize> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match STANDARD.decode(line.trim()) {
                Ok(key) if key.len() == KEY_LENGTH => keys.push(line.trim().to_owned()),
                _ => return Err(number + 1),
            }
        }
        if keys.is_empty() { Err(0) } else { Ok(Self(keys)) }
    }

    /// The name of a key that signed these bytes with one of these signatures.
    pub fn signer(&self, data: &[u8], signatures: &[Vec<u8>]) -> Option<String> {
        let signed = |key: &&String| {
            let key = STANDARD.decode(key.as_str()).unwrap_or_default();
            let key = UnparsedPublicKey::new(&ED25519, key);
            signatures.iter().any(|signature| key.verify(data, signature).is_ok())
        };
        let key = self.0.iter().find(signed)?;
        Some(format!("ed25519 {}", key.chars().take(SHORT).collect::<String>()))
    }
}

/// What lies beside a commit or a summary.
#[derive(Debug, Default)]
pub(super) struct Detached(BTreeMap<String, OwnedVariant>);

impl Detached {
    /// Reads the bytes of the file.
    ///
    /// # Errors
    /// They are no such dictionary.
    pub fn read(bytes: &[u8]) -> Result<Self, zgvariant::Error> {
        Data::new(bytes, context()).deserialize().map(|(entries, _)| Self(entries))
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// An entry that was there cannot be written.
    pub fn write(&self) -> Result<Vec<u8>, zgvariant::Error> {
        Ok(to_bytes(context(), &self.0)?.bytes().to_vec())
    }

    /// The ed25519 signatures.
    pub fn signatures(&self) -> Vec<Vec<u8>> {
        let entry = self.0.get(ENTRY).and_then(|entry| entry.try_clone().ok());
        entry.and_then(|entry| Vec::try_from(entry).ok()).unwrap_or_default()
    }

    /// Puts a signature before the others: ostree gives up at the first one that is not of the right length, and whoever
    /// built a commit may have left such a thing. False: it is there.
    ///
    /// # Errors
    /// None that is known: the entry is made of bytes.
    pub fn sign(&mut self, signature: Vec<u8>) -> Result<bool, zgvariant::Error> {
        let mut signatures = self.signatures();
        if signatures.first() == Some(&signature) {
            return Ok(false);
        }
        signatures.retain(|other| *other != signature);
        signatures.insert(0, signature);
        self.0.insert(ENTRY.to_owned(), OwnedVariant::try_from(Variant::from(signatures))?);
        Ok(true)
    }

    /// Forgets the ed25519 signatures: they were made over other bytes.
    pub fn unsign(&mut self) {
        self.0.remove(ENTRY);
    }
}

/// ostree writes in the order of this machine, which is little-endian on every architecture that has a profile.
fn context() -> Context {
    Context::new(LE, 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> Key {
        Key::from_seed(&[seed; KEY_LENGTH]).unwrap()
    }

    /// As `ostree gpg-sign` writes it: one entry, `ostree.gpgsigs`, of one signature of these bytes.
    fn gpg_alone(signature: &[u8]) -> Vec<u8> {
        let start = b"ostree.gpgsigs\0\0";
        let mut bytes = [&start[..], signature].concat();
        // The end of the signature in the array, the type, the end of the name in the entry, the end of the entry.
        bytes.push(signature.len() as u8);
        bytes.extend(b"\0aay");
        bytes.push(15);
        bytes.push(bytes.len() as u8);
        bytes
    }

    #[test]
    fn a_signature_stands_before_those_that_were_there_and_the_rest_stays() {
        let gpg = gpg_alone(&[0x88, 0x75, 0x04]);
        let mut detached = Detached::read(&gpg).unwrap();
        assert_eq!(detached.write().unwrap(), gpg, "what was read is written again");
        assert!(detached.signatures().is_empty());
        let (first, second) = (key(1).sign(b"commit"), key(2).sign(b"commit"));
        assert!(detached.sign(vec![7]).unwrap());
        assert!(detached.sign(first.clone()).unwrap());
        assert!(detached.sign(second.clone()).unwrap());
        assert!(!detached.sign(second.clone()).unwrap(), "the same again changes nothing");
        let mut again = Detached::read(&detached.write().unwrap()).unwrap();
        assert_eq!(again.signatures(), [second, first, vec![7]]);
        again.unsign();
        assert_eq!(again.write().unwrap(), gpg);
    }

    #[test]
    fn a_commit_without_anything_beside_it_is_signed_too() {
        let mut detached = Detached::default();
        detached.sign(key(1).sign(b"commit")).unwrap();
        let again = Detached::read(&detached.write().unwrap()).unwrap();
        assert_eq!(again.signatures(), [key(1).sign(b"commit")]);
        assert!(Detached::read(b"").unwrap().signatures().is_empty());
    }

    #[test]
    fn only_a_key_of_the_file_counts_and_only_for_these_bytes() {
        let file = format!("{}\n\n {} \n", key(1).public(), key(2).public());
        let trusted = Trusted::read(&file).unwrap();
        let name = format!("ed25519 {}", &key(2).public()[..16]);
        let signatures = |seed: u8| vec![vec![0; 64], vec![1], key(seed).sign(b"commit")];
        assert_eq!(trusted.signer(b"commit", &signatures(2)), Some(name));
        assert_eq!(trusted.signer(b"commit", &signatures(3)), None);
        assert_eq!(trusted.signer(b"Commit", &signatures(2)), None);
        assert_eq!(trusted.signer(b"commit", &[]), None);
    }

    #[test]
    fn a_file_of_keys_says_which_line_is_none() {
        let good = key(1).public();
        for (text, line) in [
            ("", 0),
            ("\n \n", 0),
            (&*format!("{good}\n\nssh-ed25519 AAAA me\n"), 3),
            (&*format!("{good}\n{}", &good[..40]), 2),
            (&*format!("{good}{good}"), 1),
        ] {
            assert_eq!(Trusted::read(text).unwrap_err(), line, "{text:?}");
        }
        assert!(Key::from_seed(&[1; 31]).is_none());
    }

    proptest! {
        #[test]
        fn whatever_lies_there_is_read_or_refused(
            cut in 0..400usize,
            changes in prop::collection::vec((0..400usize, any::<u8>()), 0..6),
        ) {
            let mut detached = Detached::read(&gpg_alone(&[3; 100])).unwrap();
            detached.sign(key(1).sign(b"commit")).unwrap();
            let mut bytes = detached.write().unwrap();
            for (at, byte) in changes {
                let length = bytes.len();
                bytes[at % length] = byte;
            }
            bytes.truncate(cut.max(1));
            if let Ok(mut read) = Detached::read(&bytes) {
                read.sign(key(2).sign(b"commit")).unwrap();
                let again = Detached::read(&read.write().unwrap()).unwrap();
                prop_assert_eq!(&again.signatures()[0], &key(2).sign(b"commit"));
            }
        }
    }
}
