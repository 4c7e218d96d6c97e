//! Kubernetes itself: version, networks, images, arguments, component configuration (pure).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nkd_api::cluster::{Component, Kubernetes, Registry};
use serde_json::Value;

use super::certificates;
use super::rules::Findings;
use super::syntax::{self, field, shown};

const AT: &str = "spec.kubernetes";
/// The oldest version whose kubeadm this project drives.
const OLDEST: [u32; 3] = [1, 20, 0];
/// First parts of the phases of `kubeadm init` and `kubeadm join`.
const PHASES: [&str; 18] = [
    "addon",
    "bootstrap-token",
    "certs",
    "control-plane",
    "control-plane-join",
    "control-plane-prepare",
    "etcd",
    "etcd-join",
    "kubeconfig",
    "kubelet-finalize",
    "kubelet-start",
    "kubelet-wait-bootstrap",
    "mark-control-plane",
    "preflight",
    "show-join-command",
    "upload-certs",
    "upload-config",
    "wait-control-plane",
];

/// Checks what Kubernetes is to be.
pub(super) fn check(kubernetes: &Kubernetes, found: &mut Findings<'_>) {
    let path = |name: &str| field(AT, name);
    match syntax::version(&kubernetes.version) {
        None => found.problem(
            &path("version"),
            format!("{} is not a version: write vMAJOR.MINOR.PATCH, v1.31.4", shown(&kubernetes.version)),
        ),
        Some(version) if version < OLDEST => {
            found.problem(&path("version"), format!("{} is too old: v1.20.0 or later", kubernetes.version));
        }
        Some(_) => {}
    }
    networks(kubernetes, found);
    if !syntax::dns_name(&kubernetes.dns_domain) {
        found.problem(
            &path("dnsDomain"),
            format!("{} is not a domain: labels of a-z, 0-9 and -, cluster.local", shown(&kubernetes.dns_domain)),
        );
    }
    if let Some(cni) = &kubernetes.cni {
        found.manifest(&format!("{AT}.cni.manifest"), &cni.manifest);
    }
    if let Some(repository) = &kubernetes.image_repository
        && !syntax::repository(repository)
    {
        found.problem(
            &path("imageRepository"),
            format!("{} is not a repository: write registry.example/k8s, without scheme and tag", shown(repository)),
        );
    }
    if let Some(image) = &kubernetes.pause_image
        && !syntax::image_reference(image)
    {
        found.problem(
            &path("pauseImage"),
            format!("{} is not an image with its tag: write registry.k8s.io/pause:3.10", shown(image)),
        );
    }
    let mut hosts = BTreeMap::new();
    for (i, registry) in kubernetes.registries.iter().enumerate() {
        self::registry(&format!("{AT}.registries[{i}]"), registry, &mut hosts, found);
    }
    for (i, phase) in kubernetes.skip_phases.iter().enumerate() {
        let path = format!("{AT}.skipPhases[{i}]");
        let word =
            |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !phase.split('/').all(word) || phase.split('/').count() > 2 {
            found.problem(&path, format!("{} is not a phase: write it as kubeadm does, addon/coredns", shown(phase)));
        } else if !PHASES.contains(&phase.split('/').next().unwrap_or_default()) {
            found.warn(
                &path,
                format!("kubeadm may not know the phase {}: known are {}", shown(phase), PHASES.join(", ")),
            );
        }
    }
    for gate in kubernetes.feature_gates.keys() {
        let good =
            gate.starts_with(|c: char| c.is_ascii_uppercase()) && gate.chars().all(|c| c.is_ascii_alphanumeric());
        if !good {
            found.problem(
                &field(&path("featureGates"), gate),
                format!("{} is not a feature gate: it is written like NodeSwap", shown(gate)),
            );
        }
    }
    let mut names = BTreeMap::new();
    for (i, name) in kubernetes.cert_sans.iter().enumerate() {
        let path = format!("{AT}.certSans[{i}]");
        if name.parse::<IpAddr>().is_ok() || syntax::dns_name(name.strip_prefix("*.").unwrap_or(name)) {
            found.once(&mut names, name, &path);
        } else {
            found.problem(&path, format!("{} is neither an address nor a DNS name", shown(name)));
        }
    }
    for (name, component) in [
        ("apiServer", &kubernetes.api_server),
        ("controllerManager", &kubernetes.controller_manager),
        ("scheduler", &kubernetes.scheduler),
        ("etcd", &kubernetes.etcd),
        ("kubelet", &kubernetes.kubelet),
    ] {
        arguments(&path(name), component, found);
    }
    configuration(&path("kubeletConfiguration"), &kubernetes.kubelet_configuration, &KUBELET_FIELDS, found);
    configuration(&path("kubeProxyConfiguration"), &kubernetes.kube_proxy_configuration, &PROXY_FIELDS, found);
}

