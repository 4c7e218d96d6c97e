//! Publishing from what is packed: tars of a repository, and OCI images that hold a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder as Tar, EntryType, Header};

use super::{Builder, REF, good, harness::Place, pull, refused, system};

/// A system with everything that makes a difference: owners, modes, links, attributes, an empty file.
fn rich(place: &Place) -> Builder {
    let builder = Builder::new(place);
    let tree = PathBuf::from(builder.path("tree"));
    std::fs::create_dir_all(tree.join("usr/lib/deep")).unwrap();
    std::fs::write(tree.join("usr/lib/empty"), b"").unwrap();
    std::fs::write(tree.join("usr/lib/owned"), b"of somebody").unwrap();
    std::os::unix::fs::chown(tree.join("usr/lib/owned"), Some(5), Some(7)).unwrap();
    std::fs::write(tree.join("usr/bin/sudo"), b"careful").unwrap();
    good("chmod", &["4755", tree.join("usr/bin/sudo").to_str().unwrap()]);
    std::fs::write(tree.join("usr/bin/ping"), b"ping").unwrap();
    good("/sbin/setcap", &["cap_net_raw+ep", tree.join("usr/bin/ping").to_str().unwrap()]);
    std::os::unix::fs::symlink("../../../etc/passwd", tree.join("usr/lib/deep/link")).unwrap();
    builder
}

fn publish(place: &Place, path: &Path, more: &[&str]) -> Value {
    let words = ["channel", "publish", "stable", "-o", "json", "--ostree", path.to_str().unwrap()];
    serde_json::from_str(&place.ok(&[&words[..], more].concat())).unwrap()
}

