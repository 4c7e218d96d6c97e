//! Cluster files of the NestOS Kubernetes Deployer of openEuler, as ours (pure).
//!
//! Every field is carried over, named in a note when it means something else here or is left out, or named as a problem
//! when the cluster would be another one without it. Its releases write a field as `cluster_id`, `clusterID` or
//! `cluster-id`: case, `-` and `_` do not count.

use std::net::IpAddr;

use ipnet::IpNet;
use nkd_api::Problem;
use nkd_api::cluster::{API_VERSION, Cluster};
use serde_json::{Map, Value, json};

use super::file::syntax::{field, shown};

/// What became of a foreign cluster file.
#[derive(Debug)]
pub struct Imported {
    /// The cluster; none when there are problems. It may still lack what the foreign file does not say, such as the MAC
    /// addresses of the machines: check it.
    pub cluster: Option<Cluster>,
    /// Fields that cannot be carried over.
    pub problems: Vec<Problem>,
    /// Fields that mean something else here, or that nothing here needs.
    pub notes: Vec<Problem>,
}

/// Versions that the deployer takes when its file names none.
const VERSION: &str = "v1.29.1";
/// Name that the deployer gives when its file names none.
const NAME: &str = "cluster";

/// Carries a document over. `read` gives the text of a file that the document names, for SSH keys, or why there is none.
#[must_use]
pub fn import(document: &Value, read: &dyn Fn(&str) -> Result<String, String>) -> Imported {
    let mut found = Found::default();
    let cluster = found.cluster(document, read);
    let cluster = serde_json::from_value::<Cluster>(cluster)
        .map_err(|error| found.problem("", format!("the result does not read: {error}")))
        .ok();
    Imported { cluster: cluster.filter(|_| found.problems.is_empty()), problems: found.problems, notes: found.notes }
}

/// A map of the foreign file, of which fields are taken one by one.
struct Section {
    path: String,
    fields: Vec<(String, Value)>,
}

/// A field that has a value, with its path.
struct Taken {
    path: String,
    value: Value,
}

fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(empty),
        _ => false,
    }
}

impl Section {
    /// The fields of a map; those of this name at `path`.
    fn new(path: &str, value: &Value, found: &mut Found) -> Self {
        let fields = match value {
            Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            Value::Null => Vec::new(),
            _ => {
                found.problem(path, "this is not a map of fields");
                Vec::new()
            }
        };
        Self { path: path.to_owned(), fields }
    }

    /// Takes a field out. An empty one is the deployer's way to leave it out.
    fn take(&mut self, name: &str) -> Option<Taken> {
        let index = self.fields.iter().position(|(own, _)| plain(own) == plain(name))?;
        let (own, value) = self.fields.remove(index);
        (!empty(&value)).then(|| Taken { path: field(&self.path, &own), value })
    }

    fn section(&mut self, name: &str, found: &mut Found) -> Self {
        match self.take(name) {
            Some(taken) => Self::new(&taken.path, &taken.value, found),
            None => Self { path: field(&self.path, name), fields: Vec::new() },
        }
    }

    /// Text; numbers and words are taken as they are written.
    fn text(&mut self, name: &str, found: &mut Found) -> Option<(String, String)> {
        let taken = self.take(name)?;
        match taken.value {
            Value::String(text) => Some((taken.path, text.trim().to_owned())),
            Value::Number(_) | Value::Bool(_) => Some((taken.path, taken.value.to_string())),
            _ => {
                found.problem(&taken.path, "this is not text");
                None
            }
        }
    }

    /// Notes that fields which have a value are left out, and why.
    fn leave(&mut self, names: &[&str], why: &str, found: &mut Found) {
        for name in names {
            if let Some(taken) = self.take(name) {
                found.note(&taken.path, format!("left out: {why}"));
            }
        }
    }

    /// Refuses fields that have a value.
    fn refuse(&mut self, names: &[&str], why: &str, found: &mut Found) {
        for name in names {
            if let Some(taken) = self.take(name) {
                found.problem(&taken.path, why);
            }
        }
    }

