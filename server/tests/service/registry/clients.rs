//! The programs that people and nodes push and pull with.

use std::process::{Child, Stdio};

use nkd_api::agent::{CLIENT_PEM_PATH, NodeFile};
use nkd_server::cluster::template::{self, Platform};
use nkd_server::cluster::{file, runtime};

use super::super::harness::{ended, eventually};
use super::super::node;
use super::*;

/// A layout with an image `one`, and images for two architectures as `all`.
fn layout(place: &Place) -> Layout {
    let layout = Layout::new(place.dir.path().join("layout"));
    let one = layout.image("amd64", &[("a", &noise(20, 20_000)), ("b", b"small")]);
    let other = layout.image("arm64", &[("a", &noise(21, 30_000)), ("b", b"small")]);
    let all = layout.images(&[one.clone(), other]);
    layout.index(&[("one", &one), ("all", &all)]);
    layout
}

/// Digest of what a name stands for in a layout.
fn named(layout: &Layout, name: &str) -> String {
    let index: Value = serde_json::from_slice(&std::fs::read(layout.folder.join("index.json")).unwrap()).unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    let of = |m: &&Value| m["annotations"]["org.opencontainers.image.ref.name"] == name;
    manifests.iter().find(of).unwrap()["digest"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn skopeo_pushes_and_pulls_the_same_bytes() {
    let place = Place::new();
    let service = place.start().await;
    let layout = layout(&place);
    for name in ["one", "all", "all"] {
        push(&place, &layout, name, &format!("library/busybox:{name}"));
    }
    let certs = certificates(&place);
    let remote = format!("docker://{}/library/busybox", host(&place));
    let list = good(skopeo(&place).args(["list-tags", "--cert-dir"]).arg(&certs).arg(&remote));
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["Tags"], json!(["all", "one"]));
    drop(service);
    let _service = place.start().await;
    for name in ["one", "all"] {
        let mut inspect = skopeo(&place);
        inspect.args(["inspect", "--raw", "--cert-dir"]).arg(&certs).arg(format!("{remote}:{name}"));
        assert_eq!(digest(good(&mut inspect).as_bytes()), named(&layout, name));
    }
    // Pulled by nobody in particular, by tag and by digest.
    let back = Layout::new(place.dir.path().join("back"));
    let all = named(&layout, "all");
    for from in [format!("{remote}:all"), format!("{remote}@{all}")] {
        let mut copy = skopeo(&place);
        copy.args(["copy", "--all", "--preserve-digests", "--src-cert-dir"]).arg(&certs);
        good(copy.args([&from, &back.reference("all")]));
    }
    assert_eq!(named(&back, "all"), all);
    assert_eq!(
        files(&layout.folder.join("blobs")).len(),
        files(&back.folder.join("blobs")).len(),
        "every manifest, configuration and layer of both"
    );
    for (path, _) in files(&layout.folder.join("blobs")) {
        let there = back.folder.join(path.strip_prefix(&layout.folder).unwrap());
        assert!(std::fs::read(&path).unwrap() == std::fs::read(there).unwrap(), "{}", path.display());
    }
    let mut delete = skopeo(&place);
    delete.args(["delete", "--creds", &format!("nkd:{}", place.admin_token()), "--cert-dir"]).arg(&certs);
    good(delete.arg(format!("{remote}:all")));
    let gone = run(skopeo(&place).args(["inspect", "--cert-dir"]).arg(&certs).arg(format!("{remote}:all")));
    assert!(text(&gone.stderr).contains("manifest unknown"), "{}", text(&gone.stderr));
}

#[tokio::test]
async fn skopeo_is_told_why_it_may_not_push() {
    let place = Place::new();
    let _service = place.start().await;
    let layout = layout(&place);
    let viewer: Value =
        serde_json::from_str(&place.ok(&["user", "create", "eve", "--role", "viewer", "-o", "json"])).unwrap();
    let creds = format!("eve:{}", viewer["token"].as_str().unwrap());
    // A wrong token is refused at the first question, whose answer has no room for words; a push by its own name.
    let asks = format!(" exists in {}/a: ", host(&place));
    let pushes = format!("initiating layer upload to /v2/a/blobs/uploads/ in {}: ", host(&place));
    for (creds, what, why) in [
        (&["--dest-creds", "eve:wrong"][..], &asks, "unauthorized: authentication required"),
        (&["--dest-creds", &creds], &pushes, "denied: pushing and deleting take the role operator; eve is viewer"),
        (
            &[],
            &pushes,
            "unauthorized: log in with any name and an nkd token as the password: podman login, skopeo login",
        ),
    ] {
        let mut copy = skopeo(&place);
        copy.args(["copy", "--dest-cert-dir"]).arg(certificates(&place)).args(creds);
        let out = run(copy.args([layout.reference("one"), format!("docker://{}/a:1", host(&place))]));
        let said = text(&out.stderr);
        assert!(!out.status.success() && said.contains(&format!("{what}{why}")), "{creds:?}: {said}");
    }
    let trail = place.ok(&["audit"]);
    let refusals: Vec<&str> = trail.lines().filter(|line| line.contains("refused")).collect();
    let who = |line: &&str| line.contains("eve") && line.contains("POST /v2/a/blobs/uploads/  403: ");
    assert!(!refusals.is_empty() && refusals.iter().all(who), "{trail}");
    assert_eq!(stored(&place), []);
}

/// podman with a storage of its own.
fn podman(place: &Place) -> Command {
    let folder = place.dir.path().join("podman");
    std::fs::create_dir_all(folder.join("tmp")).unwrap();
    std::fs::write(folder.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
    let mut command = Command::new("podman");
    command.arg("--root").arg(folder.join("root")).arg("--runroot").arg(folder.join("run"));
    command.arg("--tmpdir").arg(folder.join("tmp")).args(["--storage-driver", "vfs", "--events-backend", "none"]);
    command.env("HOME", &folder).env("XDG_RUNTIME_DIR", folder.join("tmp"));
    command.env("REGISTRY_AUTH_FILE", folder.join("auth.json")).stdin(Stdio::null());
    command
}

#[tokio::test]
#[ignore = "namespace tier: needs root"]
async fn podman_logs_in_pushes_and_pulls() {
    let place = Place::new();
    let _service = place.start().await;
    let layout = layout(&place);
    let (certs, host) = (certificates(&place), host(&place));
    let login = |password: &str| {
        let mut login = podman(&place);
        login.args(["login", "--username", "me", "--password", password, "--cert-dir"]).arg(&certs).arg(&host);
        run(&mut login)
    };
    let wrong = login("wrong");
    assert!(!wrong.status.success(), "a wrong token is no login: {}", text(&wrong.stdout));
    let right = login(&place.admin_token());
    assert!(right.status.success(), "{}", text(&right.stderr));

    let (local, remote) = ("localhost/mine:1", format!("{host}/team/mine:1"));
    super::push(&place, &layout, "one", "from/skopeo:1");
    let mut pull = podman(&place);
    pull.args(["pull", "--quiet", "--cert-dir"]).arg(&certs);
    let id = good(pull.arg(format!("{host}/from/skopeo:1")));
    good(podman(&place).args(["tag", id.trim(), local]));
    let digest_file = place.dir.path().join("digest");
    let mut push = podman(&place);
    push.args(["push", "--quiet", "--cert-dir"]).arg(&certs).arg("--digestfile").arg(&digest_file);
    good(push.args([local, &remote]));
    let pushed = std::fs::read_to_string(&digest_file).unwrap();
    let tags: Value = serde_json::from_str(&place.ok(&["registry", "tags", "team/mine", "-o", "json"])).unwrap();
    assert_eq!(tags[0]["digest"], pushed);

    good(podman(&place).args(["rmi", "--all", "--force"]));
    good(podman(&place).args(["logout", &host]));
    good(podman(&place).args(["pull", "--quiet", "--cert-dir"]).arg(&certs).arg(&remote));
    let inspected: Value = serde_json::from_str(&good(podman(&place).args(["inspect", &remote]))).unwrap();
    assert_eq!((&inspected[0]["Digest"], inspected[0]["Id"].as_str().unwrap()), (&json!(pushed), id.trim()));
    let by_digest = format!("{host}/team/mine@{pushed}");
    good(podman(&place).args(["pull", "--quiet", "--cert-dir"]).arg(&certs).arg(&by_digest));
    // What podman builds, it pushes as well.
    let context = place.dir.path().join("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Containerfile"), "FROM scratch\nCOPY hello /hello\n").unwrap();
    std::fs::write(context.join("hello"), "hello").unwrap();
    let built = format!("{host}/team/built:1");
    good(podman(&place).args(["build", "--quiet", "--isolation", "chroot", "--tag", &built]).arg(&context));
    let not_logged_in = run(podman(&place).args(["push", "--quiet", "--cert-dir"]).arg(&certs).arg(&built));
    assert!(!not_logged_in.status.success());
    let creds = format!("me:{}", place.admin_token());
    good(podman(&place).args(["push", "--quiet", "--creds", &creds, "--cert-dir"]).arg(&certs).arg(&built));
    assert!(place.ok(&["registry", "list"]).contains("team/built"));
}

/// A containerd of its own; ended when dropped.
struct Containerd {
    child: Child,
    folder: PathBuf,
}

impl Containerd {
    async fn start(place: &Place) -> Self {
        let folder = place.dir.path().join("containerd");
        std::fs::create_dir(&folder).unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("socket"),
        );
        std::fs::write(at("config.toml"), config).unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let child = Command::new("containerd")
            .args(["--config", &at("config.toml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("containerd: {error}; `cargo xtask test` installs it"));
        let containerd = Self { child, folder };
        eventually("containerd answers", async || run(containerd.ctr().arg("version")).status.success().then_some(()))
            .await;
        containerd
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.folder.join("socket")).arg("--timeout").arg("20s");
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        if !std::thread::panicking() {
            ended(&mut self.child);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes files of a node below a folder instead of `/`, which is in them too.
fn write_below(folder: &Path, files: Vec<NodeFile>) {
    for written in files {
        let path = folder.join(written.path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let below = |text: String, part: &str| text.replace(part, &format!("{}{part}", folder.display()));
        let text = below(below(written.contents, "/etc/containerd/certs.d"), CLIENT_PEM_PATH);
        std::fs::write(path, text).unwrap();
    }
}

/// What a cluster file of the README makes of containerd's configuration, below a folder instead of `/`.
fn mirrored(place: &Place, folder: &Path) {
    let example =
        r#"#- registries: [{host: docker.io, mirrors: ["https://registry.example:5000"], ca: ./registry-ca.pem}]"#;
    let template = template::template(Platform::Metal, "rack7");
    assert!(template.contains(example), "the template shows how");
    let registry = json!({"host": "registry.example", "mirrors": [place.api_url("/registry.example")], "ca": {"inline": place.ca()}});
    let checked = file::read(&template.replace(example, &format!("registries: [{registry}]")));
    assert_eq!(checked.problems, []);
    let cluster = checked.cluster.unwrap();
    write_below(folder, runtime::files(&cluster, true, None).unwrap());
}

/// A closed registry asks for a node's certificate. containerd reads it at each pull, so that a renewed one counts at once.
#[tokio::test]
#[ignore = "namespace tier: needs root"]
async fn containerd_shows_the_certificate_of_its_node_to_a_closed_registry() {
    let place = Place::new().with("registry.anonymous_pull=false");
    let _service = place.start().await;
    place.import().await;
    let layout = layout(&place);
    for name in ["one", "all"] {
        push(&place, &layout, name, &format!("team/app:{name}"));
    }
    let mut enrolled = Vec::new();
    for (name, mac) in [("n1", "52:54:00:aa:0d:03"), ("n2", "52:54:00:aa:0d:04")] {
        place.admin().declare(name, mac).await;
        let (_, key, node) = node::install(&place, mac).await;
        enrolled.push(format!("{}\n{}", node.certificate.trim_end(), key.serialize_pem()));
    }
    let cluster = file::read(&template::template(Platform::Metal, "rack7")).cluster.unwrap();
    let (node, url) = (place.dir.path().join("node"), place.api_url(""));
    let own = runtime::with_own_registry(&cluster, &url, &place.ca());
    write_below(&node, runtime::files(&own, true, Some(&url)).unwrap());
    let containerd = Containerd::start(&place).await;
    let pull = |image: &str| {
        let mut pull = containerd.ctr();
        pull.args(["images", "pull", "--snapshotter", "native", "--hosts-dir"])
            .arg(node.join("etc/containerd/certs.d"));
        run(pull.arg(image))
    };
    let refused = |image: &str, why: &str| {
        let out = pull(image);
        assert!(!out.status.success() && text(&out.stderr).contains(why), "{why}: {}", text(&out.stderr));
    };
    let pem = node.join(CLIENT_PEM_PATH.trim_start_matches('/'));
    refused("nkd.io/team/app:one", "client.pem: no such file or directory");
    std::fs::create_dir_all(pem.parent().unwrap()).unwrap();
    std::fs::write(&pem, &enrolled[0]).unwrap();
    let pulled = pull("nkd.io/team/app:one");
    assert!(pulled.status.success(), "{}", text(&pulled.stderr));
    place.ok(&["machine", "reinstall", "n1"]);
    refused("nkd.io/team/app:all", "403");
    std::fs::write(&pem, &enrolled[1]).unwrap();
    let pulled = pull("nkd.io/team/app:all");
    assert!(pulled.status.success(), "{}", text(&pulled.stderr));

    // CRI-O takes its certificates as skopeo does: the README says where they belong.
    let certs = certificates(&place);
    let inspect = || {
        let mut inspect = skopeo(&place);
        run(inspect.args(["inspect", "--cert-dir"]).arg(&certs).arg(format!("docker://{}/team/app:one", host(&place))))
    };
    assert!(!inspect().status.success());
    for name in ["client.cert", "client.key"] {
        std::os::unix::fs::symlink(&pem, certs.join(name)).unwrap();
    }
    let inspected = inspect();
    assert!(inspected.status.success(), "{}", text(&inspected.stderr));
}

#[tokio::test]
#[ignore = "namespace tier: needs root"]
async fn containerd_pulls_from_the_mirror_of_a_cluster() {
    let place = Place::new();
    let _service = place.start().await;
    let layout = layout(&place);
    for name in ["one", "all"] {
        push(&place, &layout, name, &format!("registry.example/team/app:{name}"));
    }
    let containerd = Containerd::start(&place).await;
    let node = place.dir.path().join("node");
    mirrored(&place, &node);
    let hosts = node.join("etc/containerd/certs.d");
    // The name that a pod has: the registry itself is out of reach, and need not be there.
    for name in ["one", "all"] {
        let image = format!("registry.example/team/app:{name}");
        good(
            containerd.ctr().args(["images", "pull", "--snapshotter", "native", "--hosts-dir"]).arg(&hosts).arg(&image),
        );
        let list = good(containerd.ctr().args(["images", "list", &format!("name=={image}")]));
        assert!(list.contains(&named(&layout, name)), "{list}");
    }
    let image = format!("registry.example/team/app@{}", named(&layout, "all"));
    let mut pull = containerd.ctr();
    pull.args(["images", "pull", "--all-platforms", "--snapshotter", "native", "--hosts-dir"]).arg(&hosts);
    good(pull.arg(&image));
    let content = good(containerd.ctr().args(["content", "list", "--quiet"]));
    for (path, _) in files(&layout.folder.join("blobs")) {
        assert!(content.contains(path.file_name().unwrap().to_str().unwrap()), "{} of {content}", path.display());
    }
    // And a push, by its own address.
    let to = format!("{}/pushed/by/ctr:1", host(&place));
    good(containerd.ctr().args(["images", "tag", "registry.example/team/app:all", &to]));
    let own = hosts.join(host(&place));
    std::fs::create_dir_all(&own).unwrap();
    let (url, ca) = (place.api_url(""), place.state().join("ca.pem"));
    let hosts_toml =
        format!("server = {url:?}\n[host.{url:?}]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\nca = {ca:?}\n");
    std::fs::write(own.join("hosts.toml"), hosts_toml).unwrap();
    let user = format!("nkd:{}", place.admin_token());
    let push = |user: &[&str]| {
        let mut push = containerd.ctr();
        push.args(["images", "push", "--hosts-dir"]).arg(&hosts).args(user).arg(&to);
        run(&mut push)
    };
    assert!(!push(&[]).status.success(), "without a token");
    let pushed = push(&["--user", &user]);
    assert!(pushed.status.success(), "{}", text(&pushed.stderr));
    let tags: Value = serde_json::from_str(&place.ok(&["registry", "tags", "pushed/by/ctr", "-o", "json"])).unwrap();
    assert_eq!(tags[0]["digest"], named(&layout, "all"));
}
