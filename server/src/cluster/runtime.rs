//! What the container runtime of a node is told: sandbox image, cgroup driver, registry mirrors, proxies. Pure.
//!
//! containerd: `config.toml` version 2, which 1.5 and later read, 2.x included, and `certs.d/*/hosts.toml`. CRI-O:
//! crio.conf(5) and containers-registries.conf(5) version 2. Docker and iSulad: their `daemon.json`, whole.

use std::collections::BTreeMap;

use nkd_api::agent::{CLIENT_PEM_PATH, NodeFile};
use nkd_api::cluster::{Cluster, Registry, Runtime, Source};
use serde::Serialize;
use serde_json::{Value, json};

use super::kubeadm::{FIRST_CRI_DOCKERD, KubeadmError, cgroup_driver, minor};

const HEAD: &str = "# Written by nkd; changes are lost.\n";
const CERTS_D: &str = "/etc/containerd/certs.d";
/// Images of this host are those of the service's own registry.
pub const OWN_HOST: &str = "nkd.io";

/// The cluster with the service's own registry, at `url` under `ca` (PEM), as where images of `nkd.io` come from: the
/// operator's own image is one. The file's own word on that host stands; Docker and iSulad have no mirror for such a host.
#[must_use]
pub fn with_own_registry(cluster: &Cluster, url: &str, ca: &str) -> Cluster {
    let mut cluster = cluster.clone();
    let mirrors = matches!(cluster.spec.kubernetes.runtime, Runtime::Containerd | Runtime::Crio);
    let registries = &mut cluster.spec.kubernetes.registries;
    if mirrors && registries.iter().all(|registry| registry.host != OWN_HOST) {
        let ca = Some(Source::Inline { inline: ca.to_owned() });
        registries.push(Registry { host: OWN_HOST.to_owned(), mirrors: vec![url.to_owned()], ca });
    }
    cluster
}

/// Every file of the runtime on a node of this cluster. `lab`: as [`containerd_config`] has it. `closed`: a registry, by its
/// address, that gives images to those alone who show a node's certificate; CRI-O, Docker and iSulad are not told to.
pub fn files(cluster: &Cluster, lab: bool, closed: Option<&str>) -> Result<Vec<NodeFile>, KubeadmError> {
    match cluster.spec.kubernetes.runtime {
        Runtime::Containerd => {
            let mut files = vec![file("/etc/containerd/config.toml", containerd_config(cluster, lab)?)];
            for registry in &cluster.spec.kubernetes.registries {
                files.extend(certs_d(registry, closed)?);
            }
            Ok(files)
        }
        Runtime::Crio => crio(cluster),
        Runtime::Docker => docker(cluster),
        Runtime::Isulad => isulad(cluster),
    }
}

/// What rpm-ostree trusts when it fetches an image of a system from the registry of this service, whatever the runtime is.
#[must_use]
pub fn system_images_ca(url: &str, ca: &str) -> Option<NodeFile> {
    let mirror = Mirror::parse(url)?;
    Some(file(&format!("/etc/containers/certs.d/{}/nkd.crt", mirror.host), ca.to_owned()))
}

/// Name of the runtime's systemd service, without `.service`.
#[must_use]
pub fn unit(cluster: &Cluster) -> &'static str {
    match cluster.spec.kubernetes.runtime {
        Runtime::Containerd => "containerd",
        Runtime::Crio => "crio",
        Runtime::Isulad => "isulad",
        Runtime::Docker => "docker",
    }
}

/// The sandbox image: the operator's, or the one that kubeadm of this version pulls.
pub fn sandbox_image(cluster: &Cluster) -> Result<String, KubeadmError> {
    let kubernetes = &cluster.spec.kubernetes;
    if let Some(image) = &kubernetes.pause_image {
        return Ok(image.clone());
    }
    let minor = minor(&kubernetes.version)?;
    let tag = match minor {
        ..=17 => "3.1",
        18..=20 => "3.2",
        21 => "3.4.1",
        22 => "3.5",
        23 => "3.6",
        24 => "3.7",
        25 => "3.8",
        26..=30 => "3.9",
        31..=33 => "3.10",
        34.. => "3.10.1",
    };
    let standard = if minor < 25 { "k8s.gcr.io" } else { "registry.k8s.io" };
    Ok(format!("{}/pause:{tag}", kubernetes.image_repository.as_deref().unwrap_or(standard)))
}