/// Publishing this is refused, and nothing of it is left.
fn not_taken(place: &Place, path: &Path, why: &str) {
    refused(&place.cli(&["channel", "publish", "stable", "--ostree", path.to_str().unwrap()]), why);
    let left: Vec<_> = std::fs::read_dir(place.state().join("ostree")).into_iter().flatten().flatten().collect();
    let left: Vec<_> =
        left.iter().map(|e| e.file_name()).filter(|name| name.to_string_lossy().starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The objects of a repository of the mode `bare`, in which every file is as it is on a disk.
fn objects(builder: &Builder, commit: &str) -> Vec<(String, PathBuf)> {
    let bare = builder.path("bare");
    good("ostree", &["init", &format!("--repo={bare}"), "--mode=bare"]);
    good("ostree", &["pull-local", &format!("--repo={bare}"), &builder.path("repo"), commit]);
    let find = good("find", &[&format!("{bare}/objects"), "-mindepth", "2"]);
    let name = |path: &str| path.rsplit_once("/objects/").unwrap().1.to_owned();
    find.lines().map(|path| (name(path), PathBuf::from(path))).collect()
}

/// A GVariant `a(ayay)` of at most one attribute, as ostree keeps it.
fn xattrs(path: &Path) -> Vec<u8> {
    let script = "import os,sys\nfor n in sorted(os.listxattr(sys.argv[1],follow_symlinks=False)):\n print(n, os.getxattr(sys.argv[1],n,follow_symlinks=False).hex())";
    let list = good("python3", &["-c", script, path.to_str().unwrap()]);
    let mut lines = list.lines().filter(|line| !line.starts_with("security.selinux"));
    let Some((name, value)) = lines.next().map(|line| line.split_once(' ').unwrap()) else { return Vec::new() };
    assert_eq!(lines.next(), None);
    let mut pair = [name.as_bytes(), b"\0", &hex::decode(value).unwrap()].concat();
    pair.push(u8::try_from(name.len() + 1).unwrap());
    pair.push(u8::try_from(pair.len()).unwrap());
    pair
}

fn header(kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A member under a name that no packer would write.
fn member(tar: &mut Tar<Vec<u8>>, kind: EntryType, name: &str, bytes: &[u8], target: &str) {
    let mut header = header(kind, bytes.len());
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    tar.append(&header, bytes).unwrap();
}

const OBJECTS: &str = "sysroot/ostree/repo/objects";

/// Where attributes stand: in front of the file that has them, as they are written, or behind it, which is harder to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attributes {
    Before,
    Behind,
}

/// A layer of an encapsulated commit. Debian has no ostree-ext, which makes them: this is written as it writes them.
struct Layer {
    tar: Tar<Vec<u8>>,
    order: Attributes,
    /// Of the attributes that are in it.
    known: BTreeSet<String>,
}

impl Layer {
    /// One with the folders of a repository and its settings, with which each of them begins.
    fn new(order: Attributes) -> Self {
        let mut layer = Self { tar: Tar::new(Vec::new()), order, known: BTreeSet::new() };
        for folder in ["sysroot", "sysroot/ostree", "sysroot/ostree/repo", OBJECTS] {
            layer.folder(folder);
        }
        for first in 0..=255_u8 {
            layer.folder(&format!("{OBJECTS}/{first:02x}"));
        }
        for folder in ["extensions", "refs", "refs/heads", "refs/mirrors", "refs/remotes", "state", "tmp", "tmp/cache"]
        {
            layer.folder(&format!("sysroot/ostree/repo/{folder}"));
        }
        layer.file("sysroot/ostree/repo/config", b"[core]\nrepo_version=1\nmode=bare-split-xattrs\n");
        layer
    }

    fn folder(&mut self, path: &str) {
        let mut head = header(EntryType::Directory, 0);
        head.set_mode(0o755);
        self.tar.append_data(&mut head, path, std::io::empty()).unwrap();
    }

    fn file(&mut self, path: &str, bytes: &[u8]) {
        let mut head = header(EntryType::Regular, bytes.len());
        self.tar.append_data(&mut head, path, bytes).unwrap();
    }

    fn link(&mut self, path: &str, to: &str) {
        let mut head = header(EntryType::Link, 0);
        self.tar.append_link(&mut head, path, to).unwrap();
    }

    /// A file of the commit, from where it lies in a bare repository, and its names in a checkout.
    fn content(&mut self, object: &str, path: &Path, names: &[String]) {
        let bytes = xattrs(path);
        let digest = hex::encode(Sha256::digest(&bytes));
        let attributes = format!("{OBJECTS}/{}/{}.file-xattrs", &digest[..2], &digest[2..]);
        let is_new = self.known.insert(digest);
        if is_new && self.order == Attributes::Before {
            self.file(&attributes, &bytes);
        }
        self.link(&format!("{OBJECTS}/{object}.file-xattrs-link"), &attributes);
        let meta = std::fs::symlink_metadata(path).unwrap();
        let mut head = header(EntryType::Regular, 0);
        head.set_mode(meta.mode() & 0o7777);
        head.set_uid(meta.uid().into());
        head.set_gid(meta.gid().into());
        let name = format!("{OBJECTS}/{object}.file");
        let mut is_empty = false;
        if meta.is_symlink() {
            head.set_entry_type(EntryType::Symlink);
            self.tar.append_link(&mut head, &name, std::fs::read_link(path).unwrap()).unwrap();
        } else {
            let content = std::fs::read(path).unwrap();
            is_empty = content.is_empty();
            head.set_size(content.len() as u64);
            self.tar.append_data(&mut head, &name, &content[..]).unwrap();
        }
        if is_new && self.order == Attributes::Behind {
            self.file(&attributes, &bytes);
        }
        for other in names {
            // An empty file is written once more instead: who builds upon the image may change it there.
            if is_empty { self.file(other, b"") } else { self.link(other, &name) }
        }
    }

    fn end(self) -> Vec<u8> {
        self.tar.into_inner().unwrap()
    }
}

/// The folders of a commit, and the names of its files by their checksums.
fn checkout(builder: &Builder, commit: &str) -> (Vec<String>, BTreeMap<String, Vec<String>>) {
    let (mut folders, mut files) = (Vec::new(), BTreeMap::<_, Vec<_>>::new());
    for line in good("ostree", &["ls", "-R", "-C", &builder.repo(), commit]).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let place = words.iter().position(|word| word.starts_with('/')).unwrap();
        let name = words[place].trim_start_matches('/').to_owned();
        match line.starts_with('d') {
            true => folders.push(name),
            false => files.entry(words[place - 1].to_owned()).or_default().push(name),
        }
    }
    folders.retain(|name| !name.is_empty());
    (folders, files)
}

/// The layers of an encapsulated commit: the commit with its folders, then its files in so many further ones, and one without
/// any for packages that come later. Without further ones all are in the first, as `ostree container encapsulate` has them by
/// itself; coreos-assembler makes up to 64.
fn encapsulated(builder: &Builder, commit: &str, further: usize) -> Vec<Vec<u8>> {
    let order = if further == 0 { Attributes::Behind } else { Attributes::Before };
    let mut layers: Vec<Layer> = (0..=further).map(|_| Layer::new(order)).collect();
    let (folders, names) = checkout(builder, commit);
    let (contents, metadata): (Vec<_>, Vec<_>) =
        objects(builder, commit).into_iter().partition(|(name, _)| name.ends_with(".file"));
    for (name, path) in metadata {
        layers[0].file(&format!("{OBJECTS}/{name}"), &std::fs::read(path).unwrap());
    }
    for folder in folders.iter().map(String::as_str).chain(["var/tmp"]) {
        layers[0].folder(folder);
    }
    for (count, (name, path)) in contents.iter().enumerate() {
        let object = name.strip_suffix(".file").unwrap();
        let layer = if further == 0 { 0 } else { 1 + count % further };
        layers[layer].content(object, path, &names[&object.replace('/', "")]);
    }
    if further > 0 {
        layers.push(Layer::new(order));
    }
    layers.into_iter().map(Layer::end).collect()
}

/// The only layer of an encapsulated commit.
fn layer(builder: &Builder, commit: &str) -> Vec<u8> {
    encapsulated(builder, commit, 0).remove(0)
}

/// The labels of an image of these layers.
fn labels_of(commit: &str, layers: &[Vec<u8>]) -> Value {
    let last = format!("sha256:{}", hex::encode(Sha256::digest(layers.last().unwrap())));
    json!({"ostree.commit": commit, "ostree.final-diffid": last, "ostree.bootable": "true", "containers.bootc": "1",
        "org.opencontainers.image.version": "1"})
}

/// An OCI layout of these layers.
fn layout(folder: &Path, layers: &[Vec<u8>], labels: &Value) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest = hex::encode(Sha256::digest(bytes));
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let gzip = |bytes: &Vec<u8>| {
        let mut packed = Vec::new();
        flate2::read::GzEncoder::new(&bytes[..], flate2::Compression::fast()).read_to_end(&mut packed).unwrap();
        packed
    };
    let ids: Vec<String> = layers.iter().map(|l| format!("sha256:{}", hex::encode(Sha256::digest(l)))).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": ids}});
    let config = blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let layers: Vec<Value> = layers.iter().map(|bytes| blob(&gzip(bytes), kind)).collect();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers, "annotations": labels});
    let manifest = blob(manifest.to_string().as_bytes(), kind);
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())
        .unwrap();
}

