//! ISO 9660 records; whole ISOs are in the integration tests.

use proptest::prelude::*;

use super::*;

fn record(name: &str, flags: u8, sector: u32, len: u32) -> Vec<u8> {
    let size = (33 + name.len()).next_multiple_of(2);
    let mut record = vec![0; size];
    record[0] = size as u8;
    record[2..6].copy_from_slice(&sector.to_le_bytes());
    record[10..14].copy_from_slice(&len.to_le_bytes());
    record[25] = flags;
    record[32] = name.len() as u8;
    record[33..33 + name.len()].copy_from_slice(name.as_bytes());
    record
}

#[test]
fn files_of_several_extents_are_joined() {
    let mut bytes = [record("ROOTFS.IMG;1", 0x80, 10, 2048), record("ROOTFS.IMG;1", 0, 20, 5)].concat();
    bytes.resize(SECTOR as usize, 0);
    bytes.extend(record("vmlinuz.;1", 0, 30, 1));
    let entries = directory(&bytes).unwrap();
    assert_eq!(entries.len(), 2);
    let extents = vec![Extent { offset: 20_480, len: 2048 }, Extent { offset: 40_960, len: 5 }];
    assert_eq!(entries[0], Entry { name: "ROOTFS.IMG".into(), directory: false, extents });
    assert_eq!(entries[1].name, "VMLINUZ");
}

#[test]
fn records_that_run_over_are_damaged() {
    let mut bytes = record("A", 0, 1, 1);
    bytes[0] = 200;
    assert_eq!(directory(&bytes), Err(IsoFormatError::Record));
    let mut bytes = record("A", 0, 1, 1);
    bytes[32] = 90;
    assert_eq!(directory(&bytes), Err(IsoFormatError::Record));
}

proptest! {
    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        let _ = directory(&bytes);
        let _ = volume(&bytes);
    }

    #[test]
    fn no_descriptor_panics(mut bytes in proptest::collection::vec(any::<u8>(), 2048)) {
        bytes[..6].copy_from_slice(b"\x01CD001");
        bytes[128..130].copy_from_slice(&2048u16.to_le_bytes());
        prop_assert!(volume(&bytes).is_ok());
    }
}
