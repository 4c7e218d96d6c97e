//! Content: the same bytes from memory and file, and netascii there and back.
#![allow(clippy::disallowed_methods, reason = "tests with a real file")]

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use crate::netboot::tftp::Content;
use crate::netboot::tftp::netascii;
use crate::netboot::tftp::source::Source;

fn file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn a_file_that_became_shorter_is_an_error() {
    let file = file(&[1; 1000]);
    let mut source = Source::new(Content::File { file: Arc::new(file.try_clone().unwrap()), len: 100_000 });
    assert!(source.read(0, 512).is_err());
    file.set_len(0).unwrap();
    assert!(source.read(0, 1).is_err());
    assert!(Source::new(Content::Bytes(Bytes::new())).read(0, 1).is_err());
}

#[test]
fn long_files_are_not_translated() {
    let len = netascii::MAX_TRANSLATED + 1;
    let source = Source::new(Content::File { file: Arc::new(file(&[])), len });
    assert!(source.translated().unwrap().is_none());
}

/// The client's side of netascii.
fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'\r' if *rest.next().unwrap() == b'\n' => b'\n',
            other => *other,
        });
    }
    out
}

proptest! {
    #[test]
    fn file_and_memory_give_the_same(
        bytes in prop::collection::vec(any::<u8>(), 1..100_000),
        places in prop::collection::vec((any::<prop::sample::Index>(), 0usize..70_000), 1..20),
    ) {
        let mut from_file = Source::new(Content::File { file: Arc::new(file(&bytes)), len: bytes.len() as u64 });
        for (offset, length) in places {
            let offset = offset.index(bytes.len());
            let length = length.min(bytes.len() - offset);
            let read = from_file.read(offset as u64, length).unwrap();
            prop_assert_eq!(read, &bytes[offset..offset + length]);
        }
    }

    #[test]
    fn netascii_comes_back_as_it_was(bytes in prop::collection::vec(prop::sample::select(b"\r\n\0ab".to_vec()), 0..200)) {
        prop_assert_eq!(decode(&netascii::encode(&bytes)), bytes);
    }
}