fn networks(kubernetes: &Kubernetes, found: &mut Findings<'_>) {
    let (pods_at, services_at) = (field(AT, "podSubnet"), field(AT, "serviceSubnet"));
    let mut read = |path: &str, text: &str| {
        syntax::subnets(text).unwrap_or_else(|message| {
            found.problem(path, message);
            Vec::new()
        })
    };
    let (pods, services) = (read(&pods_at, &kubernetes.pod_subnet), read(&services_at, &kubernetes.service_subnet));
    // What kubeadm and the API server take: a node gets a /24 or /64 of the pods', at most 65536 of them.
    let own_masks = kubernetes.controller_manager.extra_args.keys().any(|k| k.starts_with("node-cidr-mask-size"));
    for net in &pods {
        let (least, most) = if net.addr().is_ipv4() { (8, 24) } else { (48, 64) };
        if !own_masks && !(least..=most).contains(&net.prefix_len()) {
            found.problem(
                &pods_at,
                format!("{net}: every node gets a /{most} of it, so its prefix length is from {least} to {most}"),
            );
        }
    }
    for net in &services {
        let (least, most) = if net.addr().is_ipv4() { (12, 28) } else { (108, 124) };
        if !(least..=most).contains(&net.prefix_len()) {
            found.problem(&services_at, format!("{net}: the API server takes a prefix length from {least} to {most}"));
        }
    }
    for (pod, service) in pods.iter().flat_map(|pod| services.iter().map(move |service| (pod, service))) {
        if syntax::overlap(pod, service) && !found.is_bad(&pods_at) {
            found.problem(&services_at, format!("{service} overlaps spec.kubernetes.podSubnet, {pod}"));
        }
    }
    let families =
        |nets: &[IpNet]| nets.iter().map(|net| net.addr().is_ipv4()).collect::<std::collections::BTreeSet<_>>();
    let differ = !pods.is_empty() && !services.is_empty() && families(&pods) != families(&services);
    if differ && !found.is_bad(&pods_at) {
        found.problem(
            &services_at,
            "pods and services are of different families: both IPv4, both IPv6, or both of both",
        );
    }
}

fn registry(at: &str, registry: &Registry, hosts: &mut BTreeMap<String, String>, found: &mut Findings<'_>) {
    let path = field(at, "host");
    if registry.host == "*" || syntax::is_host(&registry.host) {
        found.once(hosts, &registry.host, &path);
    } else {
        found.problem(
            &path,
            format!("{} is not a registry's host: write docker.io, or * for all", shown(&registry.host)),
        );
    }
    for (i, mirror) in registry.mirrors.iter().enumerate() {
        let bare = mirror.split_once('/').map_or(mirror.as_str(), |(host, _)| host);
        let good = if mirror.contains("://") { syntax::web_address(mirror).is_some() } else { syntax::is_host(bare) };
        if !good {
            found.problem(
                &format!("{at}.mirrors[{i}]"),
                format!("{} is not an address: write https://mirror.example:5000", shown(mirror)),
            );
        }
    }
    if registry.mirrors.is_empty() && registry.ca.is_none() && !found.is_torn(at) {
        found.warn(at, "neither `mirrors` nor `ca` is given: this changes nothing");
    }
    if let Some(ca) = &registry.ca {
        certificates::bundle(&field(at, "ca"), ca, found);
    }
}

fn arguments(at: &str, component: &Component, found: &mut Findings<'_>) {
    for (name, value) in &component.extra_args {
        let path = field(&field(at, "extraArgs"), name);
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.starts_with('-') {
            found.problem(&path, format!("write it without dashes: {}", shown(name.trim_start_matches('-'))));
        } else if name.is_empty() || !name.bytes().all(plain) {
            found.problem(&path, format!("{} is not the name of an argument: a-z, 0-9 and -", shown(name)));
        } else if value.contains(char::is_control) {
            found.problem(&path, "the value holds a line break or another control character");
        }
    }
}

