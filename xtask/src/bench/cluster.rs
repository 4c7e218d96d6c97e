//! From `nkd cluster apply` to a Ready cluster, beside a shell script that runs kubeadm on the same machines: the same
//! images, the same configuration of kubeadm and containerd, the same add-ons, joins all at once.
//!
//! The machines are up, enrolled and have their images before either begins; what is measured is the orchestration and
//! what kubeadm and Kubernetes take themselves.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nkd_vm_tests::{ClusterFile, ClusterLab, LabMember, LabPrograms, Network, Node, bridge_pods, within};

use super::storm::mebibytes;
use super::{Better, OURS, Programs, Table};
use crate::build;

const SCRIPT: &str = "script";
const NAME: &str = "bench";
/// Between two looks at whether it is done, on both sides.
const LOOK: Duration = Duration::from_millis(200);
const LIMIT: u64 = 600;
/// Where nodes find what the script needs.
const PLACE: &str = "/etc/nkd-vm";

/// Where nkd's nodes find the API servers.
const BALANCER: &str = "127.0.0.1:7443";

/// What kubeadm and containerd were told by nkd: the script tells them the same.
struct Recipe {
    init: String,
    /// The first worker's.
    join: String,
    containerd: Vec<u8>,
}

pub fn measure(programs: &Programs, rounds: usize, workers: u8, table: &mut Table) -> Result<()> {
    let programs = LabPrograms {
        nkd: programs.binary("nkd")?,
        agent: programs.binary("nkd-agent")?,
        kubernetes: build::kubernetes()?,
    };
    let file = ClusterFile::named(NAME).workers(workers);
    let name = format!("cluster_1+{workers}");
    for _ in 0..rounds {
        let (seconds, recipe, resident) = ours(&programs, &file)?;
        table.add(&name, "s", Better::Less, OURS, seconds);
        table.add("agent_rss", "MiB", Better::Less, OURS, resident);
        let seconds = theirs(&programs, &file, &recipe)?;
        table.add(&name, "s", Better::Less, SCRIPT, seconds);
    }
    Ok(())
}

