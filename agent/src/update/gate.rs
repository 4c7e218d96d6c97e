//! The gate: what has to hold before a node is called healthy.
//!
//! The deployment that was asked for runs; no unit has failed that had not failed before; the kubelet speaks of this very
//! boot, in the version that was asked for, and its node is Ready; a control plane's own API server is ready, and of that
//! version too; and every program in `/etc/nkd/health.d` ends well.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::node::NodeSeen;
use super::plane::is_version;
use super::state::{Job, System, id_of};
use crate::kubeadm;
use crate::ostree::ask;

/// The operator's own checks.
pub const CHECKS: &str = "etc/nkd/health.d";
/// How long each of them may take, in seconds.
const LIMIT: &str = "60";
/// How long after that one may take that does not end when it is told to.
const GRACE: &str = "5";

/// What can be told from the system and the node object (pure).
///
/// # Errors
/// What is not as it should be, in one sentence.
pub fn judge(job: &Job, system: &System, node: &NodeSeen) -> Result<(), String> {
    if let Some(wanted) = job.desired.os.as_ref().and_then(id_of)
        && system.booted() != Some(wanted)
    {
        return Err(format!("{} runs, not {wanted}", system.booted().unwrap_or("something unknown")));
    }
    if let Some(unit) = system.failed_units.iter().find(|unit| !job.failed_before.contains(unit)) {
        return Err(format!("{unit} has failed: see `journalctl -u {unit}`"));
    }
    if node.boot_id != system.boot_id {
        return Err("the kubelet has not reported since the restart".to_owned());
    }
    if let Some(wanted) = job.desired.kubernetes.as_ref().filter(|wanted| **wanted != node.kubelet) {
        return Err(format!("the kubelet is {}, not {wanted}", node.kubelet));
    }
    if !node.ready {
        return Err(format!("the node is not Ready: {}", node.why));
    }
    Ok(())
}

/// What has to be tried: the API server of a control plane, which is to be of the version `wanted`, and the operator's own checks.
///
/// # Errors
/// As [`judge`].
pub fn try_out(root: &Path, wanted: Option<&str>) -> Result<(), String> {
    if let Some(port) = kubeadm::api_server_port(root) {
        answers(wanted, |path| kubeadm::ask_api_server(root, port, path))?;
    }
    checks(root, LIMIT, GRACE)
}

fn checks(root: &Path, limit: &str, grace: &str) -> Result<(), String> {
    let Ok(entries) = std::fs::read_dir(root.join(CHECKS)) else { return Ok(()) };
    let mut checks: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    checks.sort();
    for check in checks {
        let runs = std::fs::metadata(&check).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
        if runs {
            let name = check.display().to_string();
            ask("timeout", &["-k", grace, limit, &name]).map_err(|why| format!("the check {name} says no: {why}"))?;
        }
    }
    Ok(())
}

/// The node's own API server is ready and, since only kubeadm brings it there, of the version that was asked for.
fn answers(wanted: Option<&str>, get: impl Fn(&str) -> Result<Vec<u8>, String>) -> Result<(), String> {
    let not_ready = |why: String| format!("its API server is not ready: {why}");
    get("/readyz").map_err(not_ready)?;
    wanted.map_or(Ok(()), |wanted| is_version(&get("/version").map_err(not_ready)?, wanted))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test writes checks")]
mod tests {
    use nkd_api::update::{Desired, OsRelease};

    use super::super::state::{Deployment, Stage};
    use super::*;

    fn scene() -> (Job, System, NodeSeen) {
        let desired = Desired {
            update: "u".into(),
            uid: "1".into(),
            attempt: 1,
            retry: None,
            os: Some(OsRelease { commit: Some("new".into()), ..OsRelease::default() }),
            kubernetes: Some("v2".into()),
            first: false,
            go: true,
            ignore_preflight_errors: Vec::new(),
        };
        let job = Job {
            desired,
            stage: Stage::Check,
            boot_id: "b".into(),
            from: Some("old".into()),
            failed_before: vec!["old.service".into()],
            kubeadm_began: true,
            cuts: 0,
            kubeadm: true,
            restaged: 0,
            reason: String::new(),
            condemned: false,
            put_back: false,
        };
        let system = System {
            boot_id: "b".into(),
            deployments: vec![Deployment { id: "new".into(), booted: true, staged: false }],
            finalize_failure: None,
            kubernetes: Some("v2".into()),
            plane: None,
            failed_units: vec!["old.service".into()],
            caution: None,
        };
        let node = NodeSeen { ready: true, boot_id: "b".into(), kubelet: "v2".into(), ..NodeSeen::default() };
        (job, system, node)
    }

    #[test]
    fn everything_has_to_hold() {
        let (job, system, node) = scene();
        assert_eq!(judge(&job, &system, &node), Ok(()));
        let says = |system: &System, node: &NodeSeen, word: &str| {
            let said = judge(&job, system, node).unwrap_err();
            assert!(said.contains(word), "{said}");
        };
        let other = Deployment { id: "old".into(), booted: true, staged: false };
        says(&System { deployments: vec![other], ..system.clone() }, &node, "old runs, not new");
        says(&System { failed_units: vec!["new.service".into()], ..system.clone() }, &node, "new.service has failed");
        says(&system, &NodeSeen { boot_id: "a".into(), ..node.clone() }, "since the restart");
        says(&system, &NodeSeen { kubelet: "v1".into(), ..node.clone() }, "v1, not v2");
        says(&system, &NodeSeen { ready: false, why: "no network".into(), ..node.clone() }, "no network");
    }

    #[test]
    fn a_control_plane_of_another_version_is_not_upgraded() {
        let get = |path: &str| match path {
            "/readyz" => Ok(b"ok".to_vec()),
            "/version" => Ok(br#"{"gitVersion": "v1"}"#.to_vec()),
            _ => Err("HTTP/1.0 404 Not Found".to_owned()),
        };
        assert_eq!((answers(Some("v1"), get), answers(None, get)), (Ok(()), Ok(())));
        assert!(answers(Some("v2"), get).unwrap_err().contains("v1, not v2"));
        let not_ready = |path: &str| if path == "/readyz" { Err("etcd failed".to_owned()) } else { get(path) };
        assert!(answers(Some("v1"), not_ready).unwrap_err().contains("not ready: etcd failed"));
    }

    #[test]
    fn the_checks_of_a_site_are_asked() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(try_out(root.path(), None), Ok(()));
        let folder = root.path().join(CHECKS);
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("10-good", "#!/bin/sh\nexit 0\n", 0o755);
        write("README", "exit 1\n", 0o644);
        assert_eq!(try_out(root.path(), None), Ok(()));
        write("20-bad", "#!/bin/sh\necho no storage >&2\nexit 1\n", 0o755);
        let said = try_out(root.path(), None).unwrap_err();
        assert!(said.contains("20-bad") && said.contains("no storage"), "{said}");
        // One that does not want to end.
        let over = root.path().join("over").display().to_string();
        let deaf = format!("#!/bin/sh\ntrap '' TERM\nfor i in $(seq 60); do sleep 1; done\n: >{over}\n");
        write("15-deaf", &deaf, 0o755);
        let said = checks(root.path(), "1", "1").unwrap_err();
        assert!(said.contains("15-deaf") && !Path::new(&over).exists(), "{said}");
    }
}
