//! Detached signatures made by the real gpg.

use std::path::{Path, PathBuf};
use std::process::Command;

use nkd_server::content::image::error::ImportError;
use nkd_server::content::image::source::Source;
use nkd_server::content::image::{ImportRequest, SignaturePolicy};
use tempfile::TempDir;

use crate::support::*;

/// A key of this test alone.
struct Signer {
    home: TempDir,
    name: String,
}

impl Signer {
    fn new(name: &str, expires: &str, made: Option<&str>) -> Self {
        // A short path: gpg-agent's socket is in there.
        let signer = Self { home: TempDir::with_prefix("gpg").unwrap(), name: name.to_owned() };
        let made = made.map(|time| ["--faked-system-time", time]);
        let mut args: Vec<&str> = made.iter().flatten().copied().collect();
        args.extend(["--batch", "--passphrase", "", "--quick-generate-key", name, "ed25519", "sign", expires]);
        signer.gpg(&args);
        signer
    }

    fn gpg(&self, args: &[&str]) {
        let output = Command::new("gpg").arg("--homedir").arg(self.home.path()).args(args).output().unwrap();
        assert!(output.status.success(), "gpg {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn key(&self, armor: bool) -> PathBuf {
        let path = self.home.path().join(if armor { "key.asc" } else { "key.pub" });
        let mut args = vec!["--yes", "--output", path.to_str().unwrap()];
        args.extend(armor.then_some("--armor"));
        args.extend(["--export", &self.name]);
        self.gpg(&args);
        path
    }

    /// Writes `<file>.sig`.
    fn sign(&self, file: &Path, time: &[&str]) {
        let sig = format!("{}.sig", file.display());
        let mut args = time.to_vec();
        args.extend(["--batch", "--yes", "--output", &sig, "--detach-sign", file.to_str().unwrap()]);
        self.gpg(&args);
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").arg("--homedir").arg(self.home.path()).args(["--kill", "gpg-agent"]).status();
    }
}

/// A folder with a build, every file signed.
fn signed(place: &Place, signer: &Signer) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for (name, bytes) in parts("nestos", "1", "x86_64", 1) {
        place.write(&name, &bytes);
        files.push(place.source.join(&name));
        signer.sign(files.last().unwrap(), &[]);
    }
    files
}

fn with_key(request: ImportRequest, key: PathBuf) -> ImportRequest {
    ImportRequest { key: Some(key), ..request }
}

#[tokio::test]
async fn good_signatures_are_accepted_and_remembered() {
    let signer = Signer::new("NestOS builds <builds@example.org>", "never", None);
    for armor in [false, true] {
        let place = Place::new();
        signed(&place, &signer);
        let image = place.import(with_key(place.folder(), signer.key(armor))).await.unwrap();
        let by = image.signed_by.as_deref().unwrap();
        assert!(by.ends_with("NestOS builds <builds@example.org>") && !by.contains(", "), "{by}");
        assert!(by.split(' ').next().unwrap().len() >= 40, "{by}");
    }
}

#[tokio::test]
async fn bad_missing_and_foreign_signatures_are_refused() {
    let (signer, other) = (Signer::new("one", "never", None), Signer::new("two", "never", None));
    let place = Place::new();
    let files = signed(&place, &signer);
    let error = place.import(with_key(place.folder(), other.key(true))).await.unwrap_err();
    assert!(chain(&error).contains("NO_PUBKEY"), "{}", chain(&error));
    // One bit of the root file system.
    let mut bytes = std::fs::read(&files[2]).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&files[2], bytes).unwrap();
    let error = place.import(with_key(place.folder(), signer.key(true))).await.unwrap_err();
    assert!(chain(&error).contains("BADSIG"), "{}", chain(&error));
    assert!(matches!(error, ImportError::Signature { .. }));
    std::fs::remove_file(format!("{}.sig", files[2].display())).unwrap();
    let error = place.import(with_key(place.folder(), signer.key(true))).await.unwrap_err();
    assert!(matches!(error, ImportError::Unsigned { .. }), "{error}");
    assert_eq!(place.store.list().unwrap(), vec![]);
    let lenient = ImportRequest { signature: SignaturePolicy::IfPresent, ..place.folder() };
    place.import(with_key(lenient, signer.key(true))).await.unwrap();
}