fn configuration(at: &str, fields: &BTreeMap<String, Value>, known: &[&str], found: &mut Findings<'_>) {
    for (name, value) in fields {
        let path = field(at, name);
        let good =
            name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(|c| c.is_ascii_alphanumeric());
        if ["apiVersion", "kind"].contains(&name.as_str()) {
            found.problem(&path, "the service writes this itself: leave it out");
        } else if !good {
            found.problem(&path, format!("{} is not a field: it is written like maxPods", shown(name)));
        } else if value.is_null() {
            found.problem(&path, "this is empty; give a value, or leave the field out");
        } else if !known.contains(&name.as_str()) {
            found.warn(&path, "no version up to v1.33 has this field: check its spelling");
        }
    }
}

/// KubeletConfiguration, kubelet.config.k8s.io/v1beta1, of v1.20 to v1.33.
const KUBELET_FIELDS: [&str; 123] = [
    "address",
    "allowedUnsafeSysctls",
    "authentication",
    "authorization",
    "cgroupDriver",
    "cgroupRoot",
    "cgroupsPerQOS",
    "clusterDNS",
    "clusterDomain",
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxFiles",
    "containerLogMaxSize",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "containerRuntimeEndpoint",
    "contentType",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "cpuManagerPolicy",
    "cpuManagerPolicyOptions",
    "cpuManagerReconcilePeriod",
    "crashLoopBackOff",
    "enableContentionProfiling",
    "enableControllerAttachDetach",
    "enableDebugFlagsHandler",
    "enableDebuggingHandlers",
    "enableProfilingHandler",
    "enableServer",
    "enableSystemLogHandler",
    "enableSystemLogQuery",
    "enforceNodeAllocatable",
    "eventBurst",
    "eventRecordQPS",
    "evictionHard",
    "evictionMaxPodGracePeriod",
    "evictionMinimumReclaim",
    "evictionPressureTransitionPeriod",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "failCgroupV1",
    "failSwapOn",
    "featureGates",
    "fileCheckFrequency",
    "hairpinMode",
    "healthzBindAddress",
    "healthzPort",
    "httpCheckFrequency",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMaximumGCAge",
    "imageMinimumGCAge",
    "imagePullCredentialsVerificationPolicy",
    "imageServiceEndpoint",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kernelMemcgNotification",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "kubeReserved",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "localStorageCapacityIsolation",
    "logging",
    "makeIPTablesUtilChains",
    "maxOpenFiles",
    "maxParallelImagePulls",
    "maxPods",
    "memoryManagerPolicy",
    "memorySwap",
    "memoryThrottlingFactor",
    "mergeDefaultEvictionSettings",
    "nodeLeaseDurationSeconds",
    "nodeStatusMaxImages",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "oomScoreAdj",
    "podCIDR",
    "podLogsDir",
    "podPidsLimit",
    "podsPerCore",
    "port",
    "preloadedImagesVerificationAllowlist",
    "protectKernelDefaults",
    "providerID",
    "qosReserved",
    "readOnlyPort",
    "registerNode",
    "registerWithTaints",
    "registryBurst",
    "registryPullQPS",
    "reservedMemory",
    "reservedSystemCPUs",
    "resolvConf",
    "rotateCertificates",
    "runOnce",
    "runtimeRequestTimeout",
    "seccompDefault",
    "serializeImagePulls",
    "serverTLSBootstrap",
    "showHiddenMetricsForVersion",
    "shutdownGracePeriod",
    "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods",
    "singleProcessOOMKill",
    "staticPodPath",
    "staticPodURL",
    "staticPodURLHeader",
    "streamingConnectionIdleTimeout",
    "syncFrequency",
    "systemCgroups",
    "systemReserved",
    "systemReservedCgroup",
    "tlsCertFile",
    "tlsCipherSuites",
    "tlsMinVersion",
    "tlsPrivateKeyFile",
    "topologyManagerPolicy",
    "topologyManagerPolicyOptions",
    "topologyManagerScope",
    "tracing",
    "userNamespaces",
    "volumePluginDir",
    "volumeStatsAggPeriod",
];

/// KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1, of v1.20 to v1.33.
const PROXY_FIELDS: [&str; 25] = [
    "bindAddress",
    "bindAddressHardFail",
    "clientConnection",
    "clusterCIDR",
    "configSyncPeriod",
    "conntrack",
    "detectLocal",
    "detectLocalMode",
    "enableProfiling",
    "featureGates",
    "healthzBindAddress",
    "hostnameOverride",
    "iptables",
    "ipvs",
    "logging",
    "metricsBindAddress",
    "mode",
    "nftables",
    "nodePortAddresses",
    "oomScoreAdj",
    "portRange",
    "showHiddenMetricsForVersion",
    "udpIdleTimeout",
    "windowsRunAsService",
    "winkernel",
];
