//! Which programs and files must be there, and what brings them: a Debian package, or a build.

use std::path::{Path, PathBuf};

use crate::Error;

const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("tcpdump", "tcpdump"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("pivot_root", "util-linux"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
];

const FILES: &[(&str, &str)] = &[
    ("/lib/systemd/systemd", "systemd"),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
    ("/usr/share/OVMF/OVMF_VARS_4M.fd", "ovmf"),
    ("/usr/lib/ipxe/qemu/pxe-virtio.rom", "ipxe-qemu"),
    ("/usr/lib/ipxe/qemu/efi-virtio.rom", "ipxe-qemu"),
    ("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "faketime"),
];

/// What a build has made, at the file or folder that an environment variable names. `cargo xtask` builds and sets it.
pub fn built(variable: &'static str) -> Result<PathBuf, Error> {
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.exists());
    path.ok_or(Error::NotBuilt {
        variable,
        remedy: "run this through `cargo xtask test` or `cargo xtask soak`, which build it",
    })
}

/// Checks that these programs or files can be found; the error names all that cannot.
pub(crate) fn require(names: &[&str]) -> Result<(), Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| match name.starts_with('/') {
        true => Path::new(name).exists(),
        false => std::env::split_paths(&path).any(|dir| dir.join(name).is_file()),
    };
    let missing: Vec<&str> = names.iter().copied().filter(|name| !there(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<String> = Vec::new();
    for name in &missing {
        let package =
            PROGRAMS.iter().chain(FILES).find(|(what, _)| what == name).map_or(*name, |(_, package)| *package);
        if !packages.iter().any(|known| known == package) {
            packages.push(package.to_owned());
        }
    }
    Err(Error::Missing { what: missing.into_iter().map(str::to_owned).collect(), packages })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_every_missing_program_and_its_package() {
        let error = require(&["ip", "no-such-program", "/no/such/file"]).unwrap_err().to_string();
        assert!(error.contains("no-such-program, /no/such/file"), "{error}");
        assert!(!error.contains("iproute2"), "{error}");
    }

    #[test]
    fn every_firmware_file_has_a_package() {
        assert!(FILES.iter().all(|(file, package)| file.starts_with('/') && !package.is_empty()));
    }
}