#[tokio::test]
async fn tars_of_a_repository_are_taken_however_they_are_packed() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = rich(&place);
    let one = builder.build("1", b"one", &["--add-metadata-string=nkd.kubernetes=v1.20.2"]);
    let folder = |name: &str| PathBuf::from(builder.path(name));
    let tar = |name: &str, words: &[&str]| {
        let path = builder.path(name);
        good("tar", &[&["-caf", &path], words].concat());
        folder(name)
    };
    let (repo, build) = (builder.path("repo"), folder("repo").parent().unwrap().display().to_string());
    let packed = [
        tar("top.tar", &["-C", &repo, "."]),
        tar("down.tar.gz", &["-C", &build, "repo"]),
        tar("down.tar.xz", &["-C", &build, "./repo"]),
        tar("posix.tar.zst", &["--format=posix", "-C", &repo, "config", "refs", "objects"]),
    ];
    let release = publish(&place, &packed[0], &[]);
    assert_eq!((&release["number"], &release["commit"]), (&1.into(), &one.clone().into()));
    assert_eq!((&release["reference"], &release["kubernetes"]), (&REF.into(), &"v1.20.2".into()));
    for path in &packed[1..] {
        assert_eq!(publish(&place, path, &[]), release, "{}", path.display());
    }
    let repo = system(&place, "node");
    assert!(pull(&repo, &one).status.success());
    good("ostree", &["fsck", &repo]);

    let bare = builder.path("bare");
    good("ostree", &["init", &format!("--repo={bare}"), "--mode=bare-user"]);
    good("ostree", &["pull-local", &format!("--repo={bare}"), &builder.path("repo"), &one]);
    not_taken(&place, &tar("bare.tar", &["-C", &bare, "."]), "pack one of the mode archive");
}