#[derive(Serialize)]
struct ContainerdConfig {
    version: u32,
    plugins: BTreeMap<&'static str, CriPlugin>,
}

#[derive(Serialize)]
struct CriPlugin {
    sandbox_image: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    restrict_oom_score_adj: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    disable_apparmor: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cni: Option<CriCni>,
    containerd: CriContainerd,
    registry: CriRegistry,
}

#[derive(Serialize)]
struct CriCni {
    bin_dir: &'static str,
}

#[derive(Serialize)]
struct CriContainerd {
    runtimes: BTreeMap<&'static str, CriRuntime>,
}

#[derive(Serialize)]
struct CriRuntime {
    runtime_type: &'static str,
    options: RuncOptions,
}

#[derive(Serialize)]
struct RuncOptions {
    #[serde(rename = "SystemdCgroup")]
    systemd_cgroup: bool,
}

#[derive(Serialize)]
struct CriRegistry {
    config_path: &'static str,
}

/// `/etc/containerd/config.toml`. `lab`: the node is a Debian, perhaps one made of name spaces: its plugins are in
/// `/usr/lib/cni`, there is no AppArmor, and its containerd may not lower the OOM score of a process.
pub fn containerd_config(cluster: &Cluster, lab: bool) -> Result<String, KubeadmError> {
    let options = RuncOptions { systemd_cgroup: cgroup_driver(cluster) == "systemd" };
    let runc = CriRuntime { runtime_type: "io.containerd.runc.v2", options };
    let cri = CriPlugin {
        sandbox_image: sandbox_image(cluster)?,
        restrict_oom_score_adj: lab,
        disable_apparmor: lab,
        cni: lab.then_some(CriCni { bin_dir: "/usr/lib/cni" }),
        containerd: CriContainerd { runtimes: [("runc", runc)].into() },
        registry: CriRegistry { config_path: CERTS_D },
    };
    let config = ContainerdConfig { version: 2, plugins: [("io.containerd.grpc.v1.cri", cri)].into() };
    Ok(HEAD.to_owned() + &toml::to_string(&config)?)
}

#[derive(Serialize)]
struct Hosts {
    host: BTreeMap<String, Host>,
}

