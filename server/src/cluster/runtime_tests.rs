//! Sandbox images and mirrors. The files as a whole are golden: `kubeadm_tests.rs`.

use super::*;
use crate::cluster::kubeadm::tests::cluster;

#[test]
fn mirrors_are_read_with_and_without_scheme_and_path() {
    let mirror =
        |plain, host: &str, path: Option<&str>| Mirror { plain, host: host.into(), path: path.map(Into::into) };
    for (text, want) in [
        ("m.example", mirror(false, "m.example", None)),
        ("http://10.0.0.2:5000/", mirror(true, "10.0.0.2:5000", None)),
        ("https://m.example/proxy/hub/", mirror(false, "m.example", Some("proxy/hub"))),
        ("https://m.example/v2/proxy", mirror(false, "m.example", Some("proxy"))),
        ("https://m.example/v2/", mirror(false, "m.example", None)),
    ] {
        assert_eq!(Mirror::parse(text), Some(want), "{text}");
    }
    for wrong in ["", "ftp://m", "https://", "/x", "m example", "m/../x", "m\"x", "u:p@m", "m?x"] {
        assert_eq!(Mirror::parse(wrong), None, "{wrong}");
    }
}

/// The name of a registry becomes a folder on the node.
#[test]
fn a_registry_is_a_host_and_nothing_else() {
    for host in ["../../etc", "docker.io/x", "https://docker.io", ""] {
        for runtime in ["containerd", "cri-o", "docker"] {
            let mut cluster = cluster("v1.31.4", runtime);
            cluster.spec.kubernetes.registries[0].host = host.into();
            assert!(matches!(files(&cluster, false, None), Err(KubeadmError::Mirror(_))), "{host} {runtime}");
        }
    }
}

#[test]
fn containerd_asks_mirrors_in_the_order_of_the_file() {
    let mut cluster = cluster("v1.31.4", "containerd");
    let registry = &mut cluster.spec.kubernetes.registries[0];
    registry.host = "*".into();
    registry.mirrors = ["https://z.example", "https://a.example", "https://m.example"].map(Into::into).into();
    let files = files(&cluster, false, None).unwrap();
    let hosts = files.iter().find(|file| file.path == "/etc/containerd/certs.d/_default/hosts.toml").unwrap();
    let order: Vec<&str> = hosts.contents.lines().filter(|line| line.starts_with('[')).collect();
    assert_eq!(order, ["z", "a", "m"].map(|name| format!("[host.\"https://{name}.example\"]")));
    let parsed: toml::Table = toml::from_str(&hosts.contents).unwrap();
    assert_eq!(parsed["host"].as_table().unwrap().len(), 3);
}

fn crio_registries() -> String {
    let own =
        with_own_registry(&cluster("v1.31.4", "cri-o"), "https://[2001:db8::1]:8443", "-----BEGIN CERTIFICATE-----\n");
    let files = files(&own, false, None).unwrap();
    files.into_iter().find(|file| file.path.contains("registries.conf.d")).unwrap().contents
}

/// Unless the file says where they come from.
#[test]
fn images_of_our_own_host_come_from_the_service() {
    let hosts = |runtime: &str, named: bool| {
        let mut cluster = cluster("v1.31.4", runtime);
        if named {
            cluster.spec.kubernetes.registries[0].host = "nkd.io".into();
        }
        let own = with_own_registry(&cluster, "https://[2001:db8::1]:8443", "-----BEGIN CERTIFICATE-----\n");
        files(&own, false, None).unwrap().into_iter().filter(|file| file.path.contains("nkd.io")).collect::<Vec<_>>()
    };
    let found = hosts("containerd", false);
    assert_eq!(
        found.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(),
        ["/etc/containerd/certs.d/nkd.io/hosts.toml", "/etc/containerd/certs.d/nkd.io/ca.crt"]
    );
    let parsed: toml::Table = toml::from_str(&found[0].contents).unwrap();
    assert_eq!(parsed["host"]["https://[2001:db8::1]:8443"]["ca"], found[1].path.clone().into());
    // Nothing is asked of whoever has that name in the world.
    assert_eq!(parsed["server"], "https://[2001:db8::1]:8443".into());
    let crio: toml::Table = toml::from_str(&crio_registries()).unwrap();
    let own = crio["registry"].as_array().unwrap().iter().find(|r| r["prefix"] == "nkd.io".into()).unwrap();
    assert_eq!(own["location"], "[2001:db8::1]:8443".into());
    let named = hosts("containerd", true);
    assert!(!named.is_empty() && named.iter().all(|file| !file.contents.contains("2001:db8")));
    assert!(hosts("docker", false).is_empty());
}

