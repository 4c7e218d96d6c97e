//! The example configuration of the package says the truth: every setting, no other, and the defaults as they are.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::*;

const EXAMPLE: &str = include_str!("../../dist/nkd.toml");
/// Shown with an example, because they have no default.
const WITHOUT_DEFAULT: [&str; 7] = [
    "advertise",
    "agent_binary",
    "dhcp.interface",
    "dhcp.reservation",
    "discovery_image",
    "http.names",
    "templates_dir",
];

/// The settings behind `#`; prose has a space there.
fn uncommented() -> Table {
    let setting = |line: &&str| line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[');
    let lines: Vec<&str> = EXAMPLE.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).filter(setting).collect();
    lines.join("\n").parse().unwrap()
}

fn inputs(values: Table) -> Inputs {
    Inputs { values, ..Inputs::default() }
}

fn names(table: &Table, path: &str, found: &mut BTreeSet<String>) {
    for (key, value) in table {
        let at = format!("{path}{key}");
        match value {
            Value::Table(inner) => names(inner, &format!("{at}."), found),
            Value::Array(items) if items.first().is_some_and(Value::is_table) => {
                names(items[0].as_table().unwrap(), &format!("{at}[0]."), found);
            }
            _ => {}
        }
        found.insert(at);
    }
}

#[test]
fn the_example_is_what_happens_without_it() {
    let example = inputs(EXAMPLE.parse().unwrap()).validate().unwrap();
    let nothing = inputs(Table::new()).validate().unwrap();
    assert_eq!(example, nothing);
}

#[test]
fn every_setting_is_documented_and_every_documented_one_exists() {
    let table = uncommented();
    let mut documented = BTreeSet::new();
    names(&table, "", &mut documented);
    let (known, settings) = read::known_and_settings(inputs(table));
    settings.unwrap();
    assert_eq!(documented, known);
}

#[test]
fn documented_defaults_are_the_defaults() {
    let mut table = uncommented();
    let lease_time = table["dhcp"]["interface"][0]["lease_time"].as_integer();
    for name in WITHOUT_DEFAULT {
        match name.split_once('.') {
            Some((section, key)) => table[section].as_table_mut().unwrap().remove(key).unwrap(),
            None => table.remove(name).unwrap(),
        };
    }
    let documented = inputs(table).validate().unwrap();
    let nothing = inputs(Table::new()).validate().unwrap();
    assert_eq!(documented, nothing);

    let interface = inputs("[dhcp.interface]\nname = 'eth1'".parse().unwrap()).validate().unwrap();
    let lease = interface.dhcp.interfaces[0].lease_time.as_secs();
    assert_eq!(i64::try_from(lease).ok(), lease_time);
}

/// What `--print-settings` prints is a settings file: every setting is in it, and it says the same.
#[test]
fn printed_settings_read_as_the_same() {
    let mut odd = uncommented();
    odd["log"]["format"] = "json".into();
    odd["dhcp"]["mode"] = "server".into();
    odd["dhcp"]["conflict_probe"] = false.into();
    odd["dhcp"]["interface"][0]["lease_time"] = 86_400.into();
    odd["dhcp"]["interface"][0]["domain"] = "it's \"odd\"".into();
    odd["tftp"]["enabled"] = false.into();
    odd["http"]["api_listen"] = "[::1]:1".into();
    odd["netboot"]["ipxe_dir"] = "/a b/\u{e4}\\".into();
    for table in [Table::new(), uncommented(), odd] {
        let settings = inputs(table.clone()).validate().unwrap();
        let printed: Table = settings.to_toml().unwrap().parse().unwrap();
        let (mut given, mut shown) = (BTreeSet::new(), BTreeSet::new());
        names(&table, "", &mut given);
        names(&printed, "", &mut shown);
        assert!(given.is_subset(&shown), "{given:?} {shown:?}");
        assert_eq!(inputs(printed).validate().unwrap(), settings);
    }
}