#[tokio::test]
async fn a_commit_in_an_oci_image_keeps_itself_and_its_signature() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = rich(&place);
    let (home, id, public) = builder.key("builder");
    let signed = [format!("--gpg-sign={id}"), format!("--gpg-homedir={home}"), format!("--bind-ref={REF}")];
    let one = builder.build("1", b"one", &[&signed[0], &signed[1], &signed[2]]);
    good("gpgconf", &["--homedir", &home, "--kill", "gpg-agent"]);
    let image = PathBuf::from(builder.path("image"));
    let layers = encapsulated(&builder, &one, 3);
    layout(&image, &layers, &labels_of(&one, &layers));
    // The archive is what skopeo makes of it.
    let archive = builder.path("image.ociarchive");
    let from = format!("oci:{}", image.display());
    good("skopeo", &["copy", "--insecure-policy", &from, &format!("oci-archive:{archive}")]);
    let release = publish(&place, Path::new(&archive), &["--key", &public]);
    assert_eq!((&release["commit"], &release["version"]), (&one.clone().into(), &"1".into()));
    assert_eq!((&release["signedBy"], &release["reference"]), (&"builder".into(), &REF.into()));
    assert_eq!(publish(&place, &image, &[]), release, "the folder is the same");
    let whole = PathBuf::from(builder.path("whole"));
    layout(&whole, &[layer(&builder, &one)], &json!({"ostree.commit": one}));
    assert_eq!(publish(&place, &whole, &[]), release, "and so is a single layer");

    let node = place.dir.path().join("bare");
    let repo = format!("--repo={}", node.display());
    good("ostree", &["init", &repo, "--mode=bare"]);
    let served = place.state().join("ostree/lab");
    good("ostree", &["pull-local", "--untrusted", &repo, served.to_str().unwrap(), &one]);
    good("ostree", &["fsck", &repo]);
    let listed = good("ostree", &["ls", "-R", "-X", &repo, &one]);
    assert!(listed.contains("-04755 0 0") && listed.contains("-00644 5 7"), "{listed}");
    assert!(listed.contains("security.capability"), "{listed}");
    assert!(listed.contains("/usr/lib/deep/link -> ../../../etc/passwd"), "{listed}");
}

