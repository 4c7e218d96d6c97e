//! The registry of container images, with the real clients: skopeo, podman, containerd; and by hand, where they are too
//! well-behaved.

mod access;
mod breaks;
mod clients;
mod garbage;
mod protocol;
mod uploads;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::harness::{API, Place, text};

pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The program of a command must be installed: `cargo xtask test` sees to it.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo xtask test` installs it"))
}

/// Standard output of a command that must succeed.
pub fn good(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An image in an OCI layout, made by hand: one file in each layer.
pub struct Layout {
    pub folder: PathBuf,
}

impl Layout {
    pub fn new(folder: PathBuf) -> Self {
        std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layout = Self { folder };
        layout.index(&[]);
        layout
    }

    pub fn blob(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs").join(digest.replace(':', "/"))
    }

    fn write(&self, kind: &str, bytes: &[u8]) -> Value {
        std::fs::write(self.blob(&digest(bytes)), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
    }

    /// An image of these files; its descriptor.
    pub fn image(&self, architecture: &str, files: &[(&str, &[u8])]) -> Value {
        let layers: Vec<Value> = files
            .iter()
            .map(|(name, bytes)| {
                let place = tempfile::TempDir::new().unwrap();
                std::fs::write(place.path().join(name), bytes).unwrap();
                let same = ["--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=0644"];
                let tar = Command::new("tar").arg("-c").args(same).arg("-C").arg(place.path()).arg(name).output();
                self.write("application/vnd.oci.image.layer.v1.tar", &tar.unwrap().stdout)
            })
            .collect();
        let ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({"architecture": architecture, "os": "linux", "config": {},
                            "rootfs": {"type": "layers", "diff_ids": ids}});
        let config = self.write("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": layers});
        let mut descriptor = self.write(IMAGE, manifest.to_string().as_bytes());
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor
    }

    /// An index of these manifests; its descriptor.
    pub fn images(&self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.write(INDEX, index.to_string().as_bytes())
    }

    /// Gives manifests names.
    pub fn index(&self, named: &[(&str, &Value)]) {
        let name = |(name, descriptor): &(&str, &Value)| {
            let mut descriptor = (*descriptor).clone();
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            descriptor
        };
        let manifests: Vec<Value> = named.iter().map(name).collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        std::fs::write(self.folder.join("index.json"), index.to_string()).unwrap();
    }

    /// For skopeo and podman.
    pub fn reference(&self, name: &str) -> String {
        format!("oci:{}:{name}", self.folder.display())
    }
}

/// A folder with the service's CA, as container tools look for it.
pub fn certificates(place: &Place) -> PathBuf {
    let folder = place.dir.path().join("certs");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(place.state().join("ca.pem"), folder.join("ca.crt")).unwrap();
    folder
}

pub fn host(place: &Place) -> String {
    format!("{}:{API}", place.ip)
}

/// skopeo, without the configuration of this host.
pub fn skopeo(place: &Place) -> Command {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy").env("HOME", place.dir.path());
    command.env("REGISTRY_AUTH_FILE", place.dir.path().join("auth.json"));
    command
}

/// Pushes with skopeo as admin.
pub fn push(place: &Place, layout: &Layout, name: &str, to: &str) {
    let (certs, creds) = (certificates(place), format!("nkd:{}", place.admin_token()));
    let to = format!("docker://{}/{to}", host(place));
    let mut copy = skopeo(place);
    copy.args(["copy", "--all", "--preserve-digests", "--dest-creds", &creds, "--dest-cert-dir"]).arg(certs);
    good(copy.args([&layout.reference(name), &to]));
}

/// The protocol by hand.
pub struct Hand {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Hand {
    pub fn admin(place: &Place) -> Self {
        Self::new(place, Some(&place.admin_token()))
    }

    pub fn new(place: &Place, token: Option<&str>) -> Self {
        Self { http: place.https().build().unwrap(), base: place.api_url(""), token: token.map(str::to_owned) }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// None when the service is gone.
    pub async fn try_image(&self, name: &str, tag: &str, layer: &[u8]) -> Option<Result<(), Answer>> {
        let config = json!({"of": digest(layer)}).to_string();
        let document = image(config.as_bytes(), &[layer]).to_string();
        for blob in [config.as_bytes(), layer] {
            let path = format!("/v2/{name}/blobs/uploads/?digest={}", digest(blob));
            let pushed = self.request(Method::POST, &path).body(blob.to_vec()).send().await.ok()?;
            assert_eq!(pushed.status(), 201);
        }
        let request = self.request(Method::PUT, &format!("/v2/{name}/manifests/{tag}"));
        let pushed = request.header("content-type", IMAGE).body(document).send().await.ok()?;
        let (status, headers) = (pushed.status(), pushed.headers().clone());
        let body = pushed.bytes().await.ok()?.to_vec();
        Some(if status == 201 { Ok(()) } else { Err(Answer { status, headers, body }) })
    }

    /// An image is there with everything that it is made of, byte for byte.
    pub async fn has_image(&self, name: &str, tag: &str, layer: &[u8]) {
        let config = json!({"of": digest(layer)}).to_string();
        let manifest = self.get(&format!("/v2/{name}/manifests/{tag}")).await;
        assert_eq!(text(&manifest.body), image(config.as_bytes(), &[layer]).to_string(), "{name}:{tag}");
        for blob in [config.as_bytes(), layer] {
            assert!(self.get(&format!("/v2/{name}/blobs/{}", digest(blob))).await.body == blob, "{name}:{tag}");
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    pub async fn send(&self, method: Method, path: &str) -> Answer {
        answer(self.request(method, path)).await
    }

    /// Begins an upload; its address.
    pub async fn begin(&self, name: &str) -> String {
        let begun = self.send(Method::POST, &format!("/v2/{name}/blobs/uploads/")).await;
        assert_eq!(begun.status, 202, "{begun:?}");
        begun.header("location").to_owned()
    }

    /// Pushes a blob in one request; its digest.
    pub async fn blob(&self, name: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let pushed = answer(self.request(Method::POST, &path).body(bytes.to_vec())).await;
        assert_eq!(pushed.status, 201, "{pushed:?}");
        assert_eq!(pushed.header("docker-content-digest"), digest);
        digest
    }

    pub async fn manifest(&self, name: &str, reference: &str, kind: &str, document: &Value) -> Answer {
        let request = self.request(Method::PUT, &format!("/v2/{name}/manifests/{reference}"));
        answer(request.header("content-type", kind).body(document.to_string())).await
    }

    /// Pushes an image of one layer with these bytes; digests of manifest, configuration and layer.
    pub async fn image(&self, name: &str, tag: &str, layer: &[u8]) -> [String; 3] {
        let config = json!({"of": digest(layer)}).to_string();
        let document = image(config.as_bytes(), &[layer]);
        let (config, layer) = (self.blob(name, config.as_bytes()).await, self.blob(name, layer).await);
        let pushed = self.manifest(name, tag, IMAGE, &document).await;
        assert_eq!(pushed.status, 201, "{pushed:?}");
        [pushed.header("docker-content-digest").to_owned(), config, layer]
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", text(&self.body)))
    }

    /// The refusal in the specification's form.
    pub fn refuses(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", text(&self.body));
        if !self.body.is_empty() {
            let error = &self.json()["errors"][0];
            assert_eq!(error["code"], code, "{error}");
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        }
    }
}

pub async fn answer(request: RequestBuilder) -> Answer {
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    Answer { status, headers, body: answer.bytes().await.unwrap().to_vec() }
}

/// The manifest of an image.
pub fn image(config: &[u8], layers: &[&[u8]]) -> Value {
    let descriptor =
        |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let layer = |bytes: &&[u8]| descriptor("application/vnd.oci.image.layer.v1.tar", bytes);
    let layers: Vec<Value> = layers.iter().map(layer).collect();
    json!({"schemaVersion": 2, "mediaType": IMAGE, "config": descriptor("application/vnd.oci.image.config.v1+json", config),
           "layers": layers})
}

/// Bytes that are the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let next = |x: &u64| Some(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
    std::iter::successors(Some(seed), next).skip(1).map(|x| (x >> 56) as u8).take(length).collect()
}

/// Every file of a folder and below, with its size.
pub fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => found.extend(files(&entry.path())),
            Ok(meta) => found.push((entry.path(), meta.len())),
            Err(_) => {}
        }
    }
    found.sort();
    found
}

/// Files of blobs and uploads in the state folder.
pub fn stored(place: &Place) -> Vec<(PathBuf, u64)> {
    let mut found = files(&place.state().join("blobs"));
    found.retain(|(path, _)| !path.ends_with(".lock"));
    found
}
