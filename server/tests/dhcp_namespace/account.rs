//! The whole service as an ordinary user, with the capabilities of its unit file and no others.

use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use crate::net::{LIMIT, Lan, Program};
use crate::udhcpc;

const UNIT: &str = include_str!("../../dist/nkd.service");
/// The user `nobody`: exists everywhere, owns nothing.
const USER: u32 = 65534;

/// `net_raw,net_admin` for setpriv, from the unit's line.
fn capabilities(setting: &str) -> Vec<String> {
    let line = UNIT.lines().find_map(|line| line.strip_prefix(&format!("{setting}="))).unwrap();
    line.split_whitespace().map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase()).collect()
}

fn serve(lan: &Lan, state: &std::path::Path, ambient: &[String]) -> Program {
    let list = |names: &[String]| names.iter().fold("-all".to_owned(), |list, name| list + ",+" + name);
    let user = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into(), "--no-new-privs".into()];
    let rights = [
        format!("--inh-caps={}", list(ambient)),
        format!("--ambient-caps={}", list(ambient)),
        format!("--bounding-set={}", list(&capabilities("CapabilityBoundingSet"))),
    ];
    let settings = ["dhcp.mode=server", "dhcp.interface.name=br0", "dhcp.interface.pool=192.0.2.50-192.0.2.59"];
    let service = [env!("CARGO_BIN_EXE_nkd"), "serve", "--state-dir", state.to_str().unwrap()];
    let mut arguments: Vec<&str> = user.iter().chain(&rights).map(String::as_str).collect();
    arguments.extend(service);
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    lan.server.start("setpriv", &arguments)
}

#[test]
#[ignore = "namespace tier: needs root, setpriv and udhcpc"]
fn an_ordinary_user_serves_with_the_capabilities_of_the_unit() {
    assert_eq!(capabilities("AmbientCapabilities"), capabilities("CapabilityBoundingSet"));
    let mut lan = Lan::new();
    let machine = lan.machine();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    chown(&state, Some(USER), Some(USER)).unwrap();

    // Without capabilities the error says which port and what to do.
    serve(&lan, &state, &[]).wait_for("CAP_NET_BIND_SERVICE");

    let service = serve(&lan, &state, &capabilities("AmbientCapabilities"));
    service.wait_for("nkd serves");
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.id())).unwrap();
    assert!(status.contains(&format!("Uid:\t{USER}\t{USER}")), "{status}");
    let address = udhcpc(&machine);
    assert!(address.starts_with("192.0.2.5"), "{address}");
    machine.ip(&format!("addr add {address}/24 dev eth0"));
    let answer = machine.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.send_to(b"\x00\x01no-such-file\x00octet\x00", "192.0.2.1:69").unwrap();
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    });
    assert_eq!(answer[..4], [0, 5, 0, 1], "ERROR, file not found: {answer:?}");
    assert!(Command::new("kill").args(["-TERM", &service.id().to_string()]).status().unwrap().success());
    service.wait_for("stopped");
}
