//! Settings from every source, and every problem at once.
#![allow(clippy::disallowed_methods, reason = "writes settings files")]

use super::*;

fn gather(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nkd.toml");
    std::fs::write(&path, file).unwrap();
    let pairs = |p: &[(&str, &str)]| p.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    Inputs::gather(&Sources { file: Some(path), environment: pairs(env), flags: pairs(flags) }).validate()
}

#[test]
fn nothing_given_is_enough() {
    let settings = gather("", &[], &[]).unwrap();
    assert_eq!(settings.dhcp.mode, Mode::Off);
    assert_eq!(settings.key_file, PathBuf::from("/var/lib/nkd/secret.key"));
    assert_eq!(settings.http.api_listen.port(), 8443);
}

#[test]
fn later_sources_win() {
    let file = "state_dir = '/a'\n[http]\napi_listen = '10.0.0.1:1'\nboot_listen = '10.0.0.1:2'\n";
    let settings = gather(
        file,
        &[("NKD_STATE_DIR", "/b"), ("NKD_HTTP__API_LISTEN", "10.0.0.1:3"), ("NKD_TOKEN", "t"), ("PATH", "/bin")],
        &[("state_dir", "/c")],
    )
    .unwrap();
    assert_eq!(settings.state_dir, PathBuf::from("/c"));
    assert_eq!(settings.http.api_listen.port(), 3);
    assert_eq!(settings.http.boot_listen.port(), 2);
}

#[test]
fn fragments_are_read_by_name_after_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nkd.toml");
    std::fs::write(
        &path,
        "advertise = 'a'\n[dhcp]\nmode = 'server'\n[[dhcp.interface]]\nname = 'eth1'\npool = '10.0.0.5-10.0.0.9'\n",
    )
    .unwrap();
    std::fs::create_dir(dir.path().join("nkd.d")).unwrap();
    std::fs::write(dir.path().join("nkd.d/20-b.toml"), "advertise = 'c'\n").unwrap();
    std::fs::write(dir.path().join("nkd.d/10-a.toml"), "advertise = 'b'\n").unwrap();
    let settings = Inputs::gather(&Sources { file: Some(path), ..Sources::default() }).validate().unwrap();
    assert_eq!(settings.advertise.as_deref(), Some("c"));
    assert_eq!(settings.dhcp.interfaces[0].name, "eth1");
}

#[test]
fn every_problem_is_reported_by_name_and_origin() {
    let file = "state_dri = '/x'\n[dhcp]\nmode = 'sever'\nconflict_probe = 'yes'\n[[dhcp.interface]]\npool = '10.0.0.9-10.0.0.5'\ndns = ['a']\nlease_time = 1\n[[dhcp.reservation]]\nmac = 'x'\n[http]\nboot_listen = '8080'\n";
    let error = gather(file, &[("NKD_HTTP__API_LISTEN", "nowhere")], &[("log.format", "xml")]).unwrap_err();
    let names: Vec<&str> = error.0.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "dhcp.conflict_probe",
            "dhcp.interface[0].dns[0]",
            "dhcp.interface[0].lease_time",
            "dhcp.interface[0].name",
            "dhcp.interface[0].pool",
            "dhcp.mode",
            "dhcp.reservation[0].ip",
            "dhcp.reservation[0].mac",
            "http.api_listen",
            "http.boot_listen",
            "log.format",
            "state_dri",
        ]
    );
    let origin = |name: &str| error.0.iter().find(|p| p.name == name).unwrap().origin.clone();
    assert_eq!(origin("http.api_listen"), "NKD_HTTP__API_LISTEN");
    assert_eq!(origin("log.format"), "a flag");
    assert!(origin("dhcp.interface[0].pool").ends_with("nkd.toml"));
    assert!(error.to_string().starts_with("12 settings are wrong:"));
}

/// Whether a protocol serves them is for the protocol to say.
#[test]
fn the_values_of_an_interface_may_be_of_either_family() {
    let interface = |values: &str| gather(&format!("[[dhcp.interface]]\nname = 'eth1'\n{values}"), &[], &[]);
    let v6 = "server_ip = '2001:db8::1'\nsubnet = '2001:db8::/64'\npool = '2001:db8::50-2001:db8::99'\ngateway = 'fe80::1'\n";
    let settings = interface(v6).unwrap();
    assert!(settings.dhcp.interfaces[0].pool.as_ref().unwrap().contains(&IpAddr::V6("2001:db8::98".parse().unwrap())));
    for mixed in ["10.0.0.1-2001:db8::1", "2001:db8::1-10.0.0.1", "2001:db8::2-2001:db8::1"] {
        let error = interface(&format!("pool = '{mixed}'")).unwrap_err();
        assert_eq!(error.0[0].name, "dhcp.interface[0].pool", "{error}");
    }
}

#[test]
fn broken_and_missing_files_are_named() {
    let error = gather("a = [", &[], &[]).unwrap_err();
    assert!(error.to_string().contains("nkd.toml: is not TOML"), "{error}");
    let missing = Sources { file: Some("/nonexistent/nkd.toml".into()), ..Sources::default() };
    assert!(Inputs::gather(&missing).validate().unwrap_err().to_string().contains("cannot be read"));
}