#[tokio::test]
async fn an_image_that_is_not_whole_or_not_a_commit_is_refused() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = rich(&place);
    let one = builder.build("1", b"one", &[]);
    let bytes = layer(&builder, &one);
    let image = |name: &str| PathBuf::from(builder.path(name));
    let labels = json!({"ostree.commit": one});
    let plain = || {
        let mut tar = Tar::new(Vec::new());
        member(&mut tar, EntryType::Regular, "usr/bin/tool", b"tool", "");
        tar.into_inner().unwrap()
    };

    layout(&image("plain"), &[plain()], &json!({}));
    not_taken(&place, &image("plain"), "it holds no ostree commit, only files");
    layout(&image("above"), &[bytes.clone(), plain()], &labels);
    not_taken(&place, &image("above"), "1 of its layers hold nothing of its commit, and would be lost");
    // It touches the repository as well, which makes it no part of the commit.
    let touching = || {
        let mut tar = Tar::new(Vec::new());
        member(&mut tar, EntryType::Regular, "sysroot/ostree/repo/.lock", b"", "");
        member(&mut tar, EntryType::Regular, "usr/bin/tool", b"tool", "");
        tar.into_inner().unwrap()
    };
    layout(&image("touching"), &[bytes.clone(), touching()], &labels);
    not_taken(&place, &image("touching"), "1 of its layers hold nothing of its commit, and would be lost");
    let layers = encapsulated(&builder, &one, 3);
    layout(&image("derived"), &[&layers[..], &[plain()]].concat(), &labels_of(&one, &layers));
    not_taken(&place, &image("derived"), "1 of its layers were put above its commit, and would be lost");
    layout(&image("other"), std::slice::from_ref(&bytes), &json!({"ostree.commit": "0".repeat(64)}));
    not_taken(&place, &image("other"), "it was made of commit 0000");

    // A byte of a layer, of the manifest; a layer that is cut off or gone.
    let largest = |folder: &Path| {
        let files = std::fs::read_dir(folder.join("blobs/sha256")).unwrap().flatten().map(|e| e.path());
        files.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap()
    };
    let broken = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        layout(&image(name), std::slice::from_ref(&bytes), &labels);
        let path = largest(&image(name));
        let mut content = std::fs::read(&path).unwrap();
        change(&mut content);
        std::fs::write(&path, content).unwrap();
        image(name)
    };
    let changed = broken("changed", &|content| {
        let middle = content.len() / 2;
        content[middle] ^= 1;
    });
    not_taken(&place, &changed, "it is damaged");
    not_taken(&place, &broken("cut", &|content| content.truncate(content.len() - 9)), "were stated");
    let gone = broken("gone", &|_| {});
    std::fs::remove_file(largest(&gone)).unwrap();
    not_taken(&place, &gone, "is missing");

    // A layer with a right digest, of which an object is another one: ostree itself finds out.
    let mut evil = bytes.clone();
    let at = evil.windows(7).position(|w| w == b"careful").unwrap();
    evil[at] = b'C';
    layout(&image("evil"), &[evil], &labels);
    not_taken(&place, &image("evil"), "orrupted");
    assert_eq!(place.ok(&["channel", "list", "-o", "json"]).trim(), "[]", "nothing was published");
}

/// By itself: what an image that was refused held of a commit may be in the repository already.
#[tokio::test]
async fn an_image_without_one_of_its_layers_is_refused() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = rich(&place);
    let one = builder.build("1", b"one", &[]);
    let layers = encapsulated(&builder, &one, 3);
    let without = [&layers[..2], &layers[3..]].concat();
    let image = PathBuf::from(builder.path("without"));
    layout(&image, &without, &labels_of(&one, &without));
    not_taken(&place, &image, "Couldn't find file object");
}

