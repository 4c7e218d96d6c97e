//! What systemd finds in a node: a folder that is `/etc/systemd` there. Pure.

/// A file in `/etc/systemd`; one that only points at `/dev/null` is masked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File { path: String, text: &'static str },
    Link { path: String, target: String },
}

/// Units of this computer's packages that would reach for its hardware, its time or its terminals.
const MASKED: &[&str] = &[
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "getty.target",
    "kmod-static-nodes.service",
    "proc-sys-fs-binfmt_misc.automount",
    "proc-sys-fs-binfmt_misc.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journald-audit.socket",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-networkd.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-resolved.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
];

const JOURNAL: &str = "[Journal]\nStorage=persistent\nAudit=no\nReadKMsg=no\nForwardToConsole=yes\nMaxLevelConsole=info\nSystemMaxUse=64M\nRateLimitIntervalSec=0\n";

/// An API server whose etcd went first waits for its clients until systemd ends it.
const SYSTEM: &str = "[Manager]\nDefaultTimeoutStopSec=15s\n";

const CONTAINERD: &str = "\
[Unit]
Description=containerd container runtime
After=network.target
[Service]
Type=notify
ExecStart=/usr/bin/containerd
Delegate=yes
KillMode=process
Restart=always
RestartSec=5
OOMScoreAdjust=-999
LimitNOFILE=infinity
TasksMax=infinity
[Install]
WantedBy=multi-user.target
";

/// As in the packages of Kubernetes, but for the order: at boot it need not fail once.
const KUBELET: &str = "\
[Unit]
Description=kubelet: The Kubernetes Node Agent
Wants=network-online.target
After=network-online.target containerd.service
[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=10
[Install]
WantedBy=multi-user.target
";

/// kubeadm's drop-in, unchanged.
const KUBEADM: &str = r#"[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
"#;

/// The unit of the node agent as it goes into node images, below `/usr/lib/systemd/system`.
pub(super) const AGENT: &str = include_str!("../../../agent/dist/nkd-agent.service");

/// And that of its balancer.
pub(super) const BALANCER: &str = include_str!("../../../agent/dist/nkd-balancer.service");

/// And that of its updates.
pub(super) const UPDATER: &str = include_str!("../../../agent/dist/nkd-updater.service");

/// What lies in `/etc/systemd`. `generators` are the names of this computer's, none of which may run.
pub(super) fn entries(kubernetes: bool, agent: bool, generators: &[String]) -> Vec<Entry> {
    let mask = |path: String| Entry::Link { path, target: "/dev/null".to_owned() };
    let file = |path: &str, text| Entry::File { path: path.to_owned(), text };
    let enable = |unit: &str, from: &str| Entry::Link {
        path: format!("system/multi-user.target.wants/{unit}"),
        target: format!("{from}/{unit}"),
    };
    let mut entries: Vec<Entry> = MASKED.iter().map(|unit| mask(format!("system/{unit}"))).collect();
    entries.extend(generators.iter().map(|name| mask(format!("system-generators/{name}"))));
    entries.push(file("journald.conf", JOURNAL));
    entries.push(file("system.conf", SYSTEM));
    if kubernetes {
        entries.push(file("system/containerd.service", CONTAINERD));
        entries.push(file("system/kubelet.service", KUBELET));
        entries.push(file("system/kubelet.service.d/10-kubeadm.conf", KUBEADM));
        entries.push(enable("containerd.service", "/etc/systemd/system"));
        entries.push(enable("kubelet.service", "/etc/systemd/system"));
    }
    if agent {
        entries.push(enable("nkd-agent.service", "/usr/lib/systemd/system"));
        entries.push(enable("nkd-balancer.service", "/usr/lib/systemd/system"));
        entries.push(enable("nkd-updater.service", "/usr/lib/systemd/system"));
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_of_the_agent_are_wanted_where_they_are_enabled() {
        for (unit, command) in [(AGENT, "run"), (BALANCER, "balance")] {
            assert!(unit.contains("\nWantedBy=multi-user.target\n"));
            assert!(unit.contains(&format!("\nExecStart=/usr/bin/nkd-agent {command}\n")));
        }
    }

    #[test]
    fn no_path_is_written_twice() {
        let entries = entries(true, true, &["systemd-fstab-generator".to_owned()]);
        let mut paths: Vec<&String> =
            entries.iter().map(|(Entry::File { path, .. } | Entry::Link { path, .. })| path).collect();
        let all = paths.len();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), all);
    }
}