#[derive(Serialize)]
struct Host {
    capabilities: [&'static str; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    /// Read at each pull. A host whose file is not there cannot be pulled from, so nobody names it without need.
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    override_path: bool,
}

fn certs_d(registry: &Registry, closed: Option<&str>) -> Result<Vec<NodeFile>, KubeadmError> {
    let closed = closed.and_then(Mirror::parse);
    let folder = format!("{CERTS_D}/{}", if registry.host == "*" { "_default" } else { &registry.host });
    let ca = ca(registry)?.map(|text| file(&format!("{folder}/ca.crt"), text.to_owned()));
    let mut hosts = HEAD.to_owned();
    let mirrors = mirrors(registry)?;
    if let Some(first) = mirrors.first().filter(|_| registry.host == OWN_HOST) {
        // What the mirrors do not have is nowhere: a host of that name in the world is none of ours.
        hosts.push_str(&format!("server = \"{}://{}\"\n", first.scheme(), first.host));
    }
    for mirror in mirrors {
        // Each one alone: containerd asks them in the order of the file, and a map would sort them.
        let (url, override_path) = match &mirror.path {
            Some(path) => (format!("{}://{}/v2/{path}", mirror.scheme(), mirror.host), true),
            None => (format!("{}://{}", mirror.scheme(), mirror.host), false),
        };
        let shows = closed.as_ref().is_some_and(|closed| (closed.plain, &closed.host) == (mirror.plain, &mirror.host));
        let client = shows.then_some(CLIENT_PEM_PATH);
        let ca = ca.as_ref().map(|file| file.path.clone());
        let host = Host { capabilities: ["pull", "resolve"], ca, client, override_path };
        hosts.push_str(&toml::to_string(&Hosts { host: [(url, host)].into() })?);
    }
    Ok([file(&format!("{folder}/hosts.toml"), hosts)].into_iter().chain(ca).collect())
}

#[derive(Serialize)]
struct CrioConfig {
    crio: CrioTables,
}

#[derive(Serialize)]
struct CrioTables {
    image: CrioImage,
    runtime: CrioRuntime,
}

#[derive(Serialize)]
struct CrioImage {
    pause_image: String,
}

#[derive(Serialize)]
struct CrioRuntime {
    cgroup_manager: String,
    conmon_cgroup: &'static str,
}

#[derive(Serialize)]
struct Registries {
    registry: Vec<CrioRegistry>,
}

#[derive(Serialize)]
struct CrioRegistry {
    prefix: String,
    location: String,
    mirror: Vec<CrioMirror>,
}

#[derive(Serialize)]
struct CrioMirror {
    location: String,
    insecure: bool,
}

fn crio(cluster: &Cluster) -> Result<Vec<NodeFile>, KubeadmError> {
    let systemd = cgroup_driver(cluster) == "systemd";
    let config = CrioConfig {
        crio: CrioTables {
            image: CrioImage { pause_image: sandbox_image(cluster)? },
            runtime: CrioRuntime {
                cgroup_manager: cgroup_driver(cluster).to_owned(),
                conmon_cgroup: if systemd { "system.slice" } else { "pod" },
            },
        },
    };
    let mut files = vec![file("/etc/crio/crio.conf.d/10-nkd.conf", HEAD.to_owned() + &toml::to_string(&config)?)];
    let mut registries = Registries { registry: Vec::new() };
    for registry in &cluster.spec.kubernetes.registries {
        if registry.host == "*" {
            return Err(unsupported("CRI-O", registry, "it has no mirrors for all registries; name each one"));
        }
        let mirrors = mirrors(registry)?;
        files.extend(mirror_cas("/etc/containers/certs.d", registry, &mirrors)?);
        registries.registry.push(CrioRegistry {
            prefix: registry.host.clone(),
            // What the mirrors do not have is looked for there; of our own host nothing is anywhere else.
            location: mirrors
                .first()
                .filter(|_| registry.host == OWN_HOST)
                .map_or_else(|| registry.host.clone(), Mirror::location),
            mirror: mirrors
                .iter()
                .map(|mirror| CrioMirror { location: mirror.location(), insecure: mirror.plain })
                .collect(),
        });
    }
    if !registries.registry.is_empty() {
        let text = HEAD.to_owned() + &toml::to_string(&registries)?;
        files.push(file("/etc/containers/registries.conf.d/10-nkd.conf", text));
    }
    Ok(files)
}

fn docker(cluster: &Cluster) -> Result<Vec<NodeFile>, KubeadmError> {
    let (mirrors, cas) = hub_mirrors("Docker", "/etc/docker/certs.d", cluster)?;
    let mut config = json!({ "exec-opts": [format!("native.cgroupdriver={}", cgroup_driver(cluster))] });
    if !mirrors.is_empty() {
        let url = |mirror: &Mirror| format!("{}://{}", mirror.scheme(), mirror.host);
        config["registry-mirrors"] = mirrors.iter().map(url).collect();
        insecure(&mut config, &mirrors);
    }
    let mut files = vec![file("/etc/docker/daemon.json", serde_json::to_string_pretty(&config)? + "\n")];
    if minor(&cluster.spec.kubernetes.version)? >= FIRST_CRI_DOCKERD {
        let drop_in = format!(
            "{HEAD}[Service]\nExecStart=\nExecStart=/usr/bin/cri-dockerd --container-runtime-endpoint=fd:// \
             --network-plugin=cni --pod-infra-container-image={}\n",
            sandbox_image(cluster)?,
        );
        files.push(file("/etc/systemd/system/cri-docker.service.d/10-nkd.conf", drop_in));
    }
    files.extend(cas);
    Ok(files)
}

fn isulad(cluster: &Cluster) -> Result<Vec<NodeFile>, KubeadmError> {
    let (mirrors, cas) = hub_mirrors("iSulad", "/etc/isulad/certs.d", cluster)?;
    let mut config = json!({
        "graph": "/var/lib/isulad",
        "state": "/var/run/isulad",
        "log-level": "ERROR",
        "pidfile": "/var/run/isulad.pid",
        "log-driver": "stdout",
        "hosts": ["unix:///var/run/isulad.sock"],
        "storage-driver": "overlay2",
        "storage-opts": ["overlay2.override_kernel_check=true"],
        "pod-sandbox-image": sandbox_image(cluster)?,
        "network-plugin": "cni",
        "cni-bin-dir": "/opt/cni/bin",
        "cni-conf-dir": "/etc/cni/net.d",
        "registry-mirrors": mirrors.iter().map(|mirror| mirror.host.as_str()).collect::<Vec<_>>(),
    });
    insecure(&mut config, &mirrors);
    if minor(&cluster.spec.kubernetes.version)? >= FIRST_CRI_V1_ONLY {
        config["enable-cri-v1"] = true.into();
    }
    if cgroup_driver(cluster) == "systemd" {
        config["systemd-cgroup"] = true.into();
    }
    if !cas.is_empty() {
        config["use-decrypted-key"] = false.into();
    }
    let mut files = vec![file("/etc/isulad/daemon.json", serde_json::to_string_pretty(&config)? + "\n")];
    files.extend(cas);
    Ok(files)
}

/// Kubelets from here on no longer speak CRI v1alpha2.
const FIRST_CRI_V1_ONLY: u32 = 26;

/// Mirrors for a runtime that has them for Docker Hub alone, and without a path.
fn hub_mirrors(
    runtime: &'static str,
    folder: &str,
    cluster: &Cluster,
) -> Result<(Vec<Mirror>, Vec<NodeFile>), KubeadmError> {
    let (mut all, mut cas) = (Vec::new(), Vec::new());
    for registry in &cluster.spec.kubernetes.registries {
        let mirrors = mirrors(registry)?;
        if registry.host != "docker.io" && !mirrors.is_empty() {
            return Err(unsupported(runtime, registry, "it has mirrors for docker.io only"));
        }
        if mirrors.iter().any(|mirror| mirror.path.is_some()) {
            return Err(unsupported(runtime, registry, "its mirrors have no path"));
        }
        cas.extend(mirror_cas(folder, registry, &mirrors)?);
        all.extend(mirrors);
    }
    Ok((all, cas))
}

fn insecure(config: &mut Value, mirrors: &[Mirror]) {
    let plain: Vec<&str> = mirrors.iter().filter(|mirror| mirror.plain).map(|mirror| mirror.host.as_str()).collect();
    if !plain.is_empty() {
        config["insecure-registries"] = plain.into();
    }
}

/// The CA of a registry's mirrors, for runtimes that look it up by the host that they speak to.
fn mirror_cas(folder: &str, registry: &Registry, mirrors: &[Mirror]) -> Result<Vec<NodeFile>, KubeadmError> {
    let Some(text) = ca(registry)? else { return Ok(Vec::new()) };
    let mut hosts: Vec<&str> = mirrors.iter().map(|mirror| mirror.host.as_str()).collect();
    if hosts.is_empty() {
        hosts.push(&registry.host);
    }
    hosts.sort_unstable();
    hosts.dedup();
    Ok(hosts.iter().map(|host| file(&format!("{folder}/{host}/ca.crt"), text.to_owned())).collect())
}

fn ca(registry: &Registry) -> Result<Option<&str>, KubeadmError> {
    match &registry.ca {
        None => Ok(None),
        Some(Source::Inline { inline }) => Ok(Some(inline)),
        Some(Source::Location(_)) => Err(KubeadmError::NotInline(registry.host.clone())),
    }
}

fn unsupported(runtime: &'static str, registry: &Registry, reason: &'static str) -> KubeadmError {
    KubeadmError::Unsupported { runtime, host: registry.host.clone(), reason }
}

/// A mirror. Its path stands before the name of the image: `registry.example/proxy` has `library/busybox` as
/// `registry.example/proxy/library/busybox`.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    plain: bool,
    host: String,
    path: Option<String>,
}

