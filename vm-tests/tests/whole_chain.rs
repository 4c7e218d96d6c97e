//! From two blank disks to a Ready cluster, on real machines, by one service and one cluster file.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use nkd_vm_tests::{Builds, DhcpMode, Error, LabCluster, Machine, Network, Nkd, kubernetes_folder, within};
type Result<T = ()> = std::result::Result<T, Error>;

fn builds() -> Result<Builds> {
    let remedy = "run this through `cargo xtask test`, which builds it";
    let image = std::env::var_os("NKD_CLUSTER_IMAGE").map(std::path::PathBuf::from).filter(|p| p.exists());
    let image = image.ok_or(Error::NotBuilt { variable: "NKD_CLUSTER_IMAGE", remedy })?;
    Ok(Builds { image, ..Builds::program_from_environment()? })
}

/// The service is the only server on the network, and the cluster file is there before the machines are switched on.
#[test]
fn two_blank_machines_become_a_ready_cluster_and_are_given_back() -> Result {
    let net = Network::create("whole-chain")?;
    let builds = builds()?;
    let nkd = Nkd::start(&net, &builds, DhcpMode::Server, &[])?;
    nkd.nkd(&net, &["image", "import", &builds.image.display().to_string(), "--name", "lab"])?;
    let cluster = LabCluster::create(&net, &kubernetes_folder()?)?;
    nkd.nkd(&net, &["cluster", "apply", "-f", &cluster.file().display().to_string()])?;
    LabCluster::wait_until(&net, &nkd, "the machines are awaited", within(30), |status| {
        status["members"].as_array().is_some_and(|members| members.iter().all(|m| m["machine"].is_string()))
    })?;

    let mut machines: Vec<Machine> =
        LabCluster::machines().into_iter().map(|spec| spec.start(&net)).collect::<Result<_>>()?;
    LabCluster::wait_until(&net, &nkd, "the cluster is Ready", within(1500), LabCluster::is_ready)?;
    for name in LabCluster::MACHINES {
        let machine = nkd.machine(&net, name)?;
        assert_eq!(machine["phase"]["name"], "ready", "{machine:#}");
        assert_eq!(machine["installedGeneration"], 1, "{machine:#}");
    }

    // The way of an operator: a kubeconfig, and kubectl.
    cluster.access(&net, &nkd)?;
    let nodes = cluster.kubectl(&net, &["get", "nodes", "--output=wide"])?;
    println!("{nodes}");
    let ready = |name: &str| {
        let line = nodes.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&"Ready") && words.contains(&LabCluster::KUBERNETES) && line.contains("NKD lab node image")
    };
    assert!(LabCluster::MACHINES.into_iter().all(ready), "{nodes}");

    // Each boots its own disk from now on, and comes back into the cluster by itself.
    cluster.cycle_power(&net, &nkd, &mut machines, within(600))?;

    // Taken apart, the machines are back in the pool, and what was on their disks boots no more.
    nkd.nkd(&net, &["cluster", "destroy", LabCluster::NAME, "--confirm", LabCluster::NAME])?;
    for machine in &mut machines {
        let name = machine.name().to_owned();
        let pooled = nkd.wait_until(&net, &name, "it is wiped", within(400), |m| {
            m["assignment"].is_null() && m["installedGeneration"].is_null()
        })?;
        assert_eq!(pooled["phase"]["name"], "discovered", "{pooled:#}");
        machine.power_cut()?;
        assert!(machine.disk_begins_with_zeros()?, "{name} would boot");
    }
    assert_eq!(nkd.json(&net, &["cluster", "list"])?, serde_json::json!([]), "nothing of it is left");
    Ok(())
}