#[tokio::test]
async fn an_expired_key_is_no_key() {
    let signer = Signer::new("old", "20200201T000000", Some("20200101T000000"));
    let place = Place::new();
    for (name, bytes) in parts("nestos", "1", "x86_64", 1) {
        place.write(&name, &bytes);
        signer.sign(&place.source.join(&name), &["--faked-system-time", "20200102T000000"]);
    }
    let error = place.import(with_key(place.folder(), signer.key(false))).await.unwrap_err();
    assert!(chain(&error).contains("EXPKEYSIG"), "{}", chain(&error));
}

#[tokio::test]
async fn what_is_no_key_is_refused() {
    let place = Place::new();
    place.write("key", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nnonsense\n-----END PGP PUBLIC KEY BLOCK-----\n");
    for file in ["key", "missing"] {
        let error = place.import(with_key(place.folder(), place.source.join(file))).await.unwrap_err();
        assert!(matches!(error, ImportError::Key(_)), "{error}");
    }
}

#[tokio::test]
async fn signatures_of_stream_documents_are_fetched() {
    let signer = Signer::new("streams", "never", None);
    let place = Place::new();
    let server = Server::start().await;
    let files = signed(&place, &signer);
    let parts = parts("nestos", "1", "x86_64", 1);
    let mut doc = stream(&parts, "1", "x86_64", str::to_owned);
    let formats = doc.pointer_mut("/architectures/x86_64/artifacts/metal/formats").unwrap();
    for (file, pointer) in files.iter().zip(["/pxe/kernel", "/pxe/initramfs", "/pxe/rootfs", "/raw.gz/disk"]) {
        let name = file.file_name().unwrap().to_str().unwrap();
        formats.pointer_mut(pointer).unwrap()["signature"] = format!("sigs/{name}.sig").into();
        server.put(name, std::fs::read(file).unwrap());
        server.put(&format!("sigs/{name}.sig"), std::fs::read(format!("{}.sig", file.display())).unwrap());
    }
    server.put("stream.json", doc.to_string());
    let import = || with_key(request(Source::StreamUrl(server.join("stream.json"))), signer.key(true));
    let image = place.import(import()).await.unwrap();
    assert!(image.signed_by.as_deref().unwrap().ends_with(" streams"));
    // Stored already, and still checked.
    server.put(&format!("sigs/{}.sig", parts[0].0), b"no signature".to_vec());
    let error = place.import(import()).await.unwrap_err();
    assert!(matches!(error, ImportError::Signature { .. }), "{error}");
}

#[tokio::test]
async fn one_signature_stands_for_a_whole_iso() {
    let signer = Signer::new("iso", "never", None);
    let place = Place::new();
    let boot = place.source.join("tree/images/pxeboot");
    std::fs::create_dir_all(&boot).unwrap();
    for name in ["vmlinuz", "initrd.img", "rootfs.img"] {
        std::fs::write(boot.join(name), bytes(1, 3000)).unwrap();
    }
    run("xorriso", &["-as", "mkisofs", "-quiet", "-o", "lab-1-live.x86_64.iso", "tree"], &place.source);
    let iso = place.source.join("lab-1-live.x86_64.iso");
    let import = || with_key(request(Source::Iso(iso.clone())), signer.key(true));
    let error = place.import(import()).await.unwrap_err();
    assert!(matches!(error, ImportError::Unsigned { .. }), "{error}");
    signer.sign(&iso, &[]);
    let image = place.import(import()).await.unwrap();
    assert!(image.signed_by.as_deref().unwrap().ends_with(" iso"));
    let mut bytes = std::fs::read(&iso).unwrap();
    let last = bytes.len() - 400_000.min(bytes.len() / 2);
    bytes[last] ^= 1;
    std::fs::write(&iso, bytes).unwrap();
    let error = place.import(import()).await.unwrap_err();
    assert!(chain(&error).contains("BADSIG"), "{}", chain(&error));
}