impl Mirror {
    fn parse(text: &str) -> Option<Self> {
        let (plain, rest) = match text.split_once("://") {
            Some(("http", rest)) => (true, rest),
            Some(("https", rest)) => (false, rest),
            Some(_) => return None,
            None => (false, text),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        let path = path.strip_prefix("v2/").unwrap_or(path);
        let fine = |text: &str, more: &[char]| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(&c));
        let fits = !host.is_empty()
            && fine(host, &['.', '-', ':', '[', ']'])
            && fine(path, &['.', '-', '_', '/'])
            && !path.split('/').any(|part| part == "..");
        let path = (!path.is_empty() && path != "v2").then(|| path.to_owned());
        fits.then(|| Self { plain, host: host.to_owned(), path })
    }

    fn scheme(&self) -> &'static str {
        if self.plain { "http" } else { "https" }
    }

    fn location(&self) -> String {
        match &self.path {
            Some(path) => format!("{}/{path}", self.host),
            None => self.host.clone(),
        }
    }
}

fn mirrors(registry: &Registry) -> Result<Vec<Mirror>, KubeadmError> {
    let parse = |text: &String| Mirror::parse(text).ok_or_else(|| KubeadmError::Mirror(text.clone()));
    let host = Mirror::parse(&registry.host).filter(|host| host.path.is_none() && host.host == registry.host);
    if registry.host != "*" && host.is_none() {
        return Err(KubeadmError::Mirror(registry.host.clone()));
    }
    registry.mirrors.iter().map(parse).collect()
}