/// With nkd: seconds, what it told kubeadm, and how much memory an agent has at the end, at most.
fn ours(programs: &LabPrograms, file: &ClusterFile) -> Result<(f64, Recipe, f64)> {
    let lab = ClusterLab::start_on(Network::create("bench-nkd")?, programs.clone(), None)?;
    let members = file.members();
    let mut nodes = Vec::new();
    for member in &members {
        lab.nkd(&["machine", "declare", &member.hostname, "--mac", &member.mac, "--image", "lab"])?;
        nodes.push(lab.node(member)?);
    }
    for member in &members {
        lab.nkd.wait_for_phase(&lab.net, &member.hostname, "Enrolled", within(60))?;
    }
    bridge_pods(&mut nodes.iter_mut().collect::<Vec<_>>())?;

    let begun = Instant::now();
    lab.apply_only(file)?;
    let (mut configs, mut joined) = ([None, None], 0);
    let end = begun + within(LIMIT);
    loop {
        for (config, node) in configs.iter_mut().zip(&nodes) {
            if config.is_none() {
                *config = node.read_file("/run/nkd/kubeadm.yaml").ok();
            }
        }
        let status = lab.nkd.json(&lab.net, &["cluster", "status", NAME])?;
        let members = status["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        let now = members.iter().filter(|m| matches!(m["state"].as_str(), Some("joined" | "ready"))).count();
        if now > std::mem::replace(&mut joined, now) {
            eprintln!("{OURS}: {now} of {} have joined after {:.1} s", nodes.len(), begun.elapsed().as_secs_f64());
        }
        if status["phase"] == "ready" {
            break;
        }
        ensure!(Instant::now() < end, "the cluster is not Ready: {status:#}\n{}", lab.events(NAME)?.join("\n"));
        thread::sleep(LOOK);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let [Some(init), Some(join)] = configs else { anyhow::bail!("kubeadm's configuration was not seen") };
    let containerd = nodes[0].read_file("/etc/containerd/config.toml")?;
    let recipe = Recipe { init: String::from_utf8(init)?, join: String::from_utf8(join)?, containerd };
    let resident = nodes.iter().map(resident).collect::<Result<Vec<_>>>()?;
    Ok((seconds, recipe, resident.into_iter().fold(0.0, f64::max)))
}

fn resident(node: &Node) -> Result<f64> {
    let status = node.shell("cat /proc/$(systemctl show --property=MainPID --value nkd-agent)/status", within(20))?;
    mebibytes(&status, "VmRSS:").context("no VmRSS of the agent")
}

/// With the script: seconds.
fn theirs(programs: &LabPrograms, file: &ClusterFile, recipe: &Recipe) -> Result<f64> {
    let net = Network::create("bench-script")?;
    let members = file.members();
    let mut nodes = Vec::new();
    for member in &members {
        nodes.push(programs.node(&net, member)?);
    }
    bridge_pods(&mut nodes.iter_mut().collect::<Vec<_>>())?;
    for node in &nodes {
        node.write_file("/etc/containerd/config.toml", 0o644, &recipe.containerd)?;
        node.shell("systemctl restart containerd", within(60))?;
        node.expect_unit_active("containerd", within(60))?;
    }
    let folder = file.write(net.folder())?;
    let folder = folder.parent().unwrap_or_else(|| Path::new("."));
    let (control_plane, workers) = nodes.split_first().context("no machine")?;
    for manifest in ["cni.yaml", "after.yaml"] {
        control_plane.write_file(&format!("{PLACE}/{manifest}"), 0o644, &std::fs::read(folder.join(manifest))?)?;
    }
    let init = without_balancer(&recipe.init, &members[0]);
    control_plane.write_file(&format!("{PLACE}/init.yaml"), 0o600, init.as_bytes())?;

    let begun = Instant::now();
    let init = format!(
        "kubeadm init --config {PLACE}/init.yaml --skip-phases=addon/coredns >&2
        kubectl apply -f {PLACE}/cni.yaml >&2
        kubeadm token create --print-join-command"
    );
    let command = control_plane.shell(&init, within(LIMIT))?;
    let reached = |what: &str| eprintln!("{SCRIPT}: {what} after {:.1} s", begun.elapsed().as_secs_f64());
    reached("the first control plane is made");
    thread::scope(|scope| {
        let joins: Vec<_> = workers
            .iter()
            .zip(&members[1..])
            .map(|(node, member)| {
                let config = join_config(&without_balancer(&recipe.join, &members[0]), &members[1], member, &command);
                scope.spawn(move || -> Result<()> {
                    node.write_file(&format!("{PLACE}/join.yaml"), 0o600, config?.as_bytes())?;
                    node.shell(&format!("kubeadm join --config {PLACE}/join.yaml >&2"), within(LIMIT))?;
                    Ok(())
                })
            })
            .collect();
        joins.into_iter().try_for_each(|join| join.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    reached("all have joined");
    let end = begun + within(LIMIT);
    loop {
        let text = control_plane.shell("kubectl get nodes --no-headers", within(60))?;
        if text.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count() == nodes.len() {
            break;
        }
        ensure!(Instant::now() < end, "the nodes are not Ready:\n{text}");
        thread::sleep(LOOK);
    }
    control_plane.shell(&format!("kubectl apply -f {PLACE}/after.yaml"), within(60))?;
    Ok(begun.elapsed().as_secs_f64())
}

/// The script's nodes have no balancer of nkd's agent: they go to the only API server.
fn without_balancer(config: &str, control_plane: &LabMember) -> String {
    config.replace(BALANCER, &format!("{}:6443", address(control_plane)))
}

fn address(member: &LabMember) -> &str {
    member.address.split('/').next().unwrap_or_default()
}

/// The configuration of a worker's join: the first worker's with another name and address, and with token and digest from
/// the command that kubeadm printed.
fn join_config(first: &str, from: &LabMember, member: &LabMember, command: &str) -> Result<String> {
    let word = |after: &str| {
        let mut words = command.split_whitespace().skip_while(|word| *word != after);
        words.nth(1).map(str::to_owned).with_context(|| format!("no {after} in {command:?}"))
    };
    let (token, digest) = (word("--token")?, word("--discovery-token-ca-cert-hash")?);
    let mut config = String::new();
    for line in first.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let line = match line.trim_start() {
            text if text.starts_with("token:") => format!("{indent}token: {token}"),
            text if text.starts_with("- sha256:") => format!("{indent}- {digest}"),
            _ => line.replace(address(from), address(member)).replace(&from.hostname, &member.hostname),
        };
        config.push_str(&line);
        config.push('\n');
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_is_the_first_workers_with_its_own_name_and_the_token_of_this_cluster() {
        let members = ClusterFile::named("x").workers(2).members();
        let first = "kind: JoinConfiguration\ndiscovery:\n  bootstrapToken:\n    token: a.b\n    caCertHashes:\n    - sha256:00\n\
            nodeRegistration:\n  name: w1\n  kubeletExtraArgs:\n    node-ip: 192.0.2.21\n";
        let command = "kubeadm join 192.0.2.11:6443 --token c.d     --discovery-token-ca-cert-hash sha256:11 \n";
        let config = join_config(first, &members[1], &members[2], command).unwrap();
        for line in ["    token: c.d", "    - sha256:11", "  name: w2", "    node-ip: 192.0.2.22"] {
            assert!(config.lines().any(|l| l == line), "{line} in\n{config}");
        }
        assert!(join_config(first, &members[1], &members[2], "kubeadm join").is_err());
    }
}
