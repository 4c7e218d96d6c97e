//! What a 64-bit little-endian ELF file asks of the system that it runs on.

use anyhow::{Result, bail, ensure};

const PT_INTERP: u32 = 3;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;

/// True if the program needs no loader, and so no shared library. A position-independent static program has dynamic
/// relocations of its own, but names no interpreter.
pub fn is_static(file: &[u8]) -> Result<bool> {
    ensure!(
        file.get(..6) == Some(&[0x7f, b'E', b'L', b'F', ELFCLASS64, ELFDATA2LSB]),
        "it is not a 64-bit little-endian ELF program"
    );
    let offset = number(file, 0x20, 8)?;
    let entry_size = number(file, 0x36, 2)?;
    for index in 0..number(file, 0x38, 2)? {
        if number(file, offset + index * entry_size, 4)? == PT_INTERP as usize {
            return Ok(false);
        }
    }
    Ok(true)
}

fn number(file: &[u8], at: usize, bytes: usize) -> Result<usize> {
    let Some(field) = at.checked_add(bytes).and_then(|end| file.get(at..end)) else { bail!("its headers are cut off") };
    Ok(field.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(types: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 0x40];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        (file[0x20], file[0x36], file[0x38]) = (0x40, 56, u8::try_from(types.len()).unwrap());
        for kind in types {
            file.extend(kind.to_le_bytes());
            file.extend([0; 52]);
        }
        file
    }

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        assert!(is_static(&program(&[1, 1, 2])).unwrap());
        assert!(!is_static(&program(&[6, PT_INTERP, 1])).unwrap());
        assert!(is_static(&program(&[1, 1])[..0x50]).is_err());
        assert!(is_static(b"#!/bin/sh").is_err());
    }

    #[test]
    fn this_test_itself_is_dynamic() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own).unwrap());
    }
}