#[tokio::test]
async fn an_archive_that_reaches_out_of_itself_is_refused() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let at = |name: &str| PathBuf::from(builder.path(name));
    let outside = place.state().join("outside");
    let tar = |name: &str, members: &[(EntryType, &str, &[u8], &str)]| {
        let mut tar = Tar::new(Vec::new());
        for (kind, name, bytes, target) in members {
            member(&mut tar, *kind, name, bytes, target);
        }
        std::fs::write(at(name), tar.into_inner().unwrap()).unwrap();
        at(name)
    };
    let object = format!("objects/ab/{}.filez", "0".repeat(62));
    let (file, link, hard) = (EntryType::Regular, EntryType::Symlink, EntryType::Link);
    let up = tar("up.tar", &[(file, "objects/../../../outside", b"x", "")]);
    not_taken(&place, &up, "leads out of it: it has .. in it");
    let root = tar("root.tar", &[(file, "/objects/aa", b"x", "")]);
    not_taken(&place, &root, "leads out of it: it begins with /");
    let out = outside.display().to_string();
    let linked = tar("link.tar", &[(link, "objects", b"", &out), (link, &object, b"", "/etc/passwd")]);
    not_taken(&place, &linked, "an object is never a link");
    let hard_linked = tar("hard.tar", &[(hard, &object, b"", "/etc/passwd")]);
    not_taken(&place, &hard_linked, "an object is never a link");
    let blob = format!("blobs/sha256/{}", "0".repeat(64));
    let linked = tar("blob.tar", &[(link, &blob, b"", "/etc/passwd")]);
    not_taken(&place, &linked, "a part of an image is never a link");
    assert!(!outside.exists());

    builder.build("1", b"one", &[]);
    let whole = builder.path("whole.tar");
    good("tar", &["-cf", &whole, "-C", &builder.path("repo"), "."]);
    let bytes = std::fs::read(&whole).unwrap();
    std::fs::write(at("cut.tar"), &bytes[..bytes.len() / 2 + 100]).unwrap();
    let output = Command::new("gzip").args(["-kf", &whole]).status().unwrap();
    assert!(output.success());
    let packed = std::fs::read(format!("{whole}.gz")).unwrap();
    std::fs::write(at("cut.tar.gz"), &packed[..packed.len() - 100]).unwrap();
    not_taken(&place, &at("cut.tar"), "it breaks off");
    not_taken(&place, &at("cut.tar.gz"), "it breaks off");
    std::fs::write(at("text"), "this is no archive, and it is long enough to be one ".repeat(40)).unwrap();
    not_taken(&place, &at("text"), "it does not read");
    // What stands in it is nobody's business: who asks may not be able to read it himself.
    let order = place.cli(&["channel", "publish", "stable", "--ostree", &at("text").display().to_string()]);
    assert!(!String::from_utf8_lossy(&order.stderr).contains("this is no archive"), "{order:?}");
    not_taken(&place, &tar("nothing.tar", &[(file, "README", b"x", "")]), "it holds neither an ostree repository");
}

/// ostree would wait at a FIFO for ever, and everybody else for it.
#[tokio::test]
async fn a_folder_in_which_an_object_is_no_file_is_refused_and_links_that_ostree_makes_are_not() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    std::os::unix::fs::symlink("system", builder.folder.join("tree/usr/bin/link")).unwrap();
    let commit = builder.build("1", b"one", &[]);
    let find = good("find", &[&builder.path("repo/objects"), "-name", "*.filez"]);
    let object = find.lines().next().unwrap();
    let (_, name) = object.split_once("/repo/").unwrap();
    let kept = builder.path("kept");
    std::fs::rename(object, &kept).unwrap();
    good("mkfifo", &[object]);
    let (_, _, public) = builder.key("builder");
    let repo = builder.path("repo");
    let order = |more: &[&str]| place.cli(&[&["channel", "publish", "stable", "--ostree", &repo], more].concat());
    for more in [&[][..], &["--key", &public]] {
        refused(&order(more), &format!("`{name}` in it is a FIFO, where ostree keeps files: remove it"));
    }
    std::fs::remove_file(object).unwrap();
    std::os::unix::fs::symlink(&kept, object).unwrap();
    refused(&order(&[]), &format!("`{name}` in it is a link"));
    std::fs::rename(&kept, object).unwrap();

    good("ostree", &["refs", &builder.repo(), "--create=lab/x86_64/alias", "--alias", REF]);
    let bare = builder.path("bare");
    good("ostree", &["init", &format!("--repo={bare}"), "--mode=bare-user-only"]);
    good("ostree", &["pull-local", &format!("--repo={bare}"), &repo, &commit]);
    assert!(!good("find", &[&bare, "-type", "l"]).is_empty());
    let release = publish(&place, Path::new(&repo), &["--ref", "lab/x86_64/alias"]);
    assert_eq!((&release["number"], &release["commit"]), (&1.into(), &commit.as_str().into()));
    let words = ["--ref", &commit, "--version", "1 again", "--profile", "lab", "--architecture", "x86_64"];
    assert_eq!(publish(&place, Path::new(&bare), &words)["number"], 2);
}