    /// Everything that nobody took is not known.
    fn end(self, found: &mut Found) {
        for (name, _) in self.fields {
            found.problem(
                &field(&self.path, &name),
                "this field is not known, or stands twice: take it out, or correct its name",
            );
        }
    }
}

#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
    notes: Vec<Problem>,
}

impl Found {
    fn problem(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem { path: path.to_owned(), message: message.into() });
    }

    fn note(&mut self, path: &str, message: impl Into<String>) {
        self.notes.push(Problem { path: path.to_owned(), message: message.into() });
    }

    fn cluster(&mut self, document: &Value, read: &dyn Fn(&str) -> Result<String, String>) -> Value {
        let mut root = Section::new("", document, self);
        let name = match root.text("clusterID", self) {
            Some((_, name)) => name,
            None => {
                self.note("clusterID", format!("not given: the deployer's default, {NAME}"));
                NAME.to_owned()
            }
        };
        let architecture = self.architecture(&mut root);
        let network = self.platform(&mut root);
        let mut spec = Map::new();
        self.os(&mut root, &mut spec);
        self.access(&mut root, &mut spec, read);
        let mut kubernetes = self.kubernetes(&mut root, &mut spec);
        self.runtime(&mut root, &mut kubernetes);
        spec.insert("kubernetes".into(), kubernetes.into());
        let pools = [("master", "control-plane", "control-plane"), ("worker", "worker", "worker")];
        let pools: Vec<Value> = pools
            .into_iter()
            .filter_map(|(field, name, role)| self.pool(&mut root, field, name, role, architecture, &network))
            .collect();
        spec.insert("pools".into(), pools.into());
        self.certificates(&mut root, &mut spec);
        self.hooks(&mut root, &mut spec);
        self.housekeeper(&mut root, &mut spec);
        root.refuse(
            &["bootConfig"],
            "boot configurations are made by the service: write what you added as a snippet, spec.snippets, and take this out",
            self,
        );
        root.end(self);
        json!({"apiVersion": API_VERSION, "kind": "Cluster", "metadata": {"name": name}, "spec": spec})
    }

    fn architecture(&mut self, root: &mut Section) -> Option<&'static str> {
        let (path, text) = root.text("architecture", self)?;
        match text.to_lowercase().as_str() {
            "amd64" | "x86_64" => Some("x86_64"),
            "arm64" | "aarch64" => Some("aarch64"),
            _ => {
                self.problem(&path, format!("{} is not one of: amd64, x86_64, arm64, aarch64", shown(&text)));
                None
            }
        }
    }

    /// What the infrastructure says of the machines' network: prefix length and router.
    fn platform(&mut self, root: &mut Section) -> (Option<IpNet>, Option<String>) {
        let platform = root.text("platform", self);
        let mut infra = root.section("infraPlatform", self);
        let mut network = (None, None);
        match platform.as_ref().map_or("", |(_, text)| text).to_lowercase().as_str() {
            "openstack" => {
                let at = platform.as_ref().map_or("platform", |(path, _)| path);
                self.problem(at, "OpenStack is not supported: machines boot from the network here. Write pxe");
                // Its account is of no use to name one by one.
                infra.fields.clear();
            }
            "" | "libvirt" | "pxe" | "ipxe" => {
                if platform.as_ref().is_some_and(|(_, text)| text.eq_ignore_ascii_case("libvirt")) {
                    self.note(
                        "platform",
                        "machines are not made here: make them with libvirt so that they boot from the network",
                    );
                }
                if let Some((path, text)) = infra.text("cidr", self) {
                    match text.parse() {
                        Ok(net) => network.0 = Some(net),
                        Err(_) => self.problem(&path, format!("{} is not a network, 192.168.132.0/24", shown(&text))),
                    }
                }
                network.1 = infra.text("gateway", self).map(|(_, text)| text);
                infra.leave(&["uri"], "nothing here speaks to libvirt", self);
                infra.leave(
                    &["osImage", "osPath", "ipxeOSInstallTreePath"],
                    "images live in the service's store: `nkd image import`, and name it in spec.os.image",
                    self,
                );
                infra.leave(
                    &[
                        "ip",
                        "httpServerPort",
                        "httpRootDir",
                        "tftpServerIP",
                        "tftpServerPort",
                        "tftpRootDir",
                        "ipxePort",
                        "ipxeFilePath",
                    ],
                    "the service serves HTTP and TFTP itself; its settings say where (nkd serve --print-settings)",
                    self,
                );
            }
            other => self.problem("platform", format!("{} is not one of: libvirt, pxe, ipxe", shown(other))),
        }
        infra.end(self);
        network
    }

    fn os(&mut self, root: &mut Section, spec: &mut Map<String, Value>) {
        let mut image = root.section("osImage", self);
        match image.text("type", self) {
            Some((path, kind)) if !kind.eq_ignore_ascii_case("nestos") => self.problem(
                &path,
                format!("{} is not supported: nodes run an image-based system. Write nestos", shown(&kind)),
            ),
            _ => drop(spec.insert("os".into(), json!({"profile": "nestos"}))),
        }
        image.end(self);
    }

    fn access(
        &mut self,
        root: &mut Section,
        spec: &mut Map<String, Value>,
        read: &dyn Fn(&str) -> Result<String, String>,
    ) {
        root.leave(
            &["username", "password"],
            "there is no login with a password: the image's default user (nest on NestOS) takes the keys of spec.ssh.authorizedKeys",
            self,
        );
        let Some((path, key)) = root.text("sshKey", self) else {
            self.note("sshKey", "not given: nobody can log in on the nodes until spec.ssh.authorizedKeys holds a key");
            return;
        };
        let text = if key.starts_with("ssh-") || key.starts_with("ecdsa-") { Ok(key) } else { read(&key) };
        match text {
            Ok(text) => {
                let keys: Vec<&str> =
                    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
                spec.insert("ssh".into(), json!({"authorizedKeys": keys}));
            }
            Err(reason) => self.problem(&path, format!("{reason}: write the public key itself here")),
        }
    }

    fn runtime(&mut self, root: &mut Section, kubernetes: &mut Map<String, Value>) {
        let Some((path, text)) = root.text("runtime", self) else {
            self.note("runtime", "not given: containerd");
            return;
        };
        let runtime = match text.to_lowercase().as_str() {
            "containerd" => "containerd",
            "crio" | "cri-o" => "cri-o",
            "isulad" => "isulad",
            "docker" => "docker",
            _ => {
                return self
                    .problem(&path, format!("{} is not one of: containerd, crio, isulad, docker", shown(&text)));
            }
        };
        kubernetes.insert("runtime".into(), runtime.into());
    }

    fn kubernetes(&mut self, root: &mut Section, spec: &mut Map<String, Value>) -> Map<String, Value> {
        let mut kubernetes = root.section("kubernetes", self);
        let mut out = Map::new();
        let version = kubernetes.text("kubernetesVersion", self).map(|(_, text)| text).unwrap_or_else(|| {
            self.note("kubernetes.kubernetesVersion", format!("not given: the deployer's default, {VERSION}"));
            VERSION.to_owned()
        });
        out.insert("version".into(), version.into());
        if let Some((_, endpoint)) = kubernetes.text("apiserverEndpoint", self) {
            spec.insert("endpoint".into(), endpoint.into());
        }
        let registry = kubernetes.text("imageRegistry", self).map(|(_, text)| text);
        if let Some((path, image)) = kubernetes.text("pauseImage", self) {
            let whole = if image.contains('/') {
                image
            } else {
                let whole = format!("{}/{image}", registry.as_deref().unwrap_or("registry.k8s.io"));
                self.note(&path, format!("an image has its registry here: {whole}"));
                whole
            };
            out.insert("pauseImage".into(), whole.into());
        }
        if let Some(registry) = registry {
            out.insert("imageRepository".into(), registry.into());
        }
        if let Some((path, mirror)) = kubernetes.text("registryMirror", self) {
            self.note(
                &path,
                "the mirror stands for all registries, spec.kubernetes.registries: narrow `*` to those that it has",
            );
            out.insert("registries".into(), json!([{"host": "*", "mirrors": [mirror]}]));
        }
        kubernetes.leave(
            &["kubernetesApiVersion"],
            "the version of kubeadm's configuration follows from the version of Kubernetes",
            self,
        );
        kubernetes.leave(
            &["releaseImageURL"],
            "nodes are installed with an image that holds Kubernetes: `nkd image import`, and name it in spec.os.image",
            self,
        );
        kubernetes.leave(
            &["token", "certificateKey"],
            "tokens and keys for joining are made for each node and used once",
            self,
        );
        kubernetes.leave(
            &["adminKubeconfig"],
            "the service keeps the cluster's credentials and gives them out on request",
            self,
        );
        kubernetes.refuse(
            &["packageList", "rpmPackagePath"],
            "packages are part of the image: build an image with them, and take this out",
            self,
        );
        let mut network = kubernetes.section("network", self);
        for (theirs, ours) in [("serviceSubnet", "serviceSubnet"), ("podSubnet", "podSubnet")] {
            if let Some((_, subnet)) = network.text(theirs, self) {
                out.insert(ours.into(), subnet.into());
            }
        }
        match network.text("plugin", self) {
            Some((_, plugin)) => drop(out.insert("cni".into(), json!({"manifest": plugin}))),
            None => self.note(
                "kubernetes.network.plugin",
                "not given: nodes are Ready only when spec.kubernetes.cni has a manifest",
            ),
        }
        network.leave(&["corednsImageVersion"], "kubeadm brings the CoreDNS of its version", self);
        network.end(self);
        kubernetes.end(self);
        out
    }

    fn pool(
        &mut self,
        root: &mut Section,
        theirs: &str,
        name: &str,
        role: &str,
        architecture: Option<&str>,
        network: &(Option<IpNet>, Option<String>),
    ) -> Option<Value> {
        let list = root.take(theirs)?;
        let Value::Array(nodes) = &list.value else {
            self.problem(&list.path, "this is not a list of machines");
            return None;
        };
        let (mut machines, mut cpus, mut memory) = (Vec::new(), None::<u64>, None::<u64>);
        for (i, node) in nodes.iter().enumerate() {
            let mut node = Section::new(&format!("{}[{i}]", list.path), node, self);
            let mut machine = Map::new();
            if let Some((_, hostname)) = node.text("hostname", self) {
                machine.insert("hostname".into(), hostname.into());
            }
            if let Some((path, ip)) = node.text("ip", self) {
                let whole = match (&network.0, ip.parse::<IpAddr>()) {
                    (Some(net), Ok(address)) if net.contains(&address) => format!("{ip}/{}", net.prefix_len()),
                    _ => ip,
                };
                if !whole.contains('/') {
                    self.note(
                        &path,
                        "an address has its prefix length here: add it, and the gateway and dns of the machine",
                    );
                } else if let Some(gateway) = &network.1 {
                    machine.insert("gateway".into(), gateway.clone().into());
                    self.note(&path, "the address is set on the node itself: add its name servers as dns");
                }
                machine.insert("ip".into(), whole.into());
            }
            let mut hardware = node.section("hardwareInfo", self);
            let number = |hardware: &mut Section, name: &str, found: &mut Self| {
                let (path, text) = hardware.text(name, found)?;
                let number = text.parse::<u64>().ok().filter(|n| *n > 0);
                if number.is_none() {
                    found.problem(&path, format!("{} is not a number above 0", shown(&text)));
                }
                number
            };
            cpus = cpus.into_iter().chain(number(&mut hardware, "cpu", self)).min();
            memory = memory.into_iter().chain(number(&mut hardware, "ram", self)).min();
            hardware.leave(
                &["disk"],
                "a machine has the disk that it has; spec.pools[].installDisk says which one",
                self,
            );
            hardware.end(self);
            node.refuse(
                &["ignPath"],
                "boot configurations are made by the service: write what you added as a snippet, spec.snippets",
                self,
            );
            node.end(self);
            machines.push(Value::Object(machine));
        }
        let mut matches = Map::new();
        if let Some(cpus) = cpus {
            matches.insert("cpus".into(), format!(">={cpus}").into());
        }
        if let Some(memory) = memory {
            let size =
                if memory.is_multiple_of(1024) { format!(">={}Gi", memory / 1024) } else { format!(">={memory}Mi") };
            matches.insert("memory".into(), size.into());
        }
        if !matches.is_empty() {
            self.note(
                &list.path,
                "cpu and ram were the size of machines to be made; here they are the least of a machine that `count` takes",
            );
        }
        if let Some(architecture) = architecture {
            matches.insert("architecture".into(), architecture.into());
        }
        self.note(
            &list.path,
            "nothing says which machines these are: give each its mac, uuid or serial, or write `count` and no `machines`",
        );
        let mut pool = json!({"name": name, "role": role, "machines": machines});
        if !matches.is_empty() {
            pool["match"] = matches.into();
        }
        Some(pool)
    }

    fn certificates(&mut self, root: &mut Section, spec: &mut Map<String, Value>) {
        let mut assets = root.section("certAsset", self);
        let mut out = Map::new();
        for (ours, certificate, key) in [
            ("cluster", "rootCACertPath", "rootCAKeyPath"),
            ("etcd", "etcdCACertPath", "etcdCAKeyPath"),
            ("frontProxy", "frontProxyCACertPath", "frontProxyCAKeyPath"),
            ("serviceAccount", "saPub", "saKey"),
        ] {
            match (assets.text(certificate, self), assets.text(key, self)) {
                (Some((_, certificate)), Some((_, key))) => {
                    out.insert(ours.into(), json!({"certificate": certificate, "key": key}));
                }
                (Some((path, _)), None) => self.problem(&path, format!("{key} is missing: both, or neither")),
                (None, Some((path, _))) => self.problem(&path, format!("{certificate} is missing: both, or neither")),
                (None, None) => {}
            }
        }
        assets.end(self);
        if !out.is_empty() {
            spec.insert("certificates".into(), out.into());
        }
    }

    fn hooks(&mut self, root: &mut Section, spec: &mut Map<String, Value>) {
        let mut hooks = root.section("hooks", self);
        let mut out = Map::new();
        for (theirs, ours) in [("preHookScript", "before"), ("postHookYaml", "after")] {
            let Some(taken) = hooks.take(theirs).or_else(|| root.take(theirs)) else { continue };
            let list = match taken.value {
                Value::Array(items) => items,
                one => vec![one],
            };
            if list.iter().all(Value::is_string) {
                self.note(&taken.path, "a folder is not taken as a whole: name its files one by one");
                out.insert(ours.into(), list.into());
            } else {
                self.problem(&taken.path, "this is neither a path nor a list of paths");
            }
        }
        hooks.end(self);
        if !out.is_empty() {
            spec.insert("hooks".into(), out.into());
        }
    }

    fn housekeeper(&mut self, root: &mut Section, spec: &mut Map<String, Value>) {
        let mut housekeeper = root.section("housekeeper", self);
        if let Some(taken) = housekeeper.take("deployHousekeeper") {
            match taken.value {
                Value::Bool(enabled) => drop(spec.insert("housekeeper".into(), json!({"enabled": enabled}))),
                _ => self.problem(&taken.path, "this is not true or false"),
            }
        }
        housekeeper.leave(
            &["operatorImageURL", "controllerImageURL"],
            "the housekeeper is part of this project and brings its own images",
            self,
        );
        housekeeper.leave(
            &["kubeVersion", "evictPodForce", "osImageURL"],
            "upgrades are asked for when they are due, not in the cluster file",
            self,
        );
        if let Some(taken) = housekeeper.take("maxUnavailable") {
            match taken.value.as_u64() {
                Some(0) => {}
                Some(n) => {
                    let own = spec.entry("housekeeper").or_insert_with(|| json!({}));
                    own["maxUnavailable"] = n.into();
                }
                None => self.problem(&taken.path, "this is not a whole number"),
            }
        }
        housekeeper.end(self);
    }
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