/// To the service alone, whichever name its images have; nothing when everybody may pull.
#[test]
fn a_closed_registry_is_shown_the_certificate_of_the_node() {
    let url = "https://10.0.0.1:8443";
    let mut cluster = cluster("v1.31.4", "containerd");
    let registry = &mut cluster.spec.kubernetes.registries[0];
    registry.mirrors =
        ["https://10.0.0.1:8443/docker.io", "http://10.0.0.1:8443", "https://10.0.0.1"].map(Into::into).into();
    let own = with_own_registry(&cluster, url, "-----BEGIN CERTIFICATE-----\n");
    let clients = |closed: Option<&str>| -> BTreeMap<String, toml::Value> {
        let all = files(&own, false, closed).unwrap();
        let hosts = all.iter().filter(|file| file.path.ends_with("hosts.toml"));
        let hosts = hosts.flat_map(|file| match &toml::from_str::<toml::Table>(&file.contents).unwrap()["host"] {
            toml::Value::Table(hosts) => hosts.clone(),
            other => panic!("{other}"),
        });
        hosts.filter_map(|(url, host)| Some((url, host.get("client")?.clone()))).collect()
    };
    assert_eq!(clients(None), BTreeMap::new());
    let pem = toml::Value::from("/var/lib/nkd-agent/client.pem");
    let shown =
        ["https://10.0.0.1:8443", "https://10.0.0.1:8443/v2/docker.io"].map(|url| (url.to_owned(), pem.clone()));
    assert_eq!(clients(Some(url)), shown.into());
}

#[test]
fn the_lab_has_its_own_score_and_plugins() {
    let cluster = cluster("v1.20.2", "containerd");
    let plugin = |lab| {
        let config: toml::Table = toml::from_str(&containerd_config(&cluster, lab).unwrap()).unwrap();
        config["plugins"]["io.containerd.grpc.v1.cri"].as_table().unwrap().clone()
    };
    assert_eq!(plugin(true)["restrict_oom_score_adj"], true.into());
    assert_eq!(plugin(true)["cni"]["bin_dir"], "/usr/lib/cni".into());
    assert!(!plugin(false).contains_key("restrict_oom_score_adj") && !plugin(false).contains_key("cni"));
    assert_eq!(plugin(false)["sandbox_image"], "registry.example/k8s/pause:3.2".into());
}

#[test]
fn a_runtime_says_what_it_cannot_mirror() {
    for (runtime, host, mirror) in [
        ("cri-o", "*", "https://m.example"),
        ("docker", "quay.io", "https://m.example"),
        ("docker", "docker.io", "https://m.example/path"),
        ("isulad", "*", "https://m.example"),
    ] {
        let mut cluster = cluster("v1.31.4", runtime);
        let registry = &mut cluster.spec.kubernetes.registries[0];
        registry.host = host.into();
        registry.mirrors = vec![mirror.into()];
        let refused = files(&cluster, false, None).err();
        assert!(matches!(refused, Some(KubeadmError::Unsupported { .. })), "{runtime} {host}: {refused:?}");
    }
}

#[test]
fn the_pause_image_is_told_to_the_kubelets_that_listen() {
    for (version, flag) in [("v1.26.9", true), ("v1.27.0", false)] {
        let mut cluster = cluster(version, "containerd");
        cluster.spec.kubernetes.pause_image = Some("registry.example/pause:9".into());
        assert_eq!(sandbox_image(&cluster).unwrap(), "registry.example/pause:9");
        let planes = [crate::cluster::kubeadm::tests::node("cp1", "10.0.0.11", nkd_api::cluster::Role::ControlPlane)];
        let endpoint = "10.0.0.11".parse().unwrap();
        let init = crate::cluster::kubeadm::Init { endpoint: &endpoint, control_planes: &planes };
        let text = crate::cluster::kubeadm::init(&cluster, &planes[0], &init).unwrap();
        assert_eq!(text.contains("pod-infra-container-image: registry.example/pause:9"), flag, "{version}");
    }
}
