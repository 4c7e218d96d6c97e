//! Bounds of what is unpacked.

use std::io::Write as _;

use super::*;

fn tar_of(members: usize, size: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..members {
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        let name = format!("objects/ab/{number:062x}.filez");
        tar.append_data(&mut header, name, &vec![0; size][..]).unwrap();
    }
    tar.into_inner().unwrap()
}

fn refused(bytes: &[u8], limits: Limits) -> String {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("packed");
    fs::write(&path, bytes).unwrap();
    let taken = tarball::unpack(&path, &place.path().join("repo"), &place.path().join("layout"), limits);
    match taken {
        Err(Failed::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_unpacks_to_too_much_ends_there() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&tar_of(2, 1 << 20)).unwrap();
    let packed = packed.finish().unwrap();
    let few = Limits { bytes: 1 << 20, members: 100 };
    assert_eq!(refused(&packed, few), "it does not read: it unpacks to more than 1048576 bytes");
    let many = Limits { bytes: 1 << 30, members: 100 };
    assert_eq!(refused(&tar_of(101, 1), many), "it has more than 100 members");
    assert_eq!(refused(&tar_of(100, 1), many), "its repository has no `config`");
}

#[test]
fn a_name_that_fills_the_memory_is_refused() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(2 << 20);
    header.set_cksum();
    tar.append(&header, &vec![b'a'; 2 << 20][..]).unwrap();
    assert_eq!(refused(&tar.into_inner().unwrap(), LIMITS), "a name in it is longer than any name");
}

#[test]
fn refs_and_configurations_that_fill_the_memory_are_refused() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(&mut packed);
    let bytes = vec![0; 1 << 20];
    for number in 0..600 {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        let name = if number % 2 == 0 { format!("refs/heads/{number}") } else { format!("{number}/config") };
        tar.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    tar.finish().unwrap();
    drop(tar);
    let reason = "names, refs and attributes in it take more than 512 MiB of memory";
    assert_eq!(refused(&packed.finish().unwrap(), LIMITS), reason);
}