/// Drop-ins that give runtime and kubelet the proxies of the cluster; none when it has none. `direct` are further hosts
/// and addresses that are reached without a proxy: the endpoint, the nodes.
#[must_use]
pub fn proxy_drop_ins(cluster: &Cluster, direct: &[String]) -> Vec<NodeFile> {
    let kubernetes = &cluster.spec.kubernetes;
    let Some(proxy) = &cluster.spec.proxy else { return Vec::new() };
    let mut text = format!("{HEAD}[Service]\n");
    let mut set = |name: &str, value: &str| {
        // systemd.exec(5): specifiers begin with a percent sign, and quotes hold spaces together.
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
        text.push_str(&format!("Environment=\"{name}={value}\"\n"));
    };
    if let Some(http) = &proxy.http {
        set("HTTP_PROXY", http);
    }
    if let Some(https) = &proxy.https {
        set("HTTPS_PROXY", https);
    }
    let domain = format!(".{}", kubernetes.dns_domain);
    let own = ["127.0.0.1", "localhost", &kubernetes.pod_subnet, &kubernetes.service_subnet, ".svc", &domain];
    let mut without: Vec<&str> = own.into_iter().flat_map(|entry| entry.split(',')).collect();
    for entry in direct.iter().chain(&proxy.no_proxy) {
        if !without.contains(&entry.as_str()) {
            without.push(entry);
        }
    }
    set("NO_PROXY", &without.join(","));
    // 0600: an address of a proxy may hold a password.
    let path = |unit| format!("/etc/systemd/system/{unit}.service.d/10-nkd-proxy.conf");
    [unit(cluster), "kubelet"].map(|unit| NodeFile { path: path(unit), mode: 0o600, contents: text.clone() }).into()
}

fn file(path: &str, contents: String) -> NodeFile {
    NodeFile { path: path.to_owned(), mode: 0o644, contents }
}

#[cfg(test)]
#[path = "runtime_tests.rs"]
mod tests;
