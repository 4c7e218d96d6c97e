//! Packages from stand-in programs, as dpkg-deb and a scratch root see them.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn built() -> Built {
    let own = std::env::current_exe().unwrap();
    let mut built = Built::without_completions(&own, &own).unwrap();
    built.completions = COMPLETIONS.iter().map(|(shell, path)| Entry::data(*path, *shell)).collect();
    built.agent = b"agent".to_vec();
    built.nkd = b"nkd".to_vec();
    built
}

fn unpacked(package: &Package, built: &Built) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let deb = package.build(&built.release, folder.path()).unwrap();
    let words = |option: &str, rest: Vec<OsString>| [vec![option.into(), deb.clone().into()], rest].concat();
    build::output("dpkg-deb", &words("-x", vec![folder.path().join("root").into()])).unwrap();
    build::output("dpkg-deb", &words("-e", vec![folder.path().join("control").into()])).unwrap();
    let contents = build::output("dpkg-deb", &words("--contents", Vec::new())).unwrap();
    for script in ["postinst", "prerm", "postrm"] {
        let path = folder.path().join("control").join(script);
        build::output("sh", &["-n".into(), path.clone().into()]).unwrap();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o755);
    }
    (folder, contents)
}

fn mode(root: &Path, path: &str) -> u32 {
    fs::metadata(root.join("root").join(path)).unwrap_or_else(|e| panic!("{path}: {e}")).permissions().mode() & 0o7777
}

#[test]
fn the_service_package_installs_everything_in_its_place() {
    let built = built();
    let package = nkd(&built).unwrap();
    let (folder, contents) = unpacked(&package, &built);
    assert_eq!(mode(folder.path(), "usr/bin/nkd"), 0o755);
    assert_eq!(mode(folder.path(), "etc/nkd/nkd.d"), 0o755);
    for path in [
        "usr/lib/systemd/system/nkd.service",
        "usr/lib/sysusers.d/nkd.conf",
        "etc/nkd/nkd.toml",
        "usr/share/bash-completion/completions/nkd",
        "usr/share/zsh/vendor-completions/_nkd",
        "usr/share/fish/vendor_completions.d/nkd.fish",
        "usr/share/doc/nkd/copyright",
        "usr/share/doc/nkd/changelog.gz",
        "usr/share/doc/nkd/third-party.gz",
        "usr/share/doc/nkd/ignition-templates/node/template.bu",
    ] {
        assert_eq!(mode(folder.path(), path), 0o644, "{path}");
    }
    assert!(contents.lines().all(|line| line.contains(" root/root ")), "{contents}");
    let control = |name: &str| fs::read_to_string(folder.path().join("control").join(name)).unwrap();
    assert_eq!(control("conffiles"), "/etc/nkd/nkd.toml\n");
    assert!(control("control").contains("Package: nkd\nVersion: "));
    assert!(control("control").contains("\nDepends: libc6 (>= 2."));
    build::output_in(
        &folder.path().join("root"),
        "md5sum",
        &["--check".into(), "--quiet".into(), "../control/md5sums".into()],
    )
    .unwrap();
}

#[test]
fn the_agent_package_needs_no_library_and_is_the_same_each_time() {
    let built = built();
    let package = agent(&built).unwrap();
    let (folder, _) = unpacked(&package, &built);
    assert_eq!(mode(folder.path(), "usr/bin/nkd-agent"), 0o755);
    assert_eq!(mode(folder.path(), "usr/lib/systemd/system/nkd-agent.service"), 0o644);
    assert_eq!(mode(folder.path(), "usr/lib/systemd/system/nkd-balancer.service"), 0o644);
    assert_eq!(mode(folder.path(), "usr/lib/systemd/system/nkd-updater.service"), 0o644);
    assert_eq!(mode(folder.path(), "usr/lib/systemd/system/nkd-boot-deadline.service"), 0o644);
    assert_eq!(mode(folder.path(), "usr/lib/systemd/system-preset/90-nkd-agent.preset"), 0o644);
    let control = fs::read_to_string(folder.path().join("control/control")).unwrap();
    assert!(!control.contains("libc6"), "{control}");

    let again = tempfile::tempdir().unwrap();
    let name = format!("nkd-agent_{}_amd64.deb", built.release.version);
    let second = package.build(&built.release, again.path()).unwrap();
    assert_eq!(second.file_name().unwrap().to_str(), Some(name.as_str()));
    assert!(fs::read(second).unwrap() == fs::read(folder.path().join(name)).unwrap(), "two builds differ");
}

#[test]
fn the_packages_name_the_crates_that_they_hold() {
    let metadata = Metadata::read().unwrap();
    let of_agent = third_party(&metadata, "nkd-agent").unwrap();
    assert!(of_agent.contains("\n==== ring ") && !of_agent.contains("\nsqlx "));
    assert!(third_party(&metadata, "nkd-server").unwrap().contains("\nsqlx "));
}
